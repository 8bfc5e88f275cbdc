"""Tars made of names and bytes."""

import io
import tarfile
from pathlib import Path


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    """Write a tar with these members, in their order; return its path."""
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path
