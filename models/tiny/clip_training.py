"""Training of the shipped tiny CLIP: contrastive, on generated pictures and captions; it never sees a pixel label."""

# B image or caption, K class, D embedding, S side of a picture in pixels

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.pool import AsyncResult, Pool
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from models.stseg.clip import DenseClip
from models.stseg.templates import CAPTION_TEMPLATES
from models.stseg.tiny_clip import EMBEDDING_DIM, WordTokenizer, build_tiny_clip
from models.weights.files import load_weights_into
from shards.scenes.scenes import OBJECT_CLASSES, SCENE_CLASSES, SceneRecipe, compose_scene

log = logging.getLogger(__name__)
ICON = SceneRecipe(size=40, objects=(1, 1), radius=(12.0, 19.0), domain=(0.0, 1.0))
SMALL_SCENE = SceneRecipe(size=64, objects=(0, 3), radius=(11.0, 20.0), domain=(0.0, 1.0))
FULL_SCENE = SceneRecipe(size=96, objects=(1, 5), domain=(0.0, 1.0))
Part = tuple[NDArray[np.uint8], NDArray[np.bool_]]


@dataclass(frozen=True)
class Naming:
    """What captions call the classes, and how often they name them.

    Attributes:
        names: A name per class of `SCENE_CLASSES`.
        rates: The chance per class, in [0, 1], that the caption of a picture that shows it may name it.
    """

    names: tuple[str, ...] = SCENE_CLASSES
    rates: tuple[float, ...] = (1.0,) * len(SCENE_CLASSES)

    def class_words(self) -> Tensor:
        """Return (classes, words) float: 1 where the class's name has the word, words in alphabetical order."""
        words = sorted({word for name in self.names for word in name.split()})
        return torch.tensor([[float(word in name.split()) for word in words] for name in self.names])

    def nameable(self, shows: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
        """Return which of the classes that each picture shows, (B, classes) bool, its caption may name this time."""
        if min(self.rates) >= 1:  # draws nothing, so that the shipped weights come from the same chance as ever
            return shows
        allowed: NDArray[np.bool_] = shows & (rng.random(shows.shape) < self.rates)
        return allowed


@dataclass(frozen=True)
class Phase:
    """One part of the curriculum: `pictures` pictures from a recipe, trained on for `steps` steps.

    Attributes:
        min_share: Smallest share of the picture that a class must cover to be named.
        object_share: How often a caption of one class is about an object.
    """

    recipe: SceneRecipe
    pictures: int
    steps: int
    batch: int
    min_share: float
    object_share: float = 0.7


@dataclass(frozen=True)
class ClipTrainingConfig:
    """How the tiny CLIP is trained.

    Attributes:
        cycles: Each goes from single objects to scenes with a learning rate that falls to 0, and starts from the last
            one's weights as they would be shipped, so that a training can be continued from a file.
        naming: What captions call the classes.
    """

    # Single objects before scenes: the words must be known before anything else. A CLIP at 33 % object accuracy gave a
    # prototype hopeless pseudo-labels.
    seed: int = 0
    cycles: tuple[tuple[Phase, ...], ...] = (
        (
            Phase(ICON, 12_000, 700, 64, 0.08, 0.5),
            Phase(SMALL_SCENE, 24_000, 1800, 64, 0.02, 0.5),
            Phase(FULL_SCENE, 5_000, 300, 32, 0.012, 0.5),
        ),
        (
            Phase(ICON, 16_000, 1400, 64, 0.08),
            Phase(SMALL_SCENE, 20_000, 1300, 64, 0.02),
            Phase(FULL_SCENE, 4_000, 200, 32, 0.012),
        ),
    )
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup_steps: int = 40
    bag_of_words: float = 0.5  # weight of a second task for the image tower, whose head is thrown away
    generators: int = 1
    naming: Naming = Naming()


def train_tiny_clip(config: ClipTrainingConfig, *, first_cycle: int = 0, start: Path | None = None) -> DenseClip:
    """Train a tiny CLIP; the same config gives the same pictures, captions and start.

    Args:
        config: The curriculum.
        first_cycle: The cycle to start with.
        start: Weights after the previous cycle, needed if `first_cycle` is not the first; or those of a CLIP to begin
            with.
    """
    torch.manual_seed(config.seed)
    dense = DenseClip(build_tiny_clip(), WordTokenizer())
    dense.clip.logit_scale.data.fill_(np.log(10.0))
    if start is not None:
        load_weights_into(dense.clip, start)
    for number in range(first_cycle, len(config.cycles)):
        _train_cycle(dense, config, number)
        # Rounded as shipped, so that a training continued from the file ends with the same weights.
        dense.clip.load_state_dict({k: v.half().float() for k, v in dense.clip.state_dict().items()})
    return dense.eval()


def _train_cycle(dense: DenseClip, config: ClipTrainingConfig, number: int) -> None:
    words = nn.Linear(EMBEDDING_DIM, config.naming.class_words().shape[1])
    parameters = [*dense.clip.parameters(), *words.parameters()]
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.98)
    )
    phases = config.cycles[number]
    before = sum(len(cycle) for cycle in config.cycles[:number])
    total, done = sum(p.steps for p in phases), 0
    with get_context("spawn").Pool(config.generators) as pool:
        # All phases are requested at once: the pictures of the next are drawn while this one trains.
        drawn = [draw_pictures(pool, phase, [config.seed, 77, n]) for n, phase in enumerate(phases, before)]
        for phase_id, phase in enumerate(phases, before):
            pictures, shows = (np.concatenate(part) for part in zip(*drawn[phase_id - before].get(), strict=True))
            rng = np.random.default_rng([config.seed, 78, phase_id])
            for _ in range(phase.steps):
                for group in optimizer.param_groups:
                    group["lr"] = config.learning_rate * _schedule(done, total, config.warmup_steps)
                rows = rng.choice(len(pictures), size=phase.batch, replace=False)
                nameable = config.naming.nameable(shows[rows], rng)
                rows, nameable = rows[nameable.any(1)], nameable[nameable.any(1)]
                captions = draw_captions(rng, nameable, phase.object_share, config.naming)
                contrast, spelling = _step_losses(dense, words, pictures[rows], shows[rows], captions, config.naming)
                loss = contrast + config.bag_of_words * spelling
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                dense.clip.logit_scale.data.clamp_(0, np.log(100.0))
                done += 1
                if done % 50 == 0:
                    right = object_accuracy(dense, pictures[:200], shows[:200], config.naming.names)
                    log.info("clip %d step %d/%d loss %.4f objects %.3f", number, done, total, loss.item(), right)


