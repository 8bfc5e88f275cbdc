"""The refine stage: the teacher's stored scores and SAM's embeddings become pseudo-labels."""

# k kept classes, h w score grid, H W image

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, PositiveInt

from jobs.artifacts.embeddings import EmbeddingStore
from jobs.artifacts.labels import write_refined
from jobs.execution.faults import memory_cure
from jobs.inference.batching import BatchLimit
from jobs.inference.model import ModelConfig, load_sam_decoder, sam_fingerprint
from jobs.stage import CODE_VERSION, ShardTask, finish, prepare
from jobs.stages.class_gate import gate_fingerprint, load_gate
from models.refinement.gate import ABSENT, GateConfig
from models.refinement.predict import PromptDecoder
from models.refinement.refine import RefinementConfig, refine_batch
from models.refinement.types import RefinedLabel, RefineInput
from shards.data.vocabulary import Vocabulary
from shards.formats.arrays import read_arrays
from shards.formats.records import Json, Record


class RefineConfig(BaseModel):
    """Settings of the refine stage.

    Attributes:
        model: Preset and SAM's weights; the rest of it is not used.
        vocabulary: Path of the run's `vocabulary.json`.
        gate: Which classes of an image become prompts.
        refinement: The steps after the gate.
        batch_size: Images a call of SAM's mask decoder; changes no result but for rounding, and halves where memory
            does not suffice.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelConfig
    vocabulary: Path
    gate: GateConfig = GateConfig()
    refinement: RefinementConfig = RefinementConfig()
    batch_size: PositiveInt = 8


def refine_fingerprint(config: RefineConfig, vocabulary: Vocabulary) -> dict[str, Json]:
    """What changes the refined labels: code, SAM, the number of classes, gate and refinement."""
    return {
        "code": CODE_VERSION,
        "sam": sam_fingerprint(config.model),
        "classes": len(vocabulary),
        "gate": gate_fingerprint(config.gate),
        "refinement": config.refinement.model_dump(mode="json"),
    }


def refine_shard(
    task: ShardTask,
    decoder: PromptDecoder,
    vocabulary: Vocabulary,
    config: RefineConfig,
    limit: BatchLimit | None = None,
) -> Record:
    """Refine the labels of a shard's images.

    Writes what `jobs.artifacts.labels` describes. An image, or a whole shard, where nothing passes the gate is stored
    with every pixel ignored: `coverage` in the record says so, and the write stage leaves such images out.

    Args:
        task: Inputs "teacher" (scores) and "embedding" (SAM's embeddings and the images' sizes); "thresholds" where the
            gate's are adaptive.
        decoder: SAM's mask decoder.
        vocabulary: The classes.
        config: Gate and refinement.
        limit: Images a call of the decoder, kept from shard to shard; None: as the settings say.

    Raises:
        OutOfMemory: Not even one image fits.
        ValueError: The teacher's scores cannot be right, or belong to other classes or images, or a file that the gate
            needs is missing or damaged.
    """
    started = time.monotonic()
    prepare(task)
    gate = load_gate(config.gate, vocabulary, task.inputs.get("thresholds"))
    store = EmbeddingStore.open(task.inputs["embedding"])
    scores, attrs = read_arrays(task.inputs["teacher"], names=("ids", "scores"))
    read: dict[str, Any] = attrs
    keys = [str(key) for key in read["keys"]]
    refined: list[RefinedLabel] = []
    ask = partial(
        refine_batch,
        decoder=decoder,
        class_gate=gate,
        config=config.refinement,
        ignore_index=vocabulary.ignore_index,
    )
    for _, some in (limit or batch_limit(config.batch_size)).batches(_inputs(task, keys, scores, store), ask):
        refined += some
    write_refined(
        task.output,
        keys,
        refined,
        [store.exif[store.rows[key]] for key in keys],
        ignore_index=vocabulary.ignore_index,
        teacher_weights=str(read["teacher_weights"]),
        fingerprint=task.fingerprint,
    )
    stats = refine_stats(refined, vocabulary)
    return finish(task, count=len(keys), stats=stats, seconds=time.monotonic() - started, arrived=len(keys))


def batch_limit(size: int) -> BatchLimit:
    """Give the limit that refinement begins with."""
    return BatchLimit(size, of="images", cure=memory_cure("refine"))


def _inputs(
    task: ShardTask, keys: Sequence[str], scores: dict[str, NDArray[Any]], store: EmbeddingStore
) -> Iterator[RefineInput]:
    for index, key in enumerate(keys):
        if key not in store.rows:
            raise ValueError(f"shard {task.shard} has teacher scores for {key}, but no embedding; redo the teacher")
        row = store.rows[key]
        yield RefineInput(
            ids=scores["ids"][index],
            scores=scores["scores"][index],
            embedding=store.embedding(row),
            valid_hw=store.valid_hw(row),
            original_hw=store.sizes_hw[row],
        )


def refine_stats(refined: Sequence[RefinedLabel], vocabulary: Vocabulary) -> dict[str, float]:
    """Count what happened in a shard.

    Returns:
        `samples`, `samples_uncovered`, `pixels`, `pixels_covered`, `pixels_gated`; `masks_accepted` and
        `masks_<reason>`; `classes_accepted` and `classes_<reason>`, counted once an image; per class id i,
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


class RefineWorker:
    """Loads SAM's mask decoder once and refines shards."""

    def __init__(self, config: RefineConfig) -> None:
        from jobs.inference.segmenter import worker_device

        self._config = config
        self._vocabulary = Vocabulary.load(config.vocabulary)
        self._limit = batch_limit(config.batch_size)
        self._decoder = load_sam_decoder(config.model).to(worker_device())

    def run(self, task: ShardTask) -> Record:
        """Refine a shard."""
        return refine_shard(task, self._decoder, self._vocabulary, self._config, self._limit)
