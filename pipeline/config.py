"""The settings of a run: their schema, the embedded default, and how they are read and written."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import Field, NonNegativeInt

from jobs.cluster.job_server import SubmitConfig
from jobs.execution.settings import ExecutionConfig
from jobs.inference.model import NO_STAGE1, ModelSettings
from jobs.resources import Resources
from jobs.run import DATASETS, DataSettings, RunSettings, Section
from jobs.stages.embed import Settings as EmbedSettings
from jobs.stages.evaluate import Settings as EvaluateSettings
from jobs.stages.matching import Settings as MatchingSettings
from jobs.stages.promote import Settings as PromotionSettings
from jobs.stages.refine import Settings as RefineSettings
from jobs.stages.teacher import Settings as TeacherSettings
from jobs.training.config import GroupResources, TrainConfig, require_group_fits
from models.evaluation.alarms import AlarmConfig
from models.refinement.gate import GateConfig
from pipeline.setting_comments import commented_yaml
from pipeline.settings import COMMENTED, flat, read_settings, sealed_settings, validated, with_sets
from shards.data.class_lists import load_class_names
from shards.data.sources import FolderSourceConfig, SourceConfig
from shards.files.atomic import write_bytes_atomic
from shards.scenes.scenes import SCENE_CLASSES, SEEN

# Plan and vocabulary follow from these, and everything in the folder from those two: another value is another run. All
# other settings may change, and the stages whose fingerprints they enter are then done again.
IDENTITY: Final = ("seed", "shard_size", "model.preset", "data.target", "data.source", "vocabulary")
# How the values in label files are read changes no plan.
_CHANGEABLE: Final = ("label_rules.ignore", "label_rules.shift", "label_rules.binary", "label_rules.frame")


class VocabularySettings(Section):
    """The classes.

    Attributes:
        classes: One name per class, ordered by id, with synonyms after ", "; or the path of a file of such names.
        seen: The classes that stage 1 had labels for; null: all.
        prompt_names: What CLIP reads instead of a class's name, with synonyms after ", ", for classes whose name in
            labels and tables is not the best word for what they show: `{pole group: "poles, columns"}`.
    """

    classes: tuple[str, ...] | str = SCENE_CLASSES
    seen: tuple[str, ...] | None = tuple(name for name in SCENE_CLASSES if name in SEEN)
    prompt_names: dict[str, str] = Field(default={})


class QuarantineSettings(Section):
    """How many images may turn out unreadable before the run stops.

    Attributes:
        max_share: Share of all images.
        min_samples: This many are always allowed, as long as other images are left.
    """

    # One bad PNG must not stop a run of a million images, but a wrong mount point must: hence a share. A share alone
    # would stop a trial run of ten images at its second bad file: hence a minimum.
    max_share: float = Field(default=0.1, ge=0, le=1)
    min_samples: NonNegativeInt = 5

    def allowed(self, total: int) -> int:
        """Return how many of a data set's images may be unreadable."""
        return max(int(self.max_share * total), self.min_samples)


class ResourceSettings(Section):
    """What the workers of each stage need; none of it changes results."""

    # The defaults suit two cores and the tiny preset, whose models take longer to load than a shard takes to process: a
    # second worker would only pay for its own start.
    embed: Resources = Resources()
    teacher: Resources = Resources(max_workers=1)
    refine: Resources = Resources(max_workers=1)
    write: Resources = Resources(max_workers=1)
    train: GroupResources = GroupResources()
    evaluate: Resources = Resources(max_workers=1)


TINY_TRAINING: Final = TrainConfig(
    steps=300,
    learning_rate=2e-3,
    target_per_step=3,  # few images per step show few classes, and a step costs images x classes
    source_per_step=1,
    sampled_classes=12,
    dea_lr_scale=0.03,
    clip_lr_scale=0.3,  # CLIP knows the words already; what it has to learn is the look of the target's camera
    checkpoint_every=50,
)