def _schedule(step: int, total: int, warmup: int) -> float:
    return min(1.0, (step + 1) / warmup, 2.0 * (total - step) / total)


def _step_losses(
    dense: DenseClip,
    words: nn.Module,
    pictures: NDArray[np.uint8],
    shows: NDArray[np.bool_],
    captions: tuple[list[str], Tensor],
    naming: Naming,
) -> tuple[Tensor, Tensor]:
    """Return the contrastive loss, and that of reading a caption's words off the picture."""
    texts, named = captions
    image = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    pooled = dense.clip.encode_image((image - dense.mean) / dense.std)
    scale = dense.clip.logit_scale.exp()
    loss = contrastive_loss(pooled, dense.encode_text(texts), named, torch.from_numpy(shows), scale)
    read = (named.float() @ naming.class_words()).clamp(max=1)
    return loss, F.binary_cross_entropy_with_logits(words(pooled), read)


def draw_captions(
    rng: np.random.Generator, nameable: NDArray[np.bool_], object_share: float, naming: Naming
) -> tuple[list[str], Tensor]:
    """Write a caption for each picture.

    Args:
        rng: Source of randomness.
        nameable: (B, classes) bool, the classes that each may name, at least one.
        object_share: As in `draw_caption`.
        naming: The names.

    Returns:
        B captions, and (B, classes) bool, the classes that each names.
    """
    captions, named = [], torch.zeros(nameable.shape, dtype=torch.bool)
    for row, present in zip(named, nameable, strict=True):
        text, ids = draw_caption(rng, np.flatnonzero(present), object_share, naming.names)
        captions.append(text)
        row[ids] = True
    return captions, named


