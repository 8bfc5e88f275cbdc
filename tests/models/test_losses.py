import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from models.training.losses import class_weights, segmentation_loss, weighted_bce, weighted_cross_entropy
from models.training.settings import LossConfig

LOSSES = {"eq6": weighted_cross_entropy, "bce": weighted_bce}


def _reference(kind: str, logits: Tensor, label: Tensor, weight: Tensor, ignore: int, pixel_weight: Tensor) -> float:
    """Eq. 6 pixel by pixel and class by class, softmax or sigmoid written out."""
    total, labelled = 0.0, 0
    batch, classes, height, width = logits.shape
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                truth = int(label[b, y, x])
                if truth == ignore:
                    continue
                labelled += 1
                scores = logits[b, :, y, x].tolist()
                pixel = 0.0
                for c in range(classes):
                    if kind == "eq6":
                        p = math.exp(scores[c]) / sum(math.exp(s) for s in scores)
                        pixel -= float(weight[c]) * (c == truth) * math.log(p)
                    else:
                        p = 1 / (1 + math.exp(-scores[c]))
                        pixel -= float(weight[c]) * (math.log(p) if c == truth else math.log(1 - p)) / classes
                total += pixel * float(pixel_weight[b, y, x])
    return total / max(labelled, 1)


@pytest.mark.parametrize("kind", ["eq6", "bce"])
@pytest.mark.parametrize(
    ("batch", "classes", "grid", "ignore"), [(1, 1, (1, 1), 255), (3, 5, (3, 5), -1), (2, 300, (2, 3), 65535)]
)
def test_loss_equals_loops_over_eq_6(kind: str, batch: int, classes: int, grid: tuple[int, int], ignore: int) -> None:
    torch.manual_seed(0)
    logits = 2 * torch.randn(batch, classes, *grid)
    label = torch.randint(0, classes, (batch, *grid))
    label[torch.rand(batch, *grid) < 0.3] = ignore
    weight = class_weights(torch.rand(classes) < 0.5, 0.3)
    trust = torch.rand(batch, *grid)
    found = LOSSES[kind](logits, label, weight, ignore, trust).item()
    assert found == pytest.approx(_reference(kind, logits, label, weight, ignore, trust), abs=1e-5)
    found = LOSSES[kind](logits, label, weight, ignore).item()
    assert found == pytest.approx(_reference(kind, logits, label, weight, ignore, torch.ones_like(trust)), abs=1e-5)


def test_seen_classes_weigh_alpha_and_unseen_the_rest() -> None:
    torch.testing.assert_close(class_weights(torch.tensor([True, False, True]), 0.3), torch.tensor([0.3, 0.7, 0.3]))
    with pytest.raises(ValueError, match="bool"):
        class_weights(torch.tensor([0.0, 1.0]), 0.3)


def test_alpha_holds_back_a_batch_of_seen_classes_only() -> None:
    torch.manual_seed(0)
    logits, label = torch.randn(1, 4, 3, 3), torch.randint(0, 2, (1, 3, 3))
    weight = class_weights(torch.tensor([True, True, False, False]), 0.3)
    expected = 0.3 * F.cross_entropy(logits, label)
    torch.testing.assert_close(weighted_cross_entropy(logits, label, weight, 255), expected)


def test_bce_with_equal_weights_is_the_loss_of_sed() -> None:
    torch.manual_seed(0)
    logits, label = torch.randn(2, 6, 4, 4), torch.randint(0, 6, (2, 4, 4))
    target = F.one_hot(label, 6).permute(0, 3, 1, 2).float()
    expected = F.binary_cross_entropy_with_logits(logits, target)
    torch.testing.assert_close(weighted_bce(logits, label, torch.ones(6), 255), expected)


@pytest.mark.parametrize("kind", ["eq6", "bce"])
def test_all_ignored_gives_zero_with_a_gradient_of_zeros(kind: str) -> None:
    logits = (100 * torch.randn(2, 3, 4, 4)).requires_grad_()
    loss = LOSSES[kind](logits, torch.full((2, 8, 8), 255), torch.ones(3), 255)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == 0
    assert gradient.abs().max() == 0


