"""The students' variants: from the command line, and copies that leave the run as it is."""

from pathlib import Path

import pytest

from benchmarks.students import VARIANTS, copy_scores, parsed, settings_of, split_settings, table, variants_of
from pipeline.config import RunConfig, resolve_config


def test_a_variant_of_the_command_line_needs_no_code() -> None:
    options = parsed(
        ["--runs", "a", "--only", "--variant", "views", "teacher.views=[identity,mirror]", "gate.threshold=0.7"]
    )
    found = variants_of(options.only, options.variant)
    assert found == {"views": {"teacher.views": "[identity,mirror]", "gate.threshold": "0.7"}}
    assert settings_of(found["views"]) == ["teacher.views=[identity,mirror]", "refine.gate.threshold=0.7"]


def test_named_variants_come_first_and_all_by_default() -> None:
    assert list(variants_of(parsed(["--runs", "a"]).only, [["new"]])) == [*VARIANTS, "new"]


@pytest.mark.parametrize("more", [["max > 0.9", "a=b"], ["poison"], ["a=b"], ["new", "gate.threshold"]])
def test_a_variant_without_a_name_of_its_own_or_a_setting_is_refused(more: list[str]) -> None:
    with pytest.raises(ValueError, match="--variant"):
        variants_of([*VARIANTS], [more])


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown variant"):
        variants_of(["max > 0.8"], [])


def test_every_variant_is_a_valid_setting_of_a_run() -> None:
    for variant in VARIANTS.values():
        assert isinstance(resolve_config({}, settings_of(variant), where="--set"), RunConfig)
    assert resolve_config({}, split_settings("validation"), where="--set").data.test.split == "validation"  # type: ignore[union-attr]


def test_a_copy_has_all_that_round_1_needs_and_shares_no_file_that_is_appended_to(
    one_round: Path, tmp_path: Path
) -> None:
    copy_scores(one_round, tmp_path / "copy")
    own = {path.name for path in one_round.iterdir()} - {"events.jsonl", "locks"}
    assert {name for name in own if not name.startswith("run.lock")} <= {p.name for p in (tmp_path / "copy").iterdir()}
    assert not (tmp_path / "copy" / "events.jsonl").exists()
    assert [path.name for path in (tmp_path / "copy" / "rounds" / "001").iterdir()] == ["teacher"]


def test_the_table_shows_the_cost_of_each_variant() -> None:
    one = {"settings": {}, "runs": [], "mean": {"miou": 61.5}, "seconds": 77.0}
    text = table({"runs": 1, "rounds": 3, "split": "test", "variants": {"new": one}, "poison": {}})
    assert "61.5" in text and "77.0" in text
