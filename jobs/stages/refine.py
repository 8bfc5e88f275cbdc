"""Refine: the teacher's scores, or given masks, and SAM's embeddings become pseudo-labels."""

# k kept classes, h w score grid, H W image

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt

from jobs.artifacts.embeddings import EmbeddingStore
from jobs.artifacts.labels import write_refined
from jobs.artifacts.shares import Shares, shares_among
from jobs.counting import count_images
from jobs.inference.batching import BatchLimit
from jobs.inference.model import load_sam_decoder, model_of, sam_fingerprint
from jobs.run import Run, RunRef, Section
from jobs.stage import Done, ShardTask, Stage, memory_hint
from jobs.stages.matching import is_matched
from jobs.stages.teacher import given_masks
from models.refinement.calibration import Calibration, calibration_table
from models.refinement.gate import ABSENT, AdaptiveThreshold, ClassGate, GateConfig
from models.refinement.settings import RefinementConfig
from models.refinement.shares import shifted
from models.refinement.types import RefinedLabel, RefineInput
from shards.data.label_reader import LabelSource
from shards.data.vocabulary import Vocabulary
from shards.files.untrusted import read_json_file
from shards.formats.arrays import array_names, read_arrays
from shards.formats.records import Json

if TYPE_CHECKING:
    from models.refinement.predict import PromptDecoder

VERSION: Final = 3  # goes up when the same scores, embeddings and settings give other labels


class Settings(Section):
    """How a teacher's prediction becomes a pseudo-label.

    Attributes:
        gate: Which classes of an image become prompts.
        refinement: Prompts, acceptance and overlaps.
        batch_size: Images per call of SAM's mask decoder; halved on OOM.
    """

    gate: GateConfig = GateConfig()
    refinement: RefinementConfig = RefinementConfig()
    batch_size: PositiveInt = 8


@dataclass(frozen=True)
class Refiner:
    """What refinement needs.

    Attributes:
        decoder: SAM's mask decoder.
        vocabulary: The classes.
        settings: Gate and refinement.
        limit: Images per call of the decoder, kept from shard to shard.
        masks: The masks to refine; None to refine the teacher's scores.
    """

    decoder: "PromptDecoder"
    vocabulary: Vocabulary
    settings: Settings
    limit: BatchLimit
    masks: LabelSource | None = None


def tasks(run: Run, round: int) -> list[ShardTask]:
    """Plan the shards of the target, refined from the teacher's scores."""
    if round == 0 or given_masks(run, round) is not None:
        return []
    gate = gate_inputs(run, round)

    def inputs(task: ShardTask) -> dict[str, Path]:
        mirror = mirror_inputs(run, task.shard)
        return {"teacher": run.layout.teacher(round, task.shard), **task.inputs, **gate, **mirror}

    return [task.model_copy(update={"inputs": inputs(task)}) for task in shard_tasks(run, round)]


def mirror_inputs(run: Run, shard: str, suffix: str = "") -> dict[str, Path]:
    """Return the embeddings of the mirrored images of a shard by role, where SAM is prompted on them."""
    mirrored = run.section(Settings).refinement.prompts.mirror
    return {f"mirror{suffix}": run.layout.mirror_embedding(shard)} if mirrored else {}


def gate_inputs(run: Run, round: int) -> dict[str, Path]:
    """Return what the gate reads of a round besides scores: its shares where it is matched, else its thresholds."""
    # As an input of every shard, either ends the overlap with the teacher: both need the scores of all shards.
    if is_matched(run, round):
        return {"shares": run.layout.shares(round)}
    return {"thresholds": run.layout.thresholds(round)} if is_adaptive(run) else {}


def shard_tasks(run: Run, round: int) -> list[ShardTask]:
    """Plan the shards of the target, without what their labels are refined from."""
    return [
        ShardTask(
            stage="refine",
            round=round,
            shard=shard.name,
            samples=shard.samples,
            output=run.layout.refine(round, shard.name),
            source=run.data.target,
            inputs={"embedding": run.layout.embedding("target", shard.name)},
        )
        for shard in run.plan.shards
    ]


def fingerprint(run: RunRef) -> dict[str, Json]:
    """Return what changes the refined labels: code, SAM, the number of classes, gate and refinement."""
    return {**sam_part(run), "gate": gate_fingerprint(run.section(Settings).gate)}


