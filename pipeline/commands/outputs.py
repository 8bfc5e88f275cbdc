"""Files that commands write under a name of the user's choice: nobody else's file is ever replaced."""

import os
from collections.abc import Callable
from pathlib import Path


def require_free(out: Path, is_ours: Callable[[], bool]) -> None:
    """Reject a name that is taken by anything else than an earlier output; to be done before any work.

    Args:
        out: The file to write.
        is_ours: Returns whether the file there is what the same command wrote.

    Raises:
        ValueError: It is a folder, or a file that the command did not write.
    """
    if out.is_dir():
        raise ValueError(f"{out} is a folder; --out names the file to write")
    if os.path.lexists(out) and not is_ours():
        raise ValueError(
            f"{out} exists, and is not what this command wrote there; name another file with --out, or move it away"
        )
