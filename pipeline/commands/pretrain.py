"""Stage 1: train DEA and decoder on labelled images, for the shipped weights as for a user's own."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt

from jobs.executor import Backend, run_chain
from jobs.inference.model import ModelConfig, stseg_fingerprint, weights_checksum
from jobs.stage import CODE_VERSION, Resources, ShardTask, StagePlan, stage_records, why_stale
from jobs.stages.embed import EmbedConfig, EmbedWorker, embed_fingerprint
from jobs.training.config import TrainConfig, TrainJob
from jobs.training.group import GroupResources, require_group_fits, run_training
from jobs.training.loop import remove_left_checkpoints
from pipeline.config import ModelSettings, QuarantineSettings, VocabularySettings, asks_for_tiny, laid_over
from pipeline.progress import RunProgress
from pipeline.rounds.quarantine import check_quarantine
from pipeline.settings import read_settings, validated, with_sets
from pipeline.tasks.left_out import left_out, lines_of
from shards.data.plan import Plan, make_plan
from shards.data.sources import ScenesSourceConfig, SourceConfig, open_source
from shards.data.vocabulary import Vocabulary, load_class_names
from shards.files.locks import RunLock
from shards.files.untrusted import refuse_links_out
from shards.formats.layout import OWN_NAMES, RunLayout
from shards.formats.records import Record, read_record

TINY_STAGE1: Final = TrainConfig(
    steps=400,
    learning_rate=2e-3,
    target_per_step=0,
    source_per_step=8,
    sampled_classes=12,
    classes="seen",
    dea_lr_scale=0.03,  # seen classes alone, faster, bend CLIP's alignment with the words: see docs/method.md
    checkpoint_every=100,
)
PAPER_STAGE1: Final = TrainConfig(target_per_step=0, source_per_step=4, classes="seen")


class PretrainConfig(BaseModel):
    """The settings of stage 1; the defaults make the shipped weights, of preset `tiny`.

    Attributes:
        model: Preset and DEA; `stage1_weights` is where to start from instead of anew.
        source: Labelled images.
        vocabulary: The classes; only the seen ones are trained on.
        shard_size: Images a shard of embeddings.
        train: The training.
        embed: What an embedding worker needs.
        group: The training group.
        quarantine: How many images may be unreadable.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelSettings = ModelSettings()
    source: SourceConfig = ScenesSourceConfig(split="source", count=1600)
    vocabulary: VocabularySettings = VocabularySettings()
    shard_size: PositiveInt = 200
    train: TrainConfig = TINY_STAGE1
    embed: Resources = Resources()
    group: GroupResources = GroupResources()
    quarantine: QuarantineSettings = QuarantineSettings()
    seed: NonNegativeInt = 0


@dataclass(frozen=True)
class PretrainRequest:
    """What is asked for.

    Attributes:
        out: The weights to write.
        images: Labelled images; None: what the settings name, by default the scenes.
        labels: Their index PNGs.
        classes: Their class names, by id.
        init_from: A head to start from (stage 1, a student, SED's); one without DEA starts DEA at its identity.
        file: YAML file of settings.
        sets: `key=value` texts.
        work: Folder for embeddings and checkpoints, which a stopped training resumes from; None: beside `out`.
        backend: "ray" or "inline".
    """

    out: Path
    images: Path | None = None
    labels: Path | None = None
    classes: Path | None = None
    init_from: Path | None = None
    file: Path | None = None
    sets: tuple[str, ...] = ()
    work: Path | None = None
    backend: Backend = "inline"


def run_pretrain(request: PretrainRequest, progress: RunProgress | None = None) -> dict[str, Any]:
    """Train stage 1 and write its weights as float16; give the number of steps and the last loss.

    Raises:
        ValueError: Settings or data are wrong.
        StageFailed: Images could not be embedded.
        DataFault: Too many of them are unreadable.
    """
    from models.weights.files import read_weights, write_weights

    config = pretrain_config(request)
    work = request.out.with_name(request.out.stem + ".pretrain") if request.work is None else request.work
    layout = RunLayout(work.absolute())
    shown = RunProgress(layout.events) if progress is None else progress
    refuse_links_out(layout.root, OWN_NAMES)
    with RunLock(layout.lock):
        vocabulary = _vocabulary(config)
        vocabulary.save(layout.vocabulary)
        source = open_source(config.source, vocabulary)
        if not source.labelled:
            raise ValueError("stage 1 needs labels; name the folder of index PNGs with --labels")
        plan = make_plan((ref for ref in source.refs() if _has_label(ref.label_digest, config)), config.shard_size)
        stage = _embed_stage(config, layout, plan)
        record = _train(config, layout, plan, vocabulary, stage, request.backend, shown)
        write_weights(read_weights(layout.student(0) / "model.safetensors"), request.out, half=True)
    return {"out": str(request.out), "images": plan.sample_count, **record.stats}


