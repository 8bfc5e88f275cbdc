"""Any bytes become upright RGB pixels, or UnreadableImage with a reason."""

import io
import pickle
import struct
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from shards.data.images import MAX_PIXELS, ORIENTATION_TAG, UnreadableImage, decode_image, to_stored, to_upright

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow warns about each oddity of a hostile file

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)


def file_of(image: Image.Image, kind: str = "PNG", orientation: int | None = None) -> bytes:
    buffer = io.BytesIO()
    options: dict[str, object] = {}
    if orientation is not None:
        exif = Image.Exif()
        exif[ORIENTATION_TAG] = orientation
        options["exif"] = exif
    if kind == "JPEG":
        options |= {"quality": 95, "subsampling": 0}
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def reason_of(data: bytes) -> str:
    with pytest.raises(UnreadableImage) as caught:
        decode_image(data)
    assert caught.value.detail
    return caught.value.reason


def png(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 64)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_lossless_formats_give_the_same_pixels(kind: str) -> None:
    decoded = decode_image(file_of(Image.fromarray(PIXELS), kind))
    assert decoded.exif_orientation == 1
    assert decoded.image.dtype == np.uint8
    np.testing.assert_array_equal(decoded.image, PIXELS)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_formats_are_decoded(kind: str) -> None:
    smooth = np.full((40, 30, 3), (200, 100, 50), np.uint8)
    decoded = decode_image(file_of(Image.fromarray(smooth), kind)).image
    assert decoded.shape == smooth.shape
    assert np.abs(decoded.astype(int) - smooth).max() < 8


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "WEBP"])
def test_exif_orientation_turns_the_image_upright(kind: str, orientation: int) -> None:
    data = file_of(Image.fromarray(PIXELS), kind, orientation)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        stored = np.asarray(image.convert("RGB"))
    decoded = decode_image(data)
    np.testing.assert_array_equal(decoded.image, expected)
    assert decoded.exif_orientation == (1 if kind == "TIFF" else orientation)
    np.testing.assert_array_equal(to_stored(decoded.image, decoded.exif_orientation), stored)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_orientation_out_of_range_counts_as_none(orientation: int) -> None:
    assert decode_image(file_of(Image.fromarray(PIXELS), "PNG", orientation)).exif_orientation == 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_to_stored_undoes_to_upright(orientation: int) -> None:
    np.testing.assert_array_equal(to_stored(to_upright(PIXELS, orientation), orientation), PIXELS)
    with pytest.raises(ValueError, match="orientation 9"):
        to_upright(PIXELS, 9)


def test_broken_exif_does_not_cost_the_image() -> None:
    jpeg = file_of(Image.fromarray(PIXELS), "JPEG", 6)
    assert decode_image(jpeg.replace(b"Exif\0\0MM", b"Exif\0\0XX").replace(b"Exif\0\0II", b"Exif\0\0XX")).image.size


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_all_pixel_modes_become_rgb(mode: str) -> None:
    source = (
        Image.fromarray(PIXELS[:, :, 0].astype(np.uint16)) if mode == "I;16" else Image.fromarray(PIXELS).convert(mode)
    )
    kind = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    decoded = decode_image(file_of(source, kind)).image
    assert decoded.shape == (5, 7, 3)
    assert decoded.dtype == np.uint8


def test_cmyk_keeps_its_colours() -> None:
    orange = np.full((16, 16, 3), (240, 120, 20), np.uint8)
    decoded = decode_image(file_of(Image.fromarray(orange).convert("CMYK"), "JPEG")).image
    assert np.abs(decoded.astype(int) - orange).max() < 12


def test_16_bit_grey_is_divided_by_257() -> None:
    wide = np.array([[0, 257, 65535, 128, 129, 32768]], np.uint16)
    for kind in ("PNG", "TIFF"):
        decoded = decode_image(file_of(Image.fromarray(wide), kind)).image
        np.testing.assert_array_equal(decoded[0], np.array([[0, 1, 255, 0, 1, 128]] * 3).T)


