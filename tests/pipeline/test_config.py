from pathlib import Path
from typing import Any

import pytest

from pipeline.config import (
    TINY_TRAINING,
    RunConfig,
    changed_settings,
    identity_changes,
    laid_over,
    load_config,
    resolve_config,
    save_config,
)
from pipeline.run.run import build_vocabulary
from pipeline.settings import settings_fault
from shards.data.sources import FolderSourceConfig, ScenesSourceConfig


def resolved(*sets: str, asked: dict[str, Any] | None = None, base: RunConfig | None = None) -> RunConfig:
    return resolve_config(asked or {}, sets, where="--set", base=base)


def test_the_default_is_the_embedded_one() -> None:
    config = resolved()
    assert config == RunConfig()
    assert config.model.preset == "tiny"
    assert config.shard_size == 50
    assert isinstance(config.data.target, ScenesSourceConfig)
    assert (config.data.target.split, config.data.target.count) == ("target", 400)


def test_saved_settings_are_read_back_the_same(tmp_path: Path) -> None:
    config = resolved("refine.gate.threshold=0.75", "data.test=null", "model.dea=false")
    save_config(tmp_path / "config.yaml", config)
    assert load_config(tmp_path / "config.yaml") == config


def test_a_file_of_few_settings_leaves_the_rest_of_each_section_at_the_default() -> None:
    config = resolved(asked={"train": {"steps": 7}})
    assert config.train.steps == 7
    assert config.train.learning_rate == RunConfig().train.learning_rate


def test_sets_win_over_the_file_and_the_file_over_the_base() -> None:
    base = resolved("train.steps=1", "train.warmup_steps=3")
    config = resolved("train.steps=9", asked={"train": {"steps": 5, "power": 0.5}}, base=base)
    assert (config.train.steps, config.train.power, config.train.warmup_steps) == (9, 0.5, 3)


def test_prompt_names_reach_the_vocabulary_of_a_run() -> None:
    sets = ('vocabulary.prompt_names={"red ring": "hoop, loop"}',)
    run = build_vocabulary(resolved(*sets))
    assert run.classes[run.names.index("red ring")].synonyms == ("hoop", "loop")
    assert run.names == build_vocabulary(resolved()).names


def test_augmentation_is_set_name_by_name_and_checked_as_a_whole() -> None:
    config = resolved("train.augment.flip=0.5", "train.augment.scale=[0.8, 1.5]", "train.augment.embeddings=encode")
    assert (config.train.augment.flip, config.train.augment.scale) == (0.5, (0.8, 1.5))
    assert config.train.augment.brightness == 0
    with pytest.raises(ValueError, match="nothing is augmented"):
        resolved("train.augment.embeddings=encode")


def test_another_preset_gets_the_papers_training() -> None:
    assert resolved("model.preset=base").train.learning_rate == 2e-4
    assert resolved().train == TINY_TRAINING


def test_a_source_of_another_kind_replaces_the_old_one_whole(tmp_path: Path) -> None:
    config = resolved(asked={"data": {"target": {"kind": "folder", "images": str(tmp_path)}}})
    assert config.data.target == FolderSourceConfig(images=str(tmp_path))
    assert laid_over({"a": {"kind": "x", "p": 1}}, {"a": {"kind": "x", "q": 2}}) == {"a": {"kind": "x", "p": 1, "q": 2}}
    assert laid_over({"a": {"kind": "x", "p": 1}}, {"a": {"kind": "y"}}) == {"a": {"kind": "y"}}


def test_relative_folders_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = resolved("data.target={kind: folder, images: photos}", "model.stage1_weights=mine.safetensors")
    assert config.data.target == FolderSourceConfig(images=str(tmp_path / "photos"))
    assert config.model.stage1_weights == tmp_path / "mine.safetensors"


