"""Checkpoints of a training: tensors in safetensors, the rest in JSON next to it, written last."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from jobs.counting import count_steps
from jobs.training.checkpoint_files import NAME, TrainingProgress, checkpoint_fault, read_facts
from models.weights.files import read_weights, write_weights
from shards.files.atomic import remove_path, remove_stale_temporaries, sha256_file, write_bytes_atomic
from shards.files.untrusted import parse_json, read_regular
from shards.formats.records import sealed

log = logging.getLogger(__name__)

_FILE = re.compile(r"step-[0-9]{8,}\.(json|safetensors)")
_KEPT = 2  # a damaged newest one then costs an interval and not the training


class WeightAverage:
    """A moving average of the trained parameters; empty with a decay of 0.

    Step t, from 0, moves it by 1 - min(decay, (1 + t) / (10 + t)) of the way to the parameters: a new average forgets
    its start quickly instead of keeping it for 1 / (1 - decay) steps.

    Source: Polyak averaging as in Mean Teacher (Tarvainen, Valpola 2017); the warm-up is TensorFlow's
    `ExponentialMovingAverage(num_updates=t)`.

    Attributes:
        values: The average by parameter name, on the parameters' devices; empty without one.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.values: dict[str, Tensor] = {}
        if decay > 0:
            self.values = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self._parameters = {name: parameters[name] for name in self.values}
        self._decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the parameters after a step."""
        # Workers of a group have equal parameters after each step, and so equal averages without communication.
        kept = min(self._decay, (1 + step) / (10 + step))
        for name, value in self.values.items():
            value.lerp_(self._parameters[name], 1 - kept)

    @torch.no_grad()
    def load_into_parameters(self) -> None:
        """Replace the parameters by the average; does nothing without one."""
        for name, value in self.values.items():
            self._parameters[name].copy_(value)


@dataclass(frozen=True)
class TrainingState:
    """What a training changes.

    Attributes:
        parameters: The trained parameters by name.
        optimizer: AdamW over these.
        average: Their average over the steps.
    """

    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    average: WeightAverage


def save_checkpoint(folder: Path, progress: TrainingProgress, state: TrainingState, digest: str) -> None:
    """Write a checkpoint, then remove all but the newest two of this training.

    Args:
        folder: The folder of checkpoints; made if it is missing.
        progress: The progress.
        state: What to write.
        digest: What the training is a function of; a checkpoint with another digest is never resumed from.
    """
    # No scheduler, sampler, random state or scaler: rate, order, class choice and noise of a step are functions of the
    # seed and the step, and bfloat16 needs no scaler. A resume is exact on any number of workers.
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {f"parameter/{name}": p.detach() for name, p in state.parameters.items()}
    tensors |= {f"average/{name}": value for name, value in state.average.values.items()}
    for name, parameter in state.parameters.items():
        for field, value in state.optimizer.state[parameter].items():
            tensors[f"optimizer/{field}/{name}"] = torch.as_tensor(value)
    path = folder / f"{NAME.format(progress.step)}.safetensors"
    write_weights(tensors, path)
    facts = {**asdict(progress), "digest": digest, "sha256": sha256_file(path)}
    write_bytes_atomic(path.with_suffix(".json"), sealed(json.dumps(facts, indent=1).encode()))
    remove_stale_temporaries(folder)
    newest = sorted({found.stem for found in folder.glob("step-*") if _digest_of(found) == digest})[-_KEPT:]
    for old in folder.glob("step-*"):
        if old.stem not in newest and _FILE.fullmatch(old.name):
            remove_path(old)


def load_checkpoint(folder: Path, state: TrainingState, digest: str) -> TrainingProgress:
    """Load the newest undamaged checkpoint of the same training into its state.

    Returns:
        Its progress; zero steps if there is none.
    """
    # Our own files and not Ray Train's: after a kill Ray resumed from the checkpoint before the newest one, which its
    # controller had not registered yet.
    for facts_path in sorted(folder.glob("step-*.json"), reverse=True):
        path = facts_path.with_suffix(".safetensors")
        facts = read_facts(facts_path)
        if facts.get("digest") != digest:
            continue
        fault = checkpoint_fault(facts_path)
        if fault is not None:
            log.warning("checkpoint %s: %s; an older one is resumed from", path, fault)
            continue
        tensors = read_weights(path)
        with torch.no_grad():
            for name, value in state.average.values.items():
                value.copy_(tensors[f"average/{name}"])
            for name, parameter in state.parameters.items():
                parameter.copy_(tensors[f"parameter/{name}"])
                state.optimizer.state[parameter] = {
                    key.split("/")[1]: value.to(parameter.device) if value.ndim else value  # AdamW counts on the CPU
                    for key, value in tensors.items()
                    if key.startswith("optimizer/") and key.split("/", 2)[2] == name
                }
        return TrainingProgress(facts["step"], tuple(facts["losses"]), tuple(facts["group_sizes"]))
    return TrainingProgress()


def _digest_of(path: Path) -> object:
    """Return the digest of a checkpoint; None where it was never finished."""
    facts = path.with_suffix(".json")
    return read_facts(facts).get("digest") if facts.is_file() else None


LINE_EVERY: Final = 20
_KEPT_LOSSES: Final = 50


class TrainingMetrics:
    """Keeps the losses of the last fifty steps and writes their mean to `metrics.jsonl` every twenty.

    Args:
        path: The file; None for all workers but the first.
        step: Steps done; lines of later steps, from before a resume, are dropped, and so are unreadable ones.
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
        """Add the loss of a step; steps count from 0."""
        self._losses = [*self._losses[1 - _KEPT_LOSSES :], loss]
        if self._path is not None:
            count_steps(step + 1, self.mean())
        if self._path is not None and (step + 1) % LINE_EVERY == 0:
            self._lines.append({"step": step + 1, "loss": round(self.mean(), 5)})
            # Whole each time: a worker that is taken for dead and still writes cannot double a line.
            write_bytes_atomic(self._path, "".join(json.dumps(line) + "\n" for line in self._lines).encode())
            log.info("step %d loss %.4f", step + 1, self.mean())

    def mean(self) -> float:
        """Return the mean loss of the last fifty steps."""
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
