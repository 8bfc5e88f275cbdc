"""Losses over logits that are resized to the label's size a few classes at a time: no (B, K, H, W) tensor is made.

Forward and backward both walk through the classes; what is kept for the backward pass are the logits as they came and
one map per image. The sums are those of the plain formulas.
"""

# B image, K class, k class of a chunk, H W label grid, h w logits grid

from collections.abc import Iterator
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_CHUNK_ELEMENTS: Final = 1 << 22  # of (B, k, H, W): 16 MB in float32, which the memory allocator hands out again


def softmax_loss_sum(logits_BKhw: Tensor, label_BHW: Tensor, factor_BHW: Tensor) -> Tensor:
    """Give the sum over pixels of factor times `-log softmax(resized logits)` at the label.

    Args:
        logits_BKhw: (B, K, h, w) float; resized bilinearly with half-pixel centres.
        label_BHW: (B, H, W) int64 in 0..K-1; of no meaning where the factor is 0, but in that range.
        factor_BHW: (B, H, W) float32, weight of each pixel.

    Returns:
        A float32 scalar with a gradient with respect to the logits.
    """
    result: Tensor = _SoftmaxLoss.apply(logits_BKhw, label_BHW, factor_BHW)
    return result


def sigmoid_loss_sum(logits_BKhw: Tensor, label_BHW: Tensor, factor_BHW: Tensor, weight_K: Tensor) -> Tensor:
    """Give the sum over pixels and classes of factor times class weight times binary cross-entropy.

    Args as `softmax_loss_sum`, and `weight_K`: (K,) float32, weight of each class's terms.
    """
    result: Tensor = _SigmoidLoss.apply(logits_BKhw, label_BHW, factor_BHW, weight_K)
    return result


class _SoftmaxLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_BKhw: Tensor, label_BHW: Tensor, factor_BHW: Tensor) -> Tensor:
        total_BHW = torch.full_like(factor_BHW, -torch.inf)
        own_BHW = torch.zeros_like(factor_BHW)
        for classes, part_BkHW in _resized(logits_BKhw, label_BHW):
            own_BHW += _at_label(part_BkHW, label_BHW, classes)
            total_BHW = torch.logaddexp(total_BHW, part_BkHW.logsumexp(dim=1))
        ctx.save_for_backward(logits_BKhw, label_BHW, factor_BHW, total_BHW)
        return ((total_BHW - own_BHW) * factor_BHW).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits_BKhw, label_BHW, factor_BHW, total_BHW = ctx.saved_tensors
        scale_BHW = factor_BHW * grad
        result = torch.empty_like(logits_BKhw)
        for classes, part_BkHW in _resized(logits_BKhw, label_BHW):
            part_BkHW.sub_(total_BHW[:, None]).exp_().mul_(scale_BHW[:, None])
            _subtract_at_label(part_BkHW, label_BHW, classes, scale_BHW)
            result[:, classes] = _resize_backward(part_BkHW, logits_BKhw.shape)
        return result, None, None


class _SigmoidLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_BKhw: Tensor, label_BHW: Tensor, factor_BHW: Tensor, weight_K: Tensor) -> Tensor:
        loss_BHW = torch.zeros_like(factor_BHW)
        for classes, part_BkHW in _resized(logits_BKhw, label_BHW):
            loss_BHW -= _at_label(part_BkHW, label_BHW, classes) * weight_K[label_BHW]
            loss_BHW += (F.softplus(part_BkHW) * weight_K[classes, None, None]).sum(dim=1)
        ctx.save_for_backward(logits_BKhw, label_BHW, factor_BHW, weight_K)
        return (loss_BHW * factor_BHW).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits_BKhw, label_BHW, factor_BHW, weight_K = ctx.saved_tensors
        scale_BHW = factor_BHW * grad
        result = torch.empty_like(logits_BKhw)
        for classes, part_BkHW in _resized(logits_BKhw, label_BHW):
            part_BkHW.sigmoid_().mul_(weight_K[classes, None, None]).mul_(scale_BHW[:, None])
            _subtract_at_label(part_BkHW, label_BHW, classes, scale_BHW * weight_K[label_BHW])
            result[:, classes] = _resize_backward(part_BkHW, logits_BKhw.shape)
        return result, None, None, None


def _resized(logits_BKhw: Tensor, label_BHW: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Give chunks of classes at the label's size, float32 and free to be overwritten."""
    step = max(1, _CHUNK_ELEMENTS // label_BHW.numel())
    for first in range(0, logits_BKhw.shape[1], step):
        classes = slice(first, min(first + step, logits_BKhw.shape[1]))
        part = logits_BKhw[:, classes].float()
        if part.shape[-2:] == label_BHW.shape[-2:]:
            yield classes, part.clone(memory_format=torch.contiguous_format)
        else:
            yield classes, F.interpolate(part, size=label_BHW.shape[-2:], mode="bilinear", align_corners=False)


def _resize_backward(grad_BkHW: Tensor, shape: torch.Size) -> Tensor:
    batch, _, height, width = shape
    if grad_BkHW.shape[-2:] == shape[-2:]:
        return grad_BkHW
    size = [batch, grad_BkHW.shape[1], height, width]
    result: Tensor = torch.ops.aten.upsample_bilinear2d_backward(grad_BkHW, list(grad_BkHW.shape[-2:]), size, False)
    return result


def _at_label(part_BkHW: Tensor, label_BHW: Tensor, classes: slice) -> Tensor:
    """Give (B, H, W): the value of each pixel's own class; 0 where that is not in the chunk."""
    inside, place = _place(label_BHW, classes)
    return part_BkHW.gather(1, place[:, None])[:, 0] * inside


def _subtract_at_label(part_BkHW: Tensor, label_BHW: Tensor, classes: slice, amount_BHW: Tensor) -> None:
    inside, place = _place(label_BHW, classes)
    part_BkHW.scatter_add_(1, place[:, None], -(amount_BHW * inside)[:, None])


def _place(label_BHW: Tensor, classes: slice) -> tuple[Tensor, Tensor]:
    inside = (label_BHW >= classes.start) & (label_BHW < classes.stop)
    return inside, (label_BHW - classes.start).clamp(0, classes.stop - classes.start - 1)