def draw_caption(
    rng: np.random.Generator, classes: NDArray[np.int64], object_share: float, names: Sequence[str] = SCENE_CLASSES
) -> tuple[str, NDArray[np.int64]]:
    """Write a caption for a picture that shows these classes: what, never where.

    Args:
        rng: Source of randomness.
        classes: (n,) ids into `SCENE_CLASSES`, n >= 1.
        object_share: How often a caption of one class is about an object, where there is one.
        names: A name per class.

    Returns:
        The caption, and the (m,) ids of the classes it names, 1 <= m <= n.
    """
    objects = classes[classes < len(OBJECT_CLASSES)]
    kind = rng.random()
    if kind < 0.45:
        named = rng.permutation(classes)[:1]
        if len(objects) and rng.random() < object_share:
            named = rng.permutation(objects)[:1]
    elif kind < 0.7 and len(objects):
        named = rng.permutation(objects)
    else:
        named = rng.permutation(classes)
    named = named[:4]
    template = CAPTION_TEMPLATES[int(rng.integers(len(CAPTION_TEMPLATES)))]
    return template.format(" and a ".join(names[i] for i in named)), named


def contrastive_loss(image_BD: Tensor, text_BD: Tensor, named_BK: Tensor, present_BK: Tensor, scale: Tensor) -> Tensor:
    """Compute CLIP's symmetric loss, where a caption is right for every picture that shows all that it names.

    Args:
        image_BD: Pooled image embeddings.
        text_BD: Caption embeddings.
        named_BK: bool, the classes a caption names.
        present_BK: bool, the classes a picture shows.
        scale: () factor on the cosines.
    """
    # CLIP's one-to-one targets would punish the second picture of a batch that shows "a red ring".
    logits = scale * F.normalize(image_BD, dim=-1) @ F.normalize(text_BD, dim=-1).T
    absent = (~present_BK).float() @ named_BK.float().T
    right = (absent == 0).float()
    by_image = -(right / right.sum(1, keepdim=True).clamp(min=1) * logits.log_softmax(1)).sum(1)
    by_text = -(right / right.sum(0, keepdim=True).clamp(min=1) * logits.log_softmax(0)).sum(0)
    return 0.5 * (by_image.mean() + by_text.mean())


@torch.no_grad()
def object_accuracy(
    dense: DenseClip, pictures: NDArray[np.uint8], shows: NDArray[np.bool_], names: Sequence[str] = SCENE_CLASSES
) -> float:
    """Return the share of pictures with objects whose nearest object name is one that they show."""
    with_objects = shows[:, : len(OBJECT_CLASSES)].any(1)
    image = torch.from_numpy(pictures[with_objects]).permute(0, 3, 1, 2).float() / 255
    pooled = dense.clip.encode_image((image - dense.mean) / dense.std)
    text = dense.encode_text([f"a photo of a {name}" for name in names[: len(OBJECT_CLASSES)]])
    chosen = (F.normalize(pooled, dim=-1) @ F.normalize(text, dim=-1).T).argmax(1).numpy()
    return float(shows[with_objects][np.arange(len(chosen)), chosen].mean())


def draw_pictures(pool: Pool, phase: Phase, seed: list[int]) -> "AsyncResult[list[Part]]":
    """Start generating a phase's pictures.

    Returns:
        What will be a list of parts: (n, S, S, 3) uint8 pictures, and (n, classes) bool, which classes each shows.
    """
    chunk = 500
    starts = range(0, phase.pictures, chunk)
    jobs = [(phase, [*seed, start], min(chunk, phase.pictures - start)) for start in starts]
    return pool.starmap_async(_draw_chunk, jobs, chunksize=1)


def _draw_chunk(phase: Phase, seed: list[int], count: int) -> Part:
    rng = np.random.default_rng(seed)
    size = phase.recipe.size
    pictures = np.empty((count, size, size, 3), np.uint8)
    shows = np.zeros((count, len(SCENE_CLASSES)), np.bool_)
    for i in range(count):
        scene = compose_scene(rng, phase.recipe)
        pictures[i] = scene.image
        share = np.bincount(scene.label.ravel(), minlength=len(SCENE_CLASSES)) / scene.label.size
        # The largest class always counts, so that every picture has a caption.
        shows[i] = share >= min(phase.min_share, share.max())
    return pictures, shows
