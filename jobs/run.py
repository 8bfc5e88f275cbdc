"""A run as its stages see it: settings, classes, plans, and the paths of its weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, TypeVar

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt

from shards.data.label_rules import LabelRules
from shards.data.plan import Plan
from shards.data.sources import FolderSourceConfig, ScenesSourceConfig, Source, SourceConfig, open_source
from shards.data.vocabulary import Vocabulary
from shards.formats.layout import Dataset, RunLayout, record_path
from shards.formats.records import Json
from shards.storage import mirror
from shards.storage.store import location_of

DATASETS: Final[tuple[Dataset, ...]] = ("target", "source", "test", "validation")
MODEL_FILE: Final = "model.safetensors"
WHOLE_ROUND: Final = "000000"  # the shard of tasks that are about a whole round


class Section(BaseModel):
    """A section of `config.yaml`: frozen, unknown names refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Settings = TypeVar("Settings", bound=BaseModel)


class DataSettings(Section):
    """Where images come from.

    Attributes:
        target: The images to label. Their labels, if there are any, only measure the pseudo-labels.
        source: Labelled images that the rounds rehearse; null: training on pseudo-labels alone.
        test: Labelled images that only the evaluation of each round reads; null: no mIoU is reported.
        validation: Labelled images to choose settings on, and to decide which student becomes the next teacher; null:
            that is decided without labels.
        labels: How the label files of all folders are found and read, unless a folder has rules of its own.
    """

    target: SourceConfig = ScenesSourceConfig(split="target", count=400)
    source: SourceConfig | None = ScenesSourceConfig(split="source", count=600)
    test: SourceConfig | None = ScenesSourceConfig(split="test", count=200)
    validation: SourceConfig | None = ScenesSourceConfig(split="validation", count=100)
    labels: LabelRules = LabelRules()

    def with_rules(self) -> "DataSettings":
        """Return the settings with the rules that each folder's labels are read by."""
        folders = {name: getattr(self, name) for name in DATASETS}
        return self.model_copy(
            update={
                name: source.with_rules(self.labels)
                for name, source in folders.items()
                if isinstance(source, FolderSourceConfig)
            }
        )

    def of(self, dataset: Dataset) -> SourceConfig:
        """Return where the images of a data set come from.

        Raises:
            ValueError: The settings name none.
        """
        source: SourceConfig | None = getattr(self, dataset)
        if source is None:
            raise ValueError(f"the run has no {dataset} split; name labelled images in data.{dataset}")
        return source


class RunSettings(Section):
    """The settings that every run has; `pipeline.config.RunConfig` adds the sections of the stages.

    Attributes:
        seed: Seed of all that is drawn: the trainings (with `train.seed`), the images that promotion and alarms use.
        shard_size: Images per shard; a worker that dies loses one shard at most.
    """

    seed: NonNegativeInt = 0
    shard_size: PositiveInt = 50

    def section(self, kind: type[Settings]) -> Settings:
        """Return the section of a class; its defaults where the settings have no such section."""
        # By class and not by name, so that a stage knows no section but its own.
        for name in type(self).model_fields:
            value = getattr(self, name)
            if type(value) is kind:
                return value
        return kind()


