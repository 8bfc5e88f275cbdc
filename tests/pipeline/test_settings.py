from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from pipeline.config import RunConfig
from pipeline.settings import dotted_names, flat, nearest, parse_set, read_settings, validated, with_sets


class Gate(BaseModel):
    model_config = ConfigDict(extra="forbid")
    threshold: float = 0.9
    kind: str = "max"


class Refine(BaseModel):
    model_config = ConfigDict(extra="forbid")
    gate: Gate = Gate()
    extra: dict[str, int] = {}


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")
    steps: int = 1
    refine: Refine | None = Refine()


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("steps=3", "steps", 3),
        ("a.b=0.5", "a.b", 0.5),
        ("a=null", "a", None),
        ("a=[1, 2]", "a", [1, 2]),
        ("a=", "a", None),
        ("a=b=c", "a", "b=c"),
        ("a={kind: folder, images: x}", "a", {"kind": "folder", "images": "x"}),
    ],
)
def test_a_set_is_a_name_and_a_yaml_value(text: str, name: str, value: object) -> None:
    assert parse_set(text) == (name, value)


@pytest.mark.parametrize("text", ["steps", "=3", "a..b=1", "a=[1", ".a=1"])
def test_what_is_no_setting_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="--set"):
        parse_set(text)


def test_sets_reach_into_sections_and_leave_the_rest_and_the_original() -> None:
    original = {"refine": {"gate": {"threshold": 0.9, "kind": "max"}}, "steps": 1}
    changed = with_sets(original, ["refine.gate.threshold=0.8", "new.deep=1"])
    assert changed["refine"]["gate"] == {"threshold": 0.8, "kind": "max"}
    assert changed["new"] == {"deep": 1}
    assert original["refine"]["gate"]["threshold"] == 0.9  # type: ignore[index]


def test_a_set_below_a_plain_value_is_refused() -> None:
    with pytest.raises(ValueError, match="steps is 1, not a section"):
        with_sets({"steps": 1}, ["steps.more=2"])


@pytest.mark.parametrize(
    ("settings", "meant"),
    [
        ({"stepz": 2}, "steps"),
        ({"refine": {"gate": {"treshold": 1}}}, "refine.gate.threshold"),
        ({"gate": {"threshold": 0.8}}, "refine.gate.threshold"),
        ({"threshold": 0.8}, "refine.gate.threshold"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_known_one(settings: dict[str, object], meant: str) -> None:
    with pytest.raises(ValueError, match=f"unknown setting .* did you mean '{meant}'"):
        validated(Settings, settings, where="--set")


@pytest.mark.parametrize(
    "name", ["bogus.foo", "train.foo", "foo", "bogus.flor", "train.lr", "execution.max_retries", "model.steep"]
)
def test_a_name_that_only_shares_letters_or_a_section_with_a_setting_is_no_hint(name: str) -> None:
    assert nearest(name, dotted_names(RunConfig)) is None


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("trian.steps", "train.steps"),
        ("modl.preset", "model.preset"),
        ("model.prset", "model.preset"),
        ("shardsize", "shard_size"),
        ("flor", "promotion.floor"),
        ("promotion.flor.holdout", "promotion.floor.holdout"),
        ("refine.treshold", "refine.gate.threshold"),
        ("bogus.threshold", "refine.gate.threshold"),
        ("sed", "seed"),
    ],
)
def test_a_near_name_is_found_in_any_section(name: str, meant: str) -> None:
    assert nearest(name, dotted_names(RunConfig)) == meant


def test_an_unknown_name_far_from_all_others_is_refused_with_the_sections() -> None:
    with pytest.raises(ValueError, match="the sections are steps, refine"):
        validated(Settings, {"qqqqq": 1}, where="file.yaml")


def test_a_value_that_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match=r"file.yaml: refine.gate.threshold: .*got 'high'"):
        validated(Settings, {"refine": {"gate": {"threshold": "high"}}}, where="file.yaml")


def test_any_name_may_stand_in_a_mapping() -> None:
    found = validated(Settings, {"refine": {"extra": {"whatever": 3}}}, where="")
    assert found.refine is not None
    assert found.refine.extra == {"whatever": 3}


def test_dotted_names_hold_sections_and_settings() -> None:
    assert {"steps", "refine", "refine.gate", "refine.gate.threshold", "refine.extra"} <= set(dotted_names(Settings))


def test_flat_names_settings_by_their_way() -> None:
    assert flat({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}


def test_nothing_is_near_a_name_that_shares_nothing() -> None:
    assert nearest("zzz", dotted_names(Settings)) is None


def test_an_empty_file_sets_nothing_and_a_list_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("# nothing\n")
    assert read_settings(path) == {}
    path.write_text("- 1\n")
    with pytest.raises(ValueError, match="expected names and values"):
        read_settings(path)
    path.write_text("a: [1\n")
    with pytest.raises(ValueError, match="not a YAML file"):
        read_settings(path)
