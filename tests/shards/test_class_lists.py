"""Lists of classes as other programs write them: ids are honoured, and what is no list of classes is refused."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from shards.data.class_lists import load_class_names
from shards.data.vocabulary import Vocabulary

CLASSES = ["background", "wall", "sky, clouds"]


def written(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), newline="")
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.json", [{"id": 2, "name": "sky, clouds"}, {"id": 0, "name": "background"}, {"id": 1, "name": "wall"}]),
        (
            "text-ids.json",
            [{"id": "1", "name": "wall"}, {"id": "0", "name": "background"}, {"id": 2, "name": "sky, clouds"}],
        ),
        ("object.json", {"2": "sky, clouds", "0": "background", "1": "wall"}),
        ("label2id.json", {"wall": 1, "sky, clouds": 2, "background": 0}),
        ("transformers.json", {"model_type": "x", "id2label": {"1": "wall", "0": "background", "2": "sky, clouds"}}),
        (
            "coco.json",
            {
                "images": [],
                "categories": [
                    {"id": 3, "name": "sky", "synonyms": ["clouds"]},
                    {"id": 1, "name": "background", "supercategory": "none"},
                    {"id": 2, "name": "wall"},
                ],
            },
        ),
        ("detectron2.json", {"stuff_classes": CLASSES, "ignore_label": 255}),
        ("mapillary.json", {"labels": [{"name": name, "color": [1, 2, 3]} for name in CLASSES]}),
        ("bom.json", b"\xef\xbb\xbf" + json.dumps(CLASSES).encode()),
        ("crlf.json", '[\r\n"background",\r\n"wall",\r\n"sky, clouds"\r\n]\r\n'),
        ("json.txt", json.dumps(CLASSES)),
        ("yolo.yaml", "path: ../set\nnc: 3\nnames:\n  1: wall\n  0: background\n  2: sky, clouds\n"),
        ("yolo.yml", "names: [background, wall, 'sky, clouds']\n"),
        ("list.yaml", "- background\n- wall\n- sky, clouds\n"),
        ("blank.txt", "1 wall\n0 background\n2 sky, clouds\n"),
        ("colon.txt", "0: background\n1: wall\n2: sky, clouds\n"),
        ("comma.txt", "id,name\n0,background\n1,wall\n2,sky, clouds\n"),
        ("tab.txt", "0\tbackground\r\n2\tsky, clouds\r\n1\twall\r\n"),
        ("ignored.txt", "0 background\n1 wall\n2 sky, clouds\n255 ignore\n"),
        ("commas.txt", "background,\nwall,\nsky, clouds\n"),
        ("quotes.txt", "'background',\n'wall',\n'sky, clouds',\n"),
        (
            "labelmap.txt",
            "# label:color_rgb:parts:actions\nbackground:0,0,0::\nwall:250,50,83::\nsky, clouds:1,2,3:a,b:c\n",
        ),
        ("class_names.txt", "__ignore__\n_background_\nwall\nsky, clouds\n"),
        ("background.txt", "_background_\nwall\nsky, clouds\n"),
        (
            "objectInfo150.txt",
            "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.1\t1\t1\t1\tbackground   \n2\t0.1\t1\t1\t1\twall\n"
            "3\t0.1\t1\t1\t1\tsky, clouds\n",
        ),
        ("names.names", "background\nwall\nsky, clouds\n"),
        ("utf16.txt", "background\nwall\nsky, clouds\n".encode("utf-16")),
    ],
)
def test_lists_of_other_programs_give_names_in_the_order_of_their_ids(tmp_path: Path, name: str, content: Any) -> None:
    assert load_class_names(written(tmp_path, name, content)) == CLASSES


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.json", [{"id": 1, "name": "b"}, {"id": 0, "name": "a"}], "ids 0 to 1; classes are taken in their order"),
        ("a.json", [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}], r"as 0 to 1: .* --set data.labels.shift=-1"),
        ("a.txt", "# label:color_rgb:parts:actions\na:1,2,3::\n", "taken for CVAT's labelmap"),
        ("a.txt", "__ignore__\n_background_\na\n", "LabelMe's class names, __ignore__ is no class; 'background' is"),
        ("a.txt", "a,\nb,\nc\n", "the comma at the end of 2 of 3 lines is left out"),
        ("a.txt", "0 a\n255 void\n", r"'void' \(255\) is no class"),
        ("a.json", {"categories": ["a"]}, "its entry 'categories' was taken for the classes"),
        ("a.txt", "dog, cat, person", "is one class with synonyms; write one class per line if several are meant"),
    ],
)
def test_what_a_list_was_taken_for_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, content: Any, told: str
) -> None:
    with caplog.at_level(logging.WARNING):
        load_class_names(written(tmp_path, name, content))
    assert any(re.search(told, line) for line in caplog.messages), caplog.messages
    assert not any("\n" in line for line in caplog.messages)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        (
            "gap.json",
            [{"id": 1, "name": "a"}, {"id": 4, "name": "b"}],
            "from 1 to 4 and lack 2, 3; .* leave the ids out",
        ),
        (
            "zero.json",
            [{"id": 0, "name": "a"}, {"id": 2, "name": "b"}],
            "lack 1; where masks hold these ids, add a class",
        ),
        ("high.json", [{"id": 5467, "name": "a"}], "from 5467 to 5467 and lack 0, 1, 2, 3, 4 and 5462 more"),
        ("far.json", [{"id": 1 << 40, "name": "a"}], "not one that a mask can hold"),
        ("below.json", [{"id": -1, "name": "a"}], "id -1 is not one that a mask can hold"),
        ("twice.json", [{"id": 0, "name": "a"}, {"id": 0, "name": "b"}], "id 0 is both 'a' and 'b'"),
        ("mixed.json", [{"id": 0, "name": "a"}, {"name": "b"}], "'b' has no id and others have one"),
        ("id.json", [{"id": 0.5, "name": "a"}], "class 0 has the id 0.5; expected a whole number"),
        ("bool.json", [{"id": True, "name": "a"}], "class 0 has the id True"),
        (
            "city.json",
            [{"name": "road", "id": 7, "trainId": 0}],
            "both id and trainId; keep the one that the masks hold",
        ),
        ("both.json", {"stuff_classes": ["a"], "thing_classes": ["b"]}, "stuff_classes and thing_classes"),
        ("gap.yaml", "names: {0: a, 2: b}", "lack 1"),
        ("same.txt", "grass\nwater\ngrass\n", "names 'grass' twice, as class 1 and 3 of 3"),
        ("same-ids.txt", "0 grass\n1 grass\n", "names 'grass' twice"),
        (
            "joined.txt",
            "wall,building\nsky\n",
            "'wall,building' looks like 2 classes on one line; write one class per line",
        ),
        ("line.txt", "dog,cat,person", "looks like 3 classes on one line"),
        ("semicolon.txt", "wall;building\nsky\n", "looks like 2 classes"),
        ("joined.json", ["dog,cat"], "looks like 2 classes"),
        ("colours.txt", "64 128 64\tAnimal\n192 0 128\tArchway\n", "holds a colour"),
        ("palette.txt", "road 128 64 128\nsky 70 130 180\n", "holds a colour"),
        ("comma.json", '["a",\n "b",\n]', "the comma at the end of line 2 is one too many"),
        ("object-comma.json", '{"classes": ["a"],}', "the comma at the end of line 1 is one too many"),
        ("broken.json", '["a"', r"it is not JSON \(line 1, column 5"),
        ("latin.txt", b"wall\nB\xe4r\n", "line 2 is not UTF-8"),
        ("cut.txt", b"\xff\xfea", "not UTF-8"),
        ("alias.yaml", "a: &a [x, x]\nnames: [*a, *a]", "not YAML"),
        ("deep.yaml", "[" * 100_000, "not YAML"),
        ("tag.yaml", "!!python/object/apply:os.getcwd []", "not YAML"),
        ("mapping.json", {"a": "b"}, "expected a list of names"),
    ],
)
def test_lists_that_cannot_be_right_are_refused_in_one_sentence(
    tmp_path: Path, name: str, content: Any, told: str
) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        load_class_names(written(tmp_path, name, content))
    text = str(caught.value)
    assert "\n" not in text
    assert "http" not in text
    assert "pydantic" not in text
    assert name in text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("after.txt", "bird: 2\ndog: 0\ncat: 1\n"),
        ("after.txt", "bird 2\ndog 0\ncat 1\n"),
        ("equals.txt", "bird=3\ndog=1\ncat=2\n"),
        ("before.txt", "2=bird\n0=dog\n1=cat\n"),
        ("table.csv", "id,name\n2,bird\n0,dog\n1,cat\n"),
        ("table.csv", "name;id\nbird;2\ndog;0\ncat;1\n"),
        ("table.tsv", "2\tbird\n0\tdog\n1\tcat\n"),
        ("value.json", [{"value": 2, "name": "bird"}, {"value": 0, "name": "dog"}, {"value": 1, "name": "cat"}]),
        ("capitals.json", [{"ID": 2, "Name": "bird"}, {"ID": 0, "Name": "dog"}, {"ID": 1, "Name": "cat"}]),
        ("label.json", [{"label": 2, "name": "bird"}, {"label": 0, "name": "dog"}, {"label": 1, "name": "cat"}]),
        ("floats.json", [{"id": 2.0, "name": "bird"}, {"id": 0.0, "name": "dog"}, {"id": 1.0, "name": "cat"}]),
        ("long.json", [{"class_id": n, "class_name": name} for n, name in ((2, "bird"), (0, "dog"), (1, "cat"))]),
        ("label2id.json", {"label2id": {"bird": 2, "dog": 0, "cat": 1}}),
    ],
)
def test_ids_after_the_names_or_under_other_keys_count_as_ids(tmp_path: Path, name: str, content: Any) -> None:
    assert load_class_names(written(tmp_path, name, content)) == ["dog", "cat", "bird"]


@pytest.mark.parametrize(
    ("content", "note"),
    [
        ("- a\n- b\n", "bullets"),
        ("cat: 1\ndog: 0\n", "numbers at the ends of its lines are taken for ids"),
        ("road\nvoid\n", "'void' is a class like any other, with id 1"),
        ("ignore\nroad\n", "--set data.labels.ignore=0"),
    ],
)
def test_what_could_mean_something_else_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str, note: str
) -> None:
    load_class_names(written(tmp_path, "names.txt", content))
    assert note in caplog.text


def test_numbers_that_belong_to_names_and_numbers_that_are_not_read_change_no_order(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for content in ("type 2\ntype 1\n", "route 66\nroute 7\n", "phase 3\nstep 9\n"):
        assert load_class_names(written(tmp_path, "names.txt", content)) == content.splitlines()
    rows = [{"name": "a", "weight": 2}, {"name": "b", "weight": 1}]
    assert load_class_names(written(tmp_path, "rows.json", rows)) == ["a", "b"]
    assert "its numbers 'weight' are not taken for ids" in caplog.text


def test_a_name_with_control_characters_is_no_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="control characters"):
        load_class_names(written(tmp_path, "names.txt", "road\x00\n"))


@pytest.mark.parametrize(
    "content",
    ["person, child, man\nsky\n", "1,000 dollars\nsky\n", "2 euro coin\nsky\n", "TV 55 inch\nsky\n", "a: b\nc\n"],
)
def test_plain_names_stay_as_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str) -> None:
    assert load_class_names(written(tmp_path, "a.txt", content)) == content.splitlines()
    assert not caplog.messages


def test_a_vocabulary_that_cannot_be_says_so_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^class 'a' stands 2 times; name each class once$"):
        Vocabulary.from_names(["a", "b", "a "])
    with pytest.raises(ValueError, match=r"^template 'x' needs one"):
        Vocabulary.from_names(["a"], templates=["x"])
    path = tmp_path / "vocabulary.json"
    path.write_text(json.dumps({"classes": [], "ignore_index": 255}))
    with pytest.raises(ValueError, match="0 classes") as caught:
        Vocabulary.load(path)
    assert "\n" not in str(caught.value)
