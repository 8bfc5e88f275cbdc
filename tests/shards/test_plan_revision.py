"""Replaced files change a plan only as a whole, and a plan that was never revised keeps its bytes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from shards.data import plan_revision
from shards.data.plan import Plan, is_list_name, list_path, shard_and_revision
from shards.data.plan_repair import rebuild_lists, rebuild_plan
from shards.data.plan_revision import revised, unused_lists, write_revised_lists
from shards.data.plan_writing import write_plan
from shards.data.sources import SampleRef
from shards.files.atomic import write_bytes_atomic
from shards.storage.mirror import forget, replace_file
from shards.storage.store import RunLocation

REFS = [SampleRef(f"k{n:03d}", f"{n:x}" * 64, f"folder/k{n:03d}.jpg") for n in range(10)]
MENDED = REFS[5]._replace(digest="e" * 64, label_digest="d" * 64)
NOW = [*REFS[:5], MENDED, *REFS[6:]]
REPLACED = {"000001": {MENDED.key: MENDED}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_plan(tmp_path / "plan.json", REFS, 4)
    return tmp_path / "plan.json"


def revise(path: Path) -> Plan:
    plan, _ = write_revised_lists(path, revised(Plan.load(path), REPLACED))
    location = RunLocation(path.parent)
    replace_file(location, path, plan.as_bytes())
    forget(location, unused_lists(path, plan))
    return plan


def test_a_revision_changes_the_list_and_digest_of_its_shard_alone(path: Path) -> None:
    before = Plan.load(path)
    kept = {file: file.read_bytes() for file in before.samples.paths if file.name != "000001.json"}
    plan = revise(path)
    assert list(plan.samples) == NOW
    assert Plan.load(path) == plan
    assert [one.revision for one in plan.shards] == [0, 1, 0]
    assert [a == b for a, b in zip(before.digests, plan.digests, strict=True)] == [True, False, True]
    assert {file: file.read_bytes() for file in kept} == kept
    assert sorted(file.name for file in path.with_suffix("").iterdir()) == [
        "000000.json",
        "000001.1.json",
        "000002.json",
    ]


def test_a_plan_without_replaced_files_keeps_its_bytes(path: Path) -> None:
    whole = path.read_bytes()
    plan, written = write_revised_lists(path, revised(Plan.load(path), {}))
    assert (plan.as_bytes(), written, unused_lists(path, plan)) == (whole, [], [])
    assert b"revision" not in whole


def test_a_revised_plan_in_memory_writes_nothing(path: Path) -> None:
    files = {file: file.read_bytes() for file in path.parent.rglob("*.json")}
    assert list(revised(Plan.load(path), REPLACED).samples) == NOW
    assert {file: file.read_bytes() for file in path.parent.rglob("*.json")} == files


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("survived", range(4))
def test_killed_before_any_write_the_plan_is_whole_and_the_same_again_ends_it(
    path: Path, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    left = [survived]

    def counted(action: Callable[..., None]) -> Callable[..., None]:
        def act(*arguments: object, **named: object) -> None:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            action(*arguments, **named)

        return act

    with monkeypatch.context() as patch:
        patch.setattr(plan_revision, "write_bytes_atomic", counted(write_bytes_atomic))
        patch.setattr("shards.storage.mirror.write_bytes_atomic", counted(write_bytes_atomic))
        patch.setattr(Path, "unlink", counted(Path.unlink))
        if survived < 3:
            with pytest.raises(Killed):
                revise(path)
        else:
            revise(path)
    assert list(Plan.load(path).samples) == (REFS if survived < 2 else NOW)
    if survived < 2:
        plan = revise(path)
    else:
        plan = Plan.load(path)
        forget(RunLocation(path.parent), unused_lists(path, plan))
    assert (list(plan.samples), unused_lists(path, plan)) == (NOW, [])


def test_a_second_revision_follows_the_first(path: Path) -> None:
    revise(path)
    again = MENDED._replace(digest="c" * 64)
    plan, written = write_revised_lists(path, revised(Plan.load(path), {"000001": {again.key: again}}))
    assert [file.name for file in written] == ["000001.2.json"]
    assert plan.shard("000001").revision == 2


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("000012.json", ("000012", 0)),
        ("000012.3.json", ("000012", 3)),
        ("000012.0.json", None),
        ("000012.03.json", None),
        ("12.json", None),
        ("000012.1.json.tmp", None),
        ("notes.json", None),
    ],
)
def test_only_names_of_ours_are_lists(name: str, found: tuple[str, int] | None) -> None:
    assert shard_and_revision(name) == found
    assert is_list_name(name) == (found is not None)


def test_a_revised_plan_comes_back_out_of_its_lists_though_records_know_the_one_before(path: Path) -> None:
    old = Plan.load(path)
    plan = revise(path)
    whole = path.read_bytes()
    for known in ({}, {"000001": plan.digests[1]}, {"000001": old.digests[1]}):
        path.write_bytes(b"{")
        assert rebuild_plan(path, 4, known) == plan
        assert path.read_bytes() == whole


def test_of_two_revisions_the_plan_gets_the_one_that_records_are_about(path: Path) -> None:
    old = Plan.load(path)
    new, _ = write_revised_lists(path, revised(old, REPLACED))  # killed here
    path.write_bytes(b"{")
    assert rebuild_plan(path, 4, {"000001": old.digests[1]}) == old
    path.write_bytes(b"{")
    assert rebuild_plan(path, 4, {"000001": new.digests[1]}) == new
    path.write_bytes(b"{")
    assert rebuild_plan(path, 4, {}) == new
    list_path(path, "000001", 1).write_bytes(b"[")
    path.write_bytes(b"{")
    assert rebuild_plan(path, 4, {}) == old


def test_a_damaged_list_of_a_revision_comes_back_under_its_own_name(path: Path) -> None:
    revise(path)
    file = list_path(path, "000001", 1)
    whole = file.read_bytes()
    file.write_bytes(b"[")
    rebuild_lists(path, NOW)
    assert file.read_bytes() == whole
    assert not list_path(path, "000001").exists()
