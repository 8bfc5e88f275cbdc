"""The evaluate stage and the scores of pseudo-labels."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from shard_setup import SIZES_HW, VOCABULARY, refined_shard, run_embed, run_evaluate
from torch import Tensor

from jobs.artifacts.labels import read_refined
from jobs.commit import why_stale
from jobs.stage import ShardTask
from jobs.stages.evaluated_samples import evaluation_samples
from jobs.stages.pseudo_scores import pseudo_label_scores
from models.evaluation.metrics import confusion, scores
from models.sam.sam import SamEmbedding
from shards.data.images import ImageFrame, decode_image
from shards.data.label_reader import LabelReader
from shards.data.labels import SourceLabel
from shards.data.samples import Samples
from shards.data.sources import FolderSourceConfig, SampleRef, ScenesSourceConfig, Source, open_source
from shards.data.vocabulary import Vocabulary
from shards.scenes.scenes import SCENE_CLASSES

SCENES = Vocabulary.from_names(SCENE_CLASSES)
TEST_SPLIT = ScenesSourceConfig(split="test", seed=3, count=5)
SCENE_FRAME = ImageFrame((96, 96))


class Constant:
    """Predicts the same class everywhere."""

    needs_embedding = False

    def __init__(self, class_id: int) -> None:
        self.class_id = class_id

    def logits(self, images: Sequence[NDArray[np.uint8]], sam: SamEmbedding | None) -> Tensor:
        logits = torch.zeros(len(images), len(SCENES), 4, 4)
        logits[:, self.class_id] = 1
        return logits


def evaluated(folder: Path, class_id: int = 0, batch_size: int = 2) -> dict[str, object]:
    samples = evaluation_samples(TEST_SPLIT, 0, 4, SCENES)
    task = ShardTask(stage="evaluate", shard="000000", samples=Samples.of(samples), output=folder / "evaluate.json")
    source = open_source(TEST_SPLIT, SCENES)
    record = run_evaluate(task, Constant(class_id), source, SCENES, batch_size=batch_size)
    assert record.count == 4
    assert why_stale(task) is None
    result: dict[str, object] = json.loads(task.output.read_text())
    return result


def test_scores_follow_the_labels(tmp_path: Path) -> None:
    source = open_source(TEST_SPLIT, SCENES)
    labels = [source.read_label(ref, SCENE_FRAME) for ref in evaluation_samples(TEST_SPLIT, 0, 4, SCENES)]
    everything = np.concatenate([label.ids.ravel() for label in labels if label is not None])
    common = int(np.bincount(everything).argmax())
    result = evaluated(tmp_path, common)
    assert result["pixel_accuracy"] == pytest.approx(100 * (everything == common).mean())
    matrix = confusion(everything, np.full_like(everything, common), len(SCENES), SCENES.ignore_index)
    assert result["miou"] == pytest.approx(scores(matrix, SCENES.seen_ids, SCENES.unseen_ids)["miou"])
    assert result["iou"][SCENES.names[common]] == pytest.approx(result["pixel_accuracy"])  # type: ignore[index]


def test_result_says_on_which_split_and_how_many_images(tmp_path: Path) -> None:
    result = evaluated(tmp_path)
    assert (result["split"], result["images"]) == ("test", 4)
    assert list(result["iou"]) == list(SCENES.names)  # type: ignore[call-overload]


def test_batch_size_and_repetition_change_nothing(tmp_path: Path) -> None:
    assert evaluated(tmp_path / "a", batch_size=1) == evaluated(tmp_path / "b", batch_size=4)


def test_target_split_cannot_be_evaluated_on() -> None:
    target = ScenesSourceConfig(split="target", count=2)
    with pytest.raises(ValueError, match="no labels"):
        evaluation_samples(target, 0, None, SCENES)


def test_same_seed_draws_the_same_images_and_another_one_others() -> None:
    source = ScenesSourceConfig(split="test", count=40)
    draws = [evaluation_samples(source, seed, 10, SCENES) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert len(draws[2]) == 10


class Labels:
    """A source whose labels are those that the fakes' teacher gives, or none."""

    labelled = False

    def __init__(self, label: dict[str, NDArray[np.int32]]) -> None:
        self._label = label

    def refs(self) -> list[SampleRef]:
        raise AssertionError

    def read_image(self, ref: SampleRef) -> tuple[bytes, str]:
        raise AssertionError(ref)

    def read_label(self, ref: SampleRef, frame: ImageFrame) -> SourceLabel | None:
        label = self._label.get(ref.key)
        return None if label is None else SourceLabel(label)


def test_pseudo_labels_equal_to_the_truth_score_100_on_covered_pixels(tmp_path: Path) -> None:
    task, _ = refined_shard(tmp_path)
    store = read_refined(task.output)
    truth = {key: store.maps["teacher"][row].astype(np.int32) for row, key in enumerate(store.keys)}
    found = pseudo_label_scores([task.output], task.samples, LabelReader(Labels(truth), []), VOCABULARY)
    assert found["miou_teacher"] == found["miou_before"] == 100
    assert found["labelled_images"] == found["images"] == len(SIZES_HW)
    assert 0 < found["coverage"] <= 100


def test_ignored_pixels_count_as_wrong_in_the_scores_of_all_pixels(tmp_path: Path) -> None:
    task, _ = refined_shard(tmp_path, logit=1.0)
    store = read_refined(task.output)
    truth = {key: store.maps["teacher"][row].astype(np.int32) for row, key in enumerate(store.keys)}
    found = pseudo_label_scores([task.output], task.samples, LabelReader(Labels(truth), []), VOCABULARY)
    assert found["coverage"] == found["coverage_before"] == 0
    assert found["miou_before"] is None
    assert found["miou_after"] is None
    assert found["miou_after_all"] == found["miou_before_all"] == 0
    assert found["miou_teacher"] == 100


