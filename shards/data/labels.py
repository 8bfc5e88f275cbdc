"""Label maps and confidence maps as PNG files that align with the stored image."""

import io
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from shards.data.images import ORIENTATION_TAG, ImageFrame, Pixel, load_image, orientation_of, to_stored, to_upright
from shards.data.vocabulary import IGNORE_8_BIT, Vocabulary
from shards.files.stand_ins import stand_in
from shards.formats.legend import Legend, LegendClass

LabelFrame = Literal["auto", "upright", "stored"]
# Reasons that say nothing about the label, only that its file is not there as planned: it may come back.
PASSING_LABEL_REASONS: Final = frozenset({"label_missing", "label_changed", "label_unreadable"})
LABEL_REASONS: Final = PASSING_LABEL_REASONS | {"label_damaged", "label_of_other_size", "label_ids"}

_BIT_DEPTH_BYTE = 24  # in a PNG's first chunk
_RUN_LENGTH = 3  # zlib's Z_RLE: on label maps nearly as small as the default and 2.7 times as fast


class UnusableLabel(ValueError):  # noqa: N818 - the reason code is what callers look at
    """A label map that cannot be used with its image. It costs its own sample, and no other.

    Attributes:
        reason: A code for statistics: label_missing, label_changed, label_unreadable, label_damaged,
            label_of_other_size, label_ids.
        detail: What was found, for people: the file, what was expected, the hint.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["UnusableLabel"], tuple[str, str]]:
        """Pickle by the arguments, so that it survives the way from a worker process."""
        return UnusableLabel, (self.reason, self.detail)


class SourceLabel(NamedTuple):
    """A label map that fits its image.

    Attributes:
        ids: (H, W) int32, upright, of the image's size; class ids and the vocabulary's ignore index.
        turned: Whether the file was in the stored frame of a turned photograph and was turned with it.
    """

    ids: NDArray[np.int32]
    turned: bool = False


def encode_label(
    label: NDArray[np.integer], vocabulary: Vocabulary, exif_orientation: int = 1, *, palette: bool = False
) -> bytes:
    """Return a label map as PNG: 8-bit grey up to 255 classes, 16-bit grey above; the grey values are the ids.

    The pixels are stored in the image's EXIF orientation; `decode_label` returns the upright map.

    Args:
        label: (H, W) any integer type, upright; class ids and the vocabulary's ignore index.
        vocabulary: What the ids mean.
        exif_orientation: The image's (`DecodedImage.exif_orientation`).
        palette: Up to 255 classes, have viewers show the classes' colours: for maps made to be looked at. Decoders of
            data loaders turn such a file into its colours, and the ids are lost.

    Raises:
        ValueError: No pixels, another shape or type, or an id that the vocabulary does not have.
    """
    # Stored like the image, with the same EXIF tag, label and image align in viewers that know EXIF and in the others.
    ids = _checked(label, "label")
    outside = ((ids < 0) | (ids >= len(vocabulary))) & (ids != vocabulary.ignore_index)
    if outside.any():
        raise ValueError(
            f"label holds id {int(ids[outside][0])}; the vocabulary has ids 0 to {len(vocabulary) - 1} "
            f"and {vocabulary.ignore_index} for ignore"
        )
    if vocabulary.ignore_index > IGNORE_8_BIT:
        return _png(Image.fromarray(to_stored(ids.astype(np.uint16), exif_orientation)), exif_orientation)
    image = Image.fromarray(to_stored(ids.astype(np.uint8), exif_orientation))
    if palette:
        image.putpalette(vocabulary.palette)
    return _png(image, exif_orientation)


def legend_of(vocabulary: Vocabulary) -> Legend:
    """Return what the ids of a vocabulary's label maps mean."""
    classes = tuple(
        LegendClass(id=index, name=entry.name, synonyms=entry.synonyms, colour=entry.colour)
        for index, entry in enumerate(vocabulary.classes)
    )
    return Legend(ignore_index=vocabulary.ignore_index, classes=classes)


