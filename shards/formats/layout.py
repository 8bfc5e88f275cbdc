"""The paths of a run folder."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

Dataset = Literal["target", "source", "test", "validation"]

_REPLAY_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,79}")
_STAGE_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_SHARD_NAME = re.compile(r"[0-9]{6,}")
_OUTPUT_NAME = re.compile(
    r"((source|test|validation|mirror)-)?[0-9]{6,}\.zarr|pseudo-[0-9]{6,}\.tar|(model|[0-9a-f]{64})\.safetensors"
    r"|source-labels-[0-9]{6,}\.json"
    r"|(evaluate(-[a-z]+)?|holdout|target|promotion|report|thresholds|shares|names|pseudo_labels|index)\.json|step-[0-9]{8,}\.json"
)

# What the program writes at the top of a run folder; everything else there is the user's.
OWN_NAMES: Final = (
    *("config.yaml", "vocabulary.json", "plan.json", "plan", "source_plan.json", "source_plan", "events.jsonl"),
    *("inputs.json", "run.lock", "run.lock.guard", "locks", "jobs", "embeddings", "rounds"),
)


@dataclass(frozen=True)
class RunLayout:
    """The paths of a run: names only, nothing is created or read.

    Attributes:
        root: The run folder.
        replay: Name of a replay, whose pseudo-labels are used instead of each round's own; None: the round's own.

    Raises:
        ValueError: The replay's name is not a plain folder name.
    """

    root: Path
    replay: str | None = None

    def __post_init__(self) -> None:
        if self.replay is not None and not _REPLAY_NAME.fullmatch(self.replay):
            raise ValueError(f"{self.replay!r} names no replay; expected letters, digits, '_', '-' and '.' as in low-1")

    @property
    def config(self) -> Path:
        """The resolved settings."""
        return self.root / "config.yaml"

    @property
    def vocabulary(self) -> Path:
        """The classes, their ids, colours and templates."""
        return self.root / "vocabulary.json"

    @property
    def plan(self) -> Path:
        """The plan of the unlabelled images: sample -> shard."""
        return self.root / "plan.json"

    @property
    def source_plan(self) -> Path:
        """The plan of the labelled images that stage 1 and the rounds train on."""
        return self.root / "source_plan.json"

    @property
    def inputs(self) -> Path:
        """What was found of the images and labels when the run was made; runs of earlier versions have none."""
        return self.root / "inputs.json"

    @property
    def events(self) -> Path:
        """The log, one line per event."""
        return self.root / "events.jsonl"

    @property
    def lock(self) -> Path:
        """The lock of a command that works on the whole run."""
        return self.root / "run.lock"

    @property
    def locks(self) -> Path:
        """The folder of the stages' locks."""
        return self.root / "locks"

    @property
    def jobs(self) -> Path:
        """The folder that notes which stages were submitted as Ray jobs, and how they ended."""
        return self.root / "jobs"

    @property
    def text_embeddings(self) -> Path:
        """The folder of text embeddings, a file per list of classes, templates and weights."""
        return self.root / "embeddings" / "text"

    def round(self, number: int) -> Path:
        """The folder of a round; round 0 is the start, before any self-training.

        Raises:
            ValueError: The number is negative.
        """
        if number < 0:
            raise ValueError(f"round {number} does not exist; rounds count from 0")
        return self.root / "rounds" / f"{number:03d}"

    def stage_lock(self, round: int, stage: str) -> Path:
        """The lock of a command that works on one stage of a round.

        Raises:
            ValueError: The number is negative, or the name cannot be a stage's.
        """
        if not _STAGE_NAME.fullmatch(stage):
            raise ValueError(f"{stage!r} is not the name of a stage; expected one such as teacher")
        return self.locks / f"{self.round(round).name}-{stage}.lock"

    def labels(self, number: int) -> Path:
        """The folder of a round's pseudo-labels, from thresholds to tars; a replay has its own."""
        return self.round(number) if self.replay is None else self.round(number) / "replays" / self.replay

    def embedding(self, dataset: Dataset, shard: str) -> Path:
        """The SAM embeddings of a shard, once for all rounds."""
        prefix = "" if dataset == "target" else f"{dataset}-"
        return self.root / "embeddings" / "sam" / f"{prefix}{_checked(shard)}.zarr"

    def mirror_embedding(self, shard: str) -> Path:
        """The SAM embeddings of the mirrored images of a shard of the target, where the teacher sees them."""
        return self.root / "embeddings" / "sam" / f"mirror-{_checked(shard)}.zarr"

    @property
    def presence(self) -> Path:
        """The share of the target that each class name explains, where frozen CLIP is the witness of presence."""
        return self.root / "embeddings" / "presence" / "names.json"

    def presence_of(self, shard: str) -> Path:
        """The evidence for each class in the images of a shard, once for all rounds, where there is a witness."""
        return self.root / "embeddings" / "presence" / f"{_checked(shard)}.zarr"

    def source_labels(self, shard: str) -> Path:
        """The samples of a shard of the labelled source that cannot be trained on, once for all rounds."""
        return self.root / "embeddings" / "labels" / f"source-labels-{_checked(shard)}.json"

    def teacher(self, number: int, shard: str) -> Path:
        """The teacher's scores of a shard."""
        return self.round(number) / "teacher" / f"{_checked(shard)}.zarr"

    def thresholds(self, number: int) -> Path:
        """The thresholds per class, if the gate is adaptive."""
        return self.labels(number) / "thresholds.json"

    def shares(self, number: int) -> Path:
        """How starved unseen classes are, and the bias per class that keeps them."""
        return self.labels(number) / "shares.json"

    def pseudo_scores(self, number: int) -> Path:
        """How good the pseudo-labels are."""
        return self.labels(number) / "pseudo_labels.json"

    def refine(self, number: int, shard: str) -> Path:
        """The refined label maps of a shard."""
        return self.labels(number) / "refine" / f"{_checked(shard)}.zarr"

    def pseudo(self, number: int, shard: str) -> Path:
        """The pseudo-label tar of a shard."""
        return self.labels(number) / "pseudo" / f"pseudo-{_checked(shard)}.tar"

    def pseudo_index(self, number: int) -> Path:
        """The list of a round's tars, written after the last of them."""
        return self.labels(number) / "pseudo" / "index.json"

    def student(self, number: int) -> Path:
        """The folder of the model that a round trained."""
        return self.round(number) / "student"

    def best(self, number: int) -> Path:
        """The folder of the best model up to a round, which teaches the next one."""
        return self.round(number) / "best"

    def promotion(self, number: int) -> Path:
        """Whether a round's student became the best model, and why."""
        return self.round(number) / "promotion.json"

    def holdout(self, number: int) -> Path:
        """The scores of a round's model on the images that decide on promotion."""
        return self.round(number) / "holdout.json"

    def target_check(self, number: int) -> Path:
        """The measures of a round's student on a sample of the target."""
        return self.round(number) / "target.json"

    def report_json(self, number: int) -> Path:
        """A round's numbers."""
        return self.round(number) / "report.json"

    def report_html(self, number: int) -> Path:
        """A round's report as a page."""
        return self.round(number) / "report.html"


def is_output_name(name: str) -> bool:
    """Return whether a file or folder of this name may be a stage's output, which may be deleted and made again."""
    # By the whole name, not the ending: what a user put into a run folder is not deleted.
    return _OUTPUT_NAME.fullmatch(name) is not None


def record_of(artifact: Path) -> Path:
    """Return the path of an output's record: the same stem with `.json`, in the same folder.

    Raises:
        ValueError: The output is itself named `.json`: its record would overwrite it.
    """
    record = artifact.with_suffix(".json")
    if record == artifact:
        raise ValueError(f"{artifact} cannot be an output with a record: its record would have the same name")
    return record


def record_path(output: Path) -> Path:
    """Return the path of an output's record, `.record.json` for an output that is itself `.json`."""
    return output.with_suffix(".record.json") if output.suffix == ".json" else record_of(output)


def _checked(shard: str) -> str:
    if not _SHARD_NAME.fullmatch(shard):
        raise ValueError(f"{shard!r} is not a shard name; expected at least six digits, as in 000012")
    return shard