@pytest.mark.parametrize("kind", ["eq6", "bce"])
def test_ignored_pixels_have_no_gradient_and_labelled_ones_do(kind: str) -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = LOSSES[kind](logits, torch.tensor([[[0, 255], [255, 2]]]), torch.ones(3), 255)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient[0].abs().sum(dim=0) > 0).tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize("kind", ["eq6", "bce"])
def test_class_255_counts_when_the_ignore_index_is_65535(kind: str) -> None:
    logits = torch.randn(1, 300, 1, 1, requires_grad=True)
    loss = LOSSES[kind](logits, torch.full((1, 1, 1), 255), torch.ones(300), 65535)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[0, 255, 0, 0] < 0


@pytest.mark.parametrize("kind", ["eq6", "bce"])
def test_logits_are_upsampled_to_the_label(kind: str) -> None:
    torch.manual_seed(0)
    logits, label = torch.randn(2, 3, 3, 5), torch.randint(0, 3, (2, 7, 11))
    large = F.interpolate(logits, size=(7, 11), mode="bilinear", align_corners=False)
    torch.testing.assert_close(
        LOSSES[kind](logits, label, torch.ones(3), 255), LOSSES[kind](large, label, torch.ones(3), 255)
    )


@pytest.mark.parametrize("size", [(7, 11), (3, 5)])
@pytest.mark.parametrize("kind", ["eq6", "bce"])
def test_gradients_are_those_of_the_plain_formula_whatever_the_chunks(
    kind: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 3, 5, requires_grad=True)
    label = torch.randint(-1, 5, (2, *size))
    weight, trust = torch.rand(5), torch.rand(2, *size)
    large = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    labelled = label >= 0
    if kind == "eq6":
        plain = F.cross_entropy(large, label, weight, ignore_index=-1, reduction="none")
    else:
        target = F.one_hot(label.clamp(min=0), 5).permute(0, 3, 1, 2).float()
        each = F.binary_cross_entropy_with_logits(large, target, reduction="none")
        plain = (each * weight[:, None, None]).mean(dim=1)
    (expected,) = torch.autograd.grad((plain * trust * labelled).sum() / labelled.sum(), logits)
    for elements in (1, 150, 1 << 22):
        monkeypatch.setattr("models.training.losses._CHUNK_ELEMENTS", elements)
        (found,) = torch.autograd.grad(LOSSES[kind](logits, label, weight, -1, trust), logits)
        torch.testing.assert_close(found, expected)


def test_config_chooses_the_loss() -> None:
    torch.manual_seed(0)
    logits, label, weight = torch.randn(1, 3, 2, 2), torch.randint(0, 3, (1, 2, 2)), torch.tensor([0.3, 0.7, 0.7])
    for kind in ("eq6", "bce"):
        config = LossConfig(kind=kind)
        found = segmentation_loss(config, logits, label, weight, ignore_index=255)
        torch.testing.assert_close(found, LOSSES[kind](logits, label, weight, 255))
    with pytest.raises(ValidationError):
        LossConfig(alpha=1.0)


def test_wrong_labels_are_refused_with_the_cause() -> None:
    logits, ones = torch.randn(1, 3, 2, 2), torch.ones(3)
    label = torch.zeros(1, 2, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="label 7 is neither"):
        weighted_cross_entropy(logits, label + 7, ones, 255)
    with pytest.raises(ValueError, match="ignore_index 2 is also a class id"):
        weighted_bce(logits, label, ones, 2)
    with pytest.raises(ValueError, match="int64"):
        weighted_bce(logits, label.int(), ones, 255)
    with pytest.raises(ValueError, match="class weights"):
        weighted_bce(logits, label, torch.ones(4), 255)
    with pytest.raises(ValueError, match="pixel weights"):
        weighted_bce(logits, label, ones, 255, torch.ones(1, 4, 4))
