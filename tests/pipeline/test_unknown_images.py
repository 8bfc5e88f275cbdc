"""Images that the shipped model does not know: no command labels them without saying what that is worth."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_setup import again, invoke, report, sets

from jobs.stages.start import CAUTION
from models.interop.find_weights import sam_file
from models.presets import load_preset
from pipeline.run.run import BASE_CLIP, BASE_SAM, read_run


@pytest.fixture
def given(tmp_path: Path) -> tuple[str, ...]:
    """Options that name three pictures of nothing that a scene shows, and two names."""
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for index in range(3):
        coarse = Image.fromarray(rng.integers(0, 255, (4, 5, 3)).astype(np.uint8))
        coarse.resize((60, 50), Image.Resampling.BICUBIC).save(tmp_path / "photos" / f"{index}.png")
    (tmp_path / "names.txt").write_text("animal\nground\n")
    return "--images", str(tmp_path / "photos"), "--classes", str(tmp_path / "names.txt")


def test_init_refuses_a_preset_that_nobody_named_and_says_what_to_get(tmp_path: Path, given: tuple[str, ...]) -> None:
    code, _, err = invoke("init", str(tmp_path / "run"), *given)
    assert code == 2
    for part in ("tiny", "junk", BASE_CLIP, BASE_SAM, "doctor --preset base", "--preset base", "--preset tiny"):
        assert part in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_the_files_that_it_names_are_those_of_the_preset() -> None:
    base = load_preset("base")
    assert (base.clip.architecture, sam_file(base.sam)) == (BASE_CLIP, BASE_SAM)


@pytest.mark.parametrize("how", ["option", "set", "file", "stage1"])
def test_a_model_may_be_named_by_option_setting_file_or_its_stage_1(
    tmp_path: Path, given: tuple[str, ...], weights: dict[str, str], how: str
) -> None:
    (tmp_path / "own.yaml").write_text("model: {preset: tiny}\n")
    named = {
        "option": ["--preset", "tiny"],
        "set": ["--set", "model.preset=tiny"],
        "file": ["--config", str(tmp_path / "own.yaml")],
        "stage1": ["--set", f"model.stage1_weights={weights['model.stage1_weights']}"],
    }
    code, out, err = invoke("init", str(tmp_path / "run"), *given, *named[how], "--json")
    assert code == 0, err
    assert json.loads(out)["images"] == 3
    assert (f"caution: {CAUTION}" in err) == (how != "stage1")  # weights of the user's may know the images


def test_a_run_made_by_round_with_images_of_the_users_needs_a_named_model_and_the_scenes_none(
    tmp_path: Path, given: tuple[str, ...]
) -> None:
    target = sets({"data.target": f"{{kind: folder, images: {given[1]}}}", "data.source": "null", "data.test": "null"})
    classes = sets({"vocabulary.classes": "[animal, ground]", "vocabulary.seen": "null"})
    arguments = ("--run", str(tmp_path / "run"), "--n", "0", "--backend", "inline", *target, *classes)
    code, _, err = invoke("round", *arguments)
    assert (code, "--set model.preset=tiny" in err) == (2, True)
    assert invoke("plan", "--run", str(tmp_path / "run"))[0] == 4


@pytest.mark.slow
def test_a_teacher_that_guesses_ends_the_round_with_the_reason_not_only_with_nothing_to_write(
    tmp_path: Path, given: tuple[str, ...]
) -> None:
    run = tmp_path / "run"
    assert invoke("init", str(run), *given, "--preset", "tiny")[0] == 0
    code, _, err = again(run)
    assert code == 4
    assert "gave no sample" in err
    assert "of a guess among 2 classes" in err
    assert CAUTION in err


@pytest.mark.slow
def test_labels_of_a_guess_raise_an_alarm_and_the_caution_is_in_result_and_report(
    tmp_path: Path, given: tuple[str, ...]
) -> None:
    run = tmp_path / "run"
    few = {"refine.gate.threshold": "0", "train.steps": "1", "promotion.on_regression": "keep"}
    assert invoke("init", str(run), *given, "--preset", "tiny", *sets(few))[0] == 0
    code, out, err = again(run)
    assert code == 0, err
    assert "guessing" in {alarm["kind"] for alarm in report(run, 1)["alarms"]}
    assert "alarm: teacher of round 1: its first choice has" in out
    assert f"caution: {CAUTION}" in out
    assert report(run, 1)["caution"] == CAUTION
    page = (run / "rounds" / "001" / "report.html").read_text()
    assert f"{CAUTION[0].upper()}{CAUTION[1:]}." in page
    code, out, err = again(run, "--set", "promotion.measure=stability", "--set", "promotion.floor.stability=100")
    assert report(run, 1)["promotion"]["outcome"] in ("below_floor", "regressed")
    code, _, err = again(run, "--set", "promotion.on_regression=stop")
    assert (code, "promotion.on_regression=keep" in err) == (5, True)
    if report(run, 1)["promotion"]["outcome"] == "below_floor":
        assert "below the floor of promotion (stability" in err
        assert "--set promotion.floor=null" in err
        assert "below the floor, not promoted" in (run / "rounds" / "001" / "report.html").read_text()


def test_predict_says_that_it_guesses_and_what_the_shipped_model_knows(tmp_path: Path, given: tuple[str, ...]) -> None:
    arguments = ("predict", given[1], "--classes", "animal, ground", "--out", str(tmp_path / "out"))
    code, out, err = invoke(*arguments)
    assert code == 0, err
    told = [line for line in err.splitlines() if line.startswith("caution: ")]
    assert told[0] == f"caution: {CAUTION}"
    assert "the model: its first choice has" in told[1]
    assert len(told) == 2  # per command, not per image
    assert "caution" not in out
    code, out, _ = invoke(*arguments, "--json")
    assert json.loads(out)["cautions"] == [CAUTION]  # nothing was predicted anew


def test_predict_of_scenes_raises_no_alarm(tmp_path: Path) -> None:
    from shards.scenes.scenes import SCENE_CLASSES, render_scene

    (tmp_path / "scenes").mkdir()
    for index in range(4):
        Image.fromarray(render_scene("test", 0, index).image).save(tmp_path / "scenes" / f"{index}.png")
    arguments = ("--classes", ", ".join(SCENE_CLASSES), "--out", str(tmp_path / "out"), "--json")
    code, out, err = invoke("predict", str(tmp_path / "scenes"), *arguments)
    assert code == 0, err
    assert json.loads(out)["cautions"] == [CAUTION]


def test_a_run_of_the_scenes_has_no_caution(one_round: Path) -> None:
    assert "caution" not in report(one_round, 1)
    assert read_run(one_round).config.promotion.floor is None
