"""The parts of the cost-aware decoder, each working on a few classes at a time.

Classes are cut into chunks that stay in the processor's cache. Only the attention over classes needs all of them at
once, and it is linear: its sums over classes are gathered in a first pass over the chunks and read in a second one.
"""

# k class of a chunk, B image, C channel, H W grid, N pooled pixel of all images, A head, E channel of a head.
# Rows of a chunk are k * B, class by class, images inside; `x_RCHW` is stored as R H W C (channels last).

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.stseg.settings import LevelSizes


class ClassSums(NamedTuple):
    """What the attention over classes needs to know of all classes; adds up over chunks.

    Attributes:
        values_NAEE: Sum over classes of key times value.
        keys_NAE: Sum over classes of the keys.
    """

    values_NAEE: Tensor
    keys_NAE: Tensor

    def plus(self, other: "ClassSums") -> "ClassSums":
        """Return the sums over both."""
        return ClassSums(self.values_NAEE + other.values_NAEE, self.keys_NAE + other.keys_NAE)


class SpatialAggregation(nn.Module):
    """Depth-wise convolution, then two point-wise layers, scaled and added: a ConvNeXt block, one class at a time."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        # Parameter names are SED's, here and in all blocks.
        self.gamma = nn.Parameter(torch.ones(channels))
        self.dwconv = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.pwconv2 = nn.Linear(4 * channels, channels)

    def forward(self, x_RCHW: Tensor) -> Tensor:
        """Aggregate each pixel's surroundings, same shape."""
        y_RCHW = self.norm(self.dwconv(x_RCHW).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        # As 1x1 convolutions: they add their bias on the way, where linear layers fill their result with it first.
        y_RCHW = gelu(F.conv2d(y_RCHW, self.pwconv1.weight[:, :, None, None], self.pwconv1.bias))
        # The layer scale goes into the last weights: one pass over the features and one kept tensor less.
        weight = self.pwconv2.weight * self.gamma[:, None]
        y_RCHW = F.conv2d(y_RCHW, weight[:, :, None, None], self.pwconv2.bias * self.gamma)
        return y_RCHW.add_(x_RCHW)  # in place: no gradient needs y itself


class LinearAttention(nn.Module):
    """Attention over classes with the kernel elu(x) + 1: linear in the number of classes.

    Source: Katharopoulos et al., Transformers are RNNs.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(channels, channels)
        self.k = nn.Linear(channels, channels)
        self.v = nn.Linear(channels, channels)

    def sums(self, x_kNC: Tensor) -> ClassSums:
        """Return the contribution of some classes to the sums over all."""
        # One product for keys and values instead of two.
        weight, bias = torch.cat([self.k.weight, self.v.weight]), torch.cat([self.k.bias, self.v.bias])
        both_kN2AE = at_least_float32(torch.unflatten(F.linear(x_kNC, weight, bias), -1, (2, self.heads, -1)))
        keys_kNAE, values_kNAE = both_kN2AE.unbind(2)
        keys_kNAE = _positive(keys_kNAE)
        keys_NAEk = keys_kNAE.permute(1, 2, 3, 0)
        return ClassSums(keys_NAEk @ values_kNAE.permute(1, 2, 0, 3), keys_kNAE.sum(dim=0))

    def forward(self, x_kNC: Tensor, sums: ClassSums) -> Tensor:
        """Return (k, N, C): at each pixel each class's mix of all classes' values."""
        query_kNAE = _positive(at_least_float32(torch.unflatten(self.q(x_kNC), -1, (self.heads, -1))))
        mixed_NAkE = query_kNAE.permute(1, 2, 0, 3) @ sums.values_NAEE
        weight_kNA1 = (query_kNAE * sums.keys_NAE).sum(dim=-1, keepdim=True) + 1e-6
        mixed_kNC: Tensor = (mixed_NAkE.permute(2, 0, 1, 3) / weight_kNA1).flatten(2)
        return mixed_kNC.to(x_kNC.dtype)


class ClassAggregation(nn.Module):
    """Attention over the classes and a small network, on a pooled grid, upsampled and added."""

    def __init__(self, channels: int, heads: int, pooling: int) -> None:
        super().__init__()
        self.pooling = pooling
        self.attention = LinearAttention(channels, heads)
        self.MLP = nn.Sequential(nn.Linear(channels, 4 * channels), nn.ReLU(), nn.Linear(4 * channels, channels))
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)

    def sums(self, x_RCHW: Tensor, batch: int) -> ClassSums:
        """Return the contribution of some classes to the sums over all."""
        return self.attention.sums(self.norm1(self._pooled(x_RCHW, batch)))

    def forward(self, x_RCHW: Tensor, batch: int, sums: ClassSums) -> Tensor:
        """Aggregate all classes at the same pixels, same shape.

        A grid smaller than the pooling is pooled to one cell; rows and columns left over are not pooled, as in SED.
        """
        x_kNC = self._pooled(x_RCHW, batch)
        x_kNC = x_kNC + self.attention(self.norm1(x_kNC), sums)
        x_kNC = x_kNC + self.MLP(self.norm2(x_kNC))
        size_hw = x_RCHW.shape[-2:]
        h, w = self._pooled_size(x_RCHW)
        pooled_RChw: Tensor = x_kNC.reshape(len(x_RCHW), h, w, -1).permute(0, 3, 1, 2)
        if (h, w) == tuple(size_hw):
            return x_RCHW + pooled_RChw
        # align_corners=True here and nowhere else: SED's class attention has it, its other resizing does not.
        added_RCHW: Tensor = F.interpolate(pooled_RChw, size=size_hw, mode="bilinear", align_corners=True)
        return added_RCHW.add_(x_RCHW)

    def _pooled_size(self, x_RCHW: Tensor) -> tuple[int, int]:
        height, width = x_RCHW.shape[-2:]
        return height // min(self.pooling, height), width // min(self.pooling, width)

    def _pooled(self, x_RCHW: Tensor, batch: int) -> Tensor:
        """Pool to (k, N, C)."""
        pooled_RChw = F.avg_pool2d(x_RCHW, [min(self.pooling, side) for side in x_RCHW.shape[-2:]])
        return pooled_RChw.permute(0, 2, 3, 1).reshape(len(x_RCHW) // batch, -1, x_RCHW.shape[1])


class DoubleConv(nn.Module):
    """Two 3x3 convolutions with group norm and ReLU over upsampled features, guidance and cost volume."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.GroupNorm(groups, out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.GroupNorm(groups, out_channels),
            nn.ReLU(inplace=True),
        )

    @property
    def first_weight(self) -> Tensor:
        """The first convolution's weight."""
        first = self.double_conv[0]
        assert isinstance(first, nn.Conv2d)
        return first.weight

    def after_first(self, y_RCHW: Tensor) -> Tensor:
        """Run the layers behind the first convolution on its result."""
        for layer in list(self.double_conv)[1:]:
            y_RCHW = layer(y_RCHW)
        return y_RCHW


