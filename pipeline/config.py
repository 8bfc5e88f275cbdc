"""The settings of a run: what they are, the embedded default, and where they are read and written."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import Field, NonNegativeInt

from jobs.cluster.job_server import SubmitConfig
from jobs.execution.settings import ExecutionConfig
from jobs.inference.model import ModelSettings
from jobs.resources import Resources
from jobs.run import DataSettings, RunSettings, Section
from jobs.stages.embed import Settings as EmbedSettings
from jobs.stages.evaluate import Settings as EvaluateSettings
from jobs.stages.promote import Settings as PromotionSettings
from jobs.stages.refine import Settings as RefineSettings
from jobs.stages.teacher import Settings as TeacherSettings
from jobs.training.config import TrainConfig
from jobs.training.group import GroupResources, require_group_fits
from models.evaluation.alarms import AlarmConfig
from pipeline.settings import flat, read_settings, sealed_settings, validated, with_sets
from shards.data.sources import FolderSourceConfig, SourceConfig
from shards.data.vocabulary import load_class_names
from shards.files.atomic import write_bytes_atomic
from shards.scenes.scenes import SCENE_CLASSES, SEEN

# A run is made for these; the other settings may change, and then the stages that they concern are done again.
IDENTITY: Final = ("seed", "shard_size", "model.preset", "data.target", "data.source", "vocabulary")


class VocabularySettings(Section):
    """The classes.

    Attributes:
        classes: A name a class, in the order of the ids, synonyms after ", "; or the path of a file of such names.
        seen: The classes that stage 1 had labels of; null: all.
    """

    classes: tuple[str, ...] | str = SCENE_CLASSES
    seen: tuple[str, ...] | None = tuple(name for name in SCENE_CLASSES if name in SEEN)


class QuarantineSettings(Section):
    """How many images may turn out unreadable before the run stops.

    Attributes:
        max_share: Share of all images.
        min_samples: So many are allowed in any case, as long as other images are left.
    """

    max_share: float = Field(default=0.1, ge=0, le=1)
    min_samples: NonNegativeInt = 5


class ResourceSettings(Section):
    """What the workers of each stage need; none of it changes results.

    The defaults suit two cores and the tiny preset, whose models take longer to load than a shard takes to do. Raise
    `max_workers` where there is more.
    """

    embed: Resources = Resources()
    teacher: Resources = Resources(max_workers=1)
    refine: Resources = Resources(max_workers=1)
    write: Resources = Resources(max_workers=1)
    train: GroupResources = GroupResources()
    evaluate: Resources = Resources(max_workers=1)


TINY_TRAINING: Final = TrainConfig(
    steps=200,
    learning_rate=2e-3,
    target_per_step=3,  # few images a step show few classes, and a step costs images x classes
    source_per_step=1,
    sampled_classes=12,
    dea_lr_scale=0.03,
    clip_lr_scale=0.1,  # CLIP knows the words; what it has to learn is the target's camera
    checkpoint_every=50,
)


class RunConfig(RunSettings):
    """All settings of a run. Its defaults are the embedded default: preset `tiny` on the generated scenes."""

    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    vocabulary: VocabularySettings = VocabularySettings()
    embed: EmbedSettings = EmbedSettings()
    teacher: TeacherSettings = TeacherSettings()
    refine: RefineSettings = RefineSettings()
    train: TrainConfig = TINY_TRAINING
    evaluate: EvaluateSettings = EvaluateSettings()
    promotion: PromotionSettings = PromotionSettings()
    alarms: AlarmConfig = AlarmConfig()
    quarantine: QuarantineSettings = QuarantineSettings()
    resources: ResourceSettings = ResourceSettings()
    execution: ExecutionConfig = ExecutionConfig()
    submit: SubmitConfig = SubmitConfig()


def resolve_config(
    asked: Mapping[str, Any], sets: Sequence[str], *, where: str, base: RunConfig | None = None
) -> RunConfig:
    """Give complete settings: a base, others laid over it, `--set key=value` over both.

    Args:
        asked: Nested settings, as out of a YAML file.
        sets: Texts `key=value`, in order.
        where: What `asked` comes from, for messages.
        base: Settings to start from; None: the embedded default, with the paper's training where another preset than
            `tiny` is asked for.

    Raises:
        ValueError: An unknown name (with the nearest known one) or a value that does not fit.
    """
    if base is None:
        base = RunConfig() if asks_for_tiny(asked, sets) else RunConfig(train=TrainConfig())
    merged = with_sets(laid_over(base.model_dump(mode="json"), asked), sets)
    config = validated(RunConfig, merged, where=where)
    require_group_fits(config.train, config.resources.train)
    return _with_whole_paths(_with_class_names(config))


def asks_for_tiny(asked: Mapping[str, Any], sets: Sequence[str]) -> bool:
    """Tell whether settings leave the preset at `tiny`, whose training is its own; others get the paper's."""
    preset: object = flat(with_sets(asked, sets)).get("model.preset", "tiny")
    return preset == "tiny"


