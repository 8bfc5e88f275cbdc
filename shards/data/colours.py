"""The colours of classes: by name, far apart, and true to the colour words in names."""

# Lab: (N, 3) CIELAB of sRGB under D65: lightness 0..100, then a and b.

import colorsys
import hashlib
import re
from collections.abc import Sequence
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

Rgb = tuple[int, int, int]
Floats = NDArray[np.float32]
Indices = NDArray[np.intp]

_GOLDEN_RATIO: Final = 0.6180339887498949
_STEP: Final = 4.0  # of the grid of candidates in Lab: about 11 000 of them
# With more classes a colour has some 600 candidates or fewer within reach of the eye's difference (CIE76 below 7): to
# keep them apart costs time and gains nothing, so the name alone decides.
_MOST_SPACED: Final = 1024
# Wanted CIE76 distance of N classes: _SPACING / cbrt(N), at most _WIDEST. Measured on the lists of COCO and ADE20K, of
# the names in two of them 92 % keep their colour within 10 at 66, 71 % at 84. From about 90 on, some classes find no
# colour that far from all others.
_SPACING: Final = 66.0
_WIDEST: Final = 24.0
_PROBES: Final = 64
IGNORED: Final[Rgb] = (60, 60, 60)  # of ignored pixels in legends
_FROM_IGNORED: Final = 10.0

# Hue from and to in degrees (over 360: past red), lightness, chroma.
_Range = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
_ANY: Final[_Range] = ((0, 360), (28, 93), (16, 200))
_RANGES: Final[dict[str, _Range]] = {
    "red": ((22, 44), (32, 60), (55, 200)),
    "orange": ((52, 76), (55, 80), (55, 200)),
    "brown": ((45, 78), (28, 50), (18, 60)),
    "gold": ((76, 88), (62, 84), (50, 200)),
    "yellow": ((88, 104), (76, 93), (65, 200)),
    "beige": ((70, 100), (74, 90), (10, 32)),
    "olive": ((100, 118), (38, 62), (28, 200)),
    "green": ((120, 165), (32, 90), (28, 200)),
    "teal": ((180, 215), (38, 60), (16, 200)),
    "cyan": ((185, 225), (68, 93), (18, 200)),
    "blue": ((245, 298), (28, 66), (42, 200)),
    "navy": ((260, 306), (28, 42), (18, 200)),
    "purple": ((312, 329), (28, 66), (36, 200)),
    "magenta": ((322, 350), (42, 72), (60, 200)),
    "pink": ((340, 382), (60, 88), (18, 70)),
    "black": ((0, 360), (28, 44), (0, 9)),
    "grey": ((0, 360), (42, 76), (0, 9)),
    "white": ((0, 360), (79, 89), (0, 7.5)),
}
_WORDS: Final[dict[str, str]] = {name: name for name in _RANGES} | {
    **dict.fromkeys(("crimson", "scarlet", "maroon", "reddish"), "red"),
    **dict.fromkeys(("golden", "amber"), "gold"),
    **dict.fromkeys(("gray", "silver", "greyish", "grayish"), "grey"),
    **dict.fromkeys(("violet", "lilac", "indigo"), "purple"),
    **dict.fromkeys(("turquoise", "aqua"), "cyan"),
    **dict.fromkeys(("azure", "bluish"), "blue"),
    **dict.fromkeys(("greenish", "lime"), "green"),
    "brownish": "brown",
    "yellowish": "yellow",
    "fuchsia": "magenta",
}


def colours_of_names(names: Sequence[str]) -> list[Rgb]:
    """Return a colour for each name, all distinct, none black, dark or white.

    A hash of the name prefers one of some 11 000 colours, spread evenly over CIELAB. Where the colour of another class
    is too near, the nearest one that is far enough takes its place. So a name has the same colour or a similar one in
    most lists, whatever its index, and no two classes of a list are alike. The required distance (CIE76) is a
    compromise between these two: 24 up to 20 classes, 12.9 at 133, 12.4 at 150, 7.0 at 847. With no regard to names,
    133 colours could be about 17 apart.

    A name with a colour word ("red triangle", whole words only) has a colour of that range; with several of them, of
    any of their ranges. These classes choose first. A range that is too small for its classes at the required distance
    gives the most distant colours that it has, then ones of other ranges. Above 1 024 classes, distances are below what
    eyes can tell apart in a picture and are not regarded.

    Args:
        names: Distinct class names, at most 65535.

    Returns:
        (r, g, b) in 0..255 for each.
    """
    words = [colour_words(name) for name in names]
    # By hash, not by index: the order of a list changes no colour, and one more class moves few others.
    hashes = [int.from_bytes(hashlib.sha256(name.casefold().encode(errors="replace")).digest()[:8]) for name in names]
    order = sorted(range(len(names)), key=lambda index: (not words[index], hashes[index], names[index]))
    choose = _spaced if len(names) <= _MOST_SPACED else _probed
    return choose(words, hashes, order)


