"""Text that any terminal or log can show: file names are arbitrary bytes."""

import io
import re
import sys
from typing import Final

# Control codes in a file name could rewrite what a terminal shows. Line feed and tab are harmless, and our own messages
# use them. Lone surrogates are how Python holds bytes of a name that are not UTF-8; printing one raises.
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Return a text with control codes and bytes that are not UTF-8 as escapes, such as \x1b and \udce9."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode("ascii"), text)


def escape_unencodable_output() -> None:
    """Make standard output and error write what their encoding lacks as escapes instead of raising."""
    # A command under LANG=C, or piped into a Latin-1 log, must not end because of one image's name.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def output_is_unicode() -> bool:
    """Return whether standard output can show any character."""
    return (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") in ("utf8", "utf8sig", "utf16")
