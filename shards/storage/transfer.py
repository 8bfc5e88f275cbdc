"""Transfer of outputs between a store and its mirror: whole, and checked against their record."""

import shlex
from pathlib import Path
from typing import Final

from shards.files.atomic import drop_temporary, remove_path, rename, sha256_path, temporary_sibling
from shards.files.errors import NotInStore, StoreRefused
from shards.formats.records import parse_record
from shards.storage.store import RunLocation, Store

_ATTEMPTS: Final = 3  # at bytes that do not match their record: both may be rewritten just now


def download_output(location: RunLocation, store: Store, output: Path, record: Path) -> tuple[Path, bytes]:
    """Return a temporary file or folder with an output's bytes, checked against its record, and the record's bytes.

    Raises:
        NotInStore: The output is not done.
        StoreRefused: It has other bytes than its record says.
    """
    name = location.name_of(output)
    for _ in range(_ATTEMPTS):
        content = store.read(location.name_of(record))
        objects = store.find(name)
        if content is None or not objects:
            missing = location.shown(record if content is None else output)
            raise NotInStore(f"{missing} is not there, so that {location.shown(output)} is not done")
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
        f"{location.shown(output)} does not match its checksum; this makes it again: "
        f"stseg-pipeline shards repair --run {shlex.quote(location.shown(location.root))}"
    )


def upload_output(store: Store, target: str, output: Path) -> None:
    """Write an output to the store under a name, replacing all objects of an old one."""
    paths = (path for path in sorted(output.rglob("*")) if path.is_file()) if output.is_dir() else (output,)
    files = {f"{target}/{path.relative_to(output).as_posix()}" if path != output else target: path for path in paths}
    store.remove(name for name in store.find(target) if name not in files)  # chunks of an older, larger array
    store.upload(files)


def download_file(store: Store, name: str, path: Path) -> None:
    """Download an object to a file, atomically."""
    temporary = temporary_sibling(path)
    try:
        store.download({name: temporary})
        rename(temporary, path)
    finally:
        drop_temporary(temporary)


def _checksum_of(record: bytes, output: str) -> str | None:
    try:
        return parse_record(record, output).outputs.get(output)
    except ValueError:  # damaged: then nothing matches it
        return None
