"""The names in a run folder are those of the design, and cannot leave it."""

from pathlib import Path

import pytest

from shards.formats.layout import RunLayout, record_of

RUN = RunLayout(Path("run"))


def test_paths_are_those_of_the_design() -> None:
    names = {
        RUN.config: "config.yaml",
        RUN.vocabulary: "vocabulary.json",
        RUN.plan: "plan.json",
        RUN.source_plan: "source_plan.json",
        RUN.events: "events.jsonl",
        RUN.lock: "run.lock",
        RUN.locks: "locks",
        RUN.stage_lock(1, "teacher"): "locks/001-teacher.lock",
        RUN.stage_lock(0, "refine-thresholds"): "locks/000-refine-thresholds.lock",
        RUN.embedding("target", "000001"): "embeddings/sam/000001.zarr",
        RUN.embedding("source", "000001"): "embeddings/sam/source-000001.zarr",
        RUN.embedding("test", "000001"): "embeddings/sam/test-000001.zarr",
        RUN.teacher(1, "000012"): "rounds/001/teacher/000012.zarr",
        RUN.refine(12, "000012"): "rounds/012/refine/000012.zarr",
        RUN.pseudo(1, "000012"): "rounds/001/pseudo/pseudo-000012.tar",
        RUN.pseudo_index(1): "rounds/001/pseudo/index.json",
        RUN.student(3): "rounds/003/student",
        RUN.report_json(0): "rounds/000/report.json",
        RUN.report_html(1): "rounds/001/report.html",
    }
    assert {path.relative_to("run").as_posix() for path in names} == set(names.values())
    assert all(path == Path("run") / name for path, name in names.items())


def test_record_lies_beside_its_output() -> None:
    assert record_of(RUN.teacher(1, "000000")) == Path("run/rounds/001/teacher/000000.json")
    assert record_of(RUN.pseudo(1, "000000")) == Path("run/rounds/001/pseudo/pseudo-000000.json")
    assert record_of(RUN.student(1)) == Path("run/rounds/001/student.json")
    with pytest.raises(ValueError, match="same name"):
        record_of(RUN.plan)


@pytest.mark.parametrize("name", ["", "../../x", "12345", "abcdef", "000000\n", "/etc/passwd", "000000.zarr"])
def test_odd_shard_names_are_refused(name: str) -> None:
    for make in (RUN.teacher, RUN.refine, RUN.pseudo):
        with pytest.raises(ValueError, match="shard name"):
            make(1, name)
    with pytest.raises(ValueError, match="shard name"):
        RUN.embedding("target", name)


@pytest.mark.parametrize("name", ["", "..", "a/b", "../run", "teacher.lock", "Teacher", "1", "a\n"])
def test_odd_stage_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name of a stage"):
        RUN.stage_lock(1, name)
    with pytest.raises(ValueError, match="round -1"):
        RUN.stage_lock(-1, "teacher")


def test_negative_rounds_are_refused_and_many_rounds_are_not() -> None:
    with pytest.raises(ValueError, match="round -1"):
        RUN.round(-1)
    assert RUN.round(1234).name == "1234"


def test_a_replay_has_its_own_pseudo_labels_and_the_round_s_teacher() -> None:
    replay = RunLayout(Path("run"), replay="low-1")
    folder = Path("run/rounds/002/replays/low-1")
    assert replay.refine(2, "000000") == folder / "refine" / "000000.zarr"
    assert replay.pseudo(2, "000000") == folder / "pseudo" / "pseudo-000000.tar"
    assert replay.pseudo_index(2) == folder / "pseudo" / "index.json"
    assert replay.thresholds(2) == folder / "thresholds.json"
    assert replay.pseudo_scores(2) == folder / "pseudo_labels.json"
    plain = RunLayout(Path("run"))
    assert replay.teacher(2, "000000") == plain.teacher(2, "000000")
    assert (replay.student(2), replay.config, replay.lock) == (plain.student(2), plain.config, plain.lock)
    assert plain.thresholds(2) == Path("run/rounds/002/thresholds.json")


@pytest.mark.parametrize("name", ["", "..", ".x", "a/b", "/etc", "a b", "x" * 81, "a\n"])
def test_odd_replay_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="names no replay"):
        RunLayout(Path("run"), replay=name)
