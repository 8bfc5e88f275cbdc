"""The look at a student on the target, with fakes; and the alarms that follow from it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from shard_setup import (
    SIZES_HW,
    VOCABULARY,
    FakeDecoder,
    FakeEncoder,
    FakeSegmenter,
    refined_shard,
)
from stage_setup import do
from torch import Tensor

from jobs.artifacts.labels import read_refined
from jobs.commit import why_stale
from jobs.quality.waterfall import counted_changes
from jobs.stage import EmptyShard, ShardTask
from jobs.stages import embed, target_check
from models.evaluation.alarms import AlarmConfig
from models.refinement.gate import GateConfig
from models.refinement.settings import RefinementConfig
from models.sam.sam import SamEmbedding
from models.stseg.views import View
from pipeline.report.alarms import RoundFacts, round_alarms
from shards.data.folder_source import FolderSource
from shards.data.images import ImageFrame
from shards.data.labels import SourceLabel
from shards.data.samples import Samples
from shards.data.sources import SampleRef, Source
from shards.formats.records import read_record


class OneClass(FakeSegmenter):
    """Predicts `right` everywhere."""

    def logits(self, images: Sequence[NDArray[np.uint8]], sam: SamEmbedding | None) -> Tensor:
        logits = torch.zeros(len(images), len(VOCABULARY), 8, 8)
        logits[:, 1] = self.logit
        return logits


class Mirror(FakeSegmenter):
    """Predicts `left` where the image is darker than in its other half, so that it follows a mirrored image."""

    def logits(self, images: Sequence[NDArray[np.uint8]], sam: SamEmbedding | None) -> Tensor:
        logits = super().logits(images, sam)
        for index, image in enumerate(images):
            half = image.shape[1] // 2
            if image[:, :half].mean() > image[:, -half:].mean():
                logits[index] = logits[index].flip(-1)
        return logits


class WithLabels:
    """The images of a source with labels of one's own."""

    labelled = True

    def __init__(self, source: FolderSource, label: dict[str, NDArray[np.int32]]) -> None:
        self._source = source
        self._label = label

    def refs(self) -> list[SampleRef]:
        raise AssertionError

    def read_image(self, ref: SampleRef) -> tuple[bytes, str]:
        return self._source.read_image(ref)

    def read_label(self, ref: SampleRef, frame: ImageFrame) -> SourceLabel | None:
        label = self._label.get(ref.key)
        return None if label is None else SourceLabel(label)


def check_of(
    student: FakeSegmenter, source: Source, views: tuple[View, ...] = ("identity",)
) -> target_check.TargetCheck:
    """A student whose teacher is `FakeSegmenter`, with what else looks at it."""
    return target_check.TargetCheck(
        student=student,
        teacher=FakeSegmenter(),
        decoder=FakeDecoder(),
        encoder=FakeEncoder(),
        source=source,
        vocabulary=VOCABULARY,
        gate=GateConfig(threshold=0.9),
        refinement=RefinementConfig(),
        top_k=4,
        probabilities="softmax",
        batch_size=3,
        views=views,
    )


def checked(
    root: Path, student: FakeSegmenter, *, labelled: bool = False, views: tuple[View, ...] = ("identity",)
) -> tuple[dict[str, Any], ShardTask]:
    """Look at a student whose teacher is `FakeSegmenter`; the truth, if wanted, is what the teacher says."""
    refine, source = refined_shard(root)
    store = read_refined(refine.output)
    truth = {key: store.maps["teacher"][row].astype(np.int32) for row, key in enumerate(store.keys)} if labelled else {}
    task = ShardTask(
        stage="evaluate-target",
        round=1,
        shard="000000",
        samples=refine.samples,
        output=root / "target.json",
        inputs={"embedding/000000": refine.inputs["embedding"], "refine/000000": refine.output},
    )
    if len(views) > 1:
        mirror = ShardTask(
            stage="embed-mirror", shard="000000", samples=refine.samples, output=root / "embed" / "mirror-000000.zarr"
        )
        do(embed.work, embed.Embedder(FakeEncoder(), source, embed.batch_limit(8), "mirror"), mirror)
        task = task.model_copy(update={"inputs": {**task.inputs, "mirror/000000": mirror.output}})
    do(target_check.work, check_of(student, WithLabels(source, truth), views), task)
    assert why_stale(task) is None
    found: dict[str, Any] = json.loads(task.output.read_text())
    assert found["images"] == len(SIZES_HW)
    return found, refine


