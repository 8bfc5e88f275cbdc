import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.letterbox import letterbox_bilinear, letterbox_nearest, letterbox_valid
from models.prompts import (
    Component,
    PromptConfig,
    boxes_in_sam_frame,
    component_logits,
    find_components,
    image_prompts,
    points_in_sam_frame,
)


def _component(cells: np.ndarray) -> Component:
    (component,) = find_components(cells.astype(np.int32), [1], 1).kept
    return component


def test_cells_that_touch_at_a_corner_are_one_component() -> None:
    found = find_components(np.eye(4, dtype=np.int32), [1], 1)
    assert [c.area for c in found.kept] == [4]
    assert found.kept[0].box == (0, 0, 4, 4)


def test_components_come_by_class_then_reading_order_and_do_not_overlap() -> None:
    first = np.array([[300, 0, 7, 0, 7], [300, 0, 7, 0, 7]], dtype=np.uint16)
    found = find_components(first, [300, 7], 1)
    assert [(c.class_id, c.box) for c in found.kept] == [(7, (2, 0, 3, 2)), (7, (4, 0, 5, 2)), (300, (0, 0, 1, 2))]
    assert sum(c.cells for c in found.kept).max() == 1  # type: ignore[union-attr]


def test_too_small_components_are_counted_and_marked() -> None:
    first = np.array([[1, 0, 1, 1], [0, 0, 1, 1], [2, 0, 0, 0]])
    found = find_components(first, [1, 2, 5], 2)
    assert [c.area for c in found.kept] == [4]
    assert found.too_small_counts == {1: 1, 2: 1}
    assert np.argwhere(found.too_small).tolist() == [[0, 0], [2, 0]]


def test_no_class_and_absent_class_give_no_component() -> None:
    for ids in ([], [3]):
        found = find_components(np.zeros((3, 3), dtype=np.int32), ids, 1)
        assert found.kept == ()
        assert not found.too_small.any()


def test_box_is_the_first_and_last_pixel_in_the_sam_frame() -> None:
    cells = np.zeros((48, 48))
    cells[10:12, 20:25] = 1
    assert boxes_in_sam_frame([_component(cells)], (48, 48), (1.0, 1.0), 96).tolist() == [[40, 20, 49, 23]]
    assert boxes_in_sam_frame([_component(cells)], (48, 48), (0.5, 1.0), 96).tolist() == [[40, 10, 49, 11]]
    whole = _component(np.ones((6, 9)))
    assert boxes_in_sam_frame([whole], (6, 9), (1.0, 0.75), 1024).tolist() == [[0, 0, 767, 1023]]
    assert boxes_in_sam_frame([], (6, 9), (1.0, 1.0), 96).shape == (0, 4)


def test_box_of_a_cell_thinner_than_a_pixel_does_not_turn_over() -> None:
    cells = np.zeros((192, 192))
    cells[100, 7] = 1
    x0, y0, x1, y1 = boxes_in_sam_frame([_component(cells)], (192, 192), (1.0, 0.1), 96)[0]
    assert x0 == x1
    assert y0 == y1 == 50


def test_point_is_the_deepest_cell_and_lies_in_the_component() -> None:
    cells = np.zeros((12, 12))
    cells[0:5, 0:5] = 1
    cells[2, 5:12] = 1
    assert points_in_sam_frame([_component(cells)], (12, 12), (1.0, 1.0), 12).tolist() == [[2, 2]]
    assert points_in_sam_frame([_component(cells)], (12, 12), (1.0, 0.5), 24).tolist() == [[2, 4.5]]
    ring = np.ones((9, 9))
    ring[2:7, 2:7] = 0
    x, y = points_in_sam_frame([_component(ring)], (9, 9), (1.0, 1.0), 9)[0].astype(int)
    assert ring[y, x] == 1


def test_mask_logits_are_the_log_odds_of_the_class_within_the_clip() -> None:
    ids = np.array([[[1, 1, 2, 3]], [[2, 2, 1, 2]]], dtype=np.uint16)
    scores = np.array([[[0.75, 1.0, 0.5, 0.5]], [[0.25, 0.0, 0.25, 0.25]]])
    components = find_components(ids[0], [1], 1).kept
    logits = component_logits(components, ids, scores, PromptConfig())
    assert logits.dtype == np.float32
    assert logits[0, 0].tolist() == pytest.approx([math.log(3), 10, -math.log(3), -10], abs=1e-4)


def test_margin_is_positive_exactly_where_the_class_comes_first() -> None:
    ids = np.array([[[1, 2, 1]], [[2, 1, 3]]], dtype=np.uint16)
    scores = np.array([[[0.3, 0.4, 0.2]], [[0.2, 0.1, 0.2]]])
    component = _component(np.ones((1, 3)))
    probability = component_logits([component], ids, scores, PromptConfig())
    assert (probability < 0).all()
    margin = component_logits([component], ids, scores, PromptConfig(mask_logit="margin"))
    assert margin[0, 0].tolist() == pytest.approx([math.log(1.5), -math.log(4), 0], abs=1e-6)
    one = PromptConfig(mask_logit="margin"), PromptConfig()
    first, second = (component_logits([component], ids[:1], scores[:1], config) for config in one)
    assert (first == second).all()


def test_other_components_of_the_class_are_held_down() -> None:
    ids = np.array([[[1, 0, 1]], [[0, 1, 0]]])
    scores = np.array([[[0.75, 0.75, 0.75]], [[0.25, 0.25, 0.01]]])
    first, second = component_logits(find_components(ids[0], [1], 1).kept, ids, scores, PromptConfig())
    odds = math.log(3)
    assert first[0].tolist() == pytest.approx([odds, -odds, -4], abs=1e-5)
    assert second[0].tolist() == pytest.approx([-4, -odds, odds], abs=1e-5)


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


def test_image_prompts_of_nothing_are_empty() -> None:
    ids = np.zeros((2, 4, 4), dtype=np.uint16)
    prompts = image_prompts([], ids, np.zeros((2, 4, 4)), (1.0, 1.0), (96, 64), PromptConfig())
    assert (len(prompts.boxes), len(prompts.points), prompts.mask_logits.shape) == (0, 0, (0, 64, 64))


def test_prompt_kinds_must_be_named_once() -> None:
    with pytest.raises(ValueError, match="at least one of mask, box, point"):
        PromptConfig(kinds=())
    with pytest.raises(ValueError, match="each once"):
        PromptConfig(kinds=("box", "box"))
