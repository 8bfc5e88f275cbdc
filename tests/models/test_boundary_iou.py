import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion

from models.evaluation.metrics import boundary_counts, boundary_iou, near_another


def one_class_at_a_time(
    label: NDArray[np.int64], prediction: NDArray[np.int64], classes: int, ignore: int, pixels: int
) -> NDArray[np.int64]:
    square = np.ones((2 * pixels + 1, 2 * pixels + 1), bool)
    known = label != ignore
    rows = []
    for class_id in range(classes):
        true, found = label == class_id, prediction == class_id
        true_band = true & ~binary_erosion(true, square) & known
        found_band = found & ~binary_erosion(found, square) & known
        rows.append([(true_band & found_band).sum(), (true_band | found_band).sum()])
    return np.array(rows).T


@pytest.mark.parametrize(
    ("shape", "classes", "ignore"), [((31, 17), 3, 255), ((1, 9), 2, 255), ((20, 24), 300, 65535), ((1, 1), 1, 255)]
)
def test_counts_equal_erosions_of_each_class(shape: tuple[int, int], classes: int, ignore: int) -> None:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, classes, (2, 4, 4))
    label, prediction = (np.kron(c, np.ones((9, 9), int))[: shape[0], : shape[1]] for c in coarse)
    label[rng.random(shape) < 0.02] = ignore
    prediction[rng.random(shape) < 0.02] = ignore
    pixels = max(1, round(0.05 * float(np.hypot(*shape))))
    expected = one_class_at_a_time(label, prediction, classes, ignore, pixels)
    np.testing.assert_array_equal(boundary_counts(label, prediction, classes, ignore, band=0.05), expected)


def test_a_small_shift_of_a_large_square_costs_more_boundary_iou_than_iou() -> None:
    label, prediction = np.zeros((100, 100), int), np.zeros((100, 100), int)
    label[10:80, 10:80] = 1
    prediction[12:82, 12:82] = 1
    counts = boundary_counts(label, prediction, 2, 255)
    iou = (label & prediction).sum() / (label | prediction).sum()
    assert counts[0, 1] / counts[1, 1] < iou - 0.2


def test_a_map_agrees_with_itself_and_a_hand_made_band_is_counted() -> None:
    label = np.zeros((10, 10), np.uint8)
    assert boundary_iou(boundary_counts(label, label, 1, 255)) == 100
    assert boundary_counts(label, label, 1, 255)[1, 0] == 100 - 8 * 8
    assert not near_another(label, 1)[1:-1, 1:-1].any()


def test_nothing_labelled_is_none_and_an_ignored_prediction_has_no_band() -> None:
    label, nothing = np.zeros((6, 6), int), np.full((6, 6), 255)
    assert boundary_iou(boundary_counts(nothing, label, 2, 255)) is None
    assert boundary_iou(boundary_counts(label, nothing, 2, 255)) == 0
    assert boundary_counts(np.zeros((0, 4), int), np.zeros((0, 4), int), 2, 255).sum() == 0


def test_wrong_inputs_are_refused() -> None:
    label = np.zeros((4, 4), int)
    with pytest.raises(ValueError, match="one size"):
        boundary_counts(label, label[:2], 2, 255)
    with pytest.raises(ValueError, match="band is 0"):
        boundary_counts(label, label, 2, 255, band=0)
