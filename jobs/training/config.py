"""The settings of a training, and what else it gets."""

from pathlib import Path
from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from jobs.inference.model import ModelConfig
from jobs.resources import CustomResources
from models.training.settings import AugmentConfig, LossConfig
from shards.data.sources import SourceConfig


class TrainConfig(BaseModel):
    """Settings of a training that change its result. Defaults are the paper's where it names them.

    Attributes:
        steps: Optimiser steps.
        start: What a round's student starts from: its "teacher", the best model so far, or "stage1", the model of round
            0, so that each student is a new one and only pseudo-labels pass from round to round. Stage 1 itself starts
            from `model.stage1_weights`.
        learning_rate: Of AdamW, after warm-up; falls to 0 with (1 - step / steps)^power.
        weight_decay: Of AdamW.
        warmup_steps: Steps of linear warm-up.
        power: Exponent of the decay.
        target_per_step: Pseudo-labelled images per step, over all workers.
        source_per_step: Labelled source images per step, over all workers. With `target_per_step` it sets the ratio of
            rehearsal: 3 and 1 rehearse a quarter.
        sampled_classes: Classes distinguished in a step: those present and random others; 0: all.
        classes: "all" of the vocabulary, or the "seen" ones only (stage 1).
        loss: The loss.
        aux_loss: Whether the coarser outputs, which early rejection reads, are trained too.
        pixel_weights: Whether the loss is weighted with the pseudo-labels' weight maps.
        dea_lr_scale: Factor on the learning rate of DEA.
        clip_lr_scale: Factor on the learning rate of CLIP's image tower; 0 keeps it frozen.
        clip_gradient: Largest norm of the gradient.
        ema: Decay of the exponential moving average of the weights over the steps, in [0, 1). Above 0 the average is
            what is written at the end, evaluated, and the next round's teacher; the steps themselves do not change.
            0: the weights after the last step.
        augment: Changes of a step's images, pseudo-labelled and labelled ones, after they are read. The teacher sees
            them unchanged.
        precision: The number type of the network during training: "fp32", or "bf16", where matrix products and
            convolutions run in bfloat16 while parameters, optimiser, loss and gradients of the parameters stay float32.
        checkpoint_every: Most steps between checkpoints.
        checkpoint_every_s: Most seconds of training between checkpoints, so that a training that is preempted every few
            minutes progresses however long a step takes. Where writing takes more than 2 % of that, the interval is
            fifty times as long as writing takes. A killed training loses what it did since the last checkpoint; one
            that is asked to stop and ends its step within 8 s loses nothing. Neither setting changes results.
        seed: Seed of the order, the class choice, the augmentation and dropout.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    steps: PositiveInt = 80_000
    start: Literal["teacher", "stage1"] = "teacher"
    learning_rate: float = Field(default=2e-4, gt=0)
    weight_decay: NonNegativeFloat = 1e-4
    warmup_steps: NonNegativeInt = 20
    power: NonNegativeFloat = 0.9
    target_per_step: NonNegativeInt = 4
    source_per_step: NonNegativeInt = 0
    sampled_classes: NonNegativeInt = 0
    classes: Literal["all", "seen"] = "all"
    # Equation 6 over a softmax: the gate's 0.9 needs probabilities that sum to one. Another loss in the rounds than in
    # stage 1 breaks the student.
    loss: LossConfig = LossConfig()
    aux_loss: bool = True
    pixel_weights: bool = False
    # The embedded default sets 0.03: stage 1 shows DEA seen classes only, and at 0.1 unseen ones lose 1 to 5 points
    # against a network without it (docs/method.md).
    dea_lr_scale: NonNegativeFloat = 1.0
    clip_lr_scale: NonNegativeFloat = 0.0
    clip_gradient: float = Field(default=1.0, gt=0)
    ema: float = Field(default=0.0, ge=0, lt=1)
    augment: AugmentConfig = AugmentConfig()
    precision: Literal["fp32", "bf16"] = "fp32"  # no fp16: bfloat16 has float32's range and needs no loss scaler
    checkpoint_every: PositiveInt = 1000
    checkpoint_every_s: PositiveFloat = 60.0
    seed: NonNegativeInt = 0

    def fingerprint(self) -> dict[str, JsonValue]:
        """Return what changes the weights. `start` does, too, and is an input of the training, with its checksum."""
        return self.model_dump(mode="json", exclude={"checkpoint_every", "checkpoint_every_s", "start"})


class TrainJob(BaseModel):
    """What a training needs: settings, the model to start from, and the labelled images.

    Attributes:
        train: The settings.
        model: The model; its `weights` are the start.
        vocabulary: Path of the run's `vocabulary.json`.
        source: The labelled source, if there is one; a task's `samples` are its images.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    train: TrainConfig
    model: ModelConfig
    vocabulary: Path
    source: SourceConfig | None = None


def require_equal_shares(config: TrainConfig, workers: int) -> None:
    """Reject a number of workers that cannot share a step's images equally.

    Raises:
        ValueError: The images do not divide by the workers.
    """
    # Gradients are averaged over workers: an image would count more the fewer images its worker has.
    images = config.target_per_step + config.source_per_step
    if images % workers:
        shares = ", ".join(str(n) for n in range(1, images + 1) if images % n == 0)
        raise ValueError(
            f"{images} images a step (train.target_per_step {config.target_per_step} + train.source_per_step "
            f"{config.source_per_step}) cannot be shared equally by {workers} workers: change these, or set "
            f"resources.train.workers (of stage 1: group.workers) to one of {shares}"
        )


class GroupResources(BaseModel):
    """What a training group needs; the number of workers divides a step's images, the rest changes no result.

    Attributes:
        workers: Processes that train together; each gets as many of a step's images as the others.
        min_workers: Null (the default): always `workers`. A number: the group is elastic, it starts with that few where
            no more fit, continues with fewer when one is lost for good, and grows again. The last bits of the result
            then depend on when that happened, as they never do otherwise.
        num_cpus: Ray's CPUs per worker.
        num_gpus: Ray's GPUs per worker; 0 trains on the CPU.
        resources: Ray's custom resources per worker, by name, such as `{train: 1}`.
        threads: Threads of array libraries per worker.
        max_failures: How often a dead group is restarted before the training is given up.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    workers: PositiveInt = 1
    min_workers: PositiveInt | None = None
    num_cpus: NonNegativeFloat = 1
    num_gpus: NonNegativeFloat = 0
    resources: CustomResources = {}
    threads: PositiveInt = 2
    max_failures: int = 2

    @model_validator(mode="after")
    def _check(self) -> "GroupResources":
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers {self.min_workers} is above workers {self.workers}; raise workers")
        return self

    @property
    def amounts(self) -> dict[str, float]:
        """What a worker uses, by Ray's names."""
        return {"CPU": self.num_cpus, "GPU": self.num_gpus, **self.resources}

    @property
    def sizes(self) -> range:
        """Every possible number of workers."""
        return range(self.workers if self.min_workers is None else self.min_workers, self.workers + 1)


def require_group_fits(train: TrainConfig, resources: GroupResources) -> None:
    """Reject a group that in one of its possible sizes cannot share a step's images equally.

    Raises:
        ValueError: The images do not divide by one of the sizes.
    """
    for size in resources.sizes:
        require_equal_shares(train, size)
