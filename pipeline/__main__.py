"""`python -m pipeline`: the command line, where the package is not installed."""

from pipeline.cli.app import main

main()
