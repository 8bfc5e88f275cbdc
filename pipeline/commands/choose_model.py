"""Models outside the rounds: choose a model with its classes, measure one on a labelled split."""

import logging
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from jobs.commit import why_stale
from jobs.executor import run_chain
from jobs.inference.model import ModelConfig, model_of
from jobs.inference.top_scores import Probabilities
from jobs.run import best_weights, student_weights
from jobs.stage import ShardTask, StagePlan
from jobs.stages import embed, evaluate
from jobs.stages.evaluated_samples import Split
from jobs.stages.start import CAUTION, caution_of, start_weights, uses_shipped
from models.evaluation.alarms import AlarmConfig
from models.refinement.settings import RefinementConfig
from pipeline.config import RunConfig, resolve_config
from pipeline.errors import DataFault
from pipeline.report.left_out import check_quarantine, left_out, summary_of
from pipeline.run.lock import holding
from pipeline.run.next_command import require_rounds
from pipeline.run.run import OpenRun, read_run
from pipeline.settings import read_settings
from pipeline.tasks.recipe import begun_rounds, plans_of
from shards.data.class_lists import load_class_names
from shards.data.vocabulary import Vocabulary
from shards.formats.records import read_json
from shards.storage.store import as_argument, as_shown

logger = logging.getLogger(__name__)


def evaluate_round(root: Path, number: int, split: str) -> dict[str, Any]:
    """Measure the model of a round on a labelled split; a valid result is read, not made again.

    Returns:
        The scores in per cent, split, images and seed, and what `summary_of` says was left out.

    Raises:
        DataFault: There is no run, the round has no model yet, or too many images or labels are faulty.
        LockHeld: It has to be measured, and another command works on the run.
        ValueError: There is no such split, or it has no labels.
    """
    # The result is the very output that a round makes, so it is made under the run's lock. Reading one needs no lock:
    # who only wants to see a score must not wait for a training to end.
    if split not in get_args(Split):
        raise ValueError(f"--split is {split!r}; expected {' or '.join(get_args(Split))}")
    run = read_run(root)
    require_rounds(run)
    plans = _evaluation(run, number, split)
    result = _current_result(plans[-1].tasks[0])
    if result is None:
        with holding(root):
            run = read_run(root)  # once more: it may have changed before the lock
            plans = _evaluation(run, number, split)
            for plan in plans:
                stale = [task for task in plan.tasks if why_stale(task) is not None]
                log = partial(logger.debug, "%s")
                run_chain([replace(plan, tasks=stale, after=None)], backend="inline", on_event=log)
            result = read_json(plans[-1].tasks[0].output)
    assert result is not None
    for found in left_out(plans[-1].tasks):
        check_quarantine(found, run.config.quarantine.allowed(found.total))
    return {"round": number, **result, **summary_of(plans[-1].tasks)}


def _evaluation(run: OpenRun, number: int, split: str) -> list[StagePlan]:
    """Return the plans that measure the model of a round, the measurement last."""
    _require_trained(run, number)
    if split == "test":
        task = next((one for one in evaluate.tasks(run, number) if one.stage == "evaluate"), None)
    else:
        task = evaluate.whole_validation_task(run, number)
    if task is None:
        raise ValueError(f"the run has no {split} split; name labelled images in data.{split}")
    embedded = [*embed.tasks(run, 0), *evaluate.embed_tasks(run, 0)]
    embedded = [one for one in embedded if one.output in task.inputs.values()]
    return [*plans_of(evaluate.EMBED_STAGE, run, embedded), *plans_of(evaluate.STAGE, run, [task])]


def _current_result(task: ShardTask) -> dict[str, Any] | None:
    """Read a result whose record is valid; return None if there is none, or it is being made again."""
    # Checked before and after: a command that makes it again meanwhile removes the record first.
    if why_stale(task) is not None:
        return None
    result = read_json(task.output)
    return result if why_stale(task) is None else None