def pretrain_config(request: PretrainRequest) -> PretrainConfig:
    """Give the complete settings of a request; presets other than `tiny` get the paper's training.

    Raises:
        ValueError: An unknown name, a value that does not fit, or images without labels or classes.
    """
    own: dict[str, Any] = {}
    if request.images is not None:
        if request.labels is None or request.classes is None:
            raise ValueError("--images needs --labels (index PNGs) and --classes (names by id) beside it")
        own["source"] = {"kind": "folder", "images": str(request.images), "labels": str(request.labels)}
    if request.classes is not None:
        own["vocabulary"] = {"classes": load_class_names(request.classes), "seen": None}
    if request.init_from is not None:
        own["model"] = {"stage1_weights": str(_init_from(request.init_from))}
    asked = laid_over(own, read_settings(request.file) if request.file is not None else {})
    base = PretrainConfig(train=TINY_STAGE1 if asks_for_tiny(asked, request.sets) else PAPER_STAGE1)
    where = "--set" if request.file is None else f"{request.file} or --set"
    config = validated(
        PretrainConfig, with_sets(laid_over(base.model_dump(mode="json"), asked), request.sets), where=where
    )
    if config.train.start != "teacher":
        raise ValueError(
            f"{where}: train.start = {config.train.start!r} is about the students of rounds; stage 1 starts from the "
            "weights that --init-from names"
        )
    require_group_fits(config.train, config.group)
    return config.model_copy(update={"model": config.model.with_whole_paths()})


def _train(
    config: PretrainConfig,
    layout: RunLayout,
    plan: Plan,
    vocabulary: Vocabulary,
    stage: StagePlan,
    backend: Backend,
    progress: RunProgress,
) -> Record:
    from contextlib import ExitStack

    from jobs.cluster.connection import connection

    with ExitStack() as stack:
        if backend == "ray":
            stack.enter_context(connection())
        if config.model.dea:
            tasks = [task for task in stage.tasks if why_stale(task) is not None]
            with progress.stages(0) as on_event:
                run_chain(
                    [StagePlan(stage.name, stage.worker, tasks, stage.resources)], backend=backend, on_event=on_event
                )
            stage_records(stage.tasks)
            for found in left_out([stage]):
                check_quarantine(found, config.quarantine)
                for line in lines_of([found]):
                    progress.say(line)
        task = _train_task(config, layout, plan, vocabulary, stage)
        if why_stale(task) is None:
            remove_left_checkpoints(task)
            progress.say("stage 1: nothing to do, its weights are there and verified")
            return read_record(task.record)
        progress.say(f"stage 1: {config.train.steps} steps on {plan.sample_count} images …")
        job = TrainJob(
            train=_training(config), model=_model(config), vocabulary=layout.vocabulary, source=config.source
        )
        return run_training(task, job, config.group, backend=backend, run=layout.root.resolve().name)


def _train_task(
    config: PretrainConfig, layout: RunLayout, plan: Plan, vocabulary: Vocabulary, stage: StagePlan
) -> ShardTask:
    return ShardTask(
        stage="pretrain",
        shard="000000",
        samples=plan.samples,
        output=layout.student(0) / "model.safetensors",
        inputs={f"embedding/{task.output.stem}": task.output for task in stage.tasks} if config.model.dea else {},
        fingerprint={
            "code": CODE_VERSION,
            "model": stseg_fingerprint(_model(config)),
            "start": weights_checksum(config.model.stage1_weights),
            "vocabulary": vocabulary.digest,
            "train": _training(config).fingerprint(),
        },
    )


def _embed_stage(config: PretrainConfig, layout: RunLayout, plan: Plan) -> StagePlan:
    settings = EmbedConfig(model=_model(config), source=config.source, vocabulary=layout.vocabulary)
    fingerprint = embed_fingerprint(settings)
    tasks = [
        ShardTask(
            stage="embed-source",
            shard=shard.name,
            samples=shard.samples,
            output=layout.embedding("source", shard.name),
            fingerprint=fingerprint,
            source=config.source,
        )
        for shard in plan.shards
    ]
    return StagePlan("embed-source", partial(EmbedWorker, settings), tasks, config.embed)


def _training(config: PretrainConfig) -> TrainConfig:
    return config.train.model_copy(update={"seed": 1_000 * config.seed + config.train.seed})


def _model(config: PretrainConfig) -> ModelConfig:
    return config.model.with_weights(config.model.stage1_weights, adds_dea=config.model.dea)


def _init_from(path: Path) -> Path:
    if not path.expanduser().is_file():
        raise ValueError(f"--init-from names {path}, which is not there")
    return path


def _vocabulary(config: PretrainConfig) -> Vocabulary:
    from models.presets import load_preset
    from models.stseg.text import prompt_templates

    names = config.vocabulary.classes
    lines = load_class_names(Path(names)) if isinstance(names, str) else list(names)
    templates = prompt_templates(load_preset(config.model.preset).templates)
    return Vocabulary.from_names(lines, seen=config.vocabulary.seen, templates=templates)


def _has_label(label_digest: str | None, config: PretrainConfig) -> bool:
    """A folder may hold images without a label; scenes all have one."""
    return isinstance(config.source, ScenesSourceConfig) or label_digest is not None
