"""The training-free network: the mean cosine with CLIP's temperature."""

import pytest
import torch
import torch.nn.functional as F

from models.presets import load_preset
from models.stseg.clip import build_clip
from models.stseg.cost_volume import cost_rows, unit_pixels
from models.stseg.stseg import STSeg
from models.stseg.training_free import MeanCosine


@pytest.fixture
def network() -> STSeg:
    torch.manual_seed(0)
    clip = build_clip(load_preset("tiny").clip)
    clip.clip.logit_scale.data.fill_(3.0)
    return STSeg(clip, None, MeanCosine(clip)).eval()


@torch.no_grad()
def test_logits_are_the_cost_volumes_mean_times_clips_temperature(network: STSeg) -> None:
    image_B3HW, text_KPD = torch.rand(2, 3, 96, 96), torch.randn(5, 3, 128)
    logits = network(image_B3HW, text_KPD).logits_BKHW
    features = network.clip(image_B3HW)
    cost_RPHW = cost_rows(unit_pixels(features.dense_BDHW), text_KPD)
    mean_KBHW = torch.unflatten(cost_RPHW.mean(dim=1), 0, (5, 2))
    finest = features.guidance[0].shape[-2:]
    expected = F.interpolate(torch.e**3 * mean_KBHW.transpose(0, 1), finest, mode="bilinear", align_corners=False)
    assert logits.shape == (2, 5, *finest)
    assert torch.allclose(logits, expected, atol=1e-5)


@torch.no_grad()
def test_rejecting_early_changes_nothing(network: STSeg) -> None:
    image_B3HW, text_KPD = torch.rand(1, 3, 96, 96), torch.randn(5, 3, 128)
    logits = network(image_B3HW, text_KPD).logits_BKHW
    assert torch.equal(network.reject_early(image_B3HW, text_KPD, top_k=1), logits)


@torch.no_grad()
def test_text_of_another_width_or_of_no_class_is_refused(network: STSeg) -> None:
    image_B3HW = torch.rand(1, 3, 96, 96)
    for text_KPD, what in ((torch.randn(2, 1, 64), "same CLIP"), (torch.randn(0, 1, 128), "no class")):
        with pytest.raises(ValueError, match=what):
            network(image_B3HW, text_KPD)
