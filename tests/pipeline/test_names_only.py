"""A run that begins with nothing but names: CLIP alone teaches round 1, and its student starts without a stage 1."""

import json
from pathlib import Path

import numpy as np
from run_setup import SMALL, invoke, random_weights, report, sets

from jobs.inference.model import ModelSettings, load_stseg, model_of
from jobs.run import best_weights, student_weights
from jobs.stages.start import TRAINING_FREE
from models.stseg.decoder import CostAwareDecoder
from models.stseg.training_free import MeanCosine, is_training_free
from models.weights.files import WEIGHTS_FOLDER
from pipeline.run.run import read_run
from pipeline.run.verify import verify_run


def names_only(folder: Path) -> dict[str, str]:
    found = {**SMALL, **random_weights(folder), "model.stage1_weights": "none", "promotion.measure": "none"}
    del found["model.baseline_weights"]
    return {**found, "promotion.allow_vanished": "true"}


def test_clip_alone_teaches_round_1_and_the_student_after_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, _, err = invoke("round", "--n", "2", "--run", str(run), "--backend", "inline", *sets(names_only(tmp_path)))
    assert code == 0, err
    opened = read_run(run)
    assert opened.config.model.stage1_weights == "none"
    assert is_training_free(best_weights(opened, 0))
    assert not is_training_free(best_weights(opened, 1))
    assert best_weights(opened, 1).read_bytes() == student_weights(opened, 1).read_bytes()
    assert report(run, 0)["miou"] is not None
    assert "baseline" not in {path.name for path in opened.layout.round(0).iterdir()}
    checked = verify_run(run)
    assert (checked.faults, checked.stale, checked.undone, checked.unjudged) == ((), (), 0, None)
    code, _, err = invoke("round", "--n", "2", "--run", str(run), "--backend", "inline")
    assert (code, "nothing to do" in err) == (0, True)
    start = load_stseg(model_of(opened, best_weights(opened, 0)))
    assert isinstance(start.decoder, MeanCosine) and start.dea is None
    fresh = load_stseg(model_of(opened, best_weights(opened, 0)), to_train=True)
    assert isinstance(fresh.decoder, CostAwareDecoder) and fresh.dea is not None


def test_the_start_of_the_student_is_seeded(tmp_path: Path) -> None:
    weights = names_only(tmp_path)
    students = []
    for name in ("one", "two"):
        run = tmp_path / name
        code, _, err = invoke("round", "--n", "1", "--run", str(run), "--backend", "inline", *sets(weights))
        assert code == 0, err
        students.append(student_weights(read_run(run), 1).read_bytes())
    assert students[0] == students[1]


def test_predict_and_export_take_the_training_free_network(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "a.png")
    chosen = ("--set", "model.stage1_weights=none", "--classes", "grass, water")
    code, out, err = invoke("predict", str(tmp_path / "a.png"), *chosen, "--out", str(tmp_path / "seen"), "--json")
    assert code == 0, err
    assert json.loads(out)["predicted"] == 1
    code, _, err = invoke("export", "model", *chosen, "--out", str(tmp_path / "model.pt2"))
    assert code == 0, err


def test_doctor_counts_no_stage_1_as_none_missing(tmp_path: Path) -> None:
    code, out, _ = invoke("doctor", "--preset", "tiny", "--set", "model.stage1_weights=none", "--json")
    found = json.loads(out)
    assert (code, found["ready"]) == (0, True)
    assert "--set model.stage1_weights=none" in found["next"][0]


def test_none_is_no_path_and_names_no_preset(tmp_path: Path) -> None:
    settings = ModelSettings.model_validate({"stage1_weights": "none"}).with_whole_paths()
    assert (settings.stage1_weights, settings.stage1_file) == ("none", None)
    assert is_training_free(WEIGHTS_FOLDER / TRAINING_FREE)
    (tmp_path / "names.txt").write_text("grass\n")
    (tmp_path / "images").mkdir()
    arguments = ("--images", str(tmp_path / "images"), "--classes", str(tmp_path / "names.txt"))
    code, _, err = invoke("init", str(tmp_path / "run"), *arguments, "--set", "model.stage1_weights=none")
    assert (code, "name a preset" in err) == (2, True)
