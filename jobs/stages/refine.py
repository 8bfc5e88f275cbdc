"""Refine: the teacher's scores, or given masks, and SAM's embeddings become pseudo-labels."""

# k kept classes, h w score grid, H W image

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt

from jobs.artifacts.embeddings import EmbeddingStore
from jobs.artifacts.labels import write_refined
from jobs.counting import count_images
from jobs.inference.batching import BatchLimit
from jobs.inference.model import load_sam_decoder, model_of, sam_fingerprint
from jobs.run import Run, RunRef, Section, label_fingerprint
from jobs.stage import Done, ShardTask, Stage, memory_hint
from jobs.stages.teacher import mirror_inputs
from models.refinement.calibration import Calibration, calibration_table
from models.refinement.gate import ABSENT, ClassGate, GateConfig
from models.refinement.settings import RefinementConfig
from models.refinement.types import RefinedLabel, RefineInput, label_as_input
from shards.data.label_reader import LabelReader
from shards.data.sources import Source
from shards.data.vocabulary import Vocabulary
from shards.files.untrusted import read_json_file
from shards.formats.arrays import read_arrays
from shards.formats.records import Drop, Json

if TYPE_CHECKING:
    from models.refinement.predict import PromptDecoder

VERSION: Final = 3  # goes up when the same scores, embeddings and settings give other labels
NO_TEACHER: Final = "masks"  # instead of the teacher's checksum, where masks were given
NO_MASK: Final = "no_mask"


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
        masks: The source whose labels are the masks to refine; None to refine the teacher's scores.
    """

    decoder: "PromptDecoder"
    vocabulary: Vocabulary
    settings: Settings
    limit: BatchLimit
    masks: Source | None = None


def tasks(run: Run, round: int) -> list[ShardTask]:
    """Plan the shards of the target, refined from the teacher's scores."""
    if round == 0:
        return []
    # As an input of every shard, thresholds end the overlap with the teacher: they need the scores of all shards.
    gate = {"thresholds": run.layout.thresholds(round)} if is_adaptive(run) else {}
    mirrored = run.section(Settings).refinement.prompts.mirror

    def inputs(task: ShardTask) -> dict[str, Path]:
        mirror = mirror_inputs(run, task.shard) if mirrored else {}
        return {"teacher": run.layout.teacher(round, task.shard), **task.inputs, **gate, **mirror}

    return [task.model_copy(update={"inputs": inputs(task)}) for task in _tasks(run, round)]


def mask_tasks(run: Run, round: int) -> list[ShardTask]:
    """Plan the shards of given masks, as round 1."""
    return _tasks(run, round) if round == 1 else []


def _tasks(run: Run, round: int) -> list[ShardTask]:
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
    return {**_sam_part(run), "gate": gate_fingerprint(run.section(Settings).gate)}


def mask_fingerprint(run: RunRef) -> dict[str, Json]:
    """Return what changes refined masks."""
    # No gate: every class of a given mask counts as certain. The masks themselves are an input.
    return {**_sam_part(run), **label_fingerprint(run, "target")}


def _sam_part(run: RunRef) -> dict[str, Json]:
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


def load_for_masks(run: RunRef) -> Refiner:
    """Load SAM's mask decoder, and open the images whose labels are the masks."""
    return replace(load(run), masks=run.open("target"))


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
            gate's are adaptive; "mirror" (embeddings of the mirror images) where SAM is prompted on them.

    Raises:
        OutOfMemory: Not even one image fits.
        ValueError: The teacher's scores are invalid or belong to other classes or images, or a file that the gate
            needs is missing or damaged.
    """
    gate = load_gate(refiner.settings.gate, refiner.vocabulary, task.inputs.get("thresholds"))
    store = EmbeddingStore.open(task.inputs["embedding"])
    scores, attrs = read_arrays(task.inputs["teacher"], names=("ids", "scores"))
    # The teacher's images, not the task's: what it could not read has no scores.
    keys: list[str] = [str(key) for key in attrs["keys"]]  # type: ignore[union-attr]
    mirrored = EmbeddingStore.open(task.inputs["mirror"]) if "mirror" in task.inputs else None
    inputs = _scored_images(task, keys, scores, store, mirrored)
    return _refine(refiner, task, inputs, gate, store, str(attrs["teacher_weights"]))


def work_on_masks(refiner: Refiner, task: ShardTask) -> Done:
    """Refine the masks of a shard's images; one without a mask ("no_mask") or with an unusable one is dropped."""
    assert refiner.masks is not None
    store = EmbeddingStore.open(task.inputs["embedding"])
    drops: list[Drop] = []
    read_mask = LabelReader(refiner.masks, drops, without=NO_MASK)
    gate = ClassGate(GateConfig(), len(refiner.vocabulary))
    done = _refine(refiner, task, _masked_images(refiner, task, store, read_mask), gate, store, NO_TEACHER)
    return replace(done, stats={**done.stats, **read_mask.stats}, drops=drops, arrived=len(store.rows))


def _refine(
    refiner: Refiner,
    task: ShardTask,
    inputs: Iterable[tuple[str, RefineInput]],
    gate: ClassGate,
    store: EmbeddingStore,
    teacher_weights: str,
) -> Done:
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
    mirrored: EmbeddingStore | None,
) -> Iterator[tuple[str, RefineInput]]:
    for index, key in enumerate(keys):
        if key not in store.rows:
            raise ValueError(f"shard {task.shard} has teacher scores for {key}, but no embedding; redo the teacher")
        row = store.rows[key]
        yield (
            key,
            RefineInput(
                ids=scores["ids"][index],
                scores=scores["scores"][index],
                embedding=store.embedding(row),
                valid_hw=store.valid_hw(row),
                original_hw=store.sizes_hw[row],
                mirrored=None if mirrored is None else mirrored.embedding(mirrored.rows[key]),
            ),
        )


def _masked_images(
    refiner: Refiner, task: ShardTask, store: EmbeddingStore, read_mask: LabelReader
) -> Iterator[tuple[str, RefineInput]]:
    for ref in task.samples:
        if ref.key not in store.rows:  # embed dropped it, and its record says why
            continue
        label = read_mask(ref, store.frame(ref.key))
        if label is None:
            continue
        row = store.rows[ref.key]
        ignore = refiner.vocabulary.ignore_index
        yield ref.key, label_as_input(label, store.embedding(row), store.valid_hw(row), ignore_index=ignore)


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


def load_gate(config: GateConfig, vocabulary: Vocabulary, thresholds: Path | None) -> ClassGate:
    """Build the gate from its settings and files.

    Args:
        config: Its settings.
        vocabulary: The classes.
        thresholds: The round's `thresholds.json`, where thresholds are adaptive.

    Raises:
        ValueError: A file cannot be read or is for other classes, or the thresholds are missing.
    """
    return ClassGate(
        config=config,
        num_classes=len(vocabulary),
        calibration=calibration_table(config.calibration, vocabulary.names),
        thresholds=None if thresholds is None else read_thresholds(thresholds, vocabulary),
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
MASKS_STAGE: Final = Stage("refine", mask_tasks, mask_fingerprint, load_for_masks, work_on_masks)
