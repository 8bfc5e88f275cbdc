"""Pictures of label maps: overlays, rows of panels with titles, and legends."""

# H W grid

import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.report.fonts import Font, drawable, own_font
from shards.data.colours import IGNORED
from shards.data.vocabulary import Vocabulary

Pixels = NDArray[np.uint8]

OPACITY: Final = 0.62  # of a class's colour over the image: the outlines beneath have to stay visible
_LINE: Final = 0.75  # share of the outline's own colour in it
_MARGINS: Final = (24, 12, 6, 3)  # pixels that a name keeps from the outline of its region, the roomiest first
_BRIGHT: Final = 140.0  # mean grey from which on ink is easier to read than paper
_TITLE_HEIGHT: Final = 20
_GAP: Final = 6
_PAPER: Final = (255, 255, 255)
_INK: Final = (25, 25, 25)
_MAX_UPSCALE: Final = 8
_PIXELS_AT_ONCE: Final = 1 << 24  # larger pictures are shrunk by strips: a copy of 89 megapixels is 360 MB
_STRIP_PIXELS: Final = 1 << 19
MAX_NAMED: Final = 24  # classes in a legend: with more, it is larger than the picture


def labelled(
    image: Pixels, label: NDArray[np.integer], vocabulary: Vocabulary, *, side: int, opacity: float = OPACITY
) -> Pixels:
    """Lay the colours of a label map over an image, with thin outlines between classes and names where they fit.

    Args:
        image: (H, W, 3) uint8.
        label: (H, W) class ids.
        vocabulary: The source of names, colours and the ignore index.
        side: As of `scaled`. Outlines and names are drawn at this size, so that they stay thin and sharp.
        opacity: Share of the class's colour, 0..1; 0: outlines and names alone, over the grey image.

    Returns:
        (h, w, 3) uint8, of the size of `scaled(image, side)`.

    Raises:
        ValueError: The label has another size, or holds an id outside the vocabulary.
    """
    drawn = np.array(scaled_overlay(image, label, vocabulary, side, opacity))
    height, width = drawn.shape[:2]
    rows = (np.arange(height) * 2 + 1) * label.shape[0] // (2 * height)
    columns = (np.arange(width) * 2 + 1) * label.shape[1] // (2 * width)
    small = label[rows[:, None], columns]
    edges = np.zeros(small.shape, bool)
    edges[:, :-1] |= small[:, :-1] != small[:, 1:]
    edges[:-1] |= small[:-1] != small[1:]
    drawn[edges] = ((1 - _LINE) * drawn[edges] + _LINE * np.array(_PAPER)).round()
    sheet = Image.fromarray(drawn)
    pen = ImageDraw.Draw(sheet)
    for index in classes_by_size([small], vocabulary)[:MAX_NAMED]:
        text, font = drawable(vocabulary.names[index], f"class {index}")
        box = pen.textbbox((0, 0), text, font=font, anchor="ls")
        box_width, box_height = int(box[2] - box[0]), int(box[3] - box[1])
        if (corner := _room_for(small == index, box_width, box_height)) is None:
            continue
        left, top = corner
        bright = drawn[top : top + box_height, left : left + box_width].mean() >= _BRIGHT
        ink, halo = (_INK, _PAPER) if bright else (_PAPER, _INK)
        pen.text(
            (left - box[0], top - box[1]), text, fill=ink, font=font, anchor="ls", stroke_width=1, stroke_fill=halo
        )
    return np.asarray(sheet)


def _room_for(region_HW: NDArray[np.bool_], width: int, height: int) -> tuple[int, int] | None:
    """Return the left and top of a box that is in a region with all of its margin, near the region's middle."""
    # Sums over rectangles; no component is searched: a box that is full of the class is in one of them.
    sums = np.zeros((region_HW.shape[0] + 1, region_HW.shape[1] + 1), np.int64)
    sums[1:, 1:] = region_HW.cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
    for margin in _MARGINS:
        tall, wide = height + 2 * margin, width + 2 * margin
        if tall > region_HW.shape[0] or wide > region_HW.shape[1]:
            continue
        inside = sums[tall:, wide:] - sums[:-tall, wide:] - sums[tall:, :-wide] + sums[:-tall, :-wide]
        tops, lefts = np.nonzero(inside == tall * wide)
        if len(tops):
            nearest = int(((tops - tops.mean()) ** 2 + (lefts - lefts.mean()) ** 2).argmin())
            return int(lefts[nearest]) + margin, int(tops[nearest]) + margin
    return None


