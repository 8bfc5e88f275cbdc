"""Files whose pixels are whole are read, whatever else in them is not; values are never read as black."""

import io
import logging
import struct
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms, TiffImagePlugin

from shards.data import images
from shards.data.images import UnreadableImage, decode_image
from shards.data.labels import decode_label, encode_label
from shards.data.vocabulary import Vocabulary

pytestmark = pytest.mark.filterwarnings("ignore")

NOISE = np.random.default_rng(0)
PIXELS = NOISE.integers(0, 256, (24, 30, 3)).astype(np.uint8)


def file_of(pixels: NDArray[np.generic], kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes, crc: int = 0) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data) ^ crc)


def png_with(extra: bytes, *, last: bool, whole: bytes) -> bytes:
    return whole[:-12] + extra + whole[-12:] if last else whole[:33] + extra + whole[33:]


EXTRAS = {
    "profile above 1 MB": chunk(b"iCCP", b"x\0\0" + zlib.compress(NOISE.bytes(1_300_000))),
    "broken profile": chunk(b"iCCP", b"x\0\0not zlib"),
    "compressed text above 1 MB": chunk(b"zTXt", b"k\0\0" + zlib.compress(b"a" * 2_000_000)),
    "international text above 1 MB": chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(b"a" * 2_000_000)),
    "80 MB of texts": b"".join(chunk(b"tEXt", b"k\0" + b"a" * 900_000) for _ in range(80)),
    "wrong checksum of a text": chunk(b"tEXt", b"k\0a", 1),
    "wrong checksum of an unknown chunk": chunk(b"abcd", b"", 1),
    "cut resolution": chunk(b"pHYs", b"\0"),
    "cut gamma": chunk(b"gAMA", b""),
    "cut animation": chunk(b"acTL", b"\0\0"),
    "cut transparency": chunk(b"tRNS", b"\0"),
    "broken EXIF": chunk(b"eXIf", b"junk junk", 1),
}


@pytest.mark.parametrize("last", [False, True], ids=["before the pixels", "after them"])
@pytest.mark.parametrize("extra", EXTRAS)
def test_a_chunk_that_has_nothing_to_do_with_pixels_costs_neither_image_nor_label(extra: str, last: bool) -> None:
    data = png_with(EXTRAS[extra], last=last, whole=file_of(PIXELS))
    np.testing.assert_array_equal(decode_image(data).image, PIXELS)
    ids = NOISE.integers(0, 3, (9, 8))
    label = png_with(EXTRAS[extra], last=last, whole=encode_label(ids, Vocabulary.from_names(["a", "b", "c"])))
    if extra != "cut transparency":  # of a palette one byte is whole
        np.testing.assert_array_equal(decode_label(label), ids)


def test_turn_and_transparency_survive_a_broken_extra() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = png_with(EXTRAS["wrong checksum of a text"], last=False, whole=file_of(PIXELS, exif=exif))
    assert decode_image(turned).exif_orientation == 6
    clear = np.dstack([PIXELS, np.full(PIXELS.shape[:2], 0, np.uint8)])
    seen = png_with(EXTRAS["cut gamma"], last=False, whole=file_of(clear))
    assert (decode_image(seen).image == 255).all()
    palette = Image.fromarray(np.zeros((2, 2), np.uint8))
    palette.putpalette([10, 20, 30])
    buffer = io.BytesIO()
    palette.save(buffer, "PNG", transparency=0)
    assert (decode_image(png_with(EXTRAS["cut gamma"], last=False, whole=buffer.getvalue())).image == 255).all()


@pytest.mark.parametrize("name", [b"IHDR", b"PLTE"])  # that of IDAT Pillow leaves to zlib
def test_a_wrong_checksum_of_a_chunk_with_pixels_stays_damage(name: bytes) -> None:
    palette = Image.fromarray(NOISE.integers(0, 4, (20, 20)).astype(np.uint8))
    palette.putpalette(list(range(12)))
    buffer = io.BytesIO()
    palette.save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    at = data.find(name)
    length = int.from_bytes(data[at - 4 : at], "big")
    data[at + 4 + length] ^= 1
    with pytest.raises(UnreadableImage):
        decode_image(bytes(data))
    with pytest.raises(ValueError, match="not a readable label"):
        decode_label(bytes(data))


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
def test_a_broken_tag_of_a_tiff_costs_no_pixels(compression: str | None) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[305], tags[270], tags[33432] = "a program with a name", "a long description", "rights"
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    whole = file_of(PIXELS, "TIFF", compression=compression, tiffinfo=tags, icc_profile=icc)
    start = struct.unpack_from("<I", whole, 4)[0]
    for entry in range(start + 2, start + 2 + 12 * struct.unpack_from("<H", whole, start)[0], 12):
        if struct.unpack_from("<H", whole, entry)[0] in (305, 270, 33432, 34675):
            for value in (b"\xff" * 10, struct.pack("<HII", 5, 1 << 30, 1 << 31), b"\0" * 10):
                broken = whole[: entry + 2] + value + whole[entry + 12 :]
                np.testing.assert_array_equal(decode_image(broken).image, PIXELS)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
