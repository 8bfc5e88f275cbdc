"""Where a network computes, and in which precision."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import torch

DEVICES: Final = ("auto", "cpu", "cuda", "mps")


def chosen_device(name: str) -> torch.device:
    """Give the device of that name; "auto": the GPU if there is one, else Apple's, else the CPU.

    Raises:
        ValueError: There is no such device here.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, found in there.items() if found))
    if name not in there:
        raise ValueError(f"--device is {name!r}; expected one of {', '.join(DEVICES)}")
    if not there[name]:
        raise ValueError(f"--device {name}: PyTorch finds none on this machine; use --device cpu or --device auto")
    return torch.device(name)


def mixed_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Give the context for inference: bfloat16 or float16 on GPUs that have it, plain float32 on the CPU."""
    if device.type == "cuda":
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        return torch.autocast("cuda", dtype)
    if device.type == "mps" and torch.amp.is_autocast_available("mps"):
        return torch.autocast("mps", torch.float16)
    return nullcontext()


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that the device, or the machine, has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def free_cached_memory() -> None:
    """Give back what the allocators of GPUs keep for later."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
