"""The rules of labels: which file belongs to an image, and which class a value stands for."""

import numpy as np
import pytest
from pydantic import ValidationError

from shards.data.label_rules import LabelRules, to_vocabulary
from shards.data.labels import UnusableLabel
from shards.data.vocabulary import Vocabulary

THREE = Vocabulary.from_names(["a", "b", "c"])


def ids(values: list[int], bits: int = 8, **rules: object) -> list[int]:
    label = np.array([values], np.int32)
    found: list[int] = to_vocabulary(label, bits, LabelRules(**rules), THREE)[0].tolist()
    return found


@pytest.mark.parametrize(
    ("pattern", "image", "label"),
    [
        ("{stem}.png", "p.jpg", "p.png"),
        ("{stem}.png", "a/b/p.v2.jpg", "a/b/p.v2.png"),
        ("{stem}_mask.png", "a/p.jpg", "a/p_mask.png"),
        ("{name}.png", "a/p.jpg", "a/p.jpg.png"),
        ("./{stem}.png", "a/p.jpg", "p.png"),
        ("{dir}/masks/{stem}.png", "a/b/p.jpg", "a/b/masks/p.png"),
        ("{dir}/masks/{stem}.png", "p.jpg", "masks/p.png"),
        ("{parent}/{stem}.png", "a/b/p.jpg", "b/p.png"),
        ("{dir-images}/labels/{stem}.png", "s0/images/p.jpg", "s0/labels/p.png"),
        ("{stem-_leftImg8bit}_gtFine_labelTrainIds.png", "x_1_leftImg8bit.png", "x_1_gtFine_labelTrainIds.png"),
        ("{stem-_leftImg8bit}.png", "x_1.png", None),
        ("{stem}.png", "{dir}.jpg", "{dir}.png"),
    ],
)
def test_pattern_names_the_label_of_an_image(pattern: str, image: str, label: str | None) -> None:
    assert LabelRules(pattern=pattern).label_name(image) == label


@pytest.mark.parametrize(
    "pattern", ["label.png", "{dir}/x.png", "{stem}.jpg", "{stam}.png", "../{stem}.png", "/{stem}.png", "{stem}{.png"]
)
def test_pattern_that_cannot_name_labels_is_refused(pattern: str) -> None:
    with pytest.raises(ValidationError):
        LabelRules(pattern=pattern)


def test_without_rules_255_is_ignored_in_8_bit_and_65535_in_16_bit_files() -> None:
    assert ids([0, 2, 255]) == [0, 2, 255]
    assert ids([0, 2, 65535], bits=16) == [0, 2, 255]


def test_255_in_16_bit_files_is_ignored_only_where_no_class_has_that_id() -> None:
    assert ids([1, 255], bits=16) == [1, 255]
    many = Vocabulary.from_names([f"class {number}" for number in range(300)])
    assert to_vocabulary(np.array([[255, 65535]], np.int32), 16, LabelRules(), many).tolist() == [[255, 65535]]


def test_shift_moves_ids_and_not_the_ignored_value_and_below_zero_is_no_class() -> None:
    assert ids([0, 1, 3, 255], shift=-1) == [255, 0, 2, 255]
    assert ids([0, 1, 255], shift=1) == [1, 2, 255]


def test_ignore_replaces_the_usual_value() -> None:
    assert ids([0, 1, 9], ignore=9) == [0, 1, 255]
    with pytest.raises(UnusableLabel, match="holds id 255"):
        ids([0, 255], ignore=9)


def test_binary_masks_have_the_object_as_class_1_with_soft_edges_cut_in_the_middle() -> None:
    assert ids([0, 127, 128, 255], binary=True) == [0, 0, 1, 1]
    assert ids([0, 65535], bits=16, binary=True) == [0, 1]
    assert ids([0, 1], bits=1, binary=True) == [0, 1]
    assert ids([0, 1], binary=True) == [0, 1]
    assert ids([0, 255], binary=True, shift=-1) == [255, 0]
    assert ids([0, 128, 255], binary=True, ignore=128) == [0, 255, 1]


def test_refusal_names_the_value_in_the_file_and_the_shift() -> None:
    with pytest.raises(UnusableLabel, match=r"holds id 1 in 1 pixels.*data.labels.shift=2") as caught:
        ids([0, 1], shift=2)
    assert caught.value.reason == "label_ids"


def test_only_what_changes_the_meaning_of_a_file_is_in_fingerprints() -> None:
    assert LabelRules().changes() == {}
    assert LabelRules(pattern="{stem}_mask.png").changes() == {}
    assert LabelRules(shift=-1, ignore=0).changes() == {"shift": -1, "ignore": 0}
