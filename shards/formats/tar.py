"""Tars of samples that stock webdataset reads: the same bytes for the same samples."""

import json
import os
import re
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from shards.files.atomic import (
    about,
    drop_temporary,
    fsync,
    fsync_folder,
    rename,
    temporary_sibling,
    write_bytes_atomic,
)
from shards.files.fence import require_lock
from shards.files.untrusted import open_regular, read_regular
from shards.formats.legend import Legend, LegendClass
from shards.formats.records import Checksum
from shards.formats.tar_members import BLOCK_BYTES, tar_members

MAX_NAME_BYTES = 100  # ustar's field
_KEY = re.compile(r"[A-Za-z0-9_-]+")
_EXTENSION = re.compile(r"[a-z0-9]+(\.[a-z0-9]+)*")


class MemberRange(NamedTuple):
    """Where a member's data is in a tar, in bytes."""

    offset: int
    size: int


@dataclass(frozen=True)
class TarSample:
    """One sample: its key, and the bytes of its files by extension ("jpg", "label.png", "json")."""

    key: str
    members: dict[str, bytes]


@dataclass(frozen=True)
class TarIndex:
    """Where each sample's files are in a tar.

    Attributes:
        entries: (key, {extension: range}) in the tar's order.
    """

    entries: tuple[tuple[str, dict[str, MemberRange]], ...]

    @cached_property
    def places(self) -> dict[str, dict[str, MemberRange]]:
        """The same by key."""
        return dict(self.entries)


def write_tar(path: Path, samples: Iterable[TarSample]) -> None:
    """Write samples as an uncompressed ustar file, atomically; no samples give a valid empty tar.

    Args:
        path: The tar; missing parent folders are created.
        samples: In ascending order of their keys; read one at a time, so that a shard need not fit in memory.

    Raises:
        ValueError: Keys out of order or repeated, a key or extension that webdataset would split wrongly, a name longer
            than 100 bytes, or a sample without members.
    """
    with about(path):
        _write_tar(path, samples)


