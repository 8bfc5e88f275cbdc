"""A cluster of several nodes: workers stay where their resource is, and a lost node costs only its shards in flight."""

import hashlib
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from jobs.cluster.connection import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ATTEMPTS = 3
COMMAND = "import sys; from lost_node import run; run(*sys.argv[1:])"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the chains of `lost_node` found."""
    folder = tmp_path_factory.mktemp("nodes")
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    plain["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    for attempt in range(ATTEMPTS):
        place = folder / str(attempt)
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, str(place), str(folder / "found.json")],
            cwd=ROOT,
            env=plain,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        if "timed out during startup" not in done.stderr:  # Ray gives a node 30 s, too few on a busy machine
            break
    assert done.returncode == 0, done.stderr[-3000:]
    read: dict[str, Any] = json.loads((folder / "found.json").read_bytes())
    return {**read, "words": done.stderr}


def test_workers_that_want_a_resource_run_only_where_it_is(found: dict[str, Any]) -> None:
    assert found["sam on"] == [found["kept"]]


def test_lost_node_costs_its_shards_in_flight_and_every_byte_comes_out_the_same(found: dict[str, Any]) -> None:
    assert found["killed"] >= 1
    assert found["done"] == 20
    names = [f"{number:06d}" for number in range(10)]
    assert found["bytes"] == {
        f"{stage}/{name}.tar": hashlib.sha256(f"{stage} {name}".encode()).hexdigest()
        for stage in ("one", "two")
        for name in names
    }
    assert all("the worker was lost" in retry or "could not be reached" in retry for retry in found["retries"])


def test_worker_that_no_machine_can_hold_is_told_at_once_and_given_up_after_a_while(found: dict[str, Any]) -> None:
    assert "a worker of one asks for 1 CPU, 1 moon; the cluster has" in found["words"]
    assert "at most 3 s" in found["words"]
    assert "no worker was up within 3 s: it needs 1 CPU, 1 moon on one machine" in found["impossible"]
    assert "machine with 2 CPU, 0 moon" in found["impossible"]
