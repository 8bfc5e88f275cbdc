"""A shard small enough for a test: four readable images of odd sizes, two broken ones, and fakes for the networks."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from stage_setup import do
from torch import Tensor

from jobs.inference.batching import BatchLimit
from jobs.inference.model import ImageEncoder
from jobs.inference.segmenter import Segmenter
from jobs.stage import ShardTask
from jobs.stages import embed, evaluate, refine, teacher, write
from models.presets import load_preset
from models.refinement.gate import GateConfig
from models.refinement.predict import PromptDecoder
from models.sam.decoder import MaskPrompts
from models.sam.frame import size_in_frame
from models.sam.sam import SamEmbedding
from shards.data.folder_source import FolderSource
from shards.data.images import ORIENTATION_TAG
from shards.data.samples import Samples
from shards.data.sources import FolderSourceConfig, Source
from shards.data.vocabulary import Vocabulary
from shards.formats.records import Record

FRAME = 32
SIZES_HW = {"a": (20, 30), "b": (33, 17), "c": (1, 5), "turned": (24, 16)}
BROKEN = {"empty": "empty", "text": "not_an_image"}
VOCABULARY = Vocabulary.from_names(["left", "right", "never"], seen=["left", "never"])


class FakeEncoder:
    """Embeds an image as its mean brightness."""

    def encode(self, images: Sequence[NDArray[np.uint8]]) -> SamEmbedding:
        valid = [[side / FRAME for side in size_in_frame((i.shape[0], i.shape[1]), FRAME)] for i in images]
        embedding = torch.tensor([float(image.mean()) for image in images])[:, None, None, None].expand(-1, 2, 4, 4)
        return SamEmbedding(embedding, torch.tensor(valid, dtype=torch.float32).reshape(-1, 2))


class FakeSegmenter:
    """Says `left` in the left half and `right` in the right one, with one and the same sureness."""

    def __init__(self, logit: float = 6.0, *, needs_embedding: bool = True) -> None:
        self.logit = logit
        self.needs_embedding = needs_embedding
        self.brightness: list[float] = []

    def logits(self, images: Sequence[NDArray[np.uint8]], sam: SamEmbedding | None) -> Tensor:
        if sam is not None:
            self.brightness += sam.embedding_BCHW[:, 0, 0, 0].tolist()
        logits = torch.zeros(len(images), len(VOCABULARY), 8, 8)
        logits[:, 0, :, :4] = logits[:, 1, :, 4:] = self.logit
        return logits


class FakeDecoder:
    """Gives back the mask prompt, enlarged to the low-resolution frame."""

    image_size = FRAME

    def decode(self, embedding_BCHW: Tensor, prompts: MaskPrompts, *, multimask: bool = False) -> tuple[Tensor, Tensor]:
        assert prompts.mask_input_M1hw is not None
        return prompts.mask_input_M1hw[:, 0], torch.full((len(prompts.image_index_M),), 0.8)


def make_images(folder: Path) -> FolderSource:
    """Write the images and open them as a source."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for key, (height, width) in SIZES_HW.items():
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        exif = Image.Exif()
        if key == "turned":
            exif[ORIENTATION_TAG] = 6
            pixels = pixels.swapaxes(0, 1).copy()
        Image.fromarray(pixels).save(folder / f"{key}.{'jpg' if key == 'turned' else 'png'}", exif=exif)
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.png").write_text("not an image")
    return FolderSource(FolderSourceConfig(images=str(folder)), VOCABULARY)


def embed_task(root: Path, source: FolderSource) -> ShardTask:
    samples = Samples.of(source.refs())
    return ShardTask(stage="embed", shard="000000", samples=samples, output=root / "embed" / "000000.zarr")


def next_task(task: ShardTask, stage: str, **inputs: ShardTask) -> ShardTask:
    """Give the task of the same shard in a later stage."""
    suffix = ".tar" if stage == "write" else ".zarr"
    output = task.output.parent.parent / stage / f"000000{suffix}"
    paths = {role: before.output for role, before in inputs.items()}
    return ShardTask(stage=stage, round=1, shard=task.shard, samples=task.samples, output=output, inputs=paths)


def run_embed(task: ShardTask, source: Source, encoder: ImageEncoder | None = None, size: int = 8) -> Record:
    """Do a shard of embed."""
    return do(embed.work, embed.Embedder(encoder or FakeEncoder(), source, embed.batch_limit(size)), task)


def run_teacher(task: ShardTask, source: Source, model: Segmenter, top_k: int = 4) -> Record:
    """Do a shard of the teacher, three images at a time."""
    settings = teacher.Settings(top_k=top_k, batch_size=3)
    limit = BatchLimit(settings.batch_size, of="images", hint="")
    return do(teacher.work, teacher.Teacher(model, source, settings, "softmax", "random", limit), task)


def refine_settings(threshold: float = 0.9) -> refine.Settings:
    return refine.Settings(gate=GateConfig(threshold=threshold), batch_size=3)


def run_refine(
    task: ShardTask,
    decoder: PromptDecoder | None = None,
    settings: refine.Settings | None = None,
    vocabulary: Vocabulary = VOCABULARY,
) -> Record:
    """Do a shard of refine."""
    chosen = refine_settings() if settings is None else settings
    limit = refine.batch_limit(chosen.batch_size)
    return do(refine.work, refine.Refiner(decoder or FakeDecoder(), vocabulary, chosen, limit), task)


def run_write(
    task: ShardTask, source: Source, vocabulary: Vocabulary = VOCABULARY, image_extension: str | None = "jpg"
) -> Record:
    """Do a shard of write."""
    return do(write.work, write.Writer(source, vocabulary, image_extension), task)


def run_evaluate(
    task: ShardTask, model: Segmenter, source: Source, vocabulary: Vocabulary, *, windows: int = 1, batch_size: int = 8
) -> Record:
    """Score a model on a task's samples."""
    facts, side = {"split": "test"}, load_preset("tiny").image_size
    evaluation = evaluate.Evaluation(model, source, vocabulary, windows, "softmax", facts, side, batch_size)
    return do(evaluate.work, evaluation, task)


def refined_shard(root: Path, logit: float = 6.0) -> tuple[ShardTask, FolderSource]:
    """Run embed, teacher and refine with the fakes; give the refine task and the source."""
    source = make_images(root / "images")
    first = embed_task(root, source)
    run_embed(first, source)
    second = next_task(first, "teacher", embedding=first)
    run_teacher(second, source, FakeSegmenter(logit))
    third = next_task(first, "refine", embedding=first, teacher=second)
    third = third.model_copy(update={"fingerprint": {"gate": {"threshold": 0.9}}})
    run_refine(third)
    return third, source
