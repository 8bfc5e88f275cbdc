"""Probabilities per class that another model made of a folder's images: one `.npz` file per image."""

# k kept classes, h w score grid

import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shards.data.folder_source import image_name, refuse_vanished
from shards.data.label_rules import LabelRules
from shards.data.labels import UnusableLabel
from shards.data.sources import FolderSourceConfig, SampleRef
from shards.files.atomic import sha256_file
from shards.files.untrusted import MAX_FILE_BYTES, read_regular

_NAMES: Final = ("ids", "scores")


class GivenScores:
    """A folder of `.npz` files, called as label files are, with another ending.

    Each holds `ids` (k, h, w), integers, the classes of each cell, best first, and `scores` (k, h, w), their
    probabilities. The grid covers the whole upright image, stretched to it.
    """

    def __init__(self, config: FolderSourceConfig) -> None:
        """Open the folder that `labels` names.

        Raises:
            ValueError: There is none.
        """
        self._folder = Path(config.labels or "").expanduser()
        self._rules = config.label_rules or LabelRules()
        if not self._folder.is_dir():
            raise ValueError(f"{self._folder} is not a folder; teacher.scores names a folder of .npz files")

    def path(self, ref: SampleRef) -> Path | None:
        """Return the file that would be an image's, whether it is there or not."""
        name = self._rules.label_name(image_name(ref))
        return None if name is None else (self._folder / name).with_suffix(".npz")

    def label_digest(self, ref: SampleRef) -> str | None:
        """Return the SHA-256 of an image's file as it is now; None if it has none."""
        path = self.path(ref)
        if path is not None and path.is_file():
            return sha256_file(path, MAX_FILE_BYTES)
        refuse_vanished(self._folder, "scores")
        return None

    def read(self, ref: SampleRef) -> tuple[NDArray[np.integer[Any]], NDArray[np.floating[Any]]] | None:
        """Return the ids and scores of an image as they are in its file; None if it has none.

        Raises:
            UnusableLabel: The file is gone, changed, or holds something else.
        """
        path = self.path(ref)
        if path is None or not path.is_file():
            if ref.label_digest is None:
                return None
            raise UnusableLabel("label_missing", f"{path} is not there, though it was planned; put it back")
        data = read_regular(path)
        if ref.label_digest is not None and hashlib.sha256(data).hexdigest() != ref.label_digest:
            raise UnusableLabel(
                "label_changed", f"{path} is not the file that was planned; type the same command again"
            )
        try:
            ids, scores = _arrays(data)
        # NumPy and zipfile raise many kinds of errors on hostile bytes.
        except Exception as error:
            raise UnusableLabel("label_damaged", f"{path} holds no ids and scores: {error}") from error
        return ids, scores


def _arrays(data: bytes) -> tuple[NDArray[Any], NDArray[Any]]:
    # A few bytes of a zip may stand for any number of zeros.
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(member.file_size for member in archive.infolist()) > MAX_FILE_BYTES:
            raise ValueError(f"its arrays have more than {MAX_FILE_BYTES} bytes")
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        missing = [name for name in _NAMES if name not in arrays]
        if missing:
            raise ValueError(f"it has no array {missing[0]!r}; expected {' and '.join(_NAMES)}, each (k, h, w)")
        ids, scores = (np.asarray(arrays[name]) for name in _NAMES)
    if not np.issubdtype(ids.dtype, np.integer) or not np.issubdtype(scores.dtype, np.floating):
        raise ValueError(f"ids and scores have the types {ids.dtype} and {scores.dtype}; expected integers and floats")
    return ids, scores
