"""The plan: which sample goes into which shard. Made once, before any work.

`plan.json` begins with a checksum of the rest and has one row per shard. The samples of a shard are in a file of their
own (`plan/000012.json`), whose checksum is in the row: who needs one shard reads one shard, and nobody holds them all.
A shard whose faulty files were replaced by the user has a list of a later revision (`plan/000012.1.json`); see
`shards.data.plan_revision`.
"""

import gc
import hashlib
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from shards.data.samples import (
    SampleList,
    Samples,
    check_refs,
    common_extension,
    image_extensions,
    list_bytes,
    list_digest,
)
from shards.data.sources import SampleRef
from shards.files.atomic import remove_path, write_bytes_atomic
from shards.files.untrusted import read_regular
from shards.formats.records import Checksum, sealed, unsealed

PLAN_VERSION: Final = 2
_LIST_NAME: Final = re.compile(r"([0-9]{6,})(?:\.([1-9][0-9]{0,8}))?\.json")
_WRITERS: Final = 16  # lists are written concurrently: waiting for the disk is most of the work

Keep = Callable[[str, tuple[SampleRef, ...]], SampleList]


@dataclass(frozen=True)
class PlannedShard:
    """One shard: the unit of work.

    Attributes:
        name: Its number, zero-padded.
        first, last: The keys of its first and last sample.
        samples: Its samples.
        revision: How often its list was written anew because files had been replaced.
    """

    name: str
    first: str
    last: str
    samples: Samples
    revision: int = 0

    @property
    def digest(self) -> str:
        """The SHA-256 over keys and digests: the shard's input, wherever the images are."""
        return self.samples.digest


class OtherVersion(ValueError):  # noqa: N818 - a state of affairs
    """A plan that is whole, in the format of another version of the program."""


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[0-9]{6,}$")]
    count: PositiveInt
    digest: Checksum
    first: str
    last: str
    checksum: Checksum | None = None  # of the list's file; None in plans of earlier versions
    revision: NonNegativeInt | None = None  # None, and so absent from the file, where nothing was replaced


