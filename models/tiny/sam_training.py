"""Training of the shipped tiny SAM: class-agnostic, on generated scenes; it sees outlines, never names."""

# B image, M prompt, S side of SAM's square frame, s side of its low-resolution mask frame, t mask token,
# C g g channels and grid of the embedding

import logging
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from segment_anything.modeling import Sam
from torch import Generator, Tensor, nn

from models.presets import SAM_TINY
from models.sam.decoder import MaskPrompts, decode_tokens, embed_prompts
from models.sam.sam import build_sam
from models.tiny.sam_data import (
    CoarseMaskRecipe,
    boxes_around,
    coarse_masks,
    draw_batch,
    draw_outlines,
    jitter_boxes,
    points_inside,
)

log = logging.getLogger(__name__)
KINDS: Final = ("m", "b", "p", "mb", "bp", "mbp", "mp")
# Mask and box together most often: that is what refinement prompts with.
KIND_SHARES: Final = (0.15, 0.1, 0.1, 0.35, 0.05, 0.15, 0.1)


@dataclass(frozen=True)
class Cycle:
    """One rise and fall of the learning rate, on scenes of its own.

    Attributes:
        coarse: How mask prompts are spoilt.
        edges: Weight of a second task for the encoder alone, drawing all outlines of the picture; its head is thrown
            away afterwards.
    """

    scenes: int
    steps: int
    learning_rate: float
    coarse: CoarseMaskRecipe
    edges: float


@dataclass(frozen=True)
class SamTrainingConfig:
    """How the tiny SAM is trained.

    Attributes:
        cycles: Each starts from the last one's weights as they would be shipped. The first alone ends just short
            of the goal; the second adds the edges and worse prompts.
        prompts: Prompts per image, a multiple of 2: each half of a batch's prompts is of one kind.
        crop_share: Share of pictures cut short on one side and padded, as pictures that are not square are.
    """

    seed: int = 0
    cycles: tuple[Cycle, ...] = (
        Cycle(6000, 3800, 1e-3, CoarseMaskRecipe(noise=0.15, waves=0.35), edges=0.0),
        Cycle(6000, 2600, 1.2e-3, CoarseMaskRecipe(), edges=1.0),
    )
    batch: int = 6
    prompts: int = 4
    weight_decay: float = 0.02
    crop_share: float = 0.15


def train_tiny_sam(config: SamTrainingConfig) -> Sam:
    """Train a tiny SAM; the same config gives the same scenes, prompts and start."""
    torch.manual_seed(config.seed)
    sam = build_sam(SAM_TINY)
    # segment_anything leaves the positions at zero, for a checkpoint to fill.
    nn.init.trunc_normal_(sam.image_encoder.pos_embed, std=0.02)
    for number in range(len(config.cycles)):
        _train_cycle(sam, config, number)
        # Rounded as shipped: what is evaluated is what is written.
        sam.load_state_dict({k: v.half().float() for k, v in sam.state_dict().items()})
    return sam.eval()


def _train_cycle(sam: Sam, config: SamTrainingConfig, number: int) -> None:
    cycle, patch = config.cycles[number], SAM_TINY.patch_size
    torch.manual_seed(config.seed + 1000 * number)
    edge_head = nn.Sequential(nn.Conv2d(SAM_TINY.embedding_dim, patch**2, 1), nn.PixelShuffle(patch))
    parameters = [*sam.train().parameters(), *edge_head.parameters()]
    outlines = draw_outlines([config.seed, 81, number], cycle.scenes)
    log.info("%d scenes", cycle.scenes)
    optimizer = torch.optim.AdamW(
        parameters, lr=cycle.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.98), fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, cycle.learning_rate, cycle.steps, pct_start=0.08)
    rng = np.random.default_rng([config.seed, 82, number])
    draw = torch.Generator().manual_seed(config.seed + 1000 * number)
    facts: dict[str, list[float]] = {}
    for step in range(1, cycle.steps + 1):
        batch = draw_batch(outlines, config.batch, config.prompts, config.crop_share, rng)
        embedding = sam.image_encoder(batch.image_B3SS)
        loss = cycle.edges * edge_loss(edge_head(embedding), batch.edges_B1SS)
        facts.setdefault("loss_edges", []).append(float(loss.detach()))
        for half in range(2):
            kind = str(rng.choice(KINDS, p=KIND_SHARES))
            true_MSS, index_M = batch.half(half)
            prompts = make_prompts(true_MSS, kind, sam.prompt_encoder.mask_input_size[0], cycle.coarse, draw)
            predicted = run_prompts(sam, embedding[index_M], prompts)
            loss = loss + 0.5 * _prompt_loss(*predicted, true_MSS, kind, facts)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == 20:
            means = " ".join(f"{name} {np.mean(values):.3f}" for name, values in sorted(facts.items()))
            log.info("sam cycle %d step %d/%d %s", number, step, cycle.steps, means)
            facts.clear()


