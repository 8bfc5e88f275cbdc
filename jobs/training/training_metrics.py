"""The loss while a training runs: the mean of the last steps, and `metrics.jsonl`, right also after a resume."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from shards.files.atomic import write_bytes_atomic
from shards.files.untrusted import parse_json, read_regular

LINE_EVERY: Final = 20
_KEPT: Final = 50

log = logging.getLogger(__name__)


class TrainingMetrics:
    """The losses of the last fifty steps, and a line with their mean in `metrics.jsonl` every twenty.

    The file is written whole each time, so that a worker which is thought dead and still writes cannot double a line.

    Args:
        path: The file; None: there is none (all workers but the first).
        step: Steps done; lines of later ones, from before a resume, are dropped, and so is what cannot be read.
        losses: The losses of the last steps before that.
    """

    def __init__(self, path: Path | None, step: int, losses: Sequence[float]) -> None:
        self._path = path
        self._losses = list(losses)
        self._lines = [] if path is None else [line for line in _lines(path) if line["step"] <= step]

    @property
    def losses(self) -> tuple[float, ...]:
        """The losses of the last steps, oldest first."""
        return tuple(self._losses)

    def add(self, step: int, loss: float) -> None:
        """Take in one step's loss; steps count from 0."""
        self._losses = [*self._losses[1 - _KEPT :], loss]
        if self._path is not None and (step + 1) % LINE_EVERY == 0:
            self._lines.append({"step": step + 1, "loss": round(self.mean(), 5)})
            write_bytes_atomic(self._path, "".join(json.dumps(line) + "\n" for line in self._lines).encode())
            log.info("step %d loss %.4f", step + 1, self.mean())

    def mean(self) -> float:
        """Give the mean loss of the last fifty steps."""
        return float(np.mean(self._losses)) if self._losses else 0.0


def _lines(path: Path) -> list[dict[str, float]]:
    found = []
    for text in read_regular(path).decode(errors="replace").splitlines() if path.is_file() else ():
        try:
            line = parse_json(text)
            found.append({"step": int(line["step"]), "loss": float(line["loss"])})
        except (ValueError, KeyError, TypeError, OverflowError):
            continue
    return found
