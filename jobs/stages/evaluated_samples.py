"""The labelled images that models are measured on."""

import random
from functools import lru_cache
from pathlib import Path
from typing import Literal

from jobs.run import Run
from shards.data.plan import Plan
from shards.data.sources import SampleRef, ScenesSourceConfig, SourceConfig, open_source
from shards.data.vocabulary import Vocabulary

Split = Literal["test", "validation"]


def split_name(source: SourceConfig) -> str:
    """Return the name of a labelled source in results: the scenes' split, or the name of the images' folder."""
    return source.split if isinstance(source, ScenesSourceConfig) else source.name or Path(source.images).name


def evaluation_samples(
    source: SourceConfig, seed: int, count: int | None, vocabulary: Vocabulary
) -> tuple[SampleRef, ...]:
    """Draw the images to measure on, sorted by key: the same ones for the same source, count and seed.

    Args:
        source: Labelled images.
        seed: Seed of the draw.
        count: How many to draw; None: all.
        vocabulary: The classes.

    Raises:
        ValueError: The source has no labels, or no images.
    """
    opened = open_source(source, vocabulary)
    if not opened.labelled:
        raise ValueError(f"{split_name(source)} has no labels; evaluation needs a labelled source")
    refs = sorted(opened.refs(), key=lambda ref: ref.key)
    if count is not None and count < len(refs):
        refs = sorted(random.Random(seed).sample(refs, count), key=lambda ref: ref.key)
    return tuple(refs)


def labelled_samples(run: Run, split: Split, count: int | None) -> tuple[SampleRef, ...]:
    """Return the images of a split of a run, as `evaluation_samples` draws them; drawn once per process."""
    return _cached_samples(run.data.of(split), run.config.seed, count, run.layout.vocabulary)


def same_images(one: SourceConfig, other: SourceConfig) -> bool:
    """Return whether two sources are folders of the same images; their labels may differ."""
    if isinstance(one, ScenesSourceConfig) or isinstance(other, ScenesSourceConfig):
        return False
    return Path(one.images).resolve() == Path(other.images).resolve()


@lru_cache(maxsize=4)
def shards_with(plan: Plan, samples: tuple[SampleRef, ...]) -> tuple[tuple[str, ...], tuple[SampleRef, ...]]:
    """Return the shards of a plan that hold some of the samples, and the samples that are in none of them."""
    # Cached for the same reason as the samples. The folder may have changed since it was planned: new and changed
    # images are in no shard.
    left = {(ref.key, ref.digest): ref for ref in samples}
    shards = []
    for shard in plan.shards:
        found = [left.pop((ref.key, ref.digest), None) for ref in shard.samples]
        if any(found):
            shards.append(shard.name)
    return tuple(shards), tuple(left.values())


@lru_cache(maxsize=8)
def _cached_samples(source: SourceConfig, seed: int, count: int | None, vocabulary: Path) -> tuple[SampleRef, ...]:
    # Every listing of the tasks needs them, and reading a split hashes all of its files.
    return evaluation_samples(source, seed, count, Vocabulary.load(vocabulary))
