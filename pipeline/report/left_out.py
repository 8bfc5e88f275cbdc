"""What stages could not read and went on without, images and labels, per data set, and the budget for it."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any, Final, Literal

from jobs.stage import ShardTask
from jobs.stages.evaluate import NO_LABEL
from jobs.stages.given import NO_SCORES
from jobs.stages.refine_masks import NO_MASK
from jobs.stages.write import ALL_IGNORED
from pipeline.errors import DataFault
from pipeline.report.round_report import LeftOutFacts, RoundReport
from shards.data.counted import counted
from shards.data.images import PASSING_REASONS
from shards.data.label_reader import TURNED
from shards.data.labels import LABEL_REASONS, PASSING_LABEL_REASONS
from shards.data.samples import Samples
from shards.data.sources import FolderSourceConfig
from shards.formats.records import Drop, Record, read_drops, read_json

NAMED: Final = 5  # keys in a message; the report has all of them
# Drops that say nothing against a file: the gate kept nothing of the image, or there is no mask or label to go with it.
_NO_FAULT: Final = frozenset({ALL_IGNORED, NO_MASK, NO_SCORES, NO_LABEL})
_EVALUATED: Final = {
    "evaluate": "test",
    "evaluate-baseline": "test",
    "evaluate-holdout": "validation",
    "evaluate-validation": "validation",
}
# The stages whose records count labels; `refine` reads some only where masks are given.
_READ_LABELS: Final = frozenset({*_EVALUATED, "refine", "refine-scores", "evaluate-target", "embed-source-labels"})

_BACK: Final = {
    "images": "the same command includes them once they are back as planned",
    "labels": "the same command includes them once they are back, as planned or as they are then",
}
_MEND: Final = "once they are mended or replaced, the same command takes them up"

What = Literal["images", "labels"]


@dataclass(frozen=True)
class LeftOut:
    """The images left out of a data set, or its unusable labels.

    Attributes:
        dataset: Its name: target, source, test or validation.
        folder: The folder of its images or labels.
        total: Planned images, or labels.
        drops: Those that some stage could not read, each once.
        what: Images or labels. An unusable label costs a training its sample, and a measurement no more than itself.
    """

    dataset: str
    folder: str
    total: int
    drops: tuple[Drop, ...]
    what: What = "images"

    @property
    def images(self) -> int:
        """The number of images, or labels, left out."""
        return len(self.drops)

    @property
    def may_return(self) -> bool:
        """Whether some of them are missing or changed rather than faulty."""
        return any(drop.reason in PASSING_REASONS | PASSING_LABEL_REASONS for drop in self.drops)

    @property
    def reasons(self) -> str:
        """The reasons with their counts, the most frequent first."""
        counts = Counter(drop.reason for drop in self.drops)
        return ", ".join(f"{reason} {count}" for reason, count in counts.most_common())


def left_out(tasks: Iterable[ShardTask]) -> list[LeftOut]:
    """Return what finished tasks left out, at most one entry for the images and one for the labels of a data set."""
    # An image that vanishes between two stages is dropped by the later one only, and one that is gone is dropped by
    # each: all stages of a data set are taken together, and a key counts once. The same holds for two data sets that
    # are one folder, as after `init --labels`.
    drops: dict[tuple[str, What], dict[str, Drop]] = {}
    folders: dict[tuple[str, What], str] = {}
    samples: dict[str, list[Samples]] = {}
    for dataset, members in _by_dataset(tasks):
        samples.setdefault(dataset, []).append(Samples(tuple(one for task in members for one in _samples(task).lists)))
        for task in members:
            source = task.source
            assert isinstance(source, FolderSourceConfig)
            for drop in read_drops(task.record):
                if drop.reason in _NO_FAULT:
                    continue
                what: What = "labels" if drop.reason in LABEL_REASONS else "images"
                folders[dataset, what] = source.images if what == "images" else source.labels or ""
                drops.setdefault((dataset, what), {}).setdefault(drop.key, drop)
    totals = {
        (dataset, what): max(map(len if what == "images" else _labelled, samples[dataset])) for dataset, what in drops
    }
    return [LeftOut(key[0], folders[key], totals[key], tuple(found.values()), key[1]) for key, found in drops.items()]


def turned_labels(tasks: Iterable[ShardTask]) -> dict[str, int]:
    """Return for each data set how many labels were in the stored frame of photographs turned by EXIF, where some are.

    Images that several stages measured with the same labels count once.
    """
    counts: dict[str, int] = {}
    for dataset, members in _by_dataset(tasks):
        readers = (task for task in members if task.stage in _READ_LABELS and "teacher" not in task.inputs)
        records = (read_json(task.record) or {} for task in readers)
        found = sum(int(record.get("stats", {}).get(TURNED, 0)) for record in records)
        counts[dataset] = max(counts.get(dataset, 0), found)
    return {dataset: count for dataset, count in counts.items() if count}


def turned_lines(counts: Mapping[str, int]) -> Iterator[str]:
    """Yield the lines about turned labels that end a command."""
    for dataset, count in counts.items():
        yield f"{counted(count, 'mask')} taken in the stored frame of photographs turned by EXIF ({dataset})"


def summary_of(tasks: Sequence[ShardTask]) -> dict[str, Any]:
    """Return what finished tasks left out for `--json`: `quarantined` drops, and the number of `turned_labels`."""
    drops = [{"what": one.what, **drop.model_dump()} for one in left_out(tasks) for drop in one.drops]
    return {"quarantined": drops, "turned_labels": sum(turned_labels(tasks).values())}


def _by_dataset(tasks: Iterable[ShardTask]) -> Iterator[tuple[str, list[ShardTask]]]:
    """Yield the tasks of each stage that read files of the user's, with the name of the data set."""
    names: dict[FolderSourceConfig, str] = {}
    for stage, group in groupby(tasks, key=lambda task: task.stage):
        members = [task for task in group if isinstance(task.source, FolderSourceConfig)]  # a scene is drawn
        if members:
            assert isinstance(members[0].source, FolderSourceConfig)
            yield names.setdefault(members[0].source, _dataset(stage)), members


