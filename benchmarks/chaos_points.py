"""Where and when a run is killed: kill points drawn from a seed, spread over stages, victims and moments."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Final, Literal

from jobs.stage import ShardTask

RunLocation = Literal["inline", "ray", "node", "link"]
Victim = Literal["driver", "worker", "training worker", "raylet", "head", "all", "node", "link"]
Moment = Literal["started", "done", "between", "writing", "checkpoint"]

MAKE: Final = "make"  # the run folder itself comes about: vocabulary, plans, settings
MIX: Final[tuple[RunLocation, ...]] = (
    "inline",
    "ray",
    "inline",
    "inline",
    "node",
    "inline",
    "ray",
    "inline",
    "ray",
    "inline",
)
_RAY_VICTIMS: Final[tuple[Victim, ...]] = ("worker", "driver", "raylet", "training worker", "head", "all")
_LONGEST_WAIT_MS: Final = 400


@dataclass(frozen=True)
class Step:
    """A stage of a round and what it writes.

    Attributes:
        round: Number of the round.
        stage: Name of the stage.
        files: (output, record) of each of its tasks, relative to the run folder; `MAKE`'s have no record of their own,
            the output stands twice.
    """

    round: int
    stage: str
    files: tuple[tuple[Path, Path], ...]

    @property
    def has_workers(self) -> bool:
        """Whether workers do it, shard by shard; the rest is done by the driver or by the training group."""
        return self.stage.partition("-")[0] in ("embed", "teacher", "refine", "write", "evaluate") and (
            self.stage not in ("write-index", "refine-scores")
        )

    @property
    def name(self) -> str:
        """Its name, with the round where it matters."""
        return f"round {self.round} {self.stage}" if self.round else self.stage


@dataclass(frozen=True)
class KillPoint:
    """A moment of a run, and what is killed then.

    Attributes:
        number: From 1.
        place: "inline": one process does all; "ray": a private Ray; "node": a cluster of several nodes that is joined;
            "link": one whose second node is in a network of its own.
        victim: What SIGKILL is sent to. "head" is Ray's GCS; "all" the driver and all that it started. "link": nothing
            is killed, the second node can no longer be reached, and works on as long as it likes.
        step: The stage.
        moment: "started": the stage begins; "done": `after` of its shards are done; "between": then the next output is
            there and its record is not; "writing": then the next output is being written under a temporary name;
            "checkpoint": the training has written its `after`-th checkpoint.
        after: See there.
        wait_ms: From that moment on.
    """

    number: int
    place: RunLocation
    victim: Victim
    step: Step
    moment: Moment
    after: int
    wait_ms: int

    @property
    def text(self) -> str:
        """The point in words."""
        total = "" if self.moment == "checkpoint" else f"/{len(self.step.files)}"
        count = "" if self.moment == "started" else f" {self.after}{total}"
        wait = f" + {self.wait_ms} ms" if self.wait_ms else ""
        return f"{self.place:6} {self.victim:15} {self.step.name}: {self.moment}{count}{wait}"


def steps_of(tasks: Iterable[ShardTask], root: Path) -> list[Step]:
    """Give the stages of a run in order, the making of its folder first.

    Args:
        tasks: All tasks of the run.
        root: Its folder, as in the tasks' paths.
    """
    made = [Path(name) for name in ("vocabulary.json", "plan.json", "source_plan.json", "config.yaml")]
    groups: dict[tuple[int, str], list[tuple[Path, Path]]] = {}
    for task in tasks:
        pair = task.output.relative_to(root), task.record.relative_to(root)
        groups.setdefault((task.round, task.stage), []).append(pair)
    stages = [Step(number, stage, tuple(files)) for (number, stage), files in groups.items()]
    return [Step(0, MAKE, tuple((path, path) for path in made)), *stages]


def draw_points(steps: Sequence[Step], count: int, seed: int, places: Sequence[RunLocation] = MIX) -> list[KillPoint]:
    """Draw kill points, the same for the same seed.

    Places take turns as `places` lists them; on one process each stage has its turn, on Ray each victim.

    Raises:
        ValueError: No point is asked for.
    """
    if count < 1:
        raise ValueError(f"{count} kill points; ask for at least 1 with --points")
    draw = random.Random(seed)
    stages = cycle(draw.sample(list(steps), len(steps)))
    victims = cycle(draw.sample(_RAY_VICTIMS, len(_RAY_VICTIMS)))
    points = []
    for number, place in zip(range(1, count + 1), cycle(places), strict=False):
        victim: Victim = "driver" if place == "inline" else next(victims) if place == "ray" else place
        step = next(stages) if place == "inline" else draw.choice(_hit_by(victim, steps))
        moment = draw.choice(_moments(step))
        most = 3 if moment == "checkpoint" else max(len(step.files) - 1, 0)
        after = draw.randint(1 if moment in ("done", "checkpoint") else 0, most)
        wait_ms = 0 if moment in ("between", "writing") else draw.randrange(_LONGEST_WAIT_MS)
        points.append(KillPoint(number, place, victim, step, moment, after, wait_ms))
    return points


def _hit_by(victim: Victim, steps: Sequence[Step]) -> list[Step]:
    if victim == "training worker":
        return [step for step in steps if step.stage == "train"]
    if victim == "driver":
        return list(steps)
    return [step for step in steps if step.has_workers or (step.stage == "train" and victim != "worker")]


def _moments(step: Step) -> list[Moment]:
    moments: list[Moment] = ["between", "writing"] if step.stage != MAKE else []
    if step.has_workers or step.stage == "train":
        moments.append("started")
    if len(step.files) > 1:
        moments.append("done")
    if step.stage == "train":
        moments += ["checkpoint", "checkpoint"]
    return moments
