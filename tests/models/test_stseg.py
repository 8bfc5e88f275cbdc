"""The whole network: with and without DEA, checkpoints of the head."""

from pathlib import Path

import pytest
import torch
from stseg_setup import build_random_stseg
from torch._subclasses.fake_tensor import FakeTensorMode

from models.presets import PRESETS
from models.sam.sam import SamEmbedding
from models.stseg.stseg import STSeg, load_head
from models.weights.files import read_weights, write_weights

TINY = PRESETS["tiny"]


def _inputs(classes: int) -> tuple[torch.Tensor, torch.Tensor, SamEmbedding]:
    torch.manual_seed(1)
    sam = SamEmbedding(torch.randn(2, TINY.sam.embedding_dim, 16, 16), torch.tensor([[1.0, 1.0], [0.75, 1.0]]))
    return torch.rand(2, 3, 96, 96), torch.nn.functional.normalize(torch.randn(classes, 8, 128), dim=-1), sam


@pytest.mark.parametrize("dea", [True, False])
@pytest.mark.parametrize("classes", [1, 5])
def test_logits_have_a_map_for_each_class(dea: bool, classes: int) -> None:
    image, text, sam = _inputs(classes)
    output = build_random_stseg(TINY, dea=dea)(image, text, sam, with_aux=True)
    assert output.logits_BKHW.shape == (2, classes, 48, 48)
    assert [tuple(a.shape[-2:]) for a in output.aux] == [(12, 12), (24, 24)]


def test_a_model_with_dea_asks_for_sam() -> None:
    image, text, _ = _inputs(2)
    with pytest.raises(ValueError, match="dea: true"):
        build_random_stseg(TINY, dea=True)(image, text)


def test_without_dea_sam_changes_nothing() -> None:
    image, text, sam = _inputs(3)
    model = build_random_stseg(TINY, dea=False).eval()
    with torch.no_grad():
        assert torch.equal(model(image, text).logits_BKHW, model(image, text, sam).logits_BKHW)


@pytest.mark.slow
def test_the_base_preset_can_be_built() -> None:
    model = build_random_stseg(PRESETS["base"], dea=True)
    assert sum(p.numel() for p in model.decoder.parameters()) == 1_376_396  # SED's aggregator
    assert model.dea is not None
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        features = model.clip(torch.zeros(1, 3, 768, 768))
    assert features.dense_BDHW.shape == (1, 640, 24, 24)
    assert [tuple(g.shape[1:]) for g in features.guidance] == [(128, 192, 192), (256, 96, 96), (512, 48, 48)]


def test_a_head_comes_back_from_its_file(tmp_path: Path) -> None:
    image, text, sam = _inputs(3)
    torch.manual_seed(0)
    model, other = (build_random_stseg(TINY, dea=True).eval() for _ in range(2))
    other.clip.load_state_dict(model.clip.state_dict())
    write_weights(model.head_state(), tmp_path / "head.safetensors")
    load_head(other, tmp_path / "head.safetensors")
    with torch.no_grad():
        assert torch.equal(model(image, text, sam).logits_BKHW, other(image, text, sam).logits_BKHW)


def test_a_head_of_another_network_is_refused_by_name(tmp_path: Path) -> None:
    write_weights(build_random_stseg(TINY, dea=False).head_state(), tmp_path / "head.safetensors")
    with pytest.raises(ValueError, match=r"missing \['dea"):
        load_head(build_random_stseg(TINY, dea=True), tmp_path / "head.safetensors")


def test_a_pickle_with_code_is_refused(tmp_path: Path) -> None:
    torch.save({"model": STSeg}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="plain weights"):
        read_weights(tmp_path / "evil.pth")


def test_half_weights_are_half_the_size(tmp_path: Path) -> None:
    state = {"a": torch.randn(1000), "n": torch.arange(3)}
    write_weights(state, tmp_path / "full.safetensors")
    write_weights(state, tmp_path / "half.safetensors", half=True)
    assert (tmp_path / "half.safetensors").stat().st_size < 0.6 * (tmp_path / "full.safetensors").stat().st_size
    assert read_weights(tmp_path / "half.safetensors")["n"].dtype == torch.int64


@pytest.mark.slow
def test_early_rejection_with_all_classes_kept_changes_nothing() -> None:
    image, text, sam = _inputs(5)
    torch.manual_seed(0)
    model = build_random_stseg(TINY, dea=True).eval()
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        everything = model(image, text, sam).logits_BKHW
        torch.testing.assert_close(model.reject_early(image, text, sam, top_k=5), everything, atol=1e-4, rtol=1e-4)
        rejected = model.reject_early(image, text, sam, top_k=1)
    assert rejected.shape == everything.shape
    assert rejected.isfinite().all()


def test_a_head_of_other_sizes_is_refused_in_one_line(tmp_path: Path) -> None:
    model = build_random_stseg(TINY, dea=True)
    state = {name: value[..., None].clone() for name, value in model.head_state().items()}
    write_weights(state, tmp_path / "head.safetensors")
    with pytest.raises(ValueError, match=r"shapes differ: .* for .* and \d+ more$") as caught:
        load_head(model, tmp_path / "head.safetensors")
    assert "\n" not in str(caught.value)
