"""The job server of a real Ray head, behind a token."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from run_setup import SMALL, invoke, sets

from jobs.cluster.connection import ROOT, choose_authentication
from jobs.cluster.job_server import RayJobServer
from shards.files.atomic import remove_path, sha256_path
from shards.formats.events import read_events

HEAD = """
import sys
from ray.cluster_utils import Cluster
settings = dict(num_cpus=2, object_store_memory=100 * 2**20, include_dashboard=True, dashboard_host="127.0.0.1")
# Ray's own port of the agent is one for all heads of a machine.
settings |= dict(dashboard_port=0, dashboard_agent_listen_port=0, temp_dir=sys.argv[1])
cluster = Cluster(initialize_head=True, head_node_args=settings)
print("head:", cluster.head_node.address_info["webui_url"], cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """A head of its own, with a dashboard on loopback and a token: its address, and the environment that fits it."""
    pytest.importorskip("aiohttp", reason="the job server comes with ray[default]")
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = {**plain, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "ab" * 32}
    environment["RAY_worker_niceness"] = "0"
    for attempt in range(3):  # on a busy machine a head may be late for itself
        folder = tmp_path_factory.mktemp(f"h{attempt}")
        command = [sys.executable, "-c", HEAD, str(folder)]
        with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as up:
            line = next((line for line in up.stdout or () if line.startswith("head:")), None)
            if line is not None:
                _, dashboard, joined = line.split()
                yield f"http://{dashboard}", {**environment, "JOINED": joined}
                return  # leaving the block closes the head's standard input, at which it ends
    raise AssertionError("the head did not start in 3 attempts")


def command(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    whole = [sys.executable, "-m", "pipeline", *arguments]
    return subprocess.run(whole, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.ray
@pytest.mark.slow
def test_a_submitted_stage_gives_the_bytes_of_one_in_this_process(
    head: tuple[str, dict[str, str]], weights: dict[str, str], tmp_path: Path
) -> None:
    address, environment = head
    chosen = sets({**SMALL, **weights, "submit.address": environment["JOINED"]})
    here, there = tmp_path / "here", tmp_path / "there"
    assert invoke("stage", "embed", "--round", "0", "--run", str(here), "--backend", "inline", *chosen)[0] == 0
    where = ["--round", "0", "--run", str(there), "--submit", address]
    done = command(environment, "stage", "embed", *where, *chosen, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["job"] == "there-000-embed-1"
    outputs = sorted((here / "embeddings" / "sam").glob("*.zarr"))
    assert outputs
    for output in outputs:
        assert sha256_path(there / output.relative_to(here)) == sha256_path(output)
    status = command(environment, "status", "--run", str(there), "--json")
    assert [(job["id"], job["exit_code"]) for job in json.loads(status.stdout)["jobs"]] == [("there-000-embed-1", 0)]
    wrong = command({**environment, "RAY_AUTH_TOKEN": "cd" * 32}, "stage", "start", *where)
    assert (wrong.returncode, len(wrong.stderr.strip().splitlines())) == (75, 1), wrong.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_a_chain_is_three_jobs_beside_each_other(
    head: tuple[str, dict[str, str]], one_round: Path, tmp_path: Path
) -> None:
    address, environment = head
    root = Path(shutil.copytree(one_round, tmp_path / "run"))
    for stage in ("teacher", "refine", "pseudo"):
        for path in (root / "rounds" / "001" / stage).iterdir():
            remove_path(path)
    settings = sets({"submit.python": sys.executable, "submit.address": environment["JOINED"]})
    done = command(environment, "round", "--n", "1", "--run", str(root), "--submit", address, *settings)
    assert done.returncode == 0, done.stderr
    for tar in (one_round / "rounds" / "001" / "pseudo").glob("*.tar"):
        assert sha256_path(root / tar.relative_to(one_round)) == sha256_path(tar)
    events = [(event["kind"], event.get("stage")) for event in read_events(root / "events.jsonl")]
    submitted = [place for place in events if place[0] == "submitted"]
    assert submitted == [("submitted", stage) for stage in ("teacher", "refine", "write")]
    new = events[events.index(submitted[0]) :]
    assert new.index(submitted[-1]) < new.index(("finished", "teacher"))


class Answers:
    """A client of a job server whose head is on a machine."""

    def __init__(self, hostname: str, ip: str, *, head: bool = True) -> None:
        self._nodes = [{"hostname": hostname, "ip": ip, "raylet": {"isHeadNode": head}}]

    def _do_request(self, method: str, endpoint: str) -> "Answers":
        return self

    def json(self) -> dict[str, Any]:
        return {"data": {"summary": self._nodes}}


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        (Answers(socket.gethostname(), "127.0.0.1"), True),
        (Answers("another", "127.0.0.1"), False),  # behind a tunnel: its own loopback address
        (Answers(socket.gethostname(), "203.0.113.1"), False),
        (Answers(socket.gethostname(), "127.0.0.1", head=False), False),
        (None, False),  # a server of another version
    ],
)
def test_a_head_shares_this_machine_if_its_host_name_and_address_are_ours(client: Any, expected: bool) -> None:
    server = RayJobServer.__new__(RayJobServer)
    server.address, server._client = "http://127.0.0.1:8265", client
    assert server.shares_machine() is expected


def test_addresses_that_are_none_and_servers_that_are_not_there_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(ValueError, match="http://host:port"):
        RayJobServer("head:8265")
    with pytest.raises(ConnectionError, match=r"answers at http://127\.0\.0\.1:1"):
        RayJobServer("http://127.0.0.1:1")


def test_a_cluster_without_a_token_is_only_joined_on_demand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError, match="RAY_AUTH_TOKEN_PATH"):
        choose_authentication(local=False)
    assert "RAY_AUTH_MODE" not in os.environ
