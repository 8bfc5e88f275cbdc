"""Text embeddings of a vocabulary: every class name in every template."""

from typing import TYPE_CHECKING, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from models.stseg.clip import DenseClip
from models.stseg.text_tower import encode_tokens
from models.stseg.tiny_clip import CAPTION_TEMPLATES

if TYPE_CHECKING:
    from shards.data.vocabulary import Vocabulary

TEXT_VERSION: Final = 1  # goes up when the same names, templates and weights give other embeddings

# K class, P template, D embedding


def prompt_templates(name: str) -> tuple[str, ...]:
    """Give the prompt templates of that name, each with one `{}` for the class name.

    Raises:
        ValueError: The name is neither "tiny8" nor "openai80".
    """
    if name == "tiny8":
        return CAPTION_TEMPLATES
    if name == "openai80":
        from open_clip import OPENAI_IMAGENET_TEMPLATES

        return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
    raise ValueError(f"unknown templates {name!r}: expected 'tiny8' or 'openai80'")


@torch.inference_mode()
def text_embeddings(clip: DenseClip, vocabulary: "Vocabulary") -> Tensor:
    """Embed each class in each template.

    Returns:
        (K, P, D) float32 of unit length on the model's device. Synonyms of a class are embedded one by one,
        normalised, averaged and normalised again.

    Source: SED's text classifier, whose text tower runs to the end of its context for every prompt.
    """
    prompts = [
        template.format(synonym)
        for entry in vocabulary.classes
        for template in vocabulary.templates
        for synonym in entry.synonyms
    ]
    unit = F.normalize(encode_tokens(clip.clip, clip.tokenizer(prompts)).float(), dim=-1)
    counts = [len(entry.synonyms) for entry in vocabulary.classes for _ in vocabulary.templates]
    means = torch.stack([part.mean(dim=0) for part in torch.split(unit, counts)])
    text_KPD = means.view(len(vocabulary), len(vocabulary.templates), -1)
    return F.normalize(text_KPD, dim=-1)
