"""Files and folders appear whole or not at all."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shards.files import atomic as files
from shards.files import retry

ROOT = Path(__file__).resolve().parents[2]

FOREIGN = ".tmp~1~2~another-machine~0123456789ab~"  # how a temporary of another machine begins


def test_write_replaces_whole_content_and_leaves_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    files.write_bytes_atomic(path, b"long old content")
    files.write_bytes_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_failed_write_keeps_the_old_file_and_cleans_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "a.bin"
    files.write_bytes_atomic(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail) if failing == "fsync" else monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        files.write_bytes_atomic(path, b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.bin"]
    assert path.read_bytes() == b"old"


def test_writer_leaves_no_torn_file_when_killed(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    code = (
        "import itertools, pathlib, sys; from shards.files.atomic import write_bytes_atomic\n"
        "for n in itertools.count(): write_bytes_atomic(pathlib.Path(sys.argv[1]), bytes([n % 256]) * 300_000)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    for _ in range(50):
        data = path.read_bytes()
        assert len(data) == 300_000
        assert len(set(data)) == 1
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert len(set(path.read_bytes())) == 1
    files.remove_stale_temporaries(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.bin"]


def test_stale_temporaries_of_dead_processes_go_and_others_stay(tmp_path: Path) -> None:
    living = files.temporary_sibling(tmp_path / "a.zarr")
    living.mkdir()
    code = (
        "import pathlib, sys; from shards.files.atomic import temporary_sibling\n"
        "print(temporary_sibling(pathlib.Path(sys.argv[1]) / 'b.zarr'))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=True, capture_output=True, text=True
    )
    dead = Path(out.stdout.strip())
    (dead / "inner").mkdir(parents=True)
    foreign = tmp_path / living.name.replace(living.name.split("~")[3], "another-machine")
    foreign.write_bytes(b"")
    old = tmp_path / foreign.name.replace("another-machine", "a-third-one")
    others = [tmp_path / name for name in (".tmp~odd", ".tmp~1~2~host~notes", f"x{old.name}", "kept.tar")]
    for path in (old, *others):
        path.write_bytes(b"")
        os.utime(path, (0, 0))
    assert files.remove_stale_temporaries(tmp_path) == 2
    assert {path.name for path in tmp_path.iterdir()} == {living.name, foreign.name, *(path.name for path in others)}
    assert files.remove_stale_temporaries(tmp_path / "missing") == 0


def test_temporaries_of_two_calls_differ_and_fit_into_a_name(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    names = {files.temporary_sibling(path).name for _ in range(100)}
    assert len(names) == 100
    assert max(map(len, names)) <= 255


def make_tree(folder: Path, content: dict[str, bytes]) -> Path:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    folder.mkdir(exist_ok=True)
    return folder


def test_tree_checksum_depends_on_names_and_bytes_alone(tmp_path: Path) -> None:
    base = files.sha256_tree(make_tree(tmp_path / "a", {"x/1": b"one", "y": b"two"}))
    assert files.sha256_tree(make_tree(tmp_path / "b", {"y": b"two", "x/1": b"one"})) == base
    os.utime(tmp_path / "b" / "y", (0, 0))
    (tmp_path / "b" / "empty").mkdir()
    assert files.sha256_tree(tmp_path / "b") == base
    others = [
        {"x/1": b"one", "y": b"twO"},
        {"x/2": b"one", "y": b"two"},
        {"x": b"1one", "y": b"two"},
        {"x/1": b"one"},
        {},
    ]
    sums = {files.sha256_tree(make_tree(tmp_path / f"c{n}", content)) for n, content in enumerate(others)}
    assert len(sums | {base}) == 6


def test_tree_checksum_refuses_links_and_missing_folders(tmp_path: Path) -> None:
    folder = make_tree(tmp_path / "a", {"x": b"one"})
    (folder / "link").symlink_to("x")
    with pytest.raises(ValueError, match="link"):
        files.sha256_tree(folder)
    (folder / "link").unlink()
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="link"):
        files.sha256_tree(folder)
    with pytest.raises(FileNotFoundError):
        files.sha256_tree(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        files.sha256_path(tmp_path / "none")


def test_replace_folder_takes_the_place_of_an_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    for content in (b"one", b"two"):
        new = make_tree(files.temporary_sibling(path), {"x/1": content})
        files.replace_folder(new, path)
        assert (path / "x" / "1").read_bytes() == content
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.zarr"]


def test_replace_folder_killed_between_renames_leaves_nothing_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_tree(tmp_path / "a.zarr", {"x": b"old"})
    new = make_tree(files.temporary_sibling(path), {"x": b"new"})
    monkeypatch.setattr(files, "_REPLACE_ATTEMPTS", 1)
    with pytest.raises(OSError, match="not empty"):
        files.replace_folder(new, path)
    assert (path / "x").read_bytes() == b"old"


def test_errors_that_may_pass_are_waited_out_and_others_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    errors = [OSError(errno.EIO, "Input/output error"), OSError(errno.ESTALE, "Stale file handle")]
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if errors:
            raise errors.pop()
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    files.write_bytes_atomic(tmp_path / "a", b"whole")
    assert (tmp_path / "a").read_bytes() == b"whole"
    assert waits == list(retry.RETRY_WAITS_S[:2])
    for error, count in ((errno.ENOSPC, 0), (errno.EIO, len(retry.RETRY_WAITS_S))):
        waits.clear()
        errors[:] = [OSError(error, "no") for _ in range(9)]
        with pytest.raises(OSError, match="no"):
            files.write_bytes_atomic(tmp_path / "a", b"new")
        assert len(waits) == count
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"whole"


def test_left_overs_go_from_all_folders_of_a_run(tmp_path: Path) -> None:
    old = [tmp_path / "rounds" / "001" / f"{FOREIGN}{name}" for name in ("x", "y.zarr")]
    make_tree(old[1], {"zarr.json": b""})
    old[0].write_bytes(b"")
    kept = make_tree(tmp_path / "rounds" / "000001.zarr", {f"{FOREIGN}inner": b""})
    for path in (*old, kept / f"{FOREIGN}inner"):
        os.utime(path, (0, 0))
    assert files.remove_stale_temporaries_below(tmp_path) == 2
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["rounds", "000001.zarr", f"{FOREIGN}inner", "001"]


def test_nothing_behind_a_link_is_deleted_whatever_the_link_is_called(tmp_path: Path) -> None:
    theirs = make_tree(tmp_path / "theirs", {"notes.txt": b"mine", f"{FOREIGN}a": b"mine", "sub/b": b"mine"})
    os.utime(theirs / f"{FOREIGN}a", (0, 0))
    run = tmp_path / "run"
    (run / "rounds").mkdir(parents=True)
    links = [run / f"{FOREIGN}x", run / "rounds" / f"{FOREIGN}y.zarr", run / "embeddings", run / "checkpoints"]
    for link in links:
        link.symlink_to(theirs)
        os.utime(link, (0, 0), follow_symlinks=False)
    (run / f"{FOREIGN}file").symlink_to(theirs / "notes.txt")
    os.utime(run / f"{FOREIGN}file", (0, 0), follow_symlinks=False)
    assert files.remove_stale_temporaries(run / "checkpoints") == 0
    assert files.remove_stale_temporaries_below(run) == 3  # the links themselves
    files.replace_folder(make_tree(files.temporary_sibling(run / "embeddings"), {"x": b"new"}), run / "embeddings")
    files.remove_path(run / "checkpoints")
    assert not (run / "embeddings").is_symlink()
    names = ["notes.txt", f"{FOREIGN}a", "sub", "b"]
    assert sorted(path.name for path in theirs.rglob("*")) == sorted(names)


def test_left_overs_go_from_a_run_that_is_reached_by_a_link(tmp_path: Path) -> None:
    run = make_tree(tmp_path / "run", {f"{FOREIGN}x": b""})
    os.utime(run / f"{FOREIGN}x", (0, 0))
    (tmp_path / "link").symlink_to(run)
    assert files.remove_stale_temporaries_below(tmp_path / "link") == 1


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EBUSY])
def test_a_refused_rename_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(retry, "RETRY_WAITS_S", (0.0, 0.0))
    tries = []
    real = os.replace

    def refuse(source: Path, target: Path) -> None:
        tries.append(target)
        if len(tries) % 3:
            raise OSError(code, os.strerror(code), str(source), None, str(target))
        real(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    files.write_bytes_atomic(tmp_path / "a", b"1")
    (tmp_path / "new").mkdir()
    files.replace_folder(tmp_path / "new", tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "folder"]
    assert len(tries) == 6


def test_an_error_of_a_write_names_the_file_and_not_its_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "RETRY_WAITS_S", ())
    path = tmp_path / "a"
    for name in (None, str(tmp_path / ".tmp~1~x~a")):
        error = OSError(errno.ENOSPC, "No space left on device", name)
        monkeypatch.setattr(os, "fsync", lambda descriptor, error=error: raised(error))
        with pytest.raises(OSError, match="No space") as caught:
            files.write_bytes_atomic(path, b"1")
        assert caught.value.filename == str(path)
    assert list(tmp_path.iterdir()) == []


def raised(error: OSError) -> None:
    raise error
