"""Images with a teacher's scores, a decoder that answers as a test likes, and their refinement."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from models.refinement.gate import ClassGate, GateConfig
from models.refinement.predict import PromptDecoder
from models.refinement.refine import refine_batch
from models.refinement.settings import AcceptConfig, PromptConfig, RefinementConfig, ResolveConfig
from models.refinement.types import RefinedLabel, RefineInput
from models.sam.decoder import MaskPrompts

Answer = Callable[[Tensor], Tensor]


class FakeDecoder:
    """Answers with the mask prompt, or with what `answer` makes of all of them."""

    image_size = 96

    def __init__(self, answer: Answer = lambda masks: masks, predicted_iou: float = 0.9) -> None:
        self.answer, self.predicted_iou = answer, predicted_iou
        self.calls: list[MaskPrompts] = []

    def decode(self, embedding_BCHW: Tensor, prompts: MaskPrompts, *, multimask: bool = False) -> tuple[Tensor, Tensor]:
        self.calls.append(prompts)
        assert prompts.mask_input_M1hw is not None
        masks = prompts.mask_input_M1hw[:, 0]
        assert masks.shape[1] == 4 * embedding_BCHW.shape[-1]
        return self.answer(masks), torch.full((len(masks),), self.predicted_iou)


def dilate(masks: Tensor) -> Tensor:
    return F.max_pool2d(masks[:, None], 5, stride=1, padding=2)[:, 0]


def nothing(masks: Tensor) -> Tensor:
    return torch.full_like(masks, -5)


def everything(masks: Tensor) -> Tensor:
    return torch.full_like(masks, 5)


def image(
    first: NDArray[np.integer],
    score: float | NDArray[np.floating] = 0.95,
    original_hw: tuple[int, int] = (96, 96),
    valid_hw: tuple[float, float] = (1.0, 1.0),
    second: int = 0,
) -> RefineInput:
    scores = np.broadcast_to(np.asarray(score, dtype=np.float16), first.shape)
    return RefineInput(
        ids=np.stack([first, np.full_like(first, second)]).astype(np.uint16),
        scores=np.stack([scores, np.minimum(scores, np.float16(1) - scores)]),
        embedding=np.zeros((4, 16, 16), dtype=np.float16),
        valid_hw=valid_hw,
        original_hw=original_hw,
    )


def square(class_id: int = 1, background: int = 0, size: int = 48) -> NDArray[np.int64]:
    first = np.full((size, size), background)
    first[12:24, 12:36] = class_id
    return first


def refine_image(
    source: RefineInput,
    decoder: PromptDecoder,
    class_gate: ClassGate,
    config: RefinementConfig,
    *,
    ignore_index: int,
) -> RefinedLabel:
    (refined,) = refine_batch([source], decoder, class_gate, config, ignore_index=ignore_index)
    return refined


def refine(
    source: RefineInput,
    decoder: FakeDecoder | None = None,
    num_classes: int = 3,
    ignore_index: int = 255,
    threshold: float = 0.9,
    **settings: PromptConfig | AcceptConfig | ResolveConfig,
) -> RefinedLabel:
    config = RefinementConfig.model_validate(settings)
    return refine_image(
        source,
        decoder or FakeDecoder(),
        ClassGate(GateConfig(threshold=threshold), num_classes),
        config,
        ignore_index=ignore_index,
    )
