"""Evaluate: the scores of a model on labelled images."""

# K class, H W image

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt

from jobs.artifacts.embeddings import StoredEmbeddings
from jobs.inference.batching import load_images
from jobs.inference.model import ModelConfig, model_of, stseg_fingerprint, weights_checksum
from jobs.inference.refiner import Refiner, Refining, load_refiner
from jobs.inference.top_scores import Probabilities
from jobs.inference.witness import absent_names
from jobs.run import WHOLE_ROUND, Run, RunRef, Section, baseline_weights, label_fingerprint, student_weights
from jobs.stage import Done, ShardTask, Stage
from jobs.stages import embed, refine, teacher
from jobs.stages.evaluated_samples import Split, labelled_samples, same_images, shards_with, split_name
from jobs.stages.promote import promotion_measure
from jobs.stages.start import has_baseline
from jobs.stages.teacher import probabilities_of
from models.evaluation.metrics import confusion, scores
from models.presets import load_preset
from shards.data.label_reader import LabelReader
from shards.data.plan_writing import make_plan
from shards.data.samples import Samples
from shards.data.sources import SampleRef, ScenesSourceConfig, Source, open_source
from shards.data.vocabulary import Vocabulary
from shards.files.atomic import write_bytes_atomic
from shards.formats.records import Drop, Json

if TYPE_CHECKING:
    from jobs.inference.segmenter import Segmenter

VERSION: Final = 3  # goes up when the same model and images give other scores
NO_LABEL: Final = "no_label"
INFERENCE: Final = ("flip", "refine", "present")  # what may be done at inference that the paper does not do
SCORES: Final = ("miou", "miou_seen", "miou_unseen", "hiou")  # what reports compare


class Settings(Section):
    """How a round's student is evaluated. Images are drawn with the run's seed, the same in every round.

    Attributes:
        windows: Windows per side of labelled images; 1 is the whole image, 2 is SED's sliding window, at five times the
            work, and more for SAM, whose stored embeddings of whole images are then of no use.
        flip: Merge the prediction of each image with that of its mirror image, at twice the work; SAM then embeds the
            mirrored ones in every evaluation, as only embeddings of images as they are are stored.
        refine: Run SAM's mask decoder on the prediction, by the settings of `refine.refinement`. The paper uses it in
            training only.
        present: Give no pixel to names of which the witness of presence (`teacher.presence.witness=clip`) finds nothing
            in the target. What a witness strikes is in no pseudo-label, but a student may still say it.
        holdout_images: Images of `data.validation`, where these decide on promotion.
        target_images: Images of the target, for the waterfall, the alarms and promotion without labels.
    """

    windows: PositiveInt = 1
    flip: bool = False
    refine: bool = False
    present: bool = False
    holdout_images: PositiveInt = 100
    target_images: PositiveInt = 100


@dataclass(frozen=True)
class Evaluation:
    """A loaded model and the images that it is measured on.

    Attributes:
        model: Computes its own embeddings, unless the task has them or it needs none.
        source: Images and labels.
        vocabulary: The classes.
        windows: Windows per side.
        probabilities: What is averaged over windows.
        facts: What the result holds next to the scores: split, seed, preset, weights, ...
        side: Side of the model's input, pixels.
        batch_size: Views per batch; halved on OOM.
        refiner: Refines each prediction with SAM; None: they stay as they are.
    """

    model: "Segmenter"
    source: Source
    vocabulary: Vocabulary
    windows: int
    probabilities: Probabilities
    facts: dict[str, Any]
    side: int
    batch_size: int = 8
    refiner: Refiner | None = None


def tasks(run: Run, round: int) -> list[ShardTask]:
    """Plan the evaluation of a round's model on test split and hold-out, and of the plain baseline in round 0.

    Raises:
        ValueError: A split has no labels.
    """
    folder, weights = run.layout.round(round), student_weights(run, round)
    planned = []
    if run.data.test is not None:
        planned.append(_task(run, round, "evaluate", "test", weights, folder / "evaluate.json"))
        if round == 0 and has_baseline(run):
            output = folder / "baseline" / "evaluate.json"
            planned.append(_task(run, 0, "evaluate-baseline", "test", baseline_weights(run), output))
    if promotion_measure(run) == "holdout":
        planned.append(_task(run, round, "evaluate-holdout", "validation", weights, run.layout.holdout(round)))
    return planned


def whole_validation_task(run: Run, round: int) -> ShardTask:
    """Plan the evaluation on the whole validation split; rounds evaluate only the hold-out, a part of it."""
    output = run.layout.round(round) / "evaluate-validation.json"
    return _task(run, round, "evaluate-validation", "validation", student_weights(run, round), output)


