"""A shard small enough for a test: four readable images of odd sizes, two broken ones, and fakes for the networks."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from jobs.inference.model import ModelConfig
from jobs.stage import ShardTask
from jobs.stages.embed import embed_shard
from jobs.stages.refine import RefineConfig, refine_shard
from jobs.stages.teacher import TeacherConfig, teacher_shard
from models.refinement.gate import GateConfig
from models.sam.decoder import MaskPrompts
from models.sam.frame import size_in_frame
from models.sam.sam import SamEmbedding
from shards.data.images import ORIENTATION_TAG
from shards.data.samples import Samples
from shards.data.sources import FolderSource, FolderSourceConfig
from shards.data.vocabulary import Vocabulary

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


def teacher_config(root: Path, **more: object) -> TeacherConfig:
    source = FolderSourceConfig(images=str(root))
    return TeacherConfig(model=ModelConfig(), source=source, vocabulary=root / "v.json", batch_size=3, **more)


def refine_config(root: Path, threshold: float = 0.9) -> RefineConfig:
    gate = GateConfig(threshold=threshold)
    return RefineConfig(model=ModelConfig(), vocabulary=root / "v.json", gate=gate, batch_size=3)


def refined_shard(root: Path, logit: float = 6.0) -> tuple[ShardTask, FolderSource]:
    """Run embed, teacher and refine with the fakes; give the refine task and the source."""
    source = make_images(root / "images")
    embed = embed_task(root, source)
    embed_shard(embed, FakeEncoder(), source)
    teacher = next_task(embed, "teacher", embedding=embed)
    teacher_shard(teacher, FakeSegmenter(logit), source, teacher_config(root))
    refine = next_task(embed, "refine", embedding=embed, teacher=teacher)
    refine = refine.model_copy(update={"fingerprint": {"gate": {"threshold": 0.9}}})
    refine_shard(refine, FakeDecoder(), VOCABULARY, refine_config(root))
    return refine, source
