"""The refine stage for masks from elsewhere: index PNGs and SAM's embeddings become pseudo-labels."""

# H W image

import time
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ConfigDict, PositiveInt

from jobs.artifacts.embeddings import EmbeddingStore
from jobs.artifacts.labels import write_refined
from jobs.inference.model import ModelConfig, load_sam_decoder, sam_fingerprint
from jobs.stage import CODE_VERSION, ShardTask, finish, prepare
from jobs.stages.refine import batch_limit, refine_stats
from models.refinement.gate import ClassGate, GateConfig
from models.refinement.predict import PromptDecoder
from models.refinement.refine import FOR_MASKS, RefinementConfig, refine_batch
from models.refinement.types import RefinedLabel, RefineInput, label_as_input
from shards.data.sources import SampleRef, Source, SourceConfig, open_source
from shards.data.vocabulary import Vocabulary
from shards.formats.records import Drop, Json, Record

NO_TEACHER = "masks"
NO_MASK = "no_mask"


class MasksConfig(BaseModel):
    """Settings of the refinement of given masks.

    Attributes:
        model: Preset and SAM's weights; the rest of it is not used.
        source: The images, with the masks as their labels.
        vocabulary: Path of the run's `vocabulary.json`.
        refinement: Prompts, acceptance and overlaps. There is no gate: what a mask says is sure.
        batch_size: Images a call of SAM's mask decoder; changes no result but for rounding, and halves where memory
            does not suffice.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelConfig
    source: SourceConfig
    vocabulary: Path
    refinement: RefinementConfig = FOR_MASKS
    batch_size: PositiveInt = 8


def masks_fingerprint(config: MasksConfig, vocabulary: Vocabulary) -> dict[str, Json]:
    """What changes the refined masks: code, SAM, the number of classes and the settings; the masks are an input."""
    return {
        "code": CODE_VERSION,
        "sam": sam_fingerprint(config.model),
        "classes": len(vocabulary),
        "refinement": config.refinement.model_dump(mode="json"),
    }


def refine_masks_shard(
    task: ShardTask, decoder: PromptDecoder, source: Source, vocabulary: Vocabulary, config: MasksConfig
) -> Record:
    """Refine the masks of a shard's images; writes what `jobs.artifacts.labels` describes.

    An image without a mask is dropped as "no_mask".

    Args:
        task: The samples, and SAM's embeddings under "embedding", which name the readable images.
        decoder: SAM's mask decoder.
        source: Where the masks are: the images' labels.
        vocabulary: The classes.
        config: Settings.

    Raises:
        ValueError: A mask is damaged, has an id that is no class, or another size than its image; the file is named.
    """
    started = time.monotonic()
    prepare(task)
    store = EmbeddingStore.open(task.inputs["embedding"])
    drops: list[Drop] = []
    keys: list[str] = []
    refined: list[RefinedLabel] = []
    ask = partial(
        refine_batch,
        decoder=decoder,
        class_gate=ClassGate(GateConfig(), len(vocabulary)),
        config=config.refinement,
        ignore_index=vocabulary.ignore_index,
    )
    given = (
        (ref, one)
        for ref in task.samples
        if ref.key in store.rows and (one := _input(ref, source, store, vocabulary, drops)) is not None
    )
    limit = batch_limit(config.batch_size)
    for batch, labels in limit.batches(given, lambda some: ask([one for _, one in some])):
        keys += [ref.key for ref, _ in batch]
        refined += labels
    write_refined(
        task.output,
        keys,
        refined,
        [store.exif[store.rows[key]] for key in keys],
        ignore_index=vocabulary.ignore_index,
        teacher_weights=NO_TEACHER,
        fingerprint=task.fingerprint,
    )
    stats = refine_stats(refined, vocabulary)
    seconds = time.monotonic() - started
    return finish(task, count=len(keys), stats=stats, drops=drops, seconds=seconds, arrived=len(store.rows))


def _input(
    ref: SampleRef, source: Source, store: EmbeddingStore, vocabulary: Vocabulary, drops: list[Drop]
) -> RefineInput | None:
    label = source.read_label(ref)
    if label is None:
        drops.append(Drop(key=ref.key, reason=NO_MASK, detail=f"{ref.uri} has no index PNG of its name"))
        return None
    row = store.rows[ref.key]
    height, width = store.sizes_hw[row]
    if label.shape != (height, width):
        raise ValueError(
            f"the mask of {ref.uri} has {label.shape[1]} x {label.shape[0]} pixels, the image {width} x {height}; "
            "a mask needs the size of its image"
        )
    return label_as_input(label, store.embedding(row), store.valid_hw(row), ignore_index=vocabulary.ignore_index)


class MasksWorker:
    """Loads SAM's mask decoder once and refines the masks of shards."""

    def __init__(self, config: MasksConfig) -> None:
        from jobs.inference.segmenter import worker_device

        self._config = config
        self._vocabulary = Vocabulary.load(config.vocabulary)
        self._source = open_source(config.source, self._vocabulary)
        self._decoder = load_sam_decoder(config.model).to(worker_device())

    def run(self, task: ShardTask) -> Record:
        """Refine the masks of a shard."""
        return refine_masks_shard(task, self._decoder, self._source, self._vocabulary, self._config)