def test_transparency_goes_over_white() -> None:
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, 3] = (0, 255, 128)
    np.testing.assert_array_equal(decode_image(file_of(Image.fromarray(pixels))).image[0, :, 0], [255, 0, 127])
    palette = Image.fromarray(np.array([[0, 1]], np.uint8))
    palette.putpalette([9, 9, 9, 20, 30, 40])
    palette.info["transparency"] = 0
    np.testing.assert_array_equal(decode_image(file_of(palette)).image[0], [[255, 255, 255], [20, 30, 40]])


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (3, 2)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
def test_tiny_and_thin_images_are_decoded(kind: str, size: tuple[int, int]) -> None:
    assert decode_image(file_of(Image.new("RGB", size, (9, 9, 9)), kind)).image.shape == (size[1], size[0], 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
def test_every_truncation_is_refused_and_never_half_decoded(kind: str) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (24, 24, 3)).astype(np.uint8)
    whole = file_of(Image.fromarray(noise), kind)
    cuts = sorted({1, 2, 3, 4, 7, 8, 12, 20, 30, 50, len(whole) // 4, len(whole) // 2, len(whole) * 3 // 4})
    reasons = {cut: reason_of(whole[:cut]) for cut in cuts}
    assert set(reasons.values()) <= {"truncated", "damaged", "too_small"}, reasons
    if kind in ("PNG", "JPEG", "WEBP"):
        assert reasons[len(whole) // 2] == "truncated"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"this is a text named .png, more than sixteen", "not_an_image"),
        (b"\0" * 1000, "not_an_image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not_an_image"),
        (b"%PDF-1.4 ...", "unsupported_format"),
        (b"\0\0\0\x20ftypheic" + b"\0" * 40, "unsupported_format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not_an_image"),
    ],
)
def test_files_that_are_no_images_are_told_apart(data: bytes, reason: str) -> None:
    assert reason_of(data) == reason


def test_other_image_formats_are_named() -> None:
    for kind in ("GIF", "ICO"):
        assert reason_of(file_of(Image.fromarray(PIXELS), kind)) == "unsupported_format"
    for array in (np.zeros((2, 2), np.float32), np.full((2, 2), 70_000, np.int32)):
        assert reason_of(file_of(Image.fromarray(array), "TIFF")) == "unsupported_format"


def test_gigantic_images_are_refused_before_they_are_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reason_of(png(60_000, 60_000)) == "too_large"
    assert reason_of(png(10_000, MAX_PIXELS // 10_000 + 1)) == "too_large"
    monkeypatch.setattr("shards.data.images.MAX_PIXELS", 35)
    assert decode_image(file_of(Image.fromarray(PIXELS))).image.size
    monkeypatch.setattr("shards.data.images.MAX_PIXELS", 34)
    assert reason_of(file_of(Image.fromarray(PIXELS))) == "too_large"
    assert reason_of(png(0, 5)) in ("damaged", "truncated", "too_small")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
def test_no_bytes_raise_anything_else(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.data.images.MAX_PIXELS", 1_000_000)
    rng = np.random.default_rng(2)
    whole = np.frombuffer(file_of(Image.fromarray(PIXELS), kind, 3 if kind != "BMP" else None), np.uint8)
    for _ in range(300):
        broken: NDArray[np.uint8] = whole.copy()
        places = rng.integers(0, len(whole), rng.integers(1, 6))
        broken[places] = rng.integers(0, 256, len(places))
        try:
            image = decode_image(broken.tobytes()).image
        except UnreadableImage:
            continue
        assert image.ndim == 3


def test_reason_survives_the_way_from_a_worker() -> None:
    error = pickle.loads(pickle.dumps(UnreadableImage("empty", "no bytes")))  # noqa: S301
    assert (error.reason, error.detail) == ("empty", "no bytes")


def test_what_a_download_or_a_clone_left_in_place_of_an_image_is_named() -> None:
    for data, what in (
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"<!doctype html>", "page"),
    ):
        with pytest.raises(UnreadableImage, match=what) as caught:
            decode_image(data)
        assert caught.value.reason == "not_an_image"
    with pytest.raises(UnreadableImage, match=r"a \.heic file; save it as JPEG or PNG"):
        decode_image(b"\0\0\0\x18ftypheic" + bytes(64))
