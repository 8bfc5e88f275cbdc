"""More classes than a byte holds: class 255 is a class in every stage, and what is ignored is ignored."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from shard_setup import embed_task, next_task, run_embed, run_evaluate, run_refine, run_teacher, run_write
from torch import Tensor
from training_setup import QUICK, training_setup

import jobs.training.step
from jobs.artifacts.labels import read_refined
from jobs.stage import ShardTask
from jobs.stages.pseudo_scores import pseudo_label_scores
from jobs.training.loop import SingleProcess, train_model
from jobs.training.samples import PseudoLabelledDataset
from models.evaluation.metrics import confusion, scores
from models.sam.sam import SamEmbedding
from models.stseg.templates import prompt_templates
from models.training.losses import class_weights, segmentation_loss
from models.training.settings import LossConfig
from pipeline.report.drawing import classes_by_size, overlay
from shards.data.folder_source import FolderSource
from shards.data.images import ImageFrame
from shards.data.label_reader import LabelReader
from shards.data.labels import decode_label, encode_label
from shards.data.samples import Samples
from shards.data.sources import FolderSourceConfig
from shards.data.vocabulary import Vocabulary
from shards.formats.records import read_record
from shards.formats.tar import TarSample, index_tar, read_member, write_tar

SIZE_HW = (64, 80)
IGNORED = 65535
UNSURE = 7  # the class of the last fifth, which does not pass the gate
pytestmark = pytest.mark.parametrize("count", [459, 847])


def vocabulary_of(count: int) -> Vocabulary:
    return Vocabulary.from_names([f"thing {n}" for n in range(count)], seen=["thing 0", "thing 256"])


def fifths(count: int) -> list[int]:
    return [0, 255, 256, count - 1, UNSURE]


def striped(ids: Sequence[int]) -> NDArray[np.int32]:
    """Return a label map of five upright stripes."""
    return np.repeat(np.array(ids, np.int32), SIZE_HW[1] // 5)[None].repeat(SIZE_HW[0], axis=0)


class Stripes:
    """Sees five upright stripes, and is unsure of the last one."""

    needs_embedding = False

    def __init__(self, count: int, ids: Sequence[int]) -> None:
        self._count, self._ids = count, ids

    def logits(self, images: Sequence[NDArray[np.uint8]], sam: SamEmbedding | None) -> Tensor:
        logits = torch.zeros(len(images), self._count, 8, 10)
        for fifth, class_id in enumerate(self._ids):
            logits[:, class_id, :, 2 * fifth : 2 * fifth + 2] = 1.0 if class_id == UNSURE else 20.0
        return logits


def one_image(folder: Path, count: int, label: NDArray[np.int32]) -> FolderSource:
    """Write an image and its label and open them."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE_HW, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "images" / "a.png")
    (folder / "labels" / "a.png").write_bytes(encode_label(label, vocabulary_of(count)))
    config = FolderSourceConfig(images=str(folder / "images"), labels=str(folder / "labels"))
    return FolderSource(config, vocabulary_of(count))


def refined(folder: Path, count: int) -> tuple[ShardTask, FolderSource]:
    """Run the stages up to the refined labels."""
    vocabulary = vocabulary_of(count)
    source = one_image(folder, count, striped(fifths(count)))
    embed = embed_task(folder, source)
    run_embed(embed, source)
    teacher = next_task(embed, "teacher", embedding=embed)
    run_teacher(teacher, source, Stripes(count, fifths(count)))
    refine = next_task(embed, "refine", embedding=embed, teacher=teacher)
    run_refine(refine, vocabulary=vocabulary)
    return refine, source


def test_refined_labels_tar_and_training_sample_agree(tmp_path: Path, count: int) -> None:
    refine, source = refined(tmp_path, count)
    store = read_refined(refine.output)
    label, weight = store.maps["label"][0], store.maps["weight"][0]
    assert label.dtype == np.uint16
    assert np.unique(label).tolist() == [0, 255, 256, count - 1, IGNORED]
    inner = (slice(None), slice(18, 30))  # of the stripe of class 255, away from its borders
    assert (label[inner] == 255).all()
    assert (weight[inner] > 0).all()
    assert np.array_equal(weight == 0, label == IGNORED)
    write = next_task(refine, "write", refine=refine)
    stats = run_write(write, source, vocabulary_of(count)).stats
    counted = read_record(refine.record).stats
    assert stats["pixels_covered"] == counted["pixels_covered"] == (label != IGNORED).sum()
    assert counted["class_255_pixels"] == (label == 255).sum()
    members = index_tar(write.output).places["a"]
    png = read_member(write.output, *members["label.png"])
    assert np.array_equal(decode_label(png), label)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))), label)
    assert json.loads(read_member(write.output, *members["json"]))["ignore_index"] == IGNORED
    sample = PseudoLabelledDataset([write.output], None, SIZE_HW[1])[0]
    assert torch.unique(sample.label_SS).tolist() == [0, 255, 256, count - 1, IGNORED]
    assert torch.equal(sample.weight_SS == 0, sample.label_SS == IGNORED)


