"""A student on unlabelled images: against its teacher, its lessons, SAM and its own view of the mirrored image."""

# K class, H W image

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from jobs.artifacts.embeddings import EmbeddingStore
from jobs.artifacts.labels import LABEL_MAPS, read_refined
from jobs.inference.loaded_images import LoadedImage, in_batches, load_images
from jobs.inference.model import ModelConfig, load_sam_decoder, load_sam_encoder, text_cache_folder
from jobs.quality.target_findings import Findings, Views, Who
from jobs.stage import EmptyShard, ShardTask, finish, prepare
from jobs.stages.class_gate import load_gate
from jobs.stages.embed import ImageEncoder
from jobs.stages.refine import RefineConfig, refine_fingerprint
from jobs.stages.teacher import Probabilities, TeacherConfig, teacher_fingerprint, top_scores
from models.refinement.gate import ClassGate
from models.refinement.predict import PromptDecoder
from models.refinement.refine import refine_batch
from models.refinement.types import RefineInput
from models.stseg.label_map import label_at_size
from shards.data.sources import Source, open_source
from shards.data.vocabulary import IGNORE_16_BIT, Vocabulary
from shards.files.atomic import write_bytes_atomic
from shards.formats.records import Drop, Json, Record

if TYPE_CHECKING:
    from jobs.inference.segmenter import Segmenter
    from models.sam.sam import SamEmbedding


class TargetCheckConfig(BaseModel):
    """Settings of the look at a student on the target.

    Attributes:
        student: How the student predicts: as it would as the next teacher.
        teacher: The model that taught it.
        refine: How its labels would be refined.
        stability: Whether `stability` is measured; it encodes each image mirrored, by far the dearest part.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    student: TeacherConfig
    teacher: ModelConfig
    refine: RefineConfig
    stability: bool = True


@dataclass(frozen=True)
class CheckModels:
    """The loaded networks, or a test's fakes.

    Attributes:
        student: The model in question.
        teacher: The one that taught it; None where stability is not measured.
        decoder: SAM's mask decoder.
        encoder: SAM's image encoder, for mirrored images; None where there are none or no model wants embeddings.
    """

    student: "Segmenter"
    teacher: "Segmenter | None"
    decoder: PromptDecoder
    encoder: ImageEncoder | None


def target_check_fingerprint(config: TargetCheckConfig, vocabulary: Vocabulary) -> dict[str, Json]:
    """What changes the result, except both heads' weights, which are inputs ("weights", "teacher")."""
    return {
        "student": teacher_fingerprint(config.student, vocabulary),
        "refine": refine_fingerprint(config.refine, vocabulary),
        "stability": config.stability,
    }


def check_target(
    task: ShardTask, models: CheckModels, source: Source, vocabulary: Vocabulary, config: TargetCheckConfig
) -> Record:
    """Look at a student on the task's samples and write what was found as JSON.

    - `proxies`, each for `student` and `teacher`, in per cent, None where there is nothing to compare: `agreement`, the
      mean IoU with the refined labels of this round, over the classes in them and the pixels that they cover;
      `sam_agreement`, the mean IoU of the components that pass the gate with SAM's masks of them; `stability`, the
      mean IoU with the same model's label of the mirrored image, mirrored back.
    - `changes`: pixels by label before and after, as [before, after, pixels], from the teacher's labels to the
      student's, from the teacher's to the refined ones, and from the refined ones of the round before to this one's
      (None in the first).
    - `waterfall`: see `jobs.quality.waterfall`; None without labels.

    Args:
        task: Samples; for shard N "embedding/N", "refine/N" and, if there is an earlier round, "before/N".
        models: The networks.
        source: Images, and labels where there are some; these are measured with and nothing else.
        vocabulary: The classes.
        config: Settings.

    Raises:
        EmptyShard: Not one of the samples can be read.
    """
    started = time.monotonic()
    prepare(task)
    drops: list[Drop] = []
    found = Findings(vocabulary)
    gate = load_gate(config.refine.gate, vocabulary, task.inputs.get("thresholds"))
    refs = {ref.key: ref for ref in task.samples}
    for shard in sorted(role.partition("/")[2] for role in task.inputs if role.startswith("refine/")):
        store = read_refined(task.inputs[f"refine/{shard}"], LABEL_MAPS, refs)
        before = task.inputs.get(f"before/{shard}")
        earlier = None if before is None else read_refined(before, ("label",), refs)
        embeddings = EmbeddingStore.open(task.inputs[f"embedding/{shard}"])
        images = load_images([refs[key] for key in store.keys], source, drops)
        for batch in in_batches(images, config.student.batch_size):
            looked = _views(batch, models, embeddings, config, gate)
            for loaded, views in zip(batch, looked, strict=True):
                found.add(loaded.ref.key, views, (store, earlier), source.read_label(loaded.ref))
    if not found.images:
        raise EmptyShard(f"none of the {len(refs)} sampled target images can be read; raise evaluate.target_images")
    text = json.dumps(found.result(), indent=1, ensure_ascii=False) + "\n"
    write_bytes_atomic(task.output, text.encode())
    return finish(task, count=found.images, stats={}, drops=drops, seconds=time.monotonic() - started)


