"""One step of a training: the classes distinguished, the loss, the update; and what is trained at which rate."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from jobs.training.batches import classes_of_step
from jobs.training.checkpoints import TrainingState, WeightAverage
from jobs.training.config import TrainConfig
from jobs.training.samples import TrainingSample
from models.stseg.stseg import STSeg
from models.training.anchor import ANCHOR, anchor_loss, source_offset, start_distribution
from models.training.losses import class_weights, segmentation_loss
from models.training.settings import matched_alpha
from shards.data.vocabulary import Vocabulary

_UNLABELLED = -1  # outside every class list, however long


class TrainingStep:
    """A network with its optimiser; a step is a pure function of the state, the batch and the step's number.

    Attributes:
        state: What is trained, the optimiser and the average.
    """

    def __init__(
        self, model: STSeg, text_KPD: Tensor, vocabulary: Vocabulary, config: TrainConfig, strength: float = 0.0
    ) -> None:
        """Take what is trained on what; with a strength of share matching, samples have the start's scores."""
        parameters = trained_parameters(model, config)
        optimizer = _optimizer(parameters, config)
        self.state = TrainingState(parameters, optimizer, WeightAverage(parameters, config.ema))
        self._text_KPD = text_KPD
        self._config = config
        self._ignore_index = vocabulary.ignore_index
        seen_K = torch.zeros(len(vocabulary), dtype=torch.bool)
        seen_K[list(vocabulary.seen_ids)] = True
        self._unseen_K = ~seen_K
        self._strength = strength
        self._weight_K = class_weights(seen_K, matched_alpha(config.loss.alpha, strength))
        self._candidates = np.arange(len(vocabulary))
        if config.classes == "seen":
            self._candidates = np.asarray(vocabulary.seen_ids)

    def __call__(self, model: nn.Module, batch: TrainingSample, step: int) -> float:
        """Do a step on the (perhaps wrapped) network; return the loss of its final logits.

        Raises:
            ValueError: The loss is no longer finite.
        """
        config, state, device = self._config, self.state, self._text_KPD.device
        # By step, so that dropout is the same after a resume. PyTorch rejects seeds of more than 64 bits.
        torch.manual_seed((config.seed * 1_000_003 + step) % (1 << 63))
        for group in state.optimizer.param_groups:
            group["lr"] = group["scale"] * config.learning_rate * schedule(step, config)
        classes_n, label_BSS = self._choose_classes(batch.label_SS, step)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            output = model(batch.image_3SS, self._text_KPD[classes_n.to(device)], batch.sam, with_aux=config.aux_loss)
        outputs = (output.logits_BKHW, *output.aux)
        label_BSS, anchors = label_BSS.to(device), self._anchors(outputs, batch, classes_n)
        losses = [
            segmentation_loss(
                config.loss,
                logits_BKhw,
                label_BSS,
                self._weight_K[classes_n].to(device),
                ignore_index=_UNLABELLED,
                pixel_weight_BHW=batch.weight_SS if config.pixel_weights else None,
            )
            for logits_BKhw in self._offset(outputs, batch, classes_n, label_BSS)
        ]
        state.optimizer.zero_grad()
        torch.stack([*losses, *anchors]).sum().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(list(state.parameters.values()), config.clip_gradient)
        state.optimizer.step()
        state.average.update(step)
        loss = losses[0].item()
        if not np.isfinite(loss):
            raise ValueError(f"the loss is {loss} at step {step}: lower train.learning_rate")
        return loss

    def _anchors(self, outputs: Sequence[Tensor], batch: TrainingSample, classes_n: Tensor) -> list[Tensor]:
        """Return the anchor's loss of each output, weighted; none without matching."""
        if batch.start is None:
            return []
        start = start_distribution(batch.start.ids_khw, batch.start.scores_khw, classes_n, len(self._weight_K))
        return [ANCHOR * self._strength * anchor_loss(logits, start) for logits in outputs]

    def _offset(
        self, outputs: Sequence[Tensor], batch: TrainingSample, classes_n: Tensor, label_BSS: Tensor
    ) -> Sequence[Tensor]:
        """Return the outputs as the loss on labels sees them: with matching, source images deny no unseen class."""
        if batch.start is None:
            return outputs
        unseen_n = self._unseen_K[classes_n].to(label_BSS.device)
        offset_Bn = source_offset(label_BSS, unseen_n, batch.start.labelled, self._strength)
        return [logits + offset_Bn[:, :, None, None] for logits in outputs]

    def _choose_classes(self, label_BSS: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return the classes of a step, and the labels as indices into them, `_UNLABELLED` elsewhere."""
        label = label_BSS.cpu()
        label = label.masked_fill(label == self._ignore_index, _UNLABELLED)
        present = np.intersect1d(torch.unique(label).numpy(), self._candidates)
        chosen = classes_of_step(step, present, self._candidates, self._config.sampled_classes, self._config.seed)
        classes_n = torch.from_numpy(chosen)
        index = torch.full((len(self._weight_K) + 1,), _UNLABELLED)
        index[classes_n] = torch.arange(len(classes_n))
        return classes_n, index[label]  # -1 looks up the last entry, which is -1


def schedule(step: int, config: TrainConfig) -> float:
    """Return the factor on the learning rate at a step: linear warm-up, then polynomial decay."""
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    decay: float = (1 - step / config.steps) ** config.power
    return warmup * decay


def trained_parameters(model: STSeg, config: TrainConfig) -> dict[str, nn.Parameter]:
    """Return the parameters to train and freeze all others."""
    # The text tower always stays frozen: it ties classes that no label has to the images. So does SAM, whose stored
    # embeddings would no longer be its own.
    model.requires_grad_(False)
    chosen = dict(model.head_parameters())
    if config.clip_lr_scale > 0:
        chosen |= {n: p for n, p in model.named_parameters() if n.startswith("clip.clip.visual.")}
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    return chosen


def _optimizer(parameters: Mapping[str, nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    scales = {"dea.": config.dea_lr_scale, "decoder.": 1.0, "clip.": config.clip_lr_scale}
    groups = [
        {"params": [p for name, p in parameters.items() if name.startswith(prefix)], "scale": scale}
        for prefix, scale in scales.items()
    ]
    kept = [group for group in groups if group["params"]]
    # `foreach` gives the same bits in half the time on a processor, where it is not PyTorch's default.
    return torch.optim.AdamW(kept, lr=config.learning_rate, weight_decay=config.weight_decay, foreach=True)
