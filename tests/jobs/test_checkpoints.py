"""A checkpoint is whole or it is passed over."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from jobs.training.checkpoint_files import TrainingProgress, checkpoint_fault
from jobs.training.checkpoints import TrainingState, WeightAverage, load_checkpoint, save_checkpoint


def trained(value: float) -> TrainingState:
    parameters = {"w": nn.Parameter(torch.full((3,), value))}
    optimizer = torch.optim.AdamW(parameters.values())
    parameters["w"].grad = torch.ones(3)
    optimizer.step()
    return TrainingState(parameters, optimizer, WeightAverage(parameters, 0.0))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def with_facts(change: dict[str, object]) -> Callable[[Path], object]:
    return lambda facts: facts.write_text(json.dumps(json.loads(facts.read_text()) | change))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "tensors, a bit": (lambda facts: flip(facts.with_suffix(".safetensors")), "checksum"),
    "tensors, lost": (lambda facts: facts.with_suffix(".safetensors").unlink(), "missing"),
    "facts, cut": (lambda facts: facts.write_bytes(facts.read_bytes()[:-3]), "damaged"),
    "facts, another step": (with_facts({"step": 3}), "damaged"),
    "facts, another checksum": (with_facts({"sha256": "0" * 64}), "checksum"),
}


@pytest.mark.parametrize("kind", sorted(DAMAGE))
def test_damage_is_named_and_the_training_begins_again(tmp_path: Path, kind: str) -> None:
    save_checkpoint(tmp_path, TrainingProgress(2), trained(1.0), "digest")
    facts = tmp_path / "step-00000002.json"
    assert checkpoint_fault(facts) is None
    state = trained(5.0)
    assert load_checkpoint(tmp_path, state, "another").step == 0
    damage, reason = DAMAGE[kind]
    damage(facts)
    assert reason in (checkpoint_fault(facts) or "")
    before = state.parameters["w"].clone()
    assert load_checkpoint(tmp_path, state, "digest").step == 0
    assert torch.equal(state.parameters["w"], before)


def test_a_whole_checkpoint_gives_its_step_and_state(tmp_path: Path) -> None:
    saved = trained(1.0)
    save_checkpoint(tmp_path, TrainingProgress(2), saved, "digest")
    state = trained(5.0)
    assert load_checkpoint(tmp_path, state, "digest").step == 2
    assert torch.equal(state.parameters["w"], saved.parameters["w"])


def test_any_flipped_byte_of_the_facts_is_found_and_old_facts_without_checksum_are_read(tmp_path: Path) -> None:
    progress = TrainingProgress(2, (1.5, 0.5), (4, 2))
    save_checkpoint(tmp_path, progress, trained(1.0), "digest")
    facts = tmp_path / "step-00000002.json"
    whole = facts.read_bytes()
    for index in range(len(whole)):
        facts.write_bytes(whole[:index] + bytes([whole[index] ^ (1 << index % 8)]) + whole[index + 1 :])
        assert "facts are damaged" in (checkpoint_fault(facts) or ""), index
    assert load_checkpoint(tmp_path, trained(5.0), "digest").step == 0
    old = json.loads(whole)
    del old["checksum"]
    facts.write_text(json.dumps(old))
    assert checkpoint_fault(facts) is None
    assert load_checkpoint(tmp_path, trained(5.0), "digest") == progress
