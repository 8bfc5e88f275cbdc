"""The shares of a round's classes, as the stage of that name stores them: how starved unseen ones are, what helps."""

# K class

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models.refinement.shares import LEAST_STRENGTH
from shards.data.vocabulary import Vocabulary
from shards.files.atomic import write_bytes_atomic
from shards.files.untrusted import read_json_file

STRENGTH: Final = "strength"  # among the numbers of the record: the stages after it are planned by it


@dataclass(frozen=True)
class Shares:
    """The content of `shares.json`.

    Attributes:
        strength: g in [0, 1].
        cause: Why, in words and numbers.
        bias_K: (K,) added to the logits of the round's teacher.
        wanted_K: (K,) pi, the share of the cells that each class has with it.
        threshold_K: (K,) the gate's threshold of each class.
        images: (K,) images where the class is some cell's first choice, before matching.
        passed: (K,) those of them where it passed the gate, before matching.
    """

    strength: float
    cause: str
    bias_K: NDArray[np.float64]
    wanted_K: NDArray[np.float64]
    threshold_K: NDArray[np.float64]
    images: NDArray[np.int64]
    passed: NDArray[np.int64]

    @property
    def matters(self) -> bool:
        """Whether it is strong enough to change anything."""
        return self.strength >= LEAST_STRENGTH

    def save(self, path: Path, vocabulary: Vocabulary) -> None:
        """Write `shares.json`."""
        classes = [
            {
                "name": name,
                "bias": float(self.bias_K[index]),
                "share": float(self.wanted_K[index]),
                "threshold": float(self.threshold_K[index]),
                "images": int(self.images[index]),
                "passed": int(self.passed[index]),
            }
            for index, name in enumerate(vocabulary.names)
        ]
        content = {"version": 1, STRENGTH: self.strength, "cause": self.cause, "classes": classes}
        write_bytes_atomic(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())

    @staticmethod
    def load(path: Path, vocabulary: Vocabulary) -> "Shares":
        """Read `shares.json`.

        Raises:
            FileNotFoundError: There is none.
            ValueError: It is damaged, or for other classes.
        """
        try:
            content: Any = read_json_file(path)
            rows = {str(row["name"]): row for row in content["classes"]}
            chosen = [rows[name] for name in vocabulary.names]
            bias_K, wanted_K, threshold_K = (
                np.array([float(row[field]) for row in chosen]) for field in ("bias", "share", "threshold")
            )
            images, passed = (np.array([int(row[field]) for row in chosen]) for field in ("images", "passed"))
            strength = float(content[STRENGTH])
            if not 0 <= strength <= 1 or not np.isfinite([bias_K, wanted_K, threshold_K]).all():
                raise ValueError("a number is out of range")
            return Shares(strength, str(content["cause"]), bias_K, wanted_K, threshold_K, images, passed)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{path} holds no shares of this vocabulary: {error!r}; delete its record") from error


def shares_among(inputs: Mapping[str, Path], vocabulary: Vocabulary) -> Shares | None:
    """Read the shares among a task's inputs; None where its round is not matched."""
    return Shares.load(inputs["shares"], vocabulary) if "shares" in inputs else None
