"""Files of weights: what is shipped, reading safely, writing small."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS_FOLDER: Final = Path(__file__).parent


def shipped_weights(name: str | None, *, what: str) -> Path:
    """Return the path of weights that ship with the package.

    Raises:
        ValueError: The package has none of that name; the message says how to name your own file.
    """
    if name is not None and (WEIGHTS_FOLDER / name).is_file():
        return WEIGHTS_FOLDER / name
    raise ValueError(
        f"no weights for {what} are shipped with the package: name a file with --set model.clip_weights=FILE or "
        "--set model.sam_weights=FILE, or use the preset 'tiny', which has its own"
    )


def read_weights(path: Path) -> "dict[str, Tensor]":
    """Read a state dict from a safetensors or `.pth`/`.pt` file, never unpickling code; values come as stored.

    Raises:
        ValueError: The file is missing, is not a state dict, or holds something other than tensors.
    """
    if not path.is_file():
        raise ValueError(f"weights not found: {path}")
    # Imported where weights are read: `status` and `plan` only need to know where they are.
    import torch

    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            loaded: dict[str, Tensor] = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from error
        return loaded
    # Foreign checkpoints may hold anything: weights_only keeps a pickle from running code.
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} cannot be read as plain weights: {error}") from error
    # detectron2 (SED) nests the state dict under "model", many trainers under "state_dict".
    if isinstance(state, dict) and isinstance(state.get("model", state.get("state_dict")), dict):
        state = state.get("model", state.get("state_dict"))
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ValueError(f"{path} does not hold a state dict (names to tensors)")
    return state


def load_weights_into(module: "nn.Module", path: Path) -> None:
    """Fill a module with weights, converted to its own dtypes.

    Raises:
        ValueError: Keys are missing or left over, or a shape differs; they are named.
    """
    import torch

    # Shipped weights are stored as float16, at half the size; integer buffers stay what they are.
    state = {
        name: value.to(torch.float32) if value.is_floating_point() else value
        for name, value in read_weights(path).items()
    }
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit {type(module).__name__}: {error}") from error


def write_weights(state: "dict[str, Tensor]", path: Path, *, half: bool = False) -> None:
    """Write a state dict as safetensors, names sorted; the same tensors give the same bytes.

    Args:
        state: Names to tensors.
        path: The file, replaced in one step.
        half: Store floating-point values as float16.
    """
    from safetensors.torch import save

    from shards.files.atomic import write_bytes_atomic

    # Sorted names and contiguous values: the file's checksum is part of fingerprints and must not vary between runs.
    kept = {
        name: (value.half() if half and value.is_floating_point() else value).detach().cpu().contiguous()
        for name, value in sorted(state.items())
    }
    write_bytes_atomic(path, save(kept))
