"""Round 1 from labels that another model made: masks in a folder or a COCO file, or scores."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from run_setup import invoke as invoke_command
from run_setup import random_weights, sets

from jobs.artifacts.labels import read_refined
from jobs.run import best_weights
from jobs.stages import given
from jobs.stages.given import NO_SCORES
from jobs.stages.refine_masks import NO_MASK
from jobs.stages.teacher import predicted_tasks
from pipeline.run.run import read_run
from pipeline.run.verify import verify_run
from pipeline.tasks.recipe import job_groups
from shards.formats.records import read_record

NAMES = ("sky", "grass", "brick")
SIZE = (40, 60)
KEYS = ("a", "b", "c")
SMALL = {
    "shard_size": "2",
    "refine.gate.threshold": "0.0",
    "train.steps": "2",
    "train.target_per_step": "1",
    "promotion.measure": "none",
    "promotion.allow_vanished": "true",
    "evaluate.target_images": "2",
}


def label() -> NDArray[np.uint8]:
    found = np.full(SIZE, 255, np.uint8)
    found[5:20, 10:40], found[30:38, :] = 0, 2
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("images", "masks", "scores"):
        (tmp_path / name).mkdir()
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    for key in KEYS:
        Image.fromarray(rng.integers(0, 255, (*SIZE, 3), dtype=np.uint8)).save(tmp_path / "images" / f"{key}.png")
        Image.fromarray(label()).save(tmp_path / "masks" / f"{key}.png")
        write_scores(tmp_path / "scores" / f"{key}.npz")
    return tmp_path


def write_scores(path: Path, **changes: Any) -> None:
    ids = np.zeros((2, 8, 12), np.uint8)
    ids[0, 4:], ids[1, :4], ids[1, 4:] = 2, 1, 0
    scores = np.stack([np.full((8, 12), 0.95), np.full((8, 12), 0.05)]).astype(np.float32)
    np.savez(path, **{"ids": ids, "scores": scores, **changes})


def write_coco(path: Path, keys: tuple[str, ...] = KEYS, category: str = "Brick") -> None:
    runs: list[int] = []  # column by column: 25 rows free, then 10 of the mask, 5 free, in each of the 60 columns
    for _ in range(SIZE[1]):
        runs += [25 if not runs else 30, 10]
    runs.append(5)
    images = [{"id": n, "file_name": f"train/{key}.png", "height": 40, "width": 60} for n, key in enumerate(keys)]
    square = [[10.0, 5.0, 40.0, 5.0, 40.0, 20.0, 10.0, 20.0]]
    annotations = [
        {"image_id": n, "category_id": 90, "segmentation": {"size": [40, 60], "counts": runs}} for n in range(len(keys))
    ]
    annotations += [{"image_id": n, "category_id": 7, "segmentation": square} for n in range(len(keys))]
    categories = [{"id": 7, "name": "sky"}, {"id": 90, "name": category}, {"id": 4, "name": "unicorn"}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def invoke(*arguments: str) -> tuple[int, str, str]:
    given._given_samples.cache_clear()  # as in a process of its own
    return invoke_command(*arguments)


def init(folder: Path, *more: str) -> tuple[int, str, str]:
    weights = random_weights(folder)
    del weights["model.stage1_weights"]
    settings = {**SMALL, **weights, "model.stage1_weights": "none"}
    images, classes = str(folder / "images"), str(folder / "names.txt")
    arguments = ("init", str(folder / "run"), "--images", images, "--classes", classes, "--preset", "tiny")
    return invoke(*arguments, *sets(settings), *more)


def rounds(folder: Path, number: int, *more: str) -> tuple[int, str, str]:
    return invoke("round", "--n", str(number), "--run", str(folder / "run"), "--backend", "inline", *more)


def option(folder: Path, kind: str) -> tuple[str, ...]:
    if kind == "coco":
        write_coco(folder / "masks.json")
        return ("--teacher-masks", str(folder / "masks.json"))
    return (f"--teacher-{kind}", str(folder / kind))


@pytest.mark.parametrize("kind", ["masks", "coco", "scores"])
def test_round_1_begins_with_given_labels_and_round_2_with_the_student(folder: Path, kind: str) -> None:
    code, out, err = init(folder, *option(folder, kind))
    assert code == 0, err
    assert "3 of 3 images have" in out
    code, _, err = rounds(folder, 2)
    assert code == 0, err
    run = read_run(folder / "run")
    stored = read_refined(run.layout.refine(1, "000000"), ("label", "teacher"))
    assert stored.keys == ("a", "b")
    assert {0, 2} <= set(np.unique(stored.maps["teacher"][0]).tolist())
    assert stored.teacher_weights == ("scores" if kind == "scores" else "masks")
    assert predicted_tasks(run, 1) == []
    (first, *_) = predicted_tasks(run, 2)
    assert first.inputs["weights"] == best_weights(run, 1)
    student = (run.layout.student(1) / "model.safetensors").read_bytes()
    assert best_weights(run, 1).read_bytes() == student
    assert rounds(folder, 2)[2].count("nothing to do") == 1
    checked = verify_run(folder / "run")
    assert (checked.faults, checked.stale, checked.undone, checked.unjudged) == ((), (), 0, None)


def test_image_without_a_mask_is_counted_and_taken_up_once_it_has_one(folder: Path) -> None:
    (folder / "masks" / "b.png").unlink()
    code, out, _ = init(folder, *option(folder, "masks"))
    assert (code, "2 of 3 images have one, 1 has none (the first: b.png" in out) == (0, True)
    code, _, err = rounds(folder, 1)
    assert (code, "refine of round 1: 1 image has no given mask, and no label in this round: b" in err) == (0, True)
    run = read_run(folder / "run")
    drops = read_record(run.layout.refine(1, "000000").with_suffix(".json")).drops
    assert [(drop.key, drop.reason) for drop in drops] == [("b", NO_MASK)]
    Image.fromarray(label()).save(folder / "masks" / "b.png")
    rows = json.loads(invoke("plan", "--n", "1", "--run", str(folder / "run"), "--json")[1])
    (refine,) = [row for row in rows if row["stage"] == "refine"]
    assert (refine["done"], refine["stale"]) == (1, 1)
    assert rounds(folder, 1)[0] == 0
    assert read_record(run.layout.refine(1, "000000").with_suffix(".json")).drops == ()


def test_unusable_scores_and_missing_ones_cost_their_own_image(folder: Path) -> None:
    (folder / "scores" / "a.npz").unlink()
    write_scores(folder / "scores" / "b.npz", ids=np.full((2, 8, 12), 9))
    assert init(folder, *option(folder, "scores"))[0] == 0
    assert rounds(folder, 1, "--set", "shard_size=2")[0] == 0
    run = read_run(folder / "run")
    record = read_record(run.layout.teacher(1, "000000").with_suffix(".json"))
    assert [(drop.key, drop.reason) for drop in record.drops] == [("a", NO_SCORES), ("b", "label_ids")]
    assert "class id 9 is not among 0..2" in record.drops[1].detail


def test_masks_that_change_make_their_shard_stale_and_a_copy_of_them_does_not(folder: Path) -> None:
    assert init(folder, *option(folder, "masks"))[0] == 0
    assert rounds(folder, 1)[0] == 0
    shutil.copytree(folder / "masks", folder / "copy")
    moved = ("--set", f"teacher.masks={folder / 'copy'}")
    assert "nothing to do" in rounds(folder, 1, *moved)[2]
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(folder / "copy" / "c.png")
    rows = json.loads(invoke("plan", "--n", "1", "--run", str(folder / "run"), "--json")[1])
    (refine,) = [row for row in rows if row["stage"] == "refine"]
    assert (refine["done"], refine["stale"], refine["because"]) == (1, 1, "input samples changed")


def test_stages_of_round_1_are_those_that_given_masks_leave(folder: Path) -> None:
    # Labels that measure must not make it a run of `refine --masks`, though round 1 has a folder before round 0.
    assert init(folder, *option(folder, "masks"), "--labels", str(folder / "masks"))[0] == 0
    run = str(folder / "run")
    for name in ("embed", "refine", "write"):
        code, _, err = invoke("stage", name, "--run", run, "--backend", "inline")
        assert code == 0, err
    code, _, err = invoke("stage", "teacher", "--run", run, "--backend", "inline")
    assert (code, "round 1 has no stage 'teacher'" in err) == (2, True)
    assert job_groups(read_run(folder / "run"), 1)[0] == [("refine",), ("write",)]
    stages = [row["stage"] for row in json.loads(invoke("status", "--run", run, "--json")[1])["stages"]]
    assert "teacher" not in stages and "refine" in stages
    code, _, err = invoke("replay", "--run", run, "--round", "1", "--set", "gate.threshold=0.5")
    assert (code, "began with the masks" in err, "have no scores" in err) == (2, True, True)


def test_labels_of_no_image_are_refused_before_any_work(folder: Path) -> None:
    for file in (folder / "masks").iterdir():
        file.rename(file.with_name(f"x{file.name}"))
    code, _, err = init(folder, *option(folder, "masks"))
    assert (code, "none of 3 images has a mask" in err) == (2, True)
    write_coco(folder / "other.json", keys=("d",))
    code, _, err = init(folder, "--teacher-masks", str(folder / "other.json"))
    assert (code, "has a mask of none of the 3 images" in err) == (2, True)


def test_classes_that_the_run_does_not_have_are_refused_by_name(folder: Path) -> None:
    write_coco(folder / "masks.json", category="dragon")
    code, _, err = init(folder, "--teacher-masks", str(folder / "masks.json"))
    assert (code, "masks.json has masks of 'dragon'" in err) == (2, True)
    for key in KEYS:
        Image.fromarray(np.full(SIZE, 7, np.uint8)).save(folder / "masks" / f"{key}.png")
        write_scores(folder / "scores" / f"{key}.npz", ids=np.full((2, 8, 12), 9))
    code, _, err = init(folder, *option(folder, "masks"))
    assert (code, "id 7" in err) == (2, True)
    code, _, err = init(folder, *option(folder, "scores"))
    assert (code, "no scores can be used" in err, "class id 9" in err) == (2, True, True)


def test_settings_that_exclude_each_other_are_refused(folder: Path) -> None:
    code, _, err = init(folder, *option(folder, "masks"), *option(folder, "scores"))
    assert (code, "teacher.masks and teacher.scores are both set" in err) == (2, True)
    code, _, err = init(
        folder,
        *option(folder, "masks"),
        "--set",
        "refine.gate.adaptive.share=0.5",
        *sets({"refine.gate.threshold": "0.9"}),
    )
    assert (code, "teacher.masks has none in round 1" in err) == (2, True)
    code, _, err = init(folder, "--set", "train.loss.kind=bce")
    assert (code, "set train.loss.kind=eq6" in err) == (2, True)


def test_generated_scenes_take_no_given_labels(folder: Path) -> None:
    masks = {"teacher.masks": str(folder / "masks"), "data.target.count": "3"}
    code, _, err = invoke("round", "--run", str(folder / "run"), *sets(masks))
    assert (code, "cannot teach generated scenes" in err) == (2, True)
