"""Decoding of image files: upright RGB pixels, or the reason why not."""

import io
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from shards.data.extras import without_extras
from shards.data.image_kinds import ENDINGS, IMAGE_ENDINGS, START_BYTES, image_format, other_picture
from shards.files.stand_ins import stand_in

logger = logging.getLogger(__name__)

Pixel = TypeVar("Pixel", bound=np.generic)

IMAGE_FORMATS: tuple[str, ...] = tuple(ENDINGS)
IMAGE_SUFFIXES: frozenset[str] = IMAGE_ENDINGS
MAX_PIXELS = 89_478_485  # Pillow's own limit: a quarter of a gigabyte of RGB
ORIENTATION_TAG = 0x0112

# Reasons that say nothing about the image, only that its file is not there as planned: it may come back.
PASSING_REASONS: frozenset[str] = frozenset({"missing", "changed", "unreadable_file"})

# Only to explain what Pillow could not identify; decides nothing.
_KNOWN_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM")

_STRIP_PIXELS: Final = 1 << 22  # an image is turned into RGB by strips: 89 megapixels need 2 copies less
_BITS: Final = (8, 10, 12, 14, 16)  # of the values that cameras and scanners put into files of 16 or 32 bits
_DARK: Final = 64  # high bytes below this belong to values of at most 14 bits


