"""A command's connection to Ray: what Ray says goes to the run's log, and what is done is counted."""

import shutil
from pathlib import Path

import pytest
from run_setup import again

from jobs.cluster.messages import sentence_of
from pipeline.progress import RunProgress
from pipeline.rounds.ray_session import RaySession
from pipeline.run.run import read_run
from shards.formats.events import read_events
from shards.formats.records import Record

DEAD = "The node with node id: d17 has been marked dead because it has missed too many heartbeats. This can happen"
DUMP = "Raylet is terminated. Termination is unexpected. Last 20 lines of the logs:\n" + "    [state dump]\n" * 50


def test_a_lost_machine_is_a_sentence_on_the_terminal_and_whole_in_the_runs_log(
    one_round: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "events.jsonl"
    session = RaySession(read_run(one_round), RunProgress(log), "ray", None)
    for message in (DUMP, DEAD):
        session._note(message, sentence_of(message))
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert "missed too many heartbeats; all of it is in " in err
    assert [event["message"] for event in read_events(log)] == [DUMP, DEAD]


def test_each_shard_and_training_is_counted_once(
    one_round: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(shutil.copytree(one_round, tmp_path / "run"))
    for record in [*(root / "rounds/001/pseudo").glob("pseudo-*.json"), root / "rounds/001/student/model.json"]:
        record.unlink()
    counted: list[tuple[int, str, int]] = []

    def count(self: RaySession, number: int, stage: str, record: Record) -> None:
        counted.append((number, stage, record.count))

    monkeypatch.setattr(RaySession, "count", count)
    assert again(root)[0] == 0
    assert [entry[:2] for entry in counted] == [(1, "write"), (1, "write"), (1, "train")]
    assert sum(number for _, stage, number in counted if stage == "write") == 3
    counted.clear()
    assert again(root)[0] == 0
    assert counted == []
