"""What a gate would keep, counted from stored scores."""

from pathlib import Path

import numpy as np
import pytest
from shard_setup import SIZES_HW, VOCABULARY, refined_shard

from jobs.artifacts.labels import read_refined
from jobs.quality.gate_pairs import GatePairs, confidences_by_class, gather_pairs, keep
from jobs.stage import ShardTask
from models.refinement.gate import GateConfig
from shards.data.folder_source import FolderSource
from shards.data.images import ImageFrame
from shards.data.labels import SourceLabel
from shards.data.sources import SampleRef
from shards.formats.records import read_record

MEASURES = [GateConfig(), GateConfig(statistic="mean", over="image")]


class Labelled:
    """Labels two of the images as `left`, except an ignored row; the others have no label."""

    labelled = True

    def __init__(self, source: FolderSource) -> None:
        self.refs, self.read_image = source.refs, source.read_image

    def read_label(self, ref: SampleRef, frame: ImageFrame) -> SourceLabel | None:
        if ref.key not in ("a", "b"):
            return None
        label = np.zeros(SIZES_HW[ref.key], np.int32)
        label[0] = VOCABULARY.ignore_index
        return SourceLabel(label)


def pairs(task: ShardTask, source: FolderSource | Labelled | None) -> GatePairs:
    shard = (task.inputs["teacher"], task.inputs["embedding"])
    return gather_pairs([shard], task.samples, source, VOCABULARY, MEASURES)


@pytest.mark.parametrize("logit", [6.0, 1.0])
def test_what_would_be_kept_is_what_refine_counts_as_gated(tmp_path: Path, logit: float) -> None:
    task, _ = refined_shard(tmp_path, logit)
    stats = read_record(task.record).stats
    kept = keep(pairs(task, None), 0, np.full(3, 0.9))
    assert kept.pixels_kept.sum() == stats["pixels_gated"]
    assert kept.images_kept.sum() == stats["classes_accepted"]
    assert kept.images.tolist() == [4, 4, 0]
    assert kept.any_kept == (4 if logit == 6.0 else 0)


def test_pixels_are_counted_by_class_and_right_ones_where_there_are_labels(tmp_path: Path) -> None:
    task, source = refined_shard(tmp_path)
    found = pairs(task, Labelled(source))
    store = read_refined(task.output)
    left = [(label == 0) for label in store.maps["teacher"]]
    assert found.pixels[found.class_id == 0].tolist() == [int(map_.sum()) for map_ in left]
    assert found.right[found.class_id == 0].tolist() == [int(left[0][1:].sum()), int(left[1][1:].sum()), 0, 0]
    assert found.right[found.class_id == 1].sum() == 0
    assert found.labelled.sum() == 19 * 30 + 32 * 17
    assert found.labelled_images == 2
    assert found.image_pixels.tolist() == [20 * 30, 33 * 17, 1 * 5, 24 * 16]


def test_each_class_is_kept_by_its_own_threshold_and_way_of_measuring(tmp_path: Path) -> None:
    task, _ = refined_shard(tmp_path)
    found = pairs(task, None)
    assert keep(found, 0, np.array([0.9, 1.0, 0.9])).images_kept.tolist() == [4, 0, 0]
    assert keep(found, 1, np.full(3, 0.5)).images_kept.tolist() == [0, 0, 0]
    by_class = confidences_by_class(found, 1, 3)
    assert [len(values) for values in by_class] == [4, 4, 0]
    assert by_class[0] == pytest.approx(np.full(4, 0.5), abs=0.01)


def test_no_image_is_nothing_kept() -> None:
    empty = gather_pairs([], [], None, VOCABULARY, MEASURES)
    kept = keep(empty, 0, np.zeros(3))
    assert (kept.any_kept, kept.images.tolist(), len(empty.image_pixels)) == (0, [0, 0, 0], 0)


def test_a_label_of_another_size_counts_as_none_and_is_named(tmp_path: Path) -> None:
    task, source = refined_shard(tmp_path)
    labelled = Labelled(source)
    labelled.read_label = lambda ref, frame: SourceLabel(np.zeros((2, 2), np.int32))  # type: ignore[method-assign]
    found = pairs(task, labelled)
    assert (found.labelled_images, found.labelled.sum(), found.right.sum()) == (0, 0, 0)
    assert {drop.key: drop.reason for drop in found.drops} == dict.fromkeys(SIZES_HW, "label_of_other_size")
    assert "(2, 2)" in found.drops[0].detail
