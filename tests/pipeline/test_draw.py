import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.report import drawing, fonts
from pipeline.report.drawing import (
    OPACITY,
    classes_by_size,
    labelled,
    overlay,
    panels,
    png_bytes,
    scaled,
    scaled_overlay,
    with_legend,
)
from shards.data.vocabulary import Vocabulary

VOCABULARY = Vocabulary.from_names(["grass", "a very long class name", "<b>odd</b>"])


def test_ignored_pixels_are_dark_grey_and_labelled_ones_take_their_class_colour() -> None:
    image = np.full((4, 6, 3), (200, 100, 0), np.uint8)
    label = np.full((4, 6), 255, np.int32)
    label[:, 3:] = 1
    drawn = overlay(image, label, VOCABULARY)
    assert drawn.shape == image.shape
    assert len(set(drawn[0, 0].tolist())) == 1
    assert drawn[0, 0, 0] < 60
    colour = np.array(VOCABULARY.classes[1].colour)
    assert np.abs(drawn[0, 5].astype(int) - colour).max() < np.abs(image[0, 5].astype(int) - colour).max()


def test_all_ignored_and_sixteen_bit_ids_draw() -> None:
    many = Vocabulary.from_names([f"class {index}" for index in range(300)])
    image = np.zeros((3, 3, 3), np.uint8)
    assert overlay(image, np.full((3, 3), many.ignore_index), many).shape == (3, 3, 3)
    assert overlay(image, np.full((3, 3), 299), many).max() > 0


def test_a_label_of_another_size_or_vocabulary_is_refused() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="same size"):
        overlay(image, np.zeros((4, 5), np.int32), VOCABULARY)
    with pytest.raises(ValueError, match="vocabulary"):
        overlay(image, np.full((4, 4), 7), VOCABULARY)


@pytest.mark.parametrize(("size", "expected"), [((96, 96), (192, 192)), ((1, 1), (8, 8)), ((500, 1000), (120, 240))])
def test_small_pictures_grow_in_whole_steps_and_large_ones_shrink(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert scaled(np.zeros((*size, 3), np.uint8), 240).shape[:2] == expected


def test_a_sheet_holds_every_panel_and_its_legend_every_name() -> None:
    pixels = np.zeros((96, 64, 3), np.uint8)
    sheet = panels([("image", pixels), ("a title wider than its picture", pixels)])
    with_names = with_legend(sheet, VOCABULARY, [np.array([[0, 1, 2]])])
    assert with_names.height > sheet.height
    assert with_names.width >= sheet.width
    assert Image.open(io.BytesIO(png_bytes(with_names))).size == with_names.size


def test_classes_come_by_size_without_ignored_pixels() -> None:
    assert classes_by_size([np.array([[0, 255]]), np.array([[2, 2]])], VOCABULARY) == [2, 0]
    assert classes_by_size([np.array([[255]])], VOCABULARY) == []


def test_a_legend_of_very_many_classes_stays_small() -> None:
    many = Vocabulary.from_names([f"class {index}" for index in range(300)])
    sheet = panels([("image", np.zeros((96, 96, 3), np.uint8))])
    assert with_legend(sheet, many, [np.arange(300)[None]]).height < 500


def test_strips_draw_the_same_picture_and_count_the_same_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (70, 90, 3)).astype(np.uint8)
    label = random.choice([0, 1, 2, 255], (70, 90))
    whole, small = overlay(image, label, VOCABULARY), scaled(overlay(image, label, VOCABULARY), 40)
    monkeypatch.setattr(drawing, "_STRIP_PIXELS", 300)
    np.testing.assert_array_equal(overlay(image, label, VOCABULARY), whole)
    np.testing.assert_array_equal(scaled_overlay(image, label, VOCABULARY, 40), small)
    assert classes_by_size([label], VOCABULARY) == sorted([0, 1, 2], key=lambda index: -int((label == index).sum()))
    monkeypatch.setattr(drawing, "_PIXELS_AT_ONCE", 100)
    # Two roundings to whole numbers in another order.
    assert np.abs(scaled_overlay(image, label, VOCABULARY, 40).astype(int) - small).max() <= 1
    assert np.abs(scaled(whole, 40).astype(int) - small).max() <= 1


def test_thin_lines_part_neighbours_and_nothing_else() -> None:
    image = np.full((300, 400, 3), 100, np.uint8)
    label = np.full((300, 400), 0, np.int32)
    label[:, 200:] = 2
    label[:4, :4] = 255
    one = Vocabulary.from_names(["a" * 200, "b", "c" * 200])  # too long to be written
    plain, drawn = overlay(image, label, one), labelled(image, label, one, side=400)
    changed = (plain != drawn).any(axis=2)
    assert changed[4:, 199].all()
    assert not changed[5:, :199].any()
    assert not changed[5:, 200:].any()
    assert drawn[100, 199].astype(int).sum() > plain[100, 199].astype(int).sum()
    np.testing.assert_array_equal(labelled(image, np.zeros_like(label), one, side=400), overlay(image, 0 * label, one))


