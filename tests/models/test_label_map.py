"""Label maps at full size: the labels of the plain way, ties included, one class at full size at a time."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.stseg import label_map
from models.stseg.label_map import contenders, label_at_size

SHAPES = [(1, 6, 5), (2, 1, 1), (7, 1, 9), (7, 9, 1), (150, 5, 7), (847, 6, 6)]
SIZES = [(1, 1), (3, 2), (6, 5), (33, 20), (96, 97)]
LARGE = (70, 65)  # from here on the plain way has the same rounding for every number of classes


@pytest.fixture(autouse=True)
def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every label map made class by class."""
    monkeypatch.setattr(label_map, "_VALUES_AT_ONCE", 0)


def plainly(scores_Khw: Tensor, size_hw: tuple[int, int]) -> np.ndarray:
    """Resize all classes, then take the highest: SED's order."""
    return F.interpolate(scores_Khw[None], size_hw, mode="bilinear", align_corners=False)[0].argmax(0).numpy()


def noise(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size_hw", SIZES)
def test_labels_are_those_of_the_plain_way(shape: tuple[int, int, int], size_hw: tuple[int, int]) -> None:
    scores = 3 * noise(shape)
    label = label_at_size(scores, size_hw)
    assert label.dtype == np.int32
    np.testing.assert_array_equal(label, plainly(scores, size_hw))
    np.testing.assert_array_equal(label_at_size(scores, size_hw, sigmoid=True), plainly(scores.sigmoid(), size_hw))


@pytest.mark.parametrize("sigmoid", [False, True])
def test_lowest_id_wins_among_equals(sigmoid: bool) -> None:
    scores = noise((60, 8, 8)).round()
    scores[30:] = scores[:30]  # each value twice
    wanted = plainly(scores.sigmoid() if sigmoid else scores, LARGE)
    assert wanted.max() < 30, "the plain way itself has no lowest id here"
    np.testing.assert_array_equal(label_at_size(scores, LARGE, sigmoid=sigmoid), wanted)
    assert (label_at_size(torch.zeros(70, 2, 2), (3, 3)) == 0).all()
    assert (label_at_size(torch.tensor([30.0, 90.0])[:, None, None], (2, 2), sigmoid=True) == 0).all()


def test_resizing_the_sigmoid_is_not_resizing_the_scores() -> None:
    scores = 4 * noise((20, 6, 6))
    assert (label_at_size(scores, (48, 48)) != label_at_size(scores, (48, 48), sigmoid=True)).any()


@pytest.mark.parametrize("seed", range(5))
def test_no_winner_is_left_out_and_hopeless_classes_are(seed: int) -> None:
    scores = F.interpolate(noise((1, 40, 3, 4), seed), (11, 13), mode="bicubic")[0]
    scores[::2] -= 10
    chosen = contenders(scores)
    assert set(np.unique(plainly(scores, (64, 64))).tolist()) <= set(chosen)
    assert chosen == sorted(chosen)
    assert all(class_id % 2 for class_id in chosen)


def test_class_that_wins_in_a_corner_only_is_found() -> None:
    scores = torch.zeros(3, 4, 4)
    scores[0] = 1
    scores[2, 3, 3] = 1.5
    assert contenders(scores) == [0, 2]
    assert label_at_size(scores, (16, 16))[-1, -1] == 2


def test_one_class_at_full_size_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    resize = F.interpolate

    def counted(*args: object, **kwargs: object) -> Tensor:
        resized: Tensor = resize(*args, **kwargs)  # type: ignore[arg-type]
        sizes.append(resized.numel())
        return resized

    monkeypatch.setattr(F, "interpolate", counted)
    scores = noise((300, 4, 4))
    scores[100:] -= 20
    label_at_size(scores, (32, 40))
    assert max(sizes) == 32 * 40
    assert len(sizes) <= 100


def test_few_scores_are_resized_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = noise((20, 5, 6))
    streamed = label_at_size(scores, LARGE)
    monkeypatch.setattr(label_map, "_VALUES_AT_ONCE", 20 * 70 * 65)
    monkeypatch.setattr(label_map, "contenders", lambda _: pytest.fail("was not needed"))
    found = label_at_size(scores, LARGE)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, streamed)


def test_half_precision_is_resized_as_float() -> None:
    scores = noise((9, 5, 5)).half()
    np.testing.assert_array_equal(label_at_size(scores, (17, 17)), plainly(scores.float(), (17, 17)))


@pytest.mark.parametrize("shape", [(0, 4, 4), (3, 0, 4), (3, 4)])
def test_scores_without_classes_or_cells_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected \\(K, h, w\\)"):
        label_at_size(torch.zeros(shape), (2, 2))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("strip", [1, 300, 1 << 20])
def test_strips_of_rows_give_the_same_labels(
    shape: tuple[int, int, int], strip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = 3 * noise(shape)
    whole = [label_at_size(scores, size) for size in SIZES]
    monkeypatch.setattr(label_map, "_PIXELS_AT_ONCE", 0)
    monkeypatch.setattr(label_map, "_STRIP_PIXELS", strip)
    for label, size in zip(whole, SIZES, strict=True):
        np.testing.assert_array_equal(label_at_size(scores, size), label)
