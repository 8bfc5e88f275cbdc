"""The task that measures shares, and the refine stage and the training that read them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from shard_setup import VOCABULARY, refine_settings, refined_shard, run_refine
from stage_setup import do
from training_setup import QUICK, STRONG, training_setup

from jobs.artifacts.labels import read_refined
from jobs.artifacts.scores import stored_scores
from jobs.artifacts.shares import STRENGTH, Shares
from jobs.commit import commit
from jobs.stage import Done, ShardTask
from jobs.stages import shares
from jobs.training.config import TrainConfig
from jobs.training.loop import SingleProcess, train_model
from models.refinement.gate import AdaptiveThreshold, GateConfig
from models.refinement.shares import shifted
from shards.data.vocabulary import Vocabulary
from shards.files.atomic import sha256_file, sha256_path
from shards.formats.arrays import read_arrays, write_arrays
from shards.formats.records import Record, write_record


def stores(folder: Path, unseen: float, images: int = 4, *, means: bool = True) -> ShardTask:
    """Return the task over images of which one half is `left`, seen and sure, one half `right`, unseen.

    Args:
        folder: Where to.
        unseen: How sure the teacher is of `right`; `left` is the second choice there.
        images: How many, two per shard.
        means: Whether the mean probability of each class is stored, as earlier versions did not.
    """
    inputs = {}
    for shard in range(images // 2):
        path = folder / "teacher" / f"{shard:06d}.zarr"
        ids = np.zeros((2, 2, 4, 4), np.uint16)
        ids[:, 0, :, 2:] = ids[:, 1, :, :2] = 1
        scores = np.zeros((2, 2, 4, 4), np.float16)
        scores[:, 0, :, :2], scores[:, 1, :, :2] = 0.95, 0.04
        scores[:, 0, :, 2:], scores[:, 1, :, 2:] = unseen, 0.9 * (1 - unseen)
        arrays = {"ids": ids, "scores": scores}
        if means:
            mean = [(0.95 + 0.9 * (1 - unseen)) / 2, (0.04 + unseen) / 2]
            arrays["class_mean"] = np.tile(np.array([*mean, 1 - sum(mean)], np.float32), (2, 1))
        write_arrays(path, arrays, {"keys": [f"{shard}-{row}" for row in range(2)]})
        record = Record(stage="teacher", shard=f"{shard:06d}", count=2, outputs={path.name: sha256_path(path)})
        write_record(path.with_suffix(".json"), record)
        inputs[f"teacher/{shard:06d}"] = path
    return ShardTask(stage="refine-shares", round=1, shard="000000", output=folder / "shares.json", inputs=inputs)


def measured(task: ShardTask, strength: str | float = "auto", gate: GateConfig | None = None) -> tuple[Record, Shares]:
    record = do(shares.work, shares.Matcher(strength, gate or GateConfig(), VOCABULARY), task)
    return record, Shares.load(task.output, VOCABULARY)


def test_unseen_classes_that_pass_as_often_as_seen_ones_are_left_alone(tmp_path: Path) -> None:
    record, found = measured(stores(tmp_path, unseen=0.92))
    assert (record.stats[STRENGTH], record.count) == (0.0, 4)
    assert not found.matters
    assert found.bias_K.tolist() == [0, 0, 0]
    assert found.threshold_K.tolist() == [0.9, 0.9, 0.9]
    assert "no matching (0.00)" in found.cause


def test_starved_unseen_classes_get_a_bias_a_lower_threshold_and_the_cause_in_words(tmp_path: Path) -> None:
    record, found = measured(stores(tmp_path, unseen=0.55))
    assert record.stats[STRENGTH] == found.strength == 1.0
    assert found.cause == "1 of 1 unseen classes pass the gate in no image: matching at 1.00"
    assert found.threshold_K[0] == pytest.approx(0.9)
    assert found.threshold_K[1] < 0.6
    assert found.wanted_K[:2].sum() == pytest.approx(0.25 + 0.75 * (1.355 + 0.59) / 2, abs=1e-3)
    assert (found.images.tolist(), found.passed.tolist()) == ([4, 4, 0], [4, 0, 0])


def test_scores_without_means_are_read_and_how_images_lie_in_shards_changes_nothing(tmp_path: Path) -> None:
    _, found = measured(stores(tmp_path / "new", unseen=0.55))
    _, older = measured(stores(tmp_path / "old", unseen=0.55, means=False))
    np.testing.assert_allclose(older.wanted_K, found.wanted_K, atol=2e-3)
    _, more = measured(stores(tmp_path / "more", unseen=0.55, images=8))
    np.testing.assert_allclose(more.bias_K, found.bias_K, atol=1e-6)


def test_a_strength_that_is_set_is_not_measured(tmp_path: Path) -> None:
    _, found = measured(stores(tmp_path, unseen=0.92), strength=0.5)
    assert (found.strength, found.cause[-6:]) == (0.5, "as set")


def test_later_rounds_take_the_strength_of_the_first(tmp_path: Path) -> None:
    first = stores(tmp_path / "1", unseen=0.55)
    measured(first)
    second = stores(tmp_path / "2", unseen=0.92)
    task = second.model_copy(update={"round": 2, "inputs": {**second.inputs, "first": first.output}})
    record, found = measured(task)
    assert (record.stats[STRENGTH], found.strength) == (1.0, 1.0)


def test_a_gate_of_adaptive_thresholds_is_the_one_that_is_scaled(tmp_path: Path) -> None:
    gate = GateConfig(adaptive=AdaptiveThreshold(floor=0.6, cap=0.8))
    _, found = measured(stores(tmp_path, unseen=0.55), gate=gate)
    assert found.matters
    assert found.threshold_K[0] == pytest.approx(0.8)
    assert found.threshold_K[1] < 0.6


def test_damaged_shares_and_those_of_other_classes_are_refused(tmp_path: Path) -> None:
    task = stores(tmp_path, unseen=0.55)
    measured(task)
    with pytest.raises(ValueError, match="no shares of this vocabulary"):
        Shares.load(task.output, Vocabulary.from_names(["other"]))
    content = json.loads(task.output.read_bytes())
    changes: list[dict[str, object]] = [{"strength": 2.0}, {"classes": []}, {"strength": None}]
    for change in changes:
        task.output.write_text(json.dumps({**content, **change}))
        with pytest.raises(ValueError, match="no shares of this vocabulary"):
            Shares.load(task.output, VOCABULARY)
    task.output.write_text("[]")
    with pytest.raises(ValueError, match="no shares"):
        Shares.load(task.output, VOCABULARY)


def shares_file(folder: Path, bias: list[float], thresholds: list[float], vocabulary: Vocabulary = VOCABULARY) -> Path:
    """Write shares of full strength, with their record."""
    none = np.zeros(len(vocabulary), np.int64)
    wanted = np.full(len(vocabulary), 1 / len(vocabulary))
    found = Shares(1.0, "set by a test", np.array(bias), wanted, np.array(thresholds), none, none)
    path = folder / "shares.json"
    found.save(path, vocabulary)
    commit(ShardTask(stage="refine-shares", round=1, shard="000000", output=path), Done(1), 0.0)
    return path


def test_refine_gates_the_shifted_scores_against_the_thresholds_of_the_shares(tmp_path: Path) -> None:
    task, _ = refined_shard(tmp_path, logit=1.0)
    path = shares_file(tmp_path, [0.0, 0.0, 3.0], [0.1, 0.1, 0.1])
    stats = run_refine(task.model_copy(update={"inputs": {**task.inputs, "shares": path}})).stats
    assert stats["class_2_pixels"] > 0.9 * stats["pixels"]  # with its bias, the third class is every first choice
    assert not {"class_0_pixels", "class_1_pixels"} & stats.keys()
    strict = shares_file(tmp_path, [0.0, 0.0, 0.0], [0.1, 0.9, 0.9])
    stats = run_refine(task.model_copy(update={"inputs": {**task.inputs, "shares": strict}})).stats
    assert "class_1_pixels" not in stats
    assert stats["class_0_pixels"] > 0


def test_shares_without_a_bias_at_the_gate_s_own_thresholds_give_the_same_labels(tmp_path: Path) -> None:
    settings = refine_settings(0.4)
    task, _ = refined_shard(tmp_path, logit=1.0)
    run_refine(task, settings=settings)
    plain = read_refined(task.output).maps["label"]
    path = shares_file(tmp_path, [0.0, 0.0, 0.0], [0.4, 0.4, 0.4])
    run_refine(task.model_copy(update={"inputs": {**task.inputs, "shares": path}}), settings=settings)
    matched = read_refined(task.output).maps["label"]
    assert all((one == other).all() for one, other in zip(plain, matched, strict=True))


def test_stored_scores_are_shifted_as_the_image_s_own(tmp_path: Path) -> None:
    task = stores(tmp_path, unseen=0.55)
    (path, _) = task.inputs.values()
    bias = np.array([0.0, 1.0, 0.0])
    for plain, moved in zip(stored_scores(path), stored_scores(path, bias), strict=True):
        ids, scores = shifted(plain.ids, plain.scores, bias)
        assert (moved.ids == ids).all()
        assert (moved.scores == scores).all()
        assert moved.mean is not None


def anchored(folder: Path, config: TrainConfig, strength: float) -> ShardTask:
    """Return a training whose pseudo-labels are of a run with matched shares."""
    task, _ = training_setup(folder, config)
    vocabulary = Vocabulary.load(folder / "vocabulary.json")
    path = shares_file(folder, [0.0] * len(vocabulary), [0.9] * len(vocabulary), vocabulary)
    replace(Shares.load(path, vocabulary), strength=strength).save(path, vocabulary)
    commit(ShardTask(stage="refine-shares", round=1, shard="000000", output=path), Done(1), 0.0)
    keys = read_arrays(task.inputs["embedding/source-000000"], names=())[1]["keys"]
    assert isinstance(keys, list)
    rng = np.random.default_rng(0)
    ids = np.argsort(rng.random((len(keys), len(vocabulary), 6, 6)), axis=1)[:, :4].astype(np.uint16)
    scores = np.broadcast_to(np.array([0.4, 0.3, 0.1, 0.1], np.float16)[:, None, None], ids.shape)
    store = folder / "teacher" / "000000.zarr"
    write_arrays(store, {"ids": ids, "scores": scores}, {"keys": keys})
    commit(ShardTask(stage="teacher", round=1, shard="000000", output=store), Done(len(keys)), 0.0)
    return task.model_copy(update={"inputs": {**task.inputs, "shares": path, "scores/000000": store}})


@pytest.mark.slow
@pytest.mark.parametrize("config", [QUICK.model_copy(update={"aux_loss": True}), STRONG])
def test_a_training_with_matched_shares_learns_otherwise_and_the_same_each_time(
    tmp_path: Path, config: TrainConfig
) -> None:
    plain, job = training_setup(tmp_path / "plain", config)
    train_model(plain, job, SingleProcess())
    digests = []
    for name in ("a", "b"):
        task = anchored(tmp_path / name, config, 1.0)
        assert train_model(task, job, SingleProcess()) is not None
        digests.append(sha256_file(task.output))
    assert digests[0] == digests[1] != sha256_file(plain.output)


def test_an_image_that_round_1_never_scored_is_named(tmp_path: Path) -> None:
    task = anchored(tmp_path, QUICK, 1.0)
    store = task.inputs["scores/000000"]
    arrays, _ = read_arrays(store)
    write_arrays(store, arrays, {"keys": [f"other-{row}" for row in range(len(arrays["ids"]))]})
    commit(ShardTask(stage="teacher", round=1, shard="000000", output=store), Done(1), 0.0)
    _, job = training_setup(tmp_path, QUICK)
    with pytest.raises(ValueError, match="the teacher of round 1 has no scores of"):
        train_model(task, job, SingleProcess())