def test_without_labels_only_the_coverage_is_known(tmp_path: Path) -> None:
    task, _ = refined_shard(tmp_path)
    found = pseudo_label_scores([task.output], task.samples, LabelReader(Labels({}), []), VOCABULARY)
    assert found["miou_after"] is None
    assert found["labelled_images"] == 0
    assert found["coverage"] > 0


def test_before_and_after_are_compared_on_the_same_pixels(tmp_path: Path) -> None:
    task, _ = refined_shard(tmp_path)
    store = read_refined(task.output)
    rng = np.random.default_rng(0)
    truth = {k: rng.integers(0, 3, store.maps["label"][i].shape).astype(np.int32) for i, k in enumerate(store.keys)}
    found = pseudo_label_scores([task.output], task.samples, LabelReader(Labels(truth), []), VOCABULARY)
    for name, wanted in (("gated", "miou_before"), ("label", "miou_after")):
        hits, union = np.zeros(3), np.zeros(3)
        for row, key in enumerate(store.keys):
            both = (store.maps["gated"][row] != 255) & (store.maps["label"][row] != 255)
            for class_id in range(3):
                true, seen = truth[key][both] == class_id, store.maps[name][row][both] == class_id
                hits[class_id] += (true & seen).sum()
                union[class_id] += (true | seen).sum()
        assert found[wanted] == pytest.approx(100 * (hits / union).mean())


class Embedded(Constant):
    """Wants embeddings and remembers how many it was given."""

    needs_embedding = True

    def __init__(self) -> None:
        super().__init__(0)
        self.given: list[float] = []

    def logits(self, images: Sequence[NDArray[np.uint8]], sam: SamEmbedding | None) -> Tensor:
        assert sam is not None and len(sam.embedding_BCHW) == len(images)
        self.given += sam.embedding_BCHW[:, 0, 0, 0].tolist()
        return super().logits(images, None)


def _images(source: Source, samples: Sequence[SampleRef]) -> list[NDArray[np.uint8]]:
    return [decode_image(source.read_image(sample)[0]).image for sample in samples]


def test_stored_embeddings_are_read_and_not_made(tmp_path: Path) -> None:
    samples = evaluation_samples(TEST_SPLIT, 0, None, SCENES)
    source = open_source(TEST_SPLIT, SCENES)
    embed = ShardTask(
        stage="embed-test", shard="000000", samples=Samples.of(samples), output=tmp_path / "embed" / "000000.zarr"
    )
    run_embed(embed, source)
    task = ShardTask(
        stage="evaluate",
        shard="000000",
        samples=Samples.of(samples),
        output=tmp_path / "evaluate.json",
        inputs={"embedding/000000": embed.output},
    )
    model = Embedded()
    assert run_evaluate(task, model, source, SCENES, batch_size=2).count == 5
    assert len(model.given) == 5 and len(set(model.given)) > 1
    assert model.given == pytest.approx([float(image.mean()) for image in _images(source, samples)], rel=1e-2)


def test_a_label_of_another_size_is_dropped_by_name_and_the_rest_counts(tmp_path: Path) -> None:
    for name, size in (("a", (6, 8)), ("b", (6, 8))):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "labels").mkdir(exist_ok=True)
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(tmp_path / "images" / f"{name}.png")
        Image.fromarray(np.zeros(size if name == "a" else (5, 5), np.uint8)).save(tmp_path / "labels" / f"{name}.png")
    folder = FolderSourceConfig(images=str(tmp_path / "images"), labels=str(tmp_path / "labels"))
    task = ShardTask(
        stage="evaluate",
        shard="000000",
        samples=Samples.of(evaluation_samples(folder, 0, None, SCENES)),
        output=tmp_path / "evaluate.json",
    )
    record = run_evaluate(task, Constant(0), open_source(folder, SCENES), SCENES)
    assert record.count == 1
    assert [(drop.key, drop.reason) for drop in record.drops] == [("b", "label_of_other_size")]


class RightHalf(Constant):
    """Predicts class 1 of a view whose right half is bright, else class 0; the surer the clearer it is."""

    def logits(self, images: Sequence[NDArray[np.uint8]], sam: SamEmbedding | None) -> Tensor:
        logits = torch.full((len(images), len(SCENES), 24, 24), -50.0)
        for logits_Khw, image in zip(logits, images, strict=True):
            logits_Khw[0] = 0
            logits_Khw[1] = (float(image[:, image.shape[1] // 2 :].mean()) - 127) / 20
        return logits


def test_windows_see_what_one_view_misses(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    image = np.zeros((96, 96, 3), np.uint8)
    image[:, 64:] = 255
    Image.fromarray(image).save(tmp_path / "images" / "a.png")
    Image.fromarray((image[..., 0] > 0).astype(np.uint8)).save(tmp_path / "labels" / "a.png")
    folder = FolderSourceConfig(images=str(tmp_path / "images"), labels=str(tmp_path / "labels"))
    accuracy = []
    for windows in (1, 2):
        task = ShardTask(
            stage="evaluate",
            shard="000000",
            samples=Samples.of(evaluation_samples(folder, 0, None, SCENES)),
            output=tmp_path / f"{windows}.json",
        )
        run_evaluate(task, RightHalf(0), open_source(folder, SCENES), SCENES, windows=windows)
        accuracy.append(json.loads(task.output.read_text())["pixel_accuracy"])
    assert accuracy[0] == pytest.approx(100 * 32 / 96)  # one view: bright everywhere
    assert accuracy[1] > 70  # the left window sees that its part is dark
