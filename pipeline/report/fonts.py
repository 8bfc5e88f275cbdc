"""Fonts that have the letters of a text: Pillow's own, else one that is installed."""

import os
import shutil
import subprocess
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Final

from PIL import ImageFont, features

FONT_SIZE: Final = 12
_NO_LETTER: Final = "\uffff"  # no font has it: drawn as the box that stands for all missing letters
_MATCH_S: Final = 5.0
_MAX_FILES: Final = 500
_ENDINGS: Final = (".ttf", ".otf", ".ttc")
_STYLES: Final = ("bold", "italic", "oblique", "mono", "condensed", "light", "thin", "black")

Font = ImageFont.FreeTypeFont


def drawable(text: str, otherwise: str) -> tuple[str, Font]:
    """Return a text and a font that has all of its letters; another text where no font has.

    Args:
        text: What to draw, in any script.
        otherwise: What to draw in its place; in ASCII, which Pillow's own font has.
    """
    # Boxes in place of letters would give all classes of a script one and the same name.
    plain = text if features.check("raqm") else "".join(letter for letter in text if not _is_invisible(letter))
    font = _font_with(frozenset(letter for letter in plain if not _is_invisible(letter) and not letter.isspace()))
    return (plain, font) if font is not None else (otherwise, own_font())


@cache
def own_font() -> Font:
    """Return Pillow's own font, which has Latin letters."""
    font = ImageFont.load_default(size=FONT_SIZE)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def has_letters(font: Font, letters: Iterable[str]) -> bool:
    """Return whether a font has letters of its own for all of these."""
    missing = _drawn(font, _NO_LETTER)
    return all(_drawn(font, letter) != missing for letter in letters)


@cache
def _font_with(letters: frozenset[str]) -> Font | None:
    if has_letters(own_font(), letters):
        return own_font()
    for path in _candidates(letters):
        font = _opened(path)
        if font is not None and has_letters(font, letters):
            return font
    return None


def _candidates(letters: frozenset[str]) -> Iterator[Path]:
    """Yield installed fonts that may have these letters, the likeliest first."""
    if shutil.which("fc-match"):
        wanted = " ".join(f"{ord(letter):x}" for letter in sorted(letters))
        command = ["fc-match", "--format", "%{file}", f"sans-serif:charset={wanted}"]
        try:
            found = subprocess.run(command, capture_output=True, text=True, timeout=_MATCH_S, check=True).stdout
        except (OSError, subprocess.SubprocessError):
            found = ""
        if found:
            yield Path(found)
    yield from _installed()


@cache
def _installed() -> tuple[Path, ...]:
    """Return font files in the usual folders, plain ones of Noto and DejaVu first."""
    home = Path.home()
    folders = [
        *(Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), home / ".local/share/fonts", home / ".fonts"),
        *(Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"),
        Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts",
    ]
    files = [path for folder in folders for path in folder.rglob("*") if path.suffix.lower() in _ENDINGS]

    def order(path: Path) -> tuple[bool, bool, str]:
        name = path.name.lower()
        return any(style in name for style in _STYLES), not name.startswith(("noto", "dejavu")), name

    return tuple(sorted(files, key=order)[:_MAX_FILES])


@cache
def _opened(path: Path) -> Font | None:
    try:
        return ImageFont.truetype(str(path), FONT_SIZE)
    except OSError:  # no font, or one of pictures in a single size, as coloured emoji are
        return None


@cache
def _drawn(font: Font, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)


def _is_invisible(letter: str) -> bool:
    """Return whether a letter only joins or selects others, so that a font need not have it."""
    return unicodedata.category(letter) in ("Cf", "Cc") or 0xFE00 <= ord(letter) <= 0xFE0F
