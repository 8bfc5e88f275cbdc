"""Label PNGs give back every id, also above 255, and line up with the stored image."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from shards.data.images import decode_image, to_stored
from shards.data.labels import decode_label, decode_weight, encode_label, encode_weight, legend_of
from shards.data.vocabulary import Vocabulary

SMALL = Vocabulary.from_names(["sky", "road", "tree"])
LABEL = np.array([[0, 1, 2, 255], [2, 255, 0, 1]], np.int32)


def vocabulary_of(count: int) -> Vocabulary:
    return Vocabulary.from_names([f"class {n}" for n in range(count)])


@pytest.mark.parametrize("count", [1, 2, 254, 255, 256, 257, 1000, 65535])
@pytest.mark.parametrize("orientation", [1, 6])
def test_every_id_survives(count: int, orientation: int) -> None:
    vocabulary = vocabulary_of(count)
    label = np.concatenate([np.arange(count), [vocabulary.ignore_index]]).astype(np.int32)[None]
    data = encode_label(label, vocabulary, orientation)
    decoded = decode_label(data)
    assert decoded.dtype == np.int32
    np.testing.assert_array_equal(decoded, label)
    coloured = encode_label(label, vocabulary, orientation, palette=True)
    np.testing.assert_array_equal(decode_label(coloured), label)
    for png, small in ((data, "L"), (coloured, "P")):
        with Image.open(io.BytesIO(png)) as image:
            assert image.mode == (small if count <= 255 else "I;16")


def test_with_a_palette_small_vocabularies_are_drawn_in_their_colours_and_ignore_in_black() -> None:
    with Image.open(io.BytesIO(encode_label(LABEL, SMALL, palette=True))) as image:
        assert (image.mode, image.format) == ("P", "PNG")
        np.testing.assert_array_equal(np.asarray(image), LABEL)
        colours = np.asarray(image.convert("RGB"))
    assert tuple(colours[0, 3]) == (0, 0, 0)
    for index, entry in enumerate(SMALL.classes):
        assert tuple(colours[np.equal(LABEL, index)][0]) == entry.colour


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("count", [3, 300])
def test_label_lines_up_with_the_stored_image(orientation: int, count: int) -> None:
    upright = (np.arange(6).reshape(2, 3) % 3).astype(np.uint8)
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(to_stored(np.repeat(upright[:, :, None] * 100, 3, axis=2), orientation)).save(
        buffer, "PNG", exif=exif
    )
    decoded = decode_image(buffer.getvalue())
    assert decoded.exif_orientation == orientation
    label = decoded.image[:, :, 0].astype(np.int32) // 100
    data = encode_label(label, vocabulary_of(count), decoded.exif_orientation)
    weight = encode_weight((label * 100).astype(np.uint8), decoded.exif_orientation)
    with Image.open(buffer) as photo, Image.open(io.BytesIO(data)) as plain, Image.open(io.BytesIO(weight)) as grey:
        assert photo.size == plain.size == grey.size
        np.testing.assert_array_equal(np.asarray(photo)[:, :, 0] // 100, np.asarray(plain))
        np.testing.assert_array_equal(np.asarray(photo)[:, :, 0], np.asarray(grey))
        np.testing.assert_array_equal(np.asarray(ImageOps.exif_transpose(plain)), upright)
    np.testing.assert_array_equal(decode_label(data), upright)
    np.testing.assert_array_equal(decode_weight(weight), upright * 100)


def test_legend_names_every_id_and_its_colour() -> None:
    legend = legend_of(Vocabulary.from_names(["sky", "bag, handbag"]))
    assert [(entry.id, entry.name, entry.synonyms) for entry in legend.classes] == [
        (0, "sky", ("sky",)),
        (1, "bag", ("bag", "handbag")),
    ]
    assert legend.ignore_index == 255
    assert legend_of(vocabulary_of(300)).ignore_index == 65535


def test_same_label_same_bytes() -> None:
    assert encode_label(LABEL, SMALL) == encode_label(LABEL.astype(np.int64).copy(order="F"), SMALL)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int64])
def test_all_integer_types_are_taken(dtype: type[np.integer]) -> None:
    np.testing.assert_array_equal(decode_label(encode_label(LABEL.astype(dtype), SMALL)), LABEL)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.array([[3]]), "id 3"),
        (np.array([[-1]]), "id -1"),
        (np.array([[256]]), "id 256"),
        (np.zeros((0, 4), int), "not empty"),
        (np.zeros((2, 2, 1), int), r"\(H, W\)"),
        (np.zeros((2, 2), float), "integers"),
        (np.zeros((2, 2), bool), "integers"),
    ],
)
def test_maps_that_are_no_labels_are_refused(label: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode_label(label, SMALL)


def test_8_bit_ignore_is_no_ignore_above_255_classes() -> None:
    with pytest.raises(ValueError, match="id 400"):
        encode_label(np.array([[400]]), vocabulary_of(300))
    assert decode_label(encode_label(np.array([[255, 65535]]), vocabulary_of(300))).tolist() == [[255, 65535]]


@pytest.mark.parametrize(("depth", "colour"), [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (1, 3), (2, 3), (4, 3), (8, 3)])
def test_index_pngs_of_all_depths_give_their_ids(depth: int, colour: int) -> None:
    top = 2**depth - 1
    bits = {1: b"\x40", 2: b"\x1c", 4: b"\x0f", 8: b"\x00\xff", 16: b"\0\0\xff\xff"}[depth]
    width = 2 if depth > 2 else 3 if depth == 2 else 2
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0))]
    if colour == 3:
        chunks.append((b"PLTE", bytes(3 * min(256, 2**depth))))
    chunks += [(b"IDAT", zlib.compress(b"\0" + bits)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    expected = [0, 1, 3] if depth == 2 else [0, top]
    assert decode_label(b"\x89PNG\r\n\x1a\n" + body).tolist() == [expected]


def test_files_that_are_no_index_pngs_are_refused() -> None:
    jpeg, rgb = io.BytesIO(), io.BytesIO()
    Image.new("L", (4, 4)).save(jpeg, "JPEG")
    Image.new("RGB", (4, 4)).save(rgb, "PNG")
    whole = encode_label(LABEL, SMALL)
    for data in (b"", b"text", jpeg.getvalue(), whole[:30], whole[:-30]):
        with pytest.raises(ValueError, match="label PNG"):
            decode_label(data)
    with pytest.raises(ValueError, match="mode RGB"):
        decode_label(rgb.getvalue())


def test_gigantic_labels_are_refused_before_they_are_unpacked() -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    with pytest.raises(ValueError, match="label PNG"):
        decode_label(b"\x89PNG\r\n\x1a\n" + chunk)


def test_weights_survive_and_other_types_are_refused() -> None:
    weight = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(decode_weight(encode_weight(weight)), weight)
    with pytest.raises(ValueError, match="uint8"):
        encode_weight(weight.astype(np.int32))
    with pytest.raises(ValueError, match="values 0 to 255"):
        decode_weight(encode_label(np.array([[299]]), vocabulary_of(300)))


def test_grey_in_several_channels_is_refused_with_what_to_save() -> None:
    for mode in ("RGB", "RGBA", "LA"):
        data = io.BytesIO()
        Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8)).convert(mode).save(data, "PNG")
        with pytest.raises(ValueError, match=f"mode {mode}.*all of them are grey, save one channel alone"):
            decode_label(data.getvalue())


def test_a_pointer_and_a_page_in_place_of_a_label_are_named() -> None:
    for data, what in ((b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"), (b"<html>", "web page")):
        with pytest.raises(ValueError, match=what):
            decode_label(data)
