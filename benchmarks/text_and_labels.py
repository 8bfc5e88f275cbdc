"""Text embeddings against open_clip's whole tower, label maps against resizing every class and taking the highest."""

# K class, P template, D embedding, h w score grid

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.cases import Case, Pair
from models.stseg.clip import DenseClip
from models.stseg.label_map import label_at_size
from models.stseg.templates import prompt_templates
from models.stseg.text import text_embeddings
from shards.data.vocabulary import Vocabulary

ARCHITECTURE: Final = "convnext_base_w_320"
NAMES: Final = ("sky", "chest of drawers, bureau", "swivel chair", "door frame", "person")
EVERY_NTH_TEMPLATE: Final = 8
CLASSES: Final = 150
GRID: Final = 192
PIXELS: Final = 768


def text_tower() -> DenseClip:
    """Give the base size's text tower with every parameter random, beside an image tower that is next to nothing."""
    import open_clip
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    config = open_clip.get_model_config(ARCHITECTURE)
    vision = CLIPVisionCfg(layers=1, width=16, head_width=8, patch_size=16, image_size=32)
    torch.manual_seed(0)
    clip: Any = CLIP(config["embed_dim"], vision, CLIPTextCfg(**config["text_cfg"]))
    for name, parameter in clip.named_parameters():
        is_gain = parameter.ndim == 1 and name.endswith("weight")
        nn.init.normal_(parameter, mean=float(is_gain), std=0.03 if parameter.ndim > 1 else 0.1)
    return DenseClip(clip.eval(), open_clip.get_tokenizer(ARCHITECTURE))


@torch.inference_mode()
def whole_tower_embeddings(clip: DenseClip, vocabulary: Vocabulary) -> Tensor:
    """Embed class by class with open_clip's own `encode_text`, which computes all 77 tokens; SED's way."""
    rows = []
    for entry in vocabulary.classes:
        prompts = [template.format(word) for template in vocabulary.templates for word in entry.synonyms]
        unit = F.normalize(clip.encode_text(prompts), dim=-1)
        rows.append(unit.view(len(vocabulary.templates), len(entry.synonyms), -1).mean(dim=1))
    return F.normalize(torch.stack(rows), dim=-1)


def text_pair() -> Pair:
    """Embed five classes, one of two synonyms, in ten of the eighty templates: 60 prompts of nine tokens on average.

    The floor leaves out attention, which the counter does not know on the CPU, some hundredths of the whole.
    """
    clip = text_tower()
    vocabulary = Vocabulary.from_names(NAMES, templates=prompt_templates("openai80")[::EVERY_NTH_TEMPLATE])

    def fast() -> Tensor:
        return text_embeddings(clip, vocabulary)

    return Pair(lambda: whole_tower_embeddings(clip, vocabulary), fast, flops=_flops(fast))


def noise() -> Tensor:
    """Give scores in which every class is the highest somewhere, so that none can be passed over: the worst case."""
    return torch.randn(CLASSES, GRID, GRID, generator=torch.Generator().manual_seed(0))


def twelve_classes() -> Tensor:
    """Give scores in which twelve classes share the image, smoothly, and the others are low: an image as they are."""
    generator = torch.Generator().manual_seed(0)
    scores_Khw = 0.5 * torch.randn(CLASSES, GRID, GRID, generator=generator) - 4
    places = 4 * torch.randn(1, 12, 12, 12, generator=generator) + 2
    scores_Khw[::13] += F.interpolate(places, (GRID, GRID), mode="bicubic")[0]
    return scores_Khw


def labels_pair(scores: Callable[[], Tensor]) -> Pair:
    """Label a 768 x 768 image from a 192 x 192 grid of 150 classes, of sigmoid scores as SED does."""
    scores_Khw = scores()

    def plainly() -> NDArray[np.int64]:
        scores_KHW = F.interpolate(scores_Khw[None].sigmoid(), (PIXELS, PIXELS), mode="bilinear", align_corners=False)
        label: NDArray[np.int64] = scores_KHW[0].argmax(dim=0).numpy()
        return label

    return Pair(
        plainly,
        lambda: label_at_size(scores_Khw, (PIXELS, PIXELS), sigmoid=True),
        error=lambda first, second: float((first != second).mean()),
    )


def _flops(side: Callable[[], Any]) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        side()
    return float(counter.get_total_flops())


CASES: Final = [
    Case("text", text_pair, at_least=6.0, repeats=3),
    Case("labels", lambda: labels_pair(noise), at_least=2.2, memory=True),
    Case("labels_12_classes", lambda: labels_pair(twelve_classes), at_least=2.2, memory=True),
]
