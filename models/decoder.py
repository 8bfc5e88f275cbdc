"""The cost-aware decoder (CAD): refines the cost volume class by class into logits, after SED."""

# B image, K class, P template, C channel, H W grid of the cost volume, N pooled pixel, A head, E channel of a head.
# `x_MCHW` holds all classes of all images, M = B * K, image by image.

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn


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


class DecoderOutput(NamedTuple):
    """What the decoder gives.

    Attributes:
        logits_BKHW: (B, K, 2^L H, 2^L W) float, a logit for each class; SED's sigmoid or Eq. 6's softmax follows.
        aux: (B, K, 2^i H, 2^i W) for i = 0..L-1, coarse to fine, from detached features; empty unless asked for.
    """

    logits_BKHW: Tensor
    aux: tuple[Tensor, ...]


class SpatialAggregation(nn.Module):
    """Depth-wise convolution, then two point-wise layers, scaled and added: a ConvNeXt block, one class at a time."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))
        self.dwconv = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.pwconv2 = nn.Linear(4 * channels, channels)

    def forward(self, x_MCHW: Tensor) -> Tensor:
        """Give the features with each pixel's surroundings taken in, same shape."""
        y_MHWC = F.gelu(self.pwconv1(self.norm(self.dwconv(x_MCHW).permute(0, 2, 3, 1))))
        # The layer scale goes into the last weights: one pass over the features and one kept tensor less.
        y_MHWC = F.linear(y_MHWC, self.pwconv2.weight * self.gamma[:, None], self.pwconv2.bias * self.gamma)
        return x_MCHW + y_MHWC.permute(0, 3, 1, 2)