# Chosen on validation scenes (docs/gate.md): the paper's 0.9 leaves 16 % of the objects' pixels without a label.
TINY_TEACHER: Final = TeacherSettings(views=("identity", "mirror"))
TINY_REFINE: Final = RefineSettings(gate=GateConfig(threshold=0.5))


class RunConfig(RunSettings):
    """All settings of a run; the defaults are preset `tiny` on the generated scenes."""

    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    vocabulary: VocabularySettings = VocabularySettings()
    embed: EmbedSettings = EmbedSettings()
    teacher: TeacherSettings = TINY_TEACHER
    refine: RefineSettings = TINY_REFINE
    matching: MatchingSettings = MatchingSettings()
    train: TrainConfig = TINY_TRAINING
    evaluate: EvaluateSettings = EvaluateSettings()
    promotion: PromotionSettings = PromotionSettings()
    alarms: AlarmConfig = AlarmConfig()
    quarantine: QuarantineSettings = QuarantineSettings()
    resources: ResourceSettings = ResourceSettings()
    execution: ExecutionConfig = ExecutionConfig()
    submit: SubmitConfig = SubmitConfig()


def resolve_config(
    requested: Mapping[str, Any], sets: Sequence[str], *, where: str, base: RunConfig | None = None
) -> RunConfig:
    """Return complete settings: a base, others laid over it, `--set key=value` over both.

    Args:
        requested: Nested settings, as read from a YAML file.
        sets: `key=value` texts, in order.
        where: The origin of `requested`, for messages.
        base: Settings to start from; None: the embedded default, with the paper's teacher, gate and training for
            presets other than `tiny`.

    Raises:
        ValueError: An unknown name (with the nearest known one) or a value that does not fit.
    """
    if base is None:
        base = _defaults(requested, sets)
    merged = with_sets(laid_over(base.model_dump(mode="json"), requested), sets)
    config = validated(RunConfig, merged, where=where)
    require_group_fits(config.train, config.resources.train)
    _require_possible(config)
    return _with_whole_paths(_with_class_names(config))


def _defaults(requested: Mapping[str, Any], sets: Sequence[str]) -> RunConfig:
    """Return the defaults that settings are laid over."""
    if not selects_tiny(requested, sets):
        return RunConfig(teacher=TeacherSettings(), refine=RefineSettings(), train=TrainConfig())
    names = flat(with_sets(requested, sets))
    if names.get("data.target.kind", "scenes") != "scenes":
        # Chosen on the scenes, they say nothing of other images: of two classes, 0.5 would let every guess pass.
        return RunConfig(teacher=TeacherSettings(), refine=RefineSettings())
    # A threshold of each class's own stays under the paper's: the embedded one is for all classes alike.
    adaptive = any(name.startswith("refine.gate.adaptive") for name in names)
    return RunConfig(refine=RefineSettings()) if adaptive else RunConfig()


def _require_possible(config: RunConfig) -> None:
    """Reject settings of several sections that cannot be had together.

    Raises:
        ValueError: The training-free teacher with a sigmoid, or masks for a gate that needs scores.
    """
    if config.model.stage1_weights == NO_STAGE1 and config.train.loss.kind != "eq6":
        raise ValueError(
            "model.stage1_weights=none begins with CLIP alone, whose probabilities are a softmax over the classes, and "
            f"train.loss.kind={config.train.loss.kind} is for a sigmoid of each; set train.loss.kind=eq6"
        )
    if config.teacher.masks is not None and config.refine.gate.adaptive is not None:
        raise ValueError(
            "refine.gate.adaptive takes its thresholds from the scores of each round, and teacher.masks has none in "
            "round 1; set refine.gate.adaptive=null, or give teacher.scores"
        )


def selects_tiny(requested: Mapping[str, Any], sets: Sequence[str]) -> bool:
    """Return whether settings leave the preset at `tiny`."""
    # Decided before anything is validated, as the preset chooses the defaults that the rest is laid over: `pretrain`
    # once trained every preset by the short recipe of `tiny`, without any message.
    preset: object = flat(with_sets(requested, sets)).get("model.preset", "tiny")
    return preset == "tiny"


