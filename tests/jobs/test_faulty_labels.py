"""A faulty label costs its own sample and no other, in every stage that reads labels."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from shard_setup import (
    VOCABULARY,
    FakeDecoder,
    FakeSegmenter,
    embed_task,
    next_task,
    refine_settings,
    run_embed,
    run_evaluate,
    run_refine,
    run_teacher,
)
from stage_setup import do

from jobs.artifacts.labels import read_refined
from jobs.commit import why_stale
from jobs.quality.gate_pairs import gather_pairs
from jobs.stage import ShardTask
from jobs.stages import pseudo_scores, refine, refine_masks, source_labels
from models.refinement.gate import GateConfig
from shards.data.folder_source import FolderSource
from shards.data.images import ORIENTATION_TAG, ImageFrame
from shards.data.label_reader import TURNED, LabelReader
from shards.data.plan_writing import make_plan
from shards.data.samples import Samples
from shards.data.sources import FolderSourceConfig
from shards.formats.records import Drop, Record, read_record

KEYS = ("a", "b", "c")
BAD = "b"


def png(values: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format="PNG")
    return buffer.getvalue()


def whole() -> NDArray[np.uint8]:
    label = np.zeros((24, 32), np.uint8)
    label[:, 16:] = 1
    return label


def folders(root: Path) -> FolderSourceConfig:
    for name in ("images", "labels"):
        (root / name).mkdir()
    rng = np.random.default_rng(0)
    for key in KEYS:
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(root / "images" / f"{key}.png")
        (root / "labels" / f"{key}.png").write_bytes(png(whole()))
    return FolderSourceConfig(images=str(root / "images"), labels=str(root / "labels"))


def _gone(path: Path) -> None:
    path.unlink()


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _changed(path: Path) -> None:
    path.write_bytes(png(1 - whole()))


# Bytes that are there when the run is planned, and what happens to a planned file.
PLANNED = {
    "label_of_other_size": png(whole()[:12]),
    "label_damaged": png(whole())[:60],
    "label_ids": png(np.full((24, 32), 7, np.uint8)),
}
COLOURS = png(np.zeros((24, 32, 3), np.uint8))
LATER: dict[str, tuple[str, Callable[[Path], None]]] = {
    "gone": ("label_missing", _gone),
    "folder": ("label_missing", _folder),
    "pipe": ("label_missing", _pipe),
    "changed": ("label_changed", _changed),
}
FAULTS = [*PLANNED, "colours", "text", "empty", *LATER]


def faulty(root: Path, fault: str) -> tuple[FolderSource, Samples, str]:
    """A source of three images in which the label of `b` has a fault, its samples, and the reason to expect."""
    config = folders(root)
    path = root / "labels" / f"{BAD}.png"
    before = {**PLANNED, "colours": COLOURS, "text": b"no label", "empty": b""}
    if fault in before:
        path.write_bytes(before[fault])
    source = FolderSource(config, VOCABULARY)
    samples = Samples.of(source.refs())
    if fault in LATER:
        LATER[fault][1](path)
        return source, samples, LATER[fault][0]
    return source, samples, fault if fault in PLANNED else "label_damaged"


def named(record: Record, reason: str, root: Path) -> bool:
    (drop,) = record.drops
    return (drop.key, drop.reason) == (BAD, reason) and str(root / "labels" / f"{BAD}.png") in drop.detail


@pytest.mark.parametrize("fault", FAULTS)
def test_refined_masks_evaluation_and_training_leave_out_the_sample_alone(tmp_path: Path, fault: str) -> None:
    source, samples, reason = faulty(tmp_path, fault)
    first = embed_task(tmp_path, source)
    run_embed(first, source)
    masks = next_task(first, "refine", embedding=first).model_copy(update={"samples": samples})
    refiner = refine.Refiner(FakeDecoder(), VOCABULARY, refine_settings(), refine.batch_limit(3), source)
    done = do(refine_masks.work_on_masks, refiner, masks)
    assert (done.count, read_refined(masks.output).keys, named(done, reason, tmp_path)) == (2, ("a", "c"), True)

    task = ShardTask(stage="evaluate", shard="000000", samples=samples, output=tmp_path / "evaluate.json")
    done = run_evaluate(task, FakeSegmenter(needs_embedding=False), source, VOCABULARY)
    assert (done.count, named(done, reason, tmp_path)) == (2, True)

    task = ShardTask(stage="embed-source-labels", shard="000000", samples=samples, output=tmp_path / "labels.json")
    done = do(source_labels.work, source_labels.LabelledSource(source), task)
    assert (done.count, named(done, reason, tmp_path)) == (2, True)


@pytest.mark.parametrize("fault", ["label_of_other_size", "text", "gone"])
def test_measures_of_the_target_go_on_without_the_label_and_name_it(tmp_path: Path, fault: str) -> None:
    source, samples, reason = faulty(tmp_path, fault)
    first = embed_task(tmp_path, source)
    run_embed(first, source)
    teacher = next_task(first, "teacher", embedding=first)
    run_teacher(teacher, source, FakeSegmenter())
    refined = next_task(first, "refine", embedding=first, teacher=teacher)
    run_refine(refined)

    task = ShardTask(
        stage="refine-scores",
        round=1,
        shard="000000",
        output=tmp_path / "scores.json",
        inputs={"refine/000000": refined.output},
        source=FolderSourceConfig(images=str(tmp_path / "images"), labels=str(tmp_path / "labels")),
        measured=samples,
    )
    plan = make_plan(samples, 3)
    done = do(pseudo_scores.work, pseudo_scores.TargetLabels(VOCABULARY, source, plan), task)
    assert (done.count, named(done, reason, tmp_path)) == (3, True)
    assert why_stale(task) is None

    pairs = gather_pairs([(teacher.output, first.output)], samples, source, VOCABULARY, [GateConfig()])
    assert (pairs.labelled_images, [drop.reason for drop in pairs.drops]) == (2, [reason])

    if fault == "gone":
        (tmp_path / "labels" / f"{BAD}.png").write_bytes(png(whole()))
        assert why_stale(task) == "1 label is back"


def test_a_label_that_may_not_be_read_is_named_and_one_that_fails_for_now_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, samples, _ = faulty(tmp_path, "changed")
    refs = {ref.key: ref for ref in samples}
    frame, drops = ImageFrame((24, 32)), list[Drop]()
    refused = PermissionError(13, "Permission denied", "labels/b.png")
    monkeypatch.setattr(source, "read_label", lambda ref, frame: (_ for _ in ()).throw(refused))
    assert LabelReader(source, drops)(refs[BAD], frame) is None
    assert [(drop.key, drop.reason) for drop in drops] == [(BAD, "label_unreadable")]
    assert "labels/b.png: Permission denied" in drops[0].detail
    monkeypatch.setattr(source, "read_label", lambda ref, frame: (_ for _ in ()).throw(TimeoutError("stalled")))
    with pytest.raises(TimeoutError):
        LabelReader(source, [])(refs[BAD], frame)


def test_labels_in_the_stored_frame_are_counted_and_others_leave_no_trace_in_the_record(tmp_path: Path) -> None:
    config = folders(tmp_path)
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = 6
    stored = np.zeros((24, 32, 3), np.uint8)
    Image.fromarray(stored).save(tmp_path / "images" / "b.jpg", exif=exif)
    (tmp_path / "images" / "b.png").unlink()
    for turned in (True, False):
        source = FolderSource(config, VOCABULARY)
        task = ShardTask(
            stage="embed-source-labels",
            shard="000000",
            samples=Samples.of(source.refs()),
            output=tmp_path / f"{turned}.json",
        )
        do(source_labels.work, source_labels.LabelledSource(source), task)
        record = read_record(task.record)
        assert (record.drops, record.count) == ((), 3)
        assert record.stats.get(TURNED) == (1.0 if turned else None)
        (tmp_path / "labels" / "b.png").write_bytes(png(np.ascontiguousarray(np.rot90(whole(), -1))))
