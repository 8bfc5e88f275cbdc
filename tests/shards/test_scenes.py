"""The generated data set: deterministic, honest about its splits, labels that fit the picture."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from shards.scenes.scenes import (
    OBJECT_CLASSES,
    RECIPES,
    SCENE_CLASSES,
    SEEN,
    UNSEEN,
    SceneRecipe,
    compose_scene,
    render_scene,
)


def test_the_same_index_gives_the_same_scene() -> None:
    first, again = (render_scene("target", 3, 17) for _ in range(2))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.label, again.label)


def test_no_two_splits_or_seeds_share_a_scene() -> None:
    digests = {
        hashlib.sha256(render_scene(split, seed, index).label.tobytes()).digest()
        for split in ("source", "target", "validation", "test")
        for seed in (0, 1)
        for index in range(15)
    }
    assert len(digests) == 4 * 2 * 15


def test_source_scenes_show_seen_classes_only() -> None:
    shown = set[str]()
    for index in range(60):
        shown |= {SCENE_CLASSES[i] for i in np.unique(render_scene("source", 0, index).label)}
    assert shown == SEEN


def test_target_scenes_show_every_class() -> None:
    shown = set[str]()
    for index in range(120):
        shown |= {SCENE_CLASSES[i] for i in np.unique(render_scene("target", 0, index).label)}
    assert shown == SEEN | UNSEEN


def test_source_labels_are_outlines_around_the_objects() -> None:
    exact = RECIPES["source"]
    for index in range(5):
        precise, drawn = (
            compose_scene(np.random.default_rng(index), replace(exact, objects=(1, 1), outline=outline))
            for outline in (None, 2)
        )
        assert np.array_equal(precise.image, drawn.image)
        inside, marked = (scene.label < len(OBJECT_CLASSES) for scene in (precise, drawn))
        assert (inside <= marked).all()
        distance = ndimage.distance_transform_edt(~ndimage.binary_fill_holes(inside))
        assert np.array_equal(marked, distance <= 2)


def test_test_labels_are_exact() -> None:
    assert all(RECIPES[split].outline is None for split in ("target", "validation", "test"))


def test_every_word_of_an_unseen_combination_is_seen_in_another() -> None:
    words = {word for name in SEEN for word in name.split()}
    for name in UNSEEN - {"wood", "stone"}:
        assert set(name.split()) <= words


def test_the_target_domain_is_darker_or_noisier_than_the_source() -> None:
    def roughness(split: str) -> float:
        images = [render_scene(split, 0, i).image.astype(float) for i in range(30)]
        return float(np.mean([image.std() for image in images]))

    assert roughness("target") < 0.95 * roughness("source")


def test_objects_have_the_colour_of_their_name() -> None:
    channel = {"red": 0, "green": 1, "blue": 2}
    for colour, strongest in channel.items():
        ids = [i for i, name in enumerate(SCENE_CLASSES) if name.startswith(f"{colour} ")]
        recipe = SceneRecipe(objects=(3, 3), classes=(*ids, SCENE_CLASSES.index("sand")), domain=(0.0, 0.0))
        scene = compose_scene(np.random.default_rng(0), recipe)
        mean = scene.image[np.isin(scene.label, ids)].mean(0)
        assert mean.argmax() == strongest


def test_segments_tell_objects_of_one_class_apart() -> None:
    recipe = SceneRecipe(objects=(2, 2), classes=(0, SCENE_CLASSES.index("sand")), domain=(0.0, 0.0))
    counts = [len(np.unique(compose_scene(np.random.default_rng(i), recipe).segments)) for i in range(20)]
    assert max(counts) == 3


@pytest.mark.parametrize(("split", "seed", "index"), [("train", 0, 0), ("target", -1, 0), ("target", 0, -1)])
def test_a_scene_that_cannot_be_is_refused(split: str, seed: int, index: int) -> None:
    with pytest.raises(ValueError, match=r"expected one of|must be >= 0"):
        render_scene(split, seed, index)
