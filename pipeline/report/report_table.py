"""Tables of a page: numbers and names as cells, every text escaped."""

from collections.abc import Sequence
from html import escape


def number(value: object, digits: int = 1) -> str:
    """Write a number for people; a dash for None."""
    return f"{value:.{digits}f}" if isinstance(value, int | float) else "-"


def swatch(colour: Sequence[int]) -> str:
    """Give a small square of a colour as HTML."""
    return f'<i class="swatch" style="background: rgb({",".join(str(int(c)) for c in colour)})"></i>'


def table(head: Sequence[str], rows: Sequence[str], caption: str, *, text: bool = False) -> str:
    """Give a table of rows made by `row`, with a caption above it; `text` aligns the heads to the left."""
    kind = ' class="text"' if text else ""
    cells = "".join(f"<th{kind}>{escape(name)}</th>" for name in head)
    note = f'<p class="note">{escape(caption)}</p>' if caption else ""
    return f"{note}<table><thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def row(name: str, cells: Sequence[object], kind: str = "", *, escaped: bool = False, text: bool = False) -> str:
    """Give a table row; `escaped` says that `name` is HTML already, `text` aligns the cells to the left."""
    first = name if escaped else escape(name)
    opening = '<td class="text">' if text else "<td>"
    rest = "".join(f"{opening}{escape(str(cell))}</td>" for cell in cells)
    return f'<tr class="{kind}"><td>{first}</td>{rest}</tr>'