@pytest.mark.parametrize(
    ("size", "side"), [((96, 96), 240), ((1, 1), 240), ((3, 900), 240), ((900, 3), 240), ((50, 40), 512)]
)
def test_labelled_pictures_are_as_large_as_the_image_next_to_them(size: tuple[int, int], side: int) -> None:
    image, label = np.zeros((*size, 3), np.uint8), np.zeros(size, np.int32)
    assert labelled(image, label, VOCABULARY, side=side).shape == scaled(image, side).shape
    assert labelled(image, label + 255, VOCABULARY, side=side).shape == scaled(image, side).shape


def test_a_name_is_written_inside_its_region_where_it_fits() -> None:
    image, label = np.full((200, 200, 3), 90, np.uint8), np.full((200, 200), 1, np.int32)
    label[60:140, 20:180] = 0
    label[:30, :12] = 2  # too narrow for its name
    plain, drawn = overlay(image, label, VOCABULARY), labelled(image, label, VOCABULARY, side=200)
    inner = (plain != drawn).any(axis=2)
    inner[:-1] &= label[:-1] == label[1:]
    inner[:, :-1] &= label[:, :-1] == label[:, 1:]
    rows, columns = np.nonzero(inner & (label == 0))
    assert len(rows) > 50
    assert abs(rows.mean() - 100) < 5
    assert abs(columns.mean() - 100) < 5
    assert not inner[:29, :11].any()


def test_room_for_a_name_is_never_outside_the_region() -> None:
    region = np.zeros((60, 90), bool)
    region[10:40, 5:60] = True
    region[20, 30] = False
    left, top = drawing._room_for(region, 20, 6) or (-1, -1)
    assert region[top : top + 6, left : left + 20].all()
    assert drawing._room_for(region, 56, 6) is None
    assert drawing._room_for(np.ones((5, 5), bool), 20, 6) is None


def test_opacity_is_the_share_of_the_class_colour() -> None:
    image, label = np.full((4, 4, 3), 80, np.uint8), np.zeros((4, 4), np.int32)
    colour = VOCABULARY.classes[0].colour
    assert tuple(overlay(image, label, VOCABULARY, 1)[0, 0].tolist()) == colour
    assert overlay(image, label, VOCABULARY, 0)[0, 0].tolist() == [80, 80, 80]
    np.testing.assert_array_equal(overlay(image, label, VOCABULARY), overlay(image, label, VOCABULARY, OPACITY))
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="opacity is"):
            overlay(image, label, VOCABULARY, wrong)


SCRIPTS = ["grass", "трава", "猫", "قطة", "แมว", "हिन्दी", "cat 🐱", "Bär", "👩‍🌾", "a\ufe0f", "\U000e0001 tag"]


@pytest.fixture
def no_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    fonts._font_with.cache_clear()
    monkeypatch.setattr(fonts, "_candidates", lambda letters: iter(()))
    yield
    fonts._font_with.cache_clear()


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_name_is_drawn_in_a_font_that_has_all_its_letters_or_not_at_all(name: str) -> None:
    text, font = fonts.drawable(name, "class 7")
    assert text in (name, "class 7")
    assert fonts.has_letters(font, [letter for letter in text if not fonts._is_invisible(letter) and letter != " "])


def test_a_name_that_no_font_can_draw_is_drawn_as_its_id(no_fonts: None) -> None:
    assert fonts.drawable("grass", "class 0")[0] == "grass"
    for name in ("трава", "猫", "cat 🐱", "a\ufffe"):
        assert fonts.drawable(name, "class 3") == ("class 3", fonts.own_font())
    pixels, label = np.zeros((96, 64, 3), np.uint8), np.array([[0, 1]])
    sheet = panels([("image", pixels)])
    named, numbered = (Vocabulary.from_names(names) for names in (["grass", "трава"], ["grass", "class 1"]))
    numbered = numbered.with_colours([entry.colour for entry in named.classes])
    assert png_bytes(with_legend(sheet, named, [label])) == png_bytes(with_legend(sheet, numbered, [label]))
    assert png_bytes(panels([("猫", pixels)])) == png_bytes(panels([("\\u732b", pixels)]))


def test_fonts_in_the_usual_folders_are_found_without_fontconfig(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("Zen.ttf", "NotoSans-Bold.ttf", "NotoSans-Regular.otf", "readme.txt"):
        path = tmp_path / ".fonts" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("shutil.which", lambda name: None)
    fonts._installed.cache_clear()
    found = [path.name for path in fonts._candidates(frozenset("猫")) if tmp_path in path.parents]
    fonts._installed.cache_clear()
    assert found == ["NotoSans-Regular.otf", "Zen.ttf", "NotoSans-Bold.ttf"]
    assert fonts._opened(tmp_path / ".fonts" / "Zen.ttf") is None  # a file that is no font is passed over
