"""`shards keys`, and what `shards show` says of a key that is none."""

import json
import shutil
import tarfile
from pathlib import Path

import pytest
from run_setup import invoke

from pipeline.commands import inspect
from shards.formats.layout import RunLayout, record_path
from shards.formats.records import Drop, read_record, write_record


def listed(run: Path, *more: str) -> list[dict[str, object]]:
    code, out, err = invoke("shards", "keys", "--run", str(run), "--json", *more)
    assert code == 0, err
    rows: list[dict[str, object]] = json.loads(out)
    return rows


def test_every_key_comes_with_its_shard_its_image_and_whether_it_has_a_pseudo_label(one_round: Path) -> None:
    rows = listed(one_round)
    assert [row["key"] for row in rows] == ["target-000000", "target-000001", "target-000002"]
    assert [row["shard"] for row in rows] == ["000000", "000000", "000001"]
    assert rows[2]["image"] == "scenes:target/0/2"
    in_tars = set()
    for shard in ("000000", "000001"):
        with tarfile.open(RunLayout(one_round).pseudo(1, shard)) as tar:
            in_tars |= {name.partition(".")[0] for name in tar.getnames()}
    assert {row["key"] for row in rows if row["pseudo_label"]} == in_tars
    assert all((row["reason"] is None) == row["pseudo_label"] for row in rows)


def test_the_text_has_a_line_for_each_key_with_tabs_between_the_columns(one_round: Path) -> None:
    _, out, _ = invoke("shards", "keys", "--run", str(one_round))
    head, *lines = (line.split("\t") for line in out.splitlines())
    assert head == ["key", "shard", "pseudo-label", "image"]
    assert [line[0] for line in lines] == [row["key"] for row in listed(one_round)]
    assert {line[2] for line in lines} == {"yes"}


def test_what_was_left_out_or_is_not_written_says_so(one_round: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(one_round, run)
    layout = RunLayout(run)
    record = record_path(layout.pseudo(1, "000000"))
    found = read_record(record)
    gone = Drop(key="target-000001", reason="all_ignored", detail="nothing passed")
    write_record(record, found.model_copy(update={"drops": (gone,)}))
    layout.pseudo(1, "000001").unlink()
    assert [(row["pseudo_label"], row["reason"]) for row in listed(run)] == [
        (True, None),
        (False, "all_ignored"),
        (False, "not written"),
    ]


def test_keys_are_listed_before_the_last_shard_is_read(one_round: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(one_round, run)
    rows = inspect.list_keys(run, 1)
    assert next(rows).key == "target-000000"
    (RunLayout(run).plan.with_suffix("") / "000001.json").write_text("[]")
    assert next(rows).key == "target-000001"
    with pytest.raises(ValueError, match="is not the list that was planned"):
        next(rows)


@pytest.mark.parametrize("typed", ["target-00002", "target-000002.png", "photos/target-000002.jpg", "Target-000002"])
@pytest.mark.parametrize("compared", [10_000, 1])
def test_an_unknown_key_names_the_nearest_one_and_the_command_that_lists_all(
    one_round: Path, typed: str, compared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspect, "_COMPARED", compared)
    code, _, err = invoke("shards", "show", typed, "--run", str(one_round))
    assert code == 4
    assert f"stseg-pipeline shards keys --run {one_round}" in err
    assert "the nearest key is 'target-00000" in err
    if compared > 1:
        assert "the nearest key is 'target-000002'" in err


def test_a_round_that_is_not_there_has_no_keys(one_round: Path) -> None:
    code, out, err = invoke("shards", "keys", "--run", str(one_round), "--round", "7", "--json")
    assert (code, out) == (4, "")
    assert "has no round 7 yet" in err
