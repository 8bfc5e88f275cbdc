"""Text that any terminal or log can show: file names are arbitrary bytes."""

import errno
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from typing_extensions import Buffer

# The reader of a pipe has ended, the terminal was closed, or the stream is not open.
_GONE: Final = frozenset({errno.EPIPE, errno.EIO, errno.EBADF})

# Control codes in a file name could rewrite what a terminal shows. Line feed and tab are harmless, and our own messages
# use them. Lone surrogates are how Python holds bytes of a name that are not UTF-8; printing one raises.
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Return a text with control codes and bytes that are not UTF-8 as escapes, such as \x1b and \udce9."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode("ascii"), text)


_speakers: list[Callable[[str], None]] = []


@contextmanager
def spoken_by(say: Callable[[str], None]) -> Iterator[None]:
    """Let `speak` use a function for the length of the block: it knows how to write where bars are drawn."""
    _speakers.append(say)
    try:
        yield
    finally:
        _speakers.remove(say)


def speak(text: str) -> None:
    """Write a line to standard error, above the bars if there are any."""
    if _speakers:
        _speakers[-1](text)
    else:
        sys.stderr.write(f"{printable(text)}\n")
        sys.stderr.flush()


def same_output() -> bool:
    """Return whether standard output and standard error end in the same terminal or file."""
    try:
        return os.path.sameopenfile(sys.stdout.fileno(), sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):  # closed, or replaced by something in memory
        return False


def escape_unencodable_output() -> None:
    """Make standard output and error never end a command: what they cannot take is escaped, or lost.

    What their encoding lacks is written as escapes. Where nobody reads any longer (`| head`), or there is no stream at
    all (`2>&-`), the text is lost and the work goes on.
    """
    # A command under LANG=C, or piped into a Latin-1 log, must not end because of one image's name.
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # first of all: a file opened next would get the stream's number, and others' messages
            nowhere = os.open(os.devnull, os.O_WRONLY)
            setattr(sys, name, os.fdopen(nowhere, "w", encoding="utf-8", errors="backslashreplace"))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
            raw = getattr(stream.buffer, "raw", stream.buffer)  # with PYTHONUNBUFFERED there is no buffer
            if isinstance(raw, io.FileIO) and not isinstance(raw, _Unread):
                stream.flush()
                file = _Unread(raw.fileno(), "w", closefd=False)
                file.only_notes = name == "stderr"
                setattr(sys, name, _like(stream, file if raw is stream.buffer else io.BufferedWriter(file)))


class _Unread(io.FileIO):
    """A file that takes everything once nobody reads it, or after its first other error."""

    only_notes = False
    _failed = False

    def write(self, data: "Buffer", /) -> int:
        """Write, or lose what nobody reads."""
        try:
            return super().write(data)
        except OSError as error:
            # A full disk is raised once, as results may be what is lost; then the message about it needs this stream.
            # Notes on the work are not worth its end.
            if error.errno not in _GONE and not self._failed and not self.only_notes:
                self._failed = True
                raise
            return memoryview(data).nbytes


def _like(stream: io.TextIOWrapper, binary: io.FileIO | io.BufferedWriter) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        binary,
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def output_is_unicode() -> bool:
    """Return whether standard output can show any character."""
    return (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") in ("utf8", "utf8sig", "utf16")
