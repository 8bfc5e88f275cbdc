"""The pictures of a report: a dozen samples before and after refinement."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from jobs.artifacts.labels import read_refined
from jobs.run import Run, has_target_labels
from pipeline.report.drawing import MAX_NAMED, classes_by_size, labelled, panels, png_bytes, scaled
from pipeline.report.html import Picture
from shards.data.images import DecodedImage, ImageFrame, UnreadableImage, decode_image
from shards.data.label_reader import LabelReader
from shards.data.sources import SampleRef, Source, open_source
from shards.formats.tar import index_tar, read_member

PICTURES: Final = 12
MAX_RANKED: Final = 2000  # ranking reads every label: with more images than this, evenly spread ones are shown
PICTURES_NOTE: Final = (
    "Image, teacher's label, refined label, and the truth where it is known. Where it is, the four images that "
    "refinement helped most, the four that it hurt most, and four in between, by the share of right pixels among "
    "those with a refined label; else images spread evenly over the run. Dark grey: ignored."
)
_SIDE: Final = 240
_LABEL_EXTENSIONS: Final = ("label.png", "weight.png", "json")


@dataclass(frozen=True)
class Shown:
    """A sample to draw.

    Attributes:
        shard: Its shard.
        key: Its key.
        caption: The text below it.
    """

    shard: str
    key: str
    caption: str


def choose_samples(run: Run, number: int) -> list[Shown]:
    """Choose the samples of a round to show: by gain if there are labels, else evenly spread."""
    if has_target_labels(run) and run.plan.sample_count <= MAX_RANKED:
        ranked = _ranked(run, number)
        if ranked:  # empty where no label could be read, or its size is not that of the image
            return [shown for _, shown in _extremes(ranked)]
    count = run.plan.sample_count
    picked = run.plan.pick(int(index) for index in np.linspace(0, count - 1, min(PICTURES, count)))
    return [Shown(shard, ref.key, ref.key) for shard, samples in picked.items() for ref in samples]


def draw_samples(run: Run, number: int, samples: Sequence[Shown]) -> list[Picture]:
    """Draw samples as panels; those that were left out as unreadable are skipped."""
    source = open_source(run.data.target, run.vocabulary)
    pictures = []
    for shard in dict.fromkeys(shown.shard for shown in samples):
        refs = {ref.key: ref for ref in run.plan.shard(shard).samples}
        with run.here(run.layout.refine(number, shard)):
            store = read_refined(run.layout.refine(number, shard), names=("label", "teacher"))
        for shown in (shown for shown in samples if shown.shard == shard and shown.key in store.keys):
            row = store.keys.index(shown.key)
            labels = [store.maps[name][row].astype(np.int32) for name in ("teacher", "label")]
            with contextlib.suppress(UnreadableImage):  # refined, and missing since: the report names it
                pictures.append((samples.index(shown), _picture(run, number, shown, refs[shown.key], labels, source)))
    return [picture for _, picture in sorted(pictures, key=lambda pair: pair[0])]


def sample_image(run: Run, number: int, shard: str, ref: SampleRef) -> DecodedImage:
    """Return a sample's image, upright: from the round's tar, or from the source if it is not in there."""
    # The tar first: the source may be a mount that is gone by now, or may have changed since.
    tar = run.layout.pseudo(number, shard)
    with run.here(tar):
        members = index_tar(tar).places.get(ref.key, {}) if tar.is_file() else {}
        for extension, member in members.items():
            if extension not in _LABEL_EXTENSIONS:
                return decode_image(read_member(tar, *member))
    return decode_image(open_source(run.data.target, run.vocabulary).read_image(ref)[0])


def _picture(
    run: Run, number: int, shown: Shown, ref: SampleRef, labels: list[NDArray[np.int32]], source: Source
) -> Picture:
    decoded = sample_image(run, number, shown.shard, ref)
    image = decoded.image
    truth = _truth(run, source, ref, decoded.frame)
    maps = dict(zip(("teacher", "refined"), labels, strict=True))
    if truth is not None:
        maps["truth"] = truth
    columns = [("image", scaled(image, _SIDE))]
    columns += [(title, labelled(image, label, run.vocabulary, side=_SIDE)) for title, label in maps.items()]
    entries = [run.vocabulary.classes[index] for index in classes_by_size(maps.values(), run.vocabulary)[:MAX_NAMED]]
    legend = tuple((entry.name, entry.colour) for entry in entries)
    return Picture(shown.caption, png_bytes(panels(columns, side=_SIDE)), legend)


def _ranked(run: Run, number: int) -> list[tuple[float, Shown]]:
    """Return every labelled sample with the percentage points that refinement gained in it, greatest first."""
    source = open_source(run.data.target, run.vocabulary)
    ranked = []
    for shard in run.plan.shards:
        refs = {ref.key: ref for ref in shard.samples}
        with run.here(run.layout.refine(number, shard.name)):
            store = read_refined(run.layout.refine(number, shard.name), names=("label", "teacher"))
        for row, key in enumerate(store.keys):
            truth = _truth(run, source, refs[key], store.frame(row))
            label = store.maps["label"][row]
            if truth is None:
                continue
            # Only pixels with a refined label count: what refinement ignores is shown by the caption's coverage, and
            # would otherwise rank images by how much the gate kept.
            counted = (truth != run.vocabulary.ignore_index) & (label != run.vocabulary.ignore_index)
            if counted.any():
                before = 100 * float((store.maps["teacher"][row] == truth)[counted].mean())
                after = 100 * float((label == truth)[counted].mean())
                caption = f"{key}: right pixels {before:.1f} -> {after:.1f} %, coverage {100 * counted.mean():.0f} %"
                ranked.append((after - before, Shown(shard.name, key, caption)))
    return sorted(ranked, key=lambda pair: (-pair[0], pair[1].key))


def _extremes(ranked: Sequence[tuple[float, Shown]]) -> list[tuple[float, Shown]]:
    # The best and the worst alone would make refinement look more extreme than it is, hence four from the middle.
    third = PICTURES // 3
    if len(ranked) <= PICTURES:
        return list(ranked)
    middle = [ranked[int(index)] for index in np.linspace(third, len(ranked) - third - 1, third + 2)[1:-1]]
    return [*ranked[:third], *middle, *ranked[-third:]]


def _truth(run: Run, source: Source, ref: SampleRef, frame: ImageFrame) -> NDArray[np.int32] | None:
    if not has_target_labels(run):
        return None
    return LabelReader(source, [])(ref, frame)  # an unusable label is named in the report, not in a picture
