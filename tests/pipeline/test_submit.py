"""Stages as jobs: a fake job server does each job in this process, and can fail, hang, forget and be interrupted."""

import json
import shutil
import sys
import time
from pathlib import Path

import pytest
from fake_job_server import FakeServer
from run_setup import SMALL, invoke, sets

from jobs.run import student_weights
from pipeline.cli.exit_codes import exit_code_of
from pipeline.errors import EXIT_RESUMABLE, JobEnded, SettingsConflict
from pipeline.rounds.driver import RoundRequest
from pipeline.run.jobs import job_rows, read_outcome
from pipeline.run.run import read_run
from pipeline.submit import submit
from pipeline.submit.submit import submit_rounds, submit_stage
from shards.files.atomic import sha256_file

ROUND_1 = RoundRequest(rounds=1)


@pytest.fixture
def run(one_round: Path, tmp_path: Path) -> Path:
    """A round that is done, but for its tars, their list, and its report."""
    root = Path(shutil.copytree(one_round, tmp_path / "my run"))
    for record in [*(root / "rounds" / "001" / "pseudo").glob("pseudo-*.json"), root / "rounds/001/report.record.json"]:
        record.unlink()
    return root


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    return FakeServer()


def facts(run: Path, stage: str) -> dict[str, str]:
    return {"run": str(run), "round": "1", "stage": stage, "attempt": "1"}


def test_each_open_stage_is_a_job_and_gives_the_same_bytes(run: Path, one_round: Path, server: FakeServer) -> None:
    reports = submit_rounds(run, ROUND_1, server)
    assert list(server.entries) == ["my_run-001-write-1", "my_run-001-report-1"]
    assert server.uploads == [True, True]
    assert [report.round for report in reports] == [0, 1]
    for tar in (one_round / "rounds" / "001" / "pseudo").glob("*.tar"):
        assert sha256_file(run / tar.relative_to(one_round)) == sha256_file(tar)
    command = server.commands["my_run-001-write-1"]
    assert command[:7] == ["python", "-m", "pipeline", "stage", "write", "--round", "1"]
    assert command[command.index("--run") + 1] == str(run)
    assert not (run / "run.lock").exists()


@pytest.fixture
def open_chain(one_round: Path, tmp_path: Path) -> Path:
    """A round whose teacher has one shard to do again, and with it refine and write."""
    root = Path(shutil.copytree(one_round, tmp_path / "my run"))
    for stage, name in (("teacher", "000001"), ("refine", "000001"), ("pseudo", "pseudo-000001")):
        (root / "rounds" / "001" / stage / f"{name}.json").unlink()
    return root


def test_the_stages_of_a_chain_are_submitted_together(open_chain: Path, one_round: Path, server: FakeServer) -> None:
    submit_rounds(open_chain, ROUND_1, server)
    chain = [f"my_run-001-{stage}-1" for stage in ("teacher", "refine", "write")]
    assert list(server.entries)[:3] == chain
    assert all("--together" in server.commands[job_id] for job_id in chain)
    assert server.followed[:3] == chain
    assert server.running_at_first_log == 3
    for tar in (one_round / "rounds" / "001" / "pseudo").glob("*.tar"):
        assert sha256_file(open_chain / tar.relative_to(one_round)) == sha256_file(tar)
    assert not list((open_chain / "locks").glob("*.lock"))


def test_a_round_is_a_job_per_stage_that_works_and_bookkeeping_rides_with_them(
    weights: dict[str, str], one_round: Path, tmp_path: Path, server: FakeServer
) -> None:
    root = tmp_path / "run"
    settings = sets({**SMALL, **weights})[1::2]
    reports = submit_rounds(root, RoundRequest(rounds=1, sets=tuple(settings)), server)
    done = {job_id: command[command.index("stage") + 1] for job_id, command in server.commands.items()}
    assert done == {
        "run-000-embed-1": "embed+start",
        "run-000-evaluate-1": "evaluate+promote+report",
        "run-001-teacher-1": "teacher",
        "run-001-refine-1": "refine",
        "run-001-write-1": "write",
        "run-001-train-1": "train",
        "run-001-evaluate-1": "evaluate+promote+report",
    }
    assert [report.round for report in reports] == [0, 1]
    records = {path.relative_to(one_round) for path in one_round.rglob("*.json") if "jobs" not in path.parts}
    assert records <= {path.relative_to(root) for path in root.rglob("*.json")}
    assert sha256_file(student_weights(read_run(root), 1)) == sha256_file(student_weights(read_run(one_round), 1))


