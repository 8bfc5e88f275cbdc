"""The curves of the report: scores over rounds as one inline SVG."""

# Written by hand, as the page has to open anywhere and for years: no plotting library, no script, no font to load.

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

_WIDTH: Final = 760
_HEIGHT: Final = 330
_LEFT: Final = 46
_RIGHT: Final = 150
_TOP: Final = 16
_BOTTOM: Final = 40
_LABEL_STEP: Final = 15.0


@dataclass(frozen=True)
class Curve:
    """One score over the rounds.

    Attributes:
        name: The label at its end.
        colour: A CSS colour.
        values: Per cent by round; None where it was not measured.
        baseline: The plain baseline's value, drawn as a dashed line; None: none.
    """

    name: str
    colour: str
    values: Mapping[int, float | None]
    baseline: float | None = None

    @property
    def points(self) -> list[tuple[int, float]]:
        """The measured values in order of rounds."""
        return [(number, value) for number, value in sorted(self.values.items()) if value is not None]


def curves_svg(curves: Sequence[Curve]) -> str:
    """Return curves on a common scale as SVG; empty text if none of them has a value."""
    drawn = [curve for curve in curves if curve.points]
    if not drawn:
        return ""
    rounds = sorted({number for curve in drawn for number, _ in curve.points})
    levels = [value for curve in drawn for _, value in curve.points]
    levels += [curve.baseline for curve in drawn if curve.baseline is not None]
    scale = _Scale(rounds[0], max(rounds[-1], rounds[0] + 1), *_limits(levels))
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="Scores over the rounds" '
        'xmlns="http://www.w3.org/2000/svg">'
    ]
    parts += _axes(scale, rounds)
    parts += [piece for curve in drawn for piece in _curve(curve, scale)]
    parts += _end_labels(drawn, scale)
    return "\n".join([*parts, "</svg>"])


@dataclass(frozen=True)
class _Scale:
    first: int
    last: int
    low: float
    high: float

    def x(self, number: float) -> float:
        share = (number - self.first) / (self.last - self.first)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _limits(levels: Sequence[float]) -> tuple[float, float]:
    # At least ten points high: on a tighter scale a difference within the noise of a seed looks like progress.
    low, high = 5 * math.floor((min(levels) - 1) / 5), 5 * math.ceil((max(levels) + 1) / 5)
    return max(0.0, float(low)), min(100.0, float(max(high, low + 10)))


def _axes(scale: _Scale, rounds: Sequence[int]) -> list[str]:
    step = 5 if scale.high - scale.low <= 40 else 10 if scale.high - scale.low <= 60 else 20
    parts = []
    for value in range(int(scale.low), int(scale.high) + 1, step):
        y = scale.y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value}</text>')
    for number in rounds:
        parts.append(
            f'<text class="tick" x="{scale.x(number):.1f}" y="{_HEIGHT - _BOTTOM + 18}" '
            f'text-anchor="middle">{"start" if number == 0 else f"round {number}"}</text>'
        )
    return parts


def _curve(curve: Curve, scale: _Scale) -> list[str]:
    points = [(scale.x(number), scale.y(value), value) for number, value in curve.points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points)
    parts = [f'<polyline points="{line}" fill="none" stroke="{curve.colour}" stroke-width="2.5"/>']
    parts += [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{curve.colour}">'
        f"<title>{escape(curve.name)} {value:.1f}</title></circle>"
        for x, y, value in points
    ]
    if curve.baseline is not None:
        y = scale.y(curve.baseline)
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{curve.colour}" '
            f'stroke-width="1.5" stroke-dasharray="5 4"><title>baseline, {escape(curve.name)} '
            f"{curve.baseline:.1f}</title></line>"
        )
    return parts


def _end_labels(curves: Sequence[Curve], scale: _Scale) -> list[str]:
    """Label each curve at its end with name and last value, moved apart where labels would overlap."""
    # From top to bottom, each at least one line below the last: curves often end within a point of each other.
    wanted = sorted((scale.y(curve.points[-1][1]), curve.name, curve) for curve in curves)
    parts, above = [], -math.inf
    for y, name, curve in wanted:
        above = max(y, above + _LABEL_STEP)
        parts.append(
            f'<text class="end" x="{_WIDTH - _RIGHT + 12}" y="{above + 4:.1f}" fill="{curve.colour}">'
            f"{escape(name)} {curve.points[-1][1]:.1f}</text>"
        )
    return parts
