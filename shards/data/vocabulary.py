"""The classes of a run: names, synonyms, ids, colours, templates, and which were seen with labels."""

import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shards.data.colours import colours_of_names
from shards.files.atomic import write_bytes_atomic
from shards.files.untrusted import MAX_TEXT_BYTES, read_regular
from shards.formats.records import sealed, unsealed

DEFAULT_TEMPLATES: tuple[str, ...] = ("a photo of a {}.",)
IGNORE_8_BIT = 255
IGNORE_16_BIT = 65535

Channel = Annotated[int, Field(ge=0, le=255)]
Colour = tuple[Channel, Channel, Channel]


class ClassEntry(BaseModel):
    """One class.

    Attributes:
        name: Its name in tables; unique in its vocabulary.
        synonyms: The words for text embeddings, the main one first.
        seen: Whether stage 1 trained on labels of it.
        colour: (r, g, b) in 0..255, unique in its vocabulary and never black.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(min_length=1)]
    synonyms: Annotated[tuple[str, ...], Field(min_length=1)]
    seen: bool
    colour: Colour


class Vocabulary(BaseModel):
    """All classes of a run; a class's id is its index in `classes`.

    Attributes:
        classes: 1 to 65535 of them.
        templates: CLIP's prompt templates, each with one `{}` for the class's name.
        ignore_index: The id of pixels without a class: 255 up to 255 classes, 65535 above.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    classes: tuple[ClassEntry, ...]
    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    ignore_index: int

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not 1 <= len(self.classes) <= IGNORE_16_BIT:
            raise ValueError(f"{len(self.classes)} classes; a vocabulary has 1 to {IGNORE_16_BIT}")
        repeated = [name for name, count in Counter(self.names).items() if count > 1]
        if repeated:
            raise ValueError(
                f"class {repeated[0]!r} stands {self.names.count(repeated[0])} times; name each class once"
            )
        if self.ignore_index != _ignore_index(len(self.classes)):
            raise ValueError(
                f"ignore_index is {self.ignore_index}; with {len(self.classes)} classes it is "
                f"{_ignore_index(len(self.classes))}"
            )
        wrong = [template for template in self.templates if template.count("{}") != 1]
        if wrong or not self.templates:
            raise ValueError(f"template {wrong[0] if wrong else ''!r} needs one {{}} where the class's name goes")
        return self

    def __len__(self) -> int:
        """The number of classes."""
        return len(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """The classes' names in the order of their ids."""
        return tuple(entry.name for entry in self.classes)

    @property
    def seen_ids(self) -> tuple[int, ...]:
        """The ids of classes that stage 1 had labels for."""
        return tuple(index for index, entry in enumerate(self.classes) if entry.seen)

    @property
    def unseen_ids(self) -> tuple[int, ...]:
        """The ids of classes known by name alone."""
        return tuple(index for index, entry in enumerate(self.classes) if not entry.seen)

    @property
    def palette(self) -> list[int]:
        """256 * 3 values r g b r g b … for a palette PNG; entries without a class, also 255, are black."""
        values = [channel for entry in self.classes[:IGNORE_8_BIT] for channel in entry.colour]
        return values + [0] * (256 * 3 - len(values))

    @property
    def digest(self) -> str:
        """The SHA-256 of the whole vocabulary."""
        return hashlib.sha256(self._bytes()).hexdigest()

    @classmethod
    def from_names(
        cls,
        names: Iterable[str],
        seen: Collection[str] | None = None,
        templates: Sequence[str] = DEFAULT_TEMPLATES,
        prompt_names: Mapping[str, str] | None = None,
    ) -> Self:
        """Build a vocabulary from a list of names.

        Args:
            names: One per class, in the order of their ids; "person, child, man" has synonyms. Outer blanks are
                stripped. Classes that share their first word (ADE-847 has "bag" and "bag, handbag") are named by their
                whole line.
            seen: The names of classes that had labels; None: all.
            templates: CLIP's prompt templates.
            prompt_names: The words that CLIP is given for some classes, by name, with synonyms like them; None: the
                names are the words.

        Raises:
            ValueError: No names, a blank or repeated one, or a seen or reworded one that is not among them.
        """
        lines = [_synonyms(name, index) for index, name in enumerate(names)]
        first = Counter(words[0] for words in lines)
        called = [words[0] if first[words[0]] == 1 else ", ".join(words) for words in lines]
        known = {", ".join(words): name for name, words in zip(called, lines, strict=True)} | {
            name: name for name in called
        }
        wanted = set(called)
        if seen is not None:
            wanted = {_known_name(", ".join(_synonyms(name, index)), known) for index, name in enumerate(seen)}
        reworded: dict[str, tuple[str, ...]] = {}
        for name, words in (prompt_names or {}).items():
            called_so = _known_name(", ".join(_synonyms(name, 0)), known, "class with a prompt name")
            reworded[called_so] = _synonyms(words, called.index(called_so))
        colours = colours_of_names(called)
        classes = tuple(
            ClassEntry(name=name, synonyms=reworded.get(name, words), seen=name in wanted, colour=colour)
            for name, words, colour in zip(called, lines, colours, strict=True)
        )
        try:
            return cls(classes=classes, templates=tuple(templates), ignore_index=_ignore_index(len(classes)))
        except ValidationError as error:
            raise ValueError(_reason(error)) from error

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a `vocabulary.json`.

        Raises:
            FileNotFoundError: There is none.
            ValueError: It is damaged or contradicts itself.
        """
        try:
            return cls.model_validate_json(unsealed(read_regular(path, MAX_TEXT_BYTES)))
        except ValidationError as error:
            raise ValueError(f"{path} is not a vocabulary: {_reason(error)}") from error
        except ValueError as error:
            raise ValueError(f"{path} is not the vocabulary that was written: {error}") from error

    def with_colours(self, colours: Sequence[Colour]) -> Self:
        """Return the same classes in other colours, one per class."""
        entries = zip(self.classes, colours, strict=True)
        recoloured = tuple(entry.model_copy(update={"colour": colour}) for entry, colour in entries)
        return self.model_copy(update={"classes": recoloured})

    def save(self, path: Path) -> None:
        """Write it as JSON, atomically; the first field is the digest, a checksum of the rest."""
        write_bytes_atomic(path, sealed(self._bytes()))

    def _bytes(self) -> bytes:
        return (json.dumps(self.model_dump(mode="json"), ensure_ascii=False, indent=1) + "\n").encode()


def _reason(error: ValidationError) -> str:
    """Return what is wrong in one line, without pydantic's own words and link."""
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    return f"{'.'.join(map(str, first['loc']))} {cause or first['msg']}".strip()


def _ignore_index(classes: int) -> int:
    return IGNORE_8_BIT if classes <= IGNORE_8_BIT else IGNORE_16_BIT


def _synonyms(name: str, index: int) -> tuple[str, ...]:
    words = tuple(dict.fromkeys(word.strip() for word in name.split(", ") if word.strip()))
    if not words:
        raise ValueError(f"class {index} has no name ({name!r}); give each class a name")
    return words


def _known_name(wanted: str, known: Mapping[str, str], what: str = "seen class") -> str:
    if wanted not in known:
        near = difflib.get_close_matches(wanted, list(known), n=1)
        raise ValueError(f"{what} {wanted!r} is not in the vocabulary" + (f"; meant {near[0]!r}?" if near else ""))
    return known[wanted]
