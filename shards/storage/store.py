"""Where a run is: in a folder, or under the URL of an object store with a folder of this machine as its mirror."""

import hashlib
import json
import os
import shlex
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from shards.files.atomic import write_bytes_atomic
from shards.files.untrusted import read_json_file
from shards.storage.store_calls import persistently

MIRROR_VARIABLE: Final = "STSEG_MIRROR"
DEFAULT_MIRROR: Final = "/tmp/stseg-pipeline"  # the same on every machine; on a local disk, never a shared home
# Named by package: an extra (`.[s3]`) can only be installed from a checkout, not where a wheel was.
_PACKAGES: Final = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
ARRAYS: Final = ".zarr"
_MARKER: Final = "mirror.json"
_AT_ONCE: Final = 8
_HANDED: Final[set[Path]] = set()  # caches of mirrors that this process was handed, besides the one it would choose

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Store:
    """The objects under a URL, by their names relative to it. Calls are retried while their errors are transient.

    Attributes:
        url: An fsspec URL without a slash at its end, such as `s3://bucket/run`.
    """

    url: str

    def outline(self, name: str = "") -> dict[str, str]:
        """List the objects, name -> version; a folder of arrays counts as one name."""
        # Arrays consist of many objects, thousands of times as many as there are outputs: they are not listed.
        try:
            found: list[Mapping[str, Any]] = self._ask(name, lambda fs, path: fs.ls(path, detail=True))
        except FileNotFoundError:
            return {}
        top, prefix = self._path(name), self._path("") + "/"
        objects: dict[str, str] = {}
        for info in found:
            inner = str(info["name"]).rstrip("/")
            if inner == top or not inner.startswith(prefix):  # a folder's own marker
                continue
            key = inner.removeprefix(prefix)
            if not _is_plain(key):
                continue
            if info["type"] != "directory":
                objects[key] = _version(info)
            elif key.endswith(ARRAYS):
                objects[key] = ""
            else:
                objects |= self.outline(key)
        return objects

    def find(self, name: str = "") -> dict[str, str]:
        """List the objects of or under a name: name -> version, which another write changes."""
        found: Mapping[str, Mapping[str, Any]] = self._ask(name, lambda fs, path: fs.find(path, detail=True))
        prefix = self._path("") + "/"
        objects = {
            path.removeprefix(prefix): _version(info)
            for path, info in found.items()
            if path.startswith(prefix) and not path.endswith("/") and _is_plain(path.removeprefix(prefix))
        }
        within = name + "/"
        return {key: version for key, version in objects.items() if not name or key == name or key.startswith(within)}

    def read(self, name: str) -> bytes | None:
        """Read an object; None if there is none."""
        try:
            data: bytes = self._ask(name, lambda fs, path: fs.cat_file(path))
        except FileNotFoundError:
            return None
        return data

    def write(self, name: str, data: bytes) -> None:
        """Write an object, replacing any old one."""
        self._ask(name, lambda fs, path: fs.pipe_file(path, data))

    def create(self, name: str, data: bytes) -> bool:
        """Write an object unless there is one, and return whether that worked; of many at once one wins."""
        try:
            self._ask(name, lambda fs, path: fs.pipe_file(path, data, mode="create"))
        except FileExistsError:
            return self.read(name) == data  # an attempt whose answer was lost may have been ours
        return True

    def modified_s(self, name: str) -> float | None:
        """Return the time of an object's last write by the store's clock, in seconds; None if there is no object."""
        try:
            return float(self._ask(name, lambda fs, path: fs.modified(path)).timestamp())
        except FileNotFoundError:
            return None

    def download(self, names: Mapping[str, Path]) -> None:
        """Download objects to files, whose folders are created."""

        def one(pair: tuple[str, Path]) -> None:
            pair[1].parent.mkdir(parents=True, exist_ok=True)
            self._ask(pair[0], lambda fs, path: fs.get_file(path, str(pair[1])))

        in_parallel(one, names.items())

    def upload(self, files: Mapping[str, Path]) -> None:
        """Upload files as objects."""

        def one(pair: tuple[str, Path]) -> None:
            self._ask(pair[0], lambda fs, path: fs.put_file(str(pair[1]), path))

        in_parallel(one, files.items())

    def remove(self, names: Iterable[str]) -> None:
        """Delete objects, if they exist."""

        def one(name: str) -> None:
            try:
                self._ask(name, lambda fs, path: fs.rm_file(path))
            except FileNotFoundError:
                return

        in_parallel(one, names)

    def _path(self, name: str) -> str:
        return str(_file_system(self.url)._strip_protocol(f"{self.url}/{name}" if name else self.url)).rstrip("/")

    def _ask(self, name: str, call: Callable[[Any, str], Result]) -> Result:
        url = f"{self.url}/{name}" if name else self.url
        return persistently(url, lambda: call(_file_system(self.url), self._path(name)))


