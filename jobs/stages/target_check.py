"""Evaluate-target: a student on unlabelled images, compared with its teacher, its labels, SAM and its mirror image."""

# K class, H W image

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from jobs.artifacts.embeddings import EmbeddingStore
from jobs.artifacts.labels import LABEL_MAPS, read_refined
from jobs.artifacts.shares import shares_among
from jobs.inference.batching import LoadedImage, in_batches, load_images
from jobs.inference.model import ImageEncoder, load_sam_decoder, load_sam_encoder, model_of
from jobs.inference.top_scores import Probabilities, present_scores
from jobs.inference.witness import NO_WITNESS, Judge, PresenceSettings, StoredWitness, always_struck
from jobs.quality.waterfall import Findings, Views, Who
from jobs.run import WHOLE_ROUND, Run, RunRef, best_weights, label_fingerprint, student_weights
from jobs.stage import Done, EmptyShard, ShardTask, Stage
from jobs.stages import evaluate, refine, teacher
from jobs.stages.promote import promotion_measure
from models.refinement.gate import ClassGate, GateConfig
from models.refinement.settings import RefinementConfig
from models.refinement.types import RefineInput
from models.stseg.views import IDENTITY, View, merge_views, seen_as
from shards.data.label_reader import LabelReader
from shards.data.samples import Samples
from shards.data.sources import Source
from shards.data.vocabulary import IGNORE_16_BIT, Vocabulary
from shards.files.atomic import write_bytes_atomic
from shards.formats.records import Drop, Json

if TYPE_CHECKING:
    from torch import Tensor

    from jobs.inference.segmenter import Segmenter
    from models.refinement.predict import PromptDecoder
    from models.sam.sam import SamEmbedding


@dataclass(frozen=True)
class TargetCheck:
    """The loaded networks and their settings: the student is used as it would be as the next teacher.

    Attributes:
        student: The model to check.
        teacher: The model that taught it; None where stability is not measured.
        decoder: SAM's mask decoder.
        encoder: SAM's image encoder, for mirrored images; None without these, or if no model needs embeddings.
        source: Images, and labels if there are any, which only measure.
        vocabulary: The classes.
        gate: Settings of the gate.
        refinement: How the student's labels are refined.
        top_k: Classes kept per cell.
        probabilities: How logits become probabilities.
        batch_size: Images at a time.
        views: What the student sees of each image, as it would as a teacher.
        presence: Who says which classes an image holds.
    """

    student: "Segmenter"
    teacher: "Segmenter | None"
    decoder: "PromptDecoder"
    encoder: ImageEncoder | None
    source: Source
    vocabulary: Vocabulary
    gate: GateConfig
    refinement: RefinementConfig
    top_k: int
    probabilities: Probabilities
    batch_size: int
    views: tuple[View, ...] = IDENTITY
    presence: PresenceSettings = NO_WITNESS


def tasks(run: Run, round: int) -> list[ShardTask]:
    """Plan one task per round from round 1, on the same images in every round."""
    if round == 0:
        return []
    count, indices = run.section(evaluate.Settings).target_images, range(run.plan.sample_count)
    drawn = indices if count >= len(indices) else random.Random(run.config.seed).sample(indices, count)
    picked = run.plan.pick(drawn)
    inputs = {"weights": student_weights(run, round), "teacher": best_weights(run, round - 1)}
    inputs |= refine.gate_inputs(run, round)
    for name in picked:
        inputs[f"embedding/{name}"] = run.layout.embedding("target", name)
        inputs |= teacher.mirror_inputs(run, name, f"/{name}") | refine.mirror_inputs(run, name, f"/{name}")
        inputs |= teacher.presence_inputs(run, name, f"/{name}")
        inputs[f"refine/{name}"] = run.layout.refine(round, name)
        if round > 1:
            inputs[f"before/{name}"] = run.layout.refine(round - 1, name)
    return [
        ShardTask(
            stage="evaluate-target",
            round=round,
            shard=WHOLE_ROUND,
            samples=Samples(tuple(one for samples in picked.values() for one in samples.lists)),
            output=run.layout.target_check(round),
            inputs=inputs,
            source=run.data.target,
        )
    ]


def _measures_stability(run: RunRef) -> bool:
    # Only where it decides: it encodes each image mirrored, by far the most expensive part of the check.
    return promotion_measure(run) in ("proxies", "stability")


