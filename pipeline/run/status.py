"""The progress of a run, read from its plain files alone: no model, no Ray, also while it runs."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from jobs.stage import ShardTask
from jobs.stages.evaluate import SCORES
from pipeline.run.lock import run_holder, stage_holders
from pipeline.run.next_command import next_command
from pipeline.run.replaced import replaced_files
from pipeline.run.run import read_run
from pipeline.tasks.recipe import MASKS, begun_rounds, recipe_of
from shards.formats.events import read_events
from shards.formats.records import read_counts, read_json


@dataclass(frozen=True)
class StageStatus:
    """How far one stage of one round is.

    Attributes:
        round: Number of the round; 0 for what all rounds share.
        stage: Its name.
        done: Shards with a record; `plan` judges whether it still fits the settings.
        total: Planned shards.
        samples: Samples in the finished shards.
        dropped: Samples, classes and masks left out in them, each with a reason in its record.
        seconds: Working time of the finished shards, summed.
    """

    round: int
    stage: str
    done: int
    total: int
    samples: int
    dropped: int
    seconds: float


@dataclass(frozen=True)
class QuarantinedShard:
    """A shard that was given up, and not done since.

    Attributes:
        round: Number of the round; 0 for what all rounds share.
        stage: Its stage.
        shard: Its name.
        cause: The error of its last attempt.
    """

    round: int
    stage: str
    shard: str
    cause: str


@dataclass(frozen=True)
class StageHolder:
    """Who works on one stage of a round now.

    Attributes:
        round: Number of the round.
        stage: Its name.
        host: The machine.
        pid: Number of the process there.
        started: Since when (ISO 8601, UTC).
    """

    round: int
    stage: str
    host: str
    pid: int
    started: str


@dataclass(frozen=True)
class RunStatus:
    """How far a run is.

    Attributes:
        stages: Every stage that was begun, in order.
        rounds: Parts of each finished round's report, by number: miou, miou_seen, miou_unseen, hiou, pseudo_labels,
            promotion, alarms and left_out.
        last_event: The last line of the run's log.
        holder: The living holder of the run lock, if any.
        quarantined: Shards that were given up.
        retry: The command that tries them again; None if there are none.
        stage_holders: Who works on single stages now.
        replaced: What was replaced of the files that the run left out; the next `round` takes it up.
    """

    stages: tuple[StageStatus, ...]
    rounds: dict[int, dict[str, Any]]
    last_event: dict[str, Any] | None
    holder: dict[str, Any] | None
    quarantined: tuple[QuarantinedShard, ...] = ()
    retry: str | None = None
    stage_holders: tuple[StageHolder, ...] = ()
    replaced: tuple[str, ...] = ()


def run_status(root: Path) -> RunStatus:
    """Return the progress of a run.

    Raises:
        DataFault: The folder holds no run.
    """
    # Only outputs are needed: the samples of labelled splits are in no plan, and would mean listing and hashing
    # folders.
    run = replace(read_run(root), outputs_only=True)
    layout = run.layout
    stages: list[StageStatus] = []
    rounds: dict[int, dict[str, Any]] = {}
    recipe = recipe_of(run)
    for number in sorted({0, *begun_rounds(layout)} | ({1} if recipe is MASKS else set())):
        for stage in recipe:
            stages += _counted(number, stage.tasks(run, number))
        report = read_json(layout.report_json(number))
        if report is not None:
            names = (*SCORES, "pseudo_labels", "promotion", "alarms", "left_out")
            rounds[number] = {name: report.get(name) for name in names}
    events = read_events(layout.events)
    quarantined = quarantined_shards(events)
    started = [event for event in events if event.get("kind") == "run_started" and _counts(event, "rounds")]
    requested = [int(str(event["rounds"])) for event in started]
    retry = (
        next_command(run, requested[-1] if requested else max(one.round for one in quarantined))
        if quarantined
        else None
    )
    return RunStatus(
        stages=tuple(stages),
        rounds=rounds,
        last_event=events[-1] if events else None,
        holder=holder.model_dump() if (holder := run_holder(root)) else None,
        quarantined=quarantined,
        retry=retry,
        stage_holders=tuple(
            StageHolder(number, stage, one.host, one.pid, one.started)
            for (number, stage), one in stage_holders(root).items()
        ),
        replaced=tuple(one.line for one in replaced_files(run)),
    )


def quarantined_shards(events: Iterable[Mapping[str, Any]]) -> tuple[QuarantinedShard, ...]:
    """Return the shards that a run's log says were given up and not done since, in the order of their failure."""
    found: dict[tuple[int, str, str], QuarantinedShard] = {}
    for event in events:
        if event.get("kind") not in ("shard_failed", "shard_done") or not _counts({"round": 0, **event}, "round"):
            continue
        key = (int(str(event.get("round", 0))), str(event.get("stage", "")), str(event.get("shard", "")))
        found.pop(key, None)
        if event["kind"] == "shard_failed":
            found[key] = QuarantinedShard(*key, cause=str(event.get("error", "unknown")))
    return tuple(found.values())


def _counts(event: Mapping[str, Any], name: str) -> bool:
    """Return whether a line of the log, which anybody may have edited, has a number under a name."""
    return re.fullmatch(r"[0-9]{1,9}", str(event.get(name))) is not None


def _counted(number: int, tasks: Iterable[ShardTask]) -> Iterator[StageStatus]:
    """Yield the counts of each stage from its records."""
    # Folders are listed instead of trying to open every record: at ten thousand shards `status` takes 2.3 s
    # (docs/cluster.md), and a shard that is not done costs nothing.
    for name, group in groupby(tasks, key=lambda task: task.stage):
        records = [task.record for task in group]
        listed = {folder: _listing(folder) for folder in {path.parent for path in records}}
        there = [path for path in records if path.name in listed[path.parent]]
        counts = [found for found in map(read_counts, there) if found is not None]
        yield StageStatus(
            round=number,
            stage=name,
            done=len(counts),
            total=len(records),
            samples=sum(found.samples for found in counts),
            dropped=sum(found.dropped for found in counts),
            seconds=sum(found.seconds for found in counts),
        )


def _listing(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        return set()
