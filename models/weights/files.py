"""Files of weights: what is shipped, reading safely, writing small."""

import logging
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from models.weights.foreign import kind_of_file, listed, state_in, torch_content

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS_FOLDER: Final = Path(__file__).parent

logger = logging.getLogger(__name__)


def shipped_weights(name: str | None, *, what: str) -> Path:
    """Return the path of weights that ship with the package.

    Raises:
        ValueError: The package has none of that name; the message says how to name your own file.
    """
    if name is not None and (WEIGHTS_FOLDER / name).is_file():
        return WEIGHTS_FOLDER / name
    raise ValueError(
        f"no weights for {what} are shipped with the package: name a file with --set model.clip_weights=FILE or "
        "--set model.sam_weights=FILE; `stseg-pipeline doctor` with the preset says which, and how to get them"
    )


def read_weights(path: Path) -> "dict[str, Tensor]":
    """Read a state dict from a safetensors or `.pth`/`.pt` file, never unpickling code; values come as stored.

    The content decides which of the two it is. Wrappers and prefixes of training tools are removed, and logged.

    Raises:
        ValueError: The file is missing, is no file of weights, or holds no state dict, other objects than tensors and
            plain values, or a value that is not finite.
    """
    kind = kind_of_file(path)
    if kind == "safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            content: object = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from error
    else:
        content = torch_content(path)
    state, notes = state_in(content, path)
    if (kind == "safetensors") != (path.suffix == ".safetensors"):
        notes.append("it is a safetensors file" if kind == "safetensors" else "it is a file of torch.save")
    if notes:
        _say_once(path, "; ".join(notes))
    _require_finite(path, state)
    return state


def why_no_weights(path: Path) -> str | None:
    """Return why a file is no file of weights, without reading all of it; None if it seems to be one."""
    try:
        kind_of_file(path)
    except (OSError, ValueError) as error:
        return str(error)
    return None


@cache  # the stages of a run load the same files again and again
def _say_once(path: Path, text: str) -> None:
    logger.warning("%s: %s", path, text)


def _require_finite(path: Path, state: "dict[str, Tensor]") -> None:
    """Raise where a value is NaN or infinity: the network would label everything as one class, or nothing."""
    # Imported where weights are read: `status` and `plan` only need to know where they are.
    import torch

    checked = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    for name, value in state.items():
        # Masks of attention hold minus infinity for a purpose.
        if value.dtype in checked and not name.endswith("mask") and not torch.isfinite(value).all():
            count = int((~torch.isfinite(value)).sum())
            raise ValueError(
                f"{path}: {count} of {value.numel()} values of {name} are NaN or infinity; its training has diverged: "
                "take an earlier checkpoint"
            )


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
    state = _of_part(state, set(module.state_dict()), path)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:  # whose message has a line for each of hundreds of names
        wanted = module.state_dict()
        faults = {
            "missing": wanted.keys() - state.keys(),
            "left over": state.keys() - wanted.keys(),
            "of another shape": {n for n in wanted.keys() & state.keys() if wanted[n].shape != state[n].shape},
        }
        told = "; ".join(f"{what}: {listed(sorted(names))}" for what, names in faults.items() if names)
        raise ValueError(f"{path} does not fit {type(module).__name__}: {told or 'it cannot be loaded'}") from error


def _of_part(state: "dict[str, Tensor]", wanted: set[str], path: Path) -> "dict[str, Tensor]":
    """Return the weights of a network that is a part of a larger model, as Lightning saves them: `sam.*`."""
    if not wanted or wanted & state.keys():
        return state
    last = min(wanted)
    prefixes = [name.removesuffix(last) for name in sorted(state) if name.endswith(f".{last}")]
    for prefix in prefixes:
        if all(f"{prefix}{name}" in state for name in wanted):
            others = [name for name in sorted(state) if not name.startswith(prefix)]
            left_out = f", {listed(others)} left out" if others else ""
            _say_once(path, f"the prefix {prefix!r} is removed{left_out}")
            return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return state


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
