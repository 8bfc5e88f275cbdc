"""The cost-aware decoder at the paper's sizes against SED's operations: inference, early rejection, training."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases import Case, Pair, count_flops
from benchmarks.sed_operations import sed_fast_logits, sed_first_gate, sed_logits
from models.stseg.cost_volume import unit_pixels
from models.stseg.decoder import CostAwareDecoder
from models.stseg.early_rejection import best_of_pixels, filled, first_gate, kept_logits
from models.stseg.settings import DecoderConfig
from models.training.losses import weighted_bce

_TOP_K: Final = 8
_TRAINED_CLASSES: Final = 16


def _inputs(classes: int) -> tuple[CostAwareDecoder, Tensor, Tensor, list[Tensor]]:
    """A decoder of SED's sizes with every parameter random, and features of a 768 x 768 image."""
    torch.manual_seed(0)
    decoder = CostAwareDecoder(DecoderConfig(), (128, 256, 512), 80)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02 if parameter.ndim > 1 else 0.1)
    guidance = [torch.randn(1, 128, 192, 192), torch.randn(1, 256, 96, 96), torch.randn(1, 512, 48, 48)]
    return decoder.requires_grad_(False), torch.randn(1, 640, 24, 24), torch.randn(classes, 80, 640), guidance


def _full(classes: int, *, with_reference: bool = True) -> Callable[[], Pair]:
    def build() -> Pair:
        decoder, dense, text, guidance = _inputs(classes)

        def fast() -> Tensor:
            logits: Tensor = decoder(dense, text, guidance).logits_BKHW
            return logits

        def reference() -> Tensor:
            return sed_logits(decoder, dense, text, guidance)[0]

        return Pair(reference if with_reference else None, fast, flops=count_flops(fast))

    return build


def _rejection(classes: int, kept: int) -> Callable[[], Pair]:
    """Both sides compute their gates; which classes go on is set, since random weights would keep nearly all."""

    def build() -> Pair:
        decoder, dense, text, guidance = _inputs(classes)
        kept_T = torch.zeros(classes, dtype=torch.bool)
        kept_T[torch.randperm(classes)[:kept]] = True
        found = best_of_pixels(_TOP_K)

        def choose(logits_Khw: Tensor) -> Tensor:
            found(logits_Khw)
            return torch.arange(len(logits_Khw)) if len(logits_Khw) == kept else kept_T.nonzero()[:, 0]

        def fast() -> Tensor:
            return filled(kept_logits(decoder, dense, text, guidance, choose), classes).sigmoid()

        def reference() -> Tensor:
            return sed_fast_logits(decoder, dense, text, guidance, top_k=_TOP_K, kept_T=kept_T)

        return Pair(reference, fast, flops=count_flops(fast))

    return build


def _gate() -> Pair:
    decoder, dense, text, _ = _inputs(171)

    def fast() -> Tensor:
        with torch.no_grad():
            return first_gate(decoder, unit_pixels(dense), text)

    def reference() -> Tensor:
        return sed_first_gate(decoder, dense, text)

    return Pair(reference, fast, error=_other_best, flops=count_flops(fast))


def _other_best(reference_BKHW: Tensor, fast_BKHW: Tensor) -> float:
    """Give the share of cells whose set of best classes differs, or the difference of the logits if that is more."""
    best = [logits[0].topk(_TOP_K, dim=0).indices.sort(dim=0).values for logits in (reference_BKHW, fast_BKHW)]
    differs = float((best[0] != best[1]).any(dim=0).float().mean())
    return max(differs, float((reference_BKHW - fast_BKHW).abs().max()))


def _train_step() -> Pair:
    decoder, dense, text, guidance = _inputs(_TRAINED_CLASSES)
    decoder.requires_grad_(True)
    label = torch.randint(0, _TRAINED_CLASSES, (1, 768, 768))
    target = F.one_hot(label, _TRAINED_CLASSES).permute(0, 3, 1, 2).float()

    def gradients(loss: Callable[[], Tensor]) -> Tensor:
        decoder.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]
        return torch.cat([p.grad.flatten() for p in decoder.parameters() if p.grad is not None])

    def ours() -> Tensor:
        output = decoder(dense, text, guidance, with_aux=True)
        weight = torch.ones(_TRAINED_CLASSES)
        return _sum(weighted_bce(logits, label, weight, -1) for logits in (output.logits_BKHW, *output.aux))

    def seds() -> Tensor:
        outputs = sed_logits(decoder, dense, text, guidance)
        large = (F.interpolate(x, size=(768, 768), mode="bilinear", align_corners=False) for x in outputs)
        return _sum(F.binary_cross_entropy_with_logits(x, target) for x in large)

    return Pair(lambda: gradients(seds), lambda: gradients(ours), error=_relative)


def _sum(values: Any) -> Tensor:
    return torch.stack(list(values)).sum()


def _relative(reference: Tensor, fast: Tensor) -> float:
    return float((reference - fast).norm() / reference.norm())


def _without_gradients(build: Callable[[], Pair]) -> Callable[[], Pair]:
    """Run both sides as inference does."""

    def guarded(side: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            with torch.no_grad():
                return side()

        return run

    def built() -> Pair:
        with torch.no_grad():
            pair = build()
        reference = None if pair.reference is None else guarded(pair.reference)
        return Pair(reference, guarded(pair.fast), pair.error, pair.flops)

    return built


CASES: Final[Sequence[Case]] = (
    Case("cad_n20", _without_gradients(_full(20)), at_least=2.5, memory=True),
    Case("cad_n59", _without_gradients(_full(59)), at_least=3.5, memory=True),
    Case("cad_n171", _without_gradients(_full(171)), at_least=5.0, repeats=5, memory=True),
    Case("cad_n847", _without_gradients(_full(847, with_reference=False)), at_least=0.0, repeats=1, memory=True),
    Case("rejection_171_40", _without_gradients(_rejection(171, 40)), at_least=3.5),
    Case("rejection_847_40", _without_gradients(_rejection(847, 40)), at_least=4.5, repeats=5),
    Case("rejection_gate", _without_gradients(_gate), at_least=3.5),
    Case("train_step", _train_step, at_least=1.0, memory=True),
)
