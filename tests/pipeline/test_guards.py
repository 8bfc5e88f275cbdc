"""Promotion and alarms in a real run: what is spoiled in its files ends it with exit code 5, or is named."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from run_setup import again, invoke, report, sets, snapshot

from jobs.commit import commit
from jobs.stage import Done, ShardTask
from pipeline.run.run import read_run
from pipeline.tasks.recipe import all_tasks
from shards.files.atomic import sha256_file
from shards.formats.arrays import read_arrays, write_arrays
from shards.formats.records import read_record


@pytest.fixture
def copied(one_round: Path, tmp_path: Path) -> Path:
    """A copy of the run with one round done, to spoil."""
    shutil.copytree(one_round, tmp_path / "copy", ignore=shutil.ignore_patterns("run.lock*", "locks", "002"))
    return tmp_path / "copy"


def tasks_of(run: Path, number: int, stage: str) -> list[ShardTask]:
    return [task for task in all_tasks(read_run(run), number) if (task.round, task.stage) == (number, stage)]


def test_a_student_below_the_held_out_score_ends_the_run_with_exit_5_and_the_best_stays(copied: Path) -> None:
    holdout = copied / "rounds" / "000" / "holdout.json"
    (task,) = tasks_of(copied, 0, "evaluate-holdout")
    scores = {**json.loads(holdout.read_bytes()), "miou": 90.0}
    holdout.write_text(json.dumps(scores))
    commit(task, Done(1), 0.0)
    code, _, err = again(copied)
    assert code == 5
    assert "holdout miou" in err
    assert "against 90.0" in err
    assert f"round --n 1 --run {copied} --set promotion.on_regression=keep" in err
    promotion = report(copied, 1)["promotion"]
    assert (promotion["outcome"], promotion["best_round"]) == ("regressed", 0)
    best = copied / "rounds" / "001" / "best" / "model.safetensors"
    assert sha256_file(best) == sha256_file(copied / "rounds" / "000" / "student" / "model.safetensors")
    assert "regressed" in (copied / "rounds" / "001" / "report.html").read_text()
    before = snapshot(copied)
    assert again(copied)[0] == 5
    assert snapshot(copied) == before
    code, out, err = again(copied, "--set", "promotion.on_regression=keep")
    assert (code, "nothing to do" in err) == (0, True)
    assert "regressed, best: round 0" in out


@pytest.mark.parametrize("measure", ["holdout", "none"])
def test_a_student_without_a_class_of_its_teacher_ends_the_run_with_exit_5_unless_a_setting_allows_it(
    copied: Path, measure: str
) -> None:
    spoil_holdout(copied)  # by labelled images alone, the student would be promoted
    check = copied / "rounds" / "001" / "target.json"
    (task,) = tasks_of(copied, 1, "evaluate-target")
    found = json.loads(check.read_bytes())
    found["changes"]["teacher_to_student"] = [[0, 0, 900], [1, 0, 100]]
    check.write_text(json.dumps(found))
    commit(task, Done(1), 0.0)
    names = [entry["name"] for entry in report(copied, 1)["classes"]]
    code, _, err = again(copied, "--set", f"promotion.measure={measure}")
    assert code == 5
    assert f"no longer labels {names[1]!r} (0.00 % of the target sample, 10.00 % of its teacher's labels)" in err
    assert "--set promotion.allow_vanished=true" in err
    promotion = report(copied, 1)["promotion"]
    assert (promotion["outcome"], promotion["best_round"]) == ("class_vanished", 0)
    best, start = (copied / "rounds" / part / "model.safetensors" for part in ("001/best", "000/student"))
    assert sha256_file(best) == sha256_file(start)
    assert "a class vanished, not promoted" in (copied / "rounds" / "001" / "report.html").read_text()
    assert again(copied, "--set", "promotion.on_regression=keep")[0] == 0
    assert report(copied, 1)["promotion"]["outcome"] == "class_vanished"
    assert again(copied, "--set", "promotion.on_regression=stop", "--set", "promotion.allow_vanished=true")[0] == 0
    assert report(copied, 1)["promotion"]["outcome"] == "promoted"


def test_decisions_of_a_default_run_name_no_setting_of_vanished_classes(copied: Path) -> None:
    (decision, _) = [task for task in all_tasks(read_run(copied), 1) if task.round == 1 and "promote" in task.stage]
    assert not {"allow_vanished", "vanished"} & set(decision.fingerprint)


@pytest.mark.slow
def test_labels_swapped_between_two_classes_raise_alarms_that_name_both(copied: Path) -> None:
    # Random weights guess, and change much in two steps; what is to be told are the classes.
    quiet = sets({"alarms.stop": "true", "alarms.churn": "1", "alarms.min_certainty": "0"})
    assert again(copied, *quiet)[0] == 0
    names = [entry["name"] for entry in report(copied, 1)["classes"]]
    shares = [entry["pixel_share"] for entry in report(copied, 1)["classes"]]
    first, second = sorted(range(len(names)), key=lambda index: -shares[index])[:2]
    for task in tasks_of(copied, 1, "refine"):
        swap_labels(task, first, second)
    code, _, err = again(copied)
    assert code == 5
    swapped = {alarm["class_name"] for alarm in report(copied, 1)["alarms"] if alarm["kind"] == "class_churn"}
    assert {names[first], names[second]} <= swapped
    assert f"{names[first]!r} became {names[second]!r}" in err
    assert "class_churn" in (copied / "rounds" / "001" / "report.html").read_text()
    assert '"kind": "alarm"' in (copied / "events.jsonl").read_text()
    status = json.loads(invoke("status", "--run", str(copied), "--json")[1])
    assert len(status["rounds"]["1"]["alarms"]) == len(report(copied, 1)["alarms"])


@pytest.mark.slow
def test_a_teacher_that_says_one_class_raises_alarms_and_ends_the_run_with_exit_5(copied: Path) -> None:
    # Random weights guess, change much and regress by chance in two steps; what is to be told is the collapse.
    quiet = {"alarms.churn": "1", "alarms.stop": "true", "promotion.on_regression": "keep"}
    assert again(copied, *sets({**quiet, "alarms.min_certainty": "0"}))[0] == 0
    arguments = ("--run", str(copied), "--backend", "inline")
    assert invoke("stage", "teacher", "--round", "2", *arguments)[0] == 0
    first = max(report(copied, 1)["classes"], key=lambda entry: entry["pixel_share"])
    for task in tasks_of(copied, 2, "teacher"):
        say_one_class(task, first["id"])
    code, _, err = invoke("round", "--n", "2", *arguments)
    assert code == 5
    second = report(copied, 2)
    assert [entry["name"] for entry in second["classes"] if entry["pixel_share"]] == [first["name"]]
    against = {
        alarm["kind"] for alarm in second["alarms"] if "pseudo-labels of round 2 against round 1" in alarm["about"]
    }
    assert {"histogram_drift", "entropy_collapse", "class_vanished"} <= against
    vanished = {alarm["class_name"] for alarm in second["alarms"] if alarm["kind"] == "class_vanished"}
    shares = {entry["name"]: entry["pixel_share"] for entry in report(copied, 1)["classes"]}
    assert vanished >= {name for name, share in shares.items() if share > 0.5} - {first["name"]}
    assert f"100.0 % of the labelled pixels are {first['name']!r}" in err


def spoil_holdout(run: Path) -> None:
    """Make the start worse on labelled images than any student."""
    (task,) = tasks_of(run, 0, "evaluate-holdout")
    scores = {**json.loads(task.output.read_bytes()), "miou": 0.0}
    task.output.write_text(json.dumps(scores))
    commit(task, Done(1), 0.0)


def say_one_class(task: ShardTask, class_id: int) -> None:
    """Make one class the first choice everywhere in the teacher's scores of a shard, with a record that fits."""
    arrays, attrs = read_arrays(task.output)
    ids, others = arrays["ids"], arrays["ids"][:, :-1]
    place = (others == class_id).cumsum(axis=1) > 0  # what stood above the class moves down by one
    ids[:, 1:] = np.where(place, ids[:, 1:], others)
    ids[:, 0] = class_id
    write_arrays(task.output, arrays, attrs)
    record = read_record(task.record)
    commit(task, Done(record.count, record.stats, record.drops), 0.0)


def swap_labels(task: ShardTask, first: int, second: int) -> None:
    """Exchange two classes in the refined labels of a shard, with a record that fits."""
    arrays, attrs = read_arrays(task.output)
    label = arrays["label"]
    arrays["label"] = np.where(label == first, second, np.where(label == second, first, label)).astype(label.dtype)
    write_arrays(task.output, arrays, attrs)
    record = read_record(task.record)
    commit(task, Done(record.count, record.stats, record.drops), 0.0)
