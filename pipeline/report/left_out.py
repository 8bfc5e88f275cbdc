"""The images that stages could not read and went on without, per data set, and the budget for them."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from jobs.stage import ShardTask
from jobs.stages.evaluate import NO_LABEL
from jobs.stages.refine import NO_MASK
from jobs.stages.write import ALL_IGNORED
from pipeline.errors import DataFault
from pipeline.report.round_report import LeftOutFacts, RoundReport
from shards.data.images import PASSING_REASONS
from shards.data.labels import LABEL_REASONS
from shards.data.sources import FolderSourceConfig
from shards.formats.records import Drop, read_drops

NAMED: Final = 5  # keys in a message; the report has all of them
# Drops that say nothing against the image: the gate kept nothing of it, or there is no mask or label to go with it.
_READABLE: Final = frozenset({ALL_IGNORED, NO_MASK, NO_LABEL, *LABEL_REASONS})
_EVALUATED: Final = {"evaluate": "test", "evaluate-baseline": "test", "evaluate-holdout": "validation"}


@dataclass(frozen=True)
class LeftOut:
    """The images left out of a data set.

    Attributes:
        dataset: Its name: target, source, test or validation.
        folder: The folder of its images.
        total: Planned images.
        drops: Images that some stage could not read, each once.
    """

    dataset: str
    folder: str
    total: int
    drops: tuple[Drop, ...]

    @property
    def images(self) -> int:
        """The number of images left out."""
        return len(self.drops)

    @property
    def may_return(self) -> bool:
        """Whether some of them are missing or changed rather than unreadable."""
        return any(drop.reason in PASSING_REASONS for drop in self.drops)

    @property
    def reasons(self) -> str:
        """The reasons with their counts, the most frequent first."""
        counts = Counter(drop.reason for drop in self.drops)
        return ", ".join(f"{reason} {count}" for reason, count in counts.most_common())


def left_out(tasks: Iterable[ShardTask]) -> list[LeftOut]:
    """Return the images that finished tasks left out, one entry per data set that is not whole."""
    # An image that vanishes between two stages is dropped by the later one only, and one that is gone is dropped by
    # each: all stages of a data set are taken together, and a key counts once.
    drops: dict[str, dict[str, Drop]] = {}
    folders: dict[str, str] = {}
    totals: Counter[str] = Counter()
    for stage, members in groupby(tasks, key=lambda task: task.stage):
        dataset, total = _dataset(stage), 0
        for task in members:
            total += len(task.samples)
            if isinstance(task.source, FolderSourceConfig):  # a scene is drawn: none is ever missing
                folders[dataset] = task.source.images
                for drop in read_drops(task.record):
                    if drop.reason not in _READABLE:
                        drops.setdefault(dataset, {}).setdefault(drop.key, drop)
        totals[dataset] = max(totals[dataset], total)
    return [LeftOut(name, folders[name], totals[name], tuple(found.values())) for name, found in drops.items()]


def of_reports(reports: Iterable[RoundReport]) -> list[LeftOut]:
    """Return the images left out according to reports, over all rounds."""
    datasets: dict[str, LeftOutFacts] = {}
    drops: dict[str, dict[str, Drop]] = {}
    for report in reports:
        for facts in report.left_out:
            datasets.setdefault(facts.dataset, facts)
        for one in report.quarantined:
            drop = Drop(key=one.key, reason=one.reason, detail=one.detail)
            drops.setdefault(one.dataset, {}).setdefault(drop.key, drop)
    return [LeftOut(name, facts.folder, facts.total, tuple(drops[name].values())) for name, facts in datasets.items()]


def lines_of(found: Iterable[LeftOut]) -> Iterator[str]:
    """Yield the lines about left out images that end a command."""
    for one in found:
        keys = ", ".join(drop.key for drop in one.drops[:NAMED])
        more = ", …" if len(one.drops) > NAMED else ""
        count = f"{one.images} of {one.total} {one.dataset} images of {one.folder}"
        yield f"left out: {count} ({one.reasons}): {keys}{more}"
        for drop in one.drops[:NAMED]:
            yield f"quarantined: {drop.key}: {drop.reason} ({drop.detail})"
        if one.may_return:
            yield "images that were missing or changed: the same command includes them once they are back as planned"


def _dataset(stage: str) -> str:
    kind, _, rest = stage.partition("-")
    return (rest or "target") if kind == "embed" else _EVALUATED.get(stage, "target")


def check_quarantine(found: LeftOut, allowed: int) -> None:
    """Check the images left out of a data set against the budget.

    Args:
        found: The images left out.
        allowed: The number that may be unreadable; never all.

    Raises:
        DataFault: There are more; the message names reasons, some keys and the folder.
    """
    count, total = len(found.drops), found.total
    # Never all: a run of five images would pass `quarantine.min_samples` with nothing left to label.
    if count <= allowed and (count < total or not count):
        return
    named = ", ".join(f"{drop.key} ({drop.reason})" for drop in found.drops[:NAMED])
    back = "put back what is missing or changed and run the same command"
    hint = back if found.may_return else "repair or remove them and start a new run"
    images = f"{count} of {total} {found.dataset} images are unreadable, {min(allowed, total)} are allowed"
    raise DataFault(
        f"{images} ({found.reasons}): {named}{', …' if count > NAMED else ''}. They are in {found.folder}: {hint}, or "
        "allow more with --set quarantine.max_share=SHARE"
    )
