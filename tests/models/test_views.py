"""Views of an image: one map of scores out of several, and how far they differ."""

import numpy as np
import pytest
import torch

from models.stseg.views import disagreement, merge_views, seen_as, seen_upright


def logits(seed: int) -> torch.Tensor:
    return 3 * torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("views", [1, 2, 3])
def test_merged_logits_have_the_scaled_geometric_mean_of_the_probabilities(views: int) -> None:
    given = [logits(seed) for seed in range(views)]
    root = torch.stack([one.softmax(dim=1) for one in given]).prod(dim=0) ** (1 / views)
    assert torch.allclose(merge_views(given).softmax(dim=1), root / root.sum(dim=1, keepdim=True), atol=1e-6)
    yes = torch.stack([one.sigmoid() for one in given]).prod(dim=0) ** (1 / views)
    no = torch.stack([1 - one.sigmoid() for one in given]).prod(dim=0) ** (1 / views)
    assert torch.allclose(merge_views(given).sigmoid(), yes / (yes + no), atol=1e-5)


def test_one_view_is_merged_to_itself() -> None:
    given = logits(0)
    assert merge_views([given]) is given


def test_views_disagree_by_their_total_variation() -> None:
    first, second = logits(0), logits(1)
    p, q = first.softmax(dim=1), second.softmax(dim=1)
    expected = ((p - q).abs().sum(dim=1) / 2).mean(dim=(1, 2))
    assert torch.allclose(disagreement([first, second], softmax=True), expected)
    expected = (first.sigmoid() - second.sigmoid()).abs().amax(dim=1).mean(dim=(1, 2))
    assert torch.allclose(disagreement([first, second], softmax=False), expected)
    sure = torch.zeros(1, 2, 1, 1)
    sure[0, 0] = 100
    assert disagreement([sure, sure.flip(1)], softmax=True).tolist() == [1.0]
    assert disagreement([sure, sure], softmax=True).tolist() == [0.0]
    assert disagreement([first], softmax=True).tolist() == [0.0, 0.0]


def test_a_mirrored_view_is_turned_back() -> None:
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert (seen_as(image, "mirror") == image[:, ::-1]).all()
    assert seen_as(image, "mirror").flags.c_contiguous
    assert seen_as(image, "identity") is image
    given = logits(0)
    assert torch.equal(seen_upright(given.flip(-1), "mirror"), given)
