"""The look at labels before any work: what they were taken for, what may be wrong, and what ends the command."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from shards.data import label_survey
from shards.data.folder_source import FolderSource
from shards.data.label_advice import Advice, advise
from shards.data.label_rules import LabelRules
from shards.data.label_survey import LabelSurvey, highest_id, survey_labels
from shards.data.sources import FolderSourceConfig
from shards.data.vocabulary import Vocabulary

THREE = Vocabulary.from_names(["a", "b", "c"])
LABEL = np.zeros((8, 12), np.uint8)
LABEL[2:6, 3:9] = 1
LABEL[6:, :] = 2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    return tmp_path


def image(folder: Path, name: str, orientation: int = 1) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.fromarray(np.zeros((8, 12, 3), np.uint8)).save(folder / "images" / name, exif=exif)


def label(folder: Path, name: str, values: NDArray[Any] = LABEL) -> None:
    Image.fromarray(values).save(folder / "labels" / name)


def pairs(folder: Path, *labels: NDArray[Any]) -> None:
    for index, values in enumerate(labels):
        image(folder, f"p{index}.jpg")
        label(folder, f"p{index}.png", values)


def source_of(folder: Path, **rules: Any) -> FolderSource:
    config = FolderSourceConfig(
        images=str(folder / "images"), labels=str(folder / "labels"), label_rules=LabelRules(**rules)
    )
    return FolderSource(config, THREE)


def look(folder: Path, classes: int | None = 3, **rules: Any) -> tuple[LabelSurvey, Advice]:
    source = source_of(folder, **rules)
    survey = survey_labels(source)
    return survey, advise(survey, source.rules, classes)


def test_the_ids_of_good_labels_are_said_and_nothing_else(folder: Path) -> None:
    pairs(folder, LABEL, np.where(LABEL == 1, 255, LABEL))
    survey, advice = look(folder)
    assert (survey.images, survey.found) == (2, 2)
    assert advice == Advice(ids="ids 0 to 2 of 3 classes, 255 ignored")


def test_names_that_match_nothing_refuse_with_what_was_looked_for_what_is_there_and_the_setting(folder: Path) -> None:
    for name in ("p", "q"):
        image(folder, f"{name}.jpg")
        label(folder, f"{name}_mask.png")
    refusal = str(look(folder)[1].refusal)
    assert "none of 2 images has a label" in refusal
    assert "looked for as p.png" in refusal
    assert "p_mask.png is there" in refusal
    assert '--set data.labels.pattern="{stem}_mask.png"' in refusal
    assert look(folder, pattern="{stem}_mask.png")[1].refusal is None


def test_a_folder_of_labels_without_pngs_is_named_with_what_it_holds(folder: Path) -> None:
    image(folder, "p.jpg")
    (folder / "labels" / "p.json").write_text("{}")
    assert "holds no PNG at all (1 .json)" in str(look(folder)[1].refusal)


def test_some_missing_labels_refuse_nothing(folder: Path) -> None:
    pairs(folder, LABEL)
    image(folder, "z.jpg")
    survey, advice = look(folder)
    assert (survey.found, survey.without, survey.expected) == (1, "z.jpg", "z.png")
    assert advice.refusal is None


def test_before_none_is_said_all_images_are_looked_at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_survey, "_NAMES", 2)
    for number in range(9):
        image(folder, f"p{number}.jpg")
    looked_at = label_survey._spread(source_of(folder).names())[1]
    last = next(f"p{number}" for number in range(9) if f"p{number}.jpg" not in looked_at)
    label(folder, f"{last}.png")
    survey, advice = look(folder)
    assert (survey.found, advice.refusal) == (1, None)


def test_no_more_than_a_bounded_number_of_labels_is_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_survey, "LOOKED_AT", 3)
    pairs(folder, *[LABEL] * 8)
    assert len(look(folder)[0].files) <= 3


@pytest.mark.parametrize("high", [255, 65535])
def test_masks_of_0_and_the_highest_value_are_said_to_be_masks_with_both_settings(folder: Path, high: int) -> None:
    values = (LABEL == 1).astype(np.uint8 if high == 255 else np.uint16) * high
    pairs(folder, values, values)
    advice = look(folder)[1]
    assert advice.binary
    assert "data.labels.binary=true makes it class 1" in advice.warnings[-1]
    assert f"data.labels.ignore={high} says so" in advice.warnings[-1]
    assert look(folder, binary=True)[1] == Advice(ids="ids 0 to 1 of 3 classes, the object is 1")
    assert not look(folder, ignore=high)[1].binary
    assert "data.labels.shift=-1" in look(folder, classes=1)[1].warnings[-1]


def test_masks_with_soft_edges_are_recognised_and_sparse_labels_are_none(folder: Path) -> None:
    soft = np.zeros((40, 60), np.uint8)
    soft[10:30, 20:50], soft[9, :], soft[30, :] = 255, np.arange(60) * 4, np.arange(60) * 4 + 1
    pairs(folder)
    image(folder, "p.jpg")
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(folder / "images" / "p.jpg")
    label(folder, "p.png", soft)
    assert look(folder, classes=None)[1].binary
    sparse = np.zeros((40, 60), np.uint8)
    sparse[:5], sparse[5:8], sparse[8] = 255, 1, 2
    label(folder, "p.png", sparse)
    assert not look(folder)[1].binary


@pytest.mark.parametrize(
    ("values", "zero"), [(LABEL + 1, "0 never occurs"), (np.where(LABEL == 1, 0, LABEL + 1), "0 is unlabelled")]
)
def test_ids_that_begin_at_1_are_told_with_the_shift(folder: Path, values: NDArray[np.uint8], zero: str) -> None:
    pairs(folder, values.astype(np.uint8))
    refusal = str(look(folder)[1].refusal)
    assert "id 3 in 1 of 1 labels" in refusal
    assert f"({zero})" in refusal
    assert "--set data.labels.shift=-1" in refusal
    assert look(folder, shift=-1)[1].refusal is None


def test_ids_outside_the_classes_are_named_with_their_files_and_the_setting_that_fits(folder: Path) -> None:
    pairs(folder, LABEL, np.where(LABEL == 2, 77, LABEL))
    advice = look(folder)[1]
    assert advice.refusal is None
    assert "id 77 in 1 of 2 labels looked at" in advice.warnings[0]
    assert "--set data.labels.ignore=77" in advice.warnings[0]
    assert advice.ids == "ids 0 to 2 of 3 classes"


def test_255_in_16_bit_labels_is_ignored_and_said(folder: Path) -> None:
    pairs(folder, np.where(LABEL == 1, 255, LABEL).astype(np.uint16))
    advice = look(folder)[1]
    assert advice.ids == "ids 0 to 2 of 3 classes, 255 ignored"
    assert "255 in 16-bit labels" in advice.lines[0]


def test_colour_labels_are_named_as_colours(folder: Path) -> None:
    colours = np.repeat(LABEL[:, :, None], 3, axis=2)
    pairs(folder, LABEL, colours)
    assert (
        "p1.png: a label PNG holds class ids (palette or grey); this one holds colours" in look(folder)[1].warnings[0]
    )
    label(folder, "p0.png", colours)
    assert "replace each colour by the id of its class" in str(look(folder)[1].refusal)


def test_labels_of_another_size_are_named_and_refused_where_all_are(folder: Path) -> None:
    pairs(folder, LABEL, LABEL[::2, ::2])
    assert "p1.png: has 6 x 4 pixels, its image 12 x 8" in look(folder)[1].warnings[0]
    label(folder, "p0.png", LABEL[::2, ::2])
    assert "no label can be used" in str(look(folder)[1].refusal)


def test_labels_without_any_class_are_refused(folder: Path) -> None:
    pairs(folder, np.full((8, 12), 255, np.uint8))
    assert "holds a class: only 255" in str(look(folder)[1].refusal)


def test_labels_in_the_stored_frame_are_counted_and_those_that_could_be_either_are_said(folder: Path) -> None:
    for name, orientation in (("quarter", 6), ("half", 3)):
        image(folder, f"{name}.jpg", orientation)
        label(folder, f"{name}.png")
    lines = look(folder)[1].lines
    assert "1 label looked at in the stored frame of a photograph with an EXIF turn" in lines[0]
    assert "data.labels.frame=stored" in lines[1]
    assert len(look(folder, frame="stored")[1].lines) == 1


@pytest.mark.parametrize(
    ("dtype", "values", "rules", "highest"),
    [
        (np.uint8, [0, 4, 255], {}, 4),
        (np.uint16, [0, 4, 255], {}, 4),
        (np.uint16, [0, 255, 299, 65535], {}, 299),
        (np.uint8, [0, 4, 9], {"ignore": 9}, 4),
        (np.uint8, [0, 4], {"shift": -1}, 3),
        (np.uint8, [0, 255], {"binary": True}, 1),
        (np.uint8, [255], {}, None),
    ],
)
def test_the_highest_id_follows_the_rules(
    folder: Path, dtype: type, values: list[int], rules: dict[str, Any], highest: int | None
) -> None:
    pairs(folder, np.resize(np.array(values, dtype), (8, 12)))
    assert highest_id(source_of(folder, **rules)) == highest


def test_the_highest_id_is_that_of_labels_with_an_image_and_not_of_side_files(folder: Path) -> None:
    pairs(folder, LABEL)
    label(folder, "preview.png", LABEL + 100)
    label(folder, "._p0.png", LABEL + 100)
    (folder / "labels" / "Thumbs.db").write_bytes(b"")
    image(folder, "q.jpg")
    (folder / "labels" / "q.png").write_bytes(b"no PNG")
    assert highest_id(source_of(folder)) == 2


def test_masks_of_0_and_another_high_value_are_told_with_both_settings(folder: Path) -> None:
    pairs(folder, (LABEL > 0).astype(np.uint8) * 254, (LABEL > 0).astype(np.uint8) * 254)
    refusal = str(look(folder)[1].refusal)
    assert "Where 254 is the object of a mask: --set data.labels.binary=true" in refusal
    assert "--set data.labels.ignore=254" in refusal