def fingerprint(run: RunRef) -> dict[str, Json]:
    """Return what changes the result, except both heads' weights, which are inputs ("weights", "teacher")."""
    return {
        "student": teacher.fingerprint(run),
        "refine": refine.fingerprint(run),
        "stability": _measures_stability(run),
        **label_fingerprint(run, "target"),
    }


def load(run: RunRef) -> TargetCheck:
    """Load the student, its teacher where stability is measured, and SAM."""
    from jobs.inference.segmenter import StsegSegmenter, worker_device

    cache, device = run.layout.text_embeddings, worker_device()
    model = model_of(run, best_weights(run, run.round - 1))
    student = StsegSegmenter(model_of(run, student_weights(run, run.round)), run.vocabulary, text_cache=cache)
    taught_by = encoder = None
    if _measures_stability(run):
        taught_by = StsegSegmenter(model, run.vocabulary, text_cache=cache)
        encoder = load_sam_encoder(model).to(device) if student.needs_embedding else None
    return TargetCheck(
        student=student,
        teacher=taught_by,
        decoder=load_sam_decoder(model).to(device),
        encoder=encoder,
        source=run.open("target"),
        vocabulary=run.vocabulary,
        gate=run.section(refine.Settings).gate,
        refinement=run.section(refine.Settings).refinement,
        top_k=run.section(teacher.Settings).top_k,
        probabilities=teacher.probabilities_of(run),
        batch_size=run.section(teacher.Settings).batch_size,
        views=run.section(teacher.Settings).views,
        presence=run.section(teacher.Settings).presence,
    )


def work(check: TargetCheck, task: ShardTask) -> Done:
    """Compare a student with its teacher on the task's samples and write the result as JSON.

    - `proxies`, each for `student` and `teacher`, in per cent, None where there is nothing to compare: `agreement`, the
      mean IoU with the refined labels of this round, over the classes in them and the pixels that they cover;
      `sam_agreement`, the mean IoU of the components that pass the gate with SAM's masks of them; `stability`, the
      mean IoU with the same model's label of the mirrored image, mirrored back.
    - `changes`: pixels by label before and after, as [before, after, pixels], from the teacher's labels to the
      student's, from the teacher's to the refined ones, and from the refined ones of the round before to this one's
      (None in the first).
    - `waterfall`: see `jobs.quality.waterfall`; None without labels.
    - `struck`: the ids of the classes that a witness other than the teacher itself strikes in each of the images.

    Args:
        check: The networks, images and settings.
        task: Samples; for shard N "embedding/N", "refine/N" and, if there is an earlier round, "before/N".

    Raises:
        EmptyShard: Not one of the samples can be read.
    """
    drops: list[Drop] = []
    read_label = LabelReader(check.source, drops)
    found = Findings(check.vocabulary)
    shares = shares_among(task.inputs, check.vocabulary)
    gate = refine.load_gate(check.gate, check.vocabulary, task.inputs.get("thresholds"), shares)
    refs = {ref.key: ref for ref in task.samples}
    struck: list[set[int]] = []
    # Shard by shard, so that the stores of one shard are in memory at a time.
    for shard in sorted(role.partition("/")[2] for role in task.inputs if role.startswith("refine/")):
        store = read_refined(task.inputs[f"refine/{shard}"], LABEL_MAPS, refs)
        before = task.inputs.get(f"before/{shard}")
        earlier = None if before is None else read_refined(before, ("label",), refs)
        stores = teacher.open_stores(task.inputs, f"/{shard}")
        judge = teacher.open_judge(task.inputs, check.presence, f"/{shard}")
        if store.keys:
            struck.append(_always_struck(judge, store.keys))
        images = load_images([refs[key] for key in store.keys], check.source, drops)
        for batch in in_batches(images, check.batch_size):
            for loaded, views in zip(batch, _views(batch, check, stores, gate, judge), strict=True):
                truth = read_label(loaded.ref, loaded.frame)  # with an unusable label, it is an unlabelled image
                found.add(loaded.ref.key, views, store, earlier, truth)
    if not found.images:
        raise EmptyShard(f"none of the {len(refs)} sampled target images can be read; raise evaluate.target_images")
    result = found.result()
    if check.presence.witness != "none":
        result["struck"] = sorted(set.intersection(*struck))
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    write_bytes_atomic(task.output, text.encode())
    return Done(found.images, read_label.stats, drops)


