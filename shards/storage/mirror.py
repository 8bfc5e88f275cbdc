"""The mirror of a run in a store: what the store holds is brought to this machine, what is made here goes there.

Outputs are brought and accepted only whole: the record in the store says what they are, and it is written there last.
"""

import fcntl
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Final

from shards.files.atomic import (
    is_temporary,
    remove_path,
    rename,
    replace_folder,
    write_bytes_atomic,
)
from shards.files.fence import require_lock
from shards.files.untrusted import read_json_file
from shards.storage.holds import allow_open_files, exclusive, held, is_in_use, note_made_here, shared
from shards.storage.store import RunLocation, Store, in_parallel
from shards.storage.transfer import download_file, download_output, upload_output

Artifact = tuple[Path, Path]  # an output and its record

_BULK: Final = (".zarr", ".tar", ".safetensors")  # brought when it is used
_WEIGHTS: Final = "model.safetensors"  # except models, which few stages can be planned without
_OWN: Final = re.compile(r"run\.lock(\..+)?|locks")  # with the objects that tell a lock's age, or who takes it over
_LOGS: Final = ".jsonl"
_CHECKPOINTS: Final = "checkpoints"
_SEEN: Final = "seen.json"
_BRINGING: Final = "bring.lock"


def bring(location: RunLocation) -> None:
    """Bring settings, plans, records, results and models here, as the store has them now; a plain folder stays as is.

    Afterwards a record is in the mirror if and only if it is in the store with its output, or the output is being made
    here. Outputs that a killed command did not get to the store count as not done.

    Raises:
        StoreRefused: A model has other bytes than its record says, or the store refuses.
    """
    if location.store is None:
        return
    with _bringing(location):
        listing = location.store.outline()
        _remove_unlisted(location, [name for name in listing if _is_small(name)])
        _bring_small(location, location.store, listing, {})
    for name in listing:
        record = (location.root / name).with_suffix(".json")
        if PurePosixPath(name).name == _WEIGHTS and record.is_file():
            with fetched(location, [(location.root / name, record)]):
                pass


def bring_folder(location: RunLocation, folder: Path) -> None:
    """Bring the records and other small files of one folder here; a plain folder stays as is."""
    if location.store is not None:
        with _bringing(location):
            listing = location.store.outline(location.name_of(folder))
            _bring_small(location, location.store, listing, _read_seen(location))


def bring_files(location: RunLocation, paths: Iterable[Path]) -> None:
    """Bring small files here as the store has them now; those that it does not have are deleted here too."""
    for path in paths:
        if location.store is None or location.root not in path.parents:
            continue
        data = location.store.read(location.name_of(path))
        if data is None:
            path.unlink(missing_ok=True)
        else:
            _put_here(location, path, data)


def put_files(location: RunLocation, paths: Iterable[Path]) -> None:
    """Write small files to the store, in this order; missing ones are skipped."""
    for path in paths:
        if location.store is not None and path.is_file():
            require_lock(location.store.url)
            location.store.write(location.name_of(path), path.read_bytes())


def upload(location: RunLocation, paths: Iterable[Path]) -> None:
    """Write many files to the store, several at a time and in any order."""
    if location.store is not None:
        require_lock(location.store.url)
        location.store.upload({location.name_of(path): path for path in paths})


def replace_file(location: RunLocation, path: Path, data: bytes) -> None:
    """Write a small file of a run anew, in the store before it is here."""
    # In this order, one that was killed in between is brought from the store; in the other, this machine alone would
    # have the new file and never notice.
    if location.store is not None:
        require_lock(location.store.url)
        location.store.write(location.name_of(path), data)
    require_lock(path)
    write_bytes_atomic(path, data)


def forget(location: RunLocation, paths: Iterable[Path]) -> None:
    """Delete small files that nothing names any more, here and in the store."""
    for path in paths:
        require_lock(path)
        path.unlink(missing_ok=True)
        if location.store is not None:
            location.store.remove([location.name_of(path)])


