"""Refine, of given masks: labels that exist are refined as a teacher's would be, on request or to begin round 1."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from jobs.artifacts.embeddings import EmbeddingStore
from jobs.run import Run, RunRef, label_fingerprint
from jobs.stage import Done, ShardTask, Stage
from jobs.stages import given
from jobs.stages.refine import Refiner, load, refine_images, sam_part, shard_tasks
from jobs.stages.refine import Settings as RefineSettings
from jobs.stages.teacher import Settings as TeacherSettings
from jobs.stages.teacher import given_masks
from models.refinement.gate import ClassGate, GateConfig
from models.refinement.settings import FOR_MASKS, RefinementConfig
from models.refinement.types import RefineInput, label_as_input
from shards.data.given_masks import open_masks
from shards.data.label_reader import LabelReader
from shards.formats.records import Drop, Json

NO_TEACHER: Final = "masks"  # instead of the teacher's checksum, where masks were given
NO_MASK: Final = "no_mask"


def given_tasks(run: Run, round: int) -> list[ShardTask]:
    """Plan the shards of masks that round 1 begins with."""
    masks = given_masks(run, round)
    return [] if masks is None else given.with_given(run, mask_tasks(run, round), masks)


def mask_tasks(run: Run, round: int) -> list[ShardTask]:
    """Plan the shards of given masks, as round 1."""
    return shard_tasks(run, round) if round == 1 else []


def mask_fingerprint(run: RunRef) -> dict[str, Json]:
    """Return what changes refined masks."""
    # No gate: every class of a given mask counts as certain. The masks themselves are an input.
    if given_masks(run, run.round) is None:
        return {**sam_part(run), **label_fingerprint(run, "target")}
    changes, refinement = run.data.labels.changes(), _of_given(run).model_dump(mode="json")
    return {**sam_part(run), "refinement": refinement, **({"labels_read": changes} if changes else {})}


def _of_given(run: RunRef) -> RefinementConfig:
    """Return how given masks are refined: most are better than a student's labels, and SAM harms good ones."""
    return FOR_MASKS if run.section(TeacherSettings).strict_masks else run.section(RefineSettings).refinement


def load_for_masks(run: RunRef) -> Refiner:
    """Load SAM's mask decoder, and open the masks: those that are given, else the target's labels."""
    masks = given_masks(run, run.round)
    refiner = load(run)
    if masks is None:
        return replace(refiner, masks=run.open("target"))
    settings = refiner.settings.model_copy(update={"refinement": _of_given(run)})
    return replace(refiner, settings=settings, masks=open_masks(given.given_config(run, masks), run.vocabulary))


def work_on_masks(refiner: Refiner, task: ShardTask) -> Done:
    """Refine the masks of a shard's images; one without a mask ("no_mask") or with an unusable one is dropped."""
    assert refiner.masks is not None
    store = EmbeddingStore.open(task.inputs["embedding"])
    drops: list[Drop] = []
    read_mask = LabelReader(refiner.masks, drops, without=NO_MASK)
    gate = ClassGate(GateConfig(), len(refiner.vocabulary))
    done = refine_images(refiner, task, _masked_images(refiner, task, store, read_mask), gate, store, NO_TEACHER)
    return replace(done, stats={**done.stats, **read_mask.stats}, drops=drops, arrived=len(store.rows))


def _masked_images(
    refiner: Refiner, task: ShardTask, store: EmbeddingStore, read_mask: LabelReader
) -> Iterator[tuple[str, RefineInput]]:
    for ref in task.samples:
        if ref.key not in store.rows:  # embed dropped it, and its record says why
            continue
        label = read_mask(ref, store.frame(ref.key))
        if label is None:
            continue
        row = store.rows[ref.key]
        ignore = refiner.vocabulary.ignore_index
        yield ref.key, label_as_input(label, store.embedding(row), store.valid_hw(row), ignore_index=ignore)


MASKS_STAGE: Final = Stage("refine", mask_tasks, mask_fingerprint, load_for_masks, work_on_masks)
GIVEN_STAGE: Final = Stage("refine", given_tasks, mask_fingerprint, load_for_masks, work_on_masks)
