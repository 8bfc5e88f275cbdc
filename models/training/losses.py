"""The losses a segmentation network is trained with: Eq. 6 of STSeg as printed, and its binary form."""

# B image, K class, H W label grid, h w logits grid

from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from models.training.streamed_losses import sigmoid_loss_sum, softmax_loss_sum


class LossConfig(BaseModel):
    """Which loss, and how much seen classes count against unseen ones.

    Attributes:
        kind: "eq6" is Eq. 6 as printed: positives only, over a softmax. "bce" is its binary form, positives and
            negatives, over independent sigmoids, which is what SED is trained with.
        alpha: Weight of a seen class; an unseen one weighs 1 - alpha. The paper sets 0.3.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["eq6", "bce"] = "eq6"
    alpha: float = Field(default=0.3, gt=0, lt=1)


def class_weights(seen_K: Tensor, alpha: float) -> Tensor:
    """Give each class its weight in Eq. 6.

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
    """Give Eq. 6 as printed: `-w_y log softmax(logits)_y`, averaged over the labelled pixels.

    The 1/N of Eq. 6 is read as the number of labelled pixels. Its sum over the classes has a single non-zero term
    (y is one-hot), so N as the number of classes would do nothing but shrink the loss as the vocabulary grows. It is
    not replaced by the sum of the weights: that would cancel alpha in every batch that holds seen classes only, and
    it is just there that alpha shall hold them back. For the same reason `pixel_weight_BHW` is not normalised away:
    a batch of doubtful labels counts less than one of certain ones.

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
    """Give the binary form of Eq. 6: `-w_c (y_c log p_c + (1 - y_c) log(1 - p_c))` with p = sigmoid(logits).

    Averaged over the labelled pixels and, since here every class has a term, over the K classes: SED's mean. Unlike
    SED, whose ignored pixels count as "none of the classes", an ignored pixel contributes nothing.

    Args, returns and raises as `weighted_cross_entropy`.

    Source: the loss of SED (binary cross-entropy with logits) with the class weights of STSeg, Eq. 6. Computed as
    `softplus(x)` summed over classes minus `x` at the label, so that no one-hot target is built.
    """
    pixels = _check(logits_BKhw, label_BHW, weight_K, ignore_index, pixel_weight_BHW)
    weight_K = weight_K.to(pixels.trust_BHW)
    total = sigmoid_loss_sum(logits_BKhw, pixels.target_BHW, pixels.trust_BHW, weight_K)
    return total / (len(weight_K) * pixels.labelled)


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
    """Give the loss that `config.kind` names; arguments as `weighted_cross_entropy`."""
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
    """Give the labelled pixels; refuse what cannot be right."""
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
