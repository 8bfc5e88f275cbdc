"""The refine stage and its store."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from shard_setup import (
    SIZES_HW,
    VOCABULARY,
    FakeDecoder,
    FakeEncoder,
    embed_task,
    refine_settings,
    refined_shard,
    run_embed,
    run_refine,
)
from torch import Tensor

from jobs.artifacts.labels import read_refined, read_refined_map
from jobs.commit import why_stale
from models.refinement.gate import GateConfig
from models.refinement.settings import PromptConfig, RefinementConfig
from models.sam.decoder import MaskPrompts
from models.sam.sam import SamEmbedding
from shards.files.atomic import sha256_tree
from shards.formats.records import read_record


def test_labels_have_the_images_sizes_and_the_teachers_classes(tmp_path: Path) -> None:
    task, _ = refined_shard(tmp_path)
    store = read_refined(task.output)
    assert store.keys == tuple(sorted(SIZES_HW))
    for row, key in enumerate(store.keys):
        height, width = SIZES_HW[key]
        for name in ("label", "teacher", "gated", "weight"):
            assert store.maps[name][row].shape == (height, width)
        assert (store.maps["teacher"][row][:, : width // 2 - 1] == 0).all()
        assert (store.maps["teacher"][row][:, width // 2 + 1 :] == 1).all()
        assert {fact["class_id"] for fact in store.masks[row]} <= {0, 1}
    assert store.exif[store.keys.index("turned")] == 6
    assert why_stale(task) is None


def test_weight_is_zero_exactly_where_the_label_is_ignored(tmp_path: Path) -> None:
    store = read_refined(refined_shard(tmp_path)[0].output)
    for label, weight in zip(store.maps["label"], store.maps["weight"], strict=True):
        assert np.array_equal(weight == 0, label == VOCABULARY.ignore_index)


def test_one_map_of_one_image_can_be_read_alone(tmp_path: Path) -> None:
    task, _ = refined_shard(tmp_path)
    store = read_refined(task.output)
    assert np.array_equal(read_refined_map(task.output, "label", "b"), store.maps["label"][1])
    with pytest.raises(KeyError, match="no image"):
        read_refined_map(task.output, "label", "z")


def test_record_counts_pixels_masks_and_classes(tmp_path: Path) -> None:
    task, _ = refined_shard(tmp_path)
    store, stats = read_refined(task.output), read_record(task.record).stats
    labels = np.concatenate([label.ravel() for label in store.maps["label"]])
    assert stats["pixels"] == labels.size
    assert stats["pixels_covered"] == (labels != VOCABULARY.ignore_index).sum()
    assert stats["coverage"] == pytest.approx(100 * stats["pixels_covered"] / stats["pixels"])
    facts = [fact for masks in store.masks for fact in masks]
    assert facts
    assert stats["masks_accepted"] == sum(fact["accepted"] for fact in facts)
    assert sum(n for k, n in stats.items() if k.startswith("masks_")) == len(facts)
    assert stats["classes_accepted"] == 8
    assert stats["class_0_pixels"] + stats["class_1_pixels"] == stats["pixels_covered"]


def test_shard_in_which_nothing_passes_the_gate_is_recorded_as_uncovered(tmp_path: Path) -> None:
    task, _ = refined_shard(tmp_path, logit=1.0)
    record = read_record(task.record)
    assert record.count == record.stats["samples_uncovered"] == 4
    assert record.stats["coverage"] == record.stats["masks_accepted"] == 0
    assert record.stats["classes_dropped_low_confidence"] == 8
    assert (read_refined(task.output).maps["label"][0] == VOCABULARY.ignore_index).all()


def test_other_threshold_needs_no_new_teacher(tmp_path: Path) -> None:
    task, _ = refined_shard(tmp_path, logit=1.0)
    record = run_refine(task, settings=refine_settings(threshold=0.1))
    assert record.stats["coverage"] > 50


def test_same_inputs_give_the_same_bytes_whatever_the_batch(tmp_path: Path) -> None:
    task, _ = refined_shard(tmp_path)
    first = sha256_tree(task.output)
    settings = refine_settings().model_copy(update={"batch_size": 1, "refinement": RefinementConfig()})
    run_refine(task, settings=settings)
    assert sha256_tree(task.output) == first


class SevenEncoder(FakeEncoder):
    """Finds 7 everywhere."""

    def encode(self, images: Sequence[NDArray[np.uint8]]) -> SamEmbedding:
        found = super().encode(images)
        return replace(found, embedding_BCHW=torch.full_like(found.embedding_BCHW, 7))


class SeeingDecoder(FakeDecoder):
    """Keeps the embeddings that it was asked about."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def decode(self, embedding_BCHW: Tensor, prompts: MaskPrompts, *, multimask: bool = False) -> tuple[Tensor, Tensor]:
        self.seen.append(embedding_BCHW)
        return super().decode(embedding_BCHW, prompts, multimask=multimask)


def test_sam_sees_the_stored_embeddings_of_the_mirror_images_only_if_the_setting_says_so(tmp_path: Path) -> None:
    task, source = refined_shard(tmp_path)
    other = embed_task(tmp_path / "mirror", source)
    run_embed(other, source, SevenEncoder())
    mirrored = task.model_copy(update={"inputs": {**task.inputs, "mirror": other.output}})
    for mirror, rounds in ((False, 1), (True, 2)):
        decoder = SeeingDecoder()
        refinement = RefinementConfig(prompts=PromptConfig(mirror=mirror))
        settings = refine_settings().model_copy(update={"batch_size": 4, "refinement": refinement})
        run_refine(mirrored, decoder, settings)
        assert len(decoder.seen) == rounds
        assert [bool((one == 7).all()) for one in decoder.seen] == [False, True][:rounds]


def test_masks_that_do_not_pass_on_their_own_are_counted_under_their_reason(tmp_path: Path) -> None:
    task, _ = refined_shard(tmp_path, logit=1.0)
    settings = refine_settings().model_copy(update={"gate": GateConfig(decision="mask")})
    stats = run_refine(task, settings=settings).stats
    assert stats["masks_dropped_low_confidence"] == stats["classes_dropped_low_confidence"] == 8
    assert stats["coverage"] == 0