def test_bytes_after_the_end_cost_nothing(kind: str) -> None:
    data = file_of(PIXELS, kind)
    for tail in (b"\0" * 999, b"junk" * 99, data):
        np.testing.assert_array_equal(decode_image(data + tail).image, decode_image(data).image)


def png16(values: NDArray[np.uint16], colour: int) -> bytes:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff16(values: NDArray[np.uint16]) -> bytes:
    height, width, bands = values.shape
    data, depths = values.astype("<u2").tobytes(), struct.pack(f"<{bands}H", *[16] * bands)
    end = 8 + 2 + 12 * 9 + 4
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, bands, end), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [(273, 4, 1, end + len(depths)), (277, 3, 1, bands), (278, 4, 1, height), (279, 4, 1, len(data))]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, 9) + entries + struct.pack("<I", 0) + depths + data


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
@pytest.mark.parametrize("kind", ["grey TIFF", "int32 TIFF", "uint32 TIFF", "grey PNG", "colour PNG", "colour TIFF"])
def test_values_of_fewer_bits_are_scaled_by_their_own_range_with_a_note(kind: str, bits: int) -> None:
    wide = NOISE.integers(0, 1 << bits, (20, 16, 3)).astype(np.uint16)
    wide[0, 0] = (1 << bits) - 1
    grey = wide[..., 0]
    data = {
        "grey TIFF": lambda: file_of(grey, "TIFF"),
        "int32 TIFF": lambda: file_of(grey.astype(np.int32), "TIFF"),
        "uint32 TIFF": lambda: file_of(grey.astype(np.uint32), "TIFF"),
        "grey PNG": lambda: file_of(grey),
        "colour PNG": lambda: png16(wide, 2),
        "colour TIFF": lambda: tiff16(wide),
    }[kind]()
    decoded = decode_image(data)
    wanted = np.repeat(grey[..., None], 3, axis=2) if "colour" not in kind else wide
    np.testing.assert_array_equal(decoded.image, np.floor(wanted * 255.0 / ((1 << bits) - 1) + 0.5).astype(np.uint8))
    assert f"{bits} of the 16 bits" in decoded.note


def test_the_whole_range_of_16_bits_is_read_as_ever_and_without_a_note() -> None:
    wide = NOISE.integers(0, 1 << 16, (20, 16, 4)).astype(np.uint16)
    wide[0, 0] = 65535
    assert decode_image(file_of(wide[..., 0])).note == ""
    np.testing.assert_array_equal(decode_image(file_of(wide[..., 0])).image[..., 0], (wide[..., 0] + 128.0) // 257)
    for data in (png16(wide[..., :3], 2), tiff16(wide[..., :3])):
        np.testing.assert_array_equal(decode_image(data).image, wide[..., :3] >> 8)
        assert decode_image(data).note == ""
    black = np.zeros((4, 4, 3), np.uint16)
    assert (decode_image(png16(black, 2)).image == 0).all()
    assert decode_image(png16(black, 2)).note == ""


def test_transparency_of_fewer_bits_is_scaled_too() -> None:
    wide = NOISE.integers(0, 4096, (6, 5, 4)).astype(np.uint16)
    wide[..., 3] = 4095
    wide[0, 0, :3] = 4095
    np.testing.assert_array_equal(decode_image(png16(wide, 6)).image, ((wide[..., :3] * 255.0 / 4095) + 0.5) // 1)


def test_dark_grey_with_transparency_that_cannot_be_scaled_is_refused_and_not_black() -> None:
    wide = np.stack([NOISE.integers(256, 4096, (6, 5)), np.full((6, 5), 65535)], axis=2).astype(np.uint16)
    with pytest.raises(UnreadableImage, match="save it with 8 bits"):
        decode_image(png16(wide, 4))


def test_a_note_is_logged_once_in_a_process(caplog: pytest.LogCaptureFixture) -> None:
    images._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            decode_image(file_of(np.full((3, 3), 4000, np.uint16)))
    assert len(caplog.records) == 1


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "RGB", "CMYK", "I;16"])
def test_strips_of_an_image_make_the_same_pixels(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(PIXELS.astype(np.uint16)[..., 0] * 257) if mode == "I;16" else Image.fromarray(PIXELS)
    image = image if mode == "I;16" else image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "TIFF" if mode == "CMYK" else "PNG", **({"transparency": 3} if mode == "P" else {}))
    whole = decode_image(buffer.getvalue()).image
    monkeypatch.setattr(images, "_STRIP_PIXELS", 70)
    np.testing.assert_array_equal(decode_image(buffer.getvalue()).image, whole)