def _always_struck(judge: Judge | None, keys: Sequence[str]) -> set[int]:
    # Never those that the student itself is the witness of: a class that it forgot would count as absent.
    if judge is None or judge.settings.instead == "keep" or not isinstance(judge.witness, StoredWitness):
        return set()
    return always_struck(judge.witness, keys, judge.settings.least_evidence)


def _views(
    batch: Sequence[LoadedImage],
    check: TargetCheck,
    stores: Mapping[View, EmbeddingStore],
    gate: ClassGate,
    judge: Judge | None,
) -> Iterator[Views]:
    from models.refinement.refine import refine_batch

    embeddings, mirror = stores["identity"], stores.get("mirror")
    logits = teacher.view_logits(check.student, batch, check.views, stores)
    keys = [loaded.ref.key for loaded in batch]
    ids, scores, _ = present_scores(merge_views(logits), keys, judge, check.top_k, check.probabilities).top
    inputs = [
        RefineInput(
            ids=ids[index],
            scores=scores[index],
            embedding=embeddings.embedding(row),
            valid_hw=embeddings.valid_hw(row),
            original_hw=embeddings.sizes_hw[row],
            mirrored=None if mirror is None else mirror.embedding(mirror.rows[key]),
        )
        for index, (key, row) in enumerate((one.ref.key, embeddings.rows[one.ref.key]) for one in batch)
    ]
    # Only its masks and the student's own labels are used, so that any id outside the classes serves to ignore.
    refined = refine_batch(inputs, check.decoder, gate, check.refinement, ignore_index=IGNORE_16_BIT)
    images = [loaded.image for loaded in batch]
    mirrored, upright = _mirrored(images, check), _upright(batch, logits[0], check, embeddings)
    for index, one in enumerate(refined):
        yield Views(one, *({who: found[index] for who, found in labels.items()} for labels in (mirrored, upright)))


def _upright(
    batch: Sequence[LoadedImage], student_BKhw: "Tensor", check: TargetCheck, embeddings: EmbeddingStore
) -> dict[Who, list[NDArray[np.int32]]]:
    """Return both models' labels of the images as they are, for stability where their labels are of several views."""
    # Labels that are a mean with the mirror image are stable by themselves, whatever the model; so are those of which a
    # witness took the doubtful part.
    if check.teacher is None or (check.views == IDENTITY and check.presence.witness == "none"):
        return {}
    sam = embeddings.batch([loaded.ref.key for loaded in batch]) if check.teacher.needs_embedding else None
    teacher_BKhw = check.teacher.logits([loaded.image for loaded in batch], sam)
    sizes = [loaded.size_hw for loaded in batch]
    return {
        "student": _labels(student_BKhw, sizes, check.probabilities),
        "teacher": _labels(teacher_BKhw, sizes, check.probabilities),
    }


def _mirrored(images: Sequence[NDArray[np.uint8]], check: TargetCheck) -> dict[Who, list[NDArray[np.int32]]]:
    """Return both models' labels of the mirrored images; empty where stability is not measured."""
    if check.teacher is None:
        return {}
    flipped = [seen_as(image, "mirror") for image in images]
    # Encoded anew: a mirrored embedding is not that of the mirrored image.
    sam = None if check.encoder is None else check.encoder.encode(flipped)
    return {
        "student": _mirrored_labels(check.student, flipped, sam, check.probabilities),
        "teacher": _mirrored_labels(check.teacher, flipped, sam, check.probabilities),
    }


def _mirrored_labels(
    model: "Segmenter", flipped: Sequence[NDArray[np.uint8]], sam: "SamEmbedding | None", kind: Probabilities
) -> list[NDArray[np.int32]]:
    """Return the labels of mirrored images, mirrored back; made as the refined labels' `teacher` maps are."""
    logits = model.logits(flipped, sam if model.needs_embedding else None)
    sizes = [(image.shape[0], image.shape[1]) for image in flipped]
    return [label_HW[:, ::-1] for label_HW in _labels(logits, sizes, kind)]


def _labels(logits_BKhw: "Tensor", sizes: Sequence[tuple[int, int]], kind: Probabilities) -> list[NDArray[np.int32]]:
    from models.stseg.label_map import label_at_size

    scores = logits_BKhw.softmax(dim=1) if kind == "softmax" else logits_BKhw.sigmoid()
    return [label_at_size(one, size) for one, size in zip(scores, sizes, strict=True)]


STAGE: Final = Stage("evaluate-target", tasks, fingerprint, load, work, resources="evaluate")
