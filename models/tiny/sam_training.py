"""Training of the shipped tiny SAM: class-agnostic, on generated scenes; it sees outlines, never names."""

# B image, M prompt, S side of SAM's square frame, t mask token

import logging
import time
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from segment_anything.modeling import Sam
from torch import Generator, Tensor, nn

from models.presets import SAM_TINY
from models.sam import PIXEL_MEAN, PIXEL_STD, build_sam
from models.sam_decoder import decode_tokens
from models.sam_frame import sam_input
from models.tiny.sam_prompts import (
    CoarseMaskRecipe,
    boxes_around,
    coarse_masks,
    jitter_boxes,
    points_inside,
)
from shards.scenes import SceneRecipe, compose_scene

log = logging.getLogger(__name__)
SCENES: Final = SceneRecipe(domain=(0.0, 1.0), blobs=2)
SMALLEST_PART: Final = 24
KINDS: Final = ("m", "b", "p", "mb", "bp", "mbp", "mp")
KIND_SHARES: Final = (0.15, 0.1, 0.1, 0.35, 0.05, 0.15, 0.1)


@dataclass(frozen=True)
class SamTrainingConfig:
    """How the tiny SAM is trained.

    Attributes:
        prompts: Prompts per image, a multiple of 2: each half of a batch's prompts is of one kind.
        crop_share: Share of pictures cut short on one side and padded, as pictures that are not square are.
    """

    seed: int = 0
    scenes: int = 6000
    steps: int = 3800
    batch: int = 6
    prompts: int = 4
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    crop_share: float = 0.15


@dataclass(frozen=True)
class Outlines:
    """Pictures and their parts.

    Attributes:
        image: (n, S, S, 3) uint8.
        parts: (n, S, S) uint8, 0 or the number of an 8-connected piece of a segment of at least 24 pixels.
    """

    image: NDArray[np.uint8]
    parts: NDArray[np.uint8]


def draw_outlines(seed: list[int], count: int, recipe: SceneRecipe = SCENES) -> Outlines:
    """Generate scenes; the same seed gives the same scenes."""
    rng = np.random.default_rng(seed)
    image = np.empty((count, recipe.size, recipe.size, 3), np.uint8)
    parts = np.zeros((count, recipe.size, recipe.size), np.uint8)
    for i in range(count):
        scene = compose_scene(rng, recipe)
        image[i] = scene.image
        number = 0
        for segment in range(int(scene.segments.max()) + 1):
            pieces, found = ndimage.label(scene.segments == segment, structure=np.ones((3, 3)))
            sizes = np.bincount(pieces.ravel(), minlength=found + 1)
            for piece in 1 + np.flatnonzero(sizes[1:] >= SMALLEST_PART):
                number += 1
                parts[i][pieces == piece] = number
    return Outlines(image, parts)


