from pathlib import Path

import pytest
import yaml

from pipeline.config import resolve_config
from pipeline.errors import DataFault, SettingsConflict
from pipeline.run.run import make_run, open_or_make_run, read_run

SMALL = ("data.target.count=7", "data.source.count=4", "data.test=null", "data.validation=null", "shard_size=3")


def test_a_new_folder_gets_the_default_and_opens_again_the_same(tmp_path: Path) -> None:
    made = open_or_make_run(tmp_path / "run", sets=SMALL)
    assert [len(shard.samples) for shard in made.plan.shards] == [3, 3, 1]
    assert made.source_plan is not None
    assert open_or_make_run(tmp_path / "run") == made
    assert read_run(tmp_path / "run") == made
    assert yaml.safe_load(made.layout.config.read_text())["refine"]["gate"]["threshold"] == 0.5


def test_the_same_settings_make_the_same_files(tmp_path: Path) -> None:
    for name in "ab":
        open_or_make_run(tmp_path / name, sets=SMALL)
    for file in ("config.yaml", "vocabulary.json", "plan.json", "source_plan.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_another_identity_is_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    run = open_or_make_run(tmp_path / "run", sets=SMALL)
    before = run.layout.config.read_bytes()
    for change, field in (("seed=1", "seed 0 -> 1"), ("data.target.seed=4", r"data\.target\.seed 0 -> 4")):
        with pytest.raises(SettingsConflict, match=field):
            open_or_make_run(tmp_path / "run", sets=[change])
    assert run.layout.config.read_bytes() == before


def test_another_setting_is_saved_and_stays(tmp_path: Path) -> None:
    open_or_make_run(tmp_path / "run", sets=SMALL)
    open_or_make_run(tmp_path / "run", sets=["refine.gate.threshold=0.8"])
    assert open_or_make_run(tmp_path / "run").config.refine.gate.threshold == 0.8


def test_reading_with_other_settings_saves_nothing(tmp_path: Path) -> None:
    open_or_make_run(tmp_path / "run", sets=SMALL)
    assert read_run(tmp_path / "run", sets=["refine.gate.threshold=0.8"]).config.refine.gate.threshold == 0.8
    assert read_run(tmp_path / "run").config.refine.gate.threshold == 0.5


def test_a_file_is_laid_over_the_runs_settings_and_not_over_the_defaults(tmp_path: Path) -> None:
    open_or_make_run(tmp_path / "run", sets=SMALL)
    (tmp_path / "more.yaml").write_text("train: {steps: 5}\n")
    run = open_or_make_run(tmp_path / "run", tmp_path / "more.yaml")
    assert run.config.train.steps == 5
    assert run.plan.sample_count == 7


def test_a_folder_with_other_things_is_no_place_for_a_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match=r"thesis\.tex"):
        open_or_make_run(tmp_path, sets=SMALL)


def test_a_run_whose_making_was_interrupted_is_made_again(tmp_path: Path) -> None:
    run = open_or_make_run(tmp_path / "run", sets=SMALL)
    run.layout.config.unlink()
    assert open_or_make_run(tmp_path / "run", sets=SMALL) == run


def test_a_missing_run_and_a_damaged_one_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataFault, match="stseg-pipeline round --run"):
        read_run(tmp_path / "none")
    run = open_or_make_run(tmp_path / "run", sets=SMALL)
    run.layout.plan.unlink()
    with pytest.raises(DataFault, match="damaged"):
        read_run(tmp_path / "run")


def test_a_labelled_source_without_labels_is_refused(tmp_path: Path) -> None:
    source = "data.source={kind: scenes, split: target, count: 2}"
    with pytest.raises(ValueError, match="no labels"):
        make_run(tmp_path / "run", resolve_config({}, [*SMALL, source], where="--set"))
