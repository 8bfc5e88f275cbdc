"""Where a network computes, and in which precision."""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch

DEVICES: Final = ("auto", "cpu", "cuda", "mps")


def require_device_name(name: str) -> None:
    """Reject the name of a device that no machine has.

    Raises:
        ValueError: The names that there are.
    """
    if name not in DEVICES:
        raise ValueError(f"--device is {name!r}; expected one of {', '.join(DEVICES)}")


def chosen_device(name: str) -> "torch.device":
    """Return the device of that name; for "auto" the GPU if there is one, else Apple's, else the CPU.

    Raises:
        ValueError: There is no such device here.
    """
    require_device_name(name)
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, found in there.items() if found))
    if not there[name]:
        raise ValueError(f"--device {name}: PyTorch finds none on this machine; use --device cpu or --device auto")
    return torch.device(name)


def mixed_precision(device: "torch.device") -> AbstractContextManager[Any]:
    """Return the context for inference: bfloat16 or float16 on GPUs that have it, plain float32 on the CPU."""
    import torch

    # Without `including_emulation=False` GPUs that only emulate bfloat16 count too; float16 is faster on them.
    if device.type == "cuda":
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        return torch.autocast("cuda", dtype)
    if device.type == "mps" and torch.amp.is_autocast_available("mps"):
        return torch.autocast("mps", torch.float16)
    return nullcontext()


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the device, or the machine, has no memory left."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # Allocators other than CUDA's raise a plain RuntimeError; only its text tells it from other faults.
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def free_cached_memory() -> None:
    """Release the memory that the allocators of GPUs keep for later."""
    import torch

    # After an out-of-memory error the blocks they keep may be too fragmented even for a smaller batch.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
