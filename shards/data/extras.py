"""Image files whose pixels are whole though a part that has nothing to do with them is not."""

import struct
import zlib
from typing import Final

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_COLOUR_BYTE: Final = 25  # in the first chunk
_TRANSPARENCY_BYTES: Final = {0: range(2, 3), 2: range(6, 7), 3: range(1, 257)}  # by the kind of colour
_MAX_EXIF_BYTES: Final = 1 << 16
_TIFF_ORDERS: Final = {b"II*\0": "<", b"MM\0*": ">"}
# Size, depth, compression, colour, where the strips or tiles are, turn, predictor, palette, inks, alpha, sample format,
# tables of JPEG, coefficients of YCbCr.
_PIXEL_TAGS: Final = {254, 255, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 347}
_PIXEL_TAGS.update(range(320, 326), range(332, 335), range(336, 347), range(512, 522), range(529, 533))


def without_extras(data: bytes) -> bytes:
    """Return a PNG or TIFF without the parts that its pixels do not need; anything else as it is.

    Of a PNG all critical chunks (those with a capital initial) are kept, damaged ones too, and of the others, if whole:
    `tRNS`, the transparency, and `eXIf`, the turn that makes the picture upright. Of a TIFF the tags that say how its
    pixels are stored keep their values. Profiles, texts and animations go. In libpng and libtiff an error in one of
    them is a warning, too; Pillow refuses the file.

    Args:
        data: A whole file.
    """
    if data.startswith(_SIGNATURE):
        return _png_without_extras(data)
    return _tiff_without_extras(data) if data[:4] in _TIFF_ORDERS else data


def _png_without_extras(data: bytes) -> bytes:
    parts, at = [_SIGNATURE], len(_SIGNATURE)
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        name, end = data[at + 4 : at + 8], at + 12 + length
        if end > len(data):
            break
        if not name[0] & 0x20 or _is_needed(name, length, data[_COLOUR_BYTE], data[at + 4 : end]):
            parts.append(data[at:end])
        at = end
        if name == b"IEND":  # what follows is not part of the picture
            return b"".join(parts)
    return b"".join([*parts, data[at:]])  # cut off, or damaged: the decoder says so


def _is_needed(name: bytes, length: int, colour: int, chunk: bytes) -> bool:
    sizes = {b"tRNS": _TRANSPARENCY_BYTES.get(colour, range(0)), b"eXIf": range(8, _MAX_EXIF_BYTES)}
    if length not in sizes.get(name, range(0)):
        return False
    return zlib.crc32(chunk[:-4]) == int.from_bytes(chunk[-4:], "big")


def _tiff_without_extras(data: bytes) -> bytes:
    order = _TIFF_ORDERS[data[:4]]
    if len(data) < 8:
        return data
    (at,) = struct.unpack_from(order + "I", data, 4)  # of the first picture, the one that is used
    if at + 2 > len(data):
        return data
    (count,) = struct.unpack_from(order + "H", data, at)
    plain = bytearray(data)
    for entry in range(at + 2, min(at + 2 + 12 * count, len(data) - 11), 12):
        (tag,) = struct.unpack_from(order + "H", data, entry)
        if tag not in _PIXEL_TAGS:
            struct.pack_into(order + "HI4x", plain, entry + 2, 1, 1)  # one byte, 0
    return bytes(plain)