class _PlanFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[2] = PLAN_VERSION
    shard_size: PositiveInt
    image_extension: Literal["jpg", "png", "webp", "tif", "bmp"] | None = None
    shards: Annotated[tuple[_Row, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        # The ends of each shard are enough here: the keys between them are checked where the lists are read.
        for index, shard in enumerate(self.shards):
            if shard.name != shard_name(index):
                raise ValueError(f"shard {index} is called {shard.name!r}; expected {shard_name(index)!r}")
        ends = {key: shard.name for shard in self.shards for key in {shard.first, shard.last}}
        if len(ends) < sum(len({shard.first, shard.last}) for shard in self.shards):
            raise ValueError("two shards hold the same key; each sample needs its own")
        return self


@dataclass(frozen=True)
class Plan:
    """All shards of a data set, in order; keys are unique over all of them.

    Attributes:
        shard_size: Samples per shard; the last one may have fewer.
        shards: The shards.
        image_extension: What all images are called in the run's tars, "jpg" for `KEY.jpg`; None in plans of earlier
            versions, whose tars keep the older format, so that a run never mixes two.
    """

    shard_size: int
    shards: tuple[PlannedShard, ...]
    image_extension: str | None = None

    @property
    def sample_count(self) -> int:
        """The number of samples in all shards."""
        return sum(len(shard.samples) for shard in self.shards)

    @property
    def samples(self) -> Samples:
        """The samples of all shards."""
        return Samples(tuple(one for shard in self.shards for one in shard.samples.lists))

    @property
    def digests(self) -> list[str]:
        """The digest of each shard."""
        return [shard.digest for shard in self.shards]

    def pick(self, indices: Iterable[int]) -> dict[str, Samples]:
        """Return the samples at some indices of the whole plan, as a selection per shard that has one of them."""
        picked: dict[str, Samples] = {}
        wanted, start = deque(sorted(indices)), 0
        for shard in self.shards:
            here: list[int] = []
            while wanted and wanted[0] < start + len(shard.samples):
                here.append(wanted.popleft() - start)
            if here:
                (whole,) = shard.samples.lists
                picked[shard.name] = Samples((replace(whole, picks=tuple(here)),))
            start += len(shard.samples)
        return picked

    def shard(self, name: str) -> PlannedShard:
        """Return a shard by its name; raise ValueError if there is none."""
        for shard in self.shards:
            if shard.name == name:
                return shard
        raise ValueError(f"the plan has no shard {name!r}; it has {self.shards[0].name} to {self.shards[-1].name}")

    def find(self, key: str) -> tuple[PlannedShard, SampleRef] | None:
        """Return a sample by its key, and its shard; only lists that may hold the key are read."""
        for shard in self.shards:
            if shard.first <= key <= shard.last:
                for ref in shard.samples:
                    if ref.key == key:
                        return shard, ref
        return None

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a plan without its lists of samples.

        Raises:
            FileNotFoundError: There is none.
            OtherVersion: It was made by another version of the program.
            ValueError: It is damaged or contradicts itself.
        """
        try:
            file = _PlanFile.model_validate_json(unsealed(read_regular(path)))
        except ValidationError as error:
            first = error.errors()[0]
            if first["loc"] == ("version",):
                raise OtherVersion(
                    f"{path} is not a plan of version {PLAN_VERSION} but {first['input']!r}, which another version of "
                    "the program made; start a new run"
                ) from error
            raise ValueError(f"{path} is not a plan: {'.'.join(map(str, first['loc']))} {first['msg']}") from error
        except ValueError as error:
            raise ValueError(f"{path} is not the plan that was written: {error}") from error
        shards = []
        for row in file.shards:
            revision = row.revision or 0
            samples = SampleList(row.count, row.digest, list_path(path, row.name, revision), row.checksum)
            shards.append(PlannedShard(row.name, row.first, row.last, Samples((samples,)), revision))
        return cls(file.shard_size, tuple(shards), file.image_extension)

    def as_bytes(self) -> bytes:
        """Return the content of the plan's file, which leaves out the lists."""
        rows = []
        for shard in self.shards:
            row = _Row(
                name=shard.name,
                count=len(shard.samples),
                digest=shard.digest,
                first=shard.first,
                last=shard.last,
                checksum=shard.samples.lists[0].file_checksum,
                revision=shard.revision or None,
            )
            rows.append(row.model_dump(mode="json", exclude_none=True))
        named = {} if self.image_extension is None else {"image_extension": self.image_extension}
        content = {"version": PLAN_VERSION, "shard_size": self.shard_size, **named, "shards": rows}
        return sealed((json.dumps(content, indent=1) + "\n").encode())

    def save(self, path: Path) -> None:
        """Write the plan without its lists, atomically."""
        write_bytes_atomic(path, self.as_bytes())


def make_plan(refs: Iterable[SampleRef], shard_size: int) -> Plan:
    """Return a plan in memory: shards of equal size, the last one perhaps smaller.

    Args:
        refs: The samples in ascending order of their keys, as sources yield them.
        shard_size: Samples per shard, at least 1.

    Raises:
        ValueError: No samples, a key twice or out of order, or a shard size below 1.
    """
    extensions: set[str] = set()
    shards = tuple(cut_shards(refs, shard_size, _noting(_held, extensions)))
    return Plan(shard_size, shards, common_extension(extensions))


def write_plan(path: Path, refs: Iterable[SampleRef], shard_size: int) -> Plan:
    """Write a plan: each shard's list of samples as soon as it is full, the plan itself last.

    The samples of a few shards at most are in memory at a time.

    Args:
        path: The plan's file; the folder of its name without the ending is emptied and takes the lists.
        refs: As for `make_plan`.
        shard_size: Samples per shard, at least 1.

    Raises:
        ValueError: As for `make_plan`.
    """
    path.unlink(missing_ok=True)
    remove_path(path.with_suffix(""))
    extensions: set[str] = set()
    shards = _written(path, refs, shard_size, extensions)
    plan = Plan(shard_size, shards, common_extension(extensions))
    plan.save(path)
    return plan


@contextmanager
def gc_disabled() -> Iterator[None]:
    """Pause the search for cycles in the block, in all threads."""
    # It goes through all living objects again and again as their number grows: a third of the time in which ten million
    # samples are planned. Objects without cycles are freed as ever.
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def list_path(plan: Path, shard: str, revision: int = 0) -> Path:
    """Return the file of a shard's list of samples."""
    return plan.with_suffix("") / (f"{shard}.{revision}.json" if revision else f"{shard}.json")


def is_list_name(name: str) -> bool:
    """Return whether a file in the folder of lists may be a list."""
    return shard_and_revision(name) is not None


def shard_and_revision(name: str) -> tuple[str, int] | None:
    """Return the shard and the revision that a file of the folder of lists is named after; None if it is no list."""
    found = _LIST_NAME.fullmatch(name)
    return None if found is None else (found[1], int(found[2] or 0))


def shard_name(index: int) -> str:
    """Return the zero-padded name of a shard."""
    return f"{index:06d}"


def cut_shards(refs: Iterable[SampleRef], size: int, keep: Keep) -> Iterator[PlannedShard]:
    """Yield shards of samples, the last one perhaps smaller.

    Args:
        refs: The samples in ascending order of their keys.
        size: Samples per shard, at least 1.
        keep: Takes a shard's name and samples and returns the shard's list.

    Raises:
        ValueError: As for `make_plan`.
    """
    if size < 1:
        raise ValueError(f"shard_size is {size}; a shard holds at least 1 sample")
    source, index, before = iter(refs), 0, None
    while samples := tuple(islice(source, size)):
        check_refs(samples if before is None else (before, *samples))  # ascending across shards too
        before = samples[-1]
        name = shard_name(index)
        yield PlannedShard(name, samples[0].key, before.key, Samples((keep(name, samples),)))
        index += 1
    if before is None:
        raise ValueError("there is no sample to plan; is the source empty?")


def _noting(keep: Keep, extensions: set[str]) -> Keep:
    """Return `keep` with a note taken of what the images are called."""

    def noted(name: str, samples: tuple[SampleRef, ...]) -> SampleList:
        extensions.update(image_extensions(samples))
        return keep(name, samples)

    return noted


def _held(name: str, samples: tuple[SampleRef, ...]) -> SampleList:
    return SampleList(len(samples), list_digest(samples), refs=samples)


def _written(path: Path, refs: Iterable[SampleRef], size: int, extensions: set[str]) -> tuple[PlannedShard, ...]:
    """Cut samples into shards and write their lists; all are on disk at the end."""
    under_way: deque[Future[None]] = deque()

    def keep(name: str, samples: tuple[SampleRef, ...]) -> SampleList:
        while len(under_way) >= 2 * _WRITERS:  # or a fast source would fill the memory
            under_way.popleft().result()
        file, data = list_path(path, name), list_bytes(samples)
        under_way.append(writers.submit(write_bytes_atomic, file, data))
        return SampleList(len(samples), list_digest(samples), file, hashlib.sha256(data).hexdigest())

    with ThreadPoolExecutor(_WRITERS) as writers, gc_disabled():
        shards = tuple(cut_shards(refs, size, _noting(keep, extensions)))
        for written in under_way:
            written.result()
    return shards
