"""Masks of COCO files: run lengths, plain and compressed, and polygons."""

from typing import Any

import numpy as np
import pytest

from shards.data.run_lengths import decode_segmentation


def compressed(counts: list[int]) -> str:
    """Write counts as pycocotools' rleToString does."""
    text = ""
    for index, count in enumerate(counts):
        left = count - counts[index - 2] if index > 2 else count
        more = True
        while more:
            part, left = left & 31, left >> 5
            more = left != (-1 if part & 16 else 0)
            text += chr(48 + (part | 32 if more else part))
    return text


def runs_of(mask: np.ndarray[Any, Any]) -> list[int]:
    counts, value = [0], False
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts


@pytest.mark.parametrize("seed", range(4))
def test_run_lengths_come_back_as_the_mask_that_they_are_of(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = np.kron(rng.random((5, 7)) < 0.5, np.ones((9, 30), bool))
    size, counts = [*mask.shape], runs_of(mask)
    for written in (counts, compressed(counts)):
        assert np.array_equal(decode_segmentation({"size": size, "counts": written}, mask.shape), mask)


def test_text_that_pycocotools_wrote_is_read() -> None:
    # pycocotools.mask.encode of a mask whose rows 1 and 2 of columns 1 to 4 are set
    mask = np.zeros((4, 6), bool)
    mask[1:3, 1:5] = True
    assert np.array_equal(decode_segmentation({"size": [4, 6], "counts": "522000003"}, (4, 6)), mask)


def test_polygons_are_filled_to_the_pixel_and_joined() -> None:
    squares = [[2.0, 1.0, 6.0, 1.0, 6.0, 4.0, 2.0, 4.0], [8, 0, 12, 0, 12, 5, 8, 5]]
    wanted = np.zeros((5, 10), bool)
    wanted[1:4, 2:6], wanted[:, 8:] = True, True
    assert np.array_equal(decode_segmentation(squares, (5, 10)), wanted)
    triangle = decode_segmentation([[0, 0, 10, 0, 0, 10]], (10, 10))
    y, x = np.mgrid[:10, :10] + 0.5
    assert np.array_equal(triangle, x + y < 10)


@pytest.mark.parametrize(
    ("segmentation", "what"),
    [
        ({"size": [4, 4], "counts": [24]}, "size"),
        ({"size": [4, 6], "counts": [23]}, "add up to 23"),
        ({"size": [4, 6], "counts": [30, -6]}, "add up"),
        ({"size": [4, 6], "counts": "P"}, "cut short"),
        ({"size": [4, 6], "counts": "é"}, "pycocotools"),
        ({"size": [4, 6], "counts": None}, "neither numbers nor text"),
        ({"size": [4, 6]}, "neither numbers nor text"),
        ([[1, 2, 3, 4]], "three points"),
        ([[1, 2, 3, 4, 5, float("nan")]], "three points"),
        ([1, 2, 3], "neither a list"),
        ("x", "neither a list"),
    ],
)
def test_what_is_no_mask_is_refused(segmentation: Any, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        decode_segmentation(segmentation, (4, 6))
