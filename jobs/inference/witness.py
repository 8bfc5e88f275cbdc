"""Witnesses of presence: who says which classes an image holds, and the settings that name one."""

# B image, K class, h w score grid

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt, model_validator

from jobs.run import Section
from shards.data.vocabulary import Vocabulary
from shards.files.untrusted import parse_json, read_json_file, read_regular
from shards.formats.arrays import read_arrays

if TYPE_CHECKING:
    from torch import Tensor

WitnessName = Literal["none", "clip", "teacher", "tags"]
# The least evidence that keeps a class. "clip": the share of the image that its name explains. "teacher": the mean of
# its probabilities, weighted by themselves.
LEAST: Final[Mapping[WitnessName, float]] = {"none": 0.0, "clip": 0.003, "teacher": 0.05, "tags": 0.5}

NO_SHARE: Final = 1e-6  # absent names of the scenes end below 1e-28, the rarest class at 0.012


class PresenceSettings(Section):
    """Which classes of the vocabulary an image holds, so that the teacher gives no pixel to the others.

    Attributes:
        witness: "none": every class may be anywhere. "clip": the share of the image that CLIP, as it was before any
            self-training, explains by the class's name rather than another one, given the shares over a sample of all
            images; read once per image for all rounds. "teacher": how sure the teacher itself is of the class;
            for comparison, as it is as sure of absent classes.
            "tags": what `tags` says.
        tags: A file of the classes in each image: JSON, {"key": ["name", ...]}, or CSV, a line "key,name,..." per
            image. An image that it does not list may hold every class.
        least: The least evidence that keeps a class in an image, 0 to 1; null: 0.003 for "clip", 0.05 for "teacher".
        images: How many images, drawn by the seed, the shares over all of them are taken from.
        instead: Where the pixels of a struck class go: "next", to the best class left; "ignore", nowhere; "keep": the
            class is not struck, and the witness only raises the alarm `absent_grows`.
    """

    witness: WitnessName = "none"
    tags: Path | None = None
    least: float | None = None
    images: PositiveInt = 400  # with 100 of them 0.2 % of the true classes of the scenes are struck, with 50 1.4 %
    instead: Literal["next", "ignore", "keep"] = "next"

    @model_validator(mode="after")
    def _together(self) -> Self:
        if (self.witness == "tags") != (self.tags is not None):
            raise ValueError(f"witness {self.witness!r} and tags {self.tags}: name a file of tags with witness=tags")
        if self.least is not None and not 0 <= self.least <= 1:
            raise ValueError(f"least is {self.least:g}; expected 0 to 1")
        if self.least is not None and self.witness in ("none", "tags"):
            raise ValueError(f"least has no effect with witness {self.witness!r}; leave it at null")
        return self

    @property
    def least_evidence(self) -> float:
        """The least evidence that keeps a class."""
        return LEAST[self.witness] if self.least is None else self.least

    @property
    def is_stored(self) -> bool:
        """Whether the evidence is the same in all rounds, and stored before them."""
        return self.witness in ("clip", "tags")


NO_WITNESS: Final = PresenceSettings()


class Witness(Protocol):
    """Says how much evidence there is for each class in an image."""

    def evidence(self, keys: Sequence[str], score_BKhw: "Tensor") -> "Tensor":
        """Return (B, K) float on the scores' device; higher means rather present.

        Args:
            keys: The images.
            score_BKhw: The teacher's probabilities.
        """
        ...


class TeacherWitness:
    """The teacher's own probabilities, see `models.stseg.presence.own_evidence`."""

    def evidence(self, keys: Sequence[str], score_BKhw: "Tensor") -> "Tensor":
        """Return how sure the teacher is of each class."""
        from models.stseg.presence import own_evidence

        return own_evidence(score_BKhw)


