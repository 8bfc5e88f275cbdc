import math

import numpy as np
import pytest

from models.refinement.components import Component, find_components
from models.refinement.prompts import PromptSource, component_logits, image_prompts
from models.refinement.settings import ComponentConfig, PromptConfig
from models.sam.frame import GridFrame


def component_of(cells: np.ndarray) -> Component:
    (component,) = find_components(cells.astype(np.int32), [1], ComponentConfig(min_area=1)).kept
    return component


def source_of(ids: np.ndarray, scores: np.ndarray) -> PromptSource:
    frame = GridFrame((ids.shape[1], ids.shape[2]), (1.0, 1.0), 96)
    return PromptSource(ids, scores, np.zeros((1, 16, 16), dtype=np.float16), frame)


def logits_of(
    components: list[Component] | tuple[Component, ...], ids: np.ndarray, scores: np.ndarray, config: PromptConfig
) -> np.ndarray:
    return np.stack(list(component_logits(components, source_of(ids, scores), config)))


def test_mask_logits_are_the_log_odds_of_the_class_within_the_clip() -> None:
    ids = np.array([[[1, 1, 2, 3]], [[2, 2, 1, 2]]], dtype=np.uint16)
    scores = np.array([[[0.75, 1.0, 0.5, 0.5]], [[0.25, 0.0, 0.25, 0.25]]])
    components = find_components(ids[0], [1], ComponentConfig(min_area=1)).kept
    logits = logits_of(components, ids, scores, PromptConfig())
    assert logits.dtype == np.float32
    assert logits[0, 0].tolist() == pytest.approx([math.log(3), 10, -math.log(3), -10], abs=1e-4)


def test_margin_is_positive_exactly_where_the_class_comes_first() -> None:
    ids = np.array([[[1, 2, 1]], [[2, 1, 3]]], dtype=np.uint16)
    scores = np.array([[[0.3, 0.4, 0.2]], [[0.2, 0.1, 0.2]]])
    component = component_of(np.ones((1, 3)))
    probability = logits_of([component], ids, scores, PromptConfig())
    assert (probability < 0).all()
    margin = logits_of([component], ids, scores, PromptConfig(mask_logit="margin"))
    assert margin[0, 0].tolist() == pytest.approx([math.log(1.5), -math.log(4), 0], abs=1e-6)
    one = PromptConfig(mask_logit="margin"), PromptConfig()
    first, second = (logits_of([component], ids[:1], scores[:1], config) for config in one)
    assert (first == second).all()


def test_other_components_of_the_class_are_held_down() -> None:
    ids = np.array([[[1, 0, 1]], [[0, 1, 0]]])
    scores = np.array([[[0.75, 0.75, 0.75]], [[0.25, 0.25, 0.01]]])
    first, second = logits_of(
        find_components(ids[0], [1], ComponentConfig(min_area=1)).kept, ids, scores, PromptConfig()
    )
    odds = math.log(3)
    assert first[0].tolist() == pytest.approx([odds, -odds, -4], abs=1e-5)
    assert second[0].tolist() == pytest.approx([-4, -odds, odds], abs=1e-5)


def test_image_prompts_of_nothing_are_empty() -> None:
    ids = np.zeros((2, 4, 4), dtype=np.uint16)
    prompts = image_prompts([], source_of(ids, np.zeros((2, 4, 4))), PromptConfig())
    assert (len(prompts.boxes), len(prompts.points), prompts.mask_logits.shape) == (0, 0, (0, 64, 64))


def test_prompt_kinds_must_be_named_once() -> None:
    with pytest.raises(ValueError, match="name mask, box or point"):
        PromptConfig(kinds=())
    with pytest.raises(ValueError, match="each once"):
        PromptConfig(kinds=("box", "box"))


def test_settings_without_effect_are_refused() -> None:
    with pytest.raises(ValueError, match="elastic_box needs a box"):
        PromptConfig(kinds=("mask",), elastic_box=True)
    with pytest.raises(ValueError, match="feed_box needs a box and a second iteration"):
        PromptConfig(feed_box=True)
    with pytest.raises(ValueError, match="name mask, box or point"):
        PromptConfig(kinds=("negative_point",))


def test_elastic_box_reaches_the_prompts() -> None:
    ids = np.zeros((1, 8, 8), dtype=np.uint16)
    ids[0, 2:6, 2:6] = 1
    source = source_of(ids, np.ones((1, 8, 8)))
    source = PromptSource(source.ids, source.scores, np.ones((1, 16, 16), dtype=np.float16), source.frame)
    component = component_of(ids[0])
    assert image_prompts([component], source, PromptConfig()).boxes.tolist() == [[24, 24, 71, 71]]
    assert image_prompts([component], source, PromptConfig(elastic_box=True)).boxes.tolist() == [[0, 0, 95, 95]]


def test_background_point_is_made_only_if_asked_for() -> None:
    ids = np.zeros((1, 8, 8), dtype=np.uint16)
    ids[0, 2:6, 2:6] = np.eye(4)
    component, source = component_of(ids[0]), source_of(ids, np.ones((1, 8, 8)))
    assert image_prompts([component], source, PromptConfig()).point_labels.tolist() == [[1, -1]]
    asked = PromptConfig(kinds=("mask", "negative_point"))
    assert image_prompts([component], source, asked).point_labels.tolist() == [[1, 0]]