def _prompt_loss(logits: Tensor, quality: Tensor, true_MSS: Tensor, kind: str, facts: dict[str, list[float]]) -> Tensor:
    loss, iou = mask_loss(logits, quality, true_MSS)
    facts.setdefault(f"iou_{kind}", []).append(float(iou[:, 0].mean()))
    facts.setdefault("loss_masks", []).append(float(loss.detach()))
    facts.setdefault("quality_error", []).append(float((quality.detach()[:, 0] - iou[:, 0]).abs().mean()))
    return loss


@dataclass(frozen=True)
class Prompts:
    """Prompts of one kind in SAM's frame; what the kind does not have is None."""

    mask: Tensor | None
    boxes: Tensor | None
    points: Tensor | None


def make_prompts(
    true_MSS: Tensor, kind: str, side: int, recipe: CoarseMaskRecipe, draw: Generator, *, jitter: bool = True
) -> Prompts:
    """Make prompts for true masks.

    Args:
        true_MSS: (M, S, S) float in {0, 1}.
        kind: Letters out of "mbp": mask, box, point. The box of kinds with a mask is that of the coarse mask.
        side: Side of SAM's low-resolution frame.
        recipe: How masks are spoilt.
        draw: Source of randomness.
        jitter: Move the boxes' edges at random.
    """
    mask = coarse_masks(true_MSS, side, recipe, draw) if "m" in kind else None
    frame = true_MSS.shape[-1]
    # Refinement boxes what it sees, which is the coarse mask.
    seen = true_MSS > 0 if mask is None else mask[:, 0] > 0
    boxes = boxes_around(seen, frame) if "b" in kind else None
    if boxes is not None and jitter:
        boxes = jitter_boxes(boxes, frame, draw)
    return Prompts(mask, boxes, points_inside(true_MSS, draw) if "p" in kind else None)


def run_prompts(sam: Sam, embedding_MCgg: Tensor, prompts: Prompts) -> tuple[Tensor, Tensor]:
    """Return (M, 4, s, s) logits and (M, 4) predicted IoU of all four mask tokens, each prompt with its own image."""
    kinds = {"boxes_M4": prompts.boxes, "mask_input_M1hw": prompts.mask, "point_coords_MT2": prompts.points}
    if prompts.points is not None:
        kinds["point_labels_MT"] = torch.ones(prompts.points.shape[:2])
    batch = MaskPrompts(torch.arange(len(embedding_MCgg)), **kinds)
    sparse, dense = embed_prompts(sam.prompt_encoder, batch)
    position = sam.prompt_encoder.get_dense_pe()[0].permute(1, 2, 0)
    source = embedding_MCgg.permute(0, 2, 3, 1) + dense
    return decode_tokens(sam.mask_decoder, source, position, sparse, slice(0, 4))


def edge_loss(logits_B1SS: Tensor, edges_B1SS: Tensor) -> Tensor:
    """Compute the binary cross-entropy () of outlines, whose few pixels count four times."""
    return F.binary_cross_entropy_with_logits(logits_B1SS, edges_B1SS, pos_weight=torch.tensor(4.0))


def mask_loss(logits_Mtss: Tensor, quality_Mt: Tensor, true_MSS: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the loss () and the true IoU (M, t) of the predicted masks."""
    cover_M1ss = F.interpolate(true_MSS[:, None], logits_Mtss.shape[2:], mode="area")
    cross = (F.softplus(logits_Mtss) - logits_Mtss * cover_M1ss).mean((2, 3))
    share = logits_Mtss.sigmoid()
    both, either = (share * cover_M1ss).sum((2, 3)), share.sum((2, 3)) + cover_M1ss.sum((2, 3))
    per_token = 2 * cross + 1 - (2 * both + 1) / (either + 1)
    iou = mask_iou(logits_Mtss.detach() > 0, cover_M1ss >= 0.5)
    quality = F.mse_loss(quality_Mt, iou)
    # Token 0 answers every prompt; of the other three only the best is trained, so that they offer alternatives.
    return per_token[:, 0].mean() + 0.25 * per_token[:, 1:].amin(1).mean() + 0.5 * quality, iou


def mask_iou(one: Tensor, other: Tensor) -> Tensor:
    """Compute the intersection over union of bool masks over the last two axes; 0 where both are empty."""
    return (one & other).sum((-2, -1)) / (one | other).sum((-2, -1)).clamp(min=1)
