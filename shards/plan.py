"""The plan: which sample goes into which shard. Made once, before any work."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from shards.files import write_bytes_atomic
from shards.sources import MAX_KEY_LENGTH, SampleRef


class PlannedShard(BaseModel):
    """One shard: the unit of work."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[0-9]{6,}$")]
    samples: Annotated[tuple[SampleRef, ...], Field(min_length=1)]

    @property
    def digest(self) -> str:
        """The SHA-256 over keys and digests: the shard's input, whatever folder the images lie in."""
        rows = [[ref.key, ref.digest] + ([ref.label_digest] if ref.label_digest else []) for ref in self.samples]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


class Plan(BaseModel):
    """All shards of a data set, in order; keys are unique over all of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    shard_size: PositiveInt
    shards: Annotated[tuple[PlannedShard, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        for index, shard in enumerate(self.shards):
            if shard.name != shard_name(index):
                raise ValueError(f"shard {index} is called {shard.name!r}; expected {shard_name(index)!r}")
        keys = Counter(ref.key for shard in self.shards for ref in shard.samples)
        repeated = [key for key, count in keys.items() if count > 1]
        if repeated:
            raise ValueError(f"key {repeated[0]!r} stands {keys[repeated[0]]} times; each sample needs its own")
        return self

    @property
    def sample_count(self) -> int:
        """The number of samples in all shards."""
        return sum(len(shard.samples) for shard in self.shards)

    def shard(self, name: str) -> PlannedShard:
        """Give a shard by its name.

        Raises:
            ValueError: There is none of that name.
        """
        for shard in self.shards:
            if shard.name == name:
                return shard
        raise ValueError(f"the plan has no shard {name!r}; it has {self.shards[0].name} to {self.shards[-1].name}")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a plan.

        Raises:
            FileNotFoundError: There is none.
            ValueError: It is damaged or contradicts itself.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{path} is not a plan: {'.'.join(map(str, first['loc']))} {first['msg']}") from error

    def save(self, path: Path) -> None:
        """Write it as JSON, whole or not at all."""
        text = json.dumps(self.model_dump(mode="json", exclude_none=True), ensure_ascii=False, indent=1)
        write_bytes_atomic(path, (text + "\n").encode())


def make_plan(refs: Iterable[SampleRef], shard_size: int) -> Plan:
    """Put samples into shards of equal size, the last one perhaps smaller.

    Args:
        refs: The samples in any order; within the plan they are sorted by key.
        shard_size: Samples a shard, at least 1.

    Raises:
        ValueError: No samples, a key twice, or a shard size below 1.
    """
    if shard_size < 1:
        raise ValueError(f"shard_size is {shard_size}; a shard holds at least 1 sample")
    samples = sorted(refs, key=lambda ref: ref.key)
    if not samples:
        raise ValueError("there is no sample to plan; is the source empty?")
    return _plan(shard_size, _cut(samples, shard_size, first=0))


def extend_plan(plan: Plan, refs: Iterable[SampleRef]) -> Plan:
    """Add the samples that a plan does not have yet, in new shards; the old shards stay as they are.

    A sample is known by its uri. Samples that are gone from the source stay planned. A new one whose key is taken
    gets eight digits of its checksum behind it.

    Raises:
        ValueError: A planned sample has other bytes now, or new samples share a key.
    """
    known = {ref.uri: ref for shard in plan.shards for ref in shard.samples}
    keys = {ref.key for ref in known.values()}
    added = []
    for ref in refs:
        old = known.get(ref.uri)
        if old is None:
            added.append(_with_free_key(ref, keys))
        elif (old.digest, old.label_digest) != (ref.digest, ref.label_digest):
            raise ValueError(
                f"{ref.uri} changed since the plan was made ({old.digest[:8]} -> {ref.digest[:8]}); "
                "put the old file back, or start a new run"
            )
    added.sort(key=lambda ref: ref.key)
    if not added:
        return plan
    return _plan(plan.shard_size, plan.shards + _cut(added, plan.shard_size, first=len(plan.shards)))


def shard_name(index: int) -> str:
    """Give the zero-padded name of a shard."""
    return f"{index:06d}"


def _cut(samples: list[SampleRef], size: int, first: int) -> tuple[PlannedShard, ...]:
    return tuple(
        PlannedShard(name=shard_name(first + number), samples=tuple(samples[start : start + size]))
        for number, start in enumerate(range(0, len(samples), size))
    )


def _plan(shard_size: int, shards: tuple[PlannedShard, ...]) -> Plan:
    try:
        return Plan(shard_size=shard_size, shards=shards)
    except ValidationError as error:
        raise ValueError(error.errors()[0]["msg"]) from error


def _with_free_key(ref: SampleRef, taken: set[str]) -> SampleRef:
    if ref.key not in taken:
        return ref
    return ref.model_copy(update={"key": f"{ref.key[: MAX_KEY_LENGTH - 9]}-{ref.digest[:8]}"})
