"""The index of a folder of `predict`'s results: which image each of them is of."""

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from shards.files.atomic import write_bytes_atomic
from shards.files.untrusted import parse_json, read_regular
from shards.formats.records import read_json, sealed, unsealed

logger = logging.getLogger(__name__)

# No key gives a result this name, and who reads all `*.json` of the folder finds results only.
INDEX_NAME: Final = "predict.index"
RESULT_ENDINGS: Final = (".png", ".label.png", ".json")
CLASS_LISTS: Final = "classes"  # the folder, next to the results, of the files that say what ids mean
_VERSION: Final = 1
_KEY: Final = re.compile(r"[A-Za-z0-9_-]{1,80}")


def read_index(folder: Path) -> dict[str, str]:
    """Return the key of each image's results; {} if there is no index, or a damaged one.

    Returns:
        Keys by source: the absolute path of the image, or "tar: member".

    Raises:
        ValueError: There is a file of that name which is none of this program's, or of a later version.
        OSError: It cannot be read.
    """
    path = folder / INDEX_NAME
    try:
        data = read_regular(path)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    if not data.startswith(b'{\n "checksum"'):
        raise ValueError(f"{path} is no index of results; move it away, or choose another folder for the results")
    try:
        content = parse_json(unsealed(data))
    except ValueError as error:
        # Each result names its image, too: only keys of images that have no result yet are lost.
        logger.warning("%s is damaged (%s): it is made again from the results", path, error)
        return {}
    if content.get("version") != _VERSION:
        raise ValueError(f"{path} is of another version of this program; choose another folder for the results")
    keys = content.get("keys")
    # Results are written under these names: an index from elsewhere must not lead out of the folder.
    if not isinstance(keys, dict) or not all(isinstance(key, str) and _KEY.fullmatch(key) for key in keys.values()):
        raise ValueError(f"{path} was not written by this program; move it away, or choose another folder")
    return keys


def write_index(folder: Path, keys: Mapping[str, str]) -> None:
    """Write the key of each image's results, atomically and sealed with a checksum."""
    # ASCII: a path that is not UTF-8 becomes JSON's own escape.
    body = json.dumps({"version": _VERSION, "keys": dict(sorted(keys.items()))}, indent=1) + "\n"
    write_bytes_atomic(folder / INDEX_NAME, sealed(body.encode()))


def indexed_keys(folder: Path) -> set[str] | None:
    """Return all keys of a folder's index; None if there is none that can be used."""
    try:
        return set(read_index(folder).values()) or None
    except ValueError:
        return None


def result_facts(path: Path) -> dict[str, Any] | None:
    """Return the facts of a result, KEY.json; None if the file is no result."""
    facts = read_json(path)
    return facts if facts is not None and {"image", "sha256", "made_by"} <= facts.keys() else None


def is_result(path: Path) -> bool:
    """Return whether a file holds the facts of a result."""
    return result_facts(path) is not None
