"""`python -m pipeline` and the command `stseg-pipeline`: the command line, run with this project's own packages."""

import os
import sys
from pathlib import Path


def own_packages_first() -> None:
    """Put the folder of this project's packages first on the import path."""
    # Their names are common: PYTHONPATH, or the current folder with `python -m`, may hold other packages called
    # `models` or `jobs`. `pipeline` is ours by now; what it imports has to be, too.
    root = str(Path(__file__).resolve().parents[1])
    sys.path[:] = [root, *(entry for entry in sys.path if entry != root)]


def require_working_folder() -> None:
    """End the command where its working folder was removed, which libraries answer with words about themselves."""
    try:
        os.getcwd()  # noqa: PTH109 - before anything else is imported
    except FileNotFoundError:
        sys.stderr.write("stseg-pipeline: the working folder is gone; change to one that exists\n")
        raise SystemExit(2) from None


def main() -> None:
    """Run the command line."""
    require_working_folder()
    own_packages_first()
    from pipeline.cli.app import main as run_command_line

    run_command_line()


if __name__ == "__main__":
    main()
