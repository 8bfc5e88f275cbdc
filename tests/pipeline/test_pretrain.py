"""The settings of stage 1: which training a preset gets, and where its files lie."""

from pathlib import Path

import pytest

from jobs.training.config import TrainConfig
from pipeline.commands.pretrain import TINY_STAGE1, PretrainRequest, pretrain_config

OUT = Path("stage1.safetensors")


def test_the_tiny_preset_gets_the_recipe_of_the_shipped_weights() -> None:
    assert pretrain_config(PretrainRequest(OUT)).train == TINY_STAGE1
    assert pretrain_config(PretrainRequest(OUT, sets=("model.preset=tiny", "model.dea=false"))).train == TINY_STAGE1


def test_another_preset_gets_the_papers_training_on_labelled_images_alone(tmp_path: Path) -> None:
    paper = TrainConfig(target_per_step=0, source_per_step=4, classes="seen")
    assert pretrain_config(PretrainRequest(OUT, sets=("model.preset=base",))).train == paper
    file = tmp_path / "base.yaml"
    file.write_text("model: {preset: large}\n")
    assert pretrain_config(PretrainRequest(OUT, file=file)).train == paper
    assert pretrain_config(PretrainRequest(OUT, file=file, sets=("model.preset=tiny",))).train == TINY_STAGE1
    own = pretrain_config(PretrainRequest(OUT, file=file, sets=("train.steps=7",))).train
    assert own == paper.model_copy(update={"steps": 7})


def test_relative_weights_become_absolute_however_they_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "head.safetensors").touch()
    sets = tuple(f"model.{name}_weights={name}.safetensors" for name in ("clip", "sam", "baseline"))
    model = pretrain_config(PretrainRequest(OUT, init_from=Path("head.safetensors"), sets=sets)).model
    assert model.stage1_weights == tmp_path / "head.safetensors"
    assert model.clip_weights == tmp_path / "clip.safetensors"
    assert model.sam_weights == tmp_path / "sam.safetensors"
    assert model.baseline_weights == tmp_path / "baseline.safetensors"
    named = pretrain_config(PretrainRequest(OUT, sets=("model.stage1_weights=head.safetensors",))).model
    assert named.stage1_weights == tmp_path / "head.safetensors"
