"""The sizes of CLIP, DEA and decoder, apart from the code that needs torch."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ClipConfig(BaseModel):
    """Which CLIP.

    Attributes:
        architecture: An open_clip model name, or "stseg_tiny".
        weights: File under `models/weights`, or an open_clip tag, or None when the user must name a file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    architecture: str
    weights: str | None = None


class DeaConfig(BaseModel):
    """Settings of DEA.

    Attributes:
        heads: Attention heads; 1 is the paper's formula to the letter, with d = the whole width.
        ffn_ratio: Hidden width of the feed-forward network over the embedding width.
        init: "identity" starts at `F_cv = norm(F_c)` (W_Q = I, W_V = W'_V = 0, last feed-forward layer 0), so that
            CLIP's alignment with the text is there from the first step; "random" starts all projections at random.
        norm: "layer" is the paper's LN. "rms" leaves out LN's centring: a departure, see the class.
        dropout: Share of the values dropped from what attention and feed-forward add to the residual path; the
            residual path itself, which carries CLIP's alignment, is never dropped.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    heads: int = Field(default=8, ge=1)
    ffn_ratio: float = Field(default=4.0, gt=0)
    init: Literal["identity", "random"] = "identity"
    norm: Literal["layer", "rms"] = "layer"
    dropout: float = Field(default=0.0, ge=0, lt=1)


@dataclass(frozen=True)
class LevelSizes:
    """Sizes of one level.

    Attributes:
        features: Channels that enter it.
        guidance: Channels of CLIP's projected features.
        corr: Channels of the projected cost volume.
        out: Channels that leave it.
        heads: Heads of the class attention.
        groups: Groups of the group norms.
        kernel_size: Side of the depth-wise convolution.
        pooling: Side of the average pooling before class attention.
    """

    features: int
    guidance: int
    corr: int
    out: int
    heads: int
    groups: int
    kernel_size: int
    pooling: int


class DecoderConfig(BaseModel):
    """Sizes of the decoder; the defaults are SED's for ConvNeXt-B.

    Attributes:
        hidden_dim: Channels of the embedded cost volume.
        decoder_dims: Channels after each level; their number is the number of levels, each doubling the grid.
        guidance_proj_dims: Channels to which each level reduces CLIP's features.
        corr_proj_dims: Channels of the cost volume as it is upsampled to each level.
        kernel_size: Odd side of the depth-wise convolution.
        conv1_kernel: Odd side of the convolution that embeds the cost volume.
        pooling: Side of the average pooling before each level's class attention.
        heads: Heads of the class attention.
        norm_group_channels: Channels in a group of the group norms (one group at least).
        cost_scale: Factor on the cost volume. SED's 1 leaves plain cosines, which are small; more speeds up training
            from random weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden_dim: int = Field(default=128, ge=1)
    decoder_dims: tuple[int, ...] = (64, 32, 16)
    guidance_proj_dims: tuple[int, ...] = (32, 16, 8)
    corr_proj_dims: tuple[int, ...] = (32, 16, 8)
    kernel_size: int = Field(default=9, ge=1)
    conv1_kernel: int = Field(default=7, ge=1)
    pooling: tuple[int, ...] = (2, 2, 2)
    heads: int = Field(default=4, ge=1)
    norm_group_channels: int = Field(default=16, ge=1)
    cost_scale: float = Field(default=1.0, gt=0)

    @property
    def input_dims(self) -> tuple[int, ...]:
        """Channels that enter each level."""
        return (self.hidden_dim, *self.decoder_dims[:-1])

    def norm_groups(self, channels: int) -> int:
        """Number of groups of a group norm over `channels`."""
        return max(1, channels // self.norm_group_channels)

    def level_sizes(self, level: int) -> LevelSizes:
        """Return the sizes of one level, counted from 0."""
        return LevelSizes(
            features=self.input_dims[level],
            guidance=self.guidance_proj_dims[level],
            corr=self.corr_proj_dims[level],
            out=self.decoder_dims[level],
            heads=self.heads,
            groups=self.norm_groups(self.decoder_dims[level]),
            kernel_size=self.kernel_size,
            pooling=self.pooling[level],
        )

    @model_validator(mode="after")
    def _sizes_fit(self) -> "DecoderConfig":
        levels = len(self.decoder_dims)
        for name in ("guidance_proj_dims", "corr_proj_dims", "pooling"):
            sizes = getattr(self, name)
            if len(sizes) != levels or min(sizes, default=0) < 1:
                raise ValueError(f"{name} = {sizes} must hold {levels} positive numbers, one for each of decoder_dims")
        for name in ("kernel_size", "conv1_kernel"):
            if getattr(self, name) % 2 == 0:
                raise ValueError(f"{name} = {getattr(self, name)} must be odd, so that the grid keeps its size")
        for channels, guidance in zip(self.input_dims, self.guidance_proj_dims, strict=True):
            if channels % self.heads:
                raise ValueError(f"heads = {self.heads} does not divide the {channels} channels that enter a level")
            if guidance >= channels:
                raise ValueError(f"guidance_proj_dims: {guidance} must be less than the level's {channels} channels")
        for channels in self.decoder_dims:
            if channels < 1 or channels % self.norm_groups(channels):
                raise ValueError(f"decoder_dims: {channels} does not split into groups of {self.norm_group_channels}")
        return self
