"""The plan: which sample goes into which shard. Made once, before any work.

`plan.json` begins with a checksum of the rest and has one row per shard. The samples of a shard are in a file of their
own (`plan/000012.json`), whose checksum is in the row: who needs one shard reads one shard, and nobody holds them all.
A shard whose faulty files were replaced by the user has a list of a later revision (`plan/000012.1.json`); see
`shards.data.plan_revision`.
"""

import json
import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from shards.data.samples import SampleList, Samples
from shards.data.sources import SampleRef
from shards.files.atomic import write_bytes_atomic
from shards.files.untrusted import read_regular
from shards.formats.records import Checksum, sealed, unsealed

PLAN_VERSION: Final = 2
_LIST_NAME: Final = re.compile(r"([0-9]{6,})(?:\.([1-9][0-9]{0,8}))?\.json")


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
