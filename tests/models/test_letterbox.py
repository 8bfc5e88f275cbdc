import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.sam.frame import letterbox_bilinear, letterbox_nearest, letterbox_valid


@pytest.mark.parametrize(("cells", "side"), [((48, 48), 64), ((7, 5), 16), ((192, 192), 256), ((30, 20), 8)])
def test_letterbox_of_a_whole_square_equals_torch(cells: tuple[int, int], side: int) -> None:
    grid = np.random.default_rng(0).normal(size=(3, *cells)).astype(np.float32)
    drawn = letterbox_bilinear(grid, (1.0, 1.0), side, padding=-10)
    expected = F.interpolate(torch.from_numpy(grid)[None], (side, side), mode="bilinear", antialias=True)[0].numpy()
    np.testing.assert_allclose(drawn, expected, atol=1e-4)


def test_letterbox_fills_the_valid_part_and_pads_the_rest() -> None:
    grid = np.random.default_rng(0).normal(size=(2, 6, 6)).astype(np.float32)
    drawn = letterbox_bilinear(grid, (0.5, 1.0), 16, padding=-10)
    assert (drawn[:, 8:] == -10).all()
    expected = F.interpolate(torch.from_numpy(grid)[None], (8, 16), mode="bilinear", antialias=True)[0].numpy()
    np.testing.assert_allclose(drawn[:, :8], expected, atol=1e-5)
    assert letterbox_bilinear(grid[:0], (0.5, 1.0), 16, padding=-10).shape == (0, 16, 16)


def test_letterbox_nearest_agrees_with_bilinear_about_the_frame() -> None:
    grid = np.arange(12, dtype=np.int32).reshape(3, 4)
    drawn = letterbox_nearest(grid, (0.75, 0.5), 16, padding=-2)
    assert ((drawn != -2) == letterbox_valid((0.75, 0.5), 16)).all()
    assert (drawn[:12, :8] == np.repeat(np.repeat(grid, 4, axis=0), 2, axis=1)).all()


@pytest.mark.parametrize("valid", [(0.0, 1.0), (1.0, 1.5), (math.nan, 1.0)])
def test_impossible_share_of_the_square_is_refused(valid: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="share of SAM's square"):
        letterbox_bilinear(np.zeros((1, 4, 4), dtype=np.float32), valid, 8, padding=0)
