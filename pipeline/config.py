"""The settings of a run: what they are, the embedded default, and where they are read and written."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from jobs.cluster.job_server import SubmitConfig
from jobs.execution.execution import ExecutionConfig
from jobs.inference.model import ModelConfig
from jobs.stage import Resources
from jobs.training.config import TrainConfig
from jobs.training.group import GroupResources, require_group_fits
from models.evaluation.alarms import AlarmConfig
from models.refinement.gate import GateConfig
from models.refinement.refine import RefinementConfig
from pipeline.rounds.promotion import PromotionConfig
from pipeline.settings import flat, read_settings, sealed_settings, validated, with_sets
from shards.data.sources import FolderSourceConfig, ScenesSourceConfig, SourceConfig
from shards.data.vocabulary import load_class_names
from shards.files.atomic import write_bytes_atomic
from shards.scenes.scenes import SCENE_CLASSES, SEEN

# A run is made for these; the other settings may change, and then the stages that they concern are done again.
IDENTITY: Final = ("seed", "shard_size", "model.preset", "data.target", "data.source", "vocabulary")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSettings(_Section):
    """Which model, and where the weights of round 0 come from.

    Attributes:
        preset: "tiny" (embedded, with weights), "base" (the paper's) or "large".
        dea: Whether CLIP's features are aggregated with SAM's; without, the network is SED's.
        clip_weights: CLIP's weights; null: the preset's own.
        sam_weights: SAM's weights; null: the preset's own.
        sam_dtype: What SAM's image encoder computes in: "float32", or "bfloat16" for half the time and embeddings that
            differ by about one percent.
        early_rejection: Classes that each pixel keeps at each of SED's gates when the network predicts; null: all.
        stage1_weights: DEA and decoder after stage 1; null: those shipped for the preset.
        baseline_weights: The decoder of the plain baseline without DEA; null: those shipped for the preset.
    """

    preset: Literal["tiny", "base", "large"] = "tiny"
    dea: bool = True
    clip_weights: Path | None = None
    sam_weights: Path | None = None
    stage1_weights: Path | None = None
    baseline_weights: Path | None = None
    sam_dtype: Literal["float32", "bfloat16"] = "float32"
    early_rejection: PositiveInt | None = None

    def with_weights(self, weights: Path | None, *, dea: bool | None = None, adds_dea: bool = False) -> ModelConfig:
        """Give the model with a head's weights; `dea` overrides the setting."""
        return ModelConfig(
            preset=self.preset,
            dea=self.dea if dea is None else dea,
            weights=weights,
            adds_dea=adds_dea,
            clip_weights=self.clip_weights,
            sam_weights=self.sam_weights,
            sam_dtype=self.sam_dtype,
            early_rejection=self.early_rejection,
        )

    def with_whole_paths(self) -> "ModelSettings":
        """Give the settings with absolute paths of weights, which hold in any folder."""
        files = {name: getattr(self, name) for name in ModelSettings.model_fields if name.endswith("_weights")}
        return self.model_copy(
            update={name: path.expanduser().resolve() for name, path in files.items() if path is not None}
        )


class DataSettings(_Section):
    """Where images come from.

    Attributes:
        target: The images to label. Labels, if there are any, serve to measure the pseudo-labels and nothing else.
        source: Labelled images that the rounds rehearse; null: training on pseudo-labels alone.
        test: Labelled images that nothing but the evaluation of each round sees; null: no mIoU is reported.
        validation: Labelled images to choose settings on, and to decide which student becomes the next teacher; null:
            that is decided without labels.
    """

    target: SourceConfig = ScenesSourceConfig(split="target", count=400)
    source: SourceConfig | None = ScenesSourceConfig(split="source", count=600)
    test: SourceConfig | None = ScenesSourceConfig(split="test", count=200)
    validation: SourceConfig | None = ScenesSourceConfig(split="validation", count=100)


class VocabularySettings(_Section):
    """The classes.

    Attributes:
        classes: A name a class, in the order of the ids, synonyms after ", "; or the path of a file of such names.
        seen: The classes that stage 1 had labels of; null: all.
    """

    classes: tuple[str, ...] | str = SCENE_CLASSES
    seen: tuple[str, ...] | None = tuple(name for name in SCENE_CLASSES if name in SEEN)


class EmbedSettings(_Section):
    """How images are embedded with SAM.

    Attributes:
        batch_size: Images in memory at a time; halves where memory does not suffice.
    """

    batch_size: PositiveInt = 8


class TeacherSettings(_Section):
    """How the teacher predicts.

    Attributes:
        top_k: Classes kept for each pixel.
        batch_size: Images at a time; halves where memory does not suffice.
    """

    top_k: PositiveInt = 4
    batch_size: PositiveInt = 8


class RefineSettings(_Section):
    """How a teacher's prediction becomes a pseudo-label.

    Attributes:
        gate: Which classes of an image become prompts.
        refinement: Prompts, acceptance and overlaps.
        batch_size: Images a call of SAM's mask decoder; halves where memory does not suffice.
    """

    gate: GateConfig = GateConfig()
    refinement: RefinementConfig = RefinementConfig()
    batch_size: PositiveInt = 8


class EvaluateSettings(_Section):
    """How a round's student is judged. Images are drawn with the run's seed, the same in every round.

    Attributes:
        windows: Windows a side in which labelled images are looked at; 1 sees them whole, 2 is SED's sliding window, at
            five times the work, and more for SAM, whose embeddings of whole images are then of no use.
        holdout_images: Of `data.validation`, where these decide on promotion.
        target_images: Of the target, for the waterfall, the alarms and the measures of promotion without labels.
    """

    windows: PositiveInt = 1
    holdout_images: PositiveInt = 100
    target_images: PositiveInt = 100


class QuarantineSettings(_Section):
    """How many images may turn out unreadable before the run stops.

    Attributes:
        max_share: Share of all images.
        min_samples: So many are allowed in any case, as long as other images are left.
    """

    max_share: float = Field(default=0.1, ge=0, le=1)
    min_samples: NonNegativeInt = 5


class ResourceSettings(_Section):
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


class RunConfig(_Section):
    """All settings of a run. Its defaults are the embedded default: preset `tiny` on the generated scenes."""

    seed: NonNegativeInt = 0
    shard_size: PositiveInt = 50
    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    vocabulary: VocabularySettings = VocabularySettings()
    embed: EmbedSettings = EmbedSettings()
    teacher: TeacherSettings = TeacherSettings()
    refine: RefineSettings = RefineSettings()
    train: TrainConfig = TINY_TRAINING
    evaluate: EvaluateSettings = EvaluateSettings()
    promotion: PromotionConfig = PromotionConfig()
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
