"""Presence: the evidence for each class in each image of the target, once for all rounds."""

# B image, K class, P template, D embedding, h w CLIP's grid, N cell

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from jobs.inference.batching import BatchLimit, LoadedImage, load_images
from jobs.inference.model import clip_fingerprint, model_of
from jobs.inference.witness import read_shares, read_tags
from jobs.run import WHOLE_ROUND, Run, RunRef
from jobs.stage import Done, EmptyShard, ShardTask, Stage, memory_hint
from jobs.stages import teacher
from shards.data.samples import Samples
from shards.data.sources import Source
from shards.data.vocabulary import Vocabulary
from shards.files.atomic import write_bytes_atomic
from shards.formats.arrays import write_arrays
from shards.formats.records import Drop, Json, fingerprint_digest

if TYPE_CHECKING:
    from torch import Tensor

    from models.stseg.clip import DenseClip

VERSION: Final = 1  # goes up when the same images and names give other evidence
_MOST_CELLS: Final = 40_000  # of the sample: with 847 names 270 MB as float64


@dataclass(frozen=True)
class Namer:
    """Frozen CLIP with the names of a vocabulary, or the tags of images.

    Attributes:
        vocabulary: The classes.
        source: The images.
        limit: Images at a time, kept from shard to shard.
        clip: CLIP as it was before any self-training; None with tags.
        text_KPD: The text embeddings of the classes; None with tags.
        size: Side of CLIP's input, pixels.
        tags: Which classes each tagged image holds; None with CLIP.
    """

    vocabulary: Vocabulary
    source: Source
    limit: BatchLimit
    clip: "DenseClip | None" = None
    text_KPD: "Tensor | None" = None
    size: int = 0
    tags: dict[str, NDArray[np.float32]] | None = None

    def similarities(self, batch: Sequence[LoadedImage]) -> "tuple[Tensor, Tensor]":
        """Return the cosines of `models.stseg.presence.name_similarities` of some images."""
        import torch

        from models.stseg.presence import name_similarities
        from models.stseg.sliding import to_network_input

        assert self.clip is not None and self.text_KPD is not None
        images = torch.stack([to_network_input(loaded.image, self.size) for loaded in batch])
        return name_similarities(self.clip, images.to(self.text_KPD.device), self.text_KPD)


def share_tasks(run: Run, round: int) -> list[ShardTask]:
    """Plan the shares of all names over a sample of the target; none unless CLIP is the witness."""
    settings = run.section(teacher.Settings).presence
    if round > 0 or settings.witness != "clip":
        return []
    indices = range(run.plan.sample_count)
    few = settings.images < len(indices)
    drawn = random.Random(run.config.seed).sample(indices, settings.images) if few else indices
    picked = run.plan.pick(drawn)
    return [
        ShardTask(
            stage="embed-names",
            shard=WHOLE_ROUND,
            samples=Samples(tuple(one for samples in picked.values() for one in samples.lists)),
            output=run.layout.presence,
            source=run.data.target,
        )
    ]


def tasks(run: Run, round: int) -> list[ShardTask]:
    """Plan the evidence of the target's shards, once for all rounds; none where the witness stores none."""
    settings = run.section(teacher.Settings).presence
    if round > 0 or not settings.is_stored:
        return []
    return [
        ShardTask(
            stage="embed-presence",
            shard=shard.name,
            samples=shard.samples,
            output=run.layout.presence_of(shard.name),
            inputs={"shares": run.layout.presence} if settings.witness == "clip" else {},
            source=run.data.target,
        )
        for shard in run.plan.shards
    ]


def fingerprint(run: RunRef) -> dict[str, Json]:
    """Return what changes the evidence: CLIP and the classes, or the tags."""
    settings = run.section(teacher.Settings).presence
    found: dict[str, Json] = {"code": VERSION, "vocabulary": run.vocabulary.digest}
    if settings.tags is not None:
        tags = read_tags(settings.tags, run.vocabulary)
        return {**found, "tags": fingerprint_digest({key: row.tolist() for key, row in sorted(tags.items())})}
    found["clip"] = clip_fingerprint(model_of(run))
    return {**found, "images": settings.images} if run.part == "embed-names" else found


