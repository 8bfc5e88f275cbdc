"""Share matching in a whole run: off by need, planned, resumed, replayed, reported, guarded."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from run_setup import again, invoke, report, sets, snapshot

from jobs.artifacts.shares import STRENGTH, Shares
from jobs.quality.vanished import why_unseen_faded
from jobs.stages.matching import is_matched
from jobs.stages.promote import Settings, decide, start_decision, without_vanished
from pipeline.run.run import read_run
from shards.data.vocabulary import Vocabulary
from shards.formats.records import read_record

ON = "matching.strength=0.8"
LENIENT = sets(
    {
        "resources.train.threads": "1",
        "promotion.measure": "none",
        "promotion.allow_vanished": "true",
        "alarms.stop": "false",
    }
)


@pytest.fixture
def run(one_round: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(one_round, tmp_path / "run"))


def outputs(run: Path, number: int) -> dict[str, str]:
    """Return the checksums of labels and student of a round."""
    folder = run / "rounds" / f"{number:03d}"
    records = [*folder.glob("refine/*.json"), *folder.glob("pseudo/*[0-9].json"), folder / "student" / "model.json"]
    return {name: digest for path in records for name, digest in read_record(path).outputs.items()}


def rows(run: Path, *more: str) -> dict[tuple[int, str], dict[str, int]]:
    code, out, err = invoke("plan", "--run", str(run), "--json", *more)
    assert code == 0, err
    return {(row["round"], row["stage"]): row for row in json.loads(out)}


def test_where_nothing_starves_labels_and_student_are_those_of_a_run_without_matching(
    run: Path, weights: dict[str, str]
) -> None:
    opened = read_run(run)
    assert read_record(opened.layout.shares(1).with_suffix(".record.json")).stats[STRENGTH] == 0
    assert not is_matched(opened, 1)
    auto = outputs(run, 1)
    assert len(auto) == 5
    shutil.rmtree(run / "rounds" / "001")
    assert again(run, "--set", "matching.strength=none")[0] == 0
    assert not opened.layout.shares(1).exists()
    assert outputs(run, 1) == auto


def test_where_nothing_starves_later_rounds_have_no_such_task_and_another_setting_redoes_nothing(run: Path) -> None:
    found = rows(run, "--n", "2")
    assert found[1, "refine-shares"]["done"] == 1
    assert (2, "refine-shares") not in found
    before = snapshot(run)
    code, _, err = again(run, "--set", "matching.strength=none")
    assert (code, "nothing to do" in err) == (0, True)
    changed = {path for path, when in snapshot(run).items() if before.get(path) != when}
    assert {Path(path).name for path in changed} <= {"config.yaml", "events.jsonl"}


def test_a_finished_round_of_an_earlier_version_is_measured_and_otherwise_left_alone(run: Path) -> None:
    for path in (run / "rounds" / "001").glob("shares*"):
        path.unlink()
    before = snapshot(run)
    assert again(run)[0] == 0
    changed = {Path(path).name for path, when in snapshot(run).items() if before.get(path) != when}
    assert changed <= {"shares.json", "shares.record.json", "events.jsonl"}


@pytest.mark.slow
def test_a_matched_round_is_planned_done_reported_and_resumed(run: Path) -> None:
    plain = outputs(run, 1)
    code, _, err = again(run, "--set", ON, *LENIENT)
    assert code == 0, err
    assert is_matched(read_run(run), 1)
    matched = outputs(run, 1)
    assert matched.keys() == plain.keys()
    assert matched["model.safetensors"] != plain["model.safetensors"]
    facts = report(run, 1)
    assert facts["matching"]["strength"] == 0.8
    assert facts["matching"]["cause"].endswith("unseen classes pass the gate in no image: matching at 0.80, as set")
    assert facts["training"]["alpha"] == pytest.approx(0.46)
    assert "matching at 0.80" in (run / "rounds" / "001" / "report.html").read_text()
    assert "class's own threshold" in facts["gate"]["definition"]
    before = snapshot(run)
    assert again(run)[0] == 0
    assert snapshot(run) == before
    (run / "rounds" / "001" / "refine" / "000001.json").unlink()
    (run / "rounds" / "001" / "student" / "model.json").unlink()
    assert again(run)[0] == 0
    assert outputs(run, 1) == matched
    code, _, err = invoke("round", "--n", "2", "--run", str(run), "--backend", "inline")
    assert code == 0, err
    found = rows(run, "--n", "2")
    assert (found[2, "refine-shares"]["done"], found[2, "refine"]["done"]) == (1, 2)
    assert invoke("shards", "verify", "--run", str(run))[0] == 0


@pytest.mark.slow
def test_a_replay_and_its_dry_run_match_shares_and_calibrate_reads_them(run: Path, tmp_path: Path) -> None:
    assert again(run, "--set", ON, *LENIENT)[0] == 0
    arguments = ("--run", str(run), "--round", "1", "--set", "gate.threshold=0.05")
    code, out, err = invoke("replay", *arguments, "--dry-run", "--json")
    assert code == 0, err
    found = {row["class"]: row for row in json.loads(out)["per_class"]}
    code, out, err = invoke("replay", *arguments, "--backend", "inline", "--name", "low", "--json")
    assert code == 0, err
    made = read_run(run)
    shares = Shares.load(Path(json.loads(out)["folder"]) / "shares.json", made.vocabulary)
    thresholds = dict(zip(made.vocabulary.names, shares.threshold_K.tolist(), strict=True))
    assert {name: row["threshold"] for name, row in found.items()} == {
        name: pytest.approx(thresholds[name], abs=1e-4) for name in found
    }
    assert (shares.threshold_K <= 0.05).all()
    assert invoke("shards", "verify", "--run", str(run))[0] == 0
    out_file = tmp_path / "calibration.json"
    code, _, err = invoke("calibrate", "--run", str(run), "--round", "1", "--images", "2", "--out", str(out_file))
    assert code == 0, err


VOCABULARY = Vocabulary.from_names(["road", "car", "pole"], seen=["road"])
NONE = np.zeros(3, np.int64)
SHARES = Shares(1.0, "", np.zeros(3), np.array([0.8, 0.15, 0.05]), np.full(3, 0.9), NONE, NONE)


def moved(*triples: tuple[int, int, int]) -> dict[str, object]:
    """A target check: (the teacher's label, the student's, pixels)."""
    return {"changes": {"teacher_to_student": [list(one) for one in triples]}}


@pytest.mark.parametrize(("unseen", "faded"), [(110, False), (101, False), (99, True), (0, True)])
def test_a_student_with_less_than_half_of_the_unseen_classes_matched_share_is_not_promoted(
    unseen: int, faded: bool
) -> None:
    why = why_unseen_faded(moved((0, 0, 1000 - unseen), (1, 2, unseen)), SHARES, VOCABULARY)
    assert (why is not None) == faded
    before = start_decision("none", Settings(), None)
    decision = without_vanished(decide(1, "none", before, (), 2.0), before, None, why)
    assert decision.outcome == ("class_vanished" if faded else "promoted")
    if faded:
        assert f"only labels {unseen / 10:.2f} % of the target sample as unseen classes" in decision.reason
        assert "whose matched share is 20.00 %" in decision.reason


def test_a_sample_without_a_label_fades_nothing() -> None:
    assert why_unseen_faded(moved(), SHARES, VOCABULARY) is None