def sam_part(run: RunRef) -> dict[str, Json]:
    """Return what changes refined labels besides what they are refined from."""
    return {
        "code": VERSION,
        "sam": sam_fingerprint(model_of(run)),
        "classes": len(run.vocabulary),
        "refinement": run.section(Settings).refinement.facts(),
    }


def load(run: RunRef) -> Refiner:
    """Load SAM's mask decoder."""
    from jobs.inference.segmenter import worker_device

    settings = run.section(Settings)
    decoder = load_sam_decoder(model_of(run)).to(worker_device())
    return Refiner(decoder, run.vocabulary, settings, batch_limit(settings.batch_size))


def batch_limit(size: int) -> BatchLimit:
    """Return the number of images that refinement starts with."""
    return BatchLimit(size, of="images", hint=memory_hint("refine"))


def work(refiner: Refiner, task: ShardTask) -> Done:
    """Refine the labels of a shard's images.

    Writes what `jobs.artifacts.labels` describes. An image where nothing passes the gate is stored with every pixel
    ignored; the write stage leaves it out.

    Args:
        refiner: What refinement needs.
        task: Inputs "teacher" (scores) and "embedding" (SAM's embeddings and the images' sizes); "thresholds" where the
            gate's are adaptive; "shares" where the classes' shares are matched; "mirror" (embeddings of the mirror
            images) where SAM is prompted on them.

    Raises:
        OutOfMemory: Not even one image fits.
        ValueError: The teacher's scores are invalid or belong to other classes or images, or a file that the gate
            needs is missing or damaged.
    """
    shares = shares_among(task.inputs, refiner.vocabulary)
    gate = load_gate(refiner.settings.gate, refiner.vocabulary, task.inputs.get("thresholds"), shares)
    store = EmbeddingStore.open(task.inputs["embedding"])
    named = ("ids", "scores", "struck") if "struck" in array_names(task.inputs["teacher"]) else ("ids", "scores")
    scores, attrs = read_arrays(task.inputs["teacher"], names=named)
    # The teacher's images, not the task's: what it could not read has no scores.
    keys: list[str] = [str(key) for key in attrs["keys"]]  # type: ignore[union-attr]
    mirrored = EmbeddingStore.open(task.inputs["mirror"]) if "mirror" in task.inputs else None
    inputs = _scored_images(task, keys, scores, store, shares, mirrored)
    return refine_images(refiner, task, inputs, gate, store, str(attrs["teacher_weights"]))


def refine_images(
    refiner: Refiner,
    task: ShardTask,
    inputs: Iterable[tuple[str, RefineInput]],
    gate: ClassGate,
    store: EmbeddingStore,
    teacher_weights: str,
) -> Done:
    """Refine images, a batch at a time, and write their labels."""
    from models.refinement.refine import refine_batch

    keys: list[str] = []
    refined: list[RefinedLabel] = []

    def refine(some: Sequence[tuple[str, RefineInput]]) -> list[RefinedLabel]:
        ignore = refiner.vocabulary.ignore_index
        images = [one for _, one in some]
        return refine_batch(images, refiner.decoder, gate, refiner.settings.refinement, ignore_index=ignore)

    for batch, labels in refiner.limit.batches(inputs, refine):
        keys += [key for key, _ in batch]
        refined += labels
        count_images(len(batch))
    write_refined(
        task.output,
        keys,
        refined,
        [store.exif[store.rows[key]] for key in keys],
        ignore_index=refiner.vocabulary.ignore_index,
        teacher_weights=teacher_weights,
        fingerprint=task.fingerprint,
    )
    return Done(len(keys), refine_stats(refined, refiner.vocabulary), arrived=len(keys))


def _scored_images(
    task: ShardTask,
    keys: Sequence[str],
    scores: dict[str, NDArray[Any]],
    store: EmbeddingStore,
    shares: Shares | None,
    mirrored: EmbeddingStore | None,
) -> Iterator[tuple[str, RefineInput]]:
    for index, key in enumerate(keys):
        if key not in store.rows:
            raise ValueError(f"shard {task.shard} has teacher scores for {key}, but no embedding; redo the teacher")
        row = store.rows[key]
        best = (scores["ids"][index], scores["scores"][index])
        ids, probabilities = best if shares is None else shifted(*best, shares.bias_K)
        yield (
            key,
            RefineInput(
                ids=ids,
                scores=probabilities,
                embedding=store.embedding(row),
                valid_hw=store.valid_hw(row),
                original_hw=store.sizes_hw[row],
                struck=scores["struck"][index] if "struck" in scores else None,
                mirrored=None if mirrored is None else mirrored.embedding(mirrored.rows[key]),
            ),
        )