def load(run: RunRef) -> Namer:
    """Load CLIP with the text embeddings of the classes, or the tags."""
    settings = run.section(teacher.Settings)
    limit = BatchLimit(settings.batch_size, of="images", hint=memory_hint("embed"))
    source, vocabulary = run.open("target"), run.vocabulary
    if settings.presence.tags is not None:
        return Namer(vocabulary, source, limit, tags=read_tags(settings.presence.tags, vocabulary))
    from jobs.inference.segmenter import worker_device
    from jobs.inference.text_cache import cached_text_embeddings
    from models.presets import load_preset
    from models.stseg.clip import load_clip

    # Not the teacher's tower, which the rounds train: a witness that learns from the labels it judges is none.
    config = model_of(run)
    preset = load_preset(config.preset)
    clip = load_clip(preset.clip, config.clip_weights).to(worker_device())
    text_KPD = cached_text_embeddings(clip, vocabulary, run.layout.text_embeddings)
    return Namer(vocabulary, source, limit, clip, text_KPD, preset.image_size)


def work_on_shares(namer: Namer, task: ShardTask) -> Done:
    """Write which share of a sample each name explains, as JSON: `classes` with `name`, `share`, `image_cosine`.

    Raises:
        EmptyShard: Not one of the samples can be read.
        OutOfMemory: Not even one image fits.
    """
    import torch

    from models.stseg.presence import explained_shares, name_logits

    drops: list[Drop] = []
    cells, whole = [], []
    few = max(1, _MOST_CELLS // max(1, len(task.samples)))
    for _, (cell_BKhw, image_BK) in namer.limit.batches(
        load_images(task.samples, namer.source, drops), namer.similarities
    ):
        flat_BKN = cell_BKhw.flatten(2)
        step = -(-flat_BKN.shape[2] // few)
        cells.append(flat_BKN[:, :, ::step].transpose(1, 2).flatten(0, 1).cpu())
        whole.append(image_BK.cpu())
    if not whole:
        raise EmptyShard("none of the images drawn for the shares of names can be read; raise teacher.presence.images")
    image_cosine_K = torch.cat(whole).mean(dim=0)
    share_K = explained_shares(name_logits(torch.cat(cells), image_cosine_K, _scale(namer)))
    classes = [
        {"name": name, "share": share, "image_cosine": cosine}
        for name, share, cosine in zip(namer.vocabulary.names, share_K.tolist(), image_cosine_K.tolist(), strict=True)
    ]
    write_bytes_atomic(task.output, (json.dumps({"classes": classes}, indent=1, ensure_ascii=False) + "\n").encode())
    images = sum(len(one) for one in whole)
    return Done(images, {"samples": float(images), "dropped": float(len(drops))}, drops)


def work(namer: Namer, task: ShardTask) -> Done:
    """Write the evidence for each class in a shard's images: `evidence` (n, K) float32, attrs `keys`.

    With CLIP it is `models.stseg.presence.image_shares`; with tags 1 for the classes that an image is tagged with and 0
    for others; 1 for all classes of an image without tags, as nothing is known of it.

    Raises:
        OutOfMemory: Not even one image fits.
        ValueError: The shares are damaged or of other classes.
    """
    import torch

    drops: list[Drop] = []
    keys: list[str] = []
    rows = [np.zeros((0, len(namer.vocabulary)), np.float32)]
    if namer.tags is not None:
        keys = [ref.key for ref in task.samples]
        unknown = np.ones(len(namer.vocabulary), np.float32)
        rows += [namer.tags.get(key, unknown)[None] for key in keys]
    else:
        shares, cosines = zip(*read_shares(task.inputs["shares"], namer.vocabulary), strict=True)
        share_K, image_cosine_K = torch.tensor(shares, dtype=torch.float64), torch.tensor(cosines)

        def evidence(batch: Sequence[LoadedImage]) -> NDArray[np.float32]:
            from models.stseg.presence import image_shares, name_logits

            cell_BKhw = namer.similarities(batch)[0]
            logit_BhwK = name_logits(cell_BKhw.movedim(1, -1), image_cosine_K.to(cell_BKhw), _scale(namer))
            found: NDArray[np.float32] = image_shares(logit_BhwK.movedim(-1, 1), share_K.to(cell_BKhw)).cpu().numpy()
            return found

        for batch, found in namer.limit.batches(load_images(task.samples, namer.source, drops), evidence):
            keys += [loaded.ref.key for loaded in batch]
            rows.append(found)
    write_arrays(task.output, {"evidence": np.concatenate(rows)}, {"keys": list(keys)})
    return Done(len(keys), {"samples": float(len(keys)), "dropped": float(len(drops))}, drops)


def _scale(namer: Namer) -> float:
    assert namer.clip is not None
    return float(namer.clip.clip.logit_scale.detach().exp())


NAMES_STAGE: Final = Stage("embed-names", share_tasks, fingerprint, load, work_on_shares, resources="embed")
STAGE: Final = Stage("embed-presence", tasks, fingerprint, load, work, resources="embed")