def train_tiny_sam(config: SamTrainingConfig) -> Sam:
    """Train a tiny SAM from nothing; the same config gives the same scenes, prompts and start."""
    torch.manual_seed(config.seed)
    sam = build_sam(SAM_TINY).train()
    nn.init.trunc_normal_(sam.image_encoder.pos_embed, std=0.02)
    started = time.monotonic()
    outlines = draw_outlines([config.seed, 81], config.scenes)
    log.info("%d scenes in %.0f s", config.scenes, time.monotonic() - started)
    optimizer = torch.optim.AdamW(
        sam.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.98), fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, config.steps, pct_start=0.08)
    rng, draw = np.random.default_rng([config.seed, 82]), torch.Generator().manual_seed(config.seed)
    facts: dict[str, list[float]] = {}
    for step in range(1, config.steps + 1):
        loss = _step_loss(sam, outlines, config, rng, draw, facts)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(sam.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == 20:
            means = " ".join(f"{k} {np.mean(v):.3f}" for k, v in sorted(facts.items()))
            log.info("sam step %d/%d %.0f s %s", step, config.steps, time.monotonic() - started, means)
            facts.clear()
    return sam.eval()


def _step_loss(
    sam: Sam,
    outlines: Outlines,
    config: SamTrainingConfig,
    rng: np.random.Generator,
    draw: Generator,
    facts: dict[str, list[float]],
) -> Tensor:
    image, mask_MSS, index_M = _draw_batch(outlines, config, rng)
    embedding = sam.image_encoder(image)
    total = torch.zeros(())
    for half in range(2):
        kind = str(rng.choice(KINDS, p=KIND_SHARES))
        true_MSS, rows = mask_MSS[half::2], index_M[half::2]
        prompt = make_prompts(true_MSS, kind, sam.prompt_encoder.mask_input_size[0], CoarseMaskRecipe(), draw)
        logits, quality = run_prompts(sam, embedding[rows], prompt)
        loss, iou = mask_loss(logits, quality, true_MSS)
        total = total + loss / 2
        facts.setdefault(f"iou_{kind}", []).append(float(iou[:, 0].mean()))
        facts.setdefault("loss", []).append(float(loss.detach()))
        facts.setdefault("quality_error", []).append(float((quality.detach()[:, 0] - iou[:, 0]).abs().mean()))
    return total


def _draw_batch(
    outlines: Outlines, config: SamTrainingConfig, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Give (B, 3, S, S) normalised images, (M, S, S) true masks and (M,) which image each is of."""
    images, masks, index = [], [], []
    for b, row in enumerate(rng.choice(len(outlines.image), size=config.batch, replace=False)):
        turn, flip = int(rng.integers(4)), bool(rng.integers(2))
        image, parts = (np.rot90(a[row], turn) for a in (outlines.image, outlines.parts))
        image, parts = (a[:, ::-1] if flip else a for a in (image, parts))
        picture, parts = _normalise(image), parts.copy()
        if rng.random() < config.crop_share:
            kept = int(len(parts) * rng.uniform(0.5, 1))
            outside = (slice(kept, None), slice(None))[:: 1 if rng.random() < 0.5 else -1]
            picture[:, outside[0], outside[1]] = 0
            parts[outside] = 0
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0
        large = np.flatnonzero(sizes >= SMALLEST_PART)
        for part in rng.choice(large, size=config.prompts, replace=len(large) < config.prompts):
            masks.append(torch.from_numpy(parts == part))
            index.append(b)
        images.append(picture)
    return torch.stack(images), torch.stack(masks).float(), torch.tensor(index)


def _normalise(image: NDArray[np.uint8]) -> Tensor:
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD))
    return (sam_input(image, len(image))[0] - mean) / deviation


@dataclass(frozen=True)
class Prompts:
    """Prompts of one kind in SAM's frame; what the kind does not have is None."""

    mask: Tensor | None
    boxes: Tensor | None
    points: Tensor | None


def make_prompts(
    true_MSS: Tensor, kind: str, side: int, recipe: CoarseMaskRecipe, draw: Generator, *, jitter: bool = True
) -> Prompts:
    """Give prompts for true masks.

    Args:
        true_MSS: (M, S, S) float in {0, 1}.
        kind: Letters out of "mbp": mask, box, point. The box of kinds with a mask is that of the coarse mask.
        side: Side of SAM's low-resolution frame.
        recipe: How masks are spoilt.
        draw: Source of chance.
        jitter: Move the boxes' edges by chance.
    """
    mask = coarse_masks(true_MSS, side, recipe, draw) if "m" in kind else None
    frame = true_MSS.shape[-1]
    seen = true_MSS > 0 if mask is None else mask[:, 0] > 0
    boxes = boxes_around(seen, frame) if "b" in kind else None
    if boxes is not None and jitter:
        boxes = jitter_boxes(boxes, frame, draw)
    return Prompts(mask, boxes, points_inside(true_MSS, draw) if "p" in kind else None)


def run_prompts(sam: Sam, embedding_MCgg: Tensor, prompts: Prompts) -> tuple[Tensor, Tensor]:
    """Give (M, 4, s, s) logits and (M, 4) predicted IoU of all four mask tokens, each prompt with its own image."""
    points = None
    if prompts.points is not None:
        points = (prompts.points, torch.ones(prompts.points.shape[:2]))
    sparse, dense = sam.prompt_encoder(points=points, boxes=prompts.boxes, masks=prompts.mask)
    position = sam.prompt_encoder.get_dense_pe()
    return decode_tokens(sam.mask_decoder, embedding_MCgg + dense, position, sparse, slice(0, 4))


def mask_loss(logits_Mtss: Tensor, quality_Mt: Tensor, true_MSS: Tensor) -> tuple[Tensor, Tensor]:
    """Give the loss () and the true IoU (M, t) of the predicted masks.

    Token 0 answers every prompt; of the other three, only the best is taught, so that they offer alternatives.
    """
    cover_M1ss = F.interpolate(true_MSS[:, None], logits_Mtss.shape[2:], mode="area")
    cross = (F.softplus(logits_Mtss) - logits_Mtss * cover_M1ss).mean((2, 3))
    share = logits_Mtss.sigmoid()
    both, either = (share * cover_M1ss).sum((2, 3)), share.sum((2, 3)) + cover_M1ss.sum((2, 3))
    per_token = 2 * cross + 1 - (2 * both + 1) / (either + 1)
    iou = mask_iou(logits_Mtss.detach() > 0, cover_M1ss >= 0.5)
    quality = F.mse_loss(quality_Mt, iou)
    return per_token[:, 0].mean() + 0.25 * per_token[:, 1:].amin(1).mean() + 0.5 * quality, iou


def mask_iou(one: Tensor, other: Tensor) -> Tensor:
    """Give the intersection over union of bool masks over the last two axes; 0 where both are empty."""
    return (one & other).sum((-2, -1)) / (one | other).sum((-2, -1)).clamp(min=1)
