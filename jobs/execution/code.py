"""The code of this project where Ray has unpacked it: imported as a whole, as the files may be gone for moments."""

# Ray nodes of one machine share the folder of uploaded code, and each lays it anew when it first needs it, by deleting
# it and unpacking it again. Whatever is imported in between is missing: `No module named 'jobs.stages.refine'`.

import importlib
import pkgutil
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from shards.files.errors import causes

PACKAGES: Final = ("pipeline", "jobs", "models", "shards")
WORKERS_PACKAGES: Final = PACKAGES[1:]
UNPACKED: Final = "runtime_resources" in Path(__file__).parts
"""Whether this process runs code that Ray has unpacked; elsewhere a missing module is missing for good."""

_MISSING: Final = re.compile(rf"No module named '?(?:{'|'.join(PACKAGES)})\b")


def import_all(packages: Sequence[str] = PACKAGES) -> None:
    """Import every module of packages, so that imports inside functions find them in memory later.

    Raises:
        ModuleNotFoundError: One of them is missing.
    """
    # Measured: 0.4 s for all 190 modules where torch is loaded, 2.7 s where it is not.
    for package in packages:
        folders = importlib.import_module(package).__path__
        for module in pkgutil.walk_packages(folders, f"{package}.", onerror=_raise):
            if not module.name.endswith(".__main__"):  # importing it would run the command line
                importlib.import_module(module.name)


def names_our_module(text: str) -> bool:
    """Return whether a message says that a module of this project is missing."""
    return _MISSING.search(text) is not None


def is_code_missing(error: BaseException) -> bool:
    """Return whether a module or a file of the unpacked code is missing, or half there, which passes."""
    return UNPACKED and any(_is_missing(cause) for cause in causes(error))


def _is_missing(error: BaseException) -> bool:
    if isinstance(error, ImportError):
        return (error.name or "").partition(".")[0] in PACKAGES
    if isinstance(error, SyntaxError | FileNotFoundError):
        root = Path(__file__).parents[2]
        return any(root / package in Path(str(error.filename)).parents for package in PACKAGES)
    return False


def _raise(name: str) -> None:
    raise
