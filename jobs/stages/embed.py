"""The embed stage: SAM's embedding of every image, once for all rounds. It also finds the unreadable images."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, PositiveInt

from jobs.execution.faults import memory_cure
from jobs.inference.batching import BatchLimit
from jobs.inference.loaded_images import load_images
from jobs.inference.model import ModelConfig, load_sam_encoder, sam_fingerprint
from jobs.stage import CODE_VERSION, ShardTask, finish, prepare
from shards.data.sources import Source, SourceConfig, open_source
from shards.data.vocabulary import Vocabulary
from shards.formats.arrays import write_arrays
from shards.formats.records import Drop, Json, Record

if TYPE_CHECKING:
    from models.sam.sam import SamEmbedding


class EmbedConfig(BaseModel):
    """Settings of the embed stage.

    Attributes:
        model: Preset and SAM's weights; the rest of it is not used.
        source: Where the images are.
        vocabulary: Path of the run's `vocabulary.json`.
        batch_size: Images in memory at a time; changes no result but for rounding, and halves where memory does not
            suffice.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelConfig
    source: SourceConfig
    vocabulary: Path
    batch_size: PositiveInt = 8


class ImageEncoder(Protocol):
    """SAM's image encoder, or a test's fake."""

    def encode(self, images: Sequence[NDArray[np.uint8]]) -> "SamEmbedding":
        """Give (B, C, g, g) embeddings, and the (B, 2) share of each square that is image; B may be 0."""
        ...


def embed_fingerprint(config: EmbedConfig) -> dict[str, Json]:
    """What changes the embeddings: code and SAM."""
    return {"code": CODE_VERSION, "sam": sam_fingerprint(config.model)}


def embed_shard(task: ShardTask, encoder: ImageEncoder, source: Source, limit: BatchLimit | None = None) -> Record:
    """Embed the images of a shard.

    Writes `embedding` (n, C, g, g) float16 and `valid` (n, 2) float32, attrs `keys`, `sizes_hw`, `exif`. Later stages
    use these keys: an image that cannot be read is not among them, but among the record's drops.

    Args:
        task: The samples; no inputs.
        encoder: SAM's.
        source: Where to read the images.
        limit: Images in memory at a time, kept from shard to shard; None: 8.

    Raises:
        EmptyShard: Nothing came out though not every image was dropped.
        OutOfMemory: Not even one image fits.
    """
    started = time.monotonic()
    prepare(task)
    drops: list[Drop] = []
    keys: list[Json] = []
    sizes_hw: list[Json] = []
    exif: list[Json] = []
    embeddings: list[NDArray[np.float16]] = []
    valid: list[NDArray[np.float32]] = []
    limit = limit or batch_limit(8)
    encode = limit.batches(
        load_images(task.samples, source, drops), lambda some: encoder.encode([loaded.image for loaded in some])
    )
    for batch, encoded in encode:
        _add(encoded, embeddings, valid)
        keys += [loaded.ref.key for loaded in batch]
        sizes_hw += [list(loaded.size_hw) for loaded in batch]
        exif += [loaded.exif_orientation for loaded in batch]
    if not keys:
        _add(encoder.encode([]), embeddings, valid)
    arrays: dict[str, NDArray[np.floating]] = {"embedding": np.concatenate(embeddings), "valid": np.concatenate(valid)}
    write_arrays(task.output, arrays, {"keys": keys, "sizes_hw": sizes_hw, "exif": exif})
    stats = {"samples": float(len(keys)), "dropped": float(len(drops))}
    return finish(task, count=len(keys), stats=stats, drops=drops, seconds=time.monotonic() - started)


def _add(encoded: "SamEmbedding", embeddings: list[NDArray[np.float16]], valid: list[NDArray[np.float32]]) -> None:
    embeddings.append(encoded.embedding_BCHW.cpu().numpy().astype(np.float16))
    valid.append(encoded.valid_B2.cpu().numpy().astype(np.float32))


def batch_limit(size: int) -> BatchLimit:
    """Give the limit that embedding begins with."""
    return BatchLimit(size, of="images", cure=memory_cure("embed"))


class EmbedWorker:
    """Loads SAM's encoder once and embeds shards."""

    def __init__(self, config: EmbedConfig) -> None:
        from jobs.inference.segmenter import worker_device

        self._source = open_source(config.source, Vocabulary.load(config.vocabulary))
        self._encoder = load_sam_encoder(config.model).to(worker_device())
        self._limit = batch_limit(config.batch_size)

    def run(self, task: ShardTask) -> Record:
        """Embed a shard."""
        return embed_shard(task, self._encoder, self._source, self._limit)