def embed_tasks(run: Run, round: int) -> list[ShardTask]:
    """Plan the embedding of the labelled images that every round is evaluated on; none without SAM.

    Images that the target holds, too, are embedded with it.

    Raises:
        ValueError: A split has no labels.
    """
    if round > 0 or run.outputs_only or not model_of(run).dea or run.section(Settings).windows > 1:
        return []
    planned = [] if run.data.test is None else _embeddings(run, "test")[0]
    if promotion_measure(run) == "holdout":
        planned += _embeddings(run, "validation")[0]
    return planned


def _embeddings(run: Run, split: Split) -> tuple[list[ShardTask], dict[str, Path]]:
    """Return the tasks that embed what the target does not hold of a split, and the stores of all of it, by role."""
    samples = labelled_samples(run, split, run.section(Settings).holdout_images if split == "validation" else None)
    shared: tuple[str, ...] = ()
    # `init --labels` measures on the target itself: its images once more would double the dearest stage.
    if same_images(run.data.of(split), run.data.target):
        shared, samples = shards_with(run.plan, samples)
    plan = make_plan(samples, run.config.shard_size) if samples else None
    tasks = [] if plan is None else embed.dataset_tasks(run, split, plan)
    # The roles are those of runs that embedded such a split twice: the bytes are the same, so their scores stay valid.
    more = "more-" if shared else ""
    stores = {f"embedding/{split}-{name}": run.layout.embedding("target", name) for name in shared}
    return tasks, stores | {f"embedding/{more}{task.output.stem}": task.output for task in tasks}


def _task(run: Run, round: int, part: str, split: Split, weights: Path, output: Path) -> ShardTask:
    inputs = {"weights": weights}
    if run.section(Settings).present:
        if run.section(teacher.Settings).presence.witness != "clip":
            raise ValueError("evaluate.present needs the witness that says so; --set teacher.presence.witness=clip")
        inputs["shares"] = run.layout.presence
    if _stored(run, part) and not run.outputs_only:
        inputs |= _embeddings(run, split)[1]
    count = run.section(Settings).holdout_images if part == "evaluate-holdout" else None
    samples = Samples() if run.outputs_only else Samples.of(labelled_samples(run, split, count))
    return ShardTask(
        stage=part,
        round=round,
        shard=WHOLE_ROUND,
        samples=samples,
        output=output,
        inputs=inputs,
        source=run.data.of(split),
    )


def _stored(run: Run | RunRef, part: str) -> bool:
    """Return whether the images' SAM embeddings are stored, so that no encoder is loaded."""
    # The whole validation split is evaluated once, on request; the baseline has no DEA, so that only SAM's decoder
    # wants them; windows need embeddings of their own.
    return (
        part != "evaluate-validation"
        and (part != "evaluate-baseline" or run.section(Settings).refine)
        and model_of(run).dea
        and (run.section(Settings).windows == 1)
    )


def fingerprint(run: RunRef) -> dict[str, Json]:
    """Return what changes the scores, except the head's weights, which are an input of the task ("weights")."""
    windows = run.section(Settings).windows
    chosen: dict[str, Json] = {"flip": True} if run.section(Settings).flip else {}
    if run.section(Settings).present:
        chosen["present"] = True
    if run.section(Settings).refine:
        chosen["refine"] = _refining(run).fingerprint(_model(run, None))
    return {
        "code": VERSION,
        "model": stseg_fingerprint(_model(run, None)),
        "vocabulary": run.vocabulary.digest,
        "split": split_name(run.data.of(_split(run))),
        "seed": run.config.seed,
        "windows": windows,
        "probabilities": probabilities_of(run) if windows > 1 else None,
        **chosen,
        **label_fingerprint(run, _split(run)),
    }


def _refining(run: RunRef) -> Refining:
    """Return how predictions are refined: as the teacher's."""
    refinement, top_k = run.section(refine.Settings).refinement, run.section(teacher.Settings).top_k
    return Refining(refinement, top_k, probabilities_of(run))