def _views(
    batch: Sequence[LoadedImage],
    models: CheckModels,
    embeddings: EmbeddingStore,
    config: TargetCheckConfig,
    gate: ClassGate,
) -> Iterator[Views]:
    images = [loaded.image for loaded in batch]
    keys = [loaded.ref.key for loaded in batch]
    sam = embeddings.batch(keys) if models.student.needs_embedding else None
    ids, scores, _ = top_scores(models.student.logits(images, sam), config.student.top_k, config.student.probabilities)
    inputs = [
        RefineInput(
            ids=ids[index],
            scores=scores[index],
            embedding=embeddings.embedding(row),
            valid_hw=embeddings.valid_hw(row),
            original_hw=embeddings.sizes_hw[row],
        )
        for index, row in enumerate(embeddings.rows[key] for key in keys)
    ]
    # Only its masks and the student's own labels are looked at, so that any id outside the classes serves to ignore.
    refined = refine_batch(inputs, models.decoder, gate, config.refine.refinement, ignore_index=IGNORE_16_BIT)
    mirrored = _mirrored(images, models, config.student.probabilities)
    for index, one in enumerate(refined):
        yield Views(one, {who: labels[index] for who, labels in mirrored.items()})


def _mirrored(
    images: Sequence[NDArray[np.uint8]], models: CheckModels, kind: Probabilities
) -> dict[Who, list[NDArray[np.int32]]]:
    """Give both models' labels of the mirrored images; none where stability is not measured."""
    if models.teacher is None:
        return {}
    flipped = [np.ascontiguousarray(image[:, ::-1]) for image in images]
    sam = None if models.encoder is None else models.encoder.encode(flipped)
    return {
        "student": _mirrored_labels(models.student, flipped, sam, kind),
        "teacher": _mirrored_labels(models.teacher, flipped, sam, kind),
    }


def _mirrored_labels(
    model: "Segmenter", flipped: Sequence[NDArray[np.uint8]], sam: "SamEmbedding | None", kind: Probabilities
) -> list[NDArray[np.int32]]:
    """Give the labels of mirrored images, mirrored back; made as the refined labels' `teacher` maps are."""
    logits = model.logits(flipped, sam if model.needs_embedding else None)
    scores = logits.softmax(dim=1) if kind == "softmax" else logits.sigmoid()
    sizes = [(image.shape[0], image.shape[1]) for image in flipped]
    return [label_at_size(one, size)[:, ::-1] for one, size in zip(scores, sizes, strict=True)]


class TargetCheckWorker:
    """Loads both models and SAM once and looks at the student."""

    def __init__(self, config: TargetCheckConfig) -> None:
        from jobs.inference.segmenter import StsegSegmenter, worker_device

        self._config = config
        self._vocabulary = Vocabulary.load(config.student.vocabulary)
        self._source = open_source(config.student.source, self._vocabulary)
        cache, device = text_cache_folder(config.student.vocabulary), worker_device()
        student = StsegSegmenter(config.student.model, self._vocabulary, text_cache=cache)
        teacher = encoder = None
        if config.stability:
            teacher = StsegSegmenter(config.teacher, self._vocabulary, text_cache=cache)
            encoder = load_sam_encoder(config.teacher).to(device) if student.needs_embedding else None
        self._models = CheckModels(student, teacher, load_sam_decoder(config.teacher).to(device), encoder)

    def run(self, task: ShardTask) -> Record:
        """Look at the student on the task's samples."""
        return check_target(task, self._models, self._source, self._vocabulary, self._config)
