"""Dense CLIP: the pooled head applied cell by cell, guidance of the right grids, words and prompts."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.presets import PRESETS
from models.stseg.clip import DenseClip, build_clip
from models.stseg.templates import prompt_templates
from models.stseg.text import text_embeddings
from models.stseg.tiny_clip import WordTokenizer
from shards.data.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def clip() -> DenseClip:
    """A tiny CLIP with every parameter random."""
    torch.manual_seed(0)
    dense = build_clip(PRESETS["tiny"].clip)
    for parameter in dense.parameters():
        nn.init.normal_(parameter, std=0.2)
    return dense


@torch.no_grad()
def test_dense_features_are_the_head_applied_to_each_cell(clip: DenseClip) -> None:
    image = torch.rand(2, 3, 48, 40)
    visual = clip.clip.visual
    trunk = visual.trunk
    grid = trunk.forward_features((image - clip.mean) / clip.std)
    dense = clip(image).dense_BDHW
    for y in range(grid.shape[2]):
        for x in range(grid.shape[3]):
            cell = trunk.forward_head(grid[:, :, y : y + 1, x : x + 1])
            torch.testing.assert_close(dense[:, :, y, x], visual.head(cell), atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("preset", ["base", "large"])
def test_published_sizes_give_open_clips_own_features_at_768(preset: str) -> None:
    torch.manual_seed(0)
    dense = build_clip(PRESETS[preset].clip)
    for name, parameter in dense.clip.visual.named_parameters():
        if parameter.ndim < 2:  # gains, biases and layer scales, which start at 1, 0 and 1e-6
            nn.init.normal_(parameter, 1.0 if name.endswith("weight") else 0.0, std=0.2)
    visual = dense.clip.visual
    image = torch.rand(1, 3, 768, 768)
    found = dense(image)
    maps = visual.forward_intermediates((image - dense.mean) / dense.std, indices=[0, 1, 2, 3])["image_intermediates"]
    for mine, theirs in zip(found.guidance, maps[:3], strict=True):
        assert torch.equal(mine, theirs)
    for y, x in ((0, 0), (11, 5), (23, 23)):
        cell = visual.head(visual.trunk.forward_head(maps[3][:, :, y : y + 1, x : x + 1]))
        torch.testing.assert_close(found.dense_BDHW[:, :, y, x], cell, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_guidance_grids_halve_from_fine_to_coarse(clip: DenseClip) -> None:
    features = clip(torch.rand(1, 3, 96, 96))
    assert features.dense_BDHW.shape == (1, 128, 12, 12)
    assert [tuple(g.shape[-2:]) for g in features.guidance] == [(48, 48), (24, 24)]
    assert clip.guidance_channels(96) == tuple(g.shape[1] for g in features.guidance)


def test_text_embeddings_are_unit_vectors_per_class_and_template(clip: DenseClip) -> None:
    vocabulary = Vocabulary.from_names(["red ring", "stone", "sand, beach"], templates=prompt_templates("tiny8"))
    text = text_embeddings(clip, vocabulary)
    assert text.shape == (3, 8, 128)
    torch.testing.assert_close(text.norm(dim=-1), torch.ones(3, 8))


@torch.no_grad()
def test_synonyms_are_averaged_as_unit_vectors(clip: DenseClip) -> None:
    vocabulary = Vocabulary.from_names(["sand, water"], templates=("a photo of a {}",))
    both = F.normalize(clip.encode_text(["a photo of a sand", "a photo of a water"]), dim=-1)
    torch.testing.assert_close(text_embeddings(clip, vocabulary)[0, 0], F.normalize(both.mean(0), dim=0))


def test_openai_has_eighty_distinct_templates() -> None:
    templates = prompt_templates("openai80")
    assert len(set(templates)) == 80
    assert all(template.count("{}") == 1 for template in templates)


def test_unknown_words_are_spelled_and_stay_distinct() -> None:
    tokenizer = WordTokenizer()
    tokens = tokenizer(["a zebra", "a horse", "a red ring"])
    assert len({tuple(row.tolist()) for row in tokens}) == 3
    assert "zebra" not in tokenizer.ids
    assert (tokens.max(1).values == tokenizer.end_id).all()


def test_texts_that_are_too_long_still_end() -> None:
    tokenizer = WordTokenizer()
    assert tokenizer("incomprehensibilities of the world")[0].max() == tokenizer.end_id
