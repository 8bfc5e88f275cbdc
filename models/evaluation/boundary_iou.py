"""Boundary IoU: how well outlines agree, which IoU hides in large masks. Counts add up over images and shards."""

# K class, H W grid

import math

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter, minimum_filter

from models.evaluation.metrics import Labels


def boundary_counts(
    label_HW: Labels, prediction_HW: Labels, num_classes: int, ignore_index: int, *, band: float = 0.02
) -> NDArray[np.int64]:
    """Count, for each class, the pixels of intersection and union of the boundary bands of two label maps.

    The band of a class are its pixels that an erosion by `band` times the image's diagonal (a square, at least one
    pixel each way) takes away; what lies outside of the image is no class, so that a mask that touches the image's edge
    has a band there.

    Args:
        label_HW: (H, W) integers, 0..K-1 or `ignore_index`.
        prediction_HW: The same; what it ignores is in no class's band.
        num_classes: K.
        ignore_index: Outside 0..K-1. Pixels without a truth are counted in neither band; a label beside one has its
            band there.
        band: Width of the band as a share of the diagonal.

    Returns:
        (2, K) int64, intersection and union; all zero where nothing is labelled or the maps have no pixel.

    Raises:
        ValueError: The maps differ in shape or are no maps, or the band has no width.

    Source: Cheng et al., "Boundary IoU" (2021), there for one mask; here for all classes of a label map at once, with
    the erosions done as one comparison of the highest and lowest id around each pixel.
    """
    if label_HW.shape != prediction_HW.shape or label_HW.ndim != 2:
        raise ValueError(
            f"label {label_HW.shape} and prediction {prediction_HW.shape} must be maps of one size; "
            "resize the prediction"
        )
    if not 0 < band < 1:
        raise ValueError(f"band is {band}; expected a share of the diagonal in (0, 1), such as 0.02")
    if label_HW.size == 0:
        return np.zeros((2, num_classes), np.int64)
    pixels = max(1, round(band * math.hypot(*label_HW.shape)))
    known = label_HW != ignore_index
    true = near_another(label_HW, pixels) & known
    found = near_another(prediction_HW, pixels) & known & (prediction_HW != ignore_index)
    both = true & found & (label_HW == prediction_HW)
    intersection = np.bincount(label_HW[both].astype(np.int64), minlength=num_classes)
    union = np.bincount(label_HW[true].astype(np.int64), minlength=num_classes) - intersection
    union += np.bincount(prediction_HW[found].astype(np.int64), minlength=num_classes)
    return np.stack([intersection, union]).astype(np.int64)


def boundary_iou(counts_2K: NDArray[np.int64]) -> float | None:
    """Give the mean boundary IoU in per cent over the classes that have a band; None if none has."""
    present = counts_2K[:, counts_2K[1] > 0].astype(np.float64)
    return 100 * float((present[0] / present[1]).mean()) if present.size else None


def near_another(label_HW: Labels, pixels: int) -> NDArray[np.bool_]:
    """Give the pixels with another id, or the outside of the image, within the square of `pixels` each way."""
    ids = label_HW.astype(np.int64)
    size, outside = 2 * pixels + 1, int(ids.min()) - 1
    lowest = minimum_filter(ids, size, mode="constant", cval=outside)
    highest = maximum_filter(ids, size, mode="nearest")
    different: NDArray[np.bool_] = lowest != highest
    return different
