"""A Ray of several nodes on this machine, in a process of its own; ends when its standard input does."""

import contextlib
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks.chaos_network import Network
from benchmarks.chaos_processes import Family, kill, processes

ROOT: Final = Path(__file__).parents[1]
NODES: Final = 2  # besides the head, one CPU each
_STORE_BYTES: Final = 100 * 1024**2
_NODE_LIMIT_S: Final = 120.0
_JOIN_S: Final = 3.0  # a raylet that is up has joined by then


@contextlib.contextmanager
def cluster(network: Network | None = None) -> Iterator[tuple[str, list[int], int, dict[str, str]]]:
    """Hold a cluster.

    Args:
        network: Where its only other node is, with two CPUs; None: all nodes are in this machine's own network.

    Yields:
        Its address, the process numbers of the raylets of all nodes but the head, that of the process which started
        them, and the environment in which a command may join.
    """
    access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_worker_niceness": "0"}
    environment = {**os.environ, **access}
    command = [sys.executable, "-m", "benchmarks.chaos_cluster", *(() if network is None else network)]
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

    network = Network(*sys.argv[1:]) if sys.argv[1:] else None
    small: dict[str, Any] = {"num_cpus": 1, "object_store_memory": _STORE_BYTES}
    head = {**small, "include_dashboard": False, **({} if network is None else {"node_ip_address": network.here})}
    nodes: Any = Cluster(initialize_head=True, head_node_args=head)
    if network is None:
        raylets = [nodes.add_node(**small).all_processes["raylet"][0].process.pid for _ in range(NODES)]
        print(json.dumps({"address": nodes.address, "raylets": raylets}), flush=True)
        sys.stdin.read()
    else:
        with _node_in(network, nodes.address) as raylet:
            print(json.dumps({"address": nodes.address, "raylets": [raylet]}), flush=True)
            sys.stdin.read()
    nodes.shutdown()


@contextlib.contextmanager
def _node_in(network: Network, address: str) -> Iterator[int]:
    """Hold a node in another network, and give the process number of its raylet."""
    words = ["start", "--block", f"--address={address}", f"--node-ip-address={network.there}", "--num-cpus=2"]
    words += [f"--object-store-memory={_STORE_BYTES}"]
    inside = ["ip", "netns", "exec", network.name, sys.executable, "-m", "ray.scripts.scripts", *words]
    with subprocess.Popen(inside, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as node:
        family = Family([node.pid])
        try:
            deadline = time.monotonic() + _NODE_LIMIT_S
            while not (found := [one for one in processes() if f"--node_ip_address={network.there}" in one.command]):
                if time.monotonic() > deadline or node.poll() is not None:
                    raise RuntimeError("the node in the other network did not start")
                time.sleep(0.2)
            time.sleep(_JOIN_S)
            yield next(one.pid for one in found if one.command.split(" ")[0].endswith("/raylet"))
        finally:
            kill(family.living())  # cut off, it would wait long for an orderly end


if __name__ == "__main__":
    main()
