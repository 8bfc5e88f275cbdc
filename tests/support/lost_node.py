"""Chains on a cluster of several nodes on this machine, one of which is lost; runs in a process of its own."""

import hashlib
import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["RAY_AUTH_MODE"] = "disabled"  # Ray's defaults for heads, nodes and drivers differ from each other

from jobs.commit import commit, prepare
from jobs.execution.settings import ExecutionConfig
from jobs.executor import StageEvent, run_chain
from jobs.resources import Resources
from jobs.stage import Done, ShardTask, StagePlan
from shards.data.samples import Samples
from shards.data.sources import SampleRef
from shards.files.atomic import remove_stale_temporaries_below, sha256_path, write_bytes_atomic
from shards.formats.records import Record


class Slow:
    """Writes the shard's name, and notes the node and the process that it was done on beside it."""

    def __init__(self) -> None:
        import ray

        self._node = str(ray.get_runtime_context().get_node_id())

    def run(self, task: ShardTask) -> Record:
        prepare(task)
        task.output.with_suffix(f".{os.getpid()}.at").write_text(f"{self._node} {os.getpid()}")
        time.sleep(0.4)
        write_bytes_atomic(task.output, f"{task.stage} {task.shard}".encode())
        return commit(task, Done(1), 0.0)


def stages(folder: Path, count: int, **resources: Any) -> list[StagePlan]:
    names = [f"{number:06d}" for number in range(count)]
    samples = {n: (SampleRef(key=f"k{n}", digest=hashlib.sha256(n.encode()).hexdigest(), uri=n),) for n in names}
    ones = [
        ShardTask(stage="one", shard=n, samples=Samples.of(samples[n]), output=folder / "one" / f"{n}.tar")
        for n in names
    ]
    twos = [
        ShardTask(
            stage="two",
            shard=n,
            samples=Samples.of(samples[n]),
            output=folder / "two" / f"{n}.tar",
            inputs={"one": one.output},
        )
        for n, one in zip(names, ones, strict=True)
    ]
    needs = {"num_cpus": 1, **resources}
    return [
        StagePlan("one", Slow, ones, Resources(max_workers=2, num_cpus=1, resources={"worker": 1})),
        StagePlan("two", Slow, twos, Resources(max_workers=2, **needs), after="one"),
    ]


def nodes_of(folder: Path) -> set[str]:
    return {path.read_text().split()[0] for path in folder.glob("*.at")}


def kill_node(node: Any) -> int:
    """Kill a node's raylet and all workers on it, as a machine that loses its power does; give how many they were."""
    raylet = node.all_processes["raylet"][0].process.pid
    workers = [int(pid) for pid in Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split()]
    for pid in (raylet, *workers):
        os.kill(pid, signal.SIGKILL)
    return len(workers)


def found_on_cluster(folder: Path) -> dict[str, Any]:
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": 80 * 1024**2},
    )
    lost, kept = (
        cluster.add_node(num_cpus=2, resources=more, object_store_memory=80 * 1024**2)
        for more in ({"worker": 2}, {"worker": 2, "sam": 2})
    )
    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path), "RAY_AUTH_MODE": "disabled"}}
    ray.init(address=cluster.address, runtime_env=environment, log_to_driver=False)
    found: dict[str, Any] = {}
    try:
        where = {"lost": str(lost.node_id), "kept": str(kept.node_id)}
        run_chain(stages(folder / "sam", 3, resources={"sam": 1}), backend="ray", on_event=lambda event: None)
        found["sam on"] = sorted(nodes_of(folder / "sam" / "two"))
        events: list[StageEvent] = []

        def strike(event: StageEvent) -> None:
            events.append(event)
            notes = [path.read_text().split() for path in (folder / "loss").rglob("*.at")]
            if "killed" not in found and where["lost"] in {node for node, _ in notes}:
                found["killed"] = kill_node(lost)

        run_chain(
            stages(folder / "loss", 10, resources={"worker": 1}),
            backend="ray",
            on_event=strike,
            execution=ExecutionConfig(max_attempts=4),
        )
        found["retries"] = [f"{e.stage} {e.shard}: {e.error}" for e in events if e.kind == "shard_retry"]
        found["done"] = sum(e.kind == "shard_done" for e in events)
        remove_stale_temporaries_below(folder / "loss")  # as the next command does: the kill may have hit a write
        found["bytes"] = {
            str(p.relative_to(folder / "loss")): sha256_path(p) for p in sorted((folder / "loss").rglob("*.tar"))
        }
        impossible = replace(stages(folder / "impossible", 2)[0], resources=Resources(resources={"moon": 1}))
        try:
            run_chain(
                [impossible], backend="ray", on_event=lambda event: None, execution=ExecutionConfig(start_timeout_s=3)
            )
        except RuntimeError as error:
            found["impossible"] = str(error)
        return {**found, **where}
    finally:
        ray.shutdown()
        cluster.shutdown()  # type: ignore[no-untyped-call]


def run(folder: str, out: str) -> None:
    """Do it all below a folder, and write what was found."""
    Path(out).write_text(json.dumps(found_on_cluster(Path(folder))))
