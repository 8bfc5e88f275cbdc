import math

import pytest
import torch
from decoder_setup import cost_volume

from models.stseg.cost_volume import check_cost_inputs, cost_rows, unit_pixels


@pytest.mark.parametrize(
    ("batch", "classes", "templates", "grid"), [(1, 1, 1, (1, 1)), (3, 4, 2, (3, 5)), (2, 1, 3, (2, 2))]
)
def test_cost_volume_equals_loops_over_eq_5(batch: int, classes: int, templates: int, grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    dense, text = 7 * torch.randn(batch, 6, *grid), 3 * torch.randn(classes, templates, 6)
    cost = cost_volume(dense, text)
    assert cost.shape == (batch, templates, classes, *grid)
    for b in range(batch):
        for n in range(classes):
            for p in range(templates):
                for y in range(grid[0]):
                    for x in range(grid[1]):
                        f, e = dense[b, :, y, x].tolist(), text[n, p].tolist()
                        dot = sum(i * j for i, j in zip(f, e, strict=True))
                        lengths = math.sqrt(sum(i * i for i in f)) * math.sqrt(sum(j * j for j in e))
                        assert cost[b, p, n, y, x].item() == pytest.approx(dot / lengths, abs=1e-5)


def test_zero_features_cost_zero_and_do_not_give_nan() -> None:
    assert cost_volume(torch.zeros(1, 4, 2, 2), torch.randn(3, 2, 4)).abs().max() == 0


@pytest.mark.parametrize("batch", [1, 2])
def test_rows_for_the_decoder_go_class_by_class_and_lie_channels_last(batch: int) -> None:
    dense, text = torch.randn(batch, 4, 3, 3), torch.randn(5, 2, 4)
    rows = cost_rows(unit_pixels(dense), text[1:4])
    assert rows.is_contiguous(memory_format=torch.channels_last)
    expected = cost_volume(dense, text)[:, :, 1:4].permute(2, 0, 1, 3, 4).flatten(0, 1)
    torch.testing.assert_close(rows, expected)


def test_more_than_255_classes() -> None:
    assert cost_volume(torch.randn(1, 4, 2, 2), torch.randn(300, 2, 4)).shape == (1, 2, 300, 2, 2)


def test_wrong_inputs_are_refused_with_the_cause() -> None:
    with pytest.raises(ValueError, match="4 channels, text embeddings 5"):
        check_cost_inputs(torch.randn(1, 4, 2, 2), torch.randn(3, 2, 5))
    with pytest.raises(ValueError, match="no class"):
        check_cost_inputs(torch.randn(1, 4, 2, 2), torch.randn(0, 2, 4))
    with pytest.raises(ValueError, match="expected dense"):
        check_cost_inputs(torch.randn(1, 4, 2, 2), torch.randn(3, 4))
