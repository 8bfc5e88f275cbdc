"""How the label file of an image is found, and what the values in it mean."""

import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from shards.data.labels import LabelFrame, UnusableLabel
from shards.data.vocabulary import IGNORE_8_BIT, IGNORE_16_BIT, Vocabulary

IGNORED: Final = -1  # a pixel without a class, in the ids that `LabelRules.class_ids` returns

_FIELD = re.compile(r"\{(stem|name|dir|parent)(?:-([^{}/]+))?\}")


def _checked_pattern(pattern: str) -> str:
    left = _FIELD.sub("", pattern)
    if "{" in left or "}" in left:
        raise ValueError("it knows {stem}, {stem-TEXT}, {name}, {dir} and {parent}")
    if not re.search(r"\{(stem|name)", pattern):
        raise ValueError("it needs {stem} or {name}: else all images have the same label")
    if PurePosixPath(pattern).suffix.lower() != ".png":
        raise ValueError("label files are index PNGs: it has to end in .png")
    if pattern.startswith("/") or ".." in PurePosixPath(pattern).parts or "\0" in pattern:
        raise ValueError("it has to stay in the folder of labels")
    return pattern


class LabelRules(BaseModel):
    """How labels are found and read; the default for all folders of images is `data.labels`.

    Attributes:
        pattern: The label's file name. `{stem}`: the image's name without ending; `{stem-TEXT}`: without TEXT, too;
            `{name}`: with its ending; `{dir}`: its folder, as in the folder of images; `{parent}`: the last part of
            that. Without "/", labels are in folders like those of their images; with one ("./{stem}.png"), the path
            begins at the folder of labels.
        ignore: The value that stands for "no class"; null: 255 in 8-bit files, 65535 in 16-bit files, where 255 counts
            as well if no class has that id.
        shift: Added to the values; what becomes negative has no class. -1: ids begin at 1, and 0 is unlabelled.
        binary: The files are masks of one object: values from the half on are class 1, lower ones class 0, and only
            an `ignore` that is set means "no class".
        frame: Whether labels of turned photographs are upright or as the pixels are stored; `auto`: as their size says.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pattern: Annotated[str, AfterValidator(_checked_pattern)] = "{stem}.png"
    ignore: Annotated[int, Field(ge=0, le=IGNORE_16_BIT)] | None = None
    shift: Annotated[int, Field(ge=-IGNORE_16_BIT, le=IGNORE_16_BIT)] = 0
    binary: bool = False
    frame: LabelFrame = "auto"

    def label_name(self, image: str) -> str | None:
        """Return the path of an image's label in the folder of labels; None if the pattern does not fit the name.

        Args:
            image: The path of the image in the folder of images, with "/".
        """
        path = PurePosixPath(image)
        folder = "" if str(path.parent) == "." else path.parent.as_posix()
        values = {"stem": path.stem, "name": path.name, "dir": folder, "parent": path.parent.name}
        parts: list[str] = []
        end = 0
        for match in _FIELD.finditer(self.pattern):
            value, removed = values[match[1]], match[2]
            if removed is not None:
                if removed not in value:
                    return None
                value = value.replace(removed, "", 1)
            parts += [self.pattern[end : match.start()], value]
            end = match.end()
        name = "".join([*parts, self.pattern[end:]])
        return str(PurePosixPath(name.lstrip("/") if "/" in self.pattern else f"{folder}/{name}".lstrip("/")))

    def ignored(self, bits: int, classes: int) -> tuple[int, ...]:
        """Return the values that stand for "no class" in a file of that bit depth."""
        if self.ignore is not None:
            return (self.ignore,)
        if self.binary:
            return ()
        if bits < 16:
            return (IGNORE_8_BIT,)
        # Tools that write 16-bit files for all labels keep 255: with fewer classes it can be nothing else.
        return (IGNORE_16_BIT, IGNORE_8_BIT) if classes <= IGNORE_8_BIT else (IGNORE_16_BIT,)

    def class_ids(self, values: NDArray[np.integer[Any]], bits: int, classes: int) -> NDArray[np.int32]:
        """Return the class ids of a file's values, `IGNORED` for no class; they may exceed the number of classes.

        Args:
            values: Any shape, as in the file.
            bits: The file's bits per pixel.
            classes: The number of classes.
        """
        ids = values.astype(np.int32)
        without = np.isin(ids, self.ignored(bits, classes))
        if self.binary and ids.max(initial=0) > 1:
            ids = (ids >= 1 << (bits - 1)).astype(np.int32)
        ids += self.shift
        ids[without | (ids < 0)] = IGNORED
        return ids

    def changes(self) -> dict[str, Any]:
        """Return what differs from the default in the meaning of a file, for fingerprints; empty for the default."""
        # Not the pattern: which file belongs to an image shows in the checksum of its label.
        return self.model_dump(mode="json", exclude={"pattern"}, exclude_defaults=True)


def to_vocabulary(label: NDArray[np.int32], bits: int, rules: LabelRules, vocabulary: Vocabulary) -> NDArray[np.int32]:
    """Return a file's values as ids of the vocabulary, with its ignore index.

    Raises:
        UnusableLabel: A value stands for no class of the vocabulary.
    """
    ids = rules.class_ids(label, bits, len(vocabulary))
    wrong = ids >= len(vocabulary)
    if wrong.any():
        ignored = " or ".join(map(str, rules.ignored(bits, len(vocabulary)))) or "nothing"
        shifted = f", after data.labels.shift={rules.shift}" if rules.shift else ""
        raise UnusableLabel(
            "label_ids",
            f"holds id {int(label[wrong][0])} in {int(wrong.sum())} pixels, which is not in the vocabulary (0 to "
            f"{len(vocabulary) - 1}, {ignored} for ignore{shifted}); is this the labels' own list of classes?",
        )
    return np.where(ids == IGNORED, vocabulary.ignore_index, ids).astype(np.int32)