def test_what_a_running_job_leaves_out_is_done_after_it(run: Path, server: FakeServer) -> None:
    for record in (run / "rounds" / "001").glob("promotion*.json"):
        record.unlink()
    submit_stage(run, "write", ROUND_1, server)
    server.interrupted = True
    with pytest.raises(KeyboardInterrupt):
        submit_stage(run, "promote", ROUND_1, server, "leave")
    server.interrupted = False
    submit_rounds(run, ROUND_1, server)
    assert list(server.entries) == ["my_run-001-write-1", "my_run-001-promote-1", "my_run-001-report-1"]


def test_several_stages_in_one_command_are_done_in_turn_and_count_together(run: Path, server: FakeServer) -> None:
    where = ["--round", "1", "--run", str(run)]
    code, out, _ = invoke("stage", "write+train+evaluate+promote+report", *where, "--backend", "inline", "--json")
    assert code == 0
    assert json.loads(out)["worked"] >= 2
    code, _, err = invoke("stage", "promote+nothing", *where, "--backend", "inline")
    assert code == 2
    assert "round 1 has no stage 'nothing'" in err


def test_of_a_chain_only_what_does_not_work_is_submitted_again(open_chain: Path, server: FakeServer) -> None:
    server.interrupted = True
    with pytest.raises(KeyboardInterrupt):
        submit_rounds(open_chain, ROUND_1, server, "leave")
    assert len(server.entries) == 3
    server.interrupted = False
    server.set_state("my_run-001-refine-1", "stopped")
    submit_rounds(open_chain, ROUND_1, server)
    assert list(server.entries)[3] == "my_run-001-refine-2"
    assert "my_run-001-teacher-2" not in server.entries


@pytest.mark.slow
def test_jobs_beside_one_that_was_cut_short_end_resumably(open_chain: Path, server: FakeServer) -> None:
    config = open_chain / "config.yaml"
    config.write_text(config.read_text().replace("start_timeout_s: 600.0", "start_timeout_s: 0.1"))
    server.cut_short.add("my_run-001-teacher-1")
    with pytest.raises(JobEnded, match=r"teacher-1 \(round 1 teacher\) failed") as caught:
        submit_rounds(open_chain, ROUND_1, server)
    assert exit_code_of(caught.value) == EXIT_RESUMABLE
    outcomes = [
        read_outcome(open_chain / "jobs" / f"my_run-001-{stage}-1.outcome.json") for stage in ("refine", "write")
    ]
    assert [outcome and outcome.exit_code for outcome in outcomes] == [EXIT_RESUMABLE, EXIT_RESUMABLE]
    assert outcomes[0] is not None
    assert "teacher of round 1 has ended, and 1 shards are not done (000001)" in outcomes[0].message
    submit_rounds(open_chain, ROUND_1, server)
    assert "my_run-001-refine-2" in server.entries


def test_what_damage_is_found_is_done_again(one_round: Path, tmp_path: Path, server: FakeServer) -> None:
    root = Path(shutil.copytree(one_round, tmp_path / "my run"))
    tar = root / "rounds" / "001" / "pseudo" / "pseudo-000001.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[:-1] + b"x")
    submit_rounds(root, ROUND_1, server)
    assert server.entries == {}
    submit_rounds(root, RoundRequest(rounds=1, verify=True), server)
    assert list(server.entries) == ["my_run-001-write-1"]
    assert tar.read_bytes() == whole


def test_a_finished_run_submits_nothing(one_round: Path, server: FakeServer, tmp_path: Path) -> None:
    root = Path(shutil.copytree(one_round, tmp_path / "run"))
    submit_rounds(root, ROUND_1, server)
    assert server.entries == {}