@dataclass(frozen=True)
class RunLocation:
    """Where a run is; plain values, so that it can be sent to workers.

    Attributes:
        root: The run folder, or its mirror on this machine: the same path on every machine.
        store: The objects that it mirrors; None: the folder is the run.
    """

    root: Path
    store: Store | None = None

    def name_of(self, path: Path) -> str:
        """Return the name in the store of a path in the mirror."""
        return path.relative_to(self.root).as_posix()

    def shown(self, path: Path) -> str:
        """Return a path of the run as people know it: as a URL, if the run has one."""
        if self.store is None:
            return str(path)
        return self.store.url if path == self.root else f"{self.store.url}/{self.name_of(path)}"

    def mark(self) -> None:
        """Let `location_of` find the store by the mirror, in this process and in later ones of this machine.

        Raises:
            ValueError: The folder of mirrors belongs to another user.
        """
        if self.store is None:
            return
        cache = self.root.parent.parent
        cache.mkdir(parents=True, exist_ok=True)
        if cache.stat().st_uid != os.getuid():
            raise ValueError(f"{cache} belongs to another user; name a folder of your own in {MIRROR_VARIABLE}")
        _HANDED.add(cache)  # a worker on another machine need not have the variable that names the cache
        marker = self.root.parent / _MARKER
        if not marker.is_file():
            write_bytes_atomic(marker, json.dumps({"url": self.store.url}).encode())


def run_folder(location: str | Path) -> Path:
    """Return the folder in which the run of a path or URL is worked on.

    Args:
        location: A path, which is returned, or an fsspec URL (`s3://bucket/run`, `gs://…`, `file://…`). The mirror of a
            URL is `<cache>/<digest of the URL>/<last part of the URL>`; the cache is `STSEG_MIRROR` in the environment,
            the same on all machines of a cluster, or `/tmp/stseg-pipeline`.

    Raises:
        ValueError: The URL names nothing, or its kind of store is unknown or not installed.
    """
    if isinstance(location, Path) or "://" not in location:
        return _as_in_cache(Path(location))
    url = location.rstrip("/")
    name = url.rpartition("/")[2]
    if url.endswith(":") or not name or name in (".", ".."):
        raise ValueError(f"{location!r} names no run; expected a bucket and a name, as in s3://bucket/my-run")
    _file_system(url)
    run = RunLocation(_cache() / _mirror_name(url), Store(url))
    run.mark()
    return run.root


def location_of(path: Path) -> RunLocation:
    """Return the location of the run that a path belongs to; outside this program's own cache, the path is the root."""
    # No file in a user's folder can make it a mirror: in a mirror files are deleted because a store does not list them.
    absolute = path.absolute()
    caches = {_cache(), *_HANDED}
    for folder in (absolute, *absolute.parents):
        if folder.parent.parent in caches:
            url = _mirrored_url(folder)
            return RunLocation(absolute) if url is None else RunLocation(folder, Store(url))
    return RunLocation(absolute)


def _cache() -> Path:
    """Return the folder of this machine's mirrors."""
    return Path(os.environ.get(MIRROR_VARIABLE) or DEFAULT_MIRROR).absolute()


def _mirror_name(url: str) -> Path:
    """Return the path of a URL's mirror in the cache."""
    return Path(hashlib.sha256(url.encode()).hexdigest()[:16]) / url.rpartition("/")[2]


def _mirrored_url(folder: Path) -> str | None:
    """Return the URL that a folder of the cache mirrors; None if it mirrors none."""
    # The marker has to name the very URL whose mirror would be here: one that was copied, edited or put here by another
    # user makes no folder a mirror.
    try:
        content = read_json_file(folder.parent / _MARKER)
        own = folder.parent.parent.stat().st_uid == os.getuid()
    except (OSError, ValueError):
        return None
    url = content.get("url") if isinstance(content, dict) else None
    if not own or not isinstance(url, str) or _mirror_name(url) != folder.relative_to(folder.parent.parent):
        return None
    return url


def _as_in_cache(path: Path) -> Path:
    """Return a path that leads into the cache another way, such as by a link, as a path in the cache; others as is."""
    cache = _cache()
    if cache in path.absolute().parents:
        return path
    inner, real = Path(os.path.realpath(path)), Path(os.path.realpath(cache))
    return cache / inner.relative_to(real) if real in inner.parents else path


def is_in_store(path: Path) -> bool:
    """Return whether a path belongs to a run in a store."""
    return location_of(path).store is not None


def as_shown(path: Path) -> str:
    """Return a path as people know it: the URL of a run in a store, else the path itself."""
    return location_of(path).shown(path)


def as_argument(path: Path) -> str:
    """Return a path as a command that is printed for people names it: `as_shown`, quoted for a shell."""
    return shlex.quote(as_shown(path))


def in_parallel(call: Callable[[Item], None], items: Iterable[Item]) -> None:
    """Call a function per item, a few at a time; the first error is raised once all started calls have ended."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for _ in pool.map(call, items):
            pass


def _file_system(url: str) -> Any:
    import fsspec

    protocol = url.partition("://")[0]
    options = {"auto_mkdir": True} if protocol in ("file", "local") else {}
    try:
        # A cached listing would hide what other machines wrote.
        return fsspec.filesystem(protocol, use_listings_cache=False, **options)
    except ImportError as error:
        package = _PACKAGES.get(protocol)
        hint = f"pip install {package}" if package else str(error)
        raise ValueError(f"{url}: no package for {protocol}:// is installed; {hint}") from error
    except ValueError as error:
        raise ValueError(f"{url}: {protocol}:// is no kind of store that fsspec knows; try s3:// or gs://") from error


def _is_plain(name: str) -> bool:
    """Return whether an object's name is a path within the mirror."""
    # Stores accept names such as `../../x` too.
    return "\0" not in name and not {"", ".", ".."} & set(name.split("/"))


def _version(info: Mapping[str, Any]) -> str:
    stamps = ("ETag", "etag", "md5Hash", "mtime", "created", "LastModified")
    stamp = next((info[key] for key in stamps if key in info), "")
    return f"{info.get('size')} {stamp}"
