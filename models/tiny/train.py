"""`python -m models.tiny.train clip|sam`: train one of the shipped models anew, in place."""

# M prompt, S side of SAM's square frame, s side of its low-resolution mask frame

import argparse
import logging
from pathlib import Path
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from segment_anything.modeling import Sam
from torch import Tensor

from models.sam.sam import MaskPrompts, SamEncoder, SamMaskDecoder, masks_to_original
from models.tiny.clip_training import ClipTrainingConfig, train_tiny_clip
from models.tiny.sam_data import EVALUATION_RECIPE, draw_outlines
from models.tiny.sam_training import SamTrainingConfig, make_prompts, mask_iou, train_tiny_sam
from models.weights.files import WEIGHTS_FOLDER, write_weights
from shards.scenes.scenes import RECIPES

log = logging.getLogger(__name__)
PROMPT_KINDS: Final = {"mask": "m", "box": "b", "mask+box": "mb", "mask+box+point": "mbp", "point": "p"}


def evaluate_tiny_sam(sam: Sam, seed: int, scenes: int) -> dict[str, float]:
    """Measure the mean IoU with the true outlines of every part of held-out scenes of the target domain.

    Args:
        sam: A SAM of the size of the scenes, with its decoder.
        seed: Which held-out stream of scenes and prompts; training never draws from it.
        scenes: How many, at least 1.

    Returns:
        `coarse`: mean IoU of the mask prompts themselves; `mask`, `box`, `mask+box`, `mask+box+point`, `point`: mean
        IoU of SAM's single answer to each kind of prompt; `share_better`: share of mask+box answers that are better
        than their coarse mask; `quality_error`: mean absolute error of the predicted IoU of mask+box;
        `quality_correlation`: its correlation with the true IoU.

    Raises:
        ValueError: No scene is requested.
    """
    if scenes < 1:
        raise ValueError(f"scenes is {scenes}; expected at least 1")
    # 83 is this stream; training draws from 81 and 82.
    outlines = draw_outlines([seed, 83], scenes, RECIPES["target"])
    draw = torch.Generator().manual_seed(seed)
    embedding = SamEncoder(sam).encode(list(outlines.image)).embedding_BCHW
    decoder = SamMaskDecoder(sam)
    pairs = [(i, p) for i, parts in enumerate(outlines.parts) for p in np.unique(parts[parts > 0])]
    index = torch.tensor([i for i, _ in pairs])
    true = torch.stack([torch.from_numpy(outlines.parts[i] == p) for i, p in pairs])
    facts: dict[str, float] = {}
    for name, kind in PROMPT_KINDS.items():
        prompts = make_prompts(true.float(), kind, decoder.low_res_size, EVALUATION_RECIPE, draw, jitter=False)
        labels = None if prompts.points is None else torch.ones(prompts.points.shape[:2])
        batch = MaskPrompts(index, prompts.boxes, prompts.mask, prompts.points, labels)
        logits, quality = decoder.decode(embedding, batch, chunk=16)
        iou = mask_iou(masks_to_original(logits, (true.shape[1], true.shape[2]), decoder.image_size) > 0, true)
        facts[name] = float(iou.mean())
        if kind == "mb" and prompts.mask is not None:
            facts |= _against_coarse(prompts.mask, true, iou, quality)
    return facts


def _against_coarse(mask_M1ss: Tensor, true_MSS: Tensor, iou_M: Tensor, quality_M: Tensor) -> dict[str, float]:
    """Compare predictions with the mask prompts they came from, and the predicted IoU with the true one."""
    size_hw = (true_MSS.shape[1], true_MSS.shape[2])
    coarse = F.interpolate(mask_M1ss, size_hw, mode="bilinear", align_corners=False)[:, 0] > 0
    before = mask_iou(coarse, true_MSS)
    return {
        "coarse": float(before.mean()),
        "share_better": float((iou_M > before).float().mean()),
        "quality_error": float((quality_M - iou_M).abs().mean()),
        "quality_correlation": float(torch.corrcoef(torch.stack([quality_M, iou_M]))[0, 1]),
    }


def main() -> None:
    """Train the model that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=("clip", "sam"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--first-cycle", type=int, default=0, help="of CLIP's: continue from the weights in --out")
    parser.add_argument("--out", type=Path, default=WEIGHTS_FOLDER)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    if options.model == "clip":
        start = options.out / "clip_tiny.safetensors" if options.first_cycle else None
        config = ClipTrainingConfig(seed=options.seed)
        state = train_tiny_clip(config, first_cycle=options.first_cycle, start=start).clip.state_dict()
    else:
        sam = train_tiny_sam(SamTrainingConfig(seed=options.seed))
        log.info("held-out scenes: %s", evaluate_tiny_sam(sam, options.seed, scenes=40))
        state = sam.state_dict()
    write_weights(state, options.out / f"{options.model}_tiny.safetensors", half=True)


if __name__ == "__main__":
    main()