def test_pseudo_labels_are_scored_with_class_255(tmp_path: Path, count: int) -> None:
    refine, source = refined(tmp_path, count)
    found = pseudo_label_scores([refine.output], refine.samples, LabelReader(source, []), vocabulary_of(count))
    assert min(found["miou_teacher"], found["miou_before"], found["miou_after"]) > 85
    assert 70 < found["coverage"] < 85
    without = striped([0, IGNORED, 256, count - 1, UNSURE])
    (tmp_path / "labels" / "a.png").write_bytes(encode_label(without, vocabulary_of(count)))
    label = read_refined(refine.output).maps["label"][0]
    found_label = source.read_label(next(iter(source.refs())), ImageFrame((without.shape[0], without.shape[1])))
    assert found_label is not None
    truth = found_label.ids
    assert np.array_equal(truth, without)
    matrix = confusion(truth, label.astype(np.int32), count, IGNORED)
    assert matrix[255].sum() == 0
    assert matrix.sum() == int(((without != IGNORED) & (label != IGNORED)).sum())


@pytest.mark.parametrize("mistaken", [False, True])
def test_evaluation_counts_class_255(tmp_path: Path, count: int, mistaken: bool) -> None:
    truth = striped([0, 255, 256, count - 1, IGNORED])
    source = one_image(tmp_path, count, truth)
    ids = [0, 254 if mistaken else 255, 256, count - 1, UNSURE]
    refs = tuple(source.refs())
    task = ShardTask(
        stage="evaluate", shard="000000", samples=Samples.of(refs), output=tmp_path / "out" / "evaluate.json"
    )
    run_evaluate(task, Stripes(count, ids), source, vocabulary_of(count))
    result = json.loads(task.output.read_text())
    assert len(result["iou"]) == count
    assert (result["iou"]["thing 255"] == 0) == mistaken
    assert result["iou"]["thing 255"] == (0 if mistaken else pytest.approx(100, abs=15))
    assert result["iou"][f"thing {UNSURE}"] in (None, 0)  # the ignored stripe asks nothing of it


@pytest.mark.parametrize("kind", ["eq6", "bce"])
def test_loss_learns_class_255_and_ignores_the_ignored(count: int, kind: str) -> None:
    logits = torch.zeros(1, count, 1, 3, requires_grad=True)
    label = torch.tensor([[[255, count - 1, IGNORED]]])
    weights = class_weights(torch.zeros(count, dtype=torch.bool), 0.3)
    config = LossConfig.model_validate({"kind": kind})
    loss = segmentation_loss(config, logits, label, weights, ignore_index=IGNORED)
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    pull = -logits.grad[0, :, 0]
    assert [int(pull[:, pixel].argmax()) for pixel in (0, 1)] == [255, count - 1]
    assert (pull[:, :2].amax(0) > 0).all()
    assert (pull[:, 2] == 0).all()
    with pytest.raises(ValueError, match="also a class id"):
        segmentation_loss(LossConfig(), logits, label.clamp(max=0), weights, ignore_index=255)


def test_confusion_has_a_row_for_class_255(count: int) -> None:
    label = np.array([255, 255, IGNORED, count - 1], np.uint16)
    matrix = confusion(label, np.array([255, 3, 255, IGNORED], np.uint16), count, IGNORED)
    assert (matrix[255, 255], matrix[255, 3], matrix.sum()) == (1, 1, 2)
    assert scores(matrix, [255], [3])["miou_seen"] == 50
    with pytest.raises(ValueError, match="must lie outside"):
        confusion(label, label, count, 255)


@pytest.mark.slow
def test_training_asks_for_class_255(tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    train = QUICK.model_copy(update={"steps": 1, "source_per_step": 0})
    task, job = training_setup(tmp_path, train, dea=False)
    vocabulary_of(count).model_copy(update={"templates": prompt_templates("tiny8")}).save(job.vocabulary)
    label = striped([0, 255, 256, count - 1, IGNORED])
    image = io.BytesIO()
    Image.fromarray(np.zeros((*SIZE_HW, 3), np.uint8)).save(image, "PNG")
    ones = io.BytesIO()
    Image.fromarray(np.full(SIZE_HW, 255, np.uint8)).save(ones, "PNG")
    members = {"png": image.getvalue(), "label.png": encode_label(label, vocabulary_of(count)), "json": b"{}"}
    write_tar(task.inputs["pseudo/000000"], [TarSample("a", {**members, "weight.png": ones.getvalue()})])
    asked: list[Tensor] = []

    def seen(config: LossConfig, logits: Tensor, label: Tensor, weight: Tensor, **more: object) -> Tensor:
        asked.append(label)
        assert logits.shape[1] == len(weight) == 4
        return segmentation_loss(config, logits, label, weight, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(jobs.training.step, "segmentation_loss", seen)
    train_model(task, job, SingleProcess())
    # The four classes of the image are told apart, in the order of their ids; the fifth stripe is none of them.
    columns = ((np.arange(96) + 0.5) * SIZE_HW[1] / 96).astype(int)
    wanted = np.array([0, 1, 2, 3, -1])[columns // (SIZE_HW[1] // 5)]
    assert (asked[0][0].numpy() == wanted).all()


def test_pictures_show_class_255_and_no_ignored_class(count: int) -> None:
    vocabulary = vocabulary_of(count)
    label = striped([255, 255, IGNORED, 0, 0]).astype(np.uint16)
    assert classes_by_size([label], vocabulary) == [0, 255]
    image = np.full((*SIZE_HW, 3), 128, np.uint8)
    drawn = overlay(image, label, vocabulary)
    assert len({tuple(drawn[0, column].tolist()) for column in (0, 40, 79)}) == 3