class LevelShared(NamedTuple):
    """What all classes of a level share, computed once per image.

    Attributes:
        up_weight: (C, c, 4, 4), upsampling and the first convolution's part on it in one transposed convolution.
        corr_weight: (c, c_corr, 3, 3), the first convolution's part on the cost volume.
        added_BcHW: The part of guidance and of the upsampling's bias, added to the first convolution's result.
    """

    up_weight: Tensor
    corr_weight: Tensor
    added_BcHW: Tensor


class Level(nn.Module):
    """One level: spatial aggregation, class aggregation, then twice the grid with CLIP's and the cost's detail."""

    def __init__(self, sizes: LevelSizes) -> None:
        super().__init__()
        upsampled = sizes.features - sizes.guidance
        self.parts = (upsampled, sizes.guidance, sizes.corr)
        self.up = nn.ConvTranspose2d(sizes.features, upsampled, 2, stride=2)
        self.conv = DoubleConv(sum(self.parts), sizes.out, sizes.groups)
        self.cnext = SpatialAggregation(sizes.features, sizes.kernel_size)
        self.attention = ClassAggregation(sizes.features, sizes.heads, sizes.pooling)

    def shared(self, guidance_BCHW: Tensor) -> LevelShared:
        """Compute what all classes share."""
        # A convolution over concatenated channels is the sum of convolutions over each part, so guidance, which is the
        # same for all classes of an image, goes through it once. The upsampling has no activation: it and the
        # convolution behind it are one transposed convolution, and its bias becomes a map that differs at the border
        # only. At the paper's sizes this part is 4 to 8 times as fast as upsampling, concatenating and convolving.
        of_up, of_guidance, of_corr = torch.split(self.conv.first_weight, list(self.parts), dim=1)
        weight = F.conv_transpose2d(self.up.weight, of_up.flip(-1, -2).transpose(0, 1))
        height, width = guidance_BCHW.shape[-2:]
        assert self.up.bias is not None
        bias_1CHW = self.up.bias[None, :, None, None].expand(-1, -1, height, width)
        added = F.conv2d(guidance_BCHW, of_guidance, padding=1) + F.conv2d(bias_1CHW, of_up, padding=1)
        return LevelShared(weight, of_corr, added.contiguous(memory_format=torch.channels_last))

    def gather(self, x_RCHW: Tensor, batch: int) -> tuple[Tensor, ClassSums]:
        """Run the first pass: spatial aggregation, and its contribution to the sums over classes."""
        x_RCHW = self.cnext(x_RCHW)
        return x_RCHW, self.attention.sums(x_RCHW, batch)

    def fuse(self, x_RCHW: Tensor, corr_RCHW: Tensor, sums: ClassSums, shared: LevelShared) -> Tensor:
        """Run the second pass: to twice the grid, where `corr_RCHW`, the projected cost volume, is already."""
        batch = len(shared.added_BcHW)
        x_RCHW = self.attention(x_RCHW, batch, sums)
        y_RcHW = F.conv_transpose2d(x_RCHW, shared.up_weight, stride=2, padding=1)
        y_RcHW += F.conv2d(corr_RCHW, shared.corr_weight, padding=1)
        torch.unflatten(y_RcHW, 0, (-1, batch)).add_(shared.added_BcHW)
        return self.conv.after_first(y_RcHW)


def one_map(x_RCHW: Tensor, head: nn.Conv2d) -> Tensor:
    """Return (R, H, W): a convolution with a single output, channel by channel and then summed."""
    # Libraries pad a single output channel to a whole vector of them, which costs four times as much.
    assert head.bias is not None
    weight = head.weight.transpose(0, 1)
    maps_RCHW = F.conv2d(x_RCHW, weight, padding=head.padding, groups=x_RCHW.shape[1])
    return maps_RCHW.sum(dim=1) + head.bias


def at_least_float32(x: Tensor) -> Tensor:
    """Return the values in float32, or wider if they are."""
    # Sums over many classes are too much for half precision.
    return x.to(torch.promote_types(x.dtype, torch.float32))


def gelu(x: Tensor) -> Tensor:
    """Apply GELU, in place where nothing is kept for a backward pass."""
    if torch.is_grad_enabled():
        return F.gelu(x)
    result: Tensor = torch.ops.aten.gelu_(x)
    return result


def _positive(x: Tensor) -> Tensor:
    """Return elu(x) + 1."""
    # 5 to 6 times as fast as `F.elu` on CPUs.
    return F.relu(x) + x.clamp(max=0).exp()
