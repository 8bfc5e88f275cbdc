import numpy as np
import pytest

from models.evaluation.metrics import confusion, scores


@pytest.mark.parametrize(("classes", "ignore", "shape"), [(1, 255, (1, 1)), (5, 255, (7, 3)), (300, 65535, (20, 20))])
def test_confusion_equals_a_loop_over_pixels(classes: int, ignore: int, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    label, prediction = (rng.integers(0, classes, shape).astype(np.int32) for _ in range(2))
    label[rng.random(shape) < 0.2] = ignore
    expected = np.zeros((classes, classes), np.int64)
    for true, found in zip(label.ravel(), prediction.ravel(), strict=True):
        if true != ignore:
            expected[true, found] += 1
    np.testing.assert_array_equal(confusion(label, prediction, classes, ignore), expected)


def test_counts_of_images_add() -> None:
    rng = np.random.default_rng(0)
    label, prediction = rng.integers(0, 4, (2, 6, 6)), rng.integers(0, 4, (2, 6, 6))
    parts = [confusion(label[i], prediction[i], 4, 255) for i in range(2)]
    np.testing.assert_array_equal(confusion(label, prediction, 4, 255), parts[0] + parts[1])


def test_small_integer_types_do_not_overflow() -> None:
    label = np.full((4, 4), 199, np.uint8)
    assert confusion(label, label, 200, 255)[199, 199] == 16


def test_pixels_a_pseudo_label_leaves_open_are_not_counted() -> None:
    matrix = confusion(np.array([0, 1, 1]), np.array([0, 255, 1]), 2, 255)
    assert matrix.tolist() == [[1, 0], [0, 1]]


def test_scores_equal_sets_of_pixels() -> None:
    rng = np.random.default_rng(1)
    label, prediction = rng.integers(0, 4, 200), rng.integers(0, 5, 200)
    result = scores(confusion(label, prediction, 6, 255), [0, 1, 5], [2, 3, 4])
    pixels = range(200)
    expected: list[float | None] = []
    for c in range(6):
        true, found = {i for i in pixels if label[i] == c}, {i for i in pixels if prediction[i] == c}
        expected.append(100 * len(true & found) / len(true | found) if true | found else None)
    assert result["iou"] == pytest.approx(expected)
    assert expected[4] == 0 and expected[5] is None
    present = [v for v in expected if v is not None]
    seen, unseen = sum(present[:2]) / 2, sum(present[2:]) / 3
    assert result["miou"] == pytest.approx(sum(present) / 5)
    assert result["miou_seen"] == pytest.approx(seen)
    assert result["miou_unseen"] == pytest.approx(unseen)
    assert result["hiou"] == pytest.approx(2 / (1 / seen + 1 / unseen))
    assert result["pixel_accuracy"] == pytest.approx(100 * sum(int(label[i] == prediction[i]) for i in pixels) / 200)


def test_nothing_to_score_is_none_not_nan() -> None:
    matrix = confusion(np.full((3, 3), 255), np.zeros((3, 3), int), 2, 255)
    assert scores(matrix, [0], [1]) == {
        "miou": None,
        "miou_seen": None,
        "miou_unseen": None,
        "hiou": None,
        "pixel_accuracy": None,
        "iou": [None, None],
    }


def test_no_unseen_classes_gives_no_harmonic_mean() -> None:
    result = scores(np.array([[4]]), [0], [])
    assert (result["miou"], result["miou_unseen"], result["hiou"]) == (100, None, None)


def test_harmonic_mean_is_zero_when_a_side_is() -> None:
    assert scores(np.array([[4, 0], [2, 0]]), [0], [1])["hiou"] == 0
    assert scores(np.array([[0, 2], [2, 0]]), [0], [1])["hiou"] == 0


def test_wrong_inputs_are_refused_with_the_cause() -> None:
    zeros = np.zeros((2, 2), np.int64)
    with pytest.raises(ValueError, match="differ in shape"):
        confusion(zeros, zeros[:1], 2, 255)
    with pytest.raises(ValueError, match="prediction holds 2"):
        confusion(zeros, zeros + 2, 2, 255)
    with pytest.raises(ValueError, match="label holds -3"):
        confusion(zeros - 3, zeros, 2, 255)
    with pytest.raises(ValueError, match="must lie outside"):
        confusion(zeros, zeros, 300, 255)
    with pytest.raises(ValueError, match="lie outside the 2 classes"):
        scores(zeros, [0], [2])
    with pytest.raises(ValueError, match=r"\(K, K\)"):
        scores(zeros[:1], [0], [])
