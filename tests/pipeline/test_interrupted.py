"""A round that is stopped, or that holds a shard which cannot be done: exit codes, what is left, and the way on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from run_setup import SMALL, again, invoke, sets

from jobs.cluster.connection import ROOT
from jobs.execution.worker import StageWorker
from jobs.stage import ShardTask
from shards.files.atomic import sha256_path
from shards.formats.records import Record

UNMATCHED = "matching.strength=none"  # matched shares need the scores of all shards: without one, none is refined
COMMAND = [sys.executable, "-c", "from pipeline.cli.app import main; main()"]


def artifacts(run: Path) -> dict[str, str]:
    """Return the checksum of every stage's outputs of a run."""
    found = [*run.glob("embeddings/*/*.zarr"), *run.glob("rounds/*/*/*.zarr")]
    found += [*run.glob("rounds/*/pseudo/*.tar"), *run.glob("rounds/*/student/*.safetensors")]
    return {str(path.relative_to(run)): sha256_path(path) for path in found}


def stopped(arguments: Sequence[str], mark: Path) -> tuple[int, str]:
    """Run the command line, send SIGTERM when `mark` is there; return its exit code and its words."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    # Not a pipe: Ray's own processes inherit it, and may hold it open for longer than the command runs.
    with tempfile.TemporaryFile("w+") as words:
        process = subprocess.Popen([*COMMAND, *arguments], cwd=ROOT, env=plain, stderr=words)
        deadline = time.monotonic() + 300
        while not mark.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
        words.seek(0)
        return code, words.read()


@pytest.mark.slow
def test_round_that_gets_sigterm_ends_as_resumable_and_comes_out_the_same(
    one_round: Path, weights: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = ["round", "--n", "1", "--run", str(run), "--backend", "inline", *sets({**SMALL, **weights})]
    code, words = stopped(arguments, run / "rounds" / "001" / "teacher" / "000000.json")
    assert code == 75, words
    assert "resume with the same command" in words
    assert not (run / "run.lock").exists()
    left = artifacts(run)
    assert left.keys() < artifacts(one_round).keys()
    code, _, err = again(run)
    assert code == 0, err
    assert artifacts(run) == artifacts(one_round)


def poison(patch: pytest.MonkeyPatch, stage: str, shard: str) -> list[ShardTask]:
    """Have every attempt at a shard fail; give the list that these are added to."""
    whole = StageWorker.run
    tries: list[ShardTask] = []

    def poisoned(self: StageWorker, task: ShardTask) -> Record:
        if (task.stage, task.shard) == (stage, shard):
            tries.append(task)
            raise RuntimeError("poison")
        return whole(self, task)

    patch.setattr(StageWorker, "run", poisoned)
    return tries


@pytest.mark.slow
def test_shard_that_always_fails_is_quarantined_and_named_and_the_rest_of_the_chain_is_done(
    one_round: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(one_round, tmp_path / "run"))
    shutil.rmtree(run / "rounds" / "001")
    with monkeypatch.context() as patch:
        tries = poison(patch, "teacher", "000000")
        code, _, err = again(run, "--set", "execution.max_attempts=2", "--set", UNMATCHED)
    assert code == 4
    assert len(tries) == 2
    command = f"stseg-pipeline round --n 1 --run {run}"
    assert "teacher 000000 (2 attempts): RuntimeError: poison" in err
    assert "not tried because of these: refine 1, write 1" in err
    assert command in err
    assert (run / "rounds" / "001" / "pseudo" / "pseudo-000001.tar").is_file()
    assert not list((run / "rounds" / "001").glob("student/*.safetensors"))

    code, out, _ = invoke("status", "--run", str(run), "--json")
    status = json.loads(out)
    assert [(q["round"], q["stage"], q["shard"]) for q in status["quarantined"]] == [(1, "teacher", "000000")]
    assert status["retry"] == command
    _, out, _ = invoke("status", "--run", str(run))
    assert "quarantined: teacher 000000 of round 1: RuntimeError: poison" in out
    assert f"once the cause is fixed, try again: {command}" in out

    code, _, err = again(run, "--set", "matching.strength=auto")
    assert code == 0, err
    assert artifacts(run) == artifacts(one_round)
    _, out, _ = invoke("status", "--run", str(run), "--json")
    assert (json.loads(out)["quarantined"], json.loads(out)["retry"]) == ([], None)


@pytest.mark.slow
def test_shard_that_cannot_be_embedded_is_quarantined_and_the_chain_of_all_others_is_done(
    one_round: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(one_round, tmp_path / "run"))
    shutil.rmtree(run / "rounds")
    shutil.rmtree(run / "embeddings")
    with monkeypatch.context() as patch:
        poison(patch, "embed", "000000")
        code, _, err = again(run, "--set", UNMATCHED)
    assert code == 4
    assert "1 shard failed" in err
    assert "embed 000000 (3 attempts): RuntimeError: poison" in err
    assert "not tried because of these: teacher 1, refine 1, write 1" in err
    assert f"stseg-pipeline round --n 1 --run {run}" in err
    assert [path.name for path in (run / "rounds" / "001" / "pseudo").glob("*.tar")] == ["pseudo-000001.tar"]
    assert not list((run / "rounds" / "001").glob("student/*.safetensors"))

    _, out, _ = invoke("status", "--run", str(run), "--json")
    status = json.loads(out)
    done = {(row["round"], row["stage"]): (row["done"], row["total"]) for row in status["stages"]}
    assert done[(0, "embed")] == done[(1, "teacher")] == done[(1, "refine")] == done[(1, "write")] == (1, 2)
    assert [(q["round"], q["stage"], q["shard"]) for q in status["quarantined"]] == [(0, "embed", "000000")]

    code, _, err = again(run, "--set", "matching.strength=auto")
    assert code == 0, err
    assert artifacts(run) == artifacts(one_round)
