"""The text tower on texts cut at their end and packed: open_clip's own embeddings for a fraction of its tokens."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from open_clip import get_tokenizer
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from torch import Tensor, nn

import models.stseg.text
from models.stseg.clip import DenseClip
from models.stseg.templates import prompt_templates
from models.stseg.text import embedding_dim, encode_tokens, text_embeddings, tower_checksum
from models.stseg.tiny_clip import WordTokenizer, build_tiny_clip
from shards.data.vocabulary import Vocabulary

TEXTS = [
    *("a photo of a cat.", "cat", "", "a bad photo of the computer monitor, large.", "itap of my dining room table."),
    "the " * 90 + "end",
]
NAMES = ("sky", "chest of drawers, bureau", "swivel chair", "crt screen, screen")


def randomised(clip: Any) -> Any:
    """Draw every parameter anew, so that none is at a value that hides it."""
    torch.manual_seed(0)
    for name, parameter in clip.named_parameters():
        is_gain = name.endswith("weight") and parameter.ndim == 1
        nn.init.normal_(parameter, mean=float(is_gain), std=0.2 if parameter.ndim == 1 else 0.1)
    return clip.eval()


def small_clip(**text: Any) -> Any:
    vision = CLIPVisionCfg(layers=1, width=16, head_width=8, patch_size=16, image_size=32)
    return randomised(CLIP(24, vision, CLIPTextCfg(width=32, heads=4, layers=3, **text)))


@pytest.fixture(scope="module")
def clip() -> DenseClip:
    """open_clip's CLIP, small, with its tokenizer and its context of 77 tokens."""
    return DenseClip(small_clip(), get_tokenizer("convnext_base_w_320"))


def tokens_through(clip: Any) -> list[int]:
    """Give a list that each later call of the tower adds its number of tokens to."""
    seen: list[int] = []
    clip.transformer.register_forward_pre_hook(lambda _module, args: seen.append(args[0].shape[0] * args[0].shape[1]))
    return seen


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
def test_embeddings_are_those_of_the_whole_tower(clip: DenseClip, bias: bool) -> None:
    own = clip.clip if not bias else small_clip(proj_bias=True)
    tokens = clip.tokenizer(TEXTS)
    assert tokens.shape == (len(TEXTS), 77)
    assert int((tokens[-1] > 0).sum()) == 77  # cut by the tokenizer, with its end in the last place
    found = encode_tokens(own, tokens)
    assert found.shape == (len(TEXTS), embedding_dim(own))
    torch.testing.assert_close(found, own.encode_text(tokens), atol=1e-5, rtol=0)
    assert float(torch.pdist(found).min()) > 0.01


@torch.no_grad()
def test_tiny_clip_gives_the_same_too() -> None:
    tiny = randomised(build_tiny_clip())
    tokens = WordTokenizer()(["a photo of a red ring", "incomprehensibilities of the world", "stone", ""])
    torch.testing.assert_close(encode_tokens(tiny, tokens), tiny.encode_text(tokens), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("at_once", [1, 7, 20, 100])
def test_neither_company_nor_order_changes_a_text(
    clip: DenseClip, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"a photo of a {word}" for word in ("cat", "cat.", "cat food", "dog", "cat")] + ["a photo", *TEXTS]
    wanted = clip.clip.encode_text(clip.tokenizer(texts))
    monkeypatch.setattr(models.stseg.text, "_TOKENS_AT_ONCE", at_once)
    for order in (slice(None), slice(None, None, -1)):
        found = encode_tokens(clip.clip, clip.tokenizer(texts[order]))
        torch.testing.assert_close(found, wanted.flip(0) if order.step else wanted, atol=1e-5, rtol=0)


def test_no_texts_give_no_embeddings(clip: DenseClip) -> None:
    assert encode_tokens(clip.clip, torch.zeros(0, 77, dtype=torch.long)).shape == (0, 24)


@pytest.mark.parametrize("settings", [{"no_causal_mask": True}, {"pool_type": "last"}])
def test_tower_that_cannot_be_cut_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="cannot be cut"):
        encode_tokens(small_clip(**settings), torch.ones(1, 77, dtype=torch.long))


def test_a_twelfth_of_the_tokens_is_computed() -> None:
    own = DenseClip(small_clip(), get_tokenizer("convnext_base_w_320"))
    seen = tokens_through(own.clip)
    vocabulary = Vocabulary.from_names(NAMES, templates=prompt_templates("openai80"))
    text_embeddings(own, vocabulary)
    prompts = 80 * sum(len(entry.synonyms) for entry in vocabulary.classes)
    assert 12 * sum(seen) < 77 * prompts


def test_each_beginning_is_computed_once() -> None:
    own = DenseClip(small_clip(), get_tokenizer("convnext_base_w_320"))
    seen = tokens_through(own.clip)
    vocabulary = Vocabulary.from_names(["bag", "bag, hand bag"], templates=("a {}.", "the {}.", "a {} of mine"))
    text_KPD = text_embeddings(own, vocabulary)
    prompts = [template.format(word) for template in vocabulary.templates for word in ("bag", "hand bag")]
    ids = [[token for token in row if token] for row in own.tokenizer(prompts).tolist()]
    assert sum(seen) == len({tuple(row[: place + 1]) for row in ids for place in range(len(row))})
    assert (text_KPD[0] != text_KPD[1]).any()


@torch.no_grad()
def test_classes_are_embedded_as_sed_does(clip: DenseClip) -> None:
    vocabulary = Vocabulary.from_names(NAMES, templates=prompt_templates("openai80")[:12])
    for entry, found_PD in zip(vocabulary.classes, text_embeddings(clip, vocabulary), strict=True):
        prompts = [template.format(word) for template in vocabulary.templates for word in entry.synonyms]
        unit = F.normalize(clip.clip.encode_text(clip.tokenizer(prompts)), dim=-1)
        wanted: Tensor = F.normalize(unit.reshape(12, len(entry.synonyms), -1).mean(dim=1), dim=-1)
        torch.testing.assert_close(found_PD, wanted, atol=1e-5, rtol=0)


def test_checksum_follows_the_text_tower_alone() -> None:
    own = small_clip()
    before = tower_checksum(own)
    with torch.no_grad():
        own.visual.proj += 1
        own.logit_scale += 1
    assert tower_checksum(own) == before == tower_checksum(small_clip())
    for name in ("token_embedding.weight", "ln_final.bias", "text_projection", "transformer.resblocks.2.mlp.c_fc.bias"):
        changed = small_clip()
        with torch.no_grad():
            changed.get_parameter(name).flatten()[0] += 1
        assert tower_checksum(changed) != before, name
