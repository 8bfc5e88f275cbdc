"""Class names become ids, colours and synonyms in one way."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from shards.data.class_lists import load_class_names
from shards.data.colours import colours_of_indices
from shards.data.vocabulary import Vocabulary


def test_names_are_stripped_and_synonyms_split() -> None:
    vocabulary = Vocabulary.from_names([" bed ", "person, child , man", "traffic light"], seen=["person", "bed"])
    assert vocabulary.names == ("bed", "person", "traffic light")
    assert vocabulary.classes[1].synonyms == ("person", "child", "man")
    assert (vocabulary.seen_ids, vocabulary.unseen_ids) == ((0, 1), (2,))
    assert len(vocabulary) == 3
    assert Vocabulary.from_names(["a"]).unseen_ids == ()


def test_classes_that_share_a_first_word_are_called_by_their_line() -> None:
    vocabulary = Vocabulary.from_names(["bag", "bag, handbag", "cup"], seen=["bag, handbag"])
    assert vocabulary.names == ("bag", "bag, handbag", "cup")
    assert vocabulary.classes[1].synonyms == ("bag", "handbag")
    assert vocabulary.seen_ids == (1,)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "0 classes"),
        (["a", " "], "class 1 has no name"),
        (["a", "b", "a "], "'a' stands 2 times"),
        ([", "], "no name"),
    ],
)
def test_names_that_make_no_vocabulary_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Vocabulary.from_names(names)


def test_unknown_seen_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'persn'.*'person'"):
        Vocabulary.from_names(["person", "car"], seen=["persn"])


def test_a_prompt_name_changes_what_clip_reads_and_nothing_else() -> None:
    names = ["pole group", "person, child", "bag", "bag, handbag"]
    words = {"pole group": "poles, columns", "person": "human", "bag, handbag": "handbag"}
    plain, reworded = Vocabulary.from_names(names), Vocabulary.from_names(names, prompt_names=words)
    assert reworded.names == plain.names
    assert [entry.synonyms for entry in reworded.classes] == [("poles", "columns"), ("human",), ("bag",), ("handbag",)]
    assert reworded.palette == plain.palette
    assert reworded.digest != plain.digest
    assert Vocabulary.from_names(names, prompt_names={}).digest == plain.digest


@pytest.mark.parametrize(
    ("words", "message"), [({"persn": "human"}, "prompt name 'persn'.*'person'"), ({"car": " "}, "class 1 has no name")]
)
def test_prompt_names_of_no_class_or_without_words_are_refused(words: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Vocabulary.from_names(["person", "car"], prompt_names=words)


@pytest.mark.parametrize("templates", [[], ["a photo"], ["{} and {}"]])
def test_templates_need_one_place_for_the_name(templates: list[str]) -> None:
    with pytest.raises(ValueError, match="template"):
        Vocabulary.from_names(["a"], templates=templates)


@pytest.mark.parametrize(("count", "ignore"), [(1, 255), (255, 255), (256, 65535), (65535, 65535)])
def test_ignore_index_is_never_a_class(count: int, ignore: int) -> None:
    vocabulary = Vocabulary.from_names([f"c{n}" for n in range(count)])
    assert vocabulary.ignore_index == ignore
    assert vocabulary.ignore_index not in range(len(vocabulary))
    assert len(vocabulary.palette) == 768
    assert vocabulary.palette[765:] == [0, 0, 0]


def test_more_classes_than_16_bits_hold_are_refused() -> None:
    with pytest.raises(ValueError, match="65536 classes"):
        Vocabulary.from_names([f"c{n}" for n in range(65536)])


def test_colours_by_index_differ_are_never_black_and_do_not_depend_on_the_count() -> None:
    colours = colours_of_indices(65535)
    assert len(set(colours) | {(0, 0, 0)}) == 65536
    assert colours[:30] == colours_of_indices(30)
    assert all(0 <= channel <= 255 for colour in colours for channel in colour)
    near = min(
        sum(abs(x - y) for x, y in zip(left, right, strict=True))
        for index, left in enumerate(colours[:40])
        for right in colours[:index]
    )
    assert near > 15


def test_saved_vocabulary_comes_back_with_the_same_bytes_and_digest(tmp_path: Path) -> None:
    vocabulary = Vocabulary.from_names(["Bär, bear", "猫", "a b"], seen=["猫"], templates=("{}", "a {}."))
    path = tmp_path / "vocabulary.json"
    vocabulary.save(path)
    loaded = Vocabulary.load(path)
    assert loaded == vocabulary
    assert loaded.digest == vocabulary.digest != Vocabulary.from_names(["Bär", "猫", "a b"]).digest
    assert load_class_names(path) == ["Bär, bear", "猫", "a b"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff", b"[" * 100_000])
def test_damaged_vocabulary_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "vocabulary.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"vocabulary\.json"):
        Vocabulary.load(path)
    with pytest.raises(ValueError, match=r"vocabulary\.json"):
        load_class_names(path)


def test_vocabulary_whose_ignore_index_is_a_class_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.json"
    Vocabulary.from_names(["a", "b"]).save(path)
    content = json.loads(path.read_text()) | {"ignore_index": 1}
    del content["checksum"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="ignore_index is 1"):
        Vocabulary.load(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "# classes\nwall\n\n  sky, clouds  \n#x\nbed\n"),
        ("b.TXT", "\ufeffwall\r\nsky, clouds\r\nbed"),
        ("c.json", '["wall", "sky, clouds", "bed"]'),
        ("d.json", '{"classes": ["wall", "sky, clouds", "bed"], "ignore": 255}'),
        ("e.json", '[{"name": "wall"}, {"name": "sky", "synonyms": ["sky", "clouds"]}, {"name": "bed", "colour": 3}]'),
    ],
)
def test_class_names_are_read_from_text_and_json(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, newline="")
    assert load_class_names(tmp_path / name) == ["wall", "sky, clouds", "bed"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "wall"),
        ("a.txt", "# none\n\n"),
        ("a.json", "[]"),
        ("a.json", "[1]"),
        ("a.json", '[{"id": 1}]'),
        ("a.json", "7"),
    ],
)
def test_files_without_class_names_are_refused(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=name):
        load_class_names(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        load_class_names(tmp_path / "missing.txt")


def test_vocabulary_cannot_be_changed() -> None:
    vocabulary = Vocabulary.from_names(["a"])
    with pytest.raises(ValidationError):
        vocabulary.ignore_index = 3  # type: ignore[misc]


def test_any_flipped_byte_of_a_vocabulary_is_found_and_an_old_one_without_checksum_is_read(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.json"
    vocabulary = Vocabulary.from_names(["wall", "sky, clouds"], seen=["sky, clouds"])
    vocabulary.save(path)
    whole = path.read_bytes()
    for index in range(len(whole)):
        path.write_bytes(whole[:index] + bytes([whole[index] ^ (1 << index % 8)]) + whole[index + 1 :])
        with pytest.raises(ValueError, match=r"vocabulary\.json is not"):
            Vocabulary.load(path)
    old = json.loads(whole)
    assert old.pop("checksum") == vocabulary.digest
    path.write_text(json.dumps(old))
    assert Vocabulary.load(path) == vocabulary
