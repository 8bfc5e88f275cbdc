"""What the loop costs beyond its models: time of the stages over the bare time of the same model calls in one process.

`python -m benchmarks.efficiency` runs the embedded rounds twice into new folders: on Ray with two workers, and in this
process, where each call of a model (SAM's encoder and decoder, the network, a training step) is timed. It prints, and
writes to `benchmarks/efficiency.json`, both times, their ratio and where the rest goes; Ray's start is told apart.
It needs an idle machine; `--images 40 --steps 20` is for a quick look, where start-up outweighs everything.
"""

import argparse
import importlib
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Final

from pipeline.progress import RunProgress
from pipeline.rounds.driver import RoundRequest
from pipeline.rounds.rounds import run_rounds

WANTED: Final = 1.10
WORKERS: Final = 2
MODEL_CALLS: Final = (
    ("models.sam.sam", "SamEncoder", "encode"),
    ("models.sam.sam", "SamMaskDecoder", "decode"),
    ("models.stseg.stseg", "STSeg", "forward"),
    ("models.stseg.stseg", "STSeg", "reject_early"),
    ("jobs.training.step", "TrainingStep", "__call__"),
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, help="of the target; a shorter run than the embedded default's")
    parser.add_argument("--steps", type=int, help="of each training; likewise")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("efficiency.json"))
    options = parser.parse_args()
    sets = settings(options.images, options.steps)
    with tempfile.TemporaryDirectory(prefix="stseg-efficiency-") as folder:
        bare, inline_s = bare_seconds(Path(folder) / "inline", options.rounds, sets)
        start_s, loop_s, stages = loop_seconds(Path(folder) / "ray", options.rounds, sets)
        in_shards = recorded_seconds(Path(folder) / "ray")
    result = {
        "rounds": options.rounds,
        "settings": sets,
        "workers": WORKERS,
        "ray_start_s": start_s,
        "loop_s": loop_s,
        "bare_s": sum(bare.values()),
        "ratio": loop_s / sum(bare.values()),
        "wanted": WANTED,
        "one_process_s": inline_s,
        "bare_by_call_s": bare,
        "stages_s": stages,
        "in_shards_s": in_shards,
    }
    options.out.write_text(json.dumps(_rounded(result), indent=1) + "\n")
    print(json.dumps(_rounded(result), indent=1))


def settings(images: int | None, steps: int | None) -> list[str]:
    """Give the settings: two workers for each stage, a thread each, as many as this is measured for."""
    sets = [f"resources.{stage}.max_workers={WORKERS}" for stage in ("embed", "teacher", "refine", "write", "evaluate")]
    if images is not None:
        sets += [f"data.{part}.count={images}" for part in ("target", "source", "test", "validation")]
    if steps is not None:
        sets.append(f"train.steps={steps}")
    return sets


def bare_seconds(root: Path, rounds: int, sets: list[str]) -> tuple[dict[str, float], float]:
    """Run in this process; give the seconds inside of each kind of model call, and those of all of it."""
    spent: dict[str, float] = defaultdict(float)
    with _timed_calls(spent):
        began = time.monotonic()
        run_rounds(root, RoundRequest(rounds=rounds, sets=tuple(sets), backend="inline"))
        whole = time.monotonic() - began
    return dict(spent), whole


def loop_seconds(root: Path, rounds: int, sets: list[str]) -> tuple[float, float, dict[str, float]]:
    """Run on Ray; give the seconds that Ray takes to start, those of the run, and of each stage from start to end."""
    from jobs.cluster.connection import connection

    began = time.monotonic()
    with connection(num_cpus=WORKERS):
        started = time.monotonic()
        clock = _StageClock(root / "events.jsonl")
        run_rounds(root, RoundRequest(rounds=rounds, sets=tuple(sets)), clock)
        return started - began, time.monotonic() - started, dict(clock.seconds)


def recorded_seconds(root: Path) -> dict[str, float]:
    """Give the seconds that the records of a run hold, by stage: the work on shards, without starts and waiting."""
    found: dict[str, float] = defaultdict(float)
    for path in root.rglob("*.json"):
        content = json.loads(path.read_bytes())
        if isinstance(content, dict) and {"stage", "seconds", "fingerprint"} <= content.keys():
            found[content["stage"]] += content["seconds"]
    return dict(found)


class _StageClock(RunProgress):
    """Progress that also adds up how long each stage was open; stages of a chain overlap."""

    def __init__(self, events: Path) -> None:
        super().__init__(events)
        self.seconds: dict[str, float] = defaultdict(float)
        self._opened: dict[str, float] = {}

    def note(self, kind: str, **facts: Any) -> None:
        """Take the time of a stage's start and end."""
        super().note(kind, **facts)
        stage = str(facts.get("stage"))
        if kind == "started":
            self._opened[stage] = time.monotonic()
        elif kind == "finished":
            self.seconds[stage] += time.monotonic() - self._opened.pop(stage)


@contextmanager
def _timed_calls(spent: dict[str, float]) -> Iterator[None]:
    """Time model calls for the length of the block, the outermost ones: a training step holds the network's."""
    depth = [0]
    places = [(getattr(importlib.import_module(module), owner), name) for module, owner, name in MODEL_CALLS]
    originals = [getattr(owner, name) for owner, name in places]
    for (owner, name), call in zip(places, originals, strict=True):
        setattr(owner, name, _timed(call, f"{owner.__name__}.{name}", spent, depth))
    try:
        yield
    finally:
        for (owner, name), call in zip(places, originals, strict=True):
            setattr(owner, name, call)


def _timed(call: Any, label: str, spent: dict[str, float], depth: list[int]) -> Any:
    @wraps(call)
    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.monotonic()
        depth[0] += 1
        try:
            return call(*args, **kwargs)
        finally:
            depth[0] -= 1
            if depth[0] == 0:
                spent[label] += time.monotonic() - began

    return timed


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    return round(value, 3) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
