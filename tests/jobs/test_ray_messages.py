"""What Ray says of its machines, and what it counts of a run."""

import time
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from jobs.cluster.messages import messages_to, sentence_of
from jobs.cluster.metrics import RunMetrics
from shards.formats.records import Drop, Record

DEAD = (
    "The node with node id: d17 and address: 192.0.2.2 has been marked dead because the detector has missed too many "
    "heartbeats from it. This can happen when a \t(1) raylet crashes unexpectedly (OOM, etc.) \n\t(2) raylet has lag"
)
DUMP = (
    "Raylet is terminated. Termination is unexpected. Last 20 lines of the Raylet logs:\n" + "    [state dump]\n" * 50
)


def test_of_a_message_the_terminal_gets_one_sentence() -> None:
    assert sentence_of(DEAD).endswith("has missed too many heartbeats from it")
    assert sentence_of(DUMP) == ""  # that the node is dead comes next
    assert sentence_of("\n") == ""
    assert len(sentence_of("a" * 5000)) < 250


def test_rays_messages_go_where_they_are_sent_and_not_to_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    from ray._private import worker

    before = worker.print_to_stdstream
    taken: list[tuple[str, str]] = []

    def take(message: str, sentence: str) -> None:
        taken.append((message, sentence))
        raise RuntimeError("the run is gone")  # must not end Ray's thread

    with messages_to(take):
        # As Ray's listener calls it, by its global name.
        worker.print_to_stdstream({"lines": [DUMP], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    assert taken == [(DUMP, "")]
    assert worker.print_to_stdstream is before
    assert capfd.readouterr() == ("", "")
    with messages_to(None):
        assert worker.print_to_stdstream is before


class Recorded:
    """A metric that keeps what it is given."""

    def __init__(self, kept: list[tuple[Any, ...]], name: str, *more: Any) -> None:
        self._kept, self._name = kept, name
        self._tags = set(more[-1])

    def inc(self, value: float, tags: dict[str, str]) -> None:
        assert value > 0  # as Ray demands
        self.observe(value, tags)

    def observe(self, value: float, tags: dict[str, str]) -> None:
        assert set(tags) == self._tags
        self._kept.append((self._name, value, tags["stage"], tags.get("reason")))


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    from ray.util import metrics

    found: list[tuple[Any, ...]] = []

    def kind() -> Callable[..., Recorded]:
        return lambda name, *more: Recorded(found, name, *more)

    for name in ("Counter", "Histogram"):
        monkeypatch.setattr(metrics, name, kind())
    return found


def record(count: int, seconds: float, *reasons: str) -> Record:
    drops = [Drop(key=f"k{n}", reason=reason) for n, reason in enumerate(reasons)]
    facts = {"stage": "refine", "shard": "000000", "round": 1, "count": count, "seconds": seconds, "drops": drops}
    return Record.model_validate({**facts, "fingerprint": {}, "inputs": {}, "outputs": {"x": "0" * 64}})


def test_a_finished_shard_counts_images_drops_and_seconds_by_stage(kept: list[tuple[Any, ...]]) -> None:
    metrics = RunMetrics("my run")
    metrics.add(1, "refine", record(3, 1.5, "missing_image", "missing_image", "no_mask"))
    assert kept == [
        ("stseg_images_done", 3, "refine", None),
        ("stseg_seconds", 1.5, "refine", None),
        ("stseg_shard_seconds", 1.5, "refine", None),
        ("stseg_dropped", 2, "refine", "missing_image"),
        ("stseg_dropped", 1, "refine", "no_mask"),
    ]


def test_an_empty_shard_counts_its_time_alone(kept: list[tuple[Any, ...]]) -> None:
    RunMetrics("run").add(0, "embed", record(0, 0.0))
    assert kept == [("stseg_shard_seconds", 0.0, "embed", None)]


@pytest.mark.slow
def test_counts_are_among_rays_own_metrics(ray_session: None) -> None:
    import ray

    RunMetrics("ein Läufer").add(1, "refine", record(3, 1.5, "no_mask"))  # a name that is not ASCII
    node = next(node for node in ray.nodes() if node["Alive"])  # type: ignore[no-untyped-call]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline, text = time.monotonic() + 60, ""
    while time.monotonic() < deadline and "stseg_images_done" not in text:
        time.sleep(1)
        with opener.open(url, timeout=10) as answer:
            text = answer.read().decode()
    lines = [line for line in text.splitlines() if "stseg_" in line and not line.startswith("#")]
    found = next(line for line in lines if "stseg_images_done" in line)
    assert found.startswith("ray_stseg_images_done")
    assert 'stage="refine"' in found
    assert 'round="1"' in found
    assert float(found.split()[-1]) == 3
