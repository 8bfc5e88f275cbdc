"""The cost-aware decoder (CAD): refines the cost volume class by class into logits, after SED."""

# B image, K class, k class of a chunk, P template, D embedding, C channel, H W grid of the image features.
# Rows of a chunk are k * B, class by class, images inside.

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.stseg.cost_volume import check_cost_inputs, cost_rows, unit_pixels
from models.stseg.decoder_blocks import ClassSums, Level, one_map
from models.stseg.settings import DecoderConfig

# Measured at the paper's sizes: chunks of 4 rows, 1.2 MB at level 1, are fastest on CPUs, and of 2 rows, 4.7 MB, behind
# the last level; GPUs want more work at once.
_CHUNK_BYTES: Final = {"cpu": 5 << 18}
_CHUNK_BYTES_ELSEWHERE: Final = 1 << 28
_FINEST_CHUNKS: Final = 4  # multiple of `_CHUNK_BYTES` on the finest grid, see above
# In training, chunks whose rows are larger than this are computed again in the backward pass instead of being kept.
_KEPT_ROW_BYTES: Final = 1 << 17


class DecoderOutput(NamedTuple):
    """The decoder's output.

    Attributes:
        logits_BKHW: (B, K, 2^L H, 2^L W) float, a logit per class; SED's sigmoid or Eq. 6's softmax follows.
        aux: (B, K, 2^i H, 2^i W) for i = 0..L-1, coarse to fine, from detached features; empty unless requested.
    """

    logits_BKHW: Tensor
    aux: tuple[Tensor, ...]


