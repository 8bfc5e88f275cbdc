"""Calibration of each class's probability: a temperature and a bias on its logit, read from a file."""

# K class; numpy and scipy only

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError
from scipy.special import expit, logit

from shards.files.atomic import write_bytes_atomic
from shards.files.untrusted import MAX_TEXT_BYTES, read_regular
from shards.formats.records import fingerprint_digest

LOWEST: Final = 2.0**-25  # half of the smallest and of the largest step of float16 within [0, 1]: what is stored as
HIGHEST: Final = 1 - 2.0**-12  # 0 or 1 stands for anything between, and has no finite logit of its own


class ClassCalibration(BaseModel):
    """One class's: p becomes sigmoid(logit(p) / temperature + bias); 1 and 0 change nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    bias: FiniteFloat = 0.0


class Calibration(BaseModel):
    """A calibration file.

    Attributes:
        version: 1.
        classes: By class name; a class that is not named keeps its probabilities.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    classes: dict[str, ClassCalibration] = {}

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file.

        Raises:
            ValueError: There is none, or it is not a calibration.
        """
        try:
            return cls.model_validate_json(read_regular(path, MAX_TEXT_BYTES))
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error.strerror}); make it: stseg-pipeline calibrate") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "JSON"
            raise ValueError(f"{path} is not a calibration ({where}: {first['msg']}); make it again") from error

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write_bytes_atomic(path, (self.model_dump_json(indent=1) + "\n").encode())

    @property
    def digest(self) -> str:
        """The SHA-256 of what it says, however it is written down."""
        return fingerprint_digest(self.model_dump(mode="json"))

    def table(self, names: Sequence[str]) -> "CalibrationTable":
        """Put it in the order of a vocabulary's classes.

        Raises:
            ValueError: It names a class that the vocabulary does not have.
        """
        unknown = self.classes.keys() - set(names)
        if unknown:
            raise ValueError(f"the calibration names {min(unknown)!r}, which is no class of this run; fit it again")
        entries = [self.classes.get(name, ClassCalibration()) for name in names]
        return CalibrationTable(
            scale=np.array([1 / entry.temperature for entry in entries]),
            bias=np.array([entry.bias for entry in entries]),
        )


def calibration_table(path: Path | None, names: Sequence[str]) -> "CalibrationTable | None":
    """Read the calibration that a gate names, in the order of a vocabulary's classes; None if it names none.

    Raises:
        ValueError: It cannot be read, or names other classes.
    """
    return None if path is None else Calibration.load(path).table(names)


@dataclass(frozen=True)
class CalibrationTable:
    """A calibration in the order of the class ids.

    Attributes:
        scale: (K,) float64, above 0: 1 / temperature.
        bias: (K,) float64.
    """

    scale: NDArray[np.float64]
    bias: NDArray[np.float64]

    def apply(self, ids: NDArray[np.integer], scores: NDArray[np.floating]) -> NDArray[np.float64]:
        """Give calibrated probabilities: sigmoid(scale * logit(p) + bias), each with its own class's numbers.

        Args:
            ids: Integers in 0..K-1, of any shape.
            scores: Probabilities of the same shape.

        Returns:
            float64 of that shape; exactly the scores for a class with scale 1 and bias 0. A score of 0 says that the
            class is not there, and stays.
        """
        plain = scores.astype(np.float64)
        changed = ((self.scale != 1) | (self.bias != 0))[ids] & (plain > 0)
        which = ids[changed]
        plain[changed] = expit(self.scale[which] * logit(np.clip(plain[changed], LOWEST, HIGHEST)) + self.bias[which])
        return plain