@dataclass(frozen=True)
class RunRef:
    """What a worker gets of a run: small, picklable, without the plan.

    Attributes:
        layout: The paths of the run, the same on every machine.
        config: The settings; those of a replay differ from `config.yaml`.
        round: The round; 0 for what all rounds share.
        part: The stage, or the part of it, such as "embed-source" or "evaluate-baseline".
        image_extension: What images are called in the run's tars (`Plan.image_extension`).
    """

    layout: RunLayout
    config: RunSettings
    round: int = 0
    part: str = ""
    image_extension: str | None = None

    def section(self, kind: type[Settings]) -> Settings:
        """Return the section of the settings of a class."""
        return self.config.section(kind)

    @cached_property
    def data(self) -> DataSettings:
        """Where images come from, with the rules for their labels."""
        return self.section(DataSettings).with_rules()

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The classes, read from the run folder."""
        return Vocabulary.load(self.layout.vocabulary)

    def reopened(self) -> "Run":
        """Return the whole run, read from its folder, for a stage that works in the command's own process.

        Raises:
            FileNotFoundError: A file of the run is missing.
            ValueError: One is damaged.
        """
        return load_run(self.layout, self.config)

    def open(self, dataset: Dataset) -> Source:
        """Return the images of a data set.

        Raises:
            ValueError: The settings name none.
        """
        return open_source(self.data.of(dataset), self.vocabulary)


@dataclass(frozen=True)
class Run:
    """A run that is open in this process.

    Attributes:
        layout: The paths of the run.
        config: The settings.
        vocabulary: The classes.
        plan: The unlabelled images in shards.
        source_plan: The labelled images in shards; None without a labelled source.
        outputs_only: Whether only the outputs of tasks are wanted, as by `status`: labelled splits, which have no plan
            in the run folder, are then not read, and their tasks have no samples.
    """

    layout: RunLayout
    config: RunSettings
    vocabulary: Vocabulary
    plan: Plan
    source_plan: Plan | None
    outputs_only: bool = False

    @property
    def name(self) -> str:
        """The name of the run folder."""
        return self.layout.root.resolve().name

    @cached_property
    def data(self) -> DataSettings:
        """Where images come from, with the rules for their labels."""
        return self.section(DataSettings).with_rules()

    def section(self, kind: type[Settings]) -> Settings:
        """Return the section of the settings of a class."""
        return self.config.section(kind)

    def ref(self, round: int, part: str) -> RunRef:
        """Return what a worker of a stage gets."""
        return RunRef(self.layout, self.config, round, part, self.plan.image_extension)

    def refresh(self, folder: Path | None = None) -> None:
        """Fetch the records of the run's store, or of one of its folders; does nothing for a run in a folder."""
        location = location_of(self.layout.root)
        mirror.bring(location) if folder is None else mirror.bring_folder(location, folder)

    def publish(self, *files: Path) -> None:
        """Upload small files to the run's store, in this order; does nothing for a run in a folder."""
        mirror.put_files(location_of(self.layout.root), files)

    def discard(self, output: Path) -> None:
        """Delete an output and its record, in the folder or the store."""
        mirror.discard(location_of(self.layout.root), output, record_path(output))

    @contextmanager
    def here(self, *outputs: Path) -> Iterator[None]:
        """Keep outputs on this machine for the length of the block; outputs that are not done are skipped."""
        done = [(output, record_path(output)) for output in outputs if record_path(output).is_file()]
        with mirror.fetched(location_of(self.layout.root), done):
            yield


def load_run(layout: RunLayout, config: RunSettings) -> Run:
    """Read vocabulary and plans of a run folder whose settings are known.

    Raises:
        FileNotFoundError: One is missing.
        ValueError: One is damaged.
    """
    source = config.section(DataSettings).source
    source_plan = None if source is None else Plan.load(layout.source_plan)
    return Run(layout, config, Vocabulary.load(layout.vocabulary), Plan.load(layout.plan), source_plan)


def label_fingerprint(run: RunRef, dataset: Dataset) -> dict[str, Json]:
    """Return what differs from the defaults in the meaning of a data set's labels; empty where nothing does."""
    # Nothing for the defaults: records of runs from before there were rules stay valid.
    source = getattr(run.data, dataset)
    if not isinstance(source, FolderSourceConfig) or source.labels is None:
        return {}
    changes = (source.label_rules or LabelRules()).changes()
    return {"labels_read": changes} if changes else {}


def has_target_labels(run: Run | RunRef) -> bool:
    """Return whether pseudo-labels can be measured: scenes know their labels, folders may have some."""
    target = run.data.target
    return isinstance(target, ScenesSourceConfig) or target.labels is not None


def student_weights(run: Run | RunRef, number: int) -> Path:
    """Return the path of the model that a round trained; for round 0, the start."""
    return run.layout.student(number) / MODEL_FILE


def best_weights(run: Run | RunRef, number: int) -> Path:
    """Return the path of the best model up to a round: the next round's teacher."""
    # Round 0 decides nothing, so that it keeps no copy of its one model.
    return student_weights(run, 0) if number == 0 else run.layout.best(number) / MODEL_FILE


def baseline_weights(run: Run | RunRef) -> Path:
    """Return the path of the plain baseline's weights: without DEA and without self-training."""
    return run.layout.round(0) / "baseline" / MODEL_FILE
