import numpy as np
import torch
from refinement_setup import refine_image
from torch import Tensor

from models.refinement.gate import ClassGate, GateConfig
from models.refinement.settings import RefinementConfig, ResolveConfig
from models.refinement.types import label_as_input
from models.sam.decoder import MaskPrompts


class SureDecoder:
    """Gives nothing for every prompt."""

    image_size = 96

    def decode(self, embedding_BCHW: Tensor, prompts: MaskPrompts, *, multimask: bool = False) -> tuple[Tensor, Tensor]:
        count = len(prompts.image_index_M)
        return torch.full((count, 64, 64), -9.0), torch.ones(count)


def refine(label: np.ndarray, classes: int = 300, ignore: int = 65535, **settings: object) -> np.ndarray:
    source = label_as_input(label, np.zeros((4, 16, 16), np.float16), (2 / 3, 1.0), ignore_index=ignore)
    config = RefinementConfig.model_validate({"resolve": ResolveConfig(too_small="teacher"), **settings})
    return refine_image(source, SureDecoder(), ClassGate(GateConfig(), classes), config, ignore_index=ignore).label


def test_label_that_sam_does_not_better_comes_back_to_the_pixel_thin_lines_too() -> None:
    label = np.full((64, 96), 65535)
    label[10:30, 20:50] = 299
    label[40, :] = 7
    label[5, 5] = 0
    assert (refine(label) == label).all()
    ignored = refine(label, resolve=ResolveConfig(fallback="ignore"))
    assert (ignored == 65535).all()


def test_nothing_but_ignored_pixels_gives_nothing() -> None:
    assert (refine(np.full((64, 96), 255), 1, 255) == 255).all()
