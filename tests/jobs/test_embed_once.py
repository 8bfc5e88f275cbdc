"""Images that a labelled split shares with the target are embedded once."""

import json
from pathlib import Path

import pytest
from PIL import Image
from run_setup import invoke, sets

from jobs.commit import why_stale
from jobs.stages import embed, evaluate, evaluated_samples
from pipeline.commands.choose_model import evaluate_round
from pipeline.run.run import OpenRun, read_run
from pipeline.tasks.recipe import all_tasks
from shards.data.labels import encode_label
from shards.data.vocabulary import Vocabulary
from shards.scenes.scenes import SCENE_CLASSES, render_scene

CLASSES = Vocabulary.from_names(SCENE_CLASSES)
FEW = {
    "teacher.views": "[identity]",
    "shard_size": "2",
    "refine.gate.threshold": "0",
    "train.steps": "1",
    "train.target_per_step": "1",
}


def scenes(folder: Path, *numbers: int) -> Path:
    """Write scenes and their labels."""
    for number in numbers:
        scene = render_scene("test", 0, number)
        for kind in ("images", "labels"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene.image).save(folder / "images" / f"{number}.png")
        (folder / "labels" / f"{number}.png").write_bytes(encode_label(scene.label, CLASSES))
    (folder / "names.txt").write_text("\n".join(SCENE_CLASSES))
    return folder


def make(root: Path, given: Path, weights: dict[str, str], **changes: str) -> OpenRun:
    options = ("--images", str(given / "images"), "--labels", str(given / "labels"))
    classes = ("--classes", str(given / "names.txt"))
    code, _, err = invoke("init", str(root), *options, *classes, *sets({**FEW, **weights, **changes}))
    assert code == 0, err
    return read_run(root)


def embeddings(run: OpenRun) -> list[str]:
    return sorted(task.output.name for task in all_tasks(run, 0) if task.stage.startswith("embed"))


def test_init_with_labels_plans_one_embedding_of_each_shard(weights: dict[str, str], tmp_path: Path) -> None:
    run = make(tmp_path / "run", scenes(tmp_path, 0, 1, 2), weights)
    assert embeddings(run) == ["000000.zarr", "000001.zarr"]
    (task,) = [task for task in evaluate.tasks(run, 0) if task.stage == "evaluate"]
    stores = {role: path for role, path in task.inputs.items() if role != "weights"}
    wanted = {f"embedding/test-{shard}": run.layout.embedding("target", shard) for shard in ("000000", "000001")}
    assert stores == wanted


def test_a_hold_out_of_the_target_is_not_embedded_again_and_reads_only_its_shards(
    weights: dict[str, str], tmp_path: Path
) -> None:
    given = scenes(tmp_path, 0, 1, 2, 3)
    folder = f"{{kind: folder, images: {given / 'images'}, labels: {given / 'labels'}}}"
    changes = {"data.validation": folder, "evaluate.holdout_images": "1", "data.test": "null"}
    run = make(tmp_path / "run", given, weights, **changes)
    assert embeddings(run) == ["000000.zarr", "000001.zarr"]
    (task,) = evaluate.tasks(run, 0)
    assert len([role for role in task.inputs if role.startswith("embedding/")]) == len(task.samples) == 1


def test_other_images_are_embedded_as_before_and_new_ones_alone(weights: dict[str, str], tmp_path: Path) -> None:
    given, other = scenes(tmp_path / "a", 0, 1, 2), scenes(tmp_path / "b", 0, 1, 2)
    folder = f"{{kind: folder, images: {other / 'images'}, labels: {other / 'labels'}}}"
    apart = make(tmp_path / "apart", given, weights, **{"data.test": folder})
    assert embeddings(apart) == ["000000.zarr", "000001.zarr", "test-000000.zarr", "test-000001.zarr"]
    run = make(tmp_path / "run", given, weights)
    scenes(tmp_path / "a", 7)  # after `init`, so that it is in the test split alone
    evaluated_samples._cached_samples.cache_clear()
    assert embeddings(run) == ["000000.zarr", "000001.zarr", "test-000000.zarr"]
    assert [ref.key for task in evaluate.embed_tasks(run, 0) for ref in task.samples] == ["7"]
    (task, *_) = evaluate.tasks(run, 0)
    assert len([role for role in task.inputs if role.startswith("embedding/")]) == 3


@pytest.mark.slow
def test_scores_are_those_of_images_embedded_twice_and_such_runs_stay_valid(
    weights: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = scenes(tmp_path, 0, 1, 2)
    monkeypatch.setattr(evaluate, "same_images", lambda one, other: False)  # as before
    twice = make(tmp_path / "twice" / "run", given, weights)
    do = ("round", "--n", "0", "--backend", "inline", "--run")
    assert invoke(*do, str(twice.layout.root))[0] == 0
    assert len(embeddings(twice)) == 4
    monkeypatch.undo()
    once = make(tmp_path / "once" / "run", given, weights)
    assert invoke(*do, str(once.layout.root))[0] == 0
    results = [run.layout.round(0) / "evaluate.json" for run in (twice, once)]
    assert results[0].read_bytes() == results[1].read_bytes()
    assert json.loads(results[0].read_bytes())["images"] == 3
    again = read_run(twice.layout.root)
    assert {why_stale(task) for task in all_tasks(again, 0)} == {None}
    for task in embed.tasks(once, 0):  # what reads them makes them again
        task.record.unlink()
    results[1].unlink()
    assert evaluate_round(once.layout.root, 0, "test")["images"] == 3
    assert results[0].read_bytes() == results[1].read_bytes()
