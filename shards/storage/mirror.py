"""Brings what a run in a store holds to its mirror on this machine, and what is made here to the store.

Whole outputs alone are brought and accepted: the record in the store says what they are, and it is written there last.
"""

import fcntl
import hashlib
import json
import re
import resource
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Final

from shards.files.atomic import (
    drop_temporary,
    is_temporary,
    remove_path,
    rename,
    replace_folder,
    sha256_path,
    temporary_sibling,
    write_bytes_atomic,
)
from shards.files.errors import NotInStore, StoreRefused
from shards.files.fence import require_lock
from shards.files.untrusted import read_json_file
from shards.formats.records import parse_record
from shards.storage.store import RunLocation, Store, in_parallel

Artifact = tuple[Path, Path]  # an output and its record

_BULK: Final = (".zarr", ".tar", ".safetensors")  # brought when it is used
_DROPPED: Final = (".zarr", ".tar")  # and these are deleted again after use
_WEIGHTS: Final = "model.safetensors"  # except models, which few stages can be planned without
_OWN: Final = re.compile(r"run\.lock(\..+)?|locks")  # beside a lock stands what tells its age, or who takes it over
_LOGS: Final = ".jsonl"
_CHECKPOINTS: Final = "checkpoints"
_ATTEMPTS: Final = 3  # at bytes that do not match their record: it may have been written meanwhile
_SEEN: Final = "seen.json"
_BRINGING: Final = "bring.lock"


def bring(place: RunLocation) -> None:
    """Bring settings, plans, records, results and models here, as the store has them now; nothing for a plain folder.

    After it a record stands in the mirror if and only if it stands in the store and its output is listed there, or is
    being made here just now. What else lies here without a record in the store (a killed command did not get to it)
    counts as not done.

    Raises:
        StoreRefused: A model has other bytes than its record says, or the store refuses.
    """
    if place.store is None:
        return
    with _bringing(place):
        listing = place.store.outline()
        _remove_unlisted(place, [name for name in listing if _is_small(name)])
        _bring_small(place, place.store, listing, {})
    for name in listing:
        record = (place.root / name).with_suffix(".json")
        if PurePosixPath(name).name == _WEIGHTS and record.is_file():
            with fetched(place, [(place.root / name, record)]):
                pass


def bring_folder(place: RunLocation, folder: Path) -> None:
    """Bring the records and other small files of one folder here; nothing for a plain folder."""
    if place.store is not None:
        with _bringing(place):
            _bring_small(place, place.store, place.store.outline(place.name_of(folder)), _read_seen(place))


def bring_files(place: RunLocation, paths: Iterable[Path]) -> None:
    """Bring small files here as the store has them now; what it does not have is deleted here, too."""
    for path in paths:
        if place.store is None or place.root not in path.parents:
            continue
        data = place.store.read(place.name_of(path))
        if data is None:
            path.unlink(missing_ok=True)
        else:
            _put_here(place, path, data)


def put_files(place: RunLocation, paths: Iterable[Path]) -> None:
    """Write small files to the store, in this order; those that are not there are passed over."""
    for path in paths:
        if place.store is not None and path.is_file():
            require_lock(place.store.url)
            place.store.write(place.name_of(path), path.read_bytes())


def upload(place: RunLocation, paths: Iterable[Path]) -> None:
    """Write many files to the store, in any order, several at a time."""
    if place.store is not None:
        require_lock(place.store.url)
        place.store.upload({place.name_of(path): path for path in paths})


@contextmanager
def fetched(place: RunLocation, artifacts: Iterable[Artifact]) -> Iterator[None]:
    """Have outputs here, whole and as the store has them now, for the length of the block.

    Shard data that was brought for it is deleted afterwards, unless another process of this machine uses it. Models
    and small results stay, and so does what was made here.

    Raises:
        NotInStore: One is not done.
        StoreRefused: One has other bytes than its record says.
    """
    wanted = list(artifacts) if place.store is not None else []
    _allow_open_files(len(wanted))
    with ExitStack() as stack:
        for output, record in wanted:
            stack.enter_context(_held(place, output, record))
        yield


@contextmanager
def making(place: RunLocation, output: Path) -> Iterator[None]:
    """Let other processes of this machine leave an output and its record alone until the end of the block."""
    if place.store is None:
        yield
        return
    with _hold_file(place, output) as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