class CostAwareDecoder(nn.Module):
    """Image features, class names and CLIP's multi-scale features in, a logit per class and pixel out.

    Source: SED (Xie et al., CVPR 2024), whose parameter names and shapes it has, so that SED's weights load; STSeg,
    section 2.2. The result is SED's up to rounding.
    """

    # Classes are worked on in chunks: SED holds 20 MB per class at the paper's sizes (17 GB for 847 classes), chunks
    # 2 MB per class, and their temporaries stay in the cache. Linear attention over classes is a sum over them, so
    # chunks change no result.

    def __init__(self, config: DecoderConfig, guidance_channels: Sequence[int], prompt_channels: int) -> None:
        """Build for guidance of these channels, fine to coarse, one per level, and P = `prompt_channels`.

        Raises:
            ValueError: The number of guidance maps is not the number of levels, or there is no template.
        """
        super().__init__()
        levels = len(config.decoder_dims)
        if len(guidance_channels) != levels or prompt_channels < 1:
            raise ValueError(
                f"{levels} levels (decoder_dims {config.decoder_dims}) need {levels} guidance maps and at least one "
                f"template, got channels {tuple(guidance_channels)} and {prompt_channels} templates"
            )
        # From here on names and shapes are SED's: its checkpoints load by name.
        self.config = config
        self.prompt_channels = prompt_channels
        self.conv1 = nn.Conv2d(
            prompt_channels, config.hidden_dim, config.conv1_kernel, padding=config.conv1_kernel // 2
        )
        self.decoder_guidance_projection = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, projected, 3, padding=1), nn.ReLU())
            for channels, projected in zip(reversed(guidance_channels), config.guidance_proj_dims, strict=True)
        )
        corr_inputs = (prompt_channels, *config.corr_proj_dims[:-1])
        self.decoder_corr_guidance_projection = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(channels, projected, 2, stride=2), nn.ReLU())
            for channels, projected in zip(corr_inputs, config.corr_proj_dims, strict=True)
        )
        for level, channels in enumerate(config.input_dims):
            self.add_module(f"decoder{level + 1}", Level(config.level_sizes(level)))
            self.add_module(f"head{level}", nn.Conv2d(channels, 1, 3, padding=1))
        self.head = nn.Conv2d(config.decoder_dims[-1], 1, 3, padding=1)

    def forward(
        self, dense_BDHW: Tensor, text_KPD: Tensor, guidance: Sequence[Tensor], with_aux: bool = False
    ) -> DecoderOutput:
        """Return the logits on 2^L times the grid of the image features.

        Args:
            dense_BDHW: (B, D, H, W) float image features, any grid.
            text_KPD: (K, P, D) float text embeddings, any K >= 1.
            guidance: (B, C_i, 2^i H, 2^i W) for i = L..1, CLIP's features, fine to coarse (res2, res3, res4). No
                gradient flows back into them.
            with_aux: Also compute the coarse logits that training supervises.

        Raises:
            ValueError: P, a width, the number of guidance maps or a guidance grid is not what the decoder was built
                for.
        """
        self._check(dense_BDHW, text_KPD, guidance)
        classes = self.embed(unit_pixels(dense_BDHW), text_KPD)
        aux = []
        for level in range(len(guidance)):
            if with_aux:
                aux.append(self.coarse_logits(level, classes))
            if level + 1 < len(guidance):
                self.advance(level, classes, guidance[-1 - level])
        return DecoderOutput(self.finish(classes, guidance[0]), tuple(aux))

    def embed(self, pixels_BDHW: Tensor, text_KPD: Tensor) -> "ClassChunks":
        """Cut the classes into chunks and embed the cost volume of each.

        Args:
            pixels_BDHW: (B, D, H, W) float of unit length.
            text_KPD: (K, P, D) float.
        """
        batch, _, height, width = pixels_BDHW.shape
        row_bytes = self.config.hidden_dim * height * width * pixels_BDHW.element_size()
        chunk = max(1, _chunk_bytes(pixels_BDHW.device) // (row_bytes * batch))
        # Small rows are kept: recomputing them would cost time and save little.
        recompute = torch.is_grad_enabled() and row_bytes > _KEPT_ROW_BYTES
        costs = [cost_rows(pixels_BDHW, text_kPD) * self.config.cost_scale for text_kPD in torch.split(text_KPD, chunk)]
        return ClassChunks([self.conv1(cost_RPHW) for cost_RPHW in costs], costs, batch, recompute)

    def advance(self, level: int, classes: "ClassChunks", guidance_BCHW: Tensor) -> None:
        """Take all classes through a level other than the last."""
        # Chunks are replaced one by one: the old and the new grid of all classes never exist together.
        fuse = self._gathered(level, classes, guidance_BCHW)
        for i, cost_RPHW in enumerate(classes.costs):
            classes.features[i] = classes.run(fuse, classes.features[i], cost_RPHW)

    def finish(self, classes: "ClassChunks", guidance_BCHW: Tensor) -> Tensor:
        """Take all classes through the last level and return (B, K, h, w) logits."""
        # On the finest grid a chunk has four times the cells and half the channels; only its logits are kept.
        fuse = self._gathered(len(self.config.decoder_dims) - 1, classes, guidance_BCHW)

        def logits(x_RCHW: Tensor, cost_RPHW: Tensor) -> Tensor:
            return one_map(fuse(x_RCHW, cost_RPHW), self.head)

        class_bytes = classes.batch * self.config.decoder_dims[-1] * guidance_BCHW[0, 0].nbytes
        rows = classes.batch * max(1, _FINEST_CHUNKS * _chunk_bytes(guidance_BCHW.device) // class_bytes)
        parts = []
        while classes.features:
            chunk = torch.split(classes.features.pop(0), rows), torch.split(classes.costs.pop(0), rows)
            parts += [classes.run(logits, x_RCHW, cost_RPHW) for x_RCHW, cost_RPHW in zip(*chunk, strict=True)]
        return torch.unflatten(torch.cat(parts), 0, (-1, classes.batch)).transpose(0, 1)

    def _gathered(
        self, level: int, classes: "ClassChunks", guidance_BCHW: Tensor
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """Run the first pass of a level and return the second: from a chunk and its cost volume to twice the grid."""
        # The cost volume is projected from the start for every level: a fiftieth more work, and what is kept of it
        # neither grows with the grid nor breaks up the memory that features leave free.
        block = self.get_submodule(f"decoder{level + 1}")
        assert isinstance(block, Level)
        project_corr = nn.Sequential(*self.decoder_corr_guidance_projection[: level + 1])
        # Detached, as in SED: no gradient reaches CLIP through the guidance.
        shared = block.shared(self.decoder_guidance_projection[level](guidance_BCHW.detach()))
        total: ClassSums | None = None
        for i, x_RCHW in enumerate(classes.features):
            classes.features[i], sums = classes.run(block.gather, x_RCHW, classes.batch)
            total = sums if total is None else total.plus(sums)
        assert total is not None
        all_classes = total

        def fuse(x_RCHW: Tensor, cost_RPHW: Tensor) -> Tensor:
            return block.fuse(x_RCHW, project_corr(cost_RPHW), all_classes, shared)

        return fuse

    def coarse_logits(self, level: int, classes: "ClassChunks") -> Tensor:
        """Return (B, K, h, w) coarse logits before a level, from detached features."""
        head = self.get_submodule(f"head{level}")
        assert isinstance(head, nn.Conv2d)
        logits_Rhw = torch.cat([one_map(x.detach(), head) for x in classes.features])
        return torch.unflatten(logits_Rhw, 0, (-1, classes.batch)).transpose(0, 1)

    def _check(self, dense_BDHW: Tensor, text_KPD: Tensor, guidance: Sequence[Tensor]) -> None:
        check_cost_inputs(dense_BDHW, text_KPD)
        batch, _, height, width = dense_BDHW.shape
        if text_KPD.shape[1] != self.prompt_channels:
            raise ValueError(
                f"the text embeddings have {text_KPD.shape[1]} templates, the decoder was built for "
                f"{self.prompt_channels}: embed the class names with the preset's templates"
            )
        levels = range(len(self.config.decoder_dims), 0, -1)
        wanted = [(batch, height << level, width << level) for level in levels]
        found = [(len(g), g.shape[-2], g.shape[-1]) for g in guidance]
        if found != wanted:
            raise ValueError(f"guidance (images, height, width) must be {wanted} for this grid, got {found}")


def _chunk_bytes(device: torch.device) -> int:
    return _CHUNK_BYTES.get(device.type, _CHUNK_BYTES_ELSEWHERE)


@dataclass
class ClassChunks:
    """All classes on their way through the decoder, in chunks.

    Attributes:
        features: A (k * B, C, h, w) tensor per chunk, on the grid of the next level.
        costs: The (k * B, P, H, W) cost volume of each.
        batch: B.
        recompute: Whether a step keeps only its inputs and is run again for the backward pass.
    """

    features: list[Tensor]
    costs: list[Tensor]
    batch: int
    recompute: bool

    def take(self, ids: Tensor) -> "ClassChunks":
        """Return only these (n,) classes, in chunks of the same size."""
        size = len(self.features[0]) // self.batch
        rows = (ids[:, None] * self.batch + torch.arange(self.batch, device=ids.device)).flatten()
        features, costs = (
            list(torch.split(torch.cat(chunks)[rows], size * self.batch)) for chunks in (self.features, self.costs)
        )
        return ClassChunks(features, costs, self.batch, self.recompute)

    def run(self, step: Callable[..., Any], *inputs: Any) -> Any:
        """Run a step on a chunk."""
        if self.recompute:
            # Nothing in a chunk draws random numbers, so their state need not be kept.
            return checkpoint(step, *inputs, use_reentrant=False, preserve_rng_state=False)
        return step(*inputs)
