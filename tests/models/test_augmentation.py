"""Augmentation: image, label and embedding stay together, and what is off changes no bit."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from models.training.augmentation import (
    Colour,
    Window,
    draw_augmentation,
    recoloured,
    shown_embedding,
    shown_image,
    shown_map,
)
from models.training.settings import AugmentConfig

S, GRID, IGNORE = 96, 16, 255
STRONG = AugmentConfig(flip=0.5, scale=(0.6, 2.0), brightness=0.3, contrast=0.3, saturation=0.3, grey=0.3)
WINDOWS = [Window(0, 0, S, S, True), Window(20, 36, 60, S, False), Window(36, 0, 60, S, True),
           Window(-20, -4, 120, S, False), Window(-10, -50, 150, S, True)]  # fmt: skip


def places(rows: int, columns: int) -> Tensor:
    """Give (2, rows, columns): how far down and how far right each centre lies, as shares."""
    down, right = ((torch.arange(n) + 0.5) / n for n in (rows, columns))
    return torch.stack([down[:, None].expand(rows, columns), right.expand(rows, columns)])


def expected(window: Window, side: int) -> Tensor:
    """Give where in the picture each centre of the window's own `side` x `side` grid lies, as shares."""
    down, right = places(side, side)
    right = 1 - right if window.flipped else right
    start = torch.tensor([window.top, window.left]) / S
    return torch.stack([down, right]) * (window.side / S) + start[:, None, None]


def drawn(config: AugmentConfig, count: int, size: int = S) -> list[tuple[Window, Colour]]:
    return [draw_augmentation(config, size, np.random.default_rng(seed)) for seed in range(count)]


def test_what_is_off_leaves_every_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    image, embedding = torch.rand(3, S, S, generator=generator), torch.randn(1, 5, GRID, GRID, generator=generator)
    label = torch.randint(0, 9, (S, S), generator=generator)
    for window, colour in drawn(AugmentConfig(), 5):
        assert window.is_identity
        assert colour.is_identity
        assert torch.equal(recoloured(shown_image(image, window), colour), image)
        assert torch.equal(shown_map(label, window, IGNORE), label)
        assert torch.equal(shown_embedding(embedding, torch.ones(1, 2), window), embedding)
    assert not AugmentConfig().changes


def test_two_flips_are_none() -> None:
    window = Window(0, 0, S, S, True)
    image, label, embedding = torch.rand(3, S, S), torch.randint(0, 9, (S, S)), torch.randn(1, 5, GRID, GRID)
    assert torch.equal(shown_image(shown_image(image, window), window), image)
    assert torch.equal(shown_map(shown_map(label, window, IGNORE), window, IGNORE), label)
    whole = torch.ones(1, 2)
    assert torch.equal(shown_embedding(shown_embedding(embedding, whole, window), whole, window), embedding)
    assert not torch.equal(shown_image(image, window), image)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("valid", [(1.0, 1.0), (0.75, 1.0), (1.0, 0.5)])
def test_image_label_and_embedding_show_the_same_place(window: Window, valid: tuple[float, float]) -> None:
    down, right = places(S, S)
    wanted = expected(window, S)
    inside = ((wanted > 0.06) & (wanted < 0.94)).all(0)  # at the edge the outermost pixel, or cell, goes on
    image = shown_image(torch.stack([down, right, right]), window)[:2]
    assert (image - wanted)[:, inside].abs().max() < 0.25 / S  # a crop repeats its own edge, too
    for axis, share in enumerate((down, right)):
        label = shown_map((share * S).long(), window, IGNORE)
        assert (label / S + 0.5 / S - wanted[axis])[inside].abs().max() <= 0.5 / S + 1e-6
    cells = [round(GRID * share) for share in valid]
    embedding = torch.full((1, 2, GRID, GRID), 1e6)  # the padding is never read
    embedding[0, :, : cells[0], : cells[1]] = places(cells[0], cells[1])
    shown = shown_embedding(embedding, torch.tensor([valid]), window)[0]
    assert shown.max() <= 1
    wanted = expected(window, GRID)
    inside = ((wanted > 0.07) & (wanted < 0.93)).all(0)
    assert inside.any()
    assert (shown - wanted)[:, inside].abs().max() < 1e-5