def test_class_names_are_read_from_the_file_that_is_named(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog, hound\n")
    config = resolved(f"vocabulary.classes={tmp_path / 'names.txt'}", "vocabulary.seen=null")
    assert config.vocabulary.classes == ("cat", "dog, hound")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ("seed=1", "seed 0 -> 1"),
        ("model.preset=base", "model.preset tiny -> base"),
        ("data.target.count=5", "data.target.count 400 -> 5"),
        ("vocabulary.seen=null", "vocabulary.seen"),
        ("data.source=null", "data.source"),
        ("shard_size=10", "shard_size 50 -> 10"),
    ],
)
def test_what_a_run_is_made_for_is_named_when_it_differs(change: str, field: str) -> None:
    changes = identity_changes(RunConfig(), resolved(change, base=RunConfig()))
    assert any(text.startswith(field) for text in changes), changes


def test_other_settings_may_change_and_are_named_too() -> None:
    new = resolved("refine.gate.threshold=0.8", base=RunConfig())
    assert identity_changes(RunConfig(), new) == []
    assert changed_settings(RunConfig(), new) == ["refine.gate.threshold 0.5 -> 0.8"]


def test_unknown_names_in_every_section_are_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"did you mean 'refine.gate.threshold'"):
        resolved("refine.gate.treshold=0.8")
    with pytest.raises(ValueError, match=r"did you mean 'train.steps'"):
        resolved("steps=10")
    with pytest.raises(ValueError, match=r"data.target.*images"):
        resolved("data.target={kind: folder}")


def test_a_calibration_s_path_is_made_whole() -> None:
    found = resolved("refine.gate.calibration=calibration.json").refine.gate.calibration
    assert found == Path("calibration.json").resolve()
    assert resolved("seed=1").refine.gate.calibration is None


def test_naming_one_number_of_adaptive_thresholds_turns_them_on() -> None:
    adaptive = resolved("refine.gate.adaptive.share=0.75").refine.gate.adaptive
    assert adaptive is not None
    assert (adaptive.floor, adaptive.cap, adaptive.share) == (0.5, 0.9, 0.75)


def test_other_presets_and_other_images_than_the_embedded_ones_have_the_papers_teacher_and_gate() -> None:
    embedded = resolved()
    for other in (resolved("model.preset=base"), resolved("data.target={kind: folder, images: photos}")):
        assert (other.teacher.views, other.refine.gate.threshold) == (("identity",), 0.9)
    assert (embedded.teacher.views, embedded.refine.gate.threshold) == (("identity", "mirror"), 0.5)


def test_workers_that_cannot_share_a_step_are_refused_before_anything_starts() -> None:
    with pytest.raises(ValueError, match=r"by 3 workers.*one of 1, 2, 4$"):
        resolve_config({}, ("resources.train.workers=3",), where="--set")
    assert resolve_config({}, ("resources.train.workers=4",), where="--set").resources.train.sizes == range(4, 5)


def test_an_elastic_group_s_least_size_is_not_above_its_size() -> None:
    with pytest.raises(ValueError, match="min_workers 2 is above workers 1"):
        resolve_config({}, ("resources.train.min_workers=2",), where="--set")


def test_saved_settings_tell_whether_they_are_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    save_config(path, RunConfig())
    assert settings_fault(path) is None
    whole = path.read_bytes()
    for index in [*range(200), *range(200, len(whole), 31)]:
        path.write_bytes(whole[:index] + bytes([whole[index] ^ (1 << index % 8)]) + whole[index + 1 :])
        assert settings_fault(path) is not None, index
    comment, _, text = whole.split(b"\n", 2)
    path.write_bytes(comment + b"\n" + text)
    assert settings_fault(path) == "its checksum cannot be read"
    plain = b"".join(line for line in text.splitlines(keepends=True) if not line.lstrip().startswith(b"#"))
    path.write_bytes(b"# The settings of this run, all of them. Change them with --set.\n" + plain)
    assert settings_fault(path) is None  # as the first versions wrote it
    assert load_config(path) == RunConfig()
