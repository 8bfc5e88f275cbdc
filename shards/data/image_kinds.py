"""What a file is, by its first bytes and its ending: an image that can be decoded, another picture, or neither."""

from collections.abc import Callable
from pathlib import PurePath
from typing import Final

START_BYTES: Final = 512  # enough for every format below; an SVG may begin with a comment

# The endings of the formats that are decoded, the usual one first: it names the member of a tar.
ENDINGS: Final[dict[str, tuple[str, ...]]] = {
    "JPEG": (".jpg", ".jpeg", ".jfif", ".jpe", ".jif", ".jfi", ".mpo", ".pjpeg", ".pjp"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff", ".btf", ".tf8"),
    "BMP": (".bmp",),
}
IMAGE_ENDINGS: Final = frozenset(ending for endings in ENDINGS.values() for ending in endings)
# Members of tars keep these as their names; others are named by what is in them.
_PLAIN_ENDINGS: Final = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"})

OTHER: Final = "other file"  # whatever is no picture


def _endings(words: str) -> frozenset[str]:
    return frozenset(f".{word}" for word in words.split())


# Camera raw files are TIFFs by their first bytes, in which Pillow finds a preview of some hundred pixels.
_RAW: Final = _endings(
    "3fr arw cr2 cr3 crw dcr dng erf fff iiq kdc mef mos mrw nef nrw orf pef raf raw rw2 rwl sr2 srf srw x3f"
)
# Other pictures: worth a word where they are left out. A file that is called so and is a JPEG is taken.
_PICTURES: Final = _RAW | _endings(
    "ai avif avifs cur dcm dds dpx emf eps exr fits gif hdr heic heics heif hif icns ico j2c j2k jng jp2 jpc jpf jpx "
    "jxl jxr mng nii pam pbm pcx pfm pgm pic pnm ppm psb psd qoi ras sgi svg svgz tga wbmp wdp wmf xbm xcf xpm"
)
# What may hold pictures, and what a tool keeps of a picture that it changes or has not finished: named, never opened.
_HOLDERS: Final = _endings("7z avi bz2 gz m4v mkv mov mp4 pdf rar tar tgz webm xz zip zst")
_COPIES: Final = _endings("bak crdownload download jpg_original old orig part partial swp tmp")
# What is no picture, and may stand next to each of a million: never opened.
_SIDE_FILES: Final = _endings(
    "aae cfg csv db doc docx h5 hdf5 htm html ini ipynb js json jsonl lock log md mp3 npy npz parquet pickle pkl proto "
    "pt pth py pyc safetensors sh toml tsv txt url wav xml xmp yaml yml"
)

_OTHER_STARTS: Final = (
    (b"GIF8", ".gif"),
    (b"%PDF", ".pdf"),
    (b"8BPS", ".psd"),
    (b"\0\0\0\x0cjP  ", ".jp2"),
    (b"\xff\x4f\xff\x51", ".j2k"),
    (b"\xff\x0a", ".jxl"),
    (b"\0\0\0\x0cJXL ", ".jxl"),
    (b"\0\0\1\0", ".ico"),
    (b"v/1\1", ".exr"),
    (b"SIMPLE  =", ".fits"),
    (b"DDS ", ".dds"),
    (b"qoif", ".qoi"),
    (b"II\xbc", ".jxr"),
    (b"gimp xcf", ".xcf"),
    (b"IIU\0", ".rw2"),
    (b"FUJIFILM", ".raf"),
)
_BRANDS: Final = {b"avif": ".avif", b"avis": ".avif", b"crx ": ".cr3"}
_STILLS: Final = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_TIFF_STARTS: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_BMP_HEADERS: Final = (12, 16, 40, 52, 56, 64, 108, 124)


def image_format(start: bytes) -> str | None:
    """Return the format that a file's first bytes are of, a key of `ENDINGS`, or None for anything else."""
    if start.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return "WEBP"
    if start.startswith(_TIFF_STARTS) and start[8:10] != b"CR":
        return "TIFF"
    # Two letters are no proof: many a text begins with them.
    if start.startswith(b"BM") and int.from_bytes(start[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    return None


def other_picture(start: bytes) -> str | None:
    """Return the usual ending, such as ".gif", of a picture that is not decoded; None for anything else."""
    for bytes_, ending in _OTHER_STARTS:
        if start.startswith(bytes_):
            return ending
    if start[4:8] == b"ftyp":
        brand = start[8:12]
        return _BRANDS.get(brand) or (".heic" if brand in _STILLS else None)
    if start.startswith(_TIFF_STARTS) and start[8:10] == b"CR":
        return ".cr2"
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    return ".svg" if text.startswith(b"<svg") or (text.startswith((b"<?xml", b"<!")) and b"<svg" in text) else None


def ending_of(name: str) -> str:
    """Return a file name's ending in lower case: ".jpg", "" if it has none; a copy's is ".bak" or "~"."""
    if name.endswith("~"):
        return ".bak"
    return PurePath(name).suffix.lower()


def kind_of(name: str, read_start: Callable[[], bytes]) -> str | None:
    """Return what a file is: None for an image that can be decoded, else what it is counted as.

    Args:
        name: The file's name.
        read_start: Returns its first `START_BYTES`; called only where the name does not say enough.

    Returns:
        None; ".gif" and the like for another picture, an archive, a film or an unfinished copy; `OTHER` for the rest.
    """
    ending = ending_of(name)
    if ending in IMAGE_ENDINGS:
        return None
    if ending in _HOLDERS or ending in _COPIES:
        return ending
    if ending in _SIDE_FILES:
        return OTHER
    start = read_start()
    if image_format(start) is not None and ending not in _RAW:
        return None
    return ending if ending in _PICTURES else other_picture(start) or OTHER


def member_extension(name: str, data: bytes) -> str:
    """Return the extension, without dot, that an image gets in a tar: its own, if it is usual and true.

    Args:
        name: The image file's name.
        data: Its bytes; their start is enough.
    """
    # Readers of tars choose a decoder by the extension, and know neither .jfif nor files without ending.
    ending = ending_of(name)
    kind = image_format(data[:START_BYTES])
    usual = ENDINGS[kind] if kind else next((all_ for all_ in ENDINGS.values() if ending in all_), (ending,))
    return (ending if ending in _PLAIN_ENDINGS and ending in usual else usual[0])[1:] or "bin"