def publish(place: RunLocation, output: Path, record: Path) -> None:
    """Bring an output to the store: the old record goes first, then come the bytes, then the new record.

    An output whose very record the store has already stays as it is.

    Raises:
        LockLost: This process no longer holds the run in the store; `put_files`, `upload`, `discard` and
            `push_checkpoints` say so, too.
    """
    if place.store is None:
        return
    content = record.read_bytes()
    name, target = place.name_of(record), place.name_of(output)
    if place.store.read(name) == content:
        return
    require_lock(place.store.url)
    place.store.remove([name])
    _upload(place.store, target, output)
    require_lock(place.store.url)  # the upload may have taken long
    place.store.write(name, content)
    with _hold_file(place, output) as file:
        file.truncate(0)  # made here


def discard(place: RunLocation, output: Path, record: Path) -> None:
    """Delete an output here and in the store, its record first."""
    for where in (record, *(() if place.store is None else (place.store.url,))):
        require_lock(where)
    for path in (record, output):
        remove_path(path)
        if place.store is not None:
            place.store.remove(place.store.find(place.name_of(path)))


def check(place: RunLocation, output: Path, record: Path) -> None:
    """Read an output from the store and compare it with its record there; what lies here is left alone.

    Raises:
        NotInStore: It is not done.
        StoreRefused: It has other bytes than its record says.
    """
    if place.store is not None:
        remove_path(_download(place, place.store, output, record)[0])


def push_checkpoints(place: RunLocation, folder: Path) -> None:
    """Make the store's checkpoints of a training those of this folder: new tensors first, removal last."""
    if place.store is None:
        return
    require_lock(place.store.url)
    there = place.store.find(place.name_of(folder))
    here = {place.name_of(path): path for path in sorted(folder.glob("step-*"))} if folder.is_dir() else {}
    new = {name: path for name, path in here.items() if name not in there}
    place.store.upload({name: path for name, path in new.items() if path.suffix != ".json"})
    place.store.upload({name: path for name, path in new.items() if path.suffix == ".json"})
    place.store.remove(name for name in sorted(there, key=lambda name: not name.endswith(".json")) if name not in here)


def pull_checkpoints(place: RunLocation, folder: Path) -> None:
    """Bring the checkpoints that the store has and this folder has not; who loads one holds it against its checksum."""
    if place.store is None:
        return
    with _hold_file(place, folder) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # several workers of a group may be on this machine
        for name in place.store.find(place.name_of(folder)):
            path = place.root / name
            if not path.is_file():
                _download_file(place.store, name, path)


def pull_cache(place: RunLocation, folder: Path) -> None:
    """Bring the files of a cache whose readers check what they read, as far as they are not here."""
    if place.store is not None:
        for name in place.store.find(place.name_of(folder)):
            if not (place.root / name).is_file():
                _download_file(place.store, name, place.root / name)


def push_cache(place: RunLocation, folder: Path) -> None:
    """Bring the files of a cache to the store that it does not have."""
    if place.store is not None and folder.is_dir():
        there = place.store.find(place.name_of(folder))
        files = {place.name_of(path): path for path in folder.glob("[!.]*")}
        place.store.upload({name: path for name, path in files.items() if name not in there})


@contextmanager
def _bringing(place: RunLocation) -> Iterator[None]:
    """Let one process of this machine at a time bring small files, so that what is here is as it is noted to be."""
    place.root.parent.mkdir(parents=True, exist_ok=True)
    with (place.root.parent / _BRINGING).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _bring_small(place: RunLocation, store: Store, listing: dict[str, str], kept: dict[str, str]) -> None:
    """Bring the small files of a listing that have changed, and note them beside those that were noted and stay so."""
    small = {name: version for name, version in listing.items() if _is_small(name)}
    seen = _read_seen(place)
    changed = [name for name in small if seen.get(name) != small[name] or not (place.root / name).is_file()]

    def one(name: str) -> None:
        data = store.read(name)
        if data is not None:
            _put_here(place, place.root / name, data)

    in_parallel(one, changed)
    for name in small:
        if not all(output in listing for output in _outputs(place.root / name, PurePosixPath(name).parent)):
            (place.root / name).unlink(missing_ok=True)
            small[name] = ""
    if changed or not kept:
        write_bytes_atomic(place.root.parent / _SEEN, json.dumps(kept | small).encode())


@contextmanager
def _held(place: RunLocation, output: Path, record: Path) -> Iterator[None]:
    """Hold an output against deletion by other processes of this machine, once it is here."""
    assert place.store is not None
    with _hold_file(place, output) as file:
        while True:
            fcntl.flock(file, fcntl.LOCK_SH)
            if _is_here(place, place.store, output, record):
                break
            fcntl.flock(file, fcntl.LOCK_UN)
            fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_here(place, place.store, output, record):
                whole, content = _download(place, place.store, output, record)
                record.unlink(missing_ok=True)
                replace_folder(whole, output) if whole.is_dir() else rename(whole, output)
                write_bytes_atomic(record, content)
                file.write(b"brought")
                file.flush()
        try:
            yield
        finally:
            _drop(file, output)


