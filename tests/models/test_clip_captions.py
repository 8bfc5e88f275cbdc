"""What the captions of the tiny CLIP's training call the classes, and how often."""

import numpy as np
import pytest

from models.tiny.clip_training import Naming, draw_caption, draw_captions
from shards.scenes.scenes import OBJECT_CLASSES, SCENE_CLASSES

ALL = np.ones((1, len(SCENE_CLASSES)), np.bool_)


def test_by_default_every_class_may_be_named_and_no_chance_is_drawn() -> None:
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    assert np.array_equal(Naming().nameable(ALL, rng), ALL)
    assert rng.bit_generator.state == before


def test_a_class_may_be_named_as_often_as_its_rate_and_only_where_it_is_shown() -> None:
    rates = (0.0, 0.2) + (1.0,) * (len(SCENE_CLASSES) - 2)
    shows = np.repeat(ALL, 5000, axis=0)
    shows[:, 2] = False
    share = Naming(rates=rates).nameable(shows, np.random.default_rng(1)).mean(axis=0)
    assert share[:1] == [0]
    assert share[1] == pytest.approx(0.2, abs=0.02)
    assert share[2] == 0
    assert (share[3:] == 1).all()


def test_captions_name_what_they_may_by_the_given_names() -> None:
    names = [f"w{n}" for n in range(len(SCENE_CLASSES))]
    nameable = np.zeros((200, len(SCENE_CLASSES)), np.bool_)
    nameable[:, [4, 20]] = True
    captions, named = draw_captions(np.random.default_rng(2), nameable, 0.5, Naming(tuple(names)))
    for caption, row in zip(captions, named.numpy(), strict=True):
        said = {word for word in caption.split() if word in names}
        assert said == {names[k] for k in np.flatnonzero(row)}
        assert 1 <= len(said) <= 2
        assert said <= {"w4", "w20"}


def test_the_shipped_names_draw_the_same_captions_as_ever() -> None:
    classes = np.array([0, 7, len(OBJECT_CLASSES)])
    one, two = (np.random.default_rng(3) for _ in range(2))
    for _ in range(20):
        text, ids = draw_caption(one, classes, 0.7)
        many, named = draw_captions(two, np.isin(np.arange(len(SCENE_CLASSES)), classes)[None], 0.7, Naming())
        assert (text, sorted(ids)) == (many[0], np.flatnonzero(named[0].numpy()).tolist())


def test_words_of_names_are_marked_per_class() -> None:
    words = Naming(names=("a b", "b c"), rates=(1.0, 1.0)).class_words()
    assert words.tolist() == [[1, 1, 0], [0, 1, 1]]