@dataclass(frozen=True)
class StoredWitness:
    """Evidence that `jobs.stages.presence` stored of some images.

    Attributes:
        evidence_of: (K,) float32 by key.
    """

    evidence_of: Mapping[str, NDArray[np.float32]]

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read the evidence of a shard.

        Raises:
            FileNotFoundError: There is none.
            ValueError: It is damaged.
        """
        arrays, attrs = read_arrays(path, names=("evidence",))
        keys: Any = attrs.get("keys")
        if not isinstance(keys, list) or len(keys) != len(arrays["evidence"]):
            raise ValueError(f"{path} does not say whose evidence it holds; delete its record to have it made again")
        return cls(dict(zip(map(str, keys), arrays["evidence"], strict=True)))

    def evidence(self, keys: Sequence[str], score_BKhw: "Tensor") -> "Tensor":
        """Return what is stored; 1 for every class of an image that nothing is known of."""
        import torch

        unknown = np.ones(score_BKhw.shape[1], np.float32)
        rows = np.stack([self.evidence_of.get(key, unknown) for key in keys])
        return torch.from_numpy(rows).to(score_BKhw.device)


@dataclass(frozen=True)
class Judge:
    """A witness, and what is made of its evidence."""

    witness: Witness
    settings: PresenceSettings

    def judge(self, keys: Sequence[str], logits_BKhw: "Tensor", *, softmax: bool) -> "tuple[Tensor, Tensor, Tensor]":
        """Strike the classes that images do not hold.

        Args:
            keys: The images.
            logits_BKhw: The teacher's logits, finite.
            softmax: How they become probabilities; else by the sigmoid.

        Returns:
            The logits, with struck classes at minus infinity unless they are kept; (B, K) int64, the cells whose first
            choice each class was that the witness refuses; and (B, h, w) bool, the cells to ignore.
        """
        from models.stseg.presence import refused_cells, struck_classes, without_struck

        scores = logits_BKhw.softmax(dim=1) if softmax else logits_BKhw.sigmoid()
        struck_BK = struck_classes(self.witness.evidence(keys, scores), self.settings.least_evidence)
        refused_BK = refused_cells(logits_BKhw, struck_BK)
        first_Bhw = logits_BKhw.argmax(dim=1)
        lost_Bhw = struck_BK.gather(1, first_Bhw.flatten(1)).view_as(first_Bhw)
        if self.settings.instead != "ignore":
            lost_Bhw = lost_Bhw & False
        kept = logits_BKhw if self.settings.instead == "keep" else without_struck(logits_BKhw, struck_BK)
        return kept, refused_BK, lost_Bhw


def absent_names(shares: Path, vocabulary: Vocabulary) -> list[int]:
    """Return the classes whose names explain nothing of the images that the shares in a file were taken from.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged or of other classes.
    """
    return [index for index, (share, _) in enumerate(read_shares(shares, vocabulary)) if share < NO_SHARE]


def read_shares(path: Path, vocabulary: Vocabulary) -> list[tuple[float, float]]:
    """Read what `jobs.stages.presence` wrote of each name: its share, and the mean cosine of whole images with it.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged or of other classes.
    """
    try:
        content: Any = read_json_file(path)
        of = {str(row["name"]): (float(row["share"]), float(row["image_cosine"])) for row in content["classes"]}
        return [of[name] for name in vocabulary.names]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no shares of this vocabulary: {error!r}; delete its record") from error


def always_struck(witness: StoredWitness, keys: Sequence[str], least: float) -> set[int]:
    """Return the classes with less evidence than `least` in each of some images; of no image none."""
    rows = [witness.evidence_of[key] for key in keys if key in witness.evidence_of]
    if not rows or len(rows) < len(keys):
        return set()
    most_K = np.max(rows, axis=0)
    return set(np.flatnonzero(most_K < least).tolist())


def read_tags(path: Path, vocabulary: Vocabulary) -> dict[str, NDArray[np.float32]]:
    """Read which classes each image holds, (K,) float32 of 0 and 1 by key.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no JSON or CSV of tags, or names a class that the vocabulary does not have.
    """
    text = read_regular(path).decode()
    ids = {name: index for index, name in enumerate(vocabulary.names)}
    found: dict[str, NDArray[np.float32]] = {}
    for key, names in _tag_rows(path, text):
        unknown = [name for name in names if name not in ids]
        if unknown:
            raise ValueError(f"{path} tags image {key!r} with {unknown[0]!r}, which is not a class of the vocabulary")
        found.setdefault(key, np.zeros(len(ids), np.float32))[[ids[name] for name in names]] = 1
    return found


def _tag_rows(path: Path, text: str) -> list[tuple[str, list[str]]]:
    if path.suffix == ".csv":
        rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text))]
        return [(row[0], [name for name in row[1:] if name]) for row in rows if row and row[0]]
    content: Any = parse_json(text)
    if not isinstance(content, dict) or not all(isinstance(names, list) for names in content.values()):
        raise ValueError(f'{path} holds no tags; expected {{"key": ["name", ...]}}, or a .csv of key,name,...')
    return [(str(key), [str(name) for name in names]) for key, names in content.items()]