def load_config(path: Path) -> RunConfig:
    """Read the settings of a run folder.

    Raises:
        FileNotFoundError: They are not there.
        ValueError: They are damaged, or from a version with other settings.
    """
    return validated(RunConfig, read_settings(path), where=str(path))


def save_config(path: Path, config: RunConfig) -> None:
    """Write settings as YAML, whole or not at all; every setting stands in it, also those left at their default."""
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
    write_bytes_atomic(path, sealed_settings("The settings of this run, all of them. Change them with --set.", text))


def identity_changes(saved: RunConfig, asked: RunConfig) -> list[str]:
    """Name what cannot change in a run that exists: "model.preset tiny -> base"; empty if nothing of it does."""
    old, new = (flat(config.model_dump(mode="json")) for config in (saved, asked))
    return [
        f"{name} {_shown(old.get(name))} -> {_shown(new.get(name))}"
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name) and any(name == key or name.startswith(f"{key}.") for key in IDENTITY)
    ]


def changed_settings(saved: RunConfig, asked: RunConfig) -> list[str]:
    """Name every setting that differs: "refine.gate.threshold 0.9 -> 0.8"."""
    old, new = (flat(config.model_dump(mode="json")) for config in (saved, asked))
    return [
        f"{name} {_shown(old.get(name))} -> {_shown(new.get(name))}"
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]


def laid_over(base: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Lay settings over others, section by section; a section of another `kind` replaces the old one whole."""
    result = dict(base)
    for name, value in asked.items():
        old = result.get(name)
        if (
            isinstance(old, Mapping)
            and isinstance(value, Mapping)
            and value.get("kind", old.get("kind")) == old.get("kind")
        ):
            result[name] = laid_over(old, value)
        else:
            result[name] = value
    return result


def _with_class_names(config: RunConfig) -> RunConfig:
    """Read the class names where the settings name their file, so that the saved settings are complete."""
    classes = config.vocabulary.classes
    if not isinstance(classes, str):
        return config
    names = tuple(load_class_names(Path(classes).expanduser()))
    return config.model_copy(update={"vocabulary": config.vocabulary.model_copy(update={"classes": names})})


def _with_whole_paths(config: RunConfig) -> RunConfig:
    """Make relative paths absolute, so that the run can be resumed from any folder."""

    def whole(source: SourceConfig | None) -> SourceConfig | None:
        if not isinstance(source, FolderSourceConfig):
            return source
        labels = None if source.labels is None else str(Path(source.labels).expanduser().resolve())
        return FolderSourceConfig(images=str(Path(source.images).expanduser().resolve()), labels=labels)

    data = {name: whole(getattr(config.data, name)) for name in DataSettings.model_fields}
    calibration = config.refine.gate.calibration
    gate = {} if calibration is None else {"calibration": calibration.expanduser().resolve()}
    refine = {"gate": config.refine.gate.model_copy(update=gate)}
    return config.model_copy(
        update={
            "data": config.data.model_copy(update=data),
            "model": config.model.with_whole_paths(),
            "refine": config.refine.model_copy(update=refine),
        }
    )


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:59] + "…"