def overlay(image: Pixels, label: NDArray[np.integer], vocabulary: Vocabulary, opacity: float = OPACITY) -> Pixels:
    """Lay the colours of a label map over an image.

    Args:
        image: (H, W, 3) uint8.
        label: (H, W) class ids; ignored pixels show the image, grey and dark.
        vocabulary: The source of the colours and the ignore index.
        opacity: Share of the class's colour, 0..1.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: The label has another size, or holds an id outside the vocabulary.
    """
    drawn = np.empty_like(image)
    for rows, strip in _overlay_strips(image, label, vocabulary, opacity):
        drawn[rows] = strip
    return drawn


def scaled_overlay(
    image: Pixels, label: NDArray[np.integer], vocabulary: Vocabulary, side: int, opacity: float = OPACITY
) -> Pixels:
    """Return `scaled(overlay(image, label, vocabulary), side)`; of a large picture without the overlay at full size."""
    if label.size <= _PIXELS_AT_ONCE:
        return scaled(overlay(image, label, vocabulary, opacity), side)
    strips = (strip for _, strip in _overlay_strips(image, label, vocabulary, opacity))
    return _shrunk(strips, label.shape[0], label.shape[1], side)


def _overlay_strips(
    image: Pixels, label: NDArray[np.integer], vocabulary: Vocabulary, opacity: float
) -> Iterator[tuple[slice, Pixels]]:
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity is {opacity}; expected 0 to 1")
    if image.shape[:2] != label.shape:
        raise ValueError(f"the label is {label.shape}, the image {image.shape[:2]}; expected the same size")
    colours = np.array([entry.colour for entry in vocabulary.classes], dtype=np.float32)
    for rows in _strips(image.shape[0], image.shape[1]):
        yield rows, _overlay_strip(image[rows], label[rows], colours, vocabulary.ignore_index, opacity)


def _overlay_strip(
    image: Pixels, label: NDArray[np.integer], colours: NDArray[np.float32], ignore: int, opacity: float
) -> Pixels:
    labelled = label != ignore
    if labelled.any() and not 0 <= int(label[labelled].min()) <= int(label[labelled].max()) < len(colours):
        raise ValueError(
            f"the label holds ids outside 0 to {len(colours) - 1}; is this the vocabulary it was made with?"
        )
    grey = image.astype(np.float32).mean(axis=2, keepdims=True)
    drawn = np.broadcast_to(0.35 * grey, image.shape).copy()
    base = (0.5 * grey + 0.5 * image)[labelled]
    drawn[labelled] = (1 - opacity) * base + opacity * colours[label[labelled]]
    return drawn.round().astype(np.uint8)