@contextmanager
def fetched(location: RunLocation, artifacts: Iterable[Artifact]) -> Iterator[None]:
    """Have outputs here, whole and as the store has them now, for the duration of the block.

    Shard data that was brought for it is deleted afterwards, unless another process of this machine uses it. Models
    and small results stay, and so does what was made here.

    Raises:
        NotInStore: One is not done.
        StoreRefused: One has other bytes than its record says.
    """
    wanted = list(artifacts) if location.store is not None else []
    allow_open_files(len(wanted))
    with ExitStack() as stack:
        for output, record in wanted:
            is_here = partial(_is_here, location, output, record)
            stack.enter_context(held(location, output, is_here, partial(_fetch, location, output, record)))
        yield


@contextmanager
def making(location: RunLocation, output: Path) -> Iterator[None]:
    """Keep other processes of this machine from touching an output and its record during the block."""
    with shared(location, output) if location.store is not None else nullcontext():
        yield


def publish(location: RunLocation, output: Path, record: Path) -> None:
    """Write an output to the store, unless it has that very record: the old record goes first, the new one comes last.

    Raises:
        LockLost: This process no longer holds the run in the store; `put_files`, `upload`, `discard` and
            `push_checkpoints` raise it too.
    """
    if location.store is None:
        return
    content = record.read_bytes()
    name, target = location.name_of(record), location.name_of(output)
    if location.store.read(name) == content:
        return
    require_lock(location.store.url)
    location.store.remove([name])
    upload_output(location.store, target, output)
    require_lock(location.store.url)  # the upload may have taken long
    location.store.write(name, content)
    note_made_here(location, output)


def discard(location: RunLocation, output: Path, record: Path) -> None:
    """Delete an output here and in the store, its record first."""
    for where in (record, *(() if location.store is None else (location.store.url,))):
        require_lock(where)
    for path in (record, output):
        remove_path(path)
        if location.store is not None:
            location.store.remove(location.store.find(location.name_of(path)))


def check(location: RunLocation, output: Path, record: Path) -> None:
    """Read an output from the store and compare it with its record there; the mirror is left alone.

    Raises:
        NotInStore: It is not done.
        StoreRefused: It has other bytes than its record says.
    """
    if location.store is not None:
        remove_path(download_output(location, location.store, output, record)[0])


def push_checkpoints(location: RunLocation, folder: Path) -> None:
    """Make the store's checkpoints of a training those of this folder."""
    if location.store is None:
        return
    require_lock(location.store.url)
    there = location.store.find(location.name_of(folder))
    here = {location.name_of(path): path for path in sorted(folder.glob("step-*"))} if folder.is_dir() else {}
    new = {name: path for name, path in here.items() if name not in there}
    # A checkpoint's JSON makes it count: it comes after its tensors and goes before them.
    location.store.upload({name: path for name, path in new.items() if path.suffix != ".json"})
    location.store.upload({name: path for name, path in new.items() if path.suffix == ".json"})
    old = sorted(there.keys() - here.keys(), key=lambda name: (not name.endswith(".json"), name))
    location.store.remove(old)


def pull_checkpoints(location: RunLocation, folder: Path) -> None:
    """Bring the checkpoints that the store has and this folder lacks; loading one checks its checksum."""
    if location.store is not None:
        with exclusive(location, folder):  # several workers of a group may be on this machine
            pull_cache(location, folder)


def pull_cache(location: RunLocation, folder: Path) -> None:
    """Bring the files of a folder that are not here; for folders whose readers check what they read."""
    if location.store is not None:
        for name in location.store.find(location.name_of(folder)):
            if not (location.root / name).is_file():
                download_file(location.store, name, location.root / name)


def push_cache(location: RunLocation, folder: Path) -> None:
    """Write the files of a cache to the store that it does not have."""
    if location.store is not None and folder.is_dir():
        there = location.store.find(location.name_of(folder))
        files = {location.name_of(path): path for path in folder.glob("[!.]*")}
        location.store.upload({name: path for name, path in files.items() if name not in there})


