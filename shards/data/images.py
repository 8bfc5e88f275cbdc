"""Decoding of image files: upright RGB pixels, or the reason why not."""

import io
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

Pixel = TypeVar("Pixel", bound=np.generic)

IMAGE_SUFFIXES: frozenset[str] = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"})
IMAGE_FORMATS: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")
MAX_PIXELS = 89_478_485  # Pillow's own limit: a quarter of a gigabyte of RGB
ORIENTATION_TAG = 0x0112

# Reasons that say nothing about the image, only that its file is not there as planned: it may come back.
PASSING_REASONS: frozenset[str] = frozenset({"missing", "changed", "unreadable_file"})

# Only to explain what Pillow could not identify; neither list decides what is decoded.
_KNOWN_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM")
_FOREIGN_STARTS = (
    (b"GIF8", "GIF"),
    (b"%PDF", "PDF"),
    (b"8BPS", "Photoshop"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\0\0\1\0", "icon"),
    (b"v/1\1", "OpenEXR"),
    (b"SIMPLE  =", "FITS"),
)


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
    """

    image: NDArray[np.uint8]
    exif_orientation: int

    @property
    def frame(self) -> ImageFrame:
        """Its size and orientation."""
        return ImageFrame((self.image.shape[0], self.image.shape[1]), self.exif_orientation)


def decode_image(data: bytes) -> DecodedImage:
    """Decode an image file.

    Transparent pixels are blended with white, 16-bit grey is divided by 257, CMYK becomes RGB, and of several frames
    the first is used. An EXIF block that cannot be read is ignored.

    Args:
        data: The whole file: JPEG, PNG, WebP, TIFF or BMP, of at most `MAX_PIXELS`.

    Raises:
        UnreadableImage: The bytes are no usable image; no other error is raised, whatever they are.
    """
    if not data:
        raise UnreadableImage("empty", "the file has no bytes")
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # another library may have switched it on for the whole process
    try:
        image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
        width, height = image.size
        if width * height > MAX_PIXELS:  # before it is unpacked
            raise UnreadableImage("too_large", f"{width} x {height} pixels; at most {MAX_PIXELS} are taken")
        if min(width, height) < 1:
            raise UnreadableImage("too_small", f"{width} x {height} pixels; each side needs 1")
        image.load()
        orientation = _orientation(image)  # after load: Pillow turns TIFFs upright itself and drops the tag
        pixels = _rgb(image)
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
    return DecodedImage(to_upright(pixels, orientation), orientation)


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


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # noqa: BLE001 - a broken EXIF block does not make the pixels unusable
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise UnreadableImage("unsupported_format", "grey values of more than 16 bits")
        grey = ((wide + 128) // 257).astype(np.uint8)  # 65535 = 255 * 257
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise UnreadableImage("unsupported_format", "floating-point pixels")
    if image.has_transparency_data:
        transparent = image.convert("RGBA")
        image = Image.new("RGBA", transparent.size, (255, 255, 255, 255))
        image.alpha_composite(transparent)
    return np.array(image.convert("RGB"), dtype=np.uint8)


def _unidentified(data: bytes) -> UnreadableImage:
    for start, name in _FOREIGN_STARTS:
        if data.startswith(start):
            return UnreadableImage("unsupported_format", f"a {name} file; expected one of {', '.join(IMAGE_FORMATS)}")
    if data[4:8] == b"ftyp":
        return UnreadableImage("unsupported_format", f"a {data[8:12]!r} file (HEIC, AVIF); save it as JPEG or PNG")
    if data.startswith(_KNOWN_STARTS) or any(start.startswith(data) for start in _KNOWN_STARTS):
        return UnreadableImage("truncated", f"begins like an image and breaks off ({len(data)} bytes)")
    return UnreadableImage("not_an_image", f"begins with {data[:16]!r}")


def _tells_of_missing_bytes(error: Exception, data: bytes) -> bool:
    if data.startswith(b"RIFF") and int.from_bytes(data[4:8], "little") + 8 > len(data):
        return True
    text = str(error).lower()
    return isinstance(error, EOFError) or any(word in text for word in ("truncat", "not enough", "broken png"))
