"""Paints and textures of the generated scenes: colours of objects, patterns of stuff."""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]

COLOURS: Final[dict[str, tuple[float, float, float]]] = {
    "red": (0.85, 0.12, 0.12),
    "yellow": (0.92, 0.85, 0.15),
    "green": (0.10, 0.60, 0.20),
    "cyan": (0.15, 0.80, 0.85),
    "blue": (0.12, 0.20, 0.85),
    "pink": (0.95, 0.35, 0.80),
}


def object_paint(rng: np.random.Generator, colour: str, dy: Float, dx: Float, radius: float) -> Float:
    """Return the surface of an object: its colour, plain, striped or dotted, lit from one side.

    Args:
        rng: The source of chance.
        colour: A key of `COLOURS`.
        dy: (h, w) rows from the object's centre, pixels.
        dx: (h, w) columns from the object's centre, pixels.
        radius: Radius of the object, pixels.

    Returns:
        (h, w, 3) float32 in [0, 1], to be cut out by the caller.
    """
    base = np.clip(np.asarray(COLOURS[colour], np.float32) + rng.uniform(-0.07, 0.07, 3), 0, 1)
    angle = rng.uniform(0, 2 * np.pi)
    along = np.cos(angle) * dx + np.sin(angle) * dy
    across = -np.sin(angle) * dx + np.cos(angle) * dy
    period = rng.uniform(3.5, 7.0)
    pattern = rng.integers(3)
    if pattern == 0:
        tone = np.ones_like(along)
    elif pattern == 1:
        tone = 1 - rng.uniform(0.15, 0.4) * (np.sin(2 * np.pi * along / period) > 0.2)
    else:
        dots = np.sin(2 * np.pi * along / period) * np.sin(2 * np.pi * across / period) > 0.4
        tone = 1 + rng.uniform(0.15, 0.4) * np.where(dots, rng.choice([-1.0, 1.0]), 0.0)
    tone = tone * (1 + rng.uniform(0.05, 0.3) * along / radius)
    paint: Float = np.clip(base * tone[..., None], 0, 1).astype(np.float32)
    return paint


def stuff_texture(rng: np.random.Generator, name: str, size: int) -> Float:
    """Return a (size, size, 3) float32 canvas in [0, 1], filled with one of `STUFF`."""
    canvas = _TEXTURES[name](rng, size) * rng.uniform(0.8, 1.15)
    clipped: Float = np.clip(canvas, 0, 1).astype(np.float32)
    return clipped


def _noise(rng: np.random.Generator, size: int, sigma: tuple[float, float]) -> Float:
    """Smooth noise with mean 0 and deviation 1."""
    from scipy import ndimage

    field = ndimage.gaussian_filter(
        rng.standard_normal((size, size), dtype=np.float32), sigma, mode="wrap", truncate=2.0
    )
    normed: Float = ((field - field.mean()) / (field.std() + 1e-6)).astype(np.float32)
    return normed


def _mix(dark: tuple[float, float, float], light: tuple[float, float, float], share: Float) -> Float:
    low, high = np.asarray(dark, np.float32), np.asarray(light, np.float32)
    mixed: Float = low + np.clip(share, 0, 1)[..., None].astype(np.float32) * (high - low)
    return mixed


def _turned(rng: np.random.Generator, size: int, spread: float) -> tuple[Float, Float]:
    """Coordinates of a canvas turned by up to `spread` radians and shifted by chance."""
    rows, cols = np.mgrid[0:size, 0:size].astype(np.float32)
    angle = rng.uniform(-spread, spread)
    y = np.cos(angle) * rows + np.sin(angle) * cols + rng.uniform(0, 64)
    x = -np.sin(angle) * rows + np.cos(angle) * cols + rng.uniform(0, 64)
    return y.astype(np.float32), x.astype(np.float32)


def _grass(rng: np.random.Generator, size: int) -> Float:
    blades = _noise(rng, size, (2.5, 0.5))
    return _mix((0.18, 0.30, 0.08), (0.52, 0.62, 0.25), 0.5 + 0.28 * blades + 0.1 * _noise(rng, size, (9, 9)))


