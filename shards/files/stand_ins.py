"""What downloads and clones leave in place of a file."""

import re
from typing import Final

_STARTS: Final = (
    (rb"version https://git-lfs", "a Git LFS pointer, not the file itself: run `git lfs pull` in its repository"),
    (rb"\s*(<!doctype|<html|<\?xml)", "a web page (HTML): the address of the download led to a page, not to the file"),
)


def stand_in(start: bytes) -> str | None:
    """Return what a file is that stands in for another one, by its first bytes, and what to do; None for any other."""
    return next((what for pattern, what in _STARTS if re.match(pattern, start, re.IGNORECASE)), None)
