"""The table of `docs/benchmarks.md`, made from `results.json`."""

import json
from pathlib import Path
from typing import Any, Final

_BEGIN: Final = "<!-- made by `make bench` from here -->"
_END: Final = "<!-- to here -->"
_HEAD: Final = (
    "| case | ratio | wanted | error | our peak, MB | of the reference's | of the floor | ours, s |",
    "|---|---|---|---|---|---|---|---|",
)


def write_table(results: Path, page: Path) -> None:
    """Put the rows of a `results.json` into a page, between its two marks.

    Raises:
        ValueError: The page does not have them.
    """
    text = page.read_text()
    if text.count(_BEGIN) != 1 or text.count(_END) != 1:
        raise ValueError(f"{page} needs the lines {_BEGIN!r} and {_END!r} once each")
    before, rest = text.split(_BEGIN)
    after = rest.split(_END)[1]
    found = json.loads(results.read_text())
    machine = ", ".join(f"{name} {value}" for name, value in found["machine"].items())
    lines = [_BEGIN, f"Measured on: {machine}.", "", *_HEAD, *(_line(row) for row in found["rows"]), _END]
    page.write_text(before + "\n".join(lines) + after)


def _line(row: dict[str, Any]) -> str:
    cells = [
        f"`{row['name']}`",
        _number(row["ratio"], ".2f", "x"),
        _number(row["at_least"] or None, "g", "x"),
        _number(row["error"], ".1e"),
        _number(row["fast_peak_mb"], ".0f"),
        _number(row["memory_ratio"], ".3f"),
        _number(row["of_floor"], ".1f", "x"),
        _number(row["fast_s"], ".3f"),
    ]
    return f"| {' | '.join(cells)} |"


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"