@pytest.mark.parametrize("window", WINDOWS)
def test_exactly_what_lies_outside_is_ignored_and_weighs_nothing(window: Window) -> None:
    wanted = expected(window, S)
    inside = ((wanted >= 0) & (wanted < 1)).all(0)
    assert torch.equal(shown_map(torch.zeros(S, S, dtype=torch.int64), window, IGNORE) != IGNORE, inside)
    assert torch.equal(shown_map(torch.ones(S, S), window, 0.0) > 0, inside)


def test_a_shrunk_picture_is_smoothed_and_its_edge_goes_on() -> None:
    stripes = (torch.arange(S) % 2).float().expand(3, S, S).contiguous()
    shown = shown_image(stripes, Window(-S, -S, 3 * S, S, False))
    assert (shown[:, S // 3 + 2 : 2 * S // 3 - 2, S // 3 + 2 : 2 * S // 3 - 2] - 0.5).abs().max() < 0.1
    torch.testing.assert_close(shown[:, :, :30], torch.zeros(3, S, 30))
    torch.testing.assert_close(shown[:, :, -30:], torch.ones(3, S, 30))


def test_an_embedding_without_whole_cells_of_image_stays_finite() -> None:
    shown = shown_embedding(torch.rand(1, 2, GRID, GRID), torch.tensor([[1.0, 0.01]]), Window(5, 5, 50, S, True))
    assert shown.isfinite().all()


def test_windows_keep_to_the_scale_and_reach_every_edge() -> None:
    windows = [window for window, _ in drawn(STRONG, 400)]
    sides = [window.side for window in windows]
    assert min(sides) >= S / 2
    assert max(sides) <= round(S / 0.6)
    assert 0.4 < np.mean([side < S for side in sides]) < 0.7
    crops = drawn_windows(AugmentConfig(scale=(1.1, 1.1)), 400)
    reach = S - crops[0].side
    assert {window.top for window in crops} == {window.left for window in crops} == set(range(reach + 1))
    around = drawn_windows(AugmentConfig(scale=(0.95, 0.95)), 400)
    assert {window.top for window in around} == set(range(S - around[0].side, 1))
    assert 0.4 < np.mean([window.flipped for window in windows]) < 0.6


def drawn_windows(config: AugmentConfig, count: int) -> list[Window]:
    return [window for window, _ in drawn(config, count)]


def test_one_setting_does_not_change_what_another_one_draws() -> None:
    without_flip = STRONG.model_copy(update={"flip": 0.0, "grey": 0.0})
    for (window, colour), (plain, other) in zip(drawn(STRONG, 20), drawn(without_flip, 20), strict=True):
        assert (window.top, window.left, window.side) == (plain.top, plain.left, plain.side)
        assert (colour.brightness, colour.contrast) == (other.brightness, other.contrast)
        assert colour.saturation in (0.0, other.saturation)


def test_colours_stay_colours() -> None:
    image = torch.rand(3, 8, 8)
    for _, colour in drawn(STRONG, 50):
        changed = recoloured(image, colour)
        assert changed.min() >= 0
        assert changed.max() <= 1
        assert not torch.equal(changed, image)
    grey = recoloured(image, Colour(1.0, 1.0, 0.0))
    assert torch.equal(grey[0], grey[1])
    darker = recoloured(image, Colour(0.5, 1.0, 1.0))
    torch.testing.assert_close(darker, image * 0.5)
    flat = recoloured(torch.full((3, 4, 4), 0.25), Colour(1.0, 1.3, 1.3))
    torch.testing.assert_close(flat, torch.full((3, 4, 4), 0.25))


@pytest.mark.parametrize("size", [2, 7, 95])
def test_a_picture_of_few_pixels_stays_one(size: int) -> None:
    for window, _ in drawn(STRONG, 30, size):
        assert shown_image(torch.rand(3, size, size), window).shape == (3, size, size)
        assert (shown_map(torch.zeros(size, size), window, 1.0) == 0).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": (1.5, 1.0)}, "least"),
        ({"scale": (0.0, 1.0)}, "greater than 0"),
        ({"embeddings": "encode"}, "nothing is augmented"),
        ({"flip": 1.5}, "less than or equal to 1"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AugmentConfig.model_validate(settings)


def test_a_crop_equals_cutting_it_out() -> None:
    image = torch.rand(3, S, S)
    cut = F.interpolate(image[None, :, 10:70, 20:80], (S, S), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(shown_image(image, Window(10, 20, 60, S, False)), cut)