def test_a_job_that_still_works_is_followed_and_not_submitted_again(run: Path, server: FakeServer) -> None:
    server.interrupted = True
    with pytest.raises(KeyboardInterrupt):
        submit_stage(run, "write", ROUND_1, server, "leave")
    assert server.stopped == []
    server.interrupted = False
    again = submit_stage(run, "write", ROUND_1, server)
    assert again["job"] == "my_run-001-write-1"
    assert list(server.entries) == ["my_run-001-write-1"]


def test_interrupt_stops_the_job_when_asked_to(
    run: Path, server: FakeServer, capfd: pytest.CaptureFixture[str]
) -> None:
    server.interrupted = True
    with pytest.raises(KeyboardInterrupt):
        submit_stage(run, "write", ROUND_1, server, "stop")
    assert server.stopped == ["my_run-001-write-1"]
    assert "stopped: my_run-001-write-1" in capfd.readouterr().err


@pytest.mark.parametrize("state", ["failed", "stopped", "vanished"])
def test_a_job_that_is_gone_gets_the_next_attempt(state: str, run: Path, server: FakeServer) -> None:
    server.interrupted = True
    with pytest.raises(KeyboardInterrupt):
        submit_stage(run, "write", ROUND_1, server, "leave")
    server.interrupted = False
    if state == "vanished":
        server.entries.clear()  # a new head remembers nothing
    else:
        server.set_state("my_run-001-write-1", "failed" if state == "failed" else "stopped")
    assert submit_stage(run, "write", ROUND_1, server)["job"] == "my_run-001-write-2"


def test_jobs_of_another_run_of_the_same_name_only_take_their_ids(run: Path, server: FakeServer) -> None:
    server.set_state("my_run-001-write-1", "running", {**facts(run, "write"), "run": "/elsewhere/my run"})
    assert submit_stage(run, "write", ROUND_1, server)["job"] == "my_run-001-write-2"


def test_a_job_without_an_outcome_is_resumable_and_shows_the_end_of_its_log(run: Path, server: FakeServer) -> None:
    server.cut_short.add("my_run-001-write-1")
    with pytest.raises(JobEnded, match=r"driver was killed[\s\S]*last words") as caught:
        submit_rounds(run, ROUND_1, server)
    assert exit_code_of(caught.value) == EXIT_RESUMABLE
    assert "my_run-001-report-1" not in server.entries
    submit_rounds(run, ROUND_1, server)
    assert list(server.entries)[1:] == ["my_run-001-write-2", "my_run-001-report-1"]


def test_the_exit_code_of_a_job_is_that_of_the_command(run: Path, server: FakeServer) -> None:
    with pytest.raises(JobEnded, match="teacher of round 2 is not done") as caught:
        submit_stage(run, "refine", RoundRequest(rounds=2), server)
    assert exit_code_of(caught.value) == 4


def test_a_broken_connection_goes_on_where_it_was(
    run: Path, server: FakeServer, capfd: pytest.CaptureFixture[str]
) -> None:
    server.drops = 3
    submit_stage(run, "write", ROUND_1, server)
    assert capfd.readouterr().err.count("no newline at the end") == 1
    server.drops = 1000
    with pytest.raises(ConnectionError, match="same command continues") as caught:
        submit_stage(run, "report", ROUND_1, server)
    assert exit_code_of(caught.value) == EXIT_RESUMABLE


def test_success_without_the_output_is_no_success(
    run: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeServer, "follow", lambda self, job_id: iter([self.set_state(job_id, "succeeded") or ""]))
    jobs = run / "jobs"
    jobs.mkdir()
    (jobs / "my_run-001-write-1.outcome.json").write_text(json.dumps({"exit_code": 0, "message": ""}))
    with pytest.raises(JobEnded):  # the old outcome is of an id that is not used again
        submit_stage(run, "write", ROUND_1, server)
    (jobs / "my_run-001-write-3.outcome.json").write_text(json.dumps({"exit_code": 0, "message": ""}))
    monkeypatch.setattr(submit.SubmittedRun, "_next_attempt", lambda self, place: 3)
    with pytest.raises(ValueError, match="see the same folder"):
        submit_stage(run, "write", ROUND_1, server)