@contextmanager
def _bringing(location: RunLocation) -> Iterator[None]:
    # One process of this machine at a time brings small files, so that the note of what is here stays true.
    location.root.parent.mkdir(parents=True, exist_ok=True)
    with (location.root.parent / _BRINGING).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _bring_small(location: RunLocation, store: Store, listing: dict[str, str], kept: dict[str, str]) -> None:
    """Bring the small files of a listing that have changed, and note their versions along with `kept`."""
    small = {name: version for name, version in listing.items() if _is_small(name)}
    seen = _read_seen(location)
    changed = [name for name in small if seen.get(name) != small[name] or not (location.root / name).is_file()]

    def one(name: str) -> None:
        data = store.read(name)
        if data is not None:
            _put_here(location, location.root / name, data)

    in_parallel(one, changed)
    for name in small:
        # A record without its output in the store: its writer was killed, or is at it. Version "" brings it again.
        if not all(output in listing for output in _outputs(location.root / name, PurePosixPath(name).parent)):
            (location.root / name).unlink(missing_ok=True)
            small[name] = ""
    if changed or not kept:
        write_bytes_atomic(location.root.parent / _SEEN, json.dumps(kept | small).encode())


def _is_here(location: RunLocation, output: Path, record: Path) -> bool:
    assert location.store is not None
    if not output.exists() or not record.is_file():
        return False
    return location.store.read(location.name_of(record)) == record.read_bytes()


def _fetch(location: RunLocation, output: Path, record: Path) -> None:
    assert location.store is not None
    whole, content = download_output(location, location.store, output, record)
    record.unlink(missing_ok=True)  # of the old output, which is about to go
    replace_folder(whole, output) if whole.is_dir() else rename(whole, output)
    write_bytes_atomic(record, content)


def _put_here(location: RunLocation, path: Path, data: bytes) -> None:
    """Write a small file of the store; where it is a record that differs from the old one, the old data is deleted."""
    old = path.read_bytes() if path.is_file() else None
    # A log only grows, and here first.
    if old == data or (path.suffix == _LOGS and old is not None and len(old) >= len(data)):
        return
    for name in _outputs(path, PurePosixPath(location.name_of(path)).parent):
        if name != location.name_of(path) and PurePosixPath(name).suffix in _BULK:
            remove_path(location.root / name)
    write_bytes_atomic(path, data)


def _outputs(record: Path, folder: PurePosixPath) -> list[str]:
    """Return the names of a record's outputs; none if the file is not a record."""
    # They are deleted when the record changes, so only files of the record's own folder count.
    if record.suffix != ".json":
        return []
    try:
        content = read_json_file(record)
        names = list(content["outputs"]) if "fingerprint" in content else []
        return [(folder / name).as_posix() for name in names if PurePosixPath(name).name == name not in ("", "..")]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def _remove_unlisted(location: RunLocation, small: Iterable[str]) -> None:
    """Delete the small files here that the store does not have."""
    kept = set(small)
    # Not the logs: they grow here first.
    found = [path for pattern in ("*.json", "*.yaml", "*.html") for path in location.root.rglob(pattern)]
    for path in found:
        name = location.name_of(path)
        if not _is_small(name) or name in kept:
            continue
        outputs = _outputs(path, PurePosixPath(name).parent)
        if not any(is_in_use(location, location.root / output) for output in outputs):
            path.unlink(missing_ok=True)


def _is_small(name: str) -> bool:
    parts = PurePosixPath(name).parts
    if _OWN.fullmatch(parts[0]) or is_temporary(parts[-1]) or _CHECKPOINTS in parts:
        return False
    return not any(PurePosixPath(part).suffix in _BULK for part in parts)


def _read_seen(location: RunLocation) -> dict[str, str]:
    try:
        content = read_json_file(location.root.parent / _SEEN)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
