"""Presence: what names explain of images, what is struck, and where it goes."""

import numpy as np
import pytest
import torch

from benchmarks.absent_names import ABSENT_NAMES
from models.presets import PRESETS
from models.stseg.clip import build_clip, load_clip
from models.stseg.presence import (
    IMAGE_WEIGHT,
    explained_shares,
    image_shares,
    name_logits,
    name_similarities,
    own_evidence,
    refused_cells,
    struck_classes,
    without_struck,
)
from models.stseg.templates import prompt_templates
from models.stseg.text import text_embeddings
from shards.data.vocabulary import Vocabulary
from shards.scenes.scenes import SCENE_CLASSES, SEEN, render_scene


def test_names_explain_the_share_of_cells_that_they_fit_best() -> None:
    logits = torch.tensor([[9.0, 0, 0]] * 30 + [[0, 9.0, 0]] * 10)
    shares = explained_shares(logits)
    assert shares.tolist() == pytest.approx([0.75, 0.25, 0.0], abs=2e-3)
    assert float(shares.sum()) == pytest.approx(1)


def test_a_name_that_fits_no_cell_better_than_another_ends_without_a_share() -> None:
    brick, red_brick, sky = 6.0, 5.5, 0.0
    logits = torch.tensor([[brick, red_brick, sky]] * 50 + [[0.0, 0.0, 6.0]] * 50)
    shares = explained_shares(logits)
    assert shares[1] < 1e-6
    assert shares[0] > 0.45 and shares[2] > 0.45


def test_one_cell_and_one_name_are_enough() -> None:
    assert explained_shares(torch.zeros(1, 1)).tolist() == [1.0]
    assert explained_shares(torch.tensor([[-1e4, 1e4]])).tolist() == pytest.approx([0, 1])


def test_the_logits_are_the_scaled_cosines_and_those_of_the_images() -> None:
    found = name_logits(torch.tensor([[0.1, 0.2]]), torch.tensor([0.4, 0.0]), 10.0)
    assert found.tolist() == [pytest.approx([1 + 10 * IMAGE_WEIGHT * 0.4, 2.0])]


def test_the_shares_of_an_image_follow_its_cells_and_the_shares_over_all_images() -> None:
    logits = torch.zeros(2, 2, 1, 2)
    logits[0, 0] = 20  # all of the first image is class 0; the second says nothing
    shares = image_shares(logits, torch.tensor([0.2, 0.8], dtype=torch.float64))
    assert shares[0].tolist() == pytest.approx([1, 0], abs=1e-6)
    assert shares[1].tolist() == pytest.approx([0.2, 0.8], abs=1e-6)
    assert image_shares(logits, torch.tensor([0.0, 1.0]))[0, 0] < 1e-6  # a name without a share explains nothing


def test_a_models_own_evidence_is_its_mean_weighted_by_itself() -> None:
    scores = torch.tensor([[[[0.9, 0.1]], [[0.0, 0.0]]]])
    assert own_evidence(scores).tolist() == [pytest.approx([0.82, 0.0])]


def test_what_has_too_little_evidence_is_struck_but_never_everything() -> None:
    evidence = torch.tensor([[0.5, 0.001, 0.003], [0.0, 0.001, 0.0]])
    assert struck_classes(evidence, 0.003).tolist() == [[False, True, False], [True, False, True]]


def test_struck_classes_get_no_probability_and_their_cells_go_to_the_best_class_left() -> None:
    logits = torch.tensor([[[[5.0, 1.0]], [[4.0, 0.0]], [[0.0, 3.0]]]])
    struck = torch.tensor([[True, False, False]])
    left = without_struck(logits, struck).softmax(dim=1)
    assert (left[:, 0] == 0).all()
    assert left.argmax(dim=1).tolist() == [[[1, 2]]]
    assert refused_cells(logits, struck).tolist() == [[1, 0, 0]]
    assert refused_cells(logits, ~struck).tolist() == [[0, 0, 1]]


@torch.no_grad()
def test_similarities_are_cosines_of_cells_and_of_clips_own_image_embedding() -> None:
    torch.manual_seed(0)
    clip = build_clip(PRESETS["tiny"].clip)
    image, text = torch.rand(2, 3, 96, 96), torch.randn(3, 8, clip.embedding_dim)
    cells, whole = name_similarities(clip, image, text)
    assert cells.shape[:2] == whole.shape == (2, 3)
    own = clip.clip.encode_image((image - clip.mean) / clip.std)
    mean = text.mean(dim=1)
    torch.testing.assert_close(whole, torch.cosine_similarity(own[:, None], mean[None], dim=-1))
    dense = clip(image).dense_BDHW
    torch.testing.assert_close(cells[0, 1, 3, 4], torch.cosine_similarity(dense[0, :, 3, 4], mean[1], dim=0))


@pytest.mark.slow
def test_the_shipped_clip_finds_the_classes_of_scenes_and_none_of_the_absent_names() -> None:
    vocabulary = Vocabulary.from_names([*SCENE_CLASSES, *ABSENT_NAMES], SEEN, prompt_templates("tiny8"))
    clip = load_clip(PRESETS["tiny"].clip)
    text = text_embeddings(clip, vocabulary)
    scenes = [render_scene("validation", 0, index) for index in range(100)]
    images = torch.stack([torch.from_numpy(scene.image.copy()).permute(2, 0, 1).float() / 255 for scene in scenes])
    found = [name_similarities(clip, images[start : start + 20], text) for start in range(0, 100, 20)]
    cells, whole = (torch.cat(part) for part in zip(*found, strict=True))
    logits = name_logits(cells.movedim(1, -1), whole.mean(dim=0), float(clip.clip.logit_scale.detach().exp()))
    shares = explained_shares(logits.flatten(0, 2))
    assert shares[len(SCENE_CLASSES) :].max() < 1e-6 < 1e-3 < shares[: len(SCENE_CLASSES)].min()
    struck = struck_classes(image_shares(logits.movedim(-1, 1), shares), 0.003)
    assert struck[:, len(SCENE_CLASSES) :].all()
    true = torch.zeros(struck.shape, dtype=torch.bool)
    for row, scene in zip(true, scenes, strict=True):
        row[np.unique(scene.label).tolist()] = True
    assert (struck & true).sum() < 0.02 * true.sum()