def test_other_settings_are_refused_while_a_job_works(run: Path, server: FakeServer) -> None:
    server.set_state("my_run-001-write-1", "running", facts(run, "write"))
    before = (run / "config.yaml").read_bytes()
    with pytest.raises(SettingsConflict, match=r"top_k 4 -> 3"):
        submit_rounds(run, RoundRequest(rounds=1, sets=("teacher.top_k=3",)), server)
    assert (run / "config.yaml").read_bytes() == before


def test_another_stage_waits_for_the_job_that_works(run: Path, server: FakeServer) -> None:
    server.set_state("my_run-001-train-1", "running", facts(run, "train"))
    with pytest.raises(JobEnded, match="train-1 is still running"):
        submit_stage(run, "write", ROUND_1, server)


def test_status_lists_jobs_also_without_their_server(run: Path, server: FakeServer) -> None:
    submit_stage(run, "write", ROUND_1, server)
    server.interrupted = True
    with pytest.raises(KeyboardInterrupt):
        submit_stage(run, "report", ROUND_1, server, "leave")

    def refused(address: str) -> FakeServer:
        raise ConnectionError(address)

    assert [row["state"] for row in job_rows(run, lambda address: server)] == ["ended", "running"]
    assert [row["state"] for row in job_rows(run, refused)] == ["ended", "unknown"]
    server.entries.clear()
    rows = job_rows(run, lambda address: server)
    assert [(row["state"], row["exit_code"]) for row in rows] == [("ended", 0), ("vanished", None)]


def test_two_places_at_once_are_refused(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    both = ["--address", "auto", "--submit", "http://127.0.0.1:1"]
    assert invoke("round", "--run", run, *both)[0] == 2
    assert invoke("round", "--run", run, "--backend", "inline", "--submit", "http://127.0.0.1:1")[0] == 2
    assert not Path(run).exists()


ENDED = "Job entrypoint command failed with exit code {}, last available logs (truncated to 20,000 chars):\n{}"


@pytest.mark.parametrize(
    ("log", "code", "said", "exit_code"),
    [
        ("/bin/sh: 1: python: not found", 127, "has no interpreter python; name one", 2),
        ("/bin/sh: 1: /x/python: Permission denied", 126, "has no interpreter python; name one", 2),
        ("/usr/bin/python: ModuleNotFoundError: No module named 'typer'", 1, "lacks the dependencies", 2),
        ("ModuleNotFoundError: No module named 'jobs.stages.refine'", 1, "unpacks the uploaded code anew", 75),
        ("ModuleNotFoundError: No module named 'typer'", 137, "was cut short|exit code 137", 75),
    ],
)
def test_an_environment_without_what_jobs_need_is_told_with_its_setting(
    log: str, code: int, said: str, exit_code: int, run: Path, server: FakeServer
) -> None:
    server.broken = (f"Traceback\n{log}\n", ENDED.format(code, log))
    with pytest.raises(JobEnded, match=said) as caught:
        submit_stage(run, "write", ROUND_1, server)
    assert exit_code_of(caught.value) == exit_code
    assert ("--set submit.python=/path/to/python" in str(caught.value)) == (exit_code == 2)


def test_a_project_that_is_not_installed_on_the_cluster_is_told_with_both_settings(
    run: Path, server: FakeServer
) -> None:
    server.broken = ("/usr/bin/python: No module named pipeline\n", ENDED.format(1, ""))
    request = RoundRequest(rounds=1, sets=("submit.upload=false",))
    with pytest.raises(JobEnded, match=r"submit\.python=.*submit\.upload=true") as caught:
        submit_stage(run, "write", request, server)
    assert exit_code_of(caught.value) == 2


@pytest.mark.parametrize(
    ("local", "setting", "expected"),
    [(True, "python", sys.executable), (False, "python", "python"), (True, "/opt/python", "/opt/python")],
)
def test_the_interpreter_of_jobs_is_the_commands_own_where_they_share_a_machine(
    local: bool, setting: str, expected: str, run: Path, server: FakeServer
) -> None:
    server.local = local
    submit_stage(run, "write", RoundRequest(rounds=1, sets=(f"submit.python={setting}",)), server)
    assert server.commands["my_run-001-write-1"][0] == expected