class UnreadableImage(ValueError):  # noqa: N818 - the reason code is what callers look at
    """An image that cannot be used.

    Attributes:
        reason: A code for statistics: empty, truncated, damaged, not_an_image, unsupported_format, too_large,
            too_small; from sources also missing, unreadable_file, changed, not_a_file.
        detail: What was found, for people.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["UnreadableImage"], tuple[str, str]]:
        """Pickle by the arguments, so that it survives the way from a worker process."""
        return UnreadableImage, (self.reason, self.detail)


class ImageFrame(NamedTuple):
    """How an image's file stores its pixels: what decides how a label map lies on it.

    Attributes:
        size_hw: The upright image's size in pixels.
        exif_orientation: 1..8, how the stored pixels are turned upright (`to_upright`); 1: as they are.
    """

    size_hw: tuple[int, int]
    exif_orientation: int = 1

    @property
    def stored_hw(self) -> tuple[int, int]:
        """The size of the pixels as stored."""
        return self.size_hw[::-1] if self.exif_orientation >= 5 else self.size_hw


@dataclass(frozen=True)
class DecodedImage:
    """A decoded image.

    Attributes:
        image: (H, W, 3) uint8 RGB, upright.
        exif_orientation: 1..8, how the stored pixels were turned upright (`to_upright`); 1: as they are.
        note: What a user should know of how it was read; "" for most.
    """

    image: NDArray[np.uint8]
    exif_orientation: int
    note: str = ""

    @property
    def frame(self) -> ImageFrame:
        """Its size and orientation."""
        return ImageFrame((self.image.shape[0], self.image.shape[1]), self.exif_orientation)


def decode_image(data: bytes) -> DecodedImage:
    """Decode an image file.

    Transparent pixels are blended with white, 16-bit values are divided by 257, CMYK becomes RGB, and of several frames
    the first is used. Values of 8, 10, 12 or 14 bits in a file of 16 or 32 are scaled by their own range, with a note.
    What has nothing to do with the pixels, such as an EXIF block or a colour profile, may be damaged.

    Args:
        data: The whole file: JPEG, PNG, WebP, TIFF or BMP, of at most `MAX_PIXELS`.

    Raises:
        UnreadableImage: The bytes are no usable image; no other error is raised, whatever they are.
    """
    if not data:
        raise UnreadableImage("empty", "the file has no bytes")
    try:
        image, raw_mode = load_image(data)
        orientation = orientation_of(image)  # after load: Pillow turns TIFFs upright itself and drops the tag
        pixels, note = _rgb(image, data, raw_mode)
        del image
    except UnreadableImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImage("too_large", str(error)) from error
    except UnidentifiedImageError as error:
        raise _unidentified(data) from error
    except Exception as error:
        # Pillow's readers raise any exception on hostile bytes; one bad file must not stop the others.
        reason = "truncated" if _tells_of_missing_bytes(error, data) else "damaged"
        raise UnreadableImage(reason, f"{type(error).__name__}: {error}") from error
    if note:
        _warn_once(note)
    return DecodedImage(to_upright(pixels, orientation), orientation, note)


class LoadedFile(NamedTuple):
    """An unpacked image file.

    Attributes:
        image: Pillow's image, loaded.
        raw_mode: How its pixels are stored, such as "RGB;16B".
    """

    image: Image.Image
    raw_mode: str


def load_image(data: bytes, formats: tuple[str, ...] = IMAGE_FORMATS) -> LoadedFile:
    """Open an image file and unpack its pixels.

    A PNG or TIFF that fails is tried again without its profiles, texts and the like (`without_extras`).

    Raises:
        UnreadableImage: It has too many pixels, or none.
        Exception: Pillow's, of any class: it is damaged, or of another format.
    """
    try:
        return _load(data, formats)
    except UnreadableImage:
        raise
    except Exception:
        plain = without_extras(data)
        if plain == data:
            raise
    return _load(plain, formats)


def as_others_read(data: bytes) -> bytes:
    """Return an image file that other programs open, too: as it is, or without the extras that Pillow refuses.

    Args:
        data: A file that `decode_image` reads.
    """
    # JPEG and WebP files are read with whatever extras they have: only the others are worth a second decoding.
    if image_format(data[:START_BYTES]) not in ("PNG", "TIFF"):
        return data
    try:
        _load(data, IMAGE_FORMATS)
    except Exception:  # noqa: BLE001 - it was decoded before: what fails now are its extras
        return without_extras(data)
    return data


def _load(data: bytes, formats: tuple[str, ...], *, low_bytes: bool = False) -> LoadedFile:
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # another library may have switched it on for the whole process
    image = Image.open(io.BytesIO(data), formats=formats)
    width, height = image.size
    if width * height > MAX_PIXELS:  # before it is unpacked
        raise UnreadableImage("too_large", f"{width} x {height} pixels; at most {MAX_PIXELS} are taken")
    if min(width, height) < 1:
        raise UnreadableImage("too_small", f"{width} x {height} pixels; each side needs 1")
    tiles = list(image.tile)
    if low_bytes:
        # Of 16-bit colours Pillow keeps the high byte. Read in the other byte order, that is the low one.
        other = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
        swapped = [(mode := _raw_mode(tile))[:-1] + other[mode[-1]] for tile in tiles]
        image.tile = [
            tile._replace(args=mode if isinstance(tile.args, str) else (mode, *(tile.args or ())[1:]))
            for tile, mode in zip(tiles, swapped, strict=True)
        ]
    image.load()
    return LoadedFile(image, _raw_mode(tiles[0]) if tiles else "")


def _raw_mode(tile: ImageFile._Tile) -> str:
    return tile.args if isinstance(tile.args, str) else str(tile.args[0] if tile.args else "")


def to_upright(stored: NDArray[Pixel], orientation: int) -> NDArray[Pixel]:
    """Turn stored pixels upright.

    Args:
        stored: (H, W) or (H, W, C).
        orientation: EXIF orientation, 1..8.

    Raises:
        ValueError: Another orientation.
    """
    if not 1 <= orientation <= 8:
        raise ValueError(f"EXIF orientation {orientation} does not exist; expected 1 to 8")
    turned = stored.swapaxes(0, 1) if orientation >= 5 else stored
    flip_rows = orientation in (3, 4, 7, 8)
    flip_columns = orientation in (2, 3, 6, 7)
    return np.ascontiguousarray(turned[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1])


def to_stored(upright: NDArray[Pixel], orientation: int) -> NDArray[Pixel]:
    """Undo `to_upright`: return the pixels as a file with that EXIF orientation stores them."""
    # All turns are their own inverses but the two by 90 degrees.
    return to_upright(upright, {6: 8, 8: 6}.get(orientation, orientation))


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation, 1..8, of an image that was loaded; 1 if it has none that can be read."""
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # noqa: BLE001 - a broken EXIF block does not make the pixels unusable
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _rgb(image: Image.Image, data: bytes, raw_mode: str) -> tuple[NDArray[np.uint8], str]:
    """Return (H, W, 3) uint8 pixels, not turned, and a note."""
    if image.mode == "F":
        raise UnreadableImage("unsupported_format", "floating-point pixels; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        return _grey(image)
    note = ""
    if ";16" in raw_mode and image.mode in ("RGB", "RGBA"):
        image, note = _scaled_colours(image, data)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    transparent = image.has_transparency_data
    for top, strip in _strips(image):
        if transparent:
            behind = Image.new("RGBA", strip.size, (255, 255, 255, 255))
            behind.alpha_composite(strip.convert("RGBA"))
            strip = behind
        pixels[top : top + strip.height] = np.asarray(strip.convert("RGB"))
    return pixels, note


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _grey(image: Image.Image) -> tuple[NDArray[np.uint8], str]:
    ends = [(int(wide.min()), int(wide.max())) for wide in (np.asarray(strip) for _, strip in _strips(image))]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    if low < 0 or high > 65535:
        raise UnreadableImage("unsupported_format", "grey values of more than 16 bits; save it with 8 or 16")
    bits = _bits(high)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top, strip in _strips(image):
        pixels[top : top + strip.height] = _to_8_bits(np.asarray(strip).astype(np.int64), bits)[:, :, None]
    return pixels, _note(bits, high)


def _scaled_colours(image: Image.Image, data: bytes) -> tuple[Image.Image, str]:
    """Return an image of 16-bit colours with 8, and a note; one that uses all 16 bits as Pillow reads it."""
    brightest = int(np.max([np.max(band) for band in image.getextrema()[:3]]))
    if brightest >= _DARK:
        return image, ""
    try:
        low = _load(data, IMAGE_FORMATS, low_bytes=True).image
    except Exception as error:
        if not brightest:  # black in any case
            return image, ""
        text = f"16-bit colours of which the brightest is {brightest / 256:.0%} of white; save it with 8 bits"
        raise UnreadableImage("unsupported_format", text) from error
    wide = np.asarray(image).astype(np.int64) * 256 + np.asarray(low)
    high = int(wide[..., :3].max())
    narrow = _to_8_bits(wide, _bits(high))
    if image.mode == "RGBA":
        narrow[..., 3] = _to_8_bits(wide[..., 3], _bits(int(wide[..., 3].max())))
    return Image.fromarray(narrow), _note(_bits(high), high)


def _bits(high: int) -> int:
    return next(bits for bits in _BITS if high < 1 << bits)


def _to_8_bits(wide: NDArray[np.int64], bits: int) -> NDArray[np.uint8]:
    top = (1 << bits) - 1
    return ((wide * 255 + top // 2) // top).clip(0, 255).astype(np.uint8)


def _note(bits: int, high: int) -> str:
    if bits == 16 or high == 0:
        return ""
    return f"its values need {bits} of the 16 bits or more that they are stored in: scaled to {bits} bits, not to 16"


@cache
def _warn_once(note: str) -> None:
    # Of a data set of such images, one line in each process.
    logger.warning("an image was read by its own range: %s", note)


def _unidentified(data: bytes) -> UnreadableImage:
    foreign = other_picture(data[:START_BYTES])
    if foreign in (".heic", ".avif", ".cr3"):
        return UnreadableImage("unsupported_format", f"a {foreign} file; save it as JPEG or PNG")
    if foreign not in (None, ".svg"):
        return UnreadableImage("unsupported_format", f"a {foreign} file; expected one of {', '.join(IMAGE_FORMATS)}")
    if data.startswith(_KNOWN_STARTS) or any(start.startswith(data) for start in _KNOWN_STARTS):
        return UnreadableImage("truncated", f"begins like an image and breaks off ({len(data)} bytes)")
    what = stand_in(data[:START_BYTES])
    return UnreadableImage("not_an_image", f"begins with {data[:16]!r}" if what is None else f"is {what}")


def _tells_of_missing_bytes(error: Exception, data: bytes) -> bool:
    if data.startswith(b"RIFF") and int.from_bytes(data[4:8], "little") + 8 > len(data):
        return True
    text = str(error).lower()
    return isinstance(error, EOFError) or any(word in text for word in ("truncat", "not enough", "broken png"))
