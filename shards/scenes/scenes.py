"""The generated data set of the embedded default: small photo-like scenes with labels.

A scene is one or two regions of textured stuff with overlapping objects on top, shaded, with cast shadows, seen through
a camera: blur, noise, uneven light, colour cast, low contrast and thin clutter. Class names are compositional
(`red ring`, `wood`), so that a model may know every word of a class that it has never seen labelled.

Splits: `source` has the seen classes only, a good camera and coarse labels: objects are outlined two pixels outside,
holes included, as people do who label many pictures. `target`, `validation` and `test` have all classes, a bad camera
and exact labels. A scene is a pure function of (version, split, seed, index): no two splits share one.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from shards.scenes.textures import COLOURS, STUFF, object_paint, stuff_texture

Float = NDArray[np.float32]
Split = Literal["source", "target", "validation", "test"]

SCENES_VERSION: Final = 2
SCENE_SIZE: Final = 96
SHAPES: Final = ("triangle", "star", "ring")
OBJECT_CLASSES: Final = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
SCENE_CLASSES: Final = OBJECT_CLASSES + STUFF
UNSEEN: Final = frozenset(
    [f"{colour} {shape}" for c, colour in enumerate(COLOURS) for s, shape in enumerate(SHAPES) if (c + s) % 3 == 0]
    + ["wood", "stone"]
)
SEEN: Final = frozenset(SCENE_CLASSES) - UNSEEN
_CLUTTER_TONES: Final = ((0.1, 0.1, 0.1), (0.9, 0.9, 0.9), (0.5, 0.45, 0.4))


@dataclass(frozen=True)
class Scene:
    """One generated picture.

    Attributes:
        image: (S, S, 3) uint8 RGB.
        label: (S, S) uint8, index into `SCENE_CLASSES` for every pixel; exact, or after the recipe's outlines.
        segments: (S, S) uint8, a number per region or object, 0 .. count - 1; class-agnostic.
    """

    image: NDArray[np.uint8]
    label: NDArray[np.uint8]
    segments: NDArray[np.uint8]


@dataclass(frozen=True)
class SceneRecipe:
    """What a scene may hold, and how bad the camera is.

    Attributes:
        size: Side of the square picture, pixels.
        objects: Smallest and largest number of objects.
        radius: Smallest and largest object radius, pixels.
        classes: Indices into `SCENE_CLASSES` that may occur.
        domain: Smallest and largest strength of the camera's faults, 0 (good) to 1 (bad).
        outline: How objects are labelled: None: exactly; n: by an outline n pixels outside of them, holes filled.
        blobs: Most shapeless patches of random paint; labelled as what is below them, but segments of their own.
    """

    size: int = SCENE_SIZE
    objects: tuple[int, int] = (2, 5)
    radius: tuple[float, float] = (11.0, 22.0)
    classes: tuple[int, ...] = tuple(range(len(SCENE_CLASSES)))
    domain: tuple[float, float] = (0.7, 1.0)
    outline: int | None = None
    blobs: int = 0


_SEEN_IDS: Final = tuple(i for i, name in enumerate(SCENE_CLASSES) if name in SEEN)
RECIPES: Final[dict[Split, SceneRecipe]] = {
    "source": SceneRecipe(classes=_SEEN_IDS, domain=(0.0, 0.0), outline=2),
    "target": SceneRecipe(),
    "validation": SceneRecipe(),
    "test": SceneRecipe(),
}


@lru_cache(maxsize=2048)  # each stage reads the same ones, image and label; 45 kB each
def render_scene(split: Split, seed: int, index: int) -> Scene:
    """Draw scene number `index` of a split; its arrays are read-only.

    Args:
        split: "source", "target", "validation" or "test".
        seed: Seed of the data set, >= 0.
        index: Number of the scene within its split, >= 0.

    Raises:
        ValueError: The split is unknown, or seed or index is negative.
    """
    if split not in RECIPES:
        raise ValueError(f"unknown split {split!r}: expected one of {', '.join(get_args(Split))}")
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must be >= 0, got seed {seed} and index {index}")
    split_number = get_args(Split).index(split)
    rng = np.random.default_rng([SCENES_VERSION, split_number, seed, index])
    scene = compose_scene(rng, RECIPES[split])
    for array in (scene.image, scene.label, scene.segments):
        array.setflags(write=False)
    return scene


def compose_scene(rng: np.random.Generator, recipe: SceneRecipe) -> Scene:
    """Draw a scene by a recipe; `rng` is the only source of chance."""
    canvas, label = _ground(rng, recipe)
    segments = np.unique(label, return_inverse=True)[1].reshape(label.shape).astype(np.uint8)
    object_ids = [i for i in recipe.classes if i < len(OBJECT_CLASSES)]
    for _ in range(int(rng.integers(recipe.objects[0], recipe.objects[1] + 1)) if object_ids else 0):
        class_id = int(rng.choice(object_ids))
        _place_object(rng, recipe, class_id, canvas, label, segments)
    for _ in range(int(rng.integers(0, recipe.blobs + 1))):
        _place_blob(rng, recipe, canvas, segments)
    strength = float(rng.uniform(*recipe.domain))
    image = _camera(rng, canvas, strength)
    return Scene(image, label, segments)


def _ground(rng: np.random.Generator, recipe: SceneRecipe) -> tuple[Float, NDArray[np.uint8]]:
    """Fill the picture with one stuff or, six times in ten, two that meet along a wavy line."""
    size = recipe.size
    stuff_ids = [i for i in recipe.classes if i >= len(OBJECT_CLASSES)]
    first, second = rng.choice(stuff_ids, size=2, replace=len(stuff_ids) < 2)
    canvas = stuff_texture(rng, SCENE_CLASSES[first], size)
    label = np.full((size, size), first, np.uint8)
    if rng.random() < 0.6:
        rows, cols = _grid(size)
        angle = rng.uniform(0, 2 * np.pi)
        across = np.cos(angle) * (cols - size / 2) + np.sin(angle) * (rows - size / 2)
        along = -np.sin(angle) * (cols - size / 2) + np.cos(angle) * (rows - size / 2)
        wave = rng.uniform(0, 6) * np.sin(along * rng.uniform(0.03, 0.15) + rng.uniform(0, 6.28))
        alpha = np.clip(across + wave + rng.uniform(-0.2, 0.2) * size + 0.5, 0, 1).astype(np.float32)
        canvas += alpha[..., None] * (stuff_texture(rng, SCENE_CLASSES[second], size) - canvas)
        label[alpha > 0.5] = second
    return canvas, label


def _place_object(
    rng: np.random.Generator,
    recipe: SceneRecipe,
    class_id: int,
    canvas: Float,
    label: NDArray[np.uint8],
    segments: NDArray[np.uint8],
) -> None:
    """Draw one object with its shadow onto the canvas, and enter it in the maps."""
    from scipy import ndimage

    size = recipe.size
    colour, shape = SCENE_CLASSES[class_id].split(" ")
    radius = rng.uniform(*recipe.radius)
    margin = min(0.6 * radius, size / 2 - 1)
    centre = rng.uniform(margin, size - margin, size=2)
    reach = 1.4 * radius + 3  # all work is done in the object's window, not on the whole canvas
    window = tuple(slice(max(int(c - reach), 0), min(int(c + reach) + 1, size)) for c in centre)
    rows, cols = (axis.astype(np.float32) for axis in np.mgrid[window])
    dy, dx = rows - np.float32(centre[0]), cols - np.float32(centre[1])
    alpha = _shape_alpha(rng, shape, dy, dx, radius)
    fall = np.rint(rng.uniform(-0.3, 0.3, size=2) * radius).astype(int)
    shadow = ndimage.uniform_filter(ndimage.shift(alpha, fall, order=0), 5)
    part = canvas[window]
    part *= (1 - rng.uniform(0.2, 0.5) * shadow)[..., None]
    part += alpha[..., None] * (object_paint(rng, colour, dy, dx, radius) - part)
    label[window][_labelled_as(alpha > 0.5, recipe.outline)] = class_id
    segments[window][alpha > 0.5] = segments.max() + 1


def _labelled_as(inside: NDArray[np.bool_], outline: int | None) -> NDArray[np.bool_]:
    """Return the pixels that an annotator marks for an object."""
    if outline is None:
        return inside
    from scipy import ndimage

    filled: NDArray[np.bool_] = ndimage.binary_fill_holes(np.pad(inside, outline))
    grown = ndimage.distance_transform_edt(~filled) <= outline
    inner = slice(outline, -outline or None)
    marked: NDArray[np.bool_] = grown[inner, inner]
    return marked


def _place_blob(rng: np.random.Generator, recipe: SceneRecipe, canvas: Float, segments: NDArray[np.uint8]) -> None:
    """Draw a shapeless patch of random paint."""
    from scipy import ndimage

    size = recipe.size
    field = ndimage.gaussian_filter(rng.standard_normal((size, size)).astype(np.float32), size / 10)
    rows, cols = _grid(size)
    centre = rng.uniform(0.15, 0.85, size=2) * size
    field = field / (np.abs(field).max() + 1e-6) - np.hypot(rows - centre[0], cols - centre[1]) / (0.35 * size) + 0.5
    alpha = np.clip(field * 12 + 0.5, 0, 1)
    paint = np.clip(rng.uniform(0, 1, 3) + 0.08 * rng.standard_normal((size, size, 1)), 0, 1).astype(np.float32)
    canvas += alpha[..., None] * (paint - canvas)
    segments[alpha > 0.5] = segments.max() + 1


def _shape_alpha(rng: np.random.Generator, shape: str, dy: Float, dx: Float, radius: float) -> Float:
    """Return the coverage in [0, 1] of a turned, slightly squeezed shape; edges are one pixel soft."""
    turn, squeeze = rng.uniform(0, 2 * np.pi), rng.uniform(0.8, 1.0)
    x = (np.cos(turn) * dx + np.sin(turn) * dy) / squeeze
    y = -np.sin(turn) * dx + np.cos(turn) * dy
    distance = np.hypot(x, y)
    if shape == "ring":
        inner = radius * rng.uniform(0.4, 0.55)
        inside = np.minimum(radius - distance, distance - inner)
    else:
        points = 3 if shape == "triangle" else 5
        inner = 0.5 if shape == "triangle" else rng.uniform(0.38, 0.46)
        inside = _polygon_depth(x, y, points, radius, radius * inner)
    alpha: Float = np.clip(inside + 0.5, 0, 1).astype(np.float32)
    return alpha


def _polygon_depth(x: Float, y: Float, points: int, outer: float, inner: float) -> Float:
    """Return the depth inside a star polygon in pixels, negative outside; `inner` = outer·cos(π/n) makes it convex."""
    sector = np.pi / points
    angle = np.abs((np.arctan2(y, x) + sector) % (2 * sector) - sector)
    distance = np.hypot(x, y)
    px, py = distance * np.cos(angle), distance * np.sin(angle)
    ax, ay = outer, 0.0
    bx, by = inner * np.cos(sector), inner * np.sin(sector)
    length = float(np.hypot(bx - ax, by - ay))
    depth: Float = ((bx - ax) * (py - ay) - (by - ay) * (px - ax)) / length
    return depth


def _camera(rng: np.random.Generator, canvas: Float, strength: float) -> NDArray[np.uint8]:
    """Take the picture: the stronger the domain shift, the worse light, colours, sharpness and noise."""
    from scipy import ndimage

    size = canvas.shape[0]
    rows, cols = _grid(size)
    for _ in range(int(rng.integers(0, 6) * strength + 0.3)):
        _draw_line(rng, canvas)
    angle = rng.uniform(0, 2 * np.pi)
    slope = (np.cos(angle) * cols + np.sin(angle) * rows) / size
    light = 1 + (0.1 + 0.8 * strength * rng.random()) * (slope - slope.mean())
    cast = 1 + (0.03 + 0.15 * strength) * rng.uniform(-1, 1, size=3)
    contrast = 1 - 0.4 * strength * rng.random()
    picture = (canvas * light[..., None] * cast - 0.5) * contrast + 0.5 + 0.08 * strength * rng.uniform(-1, 1)
    blur = 0.3 + strength * rng.uniform(0.0, 1.0)
    picture = ndimage.gaussian_filter(picture, (blur, blur, 0), truncate=2.5)
    noise = (2 + 16 * strength * rng.random()) / 255
    picture += noise * rng.standard_normal(picture.shape, dtype=np.float32)
    quantised: NDArray[np.uint8] = np.clip(picture * 255 + 0.5, 0, 255).astype(np.uint8)
    return quantised


def _draw_line(rng: np.random.Generator, canvas: Float) -> None:
    """Draw a thin line of clutter over everything; the label below it stays."""
    size = canvas.shape[0]
    rows, cols = _grid(size)
    angle, offset = rng.uniform(0, np.pi), rng.uniform(0.2, 0.8) * size
    distance = np.abs(np.cos(angle) * (cols - offset) + np.sin(angle) * (rows - offset))
    alpha = np.clip(rng.uniform(0.5, 1.2) - distance, 0, 1) * 0.9
    tone = np.asarray(_CLUTTER_TONES[int(rng.integers(len(_CLUTTER_TONES)))], np.float32)
    canvas += alpha[..., None].astype(np.float32) * (tone - canvas)


def _grid(size: int) -> tuple[Float, Float]:
    rows, cols = np.mgrid[0:size, 0:size].astype(np.float32)
    return rows, cols
