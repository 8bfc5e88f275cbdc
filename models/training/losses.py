"""The losses a segmentation network is trained with: Eq. 6 of STSeg as printed, and its binary form.

Logits are resized to the label's size a few classes at a time, forward and backward: no (B, K, H, W) tensor is made.
What is kept for the backward pass are the logits as they came and one map per image.
"""

# B image, K class, k class of a chunk, H W label grid, h w logits grid

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.training.settings import LossConfig


def class_weights(seen_K: Tensor, alpha: float) -> Tensor:
    """Return each class's weight in Eq. 6.

    Args:
        seen_K: (K,) bool, True for classes with labels in stage 1.
        alpha: In (0, 1).

    Returns:
        (K,) float32: alpha where seen, 1 - alpha elsewhere.
    """
    if seen_K.dtype != torch.bool or seen_K.ndim != 1:
        raise ValueError(f"seen_K must be (K,) bool, got {tuple(seen_K.shape)} {seen_K.dtype}")
    weight_K = torch.full(seen_K.shape, 1 - alpha, dtype=torch.float32, device=seen_K.device)
    return weight_K.masked_fill(seen_K, alpha)


def weighted_cross_entropy(
    logits_BKhw: Tensor,
    label_BHW: Tensor,
    weight_K: Tensor,
    ignore_index: int,
    pixel_weight_BHW: Tensor | None = None,
) -> Tensor:
    """Compute Eq. 6 as printed: `-w_y log softmax(logits)_y`, averaged over the labelled pixels.

    The 1/N of Eq. 6 is read as the number of labelled pixels.

    Args:
        logits_BKhw: (B, K, h, w) float; upsampled to the label's size (bilinear, half-pixel centres) if it differs.
        label_BHW: (B, H, W) int64, 0..K-1 or `ignore_index`.
        weight_K: (K,) float, from `class_weights`.
        ignore_index: Any integer outside 0..K-1, above 255 or negative too.
        pixel_weight_BHW: (B, H, W) float in [0, 1], trust in each label; None is 1 everywhere.

    Returns:
        A float32 scalar >= 0; 0 with a gradient graph (of zeros) if every pixel is ignored.

    Raises:
        ValueError: `ignore_index` is a class id, a label is neither class nor ignored, or shapes do not fit.
    """
    # The sum over the classes in Eq. 6 has a single non-zero term (y is one-hot), so N as the number of classes would
    # do nothing but shrink the loss as the vocabulary grows. Nor is N the sum of the weights: that would cancel alpha
    # in every batch that holds seen classes only, and it is there that alpha has to hold them back. For the same reason
    # pixel weights are not normalised away: a batch of doubtful labels counts less than one of certain ones.
    pixels = _check(logits_BKhw, label_BHW, weight_K, ignore_index, pixel_weight_BHW)
    factor_BHW = pixels.trust_BHW * weight_K.to(pixels.trust_BHW)[pixels.target_BHW]
    return softmax_loss_sum(logits_BKhw, pixels.target_BHW, factor_BHW) / pixels.labelled


def weighted_bce(
    logits_BKhw: Tensor,
    label_BHW: Tensor,
    weight_K: Tensor,
    ignore_index: int,
    pixel_weight_BHW: Tensor | None = None,
) -> Tensor:
    """Compute the binary form of Eq. 6: `-w_c (y_c log p_c + (1 - y_c) log(1 - p_c))` with p = sigmoid(logits).

    Averaged over the labelled pixels and, since here every class has a term, over the K classes: SED's mean. Unlike
    SED, whose ignored pixels count as "none of the classes", an ignored pixel contributes nothing.

    Args, returns and raises as `weighted_cross_entropy`.

    Source: the loss of SED (binary cross-entropy with logits) with the class weights of STSeg, Eq. 6.
    """
    pixels = _check(logits_BKhw, label_BHW, weight_K, ignore_index, pixel_weight_BHW)
    weight_K = weight_K.to(pixels.trust_BHW)
    total = sigmoid_loss_sum(logits_BKhw, pixels.target_BHW, pixels.trust_BHW, weight_K)
    return total / (len(weight_K) * pixels.labelled)


# Positives alone under a sigmoid collapse to "everything everywhere" (mIoU 7.5 in a prototype), so eq6 has a softmax.
_LOSSES = {"eq6": weighted_cross_entropy, "bce": weighted_bce}


def segmentation_loss(
    config: LossConfig,
    logits_BKhw: Tensor,
    label_BHW: Tensor,
    weight_K: Tensor,
    *,
    ignore_index: int,
    pixel_weight_BHW: Tensor | None = None,
) -> Tensor:
    """Compute the loss that `config.kind` names; arguments as `weighted_cross_entropy`."""
    return _LOSSES[config.kind](logits_BKhw, label_BHW, weight_K, ignore_index, pixel_weight_BHW)


class _Pixels(NamedTuple):
    """The labelled pixels.

    Attributes:
        target_BHW: int64 in 0..K-1; 0 where nothing is labelled.
        trust_BHW: float32, the pixel weight, 0 where nothing is labelled.
        labelled: Their number, 1 if there is none.
    """

    target_BHW: Tensor
    trust_BHW: Tensor
    labelled: Tensor


