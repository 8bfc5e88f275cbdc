"""Outputs in a store: whole or not accepted, through a store that fails now and then or is slow, on any machine."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from store_setup import FlakyFileSystem, files_of

from shards.files.atomic import sha256_path
from shards.files.errors import NotInStore, StoreRefused, StoreUnavailable
from shards.formats.layout import record_of
from shards.formats.records import Record, why_stale, write_record
from shards.storage import mirror, store_calls
from shards.storage import store as storage
from shards.storage.store import MIRROR_VARIABLE, RunLocation, Store, is_in_store, location_of, run_folder
from shards.storage.store_calls import persistently

_numbers = itertools.count()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], RunLocation]:
    """Return the location of a URL on a machine; machines share nothing but the store."""
    monkeypatch.setattr(store_calls, "FIRST_PAUSE_S", 0.001)

    def place(name: str, url: str) -> RunLocation:
        monkeypatch.setenv(MIRROR_VARIABLE, str(tmp_path / name))
        return location_of(run_folder(url))

    return place


@pytest.fixture(params=["memory", "flaky", "slow", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return f"file://{tmp_path}/objects/run"
    return f"{request.param}://bucket/run-{next(_numbers)}"


def make(place: RunLocation, *, folder: bool, text: bytes = b"some bytes") -> tuple[Path, Path]:
    """Make an output here, with its record."""
    output = place.root / "rounds" / "001" / ("000000.zarr" if folder else "pseudo-000000.tar")
    output.parent.mkdir(parents=True, exist_ok=True)
    if folder:
        for name in ("zarr.json", "a/c/0", "a/c/1"):
            (output / name).parent.mkdir(parents=True, exist_ok=True)
            (output / name).write_bytes(text + name.encode())
    else:
        output.write_bytes(text)
    record = record_of(output)
    write_record(record, Record(stage="s", shard="000000", count=1, outputs={output.name: sha256_path(output)}))
    return output, record


def moved(place: RunLocation, first: RunLocation, artifact: tuple[Path, Path]) -> tuple[Path, Path]:
    """Return where an output and its record are on another machine."""
    output, record = artifact
    return place.root / first.name_of(output), place.root / first.name_of(record)


@pytest.mark.parametrize("folder", [True, False])
def test_what_one_machine_published_another_has_whole_for_as_long_as_it_uses_it(
    machine: Callable[[str, str], RunLocation], url: str, folder: bool
) -> None:
    first = machine("first", url)
    output, record = make(first, folder=folder)
    for _ in range(3):  # published again it stays as it is; a store that fails has its chance
        mirror.publish(first, output, record)
    mirror.bring(first)
    assert output.exists()  # made here, it stays
    digest = sha256_path(output)
    second = machine("second", url)
    mirror.bring(second)
    output, record = moved(second, first, (output, record))
    assert record.is_file() and not output.exists()
    assert why_stale(record, fingerprint={}, inputs={}, is_elsewhere=is_in_store) is None  # done, though not here
    with mirror.fetched(second, [(output, record)]):
        assert sha256_path(output) == digest
    assert not output.exists()
    assert record.is_file()
    mirror.check(second, output, record)


def test_a_store_that_fails_every_tenth_request_was_asked_again() -> None:
    before = FlakyFileSystem.failed
    store = Store(f"flaky://bucket/again-{next(_numbers)}")
    for number in range(30):
        store.write(str(number), b"x")
    assert len(store.find()) == 30
    assert FlakyFileSystem.failed - before >= 3


def test_a_new_output_replaces_the_old_one_with_nothing_left_of_it(
    machine: Callable[[str, str], RunLocation], url: str
) -> None:
    first = machine("first", url)
    output, record = make(first, folder=True)
    mirror.publish(first, output, record)
    second = machine("second", url)
    mirror.bring(second)
    there = moved(second, first, (output, record))
    first = machine("first", url)
    (output / "a" / "c" / "1").unlink()
    output, record = make(first, folder=True, text=b"other")
    (output / "a" / "c" / "1").unlink()
    write_record(record, Record(stage="s", shard="000000", count=1, outputs={output.name: sha256_path(output)}))
    mirror.publish(first, output, record)
    with mirror.fetched(second, [there]):
        assert sha256_path(there[0]) == sha256_path(output)
        assert not (there[0] / "a" / "c" / "1").exists()


def test_an_output_without_a_record_and_a_record_without_an_output_are_not_done(
    machine: Callable[[str, str], RunLocation], url: str
) -> None:
    first = machine("first", url)
    output, record = make(first, folder=False)
    mirror.publish(first, output, record)
    assert first.store is not None
    content = first.store.read(first.name_of(record))
    assert content is not None
    second = machine("second", url)
    mirror.bring(second)
    there = moved(second, first, (output, record))
    first.store.remove([first.name_of(record)])
    with pytest.raises(NotInStore, match="not done"), mirror.fetched(second, [there]):
        pass
    mirror.bring(second)
    assert not there[1].exists()
    first.store.write(first.name_of(record), content)
    first.store.remove([first.name_of(output)])
    mirror.bring(second)
    assert not there[1].exists()


def test_what_was_made_here_and_not_published_is_not_done(machine: Callable[[str, str], RunLocation], url: str) -> None:
    place = machine("first", url)
    _, record = make(place, folder=False)
    mirror.bring(place)
    assert not record.exists()


def test_a_truncated_object_is_refused_by_name_and_never_visible(
    machine: Callable[[str, str], RunLocation], url: str
) -> None:
    first = machine("first", url)
    output, record = make(first, folder=False)
    mirror.publish(first, output, record)
    assert first.store is not None
    first.store.write(first.name_of(output), b"some")
    second = machine("second", url)
    there = moved(second, first, (output, record))
    with (
        pytest.raises(StoreRefused, match=r"pseudo-000000.tar does not match.*shards repair --run .*://"),
        mirror.fetched(second, [there]),
    ):
        pass
    with pytest.raises(StoreRefused, match="does not match"):
        mirror.check(first, output, record)  # whatever lies here
    assert not there[0].exists()
    assert not list(there[0].parent.glob(".tmp~*"))


def test_what_another_process_uses_is_not_dropped(machine: Callable[[str, str], RunLocation], url: str) -> None:
    first = machine("first", url)
    output, record = make(first, folder=True)
    mirror.publish(first, output, record)
    second = machine("second", url)
    there = moved(second, first, (output, record))
    with mirror.fetched(second, [there]):
        with mirror.fetched(second, [there]):
            pass
        assert there[0].is_dir()
    assert not there[0].exists()


def test_checkpoints_follow_their_folder(machine: Callable[[str, str], RunLocation], url: str) -> None:
    first = machine("first", url)
    folder = first.root / "rounds" / "001" / "student" / "checkpoints"
    folder.mkdir(parents=True)
    for step in (1, 2):
        for old in folder.iterdir():
            old.unlink()
        for suffix in ("safetensors", "json"):
            (folder / f"step-{step}.{suffix}").write_bytes(b"%d" % step)
        mirror.push_checkpoints(first, folder)
    second = machine("second", url)
    there = second.root / first.name_of(folder)
    there.mkdir(parents=True)
    mirror.pull_checkpoints(second, there)
    assert {path.name: path.read_bytes() for path in there.iterdir()} == {
        "step-2.safetensors": b"2",
        "step-2.json": b"2",
    }


def test_a_plain_folder_is_its_own_place_and_nothing_is_copied(tmp_path: Path) -> None:
    place = location_of(tmp_path / "run")
    assert place == RunLocation(tmp_path / "run")
    output, record = make(place, folder=True)
    before = sorted(tmp_path.rglob("*"))
    mirror.publish(place, output, record)
    mirror.bring(place)
    with mirror.fetched(place, [(output, record)]):
        assert output.is_dir()
    assert sorted(tmp_path.rglob("*")) == before
    assert run_folder("runs/default") == Path("runs/default")


def test_the_mirror_of_a_url_is_the_same_on_every_machine(machine: Callable[[str, str], RunLocation]) -> None:
    one, same, other = (machine("m", f"memory://bucket/{name}").root for name in ("run", "run/", "other/run"))
    assert one == same
    assert one != other
    assert one.name == other.name == "run"  # which is what reports call it


def test_trouble_that_lasts_ends_with_the_url_and_what_to_do() -> None:
    pauses: list[float] = []

    def fail() -> None:
        raise OSError(5, "Input/output error")

    with pytest.raises(StoreUnavailable, match="resume") as caught:
        persistently("s3://bucket/x", fail, pauses.append)
    assert caught.value.filename == "s3://bucket/x"
    assert len(pauses) == store_calls.ATTEMPTS - 1
    assert pauses[-1] > pauses[0]

    def refuse() -> None:
        raise PermissionError("Access Denied")

    pauses.clear()
    with pytest.raises(StoreRefused, match=r"s3://bucket/x.*Access Denied"):
        persistently("s3://bucket/x", refuse, pauses.append)
    assert not pauses


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(protocol: str, **_: object) -> None:
        raise ImportError(f"Install {protocol}fs")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(ValueError, match="pip install gcsfs"):
        run_folder("gs://bucket/run")


def foreign(tmp_path: Path) -> tuple[Path, dict[str, bytes]]:
    """Make a folder with a run deep inside and other people's files around it; give the run and all bytes."""
    run = tmp_path / "home" / "work" / "runs" / "mine"
    for path in (run / "plan.json", run / "report.html", run.parent / "other" / "plan.json", run.parents[2] / "a.yaml"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    return run, files_of(tmp_path)


@pytest.mark.parametrize("level", range(5))
@pytest.mark.parametrize("content", ['{"url": "file:///somewhere/empty"}', '{"registry": 1}', "[1]", "no JSON", "3"])
def test_a_file_called_mirror_json_makes_no_folder_a_mirror(tmp_path: Path, level: int, content: str) -> None:
    run, _ = foreign(tmp_path)
    ((run, *run.parents)[level] / "mirror.json").write_text(content)
    before = files_of(tmp_path)
    for path in (run, run / "plan.json", run / "rounds" / "001"):
        assert location_of(path) == RunLocation(path)
        mirror.bring(location_of(path))
        mirror.bring_files(location_of(path), [run / "plan.json"])
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("content", ['{"url": "memory://bucket/other/mine"}', '{"url": 3}', "[1]", "{", '{"a": "b"}'])
def test_a_marker_in_the_cache_counts_only_for_the_folder_that_its_url_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    run, _ = foreign(tmp_path)
    (run.parent / "mirror.json").write_text(content)
    monkeypatch.setenv(MIRROR_VARIABLE, str(run.parents[1]))  # the user named a folder of their own as the cache
    before = files_of(tmp_path)
    assert location_of(run) == RunLocation(run)
    mirror.bring(location_of(run))
    assert files_of(tmp_path) == before


def test_a_store_that_is_empty_deletes_only_in_its_own_mirror(
    machine: Callable[[str, str], RunLocation], url: str
) -> None:
    place = machine("m", url)
    neighbours = [place.root.parent.parent / "x" / "plan.json", place.root.parent / "beside.json"]
    for path in (*neighbours, place.root / "plan.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    mirror.bring(place)
    assert not (place.root / "plan.json").exists()
    assert all(path.is_file() for path in neighbours)


def test_a_mirror_named_through_a_link_is_the_same_mirror(
    machine: Callable[[str, str], RunLocation], tmp_path: Path
) -> None:
    place = machine("m", "memory://bucket/linked")
    (tmp_path / "link").symlink_to(place.root.parent)
    assert run_folder(str(tmp_path / "link" / place.root.name)) == place.root


def test_a_worker_takes_the_cache_of_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MIRROR_VARIABLE, str(tmp_path / "cache"))
    place = location_of(run_folder("memory://bucket/worker"))
    monkeypatch.delenv(MIRROR_VARIABLE)
    monkeypatch.setattr(storage, "_HANDED", set())  # as in a process of another machine
    assert location_of(place.root / "x") == RunLocation(place.root / "x")
    place.mark()
    assert location_of(place.root / "x") == place


def test_a_record_deletes_nothing_outside_of_its_folder_whatever_it_names(
    machine: Callable[[str, str], RunLocation], url: str, tmp_path: Path
) -> None:
    place = machine("one", url)
    theirs = tmp_path / "theirs.tar"
    theirs.write_bytes(b"mine")
    other = place.root / "rounds" / "002" / "kept.tar"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"mine")
    record = place.root / "rounds" / "001" / "a.json"
    named = [str(theirs), f"{'../' * 20}{theirs}", "../002/kept.tar", "../../../../theirs.tar", "..", ""]
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"fingerprint": {}, "outputs": dict.fromkeys(named, "a" * 64)}))
    assert place.store is not None
    place.store.write("rounds/001/a.json", b"{}")
    mirror.bring(place)
    mirror.bring_files(place, [record])
    assert record.read_bytes() == b"{}"
    assert theirs.read_bytes() == other.read_bytes() == b"mine"


def test_objects_whose_names_lead_out_of_the_mirror_are_not_brought(
    machine: Callable[[str, str], RunLocation], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = machine("one", f"memory://bucket/run-{next(_numbers)}")
    assert place.store is not None
    place.store.write("config.yaml", b"seed: 0")
    hostile = ("../../evil.json", "rounds/../../../evil.json", "rounds//evil.json", "./evil.json", "a\0.json")
    real = MemoryFileSystem.find

    def find(self: MemoryFileSystem, path: str, **options: Any) -> Any:
        found = real(self, path, **options)
        return found | {f"{path.rstrip('/')}/{name}": {"size": 2} for name in hostile}

    def ls(self: MemoryFileSystem, path: str, **options: Any) -> Any:
        return [{"name": name, "type": "file", **info} for name, info in find(self, path, detail=True).items()]

    monkeypatch.setattr(MemoryFileSystem, "find", find)
    monkeypatch.setattr(MemoryFileSystem, "ls", ls)
    assert set(place.store.find()) == set(place.store.outline()) == {"config.yaml"}
    mirror.bring(place)
    assert [path.name for path in place.root.rglob("*")] == ["config.yaml"]
