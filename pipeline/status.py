"""How far a run is, read from its plain files alone: no model, no Ray, also while it runs."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import DataFault
from shards.events import read_events
from shards.layout import RunLayout, record_of
from shards.mirror import bring
from shards.plan import Plan
from shards.records import Record, read_record
from shards.storage import Place, place_of

SCORES = ("miou", "miou_seen", "miou_unseen", "hiou")


@dataclass(frozen=True)
class StageStatus:
    """How far one stage of one round is.

    Attributes:
        round: Number of the round; 0 for what all rounds share.
        stage: Its name.
        done: Shards with a record; whether the record still fits the settings is `plan`'s business.
        total: Shards there are to be.
        samples: Samples in the done shards.
        dropped: Samples, classes and masks left out in them, each with a reason in its record.
        seconds: Working time of the done shards, summed.
    """

    round: int
    stage: str
    done: int
    total: int
    samples: int
    dropped: int
    seconds: float


@dataclass(frozen=True)
class RunStatus:
    """How far a run is.

    Attributes:
        stages: Every stage that was begun, in order.
        rounds: What each finished round's report says, by number: miou, miou_seen, miou_unseen, hiou, and its
            pseudo_labels, promotion and alarms.
        last_event: The last line of the run's log.
        holder: Who works on the run now, as the run lock has it; None: nobody.
    """

    stages: tuple[StageStatus, ...]
    rounds: dict[int, dict[str, Any]]
    last_event: dict[str, Any] | None
    holder: dict[str, Any] | None


def run_status(root: Path) -> RunStatus:
    """Read how far a run is.

    Raises:
        DataFault: The folder holds no run.
    """
    place = place_of(root)
    bring(place)
    layout = RunLayout(root)
    try:
        shards = [shard.name for shard in Plan.load(layout.plan).shards]
    except FileNotFoundError as error:
        where = place.shown(root)
        raise DataFault(f"{where} holds no run (no plan.json); make one: stseg-pipeline round --run {where}") from error
    stages = [_stage(0, "embed", [layout.embedding("target", name) for name in shards])]
    rounds = {}
    for number in _round_numbers(layout):
        stages += _round_stages(layout, number, shards)
        report = read_json(layout.report_json(number))
        if report is not None:
            rounds[number] = {name: report.get(name) for name in (*SCORES, "pseudo_labels", "promotion", "alarms")}
    events = read_events(layout.events)
    return RunStatus(tuple(stages), rounds, events[-1] if events else None, _holder(place, layout))


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None if there is none or it is damaged."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _holder(place: Place, layout: RunLayout) -> dict[str, Any] | None:
    if place.store is None:
        return read_json(layout.lock)
    try:
        content = json.loads(place.store.read(place.name_of(layout.lock)) or b"null")
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def _round_numbers(layout: RunLayout) -> list[int]:
    folder = layout.round(0).parent
    return sorted(int(path.name) for path in folder.glob("[0-9]*") if path.is_dir()) if folder.is_dir() else []


def _round_stages(layout: RunLayout, number: int, shards: list[str]) -> list[StageStatus]:
    outputs = {
        "teacher": [layout.teacher(number, name) for name in shards],
        "refine": [layout.refine(number, name) for name in shards],
        "write": [layout.pseudo(number, name) for name in shards],
    }
    stages = [_stage(number, name, paths) for name, paths in outputs.items()] if number > 0 else []
    thresholds = layout.thresholds(number).with_suffix(".record.json")
    if thresholds.is_file():  # there are some where they are adaptive
        stages.insert(1, _summed(number, "refine-thresholds", [thresholds]))
    single = {
        "start" if number == 0 else "train": layout.student(number) / "model.json",
        "evaluate": layout.round(number) / "evaluate.record.json",
        "promote": layout.round(number) / "promotion.record.json",
        "report": layout.round(number) / "report.record.json",
    }
    return stages + [_summed(number, name, [record]) for name, record in single.items()]


def _stage(number: int, name: str, outputs: list[Path]) -> StageStatus:
    return _summed(number, name, [record_of(path) for path in outputs])


def _summed(number: int, name: str, paths: list[Path]) -> StageStatus:
    records = [record for record in (_record_or_none(path) for path in paths) if record is not None]
    return StageStatus(
        round=number,
        stage=name,
        done=len(records),
        total=len(paths),
        samples=sum(record.count for record in records),
        dropped=sum(len(record.drops) for record in records),
        seconds=sum(record.seconds for record in records),
    )


def _record_or_none(path: Path) -> Record | None:
    try:
        return read_record(path)
    except (OSError, ValueError):
        return None
