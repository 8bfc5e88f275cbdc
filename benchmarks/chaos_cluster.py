"""A Ray of several nodes on this machine, in a process of its own; ends when its standard input does."""

import contextlib
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
NODES: Final = 2  # besides the head, one CPU each


@contextlib.contextmanager
def cluster() -> Iterator[tuple[str, list[int], int, dict[str, str]]]:
    """Hold a cluster.

    Yields:
        Its address, the process numbers of the raylets of all nodes but the head, that of the process which started
        them, and the environment in which a command may join.
    """
    access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_worker_niceness": "0"}
    environment = {**os.environ, **access}
    command = [sys.executable, "-m", "benchmarks.chaos_cluster"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            while not (line := child.stdout.readline()).startswith(b"{"):
                if not line:
                    raise RuntimeError("the cluster of several nodes did not start")
            facts = json.loads(line)
            yield facts["address"], facts["raylets"], child.pid, access
        finally:
            child.stdin.close()
            try:
                child.wait(timeout=120)
            except subprocess.TimeoutExpired:
                child.kill()


def main() -> None:
    """Start the nodes, say where they are, and wait."""
    from ray.cluster_utils import Cluster

    small: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 * 1024**2}
    nodes: Any = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    raylets = [nodes.add_node(**small).all_processes["raylet"][0].process.pid for _ in range(NODES)]
    print(json.dumps({"address": nodes.address, "raylets": raylets}), flush=True)
    sys.stdin.read()
    nodes.shutdown()


if __name__ == "__main__":
    main()
