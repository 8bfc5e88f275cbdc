"""The members of any tar: headers read by the standard library and checked against the file's real size."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from shards.files.untrusted import open_regular

BLOCK_BYTES: Final = 512
# Of long names and pax fields. The library reads as many bytes at once as a header claims, and its time grows with
# their square.
_MAX_EXTENDED_BYTES: Final = 1 << 16


def tar_members(path: Path) -> Iterator[tarfile.TarInfo]:
    """Yield the members of an uncompressed tar, in order; their data is not read, and is within the file.

    Raises:
        UnusableFile: It is a pipe or a device.
        ValueError: It is not a tar, is damaged or truncated, or has headers that contradict the file: a negative size,
            or one past its end. The members before the fault are yielded first.
    """
    with open_regular(path) as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        try:
            yield from _members(file, size)
        except ValueError:
            raise
        except Exception as error:  # on hostile headers the library's parser raises anything
            raise ValueError(f"damaged ({type(error).__name__}: {error})") from error


def _members(file: BinaryIO, size: int) -> Iterator[tarfile.TarInfo]:
    with tarfile.open(fileobj=_Headers(file), mode="r:") as tar:
        end = 0
        while (member := tar.next()) is not None:
            stored = member.size if member.isreg() and not member.issparse() else 0
            # A negative size leads the library back to a header that it has read already, again and again.
            if member.size < 0 or member.offset < end or member.offset_data + stored > size:
                raise ValueError(f"member {member.name!r} does not lie in the file ({member.size} bytes)")
            end = member.offset_data
            yield member
        # An unreadable header ends the library's listing without an error.
        file.seek(min(tar.offset, size))
        if any(file.read(BLOCK_BYTES)):
            raise ValueError(f"damaged at byte {tar.offset}: no member begins there")


class _Headers(io.RawIOBase):
    """A file of which at most `_MAX_EXTENDED_BYTES` are read at once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        """Read up to that many bytes."""
        if not 0 <= size <= _MAX_EXTENDED_BYTES:
            raise ValueError(f"a header of {size} bytes; at most {_MAX_EXTENDED_BYTES} are read")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to an offset."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the offset."""
        return self._file.tell()