def refine_stats(refined: Sequence[RefinedLabel], vocabulary: Vocabulary) -> dict[str, float]:
    """Count the outcomes in a shard.

    Returns:
        `samples`, `samples_uncovered`, `pixels`, `pixels_covered`, `pixels_gated`; `masks_accepted` and
        `masks_<reason>`; `classes_accepted` and `classes_<reason>`, counted once per image; per class id i,
        `class_<i>_pixels` and `class_<i>_masks_<reason>`. All of these add up over shards. `coverage` does not: it is
        the share of this shard's pixels that are labelled, in per cent.
    """
    counts: Counter[str] = Counter(samples=len(refined), samples_uncovered=0, masks_accepted=0, classes_accepted=0)
    for one in refined:
        ids, pixels = np.unique(one.label[one.label != vocabulary.ignore_index], return_counts=True)
        counts["samples_uncovered"] += int(not len(ids))
        counts["pixels"] += one.label.size
        counts["pixels_covered"] += int(pixels.sum())
        counts["pixels_gated"] += int((one.gated != vocabulary.ignore_index).sum())
        counts.update({f"class_{i}_pixels": int(n) for i, n in zip(ids.tolist(), pixels.tolist(), strict=True)})
        counts.update({f"masks_{reason}": number for reason, number in one.reason_counts.items()})
        counts.update(f"class_{fact.class_id}_masks_{fact.reason}" for fact in one.masks)
        counts.update({f"classes_{reason}": n for reason, n in one.gate.counts.items() if reason != ABSENT})
    stats = {name: float(number) for name, number in sorted(counts.items())}
    stats["coverage"] = 100 * counts["pixels_covered"] / counts["pixels"] if counts["pixels"] else 0.0
    return stats


def is_adaptive(run: Run | RunRef) -> bool:
    """Return whether each class has its own threshold, made from all scores of a round."""
    return run.section(Settings).gate.adaptive is not None


def gate_fingerprint(config: GateConfig) -> dict[str, Json]:
    """Return what of a gate changes results: its settings, with the calibration's content instead of its path.

    Raises:
        ValueError: The calibration cannot be read.
    """
    digest = None if config.calibration is None else Calibration.load(config.calibration).digest
    return {**config.facts(), "calibration": digest}


def load_gate(
    config: GateConfig, vocabulary: Vocabulary, thresholds: Path | None, shares: Shares | None = None
) -> ClassGate:
    """Build the gate from its settings and files.

    Args:
        config: Its settings.
        vocabulary: The classes.
        thresholds: The round's `thresholds.json`, where thresholds are adaptive.
        shares: The round's shares, where it is matched: their thresholds count.

    Raises:
        ValueError: A file cannot be read or is for other classes, or the thresholds are missing.
    """
    own_K = None if thresholds is None else read_thresholds(thresholds, vocabulary)
    if shares is not None:
        own_K, config = shares.threshold_K, config.model_copy(update={"adaptive": AdaptiveThreshold()})
    return ClassGate(
        config=config,
        num_classes=len(vocabulary),
        calibration=calibration_table(config.calibration, vocabulary.names),
        thresholds=own_K,
    )


def read_thresholds(path: Path, vocabulary: Vocabulary) -> NDArray[np.float64]:
    """Read the (K,) thresholds that `jobs.stages.thresholds` wrote.

    Raises:
        FileNotFoundError: There are none.
        ValueError: The file is damaged, or for other classes.
    """
    try:
        content: Any = read_json_file(path)
        thresholds = {str(entry["name"]): float(entry["threshold"]) for entry in content["classes"]}
        return np.array([thresholds[name] for name in vocabulary.names])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no thresholds of this vocabulary: {error!r}; delete its record") from error


# After the teacher shard by shard: with half a GPU each, a worker of either shares one GPU.
STAGE: Final = Stage("refine", tasks, fingerprint, load, work, after="teacher")
