"""Files that other programs save or deliver in place of plain weights: what they are, and the state dict in them."""

import argparse
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from shards.files.stand_ins import stand_in
from shards.files.untrusted import open_regular

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["safetensors", "torch"]

_HEAD_BYTES: Final = 1024
_MAX_TABLE_BYTES: Final = 100_000_000  # of safetensors' own format
_LISTED: Final = 6  # names in a message

# What comes instead of a checkpoint: the formats of others.
_STARTS: Final = (
    (rb"\x1f\x8b", "a gzip archive: unpack it and name the file of weights"),
    (rb"\x89HDF", "an HDF5 file, as Keras writes: save a PyTorch state dict"),
    (rb"\x93NUMPY", "a NumPy array: save a PyTorch state dict"),
    (rb"GGUF", "a GGUF file: save a PyTorch state dict"),
    (rb"\s*[\[{]", "JSON text (a configuration or an index, perhaps): name the file of weights next to it"),
)


class _Inert:
    """Stands for an object that lies next to the tensors and is not needed."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


def kind_of_file(path: Path) -> Kind:
    """Return the format of a file of weights, by its content; only its head and its table are read.

    Raises:
        ValueError: It is missing, something else, or cut short; the message says what it is.
    """
    if not path.is_file():
        raise ValueError(
            f"{path} is a folder; name the file of weights" if path.is_dir() else f"weights not found: {path}"
        )
    size = path.stat().st_size
    with open_regular(path) as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        raise ValueError(f"{path} holds no weights: it is empty (0 bytes)")
    table_bytes = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and table_bytes < _MAX_TABLE_BYTES:
        _require_whole_safetensors(path, size, table_bytes)
        return "safetensors"
    known = (what for start, what in _STARTS if re.match(start, head))
    if (what := stand_in(head) or next(known, None)) is not None:
        raise ValueError(f"{path} holds no weights: it is {what}")
    if head[:4] == b"PK\x03\x04":
        _require_checkpoint_zip(path)
    elif head[:1] != b"\x80":  # of a pickle, as torch.save wrote before version 1.6
        raise ValueError(f"{path} holds no weights: it is neither a safetensors file nor one of torch.save")
    return "torch"


def state_in(content: object, path: Path) -> "tuple[dict[str, Tensor], list[str]]":
    """Return the state dict in a checkpoint, without the wrappers and prefixes of training tools.

    Args:
        content: What the file holds.
        path: The file, for messages.

    Returns:
        Names to tensors, and notes on what was taken and left out.

    Raises:
        ValueError: There is no state dict in it.
    """
    from torch import Tensor  # imported where weights are read: other commands only need to know where they are

    notes: list[str] = []
    while isinstance(content, Mapping):
        # The weights of the last step rather than their average: those are what `torch.save(model.state_dict())`
        # would have held.
        name = next((name for name in _WRAPPERS if isinstance(content.get(name), Mapping) and content[name]), None)
        if name is None or any(isinstance(value, Tensor) for value in content.values()):
            break
        others = [str(other) for other in content if other != name]
        notes.append(f"the entry {name!r} is read" + (f", not {listed(others)}" if others else ""))
        content = content[name]
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        held = listed([str(name) for name in content]) if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"{path} does not hold a state dict (names to tensors); it holds {held or 'nothing'}")
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    dropped = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if dropped:
        notes.append(f"{listed(dropped)} is left out, as it is no tensor")
    return _without_prefixes(state, notes)


def torch_content(path: Path) -> object:
    """Read a file of `torch.save`, never unpickling code.

    Raises:
        ValueError: It is damaged, or holds objects of other programs.
    """
    import torch

    try:
        # weights_only keeps a pickle from running code; what else may be in it is listed by name.
        # Given a name, it would choose the format by the ending.
        with torch.serialization.safe_globals(_HARMLESS), open_regular(path) as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except (MemoryError, OSError):  # the file may be whole
        raise
    except Exception as error:
        if "allocate memory" in str(error):
            raise
        # PyTorch's own message is a page long, and advises to load the file in a way that runs its code.
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found:
            what = f"it holds {found[1]}, which is code or an object of another program"
            hint = "save the state dict alone, torch.save(model.state_dict(), FILE), where that program runs"
            raise ValueError(f"{path} cannot be read as plain weights: {what}; {hint}") from error
        why = "it is damaged or cut short" if path.stat().st_size else "it is empty"
        raise ValueError(f"{path} cannot be read as plain weights: {why}, or was not written by torch.save") from error


# In the order in which they are looked for.
_WRAPPERS: Final = (
    *("state_dict", "model_state_dict", "model_state", "model", "module", "network", "net", "params", "weights"),
    *("state_dict_ema", "model_ema", "ema_state_dict", "params_ema", "ema_model", "ema"),
)
_PREFIXES: Final = ("module.", "model.", "net.", "network.", "ema_model.", "model_ema.", "ema.")

_SCALARS: Final = ("?", "b", "B", "h", "H", "i", "I", "l", "L", "q", "Q", "e", "f", "d", "U", "S")
# NumPy's own functions for unpickling, under whichever name this version has them.
_SCALAR: Final = np.float64(0).__reduce__()[0]
_ARRAY: Final = np.empty(0).__reduce__()[0]
# Values next to the tensors: detectron2 keeps NumPy scalars of its scheduler, DETR and MAE the namespace of their
# arguments, mmengine its logs, many a path. None of these runs code: scalars and arrays are filled with bytes.
_HARMLESS: Final[list[Any]] = [
    np.dtype,
    np.ndarray,
    *(type(np.dtype(code)) for code in _SCALARS),
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((_ARRAY, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    argparse.Namespace,
    *(
        (PurePosixPath, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "PurePosixPath")
    ),
    (_Inert, "mmengine.logging.history_buffer.HistoryBuffer"),
]


def _without_prefixes(state: "dict[str, Tensor]", notes: list[str]) -> "tuple[dict[str, Tensor], list[str]]":
    """Remove what wrappers put before all names: DataParallel, torch.compile, Lightning, averages of weights."""
    if any("_orig_mod." in name for name in state):
        state = {name.replace("_orig_mod.", ""): value for name, value in state.items()}
        notes.append("'_orig_mod.' in names is removed")
    while True:
        averaged = state.keys() - {"n_averaged"}  # a counter next to `module.*`
        found = {next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None) for name in averaged}
        if None in found or not found:
            return state, notes
        prefix = next(prefix for prefix in _PREFIXES if prefix in found)
        others = sorted(f"{other}*" for other in found if other and other != prefix)
        notes.append(f"the prefix {prefix!r} is removed" + (f", {listed(others)} left out" if others else ""))
        state = {n.removeprefix(prefix): value for n, value in state.items() if n.startswith(prefix)}


def _require_whole_safetensors(path: Path, size: int, table_bytes: int) -> None:
    with open_regular(path) as file:
        table = file.read(8 + table_bytes)[8:]
    ends = [0]
    try:
        ends += [int(row["data_offsets"][1]) for name, row in json.loads(table).items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        cut = "it is cut short" if size < 8 + table_bytes else "its table of tensors is damaged"
        raise ValueError(f"{path} is not a whole safetensors file: {cut}") from error
    if size < 8 + table_bytes + max(ends):
        wanted = 8 + table_bytes + max(ends)
        raise ValueError(f"{path} is a safetensors file that is cut short: it has {size} of {wanted} bytes")


def _require_checkpoint_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise ValueError(f"{path} is a checkpoint of torch.save, or another zip, that is cut short") from error
    if any(name.endswith("/constants.pkl") for name in names):
        raise ValueError(f"{path} is a TorchScript program, not plain weights: save its state_dict() with torch.save")
    if not any(name.endswith("data.pkl") for name in names):
        raise ValueError(f"{path} is a zip archive and no checkpoint; it holds {listed(names) or 'nothing'}")


def listed(names: list[str]) -> str:
    """Format names for a message: the first few, and the number of the others."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