def _samples(task: ShardTask) -> Samples:
    return task.samples if task.samples else task.measured


@lru_cache(maxsize=16)
def _labelled(samples: Samples) -> int:
    """Return the number of samples that have a label."""
    return sum(ref.label_digest is not None for ref in samples)


def of_reports(reports: Iterable[RoundReport]) -> list[LeftOut]:
    """Return what was left out according to reports, over all rounds."""
    datasets: dict[tuple[str, What], LeftOutFacts] = {}
    drops: dict[tuple[str, What], dict[str, Drop]] = {}
    for report in reports:
        for facts in report.left_out:
            datasets.setdefault((facts.dataset, facts.what), facts)
        for one in report.quarantined:
            drop = Drop(key=one.key, reason=one.reason, detail=one.detail)
            drops.setdefault((one.dataset, one.what), {}).setdefault(drop.key, drop)
    return [
        LeftOut(dataset, facts.folder, facts.total, tuple(drops[dataset, what].values()), what)
        for (dataset, what), facts in datasets.items()
    ]


def turned_of_reports(reports: Iterable[RoundReport]) -> dict[str, int]:
    """Return the turned labels of each data set according to reports, over all rounds."""
    counts: dict[str, int] = {}
    for report in reports:
        for dataset, count in report.turned_labels.items():
            counts[dataset] = max(counts.get(dataset, 0), count)
    return counts


def without_given(name: str, records: Iterable[Record]) -> Iterator[str]:
    """Yield how many images have no given mask or scores, and so no part in what a stage has done."""
    for reason, what in ((NO_MASK, "mask"), (NO_SCORES, "scores")):
        keys = [drop.key for record in records for drop in record.drops if drop.reason == reason]
        if keys:
            more = ", …" if len(keys) > NAMED else ""
            images = counted(len(keys), f"image has no given {what}", f"images have no given {what}")
            yield f"{name}: {images}, and no label in this round: {', '.join(keys[:NAMED])}{more}"


def lines_of(found: Iterable[LeftOut]) -> Iterator[str]:
    """Yield the lines about what was left out that end a command."""
    for one in found:
        keys = ", ".join(drop.key for drop in one.drops[:NAMED])
        more = ", …" if len(one.drops) > NAMED else ""
        count = f"{one.images} of {one.total} {one.dataset} {one.what} of {one.folder}"
        yield f"left out: {count} ({one.reasons}): {keys}{more}"
        for drop in one.drops[:NAMED]:
            yield f"quarantined: {drop.key}: {drop.reason} ({drop.detail})"
        if one.may_return:
            yield f"{one.what} that were missing or changed: {_BACK[one.what]}"
        if any(drop.reason not in PASSING_REASONS | PASSING_LABEL_REASONS for drop in one.drops):
            yield f"faulty {one.what}: {_MEND}"


def _dataset(stage: str) -> str:
    kind, _, rest = stage.partition("-")
    if kind != "embed" or rest == "mirror":  # the mirrored target
        return _EVALUATED.get(stage, "target")
    return rest.removesuffix("-labels") or "target"


def check_quarantine(found: LeftOut, allowed: int) -> None:
    """Check what was left out of a data set against the budget.

    Args:
        found: The images or labels left out.
        allowed: The number that may be faulty; never all.

    Raises:
        DataFault: There are more; the message names reasons, some keys and the folder.
    """
    count, total = len(found.drops), found.total
    # Never all: a run of five images would pass `quarantine.min_samples` with nothing left to label.
    if count <= allowed and (count < total or not count):
        return
    named = ", ".join(f"{drop.key} ({drop.reason})" for drop in found.drops[:NAMED])
    back = f"put back what is missing or changed ({_BACK[found.what]})"
    hint = back if found.may_return else "repair or replace them and run the same command, which takes them up"
    faulty = "unreadable" if found.what == "images" else "unusable"
    are, room = ("is" if count == 1 else "are"), min(allowed, total)
    numbers = (
        f"{count} of {total} {found.dataset} {found.what} {are} {faulty}, {room} {'is' if room == 1 else 'are'} allowed"
    )
    first = "" if found.what == "images" else f". The first: {found.drops[0].detail}"
    raise DataFault(
        f"{numbers} ({found.reasons}): {named}{', …' if count > NAMED else ''}. They are in {found.folder}: {hint}, or "
        f"allow more with --set quarantine.max_share=SHARE{first}"
    )