def load(run: RunRef) -> Evaluation:
    """Load the model of the part and open its images."""
    from jobs.inference.segmenter import MirrorSegmenter, PresentSegmenter, StsegSegmenter, worker_device

    weights = baseline_weights(run) if run.part == "evaluate-baseline" else student_weights(run, run.round)
    config, source = _model(run, weights), run.data.of(_split(run))
    settings = run.section(Settings)
    facts = {
        "split": split_name(source),
        "seed": source.seed if isinstance(source, ScenesSourceConfig) else run.config.seed,
        "preset": config.preset,
        "dea": config.dea,
        "windows": settings.windows,
        "weights": weights_checksum(weights),
        **{name: True for name in INFERENCE if getattr(settings, name)},
    }
    network = StsegSegmenter(
        config,
        run.vocabulary,
        with_encoder=not _stored(run, run.part) or settings.flip,
        text_cache=run.layout.text_embeddings,
    )
    refiner = (
        load_refiner(config, _refining(run), encoder=network.encoder, device=worker_device())
        if settings.refine
        else None
    )
    model: Segmenter = MirrorSegmenter(network) if settings.flip else network
    if settings.present:
        model = PresentSegmenter(model, absent_names(run.layout.presence, run.vocabulary))
    return Evaluation(
        model=model,
        source=open_source(source, run.vocabulary),
        vocabulary=run.vocabulary,
        windows=settings.windows,
        probabilities=probabilities_of(run),
        facts=facts,
        side=load_preset(config.preset).image_size,
        refiner=refiner,
    )


def _split(run: RunRef) -> Split:
    return "validation" if run.part in ("evaluate-holdout", "evaluate-validation") else "test"


def _model(run: RunRef, weights: Path | None) -> ModelConfig:
    return model_of(run, weights, dea=False if run.part == "evaluate-baseline" else None)


def work(evaluation: Evaluation, task: ShardTask) -> Done:
    """Score a model on the task's samples and write the result as JSON.

    Logits are resized to each image's size (bilinear); the highest one is the prediction, as in `predict`. Images that
    are unreadable, or have no label or an unusable one, are dropped and named in the record.

    Args:
        evaluation: The model and its images.
        task: The samples; its output is a `.json`. Inputs "embedding/…" are the stored SAM embeddings of its images.

    Raises:
        OutOfMemory: Not even a single view fits.
    """
    from jobs.inference.labeller import Labeller

    vocabulary = evaluation.vocabulary
    drops: list[Drop] = []
    labelled = _Labelled(task.samples, evaluation.source, drops)
    stores = [path for role, path in sorted(task.inputs.items()) if role.startswith("embedding/")]
    labeller = Labeller(
        evaluation.model,
        evaluation.side,
        windows=evaluation.windows,
        probabilities=evaluation.probabilities,
        batch_size=evaluation.batch_size,
        refiner=evaluation.refiner,
    )
    stored = StoredEmbeddings(stores).__getitem__ if stores else None
    # One confusion matrix over all images: mIoU is not the mean of the images' scores.
    matrix_KK = np.zeros((len(vocabulary), len(vocabulary)), np.int64)
    images = 0
    for key, _, prediction in labeller.labels(labelled, stored):
        matrix_KK += confusion(labelled.labels.pop(key), prediction, len(vocabulary), vocabulary.ignore_index)
        images += 1
    facts = {"split": evaluation.facts["split"], "images": images, **evaluation.facts}
    result = {**facts, **named_scores(matrix_KK, vocabulary), "dropped": len(drops)}
    write_bytes_atomic(task.output, (json.dumps(result, indent=1, ensure_ascii=False) + "\n").encode())
    stats = {name: float(value) for name, value in result.items() if isinstance(value, int | float)}
    return Done(images, stats | labelled.read_label.stats, drops)


class _Labelled:
    """Iterates over the readable, labelled images; `labels` holds the labels of those not scored yet."""

    # The labeller reads ahead to fill its batches: labels wait here for the predictions.

    def __init__(self, samples: Iterable[SampleRef], source: Source, drops: list[Drop]) -> None:
        self.labels: dict[str, NDArray[np.int32]] = {}
        self.read_label = LabelReader(source, drops, without=NO_LABEL)
        self._samples = samples
        self._source = source
        self._drops = drops

    def __iter__(self) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        for loaded in load_images(self._samples, self._source, self._drops):
            label = self.read_label(loaded.ref, loaded.frame)
            if label is not None:
                self.labels[loaded.ref.key] = label
                yield loaded.ref.key, loaded.image


def named_scores(matrix_KK: NDArray[np.int64], vocabulary: Vocabulary) -> dict[str, Any]:
    """Return a confusion matrix's scores in per cent, None where there is nothing to average; IoU by class name."""
    found: dict[str, Any] = dict(scores(matrix_KK, vocabulary.seen_ids, vocabulary.unseen_ids))
    found["iou"] = dict(zip(vocabulary.names, found["iou"], strict=True))
    return found


STAGE: Final = Stage("evaluate", tasks, fingerprint, load, work)
EMBED_STAGE: Final = Stage("embed-labelled", embed_tasks, embed.fingerprint, embed.load, embed.work, resources="embed")