def load_config(path: Path) -> RunConfig:
    """Read the settings of a run folder.

    Raises:
        FileNotFoundError: There are none.
        ValueError: They are damaged, or were written by a version with other settings.
    """
    return validated(RunConfig, read_settings(path), where=str(path))


def save_config(path: Path, config: RunConfig) -> None:
    """Write all settings as YAML, atomically."""
    # Defaults are written out, too: a later version with other defaults must not change what an old run means.
    write_bytes_atomic(path, sealed_settings(f"{COMMENTED}. Change them with --set.", commented_yaml(config)))


def identity_changes(saved: RunConfig, requested: RunConfig) -> list[str]:
    """Return the differences that an existing run cannot take: "model.preset tiny -> base"."""
    # With the rules of each folder in place: whether the pattern of labels is its own or the default says nothing.
    old, new = (
        flat(config.model_copy(update={"data": config.data.with_rules()}).model_dump(mode="json"))
        for config in (saved, requested)
    )
    return [
        f"{name} {_shown(old.get(name))} -> {_shown(new.get(name))}"
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name) and _is_identity(name)
    ]


def _is_identity(name: str) -> bool:
    return any(name == key or name.startswith(f"{key}.") for key in IDENTITY) and not name.endswith(_CHANGEABLE)


def changed_settings(saved: RunConfig, requested: RunConfig) -> list[str]:
    """Return every setting that differs: "refine.gate.threshold 0.9 -> 0.8"."""
    old, new = (flat(config.model_dump(mode="json")) for config in (saved, requested))
    return [
        f"{name} {_shown(old.get(name))} -> {_shown(new.get(name))}"
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]


def laid_over(base: Mapping[str, Any], requested: Mapping[str, Any]) -> dict[str, Any]:
    """Lay settings over others, section by section."""
    # A section of another `kind` replaces the old one whole: a folder's `images` means nothing to generated scenes.
    result = dict(base)
    for name, value in requested.items():
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
    """Replace the name of a file of class names by its content."""
    # A run is for its classes, not for a file: editing names.txt later must not relabel what was made.
    classes = config.vocabulary.classes
    if not isinstance(classes, str):
        return config
    names = tuple(load_class_names(Path(classes).expanduser()))
    return config.model_copy(update={"vocabulary": config.vocabulary.model_copy(update={"classes": names})})


def _with_whole_paths(config: RunConfig) -> RunConfig:
    """Return settings with absolute paths."""

    # A run is resumed from any folder, and its workers have working folders of their own.
    def whole(source: SourceConfig | None) -> SourceConfig | None:
        if not isinstance(source, FolderSourceConfig):
            return source
        labels = None if source.labels is None else str(Path(source.labels).expanduser().resolve())
        images = str(Path(source.images).expanduser().resolve())
        return source.model_copy(update={"images": images, "labels": labels})

    data: dict[str, Any] = {name: whole(getattr(config.data, name)) for name in DATASETS}
    calibration = config.refine.gate.calibration
    gate = {} if calibration is None else {"calibration": calibration.expanduser().resolve()}
    refine = {"gate": config.refine.gate.model_copy(update=gate)}
    tags = config.teacher.presence.tags
    heard = {} if tags is None else {"tags": tags.expanduser().resolve()}
    given = {name: path for name in ("masks", "scores") if (path := getattr(config.teacher, name)) is not None}
    teacher = {
        **{name: path.expanduser().resolve() for name, path in given.items()},
        "presence": config.teacher.presence.model_copy(update=heard),
    }
    return config.model_copy(
        update={
            "data": config.data.model_copy(update=data),
            "model": config.model.with_whole_paths(),
            "refine": config.refine.model_copy(update=refine),
            "teacher": config.teacher.model_copy(update=teacher),
        }
    )


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:59] + "…"
