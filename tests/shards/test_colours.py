"""Colours of classes are far apart, belong to names, and do not contradict the colour words in them."""

import colorsys
import itertools
import random

import numpy as np
import pytest

from shards.data.colours import (
    IGNORED,
    Rgb,
    colour_words,
    colours_of_indices,
    colours_of_names,
    in_range,
    to_lab,
)
from shards.data.vocabulary import Vocabulary

SYLLABLES = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
WORDS = [f"{first}{second}" for first, second in itertools.product(SYLLABLES, SYLLABLES)]


def names(count: int, seed: int = 0) -> list[str]:
    """Return distinct invented names."""
    return random.Random(seed).sample(WORDS, count)


def distances(colours: list[Rgb]) -> np.ndarray:
    """Return the CIE76 distances of all pairs."""
    lab = to_lab(np.array(colours)).astype(np.float64)
    whole = np.sqrt(((lab[:, None] - lab[None]) ** 2).sum(axis=2))
    pairs: np.ndarray = whole[np.triu_indices(len(lab), 1)]
    return pairs


def test_lab_is_that_of_known_colours() -> None:
    known = to_lab(np.array([[255, 255, 255], [255, 0, 0], [0, 0, 255], [0, 0, 0]]))
    expected = np.array([[100, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86], [0, 0, 0]])
    assert np.abs(known - expected).max() < 0.02


@pytest.mark.parametrize(
    ("count", "least"), [(2, 23.9), (24, 22), (59, 16), (133, 12.5), (150, 12), (171, 11.5), (847, 6.9), (1024, 6.4)]
)
def test_the_nearest_pair_is_as_far_apart_as_promised(count: int, least: float) -> None:
    for seed in (0, 1):
        assert distances(colours_of_names(names(count, seed))).min() >= least


@pytest.mark.parametrize("count", [1, 255, 256, 1024, 1025, 2500])
def test_colours_are_distinct_and_neither_black_nor_white_nor_as_ignored_pixels(count: int) -> None:
    colours = colours_of_names(names(count))
    assert len(set(colours)) == count
    lab = to_lab(np.array(colours))
    assert (lab[:, 0] >= 25).all()
    assert ((lab[:, 0] <= 89) | (np.hypot(lab[:, 1], lab[:, 2]) >= 15)).all()
    assert np.linalg.norm(lab - to_lab(np.array([IGNORED])), axis=1).min() >= 9


def test_as_many_classes_as_sixteen_bits_hold_have_distinct_colours_even_of_one_word() -> None:
    for word in ("", "red "):
        assert len(set(colours_of_names([f"{word}c{index}" for index in range(65535)]))) == 65535
    reds = colours_of_names([f"red c{index}" for index in range(1000)])
    assert len(set(reds)) == 1000


def test_colours_follow_names_and_not_the_order_of_the_list() -> None:
    listed = names(133)
    shuffled = random.Random(5).sample(listed, len(listed))
    assert dict(zip(shuffled, colours_of_names(shuffled), strict=True)) == dict(
        zip(listed, colours_of_names(listed), strict=True)
    )
    assert colours_of_names(["Cat"]) == colours_of_names(["cat"])


def test_a_name_has_a_like_colour_in_most_lists_of_like_length() -> None:
    shared, others = names(233)[:50], names(233)[50:]
    first = colours_of_names([*shared, *others[:83]])[:50]
    second = colours_of_names([*shared, *others[83:]])[:50]
    moved = np.linalg.norm(to_lab(np.array(first)) - to_lab(np.array(second)), axis=1)
    assert (moved < 20).mean() > 0.9
    assert (moved < 10).mean() > 0.7


def test_one_more_class_changes_few_colours() -> None:
    listed = names(134)
    before, after = colours_of_names(listed[:-1]), colours_of_names(listed)[:-1]
    assert sum(a != b for a, b in zip(before, after, strict=True)) <= 15


@pytest.mark.parametrize(
    ("word", "hues"),
    [
        ("red", (345, 375)),
        ("orange", (20, 42)),
        ("yellow", (40, 66)),
        ("green", (75, 165)),
        ("cyan", (165, 205)),
        ("blue", (200, 262)),
        ("purple", (262, 305)),
        ("magenta", (290, 340)),
        ("pink", (300, 380)),
        ("brown", (8, 45)),
    ],
)
def test_a_colour_word_gives_a_hue_of_that_colour(word: str, hues: tuple[float, float]) -> None:
    others = names(125)
    called = [f"{word} {name}" for name in names(8, seed=9)]
    for red, green, blue in colours_of_names([*others, *called])[125:]:
        hue = 360 * colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)[0]
        assert hues[0] <= hue <= hues[1] or hues[0] <= hue + 360 <= hues[1]


@pytest.mark.parametrize(("word", "lightest", "darkest"), [("black", 115, 50), ("grey", 200, 85), ("white", 235, 190)])
def test_black_grey_and_white_things_have_hardly_any_hue(word: str, lightest: int, darkest: int) -> None:
    colours = np.array(colours_of_names([f"{word} {name}" for name in names(3)]))
    assert (np.ptp(colours, axis=1) < 30).all()
    assert darkest <= colours.min()
    assert colours.max() <= lightest


def test_only_whole_words_count_as_colours() -> None:
    assert colour_words("red triangle") == {"red"}
    assert colour_words("Black-and-white cat") == {"black", "white"}
    assert colour_words("GRAY_stone, boulder") == {"grey"}
    for name in ("redwood", "greenhouse", "blackboard", "goldfish", "incredible", "whitewater", ""):
        assert colour_words(name) == frozenset()


def test_a_name_with_two_colours_has_one_of_them() -> None:
    lab = to_lab(np.array(colours_of_names(["red and blue flag"])))
    assert in_range(lab, "red")[0] or in_range(lab, "blue")[0]


def test_a_vocabulary_takes_its_colours_from_names_and_keeps_all_else_in_others() -> None:
    vocabulary = Vocabulary.from_names(["red ring", "grass"], seen=["grass"])
    assert [entry.colour for entry in vocabulary.classes] == colours_of_names(["red ring", "grass"])
    earlier = vocabulary.with_colours(colours_of_indices(2))
    assert earlier.names == vocabulary.names
    assert earlier.seen_ids == vocabulary.seen_ids
    assert earlier.digest != vocabulary.digest
    assert earlier.with_colours(colours_of_names(vocabulary.names)) == vocabulary


def test_vocabularies_of_earlier_versions_are_made_again_to_the_byte() -> None:
    # The digest that the first release gave these classes, which the records of its runs hold.
    earlier = Vocabulary.from_names(["red ring", "grass", "water"])
    earlier = earlier.with_colours(colours_of_indices(3))
    assert earlier.digest == "f1a8b6e3a2d570d326ac9e45d5fa2e7fb80ab38b1d1ccef9192deee929b7aa95"
