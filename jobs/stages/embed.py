"""Embed: SAM's embedding of every image, once for all rounds. Unreadable images are found here, too."""

# SAM's encoder is frozen and about half of an inference (ViT-B at 1024 pixels: 972 GFLOP, next to 934 for CLIP and the
# decoder with 171 classes), and teacher, refine, student and evaluation read its features in every round:
# docs/decisions/0005.

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt

from jobs.inference.batching import BatchLimit, load_images
from jobs.inference.model import ImageEncoder, load_sam_encoder, model_of, sam_fingerprint
from jobs.run import Run, RunRef, Section
from jobs.stage import Done, ShardTask, Stage, memory_hint
from jobs.training.config import TrainConfig
from models.stseg.views import View, seen_as
from shards.data.plan import Plan
from shards.data.sources import Source
from shards.formats.arrays import write_arrays
from shards.formats.layout import Dataset
from shards.formats.records import Drop, Json

if TYPE_CHECKING:
    from models.sam.sam import SamEmbedding

VERSION: Final = 3  # goes up when the same images and settings give other embeddings


class Settings(Section):
    """How images are embedded with SAM.

    Attributes:
        batch_size: Images in memory at a time; halved on OOM.
    """

    batch_size: PositiveInt = 8


@dataclass(frozen=True)
class Embedder:
    """What embedding needs.

    Attributes:
        encoder: SAM's image encoder.
        source: The images.
        limit: Images in memory at a time, kept from shard to shard.
        view: What SAM sees of each image.
    """

    encoder: ImageEncoder
    source: Source
    limit: BatchLimit
    view: View = "identity"


def tasks(run: Run, round: int) -> list[ShardTask]:
    """Plan the shards of the target, and of the labelled source if the training rehearses it."""
    if round > 0:
        return []
    planned = dataset_tasks(run, "target", run.plan)
    if run.section(TrainConfig).source_per_step:
        planned += source_tasks(run, round)
    return planned


def source_tasks(run: Run, round: int) -> list[ShardTask]:
    """Plan the shards of the labelled source alone; none without DEA, as the training then reads no embeddings."""
    if run.source_plan is None or round > 0 or not model_of(run).dea:
        return []
    return dataset_tasks(run, "source", run.source_plan)


def dataset_tasks(run: Run, dataset: Dataset, plan: Plan) -> list[ShardTask]:
    """Plan the shards of a data set."""
    return [
        ShardTask(
            stage="embed" if dataset == "target" else f"embed-{dataset}",
            shard=shard.name,
            samples=shard.samples,
            output=run.layout.embedding(dataset, shard.name),
            source=run.data.of(dataset),
        )
        for shard in plan.shards
    ]


def fingerprint(run: RunRef) -> dict[str, Json]:
    """Return what changes the embeddings: code and SAM."""
    return {"code": VERSION, "sam": sam_fingerprint(model_of(run))}


def load(run: RunRef) -> Embedder:
    """Load SAM's encoder and open the data set that the part is about."""
    from jobs.inference.segmenter import worker_device

    name = run.part.partition("-")[2]
    view: View = "mirror" if name == "mirror" else "identity"  # of the target alone
    dataset: Dataset = name if name and view == "identity" else "target"  # type: ignore[assignment]
    encoder = load_sam_encoder(model_of(run)).to(worker_device())
    return Embedder(encoder, run.open(dataset), batch_limit(run.section(Settings).batch_size), view)


def batch_limit(size: int) -> BatchLimit:
    """Return the number of images that embedding starts with."""
    return BatchLimit(size, of="images", hint=memory_hint("embed"))


def work(embedder: Embedder, task: ShardTask) -> Done:
    """Embed the images of a shard.

    Writes `embedding` (n, C, g, g) float16 and `valid` (n, 2) float32, attrs `keys`, `sizes_hw`, `exif`. Later stages
    use these keys: an unreadable image is not among them but among the record's drops.

    Raises:
        OutOfMemory: Not even one image fits.
    """
    drops: list[Drop] = []
    keys: list[Json] = []
    sizes_hw: list[Json] = []
    exif: list[Json] = []
    embeddings: list[NDArray[np.float16]] = []
    valid: list[NDArray[np.float32]] = []
    encode = embedder.limit.batches(
        load_images(task.samples, embedder.source, drops),
        lambda some: embedder.encoder.encode([seen_as(loaded.image, embedder.view) for loaded in some]),
    )
    for batch, encoded in encode:
        _add(encoded, embeddings, valid)
        keys += [loaded.ref.key for loaded in batch]
        sizes_hw += [list(loaded.size_hw) for loaded in batch]
        exif += [loaded.exif_orientation for loaded in batch]
    if not keys:  # readers expect arrays without rows to have the shape of a row
        _add(embedder.encoder.encode([]), embeddings, valid)
    arrays: dict[str, NDArray[np.floating]] = {"embedding": np.concatenate(embeddings), "valid": np.concatenate(valid)}
    write_arrays(task.output, arrays, {"keys": keys, "sizes_hw": sizes_hw, "exif": exif})
    return Done(len(keys), {"samples": float(len(keys)), "dropped": float(len(drops))}, drops)


def _add(encoded: "SamEmbedding", embeddings: list[NDArray[np.float16]], valid: list[NDArray[np.float32]]) -> None:
    # float16, and not compressed: 2 MiB per image at 1024 pixels, of which the best codec saved a seventh and halved
    # the speed of writing.
    embeddings.append(encoded.embedding_BCHW.cpu().numpy().astype(np.float16))
    valid.append(encoded.valid_B2.cpu().numpy().astype(np.float32))


STAGE: Final = Stage("embed", tasks, fingerprint, load, work)
SOURCE_STAGE: Final = Stage("embed", source_tasks, fingerprint, load, work)  # all that stage 1 embeds
