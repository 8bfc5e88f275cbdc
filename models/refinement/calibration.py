"""Calibration of each class's probability: a temperature and a bias on its logit, read from a file or fitted.

It is fitted to a few labelled images, and the calibration error before and after is measured here too.
"""

# K class, k kept classes per cell, h w score grid, H W image, N cell; numpy and scipy only

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from shards.files.atomic import write_bytes_atomic
from shards.files.untrusted import MAX_TEXT_BYTES, read_regular
from shards.formats.records import fingerprint_digest

# Half of the smallest and of the largest step of float16 within [0, 1]: a probability stored as 0 or 1 may be anything
# up to there, and has no finite logit of its own.
LOWEST: Final = 2.0**-25
HIGHEST: Final = 1 - 2.0**-12


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
    # By name: ids depend on the vocabulary's order, and people read and edit the file.
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
            made = f"stseg-pipeline calibrate --run DIR --out {shlex.quote(str(path))}"
            raise ValueError(f"{path} cannot be read ({error.strerror}); make it: {made}") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "JSON"
            raise ValueError(f"{path} is not a calibration ({where}: {first['msg']}); make it again") from error

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write_bytes_atomic(path, (self.model_dump_json(indent=1) + "\n").encode())

    @property
    def digest(self) -> str:
        """The SHA-256 of its content, however it is formatted."""
        # This enters refine's fingerprint, not the path and not the bytes: moving the file redoes nothing.
        return fingerprint_digest(self.model_dump(mode="json"))

    def table(self, names: Sequence[str]) -> "CalibrationTable":
        """Bring it into the order of a vocabulary's classes.

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
        """Return calibrated probabilities: sigmoid(scale * logit(p) + bias), each with its own class's parameters.

        Args:
            ids: Integers in 0..K-1, of any shape.
            scores: Probabilities of the same shape.

        Returns:
            float64 of that shape; exactly the scores for a class with scale 1 and bias 0. A score of 0 means that
            the class is absent, and stays.
        """
        from scipy.special import expit, logit

        plain = scores.astype(np.float64)
        # expit(logit(p)) is p up to rounding only; classes without a calibration keep their bits.
        changed = ((self.scale != 1) | (self.bias != 0))[ids] & (plain > 0)
        which = ids[changed]
        plain[changed] = expit(self.scale[which] * logit(np.clip(plain[changed], LOWEST, HIGHEST)) + self.bias[which])
        return plain


PENALTY: Final = 0.1
BINS: Final = 15  # as in Guo et al.


@dataclass(frozen=True)
class LabelledCells:
    """Cells of labelled images at which the teacher's first choice can be compared with the truth.

    Attributes:
        class_id: (N,) integers, the first choices.
        score: (N,) float64, their stored probabilities.
        right: (N,) bool, whether the label is the same.
        image: (N,) integers, which image each cell is of.
    """

    class_id: NDArray[np.integer]
    score: NDArray[np.float64]
    right: NDArray[np.bool_]
    image: NDArray[np.integer]

    def where(self, chosen: NDArray[np.bool_]) -> "LabelledCells":
        """Return the chosen cells."""
        return LabelledCells(self.class_id[chosen], self.score[chosen], self.right[chosen], self.image[chosen])


def labelled_cells(
    ids_kHW: NDArray[np.integer],
    scores_kHW: NDArray[np.floating],
    truth_HW: NDArray[np.integer],
    ignore_index: int,
    image: int,
) -> LabelledCells:
    """Compare a teacher's first choices with an image's label, which is sampled at the cells' centres.

    Args:
        ids_kHW: (k, h, w) integers, best first.
        scores_kHW: (k, h, w) float in [0, 1].
        truth_HW: (H, W) integers, of any size; ignored pixels yield no cell.
        ignore_index: What marks them.
        image: The number to mark the cells with.
    """
    rows, columns = (
        ((np.arange(cells) + 0.5) * size / cells).astype(np.int64)
        for cells, size in zip(ids_kHW.shape[1:], truth_HW.shape, strict=True)
    )
    truth = truth_HW[np.ix_(rows, columns)].ravel()
    known = truth != ignore_index
    first = ids_kHW[0].ravel()[known].astype(np.int64)
    score = scores_kHW[0].ravel()[known].astype(np.float64)
    return LabelledCells(first, score, first == truth[known], np.full(len(first), image))


def joined(parts: Sequence[LabelledCells]) -> LabelledCells:
    """Concatenate the cells of several images; there may be none."""
    empty = LabelledCells(np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.bool_), np.zeros(0, np.int64))
    every = [empty, *parts]
    return LabelledCells(
        *(np.concatenate([getattr(part, name) for part in every]) for name in ("class_id", "score", "right", "image"))
    )


def fit_calibration(cells: LabelledCells, names: Sequence[str], *, min_cells: int) -> Calibration:
    """Fit a temperature and a bias for each class that has enough cells; the others keep their probabilities.

    Minimised is the negative log-likelihood of "the first choice is right", averaged over a class's cells and times the
    number of its images, plus `PENALTY` / 2 times the squares of log temperature and bias.

    Args:
        cells: The cells.
        names: The vocabulary's class names, by id.
        min_cells: Cells that a class needs.

    Source: Platt's scaling (1999) of each class's own probability, with a ridge towards the identity.
    """
    fitted = {}
    for class_id, name in enumerate(names):
        own = cells.where(cells.class_id == class_id)
        if len(own.score) >= min_cells:
            fitted[name] = _fit_class(own)
    return Calibration(classes=fitted)


def _fit_class(cells: LabelledCells) -> ClassCalibration:
    from scipy.optimize import minimize
    from scipy.special import expit, logit

    # Cells of one image are far from independent: an image counts as one observation, whatever its cells, so that the
    # penalty holds a class of few images near the identity.
    weight = len(np.unique(cells.image)) / len(cells.score)
    at = logit(np.clip(cells.score, LOWEST, HIGHEST))
    sign = np.where(cells.right, 1.0, -1.0)

    def loss(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        scale = np.exp(x[0])  # positive whatever the optimiser tries
        margin = sign * (scale * at + x[1])
        slope = -weight * sign * expit(-margin)
        value = float(weight * np.logaddexp(0, -margin).sum() + PENALTY / 2 * (x @ x))
        return value, np.array([(slope * at).sum() * scale, slope.sum()]) + PENALTY * x

    found = minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B").x
    return ClassCalibration(temperature=round(float(np.exp(-found[0])), 6), bias=round(float(found[1]), 6))


def calibration_error(score: NDArray[np.floating], right: NDArray[np.bool_]) -> float | None:
    """Return the expected calibration error in [0, 1]: the gap between shares of right cells and mean probabilities.

    Args:
        score: (N,) probabilities in [0, 1]; put into `BINS` bins of equal width, whose gaps are averaged by cells.
        right: (N,) bool.

    Returns:
        None without cells.

    Source: Guo et al., On Calibration of Modern Neural Networks (2017).
    """
    if not len(score):
        return None
    bins = np.minimum((np.asarray(score, np.float64) * BINS).astype(np.int64), BINS - 1)
    gaps = np.bincount(bins, weights=score, minlength=BINS) - np.bincount(bins, weights=right, minlength=BINS)
    return float(np.abs(gaps).sum() / len(score))