def _check(
    logits_BKhw: Tensor, label_BHW: Tensor, weight_K: Tensor, ignore_index: int, pixel_weight_BHW: Tensor | None
) -> _Pixels:
    """Return the labelled pixels; reject what cannot be right."""
    batch, classes = logits_BKhw.shape[:2]
    if 0 <= ignore_index < classes:
        raise ValueError(
            f"ignore_index {ignore_index} is also a class id (there are {classes} classes); "
            f"use a value outside 0..{classes - 1}, such as 65535"
        )
    if label_BHW.ndim != 3 or len(label_BHW) != batch or label_BHW.dtype != torch.int64:
        raise ValueError(
            f"label must be ({batch}, H, W) int64 for these logits, got {tuple(label_BHW.shape)} {label_BHW.dtype}"
        )
    if weight_K.shape != (classes,):
        raise ValueError(f"class weights must be ({classes},) for these logits, got {tuple(weight_K.shape)}")
    if pixel_weight_BHW is not None and pixel_weight_BHW.shape != label_BHW.shape:
        raise ValueError(
            f"pixel weights {tuple(pixel_weight_BHW.shape)} must have the label's shape {tuple(label_BHW.shape)}"
        )
    labelled_BHW = label_BHW != ignore_index
    stray_BHW = labelled_BHW & ((label_BHW < 0) | (label_BHW >= classes))
    if bool(stray_BHW.any()):
        raise ValueError(
            f"label {int(label_BHW[stray_BHW][0])} is neither one of the {classes} classes nor the ignore index "
            f"{ignore_index}; check that the labels were made with this vocabulary"
        )
    trust_BHW = labelled_BHW.float() if pixel_weight_BHW is None else pixel_weight_BHW.float() * labelled_BHW
    return _Pixels(label_BHW.masked_fill(~labelled_BHW, 0), trust_BHW, labelled_BHW.sum().clamp(min=1))


_CHUNK_ELEMENTS: Final = 1 << 22  # of (B, k, H, W): 16 MB in float32, which the memory allocator hands out again


def softmax_loss_sum(logits_BKhw: Tensor, label_BHW: Tensor, factor_BHW: Tensor) -> Tensor:
    """Sum over pixels: factor times `-log softmax(resized logits)` at the label.

    Args:
        logits_BKhw: (B, K, h, w) float; resized bilinearly with half-pixel centres.
        label_BHW: (B, H, W) int64 in 0..K-1; meaningless where the factor is 0, but in that range.
        factor_BHW: (B, H, W) float32, weight of each pixel.

    Returns:
        A float32 scalar with a gradient with respect to the logits.
    """
    result: Tensor = _SoftmaxLoss.apply(logits_BKhw, label_BHW, factor_BHW)
    return result


def sigmoid_loss_sum(logits_BKhw: Tensor, label_BHW: Tensor, factor_BHW: Tensor, weight_K: Tensor) -> Tensor:
    """Sum over pixels and classes: factor times class weight times binary cross-entropy.

    Args as `softmax_loss_sum`, and `weight_K`: (K,) float32, weight of each class's terms.
    """
    result: Tensor = _SigmoidLoss.apply(logits_BKhw, label_BHW, factor_BHW, weight_K)
    return result


# With autograd SED's loss keeps 18 MB per class at the paper's sizes, the resized logits and targets of four outputs.
# Here both passes resize again, chunk by chunk.
class _SoftmaxLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_BKhw: Tensor, label_BHW: Tensor, factor_BHW: Tensor) -> Tensor:
        # A running log-sum-exp over chunks of classes: the denominator of the softmax is one map per image.
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
        # softplus(x) summed over classes minus x at the label: no one-hot target is built.
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
    """Yield chunks of classes at the label's size, float32 and free to be overwritten."""
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
    # The adjoint of `interpolate`, called directly: autograd would have to keep or rebuild its graph.
    result: Tensor = torch.ops.aten.upsample_bilinear2d_backward(grad_BkHW, list(grad_BkHW.shape[-2:]), size, False)
    return result


def _at_label(part_BkHW: Tensor, label_BHW: Tensor, classes: slice) -> Tensor:
    """Return (B, H, W): the value of each pixel's own class; 0 where that is not in the chunk."""
    inside, index = _index_in_chunk(label_BHW, classes)
    return part_BkHW.gather(1, index[:, None])[:, 0] * inside


def _subtract_at_label(part_BkHW: Tensor, label_BHW: Tensor, classes: slice, amount_BHW: Tensor) -> None:
    inside, index = _index_in_chunk(label_BHW, classes)
    part_BkHW.scatter_add_(1, index[:, None], -(amount_BHW * inside)[:, None])


def _index_in_chunk(label_BHW: Tensor, classes: slice) -> tuple[Tensor, Tensor]:
    inside = (label_BHW >= classes.start) & (label_BHW < classes.stop)
    return inside, (label_BHW - classes.start).clamp(0, classes.stop - classes.start - 1)
