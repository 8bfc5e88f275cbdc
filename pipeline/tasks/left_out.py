"""The images that stages could not read and went on without, by data set: out of records, and out of reports."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from jobs.stage import StagePlan
from jobs.stages.evaluate import NO_LABEL, OTHER_SIZE
from jobs.stages.masks import NO_MASK
from jobs.stages.write import ALL_IGNORED
from pipeline.run.run import Run
from pipeline.tasks.chain import embed_stages, round_stages
from pipeline.tasks.recipe import embed_stages_of_judges, evaluate_stages, judging_stages
from shards.data.images import PASSING_REASONS
from shards.data.sources import FolderSourceConfig
from shards.formats.records import Drop, read_drops

NAMED: Final = 5
_READABLE: Final = frozenset({ALL_IGNORED, NO_MASK, NO_LABEL, OTHER_SIZE})  # left out for another reason
_EVALUATED: Final = {"evaluate": "test", "evaluate-baseline": "test", "evaluate-holdout": "validation"}


@dataclass(frozen=True)
class LeftOut:
    """What is left out of a data set.

    Attributes:
        dataset: Its name: target, source, test or validation.
        folder: Where its images are.
        total: Planned images.
        drops: Those that some stage could not read, each once.
    """

    dataset: str
    folder: str
    total: int
    drops: tuple[Drop, ...]

    @property
    def images(self) -> int:
        """How many are left out."""
        return len(self.drops)

    @property
    def may_return(self) -> bool:
        """Whether some of them are only not there, or not as they were planned."""
        return any(drop.reason in PASSING_REASONS for drop in self.drops)

    @property
    def reasons(self) -> str:
        """The reasons, each with its number, the most frequent first."""
        counts = Counter(drop.reason for drop in self.drops)
        return ", ".join(f"{reason} {count}" for reason, count in counts.most_common())


def left_out(stages: Iterable[StagePlan]) -> list[LeftOut]:
    """Return what stages left out that are done, a data set each; nothing for one that is whole."""
    drops: dict[str, dict[str, Drop]] = {}
    folders: dict[str, str] = {}
    totals: Counter[str] = Counter()
    for stage in stages:
        dataset = _dataset(stage.name)
        totals[dataset] = max(totals[dataset], sum(len(task.samples) for task in stage.tasks))
        for task in stage.tasks:
            if isinstance(task.source, FolderSourceConfig):  # a scene is drawn: none is ever missing
                folders[dataset] = task.source.images
                for drop in read_drops(task.record):
                    if drop.reason not in _READABLE:
                        drops.setdefault(dataset, {}).setdefault(drop.key, drop)
    return [LeftOut(name, folders[name], totals[name], tuple(found.values())) for name, found in drops.items()]


def stages_of_round(run: Run, number: int) -> list[StagePlan]:
    """Return the stages behind a round's numbers that read images, those that are done once for all rounds first.

    Raises:
        ValueError: Weights or labels that the settings name are missing.
    """
    once = [*embed_stages(run), *embed_stages_of_judges(run)]
    chain = round_stages(run, number) if number else []
    return [*once, *chain, *evaluate_stages(run, number), *judging_stages(run, number)]


def stages_behind(run: Run, number: int, names: Collection[str]) -> list[StagePlan]:
    """Return those of `stages_of_round` that belong to some stages, and what all of them read."""
    return [stage for stage in stages_of_round(run, number) if stage.name.partition("-")[0] in {"embed", *names}]


def as_facts(found: Sequence[LeftOut]) -> dict[str, Any]:
    """Return what a report says of it: `left_out`, an entry per data set, and `quarantined`, one per image."""
    names = ("dataset", "folder", "total", "images", "reasons")
    return {
        "left_out": [{name: getattr(one, name) for name in names} for one in found],
        "quarantined": [{"dataset": one.dataset, **drop.model_dump()} for one in found for drop in one.drops],
    }


def of_reports(reports: Iterable[Mapping[str, Any]]) -> list[LeftOut]:
    """Return what reports say of it, all rounds taken together."""
    datasets: dict[str, Mapping[str, Any]] = {}
    drops: dict[str, dict[str, Drop]] = {}
    for report in reports:
        for entry in report.get("left_out") or ():
            datasets.setdefault(entry["dataset"], entry)
            drops.setdefault(entry["dataset"], {})
        for one in report.get("quarantined") or ():
            drop = Drop(**{name: one[name] for name in ("key", "reason", "detail")})
            if "dataset" in one:  # not in reports of earlier versions
                drops[one["dataset"]].setdefault(drop.key, drop)
    return [
        LeftOut(name, facts["folder"], facts["total"], tuple(drops[name].values())) for name, facts in datasets.items()
    ]


def lines_of(found: Iterable[LeftOut]) -> Iterator[str]:
    """Yield what a person is told of it at the end of a run; nothing where nothing is left out."""
    for one in found:
        keys = ", ".join(drop.key for drop in one.drops[:NAMED])
        more = ", …" if len(one.drops) > NAMED else ""
        count = f"{one.images} of {one.total} {one.dataset} images of {one.folder}"
        yield f"left out: {count} ({one.reasons}): {keys}{more}"
        for drop in one.drops[:NAMED]:
            yield f"quarantined: {drop.key}: {drop.reason} ({drop.detail})"
        if one.may_return:
            yield "what was missing or changed is taken up by the same command once it is there again as planned"


def _dataset(stage: str) -> str:
    kind, _, rest = stage.partition("-")
    return (rest or "target") if kind == "embed" else _EVALUATED.get(stage, "target")
