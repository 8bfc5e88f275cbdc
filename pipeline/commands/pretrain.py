"""`pretrain`: train DEA and decoder on labelled images (stage 1), for the shipped weights as for a user's own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import NonNegativeInt, PositiveInt

from jobs.executor import Backend
from jobs.inference.model import ModelSettings
from jobs.resources import Resources
from jobs.run import DataSettings, Section, student_weights
from jobs.training.config import GroupResources, TrainConfig, require_group_fits
from pipeline.commands.outputs import require_free
from pipeline.config import (
    QuarantineSettings,
    ResourceSettings,
    RunConfig,
    VocabularySettings,
    laid_over,
    selects_tiny,
)
from pipeline.progress import RunProgress
from pipeline.report.left_out import left_out, lines_of, summary_of, turned_labels, turned_lines
from pipeline.rounds.driver import Driver, RoundRequest
from pipeline.rounds.rounds import tidy
from pipeline.run.inputs import input_facts, survey_inputs
from pipeline.run.run import OpenRun
from pipeline.settings import read_settings, validated, with_sets
from pipeline.tasks.recipe import STAGE1, all_tasks
from pipeline.tasks.states import task_states
from shards.data.class_lists import load_class_names
from shards.data.input_facts import InputFacts
from shards.data.label_rules import LabelRules
from shards.data.plan import Plan
from shards.data.plan_writing import make_plan
from shards.data.sources import ScenesSourceConfig, SourceConfig, open_source
from shards.data.vocabulary import Vocabulary
from shards.files.locks import RunLock
from shards.files.untrusted import refuse_links_out
from shards.formats.layout import OWN_NAMES, RunLayout, record_path
from shards.formats.records import read_record

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

CAUTION: Final = (
    "the CLIP and SAM of preset tiny know only the scenes that this package generates; for photographs see "
    "stseg-pipeline doctor --preset base"
)


class LabelSettings(Section):
    """How label files are found and read; the name is that of a run's settings.

    Attributes:
        labels: The rules, unless the source has rules of its own.
    """

    labels: LabelRules = LabelRules()


class PretrainConfig(Section):
    """The settings of stage 1; the defaults make the shipped weights, of preset `tiny`.

    Attributes:
        model: Preset and DEA; `stage1_weights`: the weights to start from.
        data: How the labels are found and read.
        source: Labelled images.
        vocabulary: The classes; only seen ones are trained on.
        shard_size: Images per shard of embeddings.
        train: The training.
        embed: The resources of an embedding worker.
        group: The training group.
        quarantine: The budget for unreadable images.
        seed: Seed of the training, together with `train.seed`.
    """

    model: ModelSettings = ModelSettings()
    data: LabelSettings = LabelSettings()
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
    """A request to train stage 1.

    Attributes:
        out: The weights to write.
        images: Labelled images; None: those of the settings, by default the scenes.
        labels: Their index PNGs.
        classes: Their class names, by id.
        init_from: A head to start from (stage 1, a student, SED's); one without DEA starts DEA at its identity.
        file: YAML file of settings.
        sets: `key=value` texts.
        work: Folder for embeddings and checkpoints, which a stopped training resumes from; None: next to `out`.
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
    """Train stage 1 and write its weights as float16; return steps, loss, and what `summary_of` says was left out.

    Raises:
        ValueError: Settings or data are wrong, or a name is taken by files of others.
        StageFailed: Images could not be embedded.
        DataFault: Too many of them are unreadable, or too many labels unusable.
    """
    from models.weights.files import read_weights, write_weights

    config = pretrain_config(request)
    work = request.out.with_name(request.out.stem + ".pretrain") if request.work is None else request.work
    layout = RunLayout(work.absolute())
    shown = RunProgress(layout.events) if progress is None else progress
    refuse_links_out(layout.root, OWN_NAMES)
    _require_own_work(layout)
    # What an earlier call of the same command wrote, perhaps with other settings, is written anew.
    require_free(request.out, lambda: record_path(layout.round(0) / "student" / "model.safetensors").is_file())
    foreign = config.model.preset == "tiny" and not isinstance(config.source, ScenesSourceConfig)
    if foreign and config.model.clip_weights is None:
        shown.say(f"caution: {CAUTION}")
    with RunLock(layout.lock):
        run, inputs = _open(config, layout)
        images = run.source_plan.sample_count if run.source_plan is not None else 0
        states = task_states(all_tasks(run, 0, STAGE1))
        tidy(states)
        if all(state.state == "done" for state in states):
            shown.say("stage 1: nothing to do, its weights are done")
        else:
            for line in inputs.told:
                shown.say(line)
            shown.say(f"stage 1: {config.train.steps} steps on {images} images …")
            with Driver(run, RoundRequest(rounds=0, backend=request.backend), shown).connected() as driver:
                driver.rounds(STAGE1, (0,))
        tasks = all_tasks(run, 0, STAGE1)
        lines = [*lines_of(left_out(tasks)), *turned_lines(turned_labels(tasks))]
        for line in lines:
            shown.say(line)
        weights = student_weights(run, 0)
        write_weights(read_weights(weights), request.out, half=True)
    stats = read_record(record_path(weights)).stats
    return {"out": str(request.out), "images": images, **stats, **summary_of(tasks)}


def _require_own_work(layout: RunLayout) -> None:
    """Raise where the work folder is a run, or holds what this command did not put there."""
    if layout.config.is_file():
        raise ValueError(f"{layout.root} is a run, whose files would be replaced; name another folder with --work")
    names = sorted(path.name for path in layout.root.iterdir()) if layout.root.is_dir() else []
    foreign = [name for name in names if name not in OWN_NAMES and not name.startswith(("run.lock", ".tmp"))]
    if not foreign and layout.vocabulary.is_file():
        try:
            Vocabulary.load(layout.vocabulary)
        except ValueError:
            foreign = [layout.vocabulary.name]
    if foreign:
        raise ValueError(f"{layout.root} holds {foreign[0]} and is no work folder of pretrain; name one with --work")


def pretrain_config(request: PretrainRequest) -> PretrainConfig:
    """Return the complete settings of a request; presets other than `tiny` get the paper's training.

    Raises:
        ValueError: An unknown name, a value that does not fit, or images without labels or classes.
    """
    own: dict[str, Any] = {}
    if request.images is not None:
        if request.labels is None or request.classes is None:
            raise ValueError("--images also needs --labels (index PNGs) and --classes (names by id)")
        own["source"] = {"kind": "folder", "images": str(request.images), "labels": str(request.labels)}
    if request.classes is not None:
        own["vocabulary"] = {"classes": load_class_names(request.classes), "seen": None}
    if request.init_from is not None:
        # Checked here, before the images are hashed, and with a message that names the option.
        if not request.init_from.expanduser().is_file():
            raise ValueError(f"--init-from names {request.init_from}, which does not exist")
        own["model"] = {"stage1_weights": str(request.init_from)}
    requested = laid_over(own, read_settings(request.file) if request.file is not None else {})
    base = PretrainConfig(train=TINY_STAGE1 if selects_tiny(requested, request.sets) else PAPER_STAGE1)
    where = "--set" if request.file is None else f"{request.file} or --set"
    config = validated(
        PretrainConfig, with_sets(laid_over(base.model_dump(mode="json"), requested), request.sets), where=where
    )
    if config.train.start != "teacher":
        raise ValueError(
            f"{where}: train.start = {config.train.start!r} is about the students of rounds; stage 1 starts from the "
            "weights that --init-from names"
        )
    require_group_fits(config.train, config.group)
    return config.model_copy(update={"model": config.model.with_whole_paths()})


def _open(config: PretrainConfig, layout: RunLayout) -> tuple[OpenRun, InputFacts]:
    """Return stage 1 as a run with a labelled source and an empty target, and what was found of its images."""
    # As a run, stage 1 is a recipe of two stages for the same driver: it resumes, quarantines and uses Ray as rounds
    # do.
    vocabulary = _in_earlier_colours(_vocabulary(config), layout)
    vocabulary.save(layout.vocabulary)
    data = DataSettings(source=config.source, test=None, validation=None, labels=config.data.labels)
    source = open_source(data.with_rules().of("source"), vocabulary)
    if not source.labelled:
        raise ValueError("stage 1 needs labels; name the folder of index PNGs with --labels")
    settings = RunConfig(
        seed=config.seed,
        shard_size=config.shard_size,
        model=config.model,
        data=data,
        train=config.train,
        quarantine=config.quarantine,
        resources=ResourceSettings(embed=config.embed, train=config.group),
    )
    surveyed = survey_inputs(data.with_rules(), vocabulary)  # before the plan, which hashes every file
    # A folder may hold images without a label; scenes all have one, which is drawn and has no digest.
    drawn = isinstance(config.source, ScenesSourceConfig)
    plan = make_plan((ref for ref in source.refs() if drawn or ref.label_digest is not None), config.shard_size)
    return OpenRun(layout, settings, vocabulary, Plan(config.shard_size, ()), plan), input_facts(surveyed, {})


def _in_earlier_colours(vocabulary: Vocabulary, layout: RunLayout) -> Vocabulary:
    """Return the vocabulary that the folder has, where only colours differ: stage 1 then resumes, not begins again."""
    try:
        earlier = Vocabulary.load(layout.vocabulary)
    except (OSError, ValueError):
        return vocabulary
    if len(earlier) != len(vocabulary):
        return vocabulary
    recoloured = vocabulary.with_colours([entry.colour for entry in earlier.classes])
    return recoloured if recoloured == earlier else vocabulary


def _vocabulary(config: PretrainConfig) -> Vocabulary:
    from models.presets import load_preset
    from models.stseg.templates import prompt_templates

    names = config.vocabulary.classes
    lines = load_class_names(Path(names)) if isinstance(names, str) else list(names)
    templates = prompt_templates(load_preset(config.model.preset).templates)
    return Vocabulary.from_names(
        lines, seen=config.vocabulary.seen, templates=templates, prompt_names=config.vocabulary.prompt_names
    )
