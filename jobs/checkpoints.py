"""Checkpoints of a training: tensors in safetensors, the rest in JSON beside it, written last."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jobs.training_average import WeightAverage
from models.weights_files import read_weights, write_weights
from shards.files import remove_path, sha256_file, write_bytes_atomic

_NAME = "step-{:08d}"
_LOSSES = "losses"


@dataclass(frozen=True)
class TrainingState:
    """What a training changes.

    Attributes:
        parameters: What is trained, by name.
        optimizer: AdamW over just these.
        average: Their average over the steps.
        losses: Those of the last steps, oldest first; the record tells their mean.
    """

    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    average: WeightAverage
    losses: list[float] = field(default_factory=list)


def save_checkpoint(folder: Path, step: int, state: TrainingState, digest: str) -> None:
    """Write the state after `step` steps, then remove the older ones.

    Args:
        folder: Where checkpoints lie; made if it is not there.
        step: Steps done.
        state: What to write.
        digest: What the training is a function of; a checkpoint with another digest is never resumed from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {f"parameter/{name}": p.detach() for name, p in state.parameters.items()}
    tensors |= {f"average/{name}": value for name, value in state.average.values.items()}
    for name, parameter in state.parameters.items():
        for kind, value in state.optimizer.state[parameter].items():
            tensors[f"optimizer/{kind}/{name}"] = torch.as_tensor(value)
    tensors[_LOSSES] = torch.tensor(state.losses, dtype=torch.float64)
    path = folder / f"{_NAME.format(step)}.safetensors"
    write_weights(tensors, path)
    facts = {"step": step, "digest": digest, "sha256": sha256_file(path)}
    write_bytes_atomic(path.with_suffix(".json"), json.dumps(facts).encode())
    for old in folder.glob("step-*"):
        if old.stem != path.stem:
            remove_path(old)


def load_checkpoint(folder: Path, state: TrainingState, digest: str) -> int:
    """Load the newest whole checkpoint of this very training into its state.

    Returns:
        Steps done; 0 if there is none.
    """
    for facts_path in sorted(folder.glob("step-*.json"), reverse=True):
        path = facts_path.with_suffix(".safetensors")
        facts = _read_facts(facts_path)
        if facts.get("digest") != digest or checkpoint_fault(facts_path) is not None:
            continue
        tensors = read_weights(path)
        if _LOSSES not in tensors:  # of an earlier version
            continue
        state.losses[:] = tensors[_LOSSES].tolist()
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
        return int(facts["step"])
    return 0


def checkpoint_fault(facts_path: Path) -> str | None:
    """Say what is wrong with a checkpoint, given its JSON file; None if it is whole."""
    path, facts = facts_path.with_suffix(".safetensors"), _read_facts(facts_path)
    step = facts.get("step")
    if not isinstance(step, int) or _NAME.format(step) != facts_path.stem:
        return "its facts are damaged"
    if not path.is_file():
        return "its tensors are missing"
    return None if sha256_file(path) == facts.get("sha256") else "its tensors do not match their checksum"


def _read_facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}