def decode_label(data: bytes) -> NDArray[np.int32]:
    """Read an index PNG: palette, grey of 1 to 16 bits.

    Returns:
        (H, W) int32, upright; the values of the file.

    Raises:
        ValueError: Not a PNG, damaged, too large, or with colours instead of ids.
    """
    try:
        image = load_image(data, ("PNG",)).image
        orientation = orientation_of(image)
    except UnidentifiedImageError as error:  # whose message is the address of an object, another in each process
        what = stand_in(data[:64]) or f"begins with {data[:16]!r}"
        raise ValueError(f"not a readable label PNG ({what}); expected an index PNG of class ids") from error
    except Exception as error:
        # Pillow raises any exception on hostile bytes.
        raise ValueError(f"not a readable label PNG ({error}); expected an index PNG of class ids") from error
    if image.mode not in ("P", "L", "1", "I;16", "I"):
        raise ValueError(f"a label PNG holds class ids (palette or grey); this one {_colours_text(image)}")
    ids = np.asarray(image).astype(np.int32)
    if image.mode == "L" and bit_depth(data) < 8:
        ids //= 255 // (2 ** bit_depth(data) - 1)  # Pillow spreads 2- and 4-bit grey over 0..255
    return to_upright(ids, orientation)


def _colours_text(image: Image.Image) -> str:
    """Return what a PNG with more than one channel holds, and how it becomes a label."""
    # Not taken even where it is grey: of a folder of coloured labels one that is black may look so.
    channels = [np.asarray(channel) for channel in image.split()]
    colours = channels[:-1] if image.mode in ("LA", "RGBA") else channels
    text = f"holds colours, not ids (mode {image.mode}): replace each colour by the id of its class"
    if colours[0].any() and all((colour == colours[0]).all() for colour in colours[1:]):
        return f"{text}, or, as all of them are grey, save one channel alone, without transparency"
    return text


def bit_depth(data: bytes) -> int:
    """Return the bits per pixel and channel of a PNG file."""
    return data[_BIT_DEPTH_BYTE]


def fit_label(label: NDArray[np.int32], frame: ImageFrame, mode: LabelFrame = "auto") -> SourceLabel:
    """Return a label map in the frame of its upright image.

    Photographs are turned by their EXIF orientation. Most tools draw masks on the upright picture, some on the pixels
    as stored: where the two sizes differ, the mask's own size says which. A turn by 180 degrees, a mirrored picture or
    a square one have the same size in both: `auto` takes the mask as upright, `stored` turns it.

    Args:
        label: (H, W), as `decode_label` returns it.
        frame: The image's.
        mode: `auto`: by size. `upright`, `stored`: the frame of all masks, whatever their size.

    Raises:
        UnusableLabel: Its size is not that of the image in the frame.
    """
    upright, stored = frame.size_hw, frame.stored_hw
    if mode != "stored" and label.shape == upright:
        return SourceLabel(label)
    if mode != "upright" and frame.exif_orientation != 1 and label.shape == stored:
        return SourceLabel(to_upright(label, frame.exif_orientation), turned=True)
    if frame.exif_orientation == 1 and label.shape == upright:
        return SourceLabel(label)
    expected = stored if mode == "stored" else upright
    raise UnusableLabel(
        "label_of_other_size",
        f"has {label.shape[1]} x {label.shape[0]} pixels, its image {expected[1]} x {expected[0]}; a label needs the "
        "size of its image",
    )


def encode_weight(weight: NDArray[np.uint8], exif_orientation: int = 1) -> bytes:
    """Return a confidence map as grey PNG, stored like its label.

    Args:
        weight: (H, W) uint8, upright; 0: no weight, 255: full weight.
        exif_orientation: The image's.

    Raises:
        ValueError: No pixels, or another shape or type.
    """
    if weight.dtype != np.uint8:
        raise ValueError(f"weight has type {weight.dtype}; expected uint8")
    return _png(
        Image.fromarray(to_stored(_checked(weight, "weight").astype(np.uint8), exif_orientation)), exif_orientation
    )


def decode_weight(data: bytes) -> NDArray[np.uint8]:
    """Read a confidence map: (H, W) uint8, upright.

    Raises:
        ValueError: Not a readable grey PNG, or values above 255.
    """
    values = decode_label(data)
    if values.max() > 255:
        raise ValueError(f"a weight PNG has values 0 to 255; this one has {int(values.max())}")
    return values.astype(np.uint8)


def _checked(pixels: NDArray[Pixel], name: str) -> NDArray[Pixel]:
    if pixels.ndim != 2 or pixels.size == 0 or not np.issubdtype(pixels.dtype, np.integer):
        raise ValueError(
            f"{name} has shape {pixels.shape} and type {pixels.dtype}; expected (H, W) integers, not empty"
        )
    return pixels


def _png(image: Image.Image, exif_orientation: int) -> bytes:
    buffer = io.BytesIO()
    options: dict[str, object] = {}
    if exif_orientation != 1:
        exif = Image.Exif()
        exif[ORIENTATION_TAG] = exif_orientation
        options["exif"] = exif
    image.save(buffer, format="PNG", compress_level=1, compress_type=_RUN_LENGTH, **options)
    return buffer.getvalue()