def _strips(height: int, width: int) -> Iterator[slice]:
    """Yield the rows of a picture, some at a time: in floats all of 89 megapixels are gigabytes."""
    step = max(1, _STRIP_PIXELS // max(1, width))
    yield from (slice(top, top + step) for top in range(0, height, step))


def scaled(pixels: Pixels, side: int) -> Pixels:
    """Resize so that the longest side has at most `side` pixels; small pictures grow by a whole factor."""
    # Whole factors keep pixels sharp: interpolated, a label's edge of one pixel could not be judged.
    height, width = pixels.shape[:2]
    longest = max(height, width)
    if longest <= side:
        factor = min(_MAX_UPSCALE, max(1, side // longest))
        return pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    if height * width > _PIXELS_AT_ONCE:
        return _shrunk((pixels[rows] for rows in _strips(height, width)), height, width, side)
    return _resized(pixels, *_size_within(height, width, side))


def _size_within(height: int, width: int, side: int) -> tuple[int, int]:
    longest = max(height, width)
    return max(1, round(width * side / longest)), max(1, round(height * side / longest))


def _shrunk(strips: Iterable[Pixels], height: int, width: int, side: int) -> Pixels:
    """Resize the strips of a picture to the new width, then all of them to the new height."""
    new_width, new_height = _size_within(height, width, side)
    return _resized(np.concatenate([_resized(strip, new_width, len(strip)) for strip in strips]), new_width, new_height)


def _resized(pixels: Pixels, width: int, height: int) -> Pixels:
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))


def panels(columns: Sequence[tuple[str, Pixels]], *, side: int = 240) -> Image.Image:
    """Return pictures side by side, each under its title.

    Args:
        columns: (title, (H, W, 3) uint8) from left to right, at least one.
        side: Length of the longest side of each, pixels.
    """
    shown = [(*drawable(title, ascii(title)[1:-1]), scaled(pixels, side)) for title, pixels in columns]
    widths = [max(pixels.shape[1], int(font.getlength(title)) + 2) for title, font, pixels in shown]
    height = max(pixels.shape[0] for _, _, pixels in shown) + _TITLE_HEIGHT
    sheet = Image.new("RGB", (sum(widths) + _GAP * (len(shown) - 1), height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    left = 0
    for (title, font, pixels), width in zip(shown, widths, strict=True):
        _write(pen, left + 1, 2, title, font)
        sheet.paste(Image.fromarray(pixels), (left, _TITLE_HEIGHT))
        left += width + _GAP
    return sheet


def with_legend(sheet: Image.Image, vocabulary: Vocabulary, labels: Iterable[NDArray[np.integer]]) -> Image.Image:
    """Return a sheet with a legend below it: the largest classes of the label maps, and ignored pixels."""
    ids = classes_by_size(labels, vocabulary)
    named = sorted(ids[:MAX_NAMED])
    # A name in a script that no font here has is drawn as its id, by which tables and label maps know the class, too.
    entries = [(vocabulary.classes[i].colour, *drawable(vocabulary.names[i], f"class {i}")) for i in named]
    entries.append((IGNORED, "ignored", own_font()))
    if len(ids) > len(named):
        entries.append((_PAPER, f"and {len(ids) - len(named)} more", own_font()))
    positions, rows, left = [], 0, 4
    for colour, name, font in entries:
        width = 16 + int(font.getlength(name)) + 14
        if left > 4 and left + width > max(sheet.width, 320):
            rows, left = rows + 1, 4
        positions.append((left, rows, colour, name, font))
        left += width
    canvas = Image.new("RGB", (max(sheet.width, 320), sheet.height + 8 + 18 * (rows + 1)), _PAPER)
    canvas.paste(sheet, (0, 0))
    pen = ImageDraw.Draw(canvas)
    for x, row, colour, name, font in positions:
        top = sheet.height + 6 + 18 * row
        pen.rectangle((x, top + 1, x + 11, top + 12), fill=colour, outline=_INK)
        _write(pen, x + 16, top - 1, name, font)
    return canvas


def classes_by_size(labels: Iterable[NDArray[np.integer]], vocabulary: Vocabulary) -> list[int]:
    """Return the ids of the classes in any of the label maps, the one with the most pixels first."""
    pixels: Counter[int] = Counter()
    for label in labels:
        for rows in _strips(*label.shape):
            ids, counts = np.unique(label[rows], return_counts=True)
            pixels.update(dict(zip(ids.tolist(), counts.tolist(), strict=True)))
    del pixels[vocabulary.ignore_index]
    return sorted(pixels, key=lambda index: (-pixels[index], index))


def png_bytes(image: Image.Image) -> bytes:
    """Encode as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _write(pen: ImageDraw.ImageDraw, left: int, top: int, text: str, font: Font) -> None:
    # By the baseline: fonts of other scripts reach higher above it.
    pen.text((left, top + own_font().getmetrics()[0]), text, fill=_INK, font=font, anchor="ls")
