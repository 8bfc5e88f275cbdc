"""SAM with ViT-B against segment_anything: the image encoder, and refinement from prompts to masks of the image's size.

The weights are random, gains, biases and relative positions too, so that no part can be left out unseen.
"""

# B image, M prompt, S side of SAM's frame, s side of the low-resolution frame, H W pixels

from functools import partial
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from segment_anything import SamPredictor
from segment_anything.modeling import ImageEncoderViT, Sam
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cases import Case, Pair
from models.presets import SAM_VIT_B
from models.sam.decoder import decode_tokens, embed_prompts
from models.sam.encoder import encode_frames
from models.sam.sam import MaskPrompts, SamMaskDecoder, build_sam, masks_to_original, to_sam_frame

ORIGINAL_HW: Final = (768, 768)
IMAGES: Final = 2
FRAME_B3SS: Final = (1, 3, SAM_VIT_B.image_size, SAM_VIT_B.image_size)

Refined = tuple[NDArray[np.float32], NDArray[np.bool_]]
"""Logits (M, s, s) and masks (M, H, W)."""


def random_sam(depth: int) -> Sam:
    """Give a ViT-B SAM of that many encoder blocks with every weight random."""
    torch.manual_seed(0)
    sam = build_sam(SAM_VIT_B.model_copy(update={"encoder_depth": depth}))
    with torch.no_grad():
        for parameter in sam.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    return sam.requires_grad_(False)


def build_encoder() -> Pair:
    """Encode one frame of 1024 x 1024 pixels in float32."""
    encoder: ImageEncoderViT = random_sam(SAM_VIT_B.encoder_depth).image_encoder
    frame = torch.randn(FRAME_B3SS)
    return Pair(partial(encoder, frame), partial(encode_frames, encoder, frame), flops=encoder_flops())


def build_encoder_bf16() -> Pair:
    """Encode the same frame in bfloat16, against float32."""
    plain, quick = (random_sam(SAM_VIT_B.encoder_depth).image_encoder for _ in range(2))
    frame = torch.randn(FRAME_B3SS)
    fast = partial(encode_frames, quick.bfloat16(), frame.bfloat16())
    return Pair(partial(plain, frame), fast, error=lowest_cosine, flops=encoder_flops())


def lowest_cosine(reference_BCHW: Tensor, fast_BCHW: Tensor) -> float:
    """Give 1 minus the lowest cosine over the grid cells."""
    return 1 - float(F.cosine_similarity(reference_BCHW.double(), fast_BCHW.double(), dim=1).min())


def encoder_flops() -> float:
    """Count what our encoder multiplies for one frame."""
    with torch.device("meta"):
        encoder = build_sam(SAM_VIT_B).image_encoder
        with FlopCounterMode(display=False) as counter:
            encode_frames(encoder, torch.empty(FRAME_B3SS))
    return float(counter.get_total_flops())


def build_refinement(count: int) -> Pair:
    """Refine masks with boxes in two images; the reference takes one prompt after the other."""
    sam, rng = random_sam(depth=1), np.random.default_rng(0)
    side = SAM_VIT_B.image_size // 4
    corner = rng.uniform(0, 400, (count, 2))
    boxes_M4 = np.concatenate([corner, corner + rng.uniform(50, 360, (count, 2))], axis=1)
    masks_M1ss = rng.normal(0, 4, (count, 1, side, side)).astype(np.float32)
    image_index_M = np.arange(count) % IMAGES
    embedding_BCHW = torch.randn(IMAGES, SAM_VIT_B.embedding_dim, side // 4, side // 4)
    prompts = MaskPrompts(
        torch.from_numpy(image_index_M),
        to_sam_frame(boxes_M4, ORIGINAL_HW, SAM_VIT_B.image_size),
        torch.from_numpy(masks_M1ss),
    )
    predictor = SamPredictor(sam)
    predictor.is_image_set = True
    predictor.original_size, predictor.input_size = ORIGINAL_HW, FRAME_B3SS[2:]

    def reference() -> Refined:
        answers = []
        for image, box, mask in zip(image_index_M, boxes_M4, masks_M1ss, strict=True):
            predictor.features = embedding_BCHW[image : image + 1]
            answers.append(predictor.predict(box=box, mask_input=mask, multimask_output=False))
        return np.concatenate([low for _, _, low in answers]), np.concatenate([mask for mask, _, _ in answers])

    return Pair(
        reference,
        partial(refine, SamMaskDecoder(sam), embedding_BCHW, prompts),
        error=largest_logit_difference,
        flops=count * prompt_flops(),
    )


def refine(decoder: SamMaskDecoder, embedding_BCHW: Tensor, prompts: MaskPrompts) -> Refined:
    """Decode all prompts and enlarge the masks one by one."""
    logits_Mss, _ = decoder.decode(embedding_BCHW, prompts)
    masks_MHW = np.empty((len(logits_Mss), *ORIGINAL_HW), dtype=np.bool_)
    for number, logits_1ss in enumerate(torch.split(logits_Mss, 1)):
        masks_MHW[number] = (masks_to_original(logits_1ss, ORIGINAL_HW, decoder.image_size) > 0).numpy()
    return logits_Mss.numpy(), masks_MHW


def largest_logit_difference(reference: Refined, fast: Refined) -> float:
    """Give the largest absolute difference of the logits.

    Raises:
        ValueError: More than one in a million pixels of the masks differs.
    """
    differing = float((reference[1] != fast[1]).mean())
    if differing > 1e-6:
        raise ValueError(f"{differing:.2g} of the masks' pixels differ")
    return float(np.abs(reference[0] - fast[0]).max())


def prompt_flops() -> float:
    """Count what our decoder multiplies for a box with a mask; the enlargement's interpolation is left out."""
    side = SAM_VIT_B.image_size // 4
    with torch.device("meta"):
        sam = build_sam(SAM_VIT_B)
        index = torch.empty(1, dtype=torch.int64)
        prompts = MaskPrompts(index, torch.empty(1, 4), torch.empty(1, 1, side, side))
        position = torch.empty(side // 4, side // 4, SAM_VIT_B.embedding_dim)
        with FlopCounterMode(display=False) as counter:
            sparse, dense = embed_prompts(sam.prompt_encoder, prompts)
            decode_tokens(sam.mask_decoder, dense, position, sparse, slice(0, 1))
    return float(counter.get_total_flops())


CASES: Final = [
    Case("sam_encoder", build_encoder, at_least=1.6, repeats=5, memory=True),
    Case("sam_encoder_bf16", build_encoder_bf16, at_least=2.8, repeats=5),
    Case("sam_refine_k4", partial(build_refinement, 4), at_least=2.0),
    Case("sam_refine_k16", partial(build_refinement, 16), at_least=2.0),
    Case("sam_refine_k64", partial(build_refinement, 64), at_least=2.0, memory=True),
]
