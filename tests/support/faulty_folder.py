"""A folder of photographs as people have them, with one fault of each kind, and its labels."""

import hashlib
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

NAMES = ("grass", "water", "sand")
_COLOURS = np.array([(60, 150, 60), (50, 90, 200), (220, 200, 130)], np.uint8)


def picture(index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return a (64, 96, 3) picture and its (64, 96) ids: grass, water, and a block of sand that moves with `index`."""
    label = np.zeros((64, 96), np.uint8)
    label[:, 48:] = 1
    y, x = 8 + 4 * (index % 6), 10 + 7 * (index % 8)
    label[y : y + 24, x : x + 30] = 2
    noise = np.random.default_rng(index).integers(-12, 13, (64, 96, 3))
    return np.clip(_COLOURS[label].astype(int) + noise, 0, 255).astype(np.uint8), label


def encoded(pixels: NDArray[np.generic], kind: str, **options: object) -> bytes:
    """Return an image file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def with_wrong_checksum(png: bytes) -> bytes:
    """Return a PNG with an extra text chunk whose checksum is wrong; its pixels are intact."""
    body = b"tEXt" + b"Comment\0scanned"
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body) ^ 1)
    return png[:33] + chunk + png[33:]


def with_long_text(png: NDArray[np.uint8]) -> bytes:
    """Return a PNG with two megabytes of text, as scanners and editors write it."""
    info = PngImagePlugin.PngInfo()
    info.add_text("history", "x" * 2_000_000, zip=True)
    return encoded(png, "PNG", pnginfo=info)


def make_faulty_folder(root: Path) -> tuple[Path, Path]:
    """Write the folders; return that of the photographs and that of the labels."""
    photos, labels = root / "photos", root / "labels"
    photos.mkdir(parents=True)
    labels.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    for index in range(8):
        image, label = picture(index)
        (photos / f"good{index}.jpg").write_bytes(encoded(image, "JPEG", quality=95))
        (labels / f"good{index}.png").write_bytes(encoded(label, "PNG"))
    stored, label = (np.ascontiguousarray(np.rot90(one)) for one in picture(8))
    (photos / "turned.jpg").write_bytes(encoded(stored, "JPEG", quality=95, exif=exif))
    (labels / "turned.png").write_bytes(encoded(label, "PNG"))
    image, label = picture(9)
    # Intact, under names and with side data that readers stumble over.
    (photos / "f00d").write_bytes(encoded(image, "JPEG"))
    (photos / "camera.jfif").write_bytes(encoded(image, "JPEG"))
    (photos / "upper.JPEG").write_bytes(encoded(image, "JPEG"))
    (photos / "scanner.png").write_bytes(with_long_text(image))
    (photos / "checksum.png").write_bytes(with_wrong_checksum(encoded(image, "PNG")))
    Path(os.fsdecode(os.fsencode(photos) + b"/caf\xe9.png")).write_bytes(encoded(image, "PNG"))
    # Masks beside photographs.
    (photos / "good0.png").write_bytes(encoded(picture(0)[1], "PNG"))
    # Not images, or not readable ones.
    (photos / "broken.jpg").write_bytes(encoded(image, "JPEG")[:600])
    (photos / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(64))
    (photos / "moving.gif").write_bytes(encoded(image, "GIF"))
    for name in ("Thumbs.db", "._good1.jpg", "notes.txt", ".DS_Store"):
        (photos / name).write_bytes(b"Mac OS X")
    (photos / "linked").symlink_to(labels, target_is_directory=True)
    # Labels that fit nothing.
    (labels / "good2.png").write_bytes(encoded(np.zeros((32, 48), np.uint8), "PNG"))
    (labels / "good3.png").write_bytes(b"no image")
    (labels / "good4.png").write_bytes(encoded(np.full((64, 96), 7, np.uint8), "PNG"))
    return photos, labels


def folder_digest(folder: Path) -> str:
    """Return a checksum over names, kinds and bytes of all that is in a folder."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*"), key=os.fsencode):
        total.update(os.fsencode(path.relative_to(folder)) + b"\0")
        if path.is_symlink():
            total.update(os.fsencode(path.readlink()))
        elif path.is_file():
            total.update(path.read_bytes())
    return total.hexdigest()