def colours_of_indices(count: int) -> list[Rgb]:
    """Return distinct colours, none of them black; the n-th is the same whatever the count.

    The colours of runs from before names decided: `shards repair` needs them to make their vocabulary again.
    """
    # Steps of the golden ratio in hue keep neighbouring ids far apart.
    colours: list[Rgb] = []
    used = {(0, 0, 0)}
    for index in range(count):
        hue = (index * _GOLDEN_RATIO + 0.58) % 1.0
        saturation = (0.75, 0.5, 0.95)[index // 7 % 3]
        value = (0.95, 0.65, 0.8)[index // 3 % 3]
        red, green, blue = (round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, saturation, value))
        while (red, green, blue) in used:  # with thousands of classes: jump elsewhere in the cube
            jumped = ((red << 16 | green << 8 | blue) + 0x5BD1E9) % (1 << 24)
            red, green, blue = jumped >> 16, jumped >> 8 & 255, jumped & 255
        used.add((red, green, blue))
        colours.append((red, green, blue))
    return colours


def colour_words(name: str) -> frozenset[str]:
    """Return the ranges of colour that the words of a name stand for, such as "red"; "redwood" has none."""
    return frozenset(_WORDS[word] for word in re.findall(r"[^\W\d_]+", name.casefold()) if word in _WORDS)


def in_range(lab: Floats, word: str) -> NDArray[np.bool_]:
    """Return which of (N, 3) Lab colours are in the range of a colour word."""
    return _within(lab, _RANGES[word])


def to_lab(rgb: NDArray[np.integer]) -> Floats:
    """Convert (N, 3) sRGB, 0..255, to CIELAB under D65, float32."""
    scaled = rgb.astype(np.float64) / 255
    linear = np.where(scaled <= 0.04045, scaled / 12.92, ((scaled + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _TO_XYZ.T / _WHITE
    roots = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = roots.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1).astype(np.float32)


_TO_XYZ: Final = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_WHITE: Final = _TO_XYZ.sum(axis=1)


def _spaced(words: Sequence[frozenset[str]], hashes: Sequence[int], order: Sequence[int]) -> list[Rgb]:
    rgb, lab = _even_candidates()
    wanted = min(_WIDEST, _SPACING / float(np.cbrt(max(1, len(order)))))
    nearest = np.full(len(lab), np.inf, np.float32)  # squared distance of each candidate to the chosen ones
    groups = {named: _group(lab, named) for named in set(words)}
    chosen = [0] * len(order)
    for index in order:
        group = groups[words[index]]
        taken = int(group[hashes[index] % len(group)])
        if nearest[taken] < wanted**2:
            room = nearest[group]
            far = group[room >= wanted**2]
            taken = int(far[_squared(lab[far], lab[taken]).argmin()] if len(far) else group[room.argmax()])
            if nearest[taken] == 0:  # all of a small range are taken
                taken = int(nearest.argmax())
        chosen[index] = taken
        np.minimum(nearest, _squared(lab, lab[chosen[index]]), out=nearest)
    return [_as_rgb(rgb[index]) for index in chosen]


def _probed(words: Sequence[frozenset[str]], hashes: Sequence[int], order: Sequence[int]) -> list[Rgb]:
    axis = np.arange(2, 256, 4)
    rgb = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = to_lab(rgb)
    groups: dict[frozenset[str], Indices] = {}
    used: set[int] = set()
    chosen = [0] * len(order)
    for index in order:
        for chosen_words, probes in ((words[index], _PROBES), (frozenset[str](), len(rgb))):
            if chosen_words not in groups:
                groups[chosen_words] = _group(lab, chosen_words)
            group = groups[chosen_words]
            # A step of the golden ratio: the next candidate in the grid would be the most similar one.
            step = int(len(group) * _GOLDEN_RATIO) | 1
            found = (int(group[(hashes[index] + step * probe) % len(group)]) for probe in range(probes))
            free = next((candidate for candidate in found if candidate not in used), None)
            if free is not None:
                break
        assert free is not None, "twice as many candidates as a vocabulary has classes"
        chosen[index] = free
        used.add(free)
    return [_as_rgb(rgb[index]) for index in chosen]


@cache
def _even_candidates() -> tuple[NDArray[np.int64], Floats]:
    """Return colours on an even grid in Lab, as sRGB and as Lab."""
    light, a, b = np.arange(28, 94, _STEP), np.arange(-88, 100, _STEP), np.arange(-108, 96, _STEP)
    lab = np.stack(np.meshgrid(light, a, b, indexing="ij"), axis=-1).reshape(-1, 3)
    y = (lab[:, 0] + 16) / 116
    roots = np.stack([y + lab[:, 1] / 500, y, y - lab[:, 2] / 200], axis=1)
    xyz = np.where(roots > 6 / 29, roots**3, 3 * (6 / 29) ** 2 * (roots - 4 / 29)) * _WHITE
    linear = xyz @ np.linalg.inv(_TO_XYZ).T
    linear = linear[((linear >= 0) & (linear <= 1)).all(axis=1)]
    scaled = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    rgb = np.unique((255 * scaled).round().astype(np.int64), axis=0)
    rgb = rgb[_squared(to_lab(rgb), to_lab(np.array([IGNORED]))[0]) >= _FROM_IGNORED**2]
    return rgb, to_lab(rgb)


def _group(lab: Floats, words: frozenset[str]) -> Indices:
    ranges = [_RANGES[word] for word in words] or [_ANY]
    return np.flatnonzero(np.logical_or.reduce([_within(lab, one) for one in ranges]))


def _within(lab: Floats, one: _Range) -> NDArray[np.bool_]:
    (first, last), (dark, light), (dull, vivid) = one
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    hue = np.degrees(np.arctan2(lab[:, 2], lab[:, 1])) % 360
    turned = (hue - first) % 360 <= last - first
    return turned & (lab[:, 0] >= dark) & (lab[:, 0] <= light) & (chroma >= dull) & (chroma <= vivid)


def _squared(lab: Floats, one: Floats) -> Floats:
    difference = lab - one
    return np.asarray(np.einsum("nc,nc->n", difference, difference), np.float32)


def _as_rgb(channels: NDArray[np.int64]) -> Rgb:
    red, green, blue = channels.tolist()
    return red, green, blue