@dataclass(frozen=True)
class ChosenModel:
    """A model with the classes to find.

    Attributes:
        model: Its sizes and weights.
        vocabulary: The classes, with the preset's templates.
        probabilities: The function of its logits, which follows from the loss of the settings (train.loss.kind).
        text_cache: Folder for text embeddings; None: they are not stored.
        alarms: When its labels are no better than guesses.
        caution: What is known to be wrong with its labels of most images; None: nothing.
        refinement: How SAM refines its predictions, where that is wanted.
        top_k: Classes kept per cell for that.
    """

    model: ModelConfig
    vocabulary: Vocabulary
    probabilities: Probabilities = "softmax"
    text_cache: Path | None = None
    alarms: AlarmConfig = field(default_factory=AlarmConfig)
    caution: str | None = None
    refinement: RefinementConfig = field(default_factory=RefinementConfig)
    top_k: int = 4


@dataclass(frozen=True)
class ModelRequest:
    """The choice of a model and of its classes.

    Attributes:
        run: Use the best model of this run; None: the weights that the settings name, or the shipped ones.
        weights: The head's weights, instead of the run's model or the settings' stage 1.
        classes: Names separated by commas.
        classes_file: A file of names, which may have synonyms; without either, the run's classes are used.
        file: YAML file of settings.
        sets: `key=value` texts.
    """

    run: Path | None = None
    weights: Path | None = None
    classes: str | None = None
    classes_file: Path | None = None
    file: Path | None = None
    sets: tuple[str, ...] = ()


def choose_model(request: ModelRequest) -> ChosenModel:
    """Return the model and classes of a request.

    Raises:
        DataFault: There is no such run, or it has no model.
        ValueError: No class is named, a setting is wrong, or weights are missing.
    """
    run = None if request.run is None else read_run(request.run, request.file, request.sets)
    config = _config(request) if run is None else run.config
    settings = config.model
    # Scores of windows are merged as probabilities, and a network trained with the sigmoid loss has no softmax.
    probabilities: Probabilities = "softmax" if config.train.loss.kind == "eq6" else "sigmoid"
    if request.weights is not None:
        settings = settings.model_copy(update={"stage1_weights": request.weights})
    vocabulary = _vocabulary(run, settings.preset, request)
    text_cache = None if run is None else run.layout.text_embeddings
    if run is not None and request.weights is None:
        # The best model up to the newest round, not the newest student: that one may have regressed.
        require_rounds(run)
        newest = _newest_round(run)
        logger.info("using the best model up to round %d", newest)
        model, caution = model_of(run, best_weights(run, newest)), caution_of(settings, run.data)
    else:
        model = settings.with_weights(start_weights(settings, dea=settings.dea))
        caution = CAUTION if uses_shipped(settings) else None
    return ChosenModel(
        model=model,
        vocabulary=vocabulary,
        probabilities=probabilities,
        text_cache=text_cache,
        alarms=config.alarms,
        caution=caution,
        refinement=config.refine.refinement,
        top_k=config.teacher.top_k,
    )


def _config(request: ModelRequest) -> RunConfig:
    requested = {} if request.file is None else read_settings(request.file)
    where = "--set" if request.file is None else f"{request.file} or --set"
    return resolve_config(requested, request.sets, where=where)


def _vocabulary(run: OpenRun | None, preset: str, request: ModelRequest) -> Vocabulary:
    from models.presets import load_preset
    from models.stseg.templates import prompt_templates

    if request.classes is not None and request.classes_file is not None:
        raise ValueError("give --classes or --classes-file, not both")
    if request.classes_file is not None:
        names = load_class_names(request.classes_file)
    elif request.classes is not None:
        names = [name.strip() for name in request.classes.split(",") if name.strip()]
    elif run is not None:
        return run.vocabulary
    else:
        raise ValueError(
            "name the classes: --classes 'red ring, grass, water', --classes-file names.txt, or a run with --run DIR"
        )
    return Vocabulary.from_names(names, templates=prompt_templates(load_preset(preset).templates))


def _newest_round(run: OpenRun) -> int:
    decided = [number for number in begun_rounds(run.layout) if best_weights(run, number).is_file()]
    if not decided:
        root = run.layout.root
        raise DataFault(f"{as_shown(root)} has no model yet; run: stseg-pipeline round --run {as_argument(root)}")
    return decided[-1]


def _require_trained(run: OpenRun, number: int) -> None:
    weights = student_weights(run, number)
    if not weights.is_file():
        root = run.layout.root
        raise DataFault(
            f"{as_shown(root)} has no model of round {number} yet; run: stseg-pipeline round --n {number} "
            f"--run {as_argument(root)}"
        )
