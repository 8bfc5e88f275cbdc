"""Arrays of one shard in a zarr folder: written atomically, the same bytes for the same arrays."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shards.files.atomic import about, remove_for_good, replace_folder, temporary_sibling
from shards.files.errors import causes, is_of_the_system
from shards.formats.records import Json

if TYPE_CHECKING:
    import zarr  # slow to load: imported by those functions alone that read or write arrays

MAX_ARRAY_BYTES = 1 << 36  # a damaged header must not make a reader ask for more memory than any shard has
_FLAT_CHUNK_ITEMS = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9_]+")
_KINDS = "biuf"


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], attrs: Mapping[str, Json]) -> None:
    """Write a group of arrays as a zarr (version 3) folder, replacing an old one.

    A crash leaves the old folder, the new one or none: remove the record of the old one first.

    Args:
        path: The folder, named `.zarr`; missing parents are created.
        arrays: Bool, integer or float arrays of any shape, also empty.
        attrs: JSON values stored alongside, such as the keys of the rows.

    Raises:
        ValueError: A name other than letters, digits and _, another type of array, or attrs that are not JSON.
    """
    for name, array in arrays.items():
        if not _NAME.fullmatch(name) or array.dtype.kind not in _KINDS:
            raise ValueError(
                f"array {name!r} of type {array.dtype} cannot be stored; expected [A-Za-z0-9_]+ and numbers"
            )
    try:
        attributes = json.loads(json.dumps(dict(attrs), sort_keys=True, allow_nan=False))
    except TypeError as error:
        raise ValueError(f"attrs of {path.name} cannot be written as JSON: {error}") from error
    with about(path):
        _write_all(path, arrays, attributes)


def _write_all(path: Path, arrays: Mapping[str, NDArray[Any]], attributes: dict[str, Any]) -> None:
    import zarr

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_sibling(path)
    try:
        group = zarr.create_group(temporary, zarr_format=3, attributes=attributes)
        for name in sorted(arrays):
            _write_one(group, name, arrays[name])
        replace_folder(temporary, path)
    except BaseException:
        remove_for_good(temporary)
        raise


def read_arrays(path: Path, names: Iterable[str] | None = None) -> tuple[dict[str, NDArray[Any]], dict[str, Json]]:
    """Read arrays of a folder.

    Args:
        path: What `write_arrays` wrote.
        names: The requested arrays; None: all.

    Returns:
        The arrays by name, and the attrs.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It is damaged, or holds no array of that name.
    """
    group = _open(path)
    wanted = sorted(_array_names(path, group)) if names is None else list(names)
    attrs: dict[str, Json] = json.loads(json.dumps(group.attrs.asdict()))
    return {name: _read(path, group, name, ...) for name in wanted}, attrs


def array_names(path: Path) -> list[str]:
    """Return the names of the arrays of a folder.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It is damaged.
    """
    return sorted(_array_names(path, _open(path)))


def read_rows(path: Path, name: str, index: int | slice) -> NDArray[Any]:
    """Read one row of an array, or a slice of rows, without the rest.

    Args:
        path: What `write_arrays` wrote.
        name: The array.
        index: Along the first axis, from 0 (negative: from the end); an int gives the row without that axis.

    Raises:
        FileNotFoundError: There is no such folder.
        IndexError: No such row.
        ValueError: The folder is damaged, or holds no array of that name.
    """
    return _read(path, _open(path), name, index)


def pack_ragged(maps: Sequence[NDArray[Any]], dtype: np.dtype[Any] | None = None) -> dict[str, NDArray[Any]]:
    """Pack maps of different sizes into one flat array.

    Args:
        maps: (H_i, W_i) arrays of one type; may be empty if the type is given.
        dtype: Their type; None: the first one's.

    Returns:
        "values": (sum of H_i * W_i,), row by row, map by map; "sizes_hw": (N, 2) int32.

    Raises:
        ValueError: A map is not two-dimensional, or of another type.
    """
    if dtype is None:
        if not maps:
            raise ValueError("no maps and no type to pack; give dtype when there may be no maps")
        dtype = maps[0].dtype
    for index, values in enumerate(maps):
        if values.ndim != 2 or values.dtype != dtype:
            raise ValueError(f"map {index} has shape {values.shape} and type {values.dtype}; expected (H, W) {dtype}")
    flat = np.concatenate([values.ravel() for values in maps]) if maps else np.zeros(0, dtype)
    sizes = np.array([values.shape for values in maps], dtype=np.int32).reshape(-1, 2)
    return {"values": flat, "sizes_hw": sizes}


def unpack_ragged(values: NDArray[Any], sizes_hw: NDArray[np.integer]) -> list[NDArray[Any]]:
    """Undo `pack_ragged`: return the (H_i, W_i) maps, as views into `values`.

    Raises:
        ValueError: The sizes do not add up to the values.
    """
    if sizes_hw.ndim != 2 or sizes_hw.shape[1] != 2 or (sizes_hw < 0).any() or values.ndim != 1:
        raise ValueError(f"shapes {values.shape} and {sizes_hw.shape} are no ragged maps; expected (V,) and (N, 2)")
    counts = sizes_hw.astype(np.int64).prod(axis=1)
    if int(counts.sum()) != len(values):
        raise ValueError(
            f"the sizes ask for {int(counts.sum())} values, there are {len(values)}; write the shard again"
        )
    pieces = np.split(values, np.cumsum(counts)[:-1]) if len(counts) else []
    return [piece.reshape(height, width) for piece, (height, width) in zip(pieces, sizes_hw.tolist(), strict=True)]


def read_ragged_row(path: Path, values: str, sizes_hw: str, index: int) -> NDArray[Any]:
    """Read one of the maps that `pack_ragged` packed, without the rest.

    Args:
        path: What `write_arrays` wrote.
        values: The array with the "values".
        sizes_hw: The array with the "sizes_hw".
        index: Of the map, from 0.

    Raises:
        IndexError: No such map.
        ValueError: The folder is damaged.
    """
    group = _open(path)
    sizes = _read(path, group, sizes_hw, ...).astype(np.int64)
    if not 0 <= index < len(sizes):
        raise IndexError(f"{path} has maps 0 to {len(sizes) - 1}; there is no map {index}")
    start = int(sizes[:index].prod(axis=1).sum())
    height, width = (int(side) for side in sizes[index])
    piece = _read(path, group, values, slice(start, start + height * width))
    if piece.size != height * width:
        raise ValueError(f"{path} is damaged: {values} is shorter than {sizes_hw} says; write the shard again")
    return piece.reshape(height, width)


def _write_one(group: "zarr.Group", name: str, array: NDArray[Any]) -> None:
    from zarr.codecs import ZstdCodec

    # One chunk per row (a flat array: every 2^20 items), so that `read_rows` reads little; one zarr shard per array, so
    # that a store holds few files. A zarr shard cannot be written in parts.
    shape = array.shape
    whole = tuple(max(1, side) for side in shape)
    chunks = (1, *whole[1:]) if len(shape) > 1 else tuple(min(side, _FLAT_CHUNK_ITEMS) for side in whole)
    # A zarr shard holds whole chunks only, so the size of a flat array's is rounded up.
    shards = tuple(-(-side // chunk) * chunk for side, chunk in zip(whole, chunks, strict=True))
    stored = group.create_array(
        name,
        shape=shape,
        dtype=array.dtype.newbyteorder("<"),
        chunks=chunks,
        shards=shards if shape else None,
        # Measured: compression gains nothing on float16 embeddings.
        compressors=ZstdCodec(level=1) if array.dtype.kind in "iub" else None,
        fill_value=0,
        config={"write_empty_chunks": True},
    )
    if array.size:
        stored[...] = array


def _open(path: Path) -> "zarr.Group":
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}")
    import zarr

    try:
        return zarr.open_group(path, mode="r", zarr_format=3)
    except Exception as error:
        # zarr passes on whatever its parsers raise; to the caller it is one thing: a damaged folder.
        raise _damaged(path, error) from error


def _array_names(path: Path, group: "zarr.Group") -> list[str]:
    try:
        return list(group.array_keys())
    except Exception as error:
        raise _damaged(path, error) from error


def _read(path: Path, group: "zarr.Group", name: str, rows: Any) -> NDArray[Any]:
    import zarr

    try:
        if not _NAME.fullmatch(name) or name not in group:
            raise ValueError(f"it holds no array {name!r}")
        array = group[name]
        if not isinstance(array, zarr.Array) or array.nbytes > MAX_ARRAY_BYTES:
            raise ValueError(f"{name!r} is not an array of a sane size")
        # zarr would read a missing chunk, or an empty file, as zeros.
        shard = path.joinpath(array.basename, "c", *["0"] * array.ndim)
        if array.size and (array.nchunks_initialized < array.nchunks or not shard.stat().st_size):
            raise ValueError(f"{name!r} misses chunks")
        if isinstance(rows, int) and not -array.shape[0] <= rows < array.shape[0]:
            raise IndexError(f"{path} has rows 0 to {array.shape[0] - 1} in {name}; there is no row {rows}")
        return np.asarray(array[rows])
    except IndexError:
        raise
    except Exception as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> Exception:
    # A failing disk or too many open files say nothing about the folder: nobody should delete it for that.
    if (failed := next((cause for cause in causes(error) if is_of_the_system(cause)), None)) is not None:
        assert isinstance(failed, Exception)
        if isinstance(failed, OSError) and failed.filename is None:
            failed.filename = str(path)
        return failed
    return ValueError(f"{path} is no readable zarr folder: {error}; delete it and its record to have it made again")