def alarms_of(found: dict[str, Any], refine: ShardTask) -> list[tuple[str, str | None]]:
    facts = RoundFacts(1, [read_record(refine.record)], [], found)
    return [(alarm.kind, alarm.class_name) for alarm in round_alarms(facts, VOCABULARY.names, AlarmConfig())]


def test_a_student_like_its_teacher_agrees_with_it_and_raises_no_alarm(tmp_path: Path) -> None:
    found, refine = checked(tmp_path, FakeSegmenter())
    for name in ("agreement", "sam_agreement", "stability"):
        assert found["proxies"][name]["student"] == pytest.approx(found["proxies"][name]["teacher"], abs=0.01)
    moved = counted_changes(found["changes"]["teacher_to_student"], len(VOCABULARY))
    assert moved.sum() == np.trace(moved) == sum(height * width for height, width in SIZES_HW.values())
    assert found["changes"]["before_to_refined"] is None
    assert found["waterfall"] is None
    assert alarms_of(found, refine) == []


def test_stability_is_what_a_model_says_of_the_mirrored_image(tmp_path: Path) -> None:
    assert checked(tmp_path / "a", Mirror())[0]["proxies"]["stability"]["student"] > 95
    assert checked(tmp_path / "b", FakeSegmenter())[0]["proxies"]["stability"]["student"] < 10
    assert checked(tmp_path / "c", OneClass())[0]["proxies"]["stability"]["student"] == 100


def test_stability_is_measured_on_one_view_whatever_the_teacher_sees(tmp_path: Path) -> None:
    # Merged with its mirror image, the labels of any model are stable.
    one = checked(tmp_path / "one", FakeSegmenter())[0]["proxies"]["stability"]
    two = checked(tmp_path / "two", FakeSegmenter(), views=("identity", "mirror"))[0]["proxies"]["stability"]
    assert two["student"] == pytest.approx(one["student"], abs=1)  # float16 is stored of the other
    assert two["student"] < 10


def test_a_student_sees_the_views_that_it_would_see_as_a_teacher(tmp_path: Path) -> None:
    # `left` on the left of any image: with the mirror image merged, neither side is surer than the other.
    alone = checked(tmp_path / "one", FakeSegmenter())[0]["changes"]["teacher_to_student"]
    merged = checked(tmp_path / "two", FakeSegmenter(), views=("identity", "mirror"))[0]["changes"][
        "teacher_to_student"
    ]
    changed = [sum(pixels for before, after, pixels in moved if before != after) for moved in (alone, merged)]
    assert changed[0] == 0 < changed[1]


def test_a_student_that_says_one_class_agrees_with_nothing_and_raises_alarms(tmp_path: Path) -> None:
    found, refine = checked(tmp_path, OneClass())
    assert found["proxies"]["agreement"]["student"] < found["proxies"]["agreement"]["teacher"] / 2
    alarms = alarms_of(found, refine)
    assert ("entropy_collapse", "right") in alarms
    assert ("class_vanished", "left") in alarms
    assert ("class_churn", "left") in alarms


def test_the_waterfall_measures_all_four_on_the_same_images(tmp_path: Path) -> None:
    waterfall = checked(tmp_path, OneClass(), labelled=True)[0]["waterfall"]
    stages = waterfall["stages"]
    assert waterfall["images"] == len(SIZES_HW)
    assert stages["teacher"]["miou"] == stages["teacher"]["boundary_iou"] == 100
    assert stages["teacher"]["coverage"] == stages["student"]["coverage"] == 100
    assert 0 < stages["student"]["iou"]["right"] < 60
    assert stages["student"]["iou"]["left"] == 0
    assert stages["student"]["iou"]["never"] is None
    assert stages["student"]["miou_seen"] == stages["student"]["hiou"] == 0
    assert stages["gated"]["coverage"] <= 100


def test_a_sample_without_a_readable_image_is_an_error(tmp_path: Path) -> None:
    refine, source = refined_shard(tmp_path)
    broken = tuple(ref for ref in refine.samples if ref.key not in SIZES_HW)
    task = ShardTask(
        stage="evaluate-target",
        shard="000000",
        samples=Samples.of(broken),
        output=tmp_path / "target.json",
        inputs={"embedding/000000": refine.inputs["embedding"], "refine/000000": refine.output},
    )
    with pytest.raises(EmptyShard, match=r"evaluate\.target_images"):
        do(target_check.work, check_of(FakeSegmenter(), source), task)
    assert not task.record.exists()
