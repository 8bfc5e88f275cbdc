"""Text that any terminal or log can show: names of files are whatever bytes somebody once gave them."""

import io
import re
import sys
from typing import Final

# Control codes could rewrite what a terminal shows; line feed and tab are harmless.
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Return a text with control codes and bytes that are not UTF-8 as escapes, such as \x1b and \udce9."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode("ascii"), text)


def let_output_show_anything() -> None:
    """Have standard output and error write what their encoding lacks as escapes, in the place of an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def output_is_unicode() -> bool:
    """Return whether standard output can show any character."""
    return (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") in ("utf8", "utf8sig", "utf16")
