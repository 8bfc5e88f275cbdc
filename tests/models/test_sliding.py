"""Windows that cover an image, and their scores merged as SED merges them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.stseg import sliding
from models.stseg.sliding import MergedScores, Probabilities, cut_views, frame_side, to_network_input


def random_image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_one_window_is_the_image_itself_and_its_logits() -> None:
    image, logits = random_image(7, 9), torch.randn(3, 4, 4)
    (view,) = cut_views(image, 96, 1)
    assert view is image
    merged = MergedScores(1)
    merged.add(logits)
    assert torch.equal(merged.scores(), logits)


@pytest.mark.parametrize("size", [(1, 1), (5, 301), (160, 160), (1000, 77)])
def test_windows_cover_the_frame_and_overlap_by_a_third(size: tuple[int, int]) -> None:
    image = random_image(*size)
    views = cut_views(image, 96, 2)
    assert [view.shape for view in views[:-1]] == [(96, 96, 3)] * 4
    assert views[-1] is image
    assert frame_side(96, 2) == 160
    assert np.array_equal(views[0][:, 64:], views[1][:, :32])
    assert np.array_equal(views[0][64:], views[2][:32])
    if size == (160, 160):
        assert np.array_equal(views[3], image[64:, 64:])


@pytest.mark.parametrize("windows", [2, 3])
@pytest.mark.parametrize("probabilities", ["sigmoid", "softmax"])
def test_merged_scores_are_seds_mean_of_windows_and_global_view(windows: int, probabilities: Probabilities) -> None:
    torch.manual_seed(0)
    classes, side, step = 70, 12, 8
    views = torch.randn(windows**2 + 1, classes, side, side)
    merged = MergedScores(windows, probabilities)
    likely = views.sigmoid() if probabilities == "sigmoid" else views.softmax(dim=1)
    for view in views:
        assert not merged.complete
        merged.add(view)
    assert merged.complete
    frame = side + (windows - 1) * step
    fold = torch.nn.Fold(frame, kernel_size=side, stride=step)
    seen = fold(torch.ones(1, side * side, windows**2))
    local = fold(likely[:-1].flatten(2).permute(1, 2, 0)) / seen
    whole = F.interpolate(likely[-1:], frame, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(merged.scores(), (local[:, 0] + whole) / 2)


def test_what_is_held_does_not_grow_with_the_views() -> None:
    merged = MergedScores(4)
    sizes = set()
    for _ in range(17):
        merged.add(torch.zeros(5, 6, 6))
        assert merged._sum_KFF is not None
        sizes.add(merged._sum_KFF.shape)
    assert sizes == {(5, 18, 18)}


def test_sides_that_do_not_split_in_thirds_and_no_windows_are_refused() -> None:
    with pytest.raises(ValueError, match="overlap by a third"):
        cut_views(random_image(9, 9), 64, 2)
    with pytest.raises(ValueError, match="windows is 0"):
        cut_views(random_image(9, 9), 96, 0)


@pytest.mark.parametrize("size", [(500, 70), (97, 150), (3, 400), (50, 60)])
def test_strips_of_an_image_give_the_same_network_input(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = to_network_input(random_image(*size), 96)
    for pixels in (1, 1000):
        monkeypatch.setattr(sliding, "_PIXELS_AT_ONCE", pixels)
        assert torch.equal(to_network_input(random_image(*size), 96), whole)