def _write_tar(path: Path, samples: Iterable[TarSample]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_sibling(path)
    last = ""
    try:
        with temporary.open("xb") as file:
            # ustar: readers other than Python's (DALI) stumble over PAX headers.
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for sample in samples:
                    if sample.key <= last:
                        raise ValueError(f"sample {sample.key!r} comes after {last!r}; give samples sorted, each once")
                    last = sample.key
                    _add(tar, sample)
            file.flush()
            fsync(file.fileno())
        require_lock(path)
        rename(temporary, path)
    except BaseException:
        drop_temporary(temporary)
        raise
    fsync_folder(path.parent)


def index_tar(path: Path) -> TarIndex:
    """Return where the members of a tar of samples are, without reading their bytes.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Not a complete tar, or not a tar of samples: links, folders and devices, names with folders or odd
            characters, repeated names, files of a sample that are not adjacent.
    """
    samples: dict[str, dict[str, MemberRange]] = {}
    size = path.stat().st_size
    end, last = 0, ""
    try:
        for member in tar_members(path):
            key, extension = _split(member)
            if (key != last and key in samples) or extension in samples.get(key, {}):
                raise ValueError(f"{member.name!r} comes twice, or apart from the other files of its sample")
            samples.setdefault(key, {})[extension] = MemberRange(member.offset_data, member.size)
            end = member.offset_data + -(-member.size // BLOCK_BYTES) * BLOCK_BYTES
            last = key
        if size < end + 2 * BLOCK_BYTES or any(read_member(path, end, 2 * BLOCK_BYTES)):
            raise ValueError("it breaks off before its end mark")
    except ValueError as error:
        raise ValueError(
            f"{path} is no readable tar of samples: {error}; delete it to have it written again"
        ) from error
    return TarIndex(tuple(samples.items()))


def read_member(path: Path, offset: int, size: int) -> bytes:
    """Read a member's bytes from the range that `index_tar` found.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is shorter, or is a pipe or device.
    """
    with open_regular(path) as file:
        left = os.fstat(file.fileno()).st_size - offset
        file.seek(max(offset, 0))
        data = file.read(size) if 0 <= size <= left else b""  # a read allocates the memory first
    if len(data) != size:
        raise ValueError(f"{path} ends before byte {offset + size}; it changed since it was indexed")
    return data


class PseudoShard(BaseModel):
    """One tar of a round, as the index lists it; `url` is a file in the index's folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*$")]
    nsamples: NonNegativeInt
    sha256: Checksum


class PseudoIndex(BaseModel):
    """All tars of a round. The names `shardlist`, `url` and `nsamples` are those of webdataset's own indexes.

    Attributes:
        image_extension: What every image is called, "jpg" for `KEY.jpg`; None in runs of earlier versions: as its file.
        ignore_index, classes: What the ids of `KEY.label.png` mean; not in indexes of earlier versions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    wids_version: Literal[1] = 1
    vocabulary_sha256: Checksum
    image_extension: str | None = None
    ignore_index: NonNegativeInt | None = None
    classes: tuple[LegendClass, ...] = ()
    shardlist: tuple[PseudoShard, ...]


@dataclass(frozen=True)
class TarContents:
    """What all tars of a round have in common.

    Attributes:
        vocabulary_digest: `Vocabulary.digest`.
        legend: What the ids of the labels mean.
        image_extension: What every image is called; None: as its file.
    """

    vocabulary_digest: str
    legend: Legend
    image_extension: str | None = None


def write_pseudo_index(
    folder: Path,
    names: Sequence[str],
    counts: Sequence[int],
    checksums: Sequence[str],
    contents: TarContents,
    *,
    elsewhere: bool = False,
) -> Path:
    """Write a round's `index.json`, after the last of its tars, and return its path.

    Args:
        folder: The folder of the tars.
        names: Their file names, each once; sorted in the index.
        counts: The number of samples of each.
        checksums: The SHA-256 of each.
        contents: What is in all of them.
        elsewhere: Whether the tars are in a store, and only some of them in the folder.

    Raises:
        ValueError: Lists of different lengths, no tars, a repeated or missing one, or no samples in any.
    """
    missing = [name for name in names if Path(name).name != name or not (elsewhere or (folder / name).is_file())]
    if missing or len(set(names)) != len(names) or not sum(counts):
        raise ValueError(f"{folder} has no complete set of tars: {missing[:3] or 'a tar twice, or no samples in any'}")
    shards = sorted(
        (PseudoShard(url=n, nsamples=c, sha256=s) for n, c, s in zip(names, counts, checksums, strict=True)),
        key=lambda shard: shard.url,
    )
    index = PseudoIndex(
        vocabulary_sha256=contents.vocabulary_digest,
        image_extension=contents.image_extension,
        ignore_index=contents.legend.ignore_index,
        classes=contents.legend.classes,
        shardlist=tuple(shards),
    )
    path = folder / "index.json"
    write_bytes_atomic(path, (json.dumps(index.model_dump(mode="json"), indent=1) + "\n").encode())
    return path


def read_pseudo_index(folder: Path) -> PseudoIndex:
    """Read a round's `index.json`.

    Raises:
        FileNotFoundError: There is none: the round's tars are not complete.
        ValueError: It is damaged.
    """
    path = folder / "index.json"
    try:
        return PseudoIndex.model_validate_json(read_regular(path))
    except ValidationError as error:
        raise ValueError(f"{path} is no index of tars: {error.errors()[0]['msg']}; write the round again") from error


def _add(tar: tarfile.TarFile, sample: TarSample) -> None:
    if not _KEY.fullmatch(sample.key) or not sample.members:
        raise ValueError(f"sample {sample.key!r} needs a key of A-Z a-z 0-9 _ - and at least one member")
    for extension in sorted(sample.members):
        member = tarfile.TarInfo(f"{sample.key}.{extension}")
        if not _EXTENSION.fullmatch(extension) or len(member.name) > MAX_NAME_BYTES:
            raise ValueError(f"member name {member.name!r} is longer than {MAX_NAME_BYTES} bytes or has odd signs")
        member.size = len(sample.members[extension])
        member.mode = 0o644  # and time 0, owner 0 by default: the bytes depend on the samples alone
        tar.addfile(member, BytesIO(sample.members[extension]))


def _split(member: tarfile.TarInfo) -> tuple[str, str]:
    key, _, extension = member.name.partition(".")
    if not member.isreg() or member.issparse() or member.pax_headers:
        raise ValueError(f"{member.name!r} is not a plain file")
    if not _KEY.fullmatch(key) or not _EXTENSION.fullmatch(extension):
        raise ValueError(f"{member.name!r} is not named key.extension")
    return key, extension