def _water(rng: np.random.Generator, size: int) -> Float:
    y, x = _turned(rng, size, 0.2)
    ripple = np.sin(y * rng.uniform(0.5, 0.9) + 1.5 * np.sin(x * rng.uniform(0.05, 0.12)) + _noise(rng, size, (4, 9)))
    return _mix((0.15, 0.32, 0.45), (0.55, 0.72, 0.80), (0.45 + 0.35 * ripple).astype(np.float32))


def _sand(rng: np.random.Generator, size: int) -> Float:
    grain = 0.5 + 0.15 * _noise(rng, size, (0.4, 0.4)) + 0.12 * _noise(rng, size, (7, 7))
    return _mix((0.68, 0.56, 0.38), (0.93, 0.85, 0.66), grain)


def _brick(rng: np.random.Generator, size: int) -> Float:
    y, x = _turned(rng, size, 0.12)
    height, width = rng.uniform(6, 9), rng.uniform(13, 18)
    course = np.floor(y / height)
    shifted = x / width + 0.5 * (course % 2)
    mortar = ((y / height) % 1 < 0.16) | (shifted % 1 < 0.08)
    tone = np.sin(course * 12.9898 + np.floor(shifted) * 78.233 + rng.uniform(0, 6)) * 0.35 + 0.5
    bricks = _mix((0.42, 0.17, 0.12), (0.70, 0.36, 0.27), tone.astype(np.float32))
    bricks[mortar] = (0.72, 0.69, 0.64)
    return bricks + 0.03 * _noise(rng, size, (0.5, 0.5))[..., None]


def _wood(rng: np.random.Generator, size: int) -> Float:
    x = _turned(rng, size, 0.25)[1]
    rings = np.sin((x + 4 * _noise(rng, size, (24, 5))) * rng.uniform(0.7, 1.2))
    planks = (x / rng.uniform(18, 28)) % 1 < 0.05
    share = np.where(planks, -0.2, 0.5 + 0.25 * rings + 0.12 * _noise(rng, size, (6, 0.5)))
    return _mix((0.33, 0.20, 0.10), (0.68, 0.47, 0.27), share.astype(np.float32))


def _stone(rng: np.random.Generator, size: int) -> Float:
    """Cobbles: cells around jittered grid points, dark in the joints."""
    step = rng.uniform(11, 15)
    count = int(size / step) + 3
    seeds = (np.mgrid[0:count, 0:count].reshape(2, -1).T + rng.uniform(-0.35, 0.35, (count * count, 2)) - 0.5) * step
    rows, cols = np.mgrid[0:size, 0:size]
    nearest = np.full((size, size), np.inf, np.float32)
    second, tone = nearest.copy(), np.zeros((size, size), np.float32)
    tones = rng.uniform(0.3, 0.9, len(seeds))
    for seed, shade in zip(seeds, tones, strict=True):
        top, left = (max(int(v - 2 * step), 0) for v in seed)
        bottom, right = (max(int(v + 2 * step), 0) for v in seed)
        window = np.s_[top:bottom, left:right]
        distance = np.hypot(rows[window] - seed[0], cols[window] - seed[1]).astype(np.float32)
        closer = distance < nearest[window]
        second[window] = np.where(closer, nearest[window], np.minimum(second[window], distance))
        tone[window] = np.where(closer, shade, tone[window])
        nearest[window] = np.minimum(nearest[window], distance)
    joint = np.clip((second - nearest) / 2.5, 0, 1)
    return _mix((0.22, 0.22, 0.24), (0.72, 0.72, 0.70), tone * joint + 0.05 * _noise(rng, size, (0.6, 0.6)))


_TEXTURES: Final[dict[str, Callable[[np.random.Generator, int], Float]]] = {
    "grass": _grass,
    "water": _water,
    "sand": _sand,
    "brick": _brick,
    "wood": _wood,
    "stone": _stone,
}
STUFF: Final = tuple(_TEXTURES)
