"""The settings of a training that change its result."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from models.losses import LossConfig


class TrainConfig(BaseModel):
    """Settings of a training that change its result. Defaults are the paper's where it names them.

    Attributes:
        steps: Optimiser steps.
        learning_rate: Of AdamW, after warm-up; falls to 0 with (1 - step / steps)^power.
        weight_decay: Of AdamW.
        warmup_steps: Steps of linear warm-up.
        power: Exponent of the decay.
        target_per_step: Pseudo-labelled images a step, over all workers.
        source_per_step: Labelled source images a step, over all workers (rehearsal).
        sampled_classes: Classes told apart in a step: those present and others by chance; 0: all.
        classes: "all" of the vocabulary, or the "seen" ones only (stage 1).
        loss: Which loss.
        aux_loss: Whether the coarser outputs, which early rejection reads, are trained too.
        pixel_weights: Whether the loss is weighted with the pseudo-labels' weight maps.
        dea_lr_scale: Factor on the learning rate of DEA.
        clip_lr_scale: Factor on the learning rate of CLIP's image tower; 0 keeps it frozen.
        clip_gradient: Largest norm of the gradient.
        checkpoint_every: Steps between checkpoints.
        seed: Seed of the order, the class choice and dropout.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    steps: PositiveInt = 80_000
    learning_rate: float = Field(default=2e-4, gt=0)
    weight_decay: NonNegativeFloat = 1e-4
    warmup_steps: NonNegativeInt = 20
    power: NonNegativeFloat = 0.9
    target_per_step: NonNegativeInt = 4
    source_per_step: NonNegativeInt = 0
    sampled_classes: NonNegativeInt = 0
    classes: Literal["all", "seen"] = "all"
    loss: LossConfig = LossConfig()
    aux_loss: bool = True
    pixel_weights: bool = False
    dea_lr_scale: NonNegativeFloat = 1.0
    clip_lr_scale: NonNegativeFloat = 0.0
    clip_gradient: float = Field(default=1.0, gt=0)
    checkpoint_every: PositiveInt = 1000
    seed: NonNegativeInt = 0
