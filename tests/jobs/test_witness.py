"""A witness of presence between the teacher's logits and its scores."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shard_setup import (
    VOCABULARY,
    FakeDecoder,
    FakeSegmenter,
    embed_task,
    make_images,
    next_task,
    run_embed,
    run_refine,
)
from stage_setup import do

from jobs.artifacts.labels import read_refined
from jobs.inference.batching import BatchLimit
from jobs.inference.segmenter import PresentSegmenter
from jobs.inference.witness import (
    LEAST,
    NO_WITNESS,
    Judge,
    PresenceSettings,
    StoredWitness,
    TeacherWitness,
    absent_names,
    always_struck,
    read_tags,
)
from jobs.quality.vanished import why_vanished
from jobs.stage import ShardTask
from jobs.stages import presence, target_check, teacher
from models.evaluation.alarms import AlarmConfig, absent_alarms
from models.presets import PRESETS
from models.refinement.gate import STRUCK_ABSENT, GateConfig
from models.refinement.settings import RefinementConfig
from models.stseg.clip import build_clip
from pipeline.report.alarms import RoundFacts, alarm_fingerprint, refused_shares, round_alarms
from shards.data.folder_source import FolderSource
from shards.data.vocabulary import IGNORE_8_BIT
from shards.formats.arrays import read_arrays
from shards.formats.records import Record, read_record

TAGS = {"a": ["right", "never"], "b": ["left", "right"]}


@pytest.fixture
def embedded(tmp_path: Path) -> tuple[ShardTask, FolderSource]:
    source = make_images(tmp_path / "images")
    task = embed_task(tmp_path, source)
    run_embed(task, source)
    return task, source


def limit() -> BatchLimit:
    return BatchLimit(3, of="images", hint="")


def tagged(task: ShardTask, source: FolderSource, tags: dict[str, list[str]]) -> ShardTask:
    """Store tags as evidence."""
    path = task.output.parent / "tags.txt"
    path.write_text(json.dumps(tags))
    made = task.model_copy(update={"stage": "embed-presence", "output": task.output.with_name("presence-000000.zarr")})
    namer = presence.Namer(VOCABULARY, source, limit(), tags=read_tags(path, VOCABULARY))
    do(presence.work, namer, made)
    return made


def taught(
    task: ShardTask, source: FolderSource, settings: PresenceSettings, tags: dict[str, list[str]] | None = None
) -> tuple[ShardTask, Record]:
    inputs = {"embedding": task} | ({} if tags is None else {"presence": tagged(task, source, tags)})
    made = next_task(task, "teacher", **inputs)
    chosen = teacher.Settings(batch_size=3, presence=settings)
    loaded = teacher.Teacher(FakeSegmenter(), source, chosen, "softmax", "random", limit())
    return made, do(teacher.work, loaded, made)


def with_tags(**more: Any) -> PresenceSettings:
    return PresenceSettings(witness="tags", tags=Path("tags.json"), **more)


def test_a_struck_class_is_no_cells_choice_and_its_cells_go_to_the_best_class_left(
    embedded: tuple[ShardTask, FolderSource],
) -> None:
    made, record = taught(*embedded, with_tags(), TAGS)
    arrays, attrs = read_arrays(made.output)
    rows = {key: row for row, key in enumerate(attrs["keys"])}  # type: ignore[arg-type]
    kept = arrays["ids"][arrays["scores"] > 0]
    assert 0 in kept  # of other images
    shown = arrays["ids"][rows["a"]][arrays["scores"][rows["a"]] > 0]
    assert 0 not in shown and {1, 2} == set(shown.tolist())
    assert arrays["struck"][rows["a"]].tolist() == [True, False, False]
    assert not arrays["struck"][rows["b"]].any()  # "never" is struck, too, and took nothing
    assert not arrays["struck"][rows["c"]].any()  # nothing is known of an image without tags
    assert arrays["class_max"][rows["a"], 0] == 0
    assert (record.stats["class_0_refused"], record.stats["cells"]) == (32, 4 * 64)


def test_no_struck_class_is_in_the_labels_and_the_gate_says_why(embedded: tuple[ShardTask, FolderSource]) -> None:
    task, _ = embedded
    made, _ = taught(*embedded, with_tags(), TAGS)
    refine = next_task(task, "refine", embedding=task, teacher=made)
    record = run_refine(refine)
    store = read_refined(refine.output)
    row = store.keys.index("a")
    for name in ("teacher", "gated", "label"):
        assert 0 not in store.maps[name][row]
    assert {"class_id": 0, "confidence": 0.0, "reason": STRUCK_ABSENT} in store.gate[row]
    assert record.stats["classes_struck_absent"] == 1


def test_pixels_of_a_struck_class_can_be_ignored_instead(embedded: tuple[ShardTask, FolderSource]) -> None:
    task, _ = embedded
    made, _ = taught(*embedded, with_tags(instead="ignore"), TAGS)
    arrays, attrs = read_arrays(made.output)
    row = attrs["keys"].index("a")  # type: ignore[union-attr]
    assert (arrays["scores"][row, :, :, :4] == 0).all() and (arrays["scores"][row, 0, :, 4:] > 0.9).all()
    refine = next_task(task, "refine", embedding=task, teacher=made)
    run_refine(refine)
    label = read_refined(refine.output).maps["label"][row]
    assert set(np.unique(label).tolist()) == {1, IGNORE_8_BIT}


def test_a_witness_that_only_watches_changes_no_score(embedded: tuple[ShardTask, FolderSource]) -> None:
    made, record = taught(*embedded, with_tags(instead="keep"), TAGS)
    watched, _ = read_arrays(made.output)
    assert record.stats["class_0_refused"] == 32
    plain, record = taught(*embedded, NO_WITNESS)
    without, _ = read_arrays(plain.output)
    assert "cells" not in record.stats
    assert set(watched) == set(without) == {"ids", "scores", "class_max", "class_mean"}
    assert all(np.array_equal(watched[name], without[name]) for name in without)


def test_the_teacher_can_be_its_own_witness() -> None:
    logits = torch.zeros(1, 3, 2, 2)
    logits[:, 0] = 6.0
    logits[:, 2, 0, 0] = 6.1  # no cell is sure of the third class
    judge = Judge(TeacherWitness(), PresenceSettings(witness="teacher", least=0.6))
    kept, refused, ignored = judge.judge(["a"], logits, softmax=True)
    assert kept.isneginf()[0, :, 0, 0].tolist() == [False, True, True]
    assert refused.tolist() == [[0, 0, 1]]
    assert not ignored.any()


def test_tags_are_read_from_json_and_csv_and_unknown_names_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tags.json").write_text(json.dumps(TAGS))
    (tmp_path / "tags.csv").write_text("a,right,never\nb, left ,right,\n\n")
    read = [read_tags(tmp_path / name, VOCABULARY) for name in ("tags.json", "tags.csv")]
    assert [{key: row.tolist() for key, row in one.items()} for one in read] == [{"a": [0, 1, 1], "b": [1, 1, 0]}] * 2
    (tmp_path / "tags.csv").write_text("a,rihgt\n")
    with pytest.raises(ValueError, match="tags image 'a' with 'rihgt', which is not a class"):
        read_tags(tmp_path / "tags.csv", VOCABULARY)
    (tmp_path / "tags.json").write_text('["a"]')
    with pytest.raises(ValueError, match="holds no tags"):
        read_tags(tmp_path / "tags.json", VOCABULARY)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"witness": "tags"}, "name a file of tags"),
        ({"witness": "clip", "tags": "tags.json"}, "name a file of tags"),
        ({"least": 0.5}, "no effect"),
        ({"witness": "clip", "least": 2}, "expected 0 to 1"),
    ],
)
def test_settings_of_presence_that_contradict_each_other_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PresenceSettings(**values)


def test_clips_evidence_is_made_once_and_sums_to_one_per_image(embedded: tuple[ShardTask, FolderSource]) -> None:
    task, source = embedded
    torch.manual_seed(0)
    clip = build_clip(PRESETS["tiny"].clip)
    namer = presence.Namer(VOCABULARY, source, limit(), clip, torch.randn(3, 8, clip.embedding_dim), 96)
    shares = task.model_copy(update={"stage": "embed-names", "output": task.output.with_name("names.json")})
    record = do(presence.work_on_shares, namer, shares)
    assert record.count == 4 and len(record.drops) == 2
    rows = json.loads(shares.output.read_text())["classes"]
    assert [row["name"] for row in rows] == list(VOCABULARY.names)
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    made = task.model_copy(
        update={
            "stage": "embed-presence",
            "output": task.output.with_name("presence-000000.zarr"),
            "inputs": {"shares": shares.output},
        }
    )
    do(presence.work, namer, made)
    witness = StoredWitness.open(made.output)
    assert set(witness.evidence_of) == {"a", "b", "c", "turned"}
    assert all(row.sum() == pytest.approx(1, abs=1e-4) for row in witness.evidence_of.values())
    shares.output.write_text("{}")
    with pytest.raises(ValueError, match="no shares of this vocabulary"):
        presence.work(namer, made)


def test_what_is_struck_in_all_images_need_not_be_labelled(embedded: tuple[ShardTask, FolderSource]) -> None:
    task, source = embedded
    tags = {key: ["right"] for key in ("a", "b", "c", "turned")}
    made, _ = taught(*embedded, with_tags(), tags)
    refine = next_task(task, "refine", embedding=task, teacher=made)
    run_refine(refine)
    inputs = {
        "embedding/000000": task.output,
        "refine/000000": refine.output,
        "presence/000000": task.output.with_name("presence-000000.zarr"),
    }
    check = ShardTask(
        stage="evaluate-target",
        round=1,
        shard="000000",
        samples=task.samples,
        output=task.output.parent.parent / "target.json",
        inputs=inputs,
    )
    student = target_check.TargetCheck(
        student=FakeSegmenter(),
        teacher=None,
        decoder=FakeDecoder(),
        encoder=None,
        source=source,
        vocabulary=VOCABULARY,
        gate=GateConfig(),
        refinement=RefinementConfig(),
        top_k=4,
        probabilities="softmax",
        batch_size=3,
        presence=with_tags(),
    )
    do(target_check.work, student, check)
    found = json.loads(check.output.read_text())
    assert found["struck"] == [0, 2]
    assert {after for _, after, _ in found["changes"]["teacher_to_student"]} == {1}
    # The start labelled "left" before there was a witness: it is no loss that a student does not.
    first = {"changes": {"teacher_to_student": [[0, 0, 500], [1, 1, 500]]}}
    assert why_vanished(found, first, VOCABULARY.names, AlarmConfig()) is None
    del found["struck"]
    assert "'left'" in (why_vanished(found, first, VOCABULARY.names, AlarmConfig()) or "")
    assert read_record(refine.record).stats["class_1_pixels"] > 0


def test_a_student_is_no_witness_that_a_class_it_forgot_is_absent() -> None:
    judge = Judge(TeacherWitness(), PresenceSettings(witness="teacher"))
    assert target_check._always_struck(judge, ["a"]) == set()
    stored = StoredWitness({"a": np.array([0.0, 1.0], np.float32), "b": np.array([0.0, 0.0], np.float32)})
    assert always_struck(stored, ["a", "b"], 0.5) == {0}
    assert always_struck(stored, ["a", "unknown"], 0.5) == set()
    assert target_check._always_struck(Judge(stored, with_tags(instead="keep")), ["a"]) == set()


def test_an_alarm_rings_where_a_refused_class_grows_from_round_to_round() -> None:
    def records(refused: float) -> list[Record]:
        stats = {"cells": 1000.0, "class_1_refused": refused}
        return [Record(stage="teacher", shard="000000", count=1, stats=stats)]

    names = ("teacher_to_student", "teacher_to_refined", "before_to_refined")
    check = {"changes": {name: [[0, 0, 9]] for name in names}}

    def kinds(before: float, now: float) -> list[tuple[str, str | None]]:
        facts = RoundFacts(2, [], [], check, None, records(now), records(before))
        alarms = round_alarms(facts, ("cat", "red cat"), AlarmConfig(min_entropy=0, min_coverage=0))
        return [(alarm.kind, alarm.class_name) for alarm in alarms]

    assert kinds(20, 45) == [("absent_grows", "red cat")]
    assert kinds(20, 35) == kinds(0, 7) == []
    assert refused_shares(records(20), 2).tolist() == [0, 0.02]
    assert absent_alarms("x", np.zeros(1), np.zeros(1), ("cat",), AlarmConfig()) == []


def test_by_default_no_fingerprint_names_a_witness_or_its_alarm() -> None:
    assert teacher.Settings().presence == NO_WITNESS
    assert "absent_grows" not in alarm_fingerprint(AlarmConfig())
    assert alarm_fingerprint(AlarmConfig(absent_grows=3.0))["absent_grows"] == 3.0
    assert LEAST["clip"] == PresenceSettings(witness="clip").least_evidence


def test_absent_names_get_no_pixel_at_inference_and_stay_finite(tmp_path: Path) -> None:
    path = tmp_path / "names.json"
    shares = zip(VOCABULARY.names, (0.4, 0.6, 1e-20), strict=True)
    path.write_text(json.dumps({"classes": [{"name": n, "share": s, "image_cosine": 0.1} for n, s in shares]}))
    assert absent_names(path, VOCABULARY) == [2]
    network = FakeSegmenter()
    image = np.zeros((8, 8, 3), np.uint8)
    plain, without = (one.logits([image], None) for one in (network, PresentSegmenter(network, [1])))
    assert without.isfinite().all() and set(without.argmax(dim=1).flatten().tolist()) == {0}
    assert torch.equal(without[:, [0, 2]], plain[:, [0, 2]])
    with pytest.raises(ValueError, match="no shares of this vocabulary"):
        path.write_text('{"classes": []}')
        absent_names(path, VOCABULARY)