class LinearAttention(nn.Module):
    """Attention over classes with the kernel elu(x) + 1: linear in the number of classes."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(channels, channels)
        self.k = nn.Linear(channels, channels)
        self.v = nn.Linear(channels, channels)

    def forward(self, x_NKC: Tensor) -> Tensor:
        """Give (N, K, C): at each pixel every class's mix of all classes' values.

        Source: Katharopoulos et al., Transformers are RNNs. Sums over classes are means here, which float16 can hold.
        """
        weight = torch.cat([self.q.weight, self.k.weight, self.v.weight])
        bias = torch.cat([self.q.bias, self.k.bias, self.v.bias])
        pixels, classes, _ = x_NKC.shape
        qkv_NAKE = F.linear(x_NKC, weight, bias).view(pixels, classes, 3 * self.heads, -1).transpose(1, 2)
        q_NAKE, k_NAKE, v_NAKE = qkv_NAKE.chunk(3, dim=1)
        q_NAKE, k_NAKE = _positive(q_NAKE), _positive(k_NAKE)
        values_NAEE = k_NAKE.transpose(-1, -2) @ v_NAKE / classes
        weights_NAE1 = k_NAKE.mean(dim=2)[..., None]
        mixed_NAKE: Tensor = (q_NAKE @ values_NAEE) / (q_NAKE @ weights_NAE1 + 1e-6 / classes)
        return mixed_NAKE.transpose(1, 2).flatten(2)


def _positive(x: Tensor) -> Tensor:
    """elu(x) + 1, several times faster on CPUs than `F.elu`."""
    return F.relu(x) + x.clamp(max=0).exp()


class ClassAggregation(nn.Module):
    """Attention over the classes and a small network, on a pooled grid, upsampled and added."""

    def __init__(self, channels: int, heads: int, pooling: int) -> None:
        super().__init__()
        self.pooling = pooling
        self.attention = LinearAttention(channels, heads)
        self.MLP = nn.Sequential(nn.Linear(channels, 4 * channels), nn.ReLU(), nn.Linear(4 * channels, channels))
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)

    def forward(self, x_MCHW: Tensor, batch: int) -> Tensor:
        """Give the features with what the other classes show at the same place taken in, same shape.

        A grid smaller than the pooling is pooled to one cell; rows and columns left over are not pooled, as in SED.
        """
        size_hw = x_MCHW.shape[-2:]
        pooled_MChw: Tensor = F.avg_pool2d(x_MCHW, [min(self.pooling, side) for side in size_hw])
        rows, channels, h, w = pooled_MChw.shape
        x_BKnC = pooled_MChw.permute(0, 2, 3, 1).reshape(batch, rows // batch, h * w, channels)
        x_NKC = x_BKnC.transpose(1, 2).flatten(0, 1)
        x_NKC = x_NKC + self.attention(self.norm1(x_NKC))
        x_NKC = x_NKC + self.MLP(self.norm2(x_NKC))
        x_BKnC = x_NKC.view(batch, h * w, rows // batch, channels).transpose(1, 2)
        pooled_MChw = x_BKnC.reshape(rows, h, w, channels).permute(0, 3, 1, 2)
        if (h, w) == tuple(size_hw):
            return x_MCHW + pooled_MChw
        added_MCHW: Tensor = F.interpolate(pooled_MChw, size=size_hw, mode="bilinear", align_corners=True)
        return x_MCHW + added_MCHW


class DoubleConv(nn.Module):
    """Two 3x3 convolutions with group norm and ReLU over upsampled features, guidance and cost volume."""

    def __init__(self, channels: Sequence[int], out_channels: int, groups: int) -> None:
        """Build for `channels` = those of features, guidance and cost volume, in the order of the weight."""
        super().__init__()
        self.channels = tuple(channels)
        self.double_conv = nn.Sequential(
            nn.Conv2d(sum(channels), out_channels, 3, padding=1, bias=False),
            nn.GroupNorm(groups, out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.GroupNorm(groups, out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x_MCHW: Tensor, guidance_BCHW: Tensor, corr_MCHW: Tensor) -> Tensor:
        """Give the fused features.

        A convolution over concatenated channels is the sum of convolutions over each part. The guidance is the same
        for all classes of an image, so its part is computed once an image and added to each class.
        """
        first = self.double_conv[0]
        assert isinstance(first, nn.Conv2d)
        of_x, of_guidance, of_corr = torch.split(first.weight, list(self.channels), dim=1)
        y_MCHW = F.conv2d(x_MCHW, of_x, padding=1) + F.conv2d(corr_MCHW, of_corr, padding=1)
        shared_BCHW = F.conv2d(guidance_BCHW, of_guidance, padding=1)
        y_BKCHW = torch.unflatten(y_MCHW, 0, (len(shared_BCHW), -1)) + shared_BCHW[:, None]
        y_MCHW = y_BKCHW.flatten(0, 1)
        for layer in list(self.double_conv)[1:]:
            y_MCHW = layer(y_MCHW)
        return y_MCHW


class Level(nn.Module):
    """One level: spatial aggregation, class aggregation, then twice the grid with CLIP's and the cost's detail."""

    def __init__(self, config: DecoderConfig, level: int) -> None:
        super().__init__()
        channels, guidance = config.input_dims[level], config.guidance_proj_dims[level]
        out = config.decoder_dims[level]
        parts = (channels - guidance, guidance, config.corr_proj_dims[level])
        self.up = nn.ConvTranspose2d(channels, channels - guidance, 2, stride=2)
        self.conv = DoubleConv(parts, out, config.norm_groups(out))
        self.cnext = SpatialAggregation(channels, config.kernel_size)
        self.attention = ClassAggregation(channels, config.heads, config.pooling[level])

    def forward(self, x_MCHW: Tensor, guidance_BCHW: Tensor, corr_MCHW: Tensor) -> Tensor:
        """Give the features on twice the grid; guidance and cost volume come on that grid already."""
        x_MCHW = self.attention(self.cnext(x_MCHW), len(guidance_BCHW))
        fused: Tensor = self.conv(self.up(x_MCHW), guidance_BCHW, corr_MCHW)
        return fused


class CostAwareDecoder(nn.Module):
    """Cost volume and CLIP's multi-scale features in, a logit for each class and pixel out.

    Source: SED (Xie et al., CVPR 2024), whose parameter names and shapes it has, so that SED's weights load; STSeg,
    section 2.1. The result is SED's up to rounding.
    """

    def __init__(self, config: DecoderConfig, guidance_channels: Sequence[int], prompt_channels: int) -> None:
        """Build for guidance of these channels, coarse to fine, one for each level, and P = `prompt_channels`.

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
        self.config = config
        self.prompt_channels = prompt_channels
        self.conv1 = nn.Conv2d(
            prompt_channels, config.hidden_dim, config.conv1_kernel, padding=config.conv1_kernel // 2
        )
        self.decoder_guidance_projection = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, projected, 3, padding=1), nn.ReLU())
            for channels, projected in zip(guidance_channels, config.guidance_proj_dims, strict=True)
        )
        corr_inputs = (prompt_channels, *config.corr_proj_dims[:-1])
        self.decoder_corr_guidance_projection = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(channels, projected, 2, stride=2), nn.ReLU())
            for channels, projected in zip(corr_inputs, config.corr_proj_dims, strict=True)
        )
        for level, channels in enumerate(config.input_dims):
            self.add_module(f"decoder{level + 1}", Level(config, level))
            self.add_module(f"head{level}", nn.Conv2d(channels, 1, 3, padding=1))
        self.head = nn.Conv2d(config.decoder_dims[-1], 1, 3, padding=1)

    @classmethod
    def from_sed(cls, state_dict: Mapping[str, Any]) -> "CostAwareDecoder":
        """Give SED's decoder, in evaluation mode, with all sizes read off the tensors.

        Args:
            state_dict: A SED checkpoint, `{"model": ...}` or bare; `sem_seg_head.predictor.transformer.*` is taken, or
                the decoder's own names where there is no such prefix. What has no place is logged by name.

        Raises:
            ValueError: Tensors are missing or have shapes that do not fit together; they are named.
        """
        from models.sed_checkpoint import decoder_from_sed

        return decoder_from_sed(state_dict)

    def forward(self, cost_BPKHW: Tensor, guidance: Sequence[Tensor], with_aux: bool = False) -> DecoderOutput:
        """Give the logits on 2^L times the cost volume's grid.

        Args:
            cost_BPKHW: (B, P, K, H, W) float from `cost_volume`; any K >= 1, any grid.
            guidance: (B, C_i, 2^i H, 2^i W) for i = 1..L, CLIP's features, coarse to fine. No gradient flows back
                into them.
            with_aux: Also compute the coarse logits that training supervises.

        Raises:
            ValueError: P, the number of guidance maps or a guidance grid is not what the decoder was built for.
        """
        self._check(cost_BPKHW, guidance)
        batch = len(cost_BPKHW)
        cost_MPHW = cost_BPKHW.transpose(1, 2).flatten(0, 1) * self.config.cost_scale
        corr_MCHW = cost_MPHW.contiguous(memory_format=torch.channels_last)
        x_MCHW = self.conv1(corr_MCHW)
        aux = []
        for level, map_BCHW in enumerate(guidance):
            if with_aux:
                aux.append(_logits(self.get_submodule(f"head{level}"), x_MCHW.detach(), batch))
            guidance_BCHW = self.decoder_guidance_projection[level](map_BCHW.detach())
            corr_MCHW = self.decoder_corr_guidance_projection[level](corr_MCHW)
            x_MCHW = self.get_submodule(f"decoder{level + 1}")(x_MCHW, guidance_BCHW, corr_MCHW)
        return DecoderOutput(_logits(self.head, x_MCHW, batch), tuple(aux))

    def _check(self, cost_BPKHW: Tensor, guidance: Sequence[Tensor]) -> None:
        batch, templates, _, height, width = cost_BPKHW.shape
        if templates != self.prompt_channels:
            raise ValueError(
                f"the cost volume has {templates} templates, the decoder was built for {self.prompt_channels}: "
                "embed the class names with the preset's templates"
            )
        wanted = [(batch, height << level, width << level) for level in range(1, len(self.config.decoder_dims) + 1)]
        found = [(len(g), g.shape[-2], g.shape[-1]) for g in guidance]
        if found != wanted:
            raise ValueError(f"guidance (images, height, width) must be {wanted} for this cost volume, got {found}")


def _logits(head: nn.Module, x_MCHW: Tensor, batch: int) -> Tensor:
    logits_BKHW: Tensor = torch.unflatten(head(x_MCHW)[:, 0], 0, (batch, -1))
    return logits_BKHW
