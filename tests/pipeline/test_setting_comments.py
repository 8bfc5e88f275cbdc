"""The comments in `config.yaml`: what the docstrings say, and nothing that costs or changes anything."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

import pipeline.settings
from pipeline.config import RunConfig, load_config, resolve_config, save_config
from pipeline.setting_comments import commented_yaml, sentences, summary, without_comments
from pipeline.settings import flat, sealed_settings, settings_fault


def explained(text: str) -> Iterator[tuple[str, str]]:
    """Yield the dotted name of each setting and section, and the comment above it."""
    path: list[str] = []
    comment: list[str] = []
    for line in text.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        word = line.strip()
        if word.startswith("#"):
            comment.append(word.removeprefix("# "))
        elif not word.startswith("- "):
            path[depth:] = [word.partition(":")[0]]
            yield ".".join(path), " ".join(comment)
            comment = []


def test_every_setting_has_the_sentence_of_its_docstring_above_it_where_its_section_is_first() -> None:
    config = RunConfig()
    found = dict(explained(commented_yaml(config)))
    seen: set[type[BaseModel]] = set()

    def check(section: BaseModel, prefix: str) -> int:
        model, count = type(section), 0
        first = model not in seen
        seen.add(model)
        for name in model.model_fields:
            inner = getattr(section, name)
            is_section = isinstance(inner, BaseModel)
            said = sentences(model).get(name, "") if first else ""
            if not said and is_section and type(inner) not in seen:
                said = summary(type(inner))
            assert found[prefix + name] == said, prefix + name
            assert said or not first or is_section, f"{prefix}{name} is not explained"
            count += bool(said) + (check(inner, f"{prefix}{name}.") if is_section else 0)
        return count

    assert check(config, "") > 120
    assert flat(config.model_dump(mode="json")).keys() <= found.keys()


def test_without_its_comments_a_file_is_the_plain_yaml_of_the_settings() -> None:
    config = resolve_config({}, ["data.validation=null", "model.dea=false"], where="--set")
    plain = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=10**9)
    assert without_comments(commented_yaml(config)) == plain
    assert yaml.safe_load(commented_yaml(config)) == yaml.safe_load(plain)


@pytest.mark.parametrize(
    "name",
    [
        "a\n# b",
        "# a",
        "a # b",
        "a: #b",
        "\n\n#\n",
        "x" * 300 + " # y",
        "é\t#",
        "'#'\n\"#\"",
        "- a\n  # b\n",
        "  # a\n b",
    ],
)
def test_a_text_with_a_hash_is_read_back_as_it_was(name: str, tmp_path: Path) -> None:
    config = RunConfig()
    vocabulary = config.vocabulary.model_copy(update={"classes": (name, "dog"), "seen": None})
    config = config.model_copy(update={"vocabulary": vocabulary})
    save_config(tmp_path / "config.yaml", config)
    assert load_config(tmp_path / "config.yaml") == config
    assert settings_fault(tmp_path / "config.yaml") is None


def test_the_same_settings_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_config(tmp_path / name, resolve_config({}, ["seed=3"], where="--set"))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_parser_reads_no_comment_of_an_unchanged_file_and_all_of_an_edited_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[str] = []
    load = pipeline.settings.load_yaml

    def noting(text: str) -> object:
        parsed.append(text)
        return load(text)

    monkeypatch.setattr(pipeline.settings, "load_yaml", noting)
    path = tmp_path / "config.yaml"
    save_config(path, RunConfig())
    assert load_config(path) == RunConfig()
    assert "#" not in parsed[0]
    path.write_text(path.read_text().replace("seed: 0\n", "seed: 5  # mine\n", 1))
    assert load_config(path).seed == 5
    assert parsed[1] == path.read_text()


def test_files_of_earlier_versions_have_no_comments_and_stay_valid(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    config = resolve_config({}, ["train.steps=7"], where="--set")
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
    path.write_bytes(sealed_settings("The settings of this run, all of them. Change them with --set.", text))
    assert (load_config(path), settings_fault(path)) == (config, None)
