"""The network's input."""

import numpy as np
import pytest
import torch

from models.stseg.sliding import from_network_input, to_network_input


def test_image_of_the_right_size_is_only_scaled_to_unit_range() -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    expected = torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1)
    assert torch.equal(to_network_input(image, 8), expected)


@pytest.mark.parametrize("shape", [(1, 1), (1, 37), (50, 3), (333, 7)])
def test_odd_sizes_fill_the_square_and_keep_a_constant_colour(shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), (0, 128, 255), np.uint8)
    square = to_network_input(image, 16)
    assert square.shape == (3, 16, 16) and square.dtype == torch.float32
    for channel, value in zip(square, (0.0, 128 / 255, 1.0), strict=True):
        assert torch.allclose(channel, torch.full((16, 16), value), atol=1e-6)


def test_shrinking_averages_instead_of_skipping_pixels() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, ::2] = 255
    assert (to_network_input(image, 8)[:, :, 1:-1] - 0.5).abs().max() < 0.05


def test_wrong_types_are_refused() -> None:
    with pytest.raises(ValueError, match="expected"):
        to_network_input(np.zeros((4, 4, 3), np.float32), 8)
    with pytest.raises(ValueError, match="expected"):
        to_network_input(np.zeros((0, 4, 3), np.uint8), 8)


def test_an_image_comes_back_from_the_square_in_its_own_size() -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert np.array_equal(from_network_input(to_network_input(image, 16), (16, 16)), image)
    bands = np.repeat(np.arange(0, 240, 60, dtype=np.uint8), 8)[:, None, None].repeat(11, 1).repeat(3, 2)
    back = from_network_input(to_network_input(bands, 64), (32, 11))
    assert back.shape == bands.shape
    assert (np.abs(back[4::8].astype(int) - bands[4::8]) <= 1).all()  # the middle of each band
