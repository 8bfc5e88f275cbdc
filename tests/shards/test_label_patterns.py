"""The pattern that is suggested where labels are named in another way than their images."""

import pytest

from shards.data.label_patterns import nearest_label, suggest_pattern

FIVE = range(5)


@pytest.mark.parametrize(
    ("image", "labels", "pattern"),
    [
        ("p{}.jpg", ["p{}_mask.png"], "{stem}_mask.png"),
        ("p{}.jpg", ["p{}_labelTrainIds.png"], "{stem}_labelTrainIds.png"),
        ("p{}.jpg", ["p{}.jpg.png"], "{name}.png"),
        ("p{}.jpg", ["mask_p{}.PNG"], "mask_{stem}.png"),
        ("p{}.jpg", ["masks/p{}.png"], "masks/{stem}.png"),
        ("p{}.jpg", ["p{}_json/label.png"], "{stem}_json/label.png"),
        ("a/p{}.jpg", ["p{}.png"], "./{stem}.png"),
        ("JPEGImages/p{}.jpg", ["SegmentationClass/p{}.png"], "SegmentationClass/{stem}.png"),
        ("img_{}.jpg", ["mask_{}.png"], "mask{stem-img}.png"),
        ("img{}.jpg", ["mask{}.png"], "mask{stem-img}.png"),
        (
            "train/a/a_{}_leftImg8bit.png",
            [
                "train/a/a_{}_gtFine_color.png",
                "train/a/a_{}_gtFine_labelIds.png",
                "train/a/a_{}_gtFine_labelTrainIds.png",
            ],
            "{stem-leftImg8bit}gtFine_labelTrainIds.png",
        ),
    ],
)
def test_one_pattern_that_finds_all_labels_is_suggested(image: str, labels: list[str], pattern: str) -> None:
    images = [image.format(number) for number in FIVE]
    files = {label.format(number) for number in FIVE for label in labels}
    found = suggest_pattern(images, sorted(files), files.__contains__)
    assert found is not None
    assert (found.pattern, found.images) == (pattern, len(FIVE))


def test_folders_of_images_and_labels_inside_many_folders_are_told_by_one_pattern() -> None:
    images = [f"s{folder}/images/{number}.jpg" for folder in FIVE for number in FIVE]
    files = {f"s{folder}/labels/{number}.png" for folder in FIVE for number in FIVE}
    found = suggest_pattern(images, sorted(files), files.__contains__)
    assert found is not None
    assert (found.pattern, found.images) == ("{dir-images}/labels/{stem}.png", 25)


def test_names_without_anything_in_common_give_no_pattern_but_the_nearest_name() -> None:
    labels = ["q8.png", "zebra.png"]
    assert suggest_pattern(["p1.jpg", "p2.jpg"], labels, set(labels).__contains__) is None
    assert nearest_label("p8.png", labels) == "q8.png"
    assert nearest_label("p8.png", []) is None


def test_one_label_for_all_images_is_no_match() -> None:
    labels = ["p1_mask.png"]
    found = suggest_pattern(["p1.jpg", "p2.jpg", "p3.jpg"], labels, set(labels).__contains__)
    assert found is not None
    assert found.images == 1


def test_a_folder_for_each_image_with_its_name_twice_is_one_pattern() -> None:
    images, labels = [f"p{number}.jpg" for number in range(3)], [f"p{number}/p{number}_mask.png" for number in range(3)]
    found = suggest_pattern(images, labels, set(labels).__contains__)
    assert found is not None
    assert (found.pattern, found.images) == ("{stem}/{stem}_mask.png", 3)
