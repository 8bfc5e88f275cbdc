"""CLIP with dense features: the class-aligned embedding of every grid cell, and finer maps that guide the decoder."""

# B image, D embedding width, C channel, H W pixels of the input or cells of a grid, N text

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.stseg.settings import ClipConfig
from models.stseg.tiny_clip import WordTokenizer, build_tiny_clip
from models.weights.files import load_weights_into, shipped_weights


@dataclass(frozen=True)
class ClipFeatures:
    """The output of CLIP's image tower for a batch.

    Attributes:
        dense_BDHW: Embedding of every cell of the coarsest grid, in the space of the text embeddings.
        guidance: Feature maps with …, 4, 2 times the cells per side, fine to coarse, (B, C_i, 2^i H, 2^i W).
    """

    dense_BDHW: Tensor
    guidance: tuple[Tensor, ...]


class DenseClip(nn.Module):
    """open_clip's CLIP with a ConvNeXt trunk, whose head is applied to each cell instead of the pooled map."""

    clip: Any  # open_clip's modules are untyped
    mean: Tensor
    std: Tensor

    def __init__(self, clip: nn.Module, tokenizer: Callable[[list[str]], Tensor]) -> None:
        super().__init__()
        self.clip = clip
        self.tokenizer = tokenizer
        from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

        self.register_buffer("mean", torch.tensor(OPENAI_DATASET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(OPENAI_DATASET_STD).view(1, 3, 1, 1), persistent=False)

    @property
    def embedding_dim(self) -> int:
        """Width of the shared image and text embedding."""
        return int(self.clip.text_projection.shape[1])

    def forward(self, image_B3HW: Tensor) -> ClipFeatures:
        """Return the dense features of images.

        Args:
            image_B3HW: RGB in [0, 1].

        Source: SED's use of the CLIP ConvNeXt (stem, stages, norm_pre, then the pooled head per cell).
        """
        trunk = self.clip.visual.trunk
        x = trunk.stem((image_B3HW - self.mean) / self.std)
        maps = [x]
        for stage in trunk.stages:
            x = stage(x)
            maps.append(x)
        return ClipFeatures(self._dense(trunk.norm_pre(x)), _guidance(maps))

    def dense_and_pooled(self, image_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Return the (B, D, H, W) dense features and the (B, D) embedding of each image as a whole, in one pass."""
        visual = self.clip.visual
        x_BCHW = visual.trunk.forward_features((image_B3HW - self.mean) / self.std)
        pooled: Tensor = visual.head(visual.trunk.forward_head(x_BCHW))
        return self._dense(x_BCHW), pooled

    def encode_text(self, texts: list[str]) -> Tensor:
        """Return the (N, D) text embeddings, not normalised, with a gradient; without one `encode_tokens` is faster."""
        tokens = self.tokenizer(texts).to(self.mean.device)
        encoded: Tensor = self.clip.encode_text(tokens)
        return encoded

    def guidance_channels(self, image_size: int) -> tuple[int, ...]:
        """Return the channels of the guidance maps, fine to coarse."""
        # Read off a forward pass on fake tensors, without arithmetic, rather than listed per architecture.
        from torch._subclasses.fake_tensor import FakeTensorMode

        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            features = self(torch.zeros(1, 3, image_size, image_size))
        return tuple(g.shape[1] for g in features.guidance)

    def _dense(self, x_BCHW: Tensor) -> Tensor:
        visual = self.clip.visual
        # The pooled head per cell: bit for bit what it makes of a 1 x 1 image of each cell, as in SED's fork.
        normed = visual.trunk.head.norm(x_BCHW)
        projected: Tensor = visual.head(normed.permute(0, 2, 3, 1))
        return projected.permute(0, 3, 1, 2)


def _guidance(maps: list[Tensor]) -> tuple[Tensor, ...]:
    """Keep the deepest map of every grid finer than the last one's, fine to coarse."""
    # The tiny trunk has three maps on its last grid, ConvNeXt-B two on its finest; only one of each grid is of use.
    last = maps[-1].shape[-1]
    deepest = {m.shape[-1]: m for m in maps if m.shape[-1] > last}
    return tuple(deepest[side] for side in sorted(deepest, reverse=True))


def build_clip(config: ClipConfig) -> DenseClip:
    """Build a CLIP with random weights, in evaluation mode."""
    if config.architecture == "stseg_tiny":
        return DenseClip(build_tiny_clip(), WordTokenizer()).eval()
    import open_clip

    # `pretrained=None`: open_clip never downloads; `load_clip` takes a file.
    with _not_said_to_be_random():
        clip = open_clip.create_model(config.architecture, pretrained=None)
    return DenseClip(clip, open_clip.get_tokenizer(config.architecture)).eval()


@contextmanager
def _not_said_to_be_random() -> Iterator[None]:
    """Keep open_clip's warning that a model is random to itself for the length of the block."""
    # It is right, for a moment: whoever builds a network here loads weights into it next, and read three times that the
    # weights named had not been loaded. What else open_clip says is shown.

    def wanted(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("No pretrained weights loaded")

    log = logging.getLogger()  # open_clip has no logger of its own
    log.addFilter(wanted)
    try:
        yield
    finally:
        log.removeFilter(wanted)


def load_clip(config: ClipConfig, weights: Path | None = None) -> DenseClip:
    """Load a CLIP, in evaluation mode.

    Args:
        config: Which architecture, and its default weights.
        weights: A safetensors or `.pth` file to load instead of the default ones.

    Raises:
        ValueError: The weights are missing or do not fit.
    """
    dense = build_clip(config)
    load_weights_into(dense.clip, weights or shipped_weights(config.weights, what=f"CLIP {config.architecture}"))
    return dense