def _allow_open_files(held: int) -> None:
    """Raise this process's limit of open files where a training holds more outputs than it allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = held + 1024
    if soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _drop(file: IO[bytes], output: Path) -> None:
    if output.suffix not in _DROPPED:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # another process uses it, and drops it
        return
    if Path(file.name).stat().st_size:
        remove_path(output)
        file.truncate(0)


def _hold_file(place: RunLocation, output: Path) -> IO[bytes]:
    folder = place.root.parent / "holds"
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / hashlib.sha256(place.name_of(output).encode()).hexdigest()[:32]).open("ab")


def _is_here(place: RunLocation, store: Store, output: Path, record: Path) -> bool:
    if not output.exists() or not record.is_file():
        return False
    return store.read(place.name_of(record)) == record.read_bytes()


def _download(place: RunLocation, store: Store, output: Path, record: Path) -> tuple[Path, bytes]:
    """Give a temporary file or folder with an output's bytes, held against its record, and the record's bytes."""
    name = place.name_of(output)
    for _ in range(_ATTEMPTS):
        content = store.read(place.name_of(record))
        objects = store.find(name)
        if content is None or not objects:
            missing = place.shown(record if content is None else output)
            raise NotInStore(f"{missing} is not there, so that {place.shown(output)} is not done")
        temporary = temporary_sibling(output)
        try:
            store.download({one: temporary / one[len(name) + 1 :] if one != name else temporary for one in objects})
            if sha256_path(temporary) == _checksum_of(content, output.name):
                return temporary, content
        except FileNotFoundError:  # it is being written again
            pass
        except BaseException:
            remove_path(temporary)
            raise
        remove_path(temporary)
    raise StoreRefused(
        f"{place.shown(output)} does not match its checksum; this makes it again: "
        f"stseg-pipeline shards repair --run {place.shown(place.root)}"
    )


def _checksum_of(record: bytes, output: str) -> str | None:
    try:
        return parse_record(record, output).outputs.get(output)
    except ValueError:  # damaged: then nothing matches it
        return None


def _download_file(store: Store, name: str, path: Path) -> None:
    temporary = temporary_sibling(path)
    try:
        store.download({name: temporary})
        rename(temporary, path)
    finally:
        drop_temporary(temporary)


def _upload(store: Store, target: str, output: Path) -> None:
    paths = (path for path in sorted(output.rglob("*")) if path.is_file()) if output.is_dir() else (output,)
    files = {f"{target}/{path.relative_to(output).as_posix()}" if path != output else target: path for path in paths}
    store.remove(name for name in store.find(target) if name not in files)
    store.upload(files)


def _put_here(place: RunLocation, path: Path, data: bytes) -> None:
    """Write a small file of the store's; data that belongs to another record than this one goes."""
    old = path.read_bytes() if path.is_file() else None
    if old == data or (path.suffix == _LOGS and old is not None and len(old) >= len(data)):
        return
    for name in _outputs(path, PurePosixPath(place.name_of(path)).parent):
        if name != place.name_of(path) and PurePosixPath(name).suffix in _BULK:
            remove_path(place.root / name)
    write_bytes_atomic(path, data)


def _outputs(record: Path, folder: PurePosixPath) -> list[str]:
    """Give the names of a record's outputs; none for what is no record.

    What a record names is deleted where the record changes, so that only files of its own folder can be named.
    """
    if record.suffix != ".json":
        return []
    try:
        content = read_json_file(record)
        names = list(content["outputs"]) if "fingerprint" in content else []
        return [(folder / name).as_posix() for name in names if PurePosixPath(name).name == name not in ("", "..")]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def _remove_unlisted(place: RunLocation, small: Iterable[str]) -> None:
    """Delete the small files here that the store does not have; logs grow here first."""
    kept = set(small)
    found = [path for pattern in ("*.json", "*.yaml", "*.html") for path in place.root.rglob(pattern)]
    for path in found:
        name = place.name_of(path)
        if not _is_small(name) or name in kept:
            continue
        outputs = _outputs(path, PurePosixPath(name).parent)
        if not any(_is_in_use(place, place.root / output) for output in outputs):
            path.unlink(missing_ok=True)


def _is_in_use(place: RunLocation, output: Path) -> bool:
    with _hold_file(place, output) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _is_small(name: str) -> bool:
    parts = PurePosixPath(name).parts
    if _OWN.fullmatch(parts[0]) or is_temporary(parts[-1]) or _CHECKPOINTS in parts:
        return False
    return not any(PurePosixPath(part).suffix in _BULK for part in parts)


def _read_seen(place: RunLocation) -> dict[str, str]:
    try:
        content = read_json_file(place.root.parent / _SEEN)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
