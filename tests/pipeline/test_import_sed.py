"""`import sed`: a whole checkpoint becomes our files, which say the same; then stage 1 starts from them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from stseg_setup import build_random_stseg
from torch import Tensor
from typer.testing import CliRunner

from jobs.inference.model import ModelConfig, embed_vocabulary, load_stseg
from models.presets import PRESETS, Preset
from models.stseg.decoder import CostAwareDecoder
from models.stseg.settings import ClipConfig, DeaConfig, DecoderConfig
from models.stseg.stseg import STSeg
from models.stseg.templates import prompt_templates
from models.weights.files import read_weights
from pipeline.cli.app import app
from shards.data.vocabulary import Vocabulary
from shards.files.atomic import sha256_file

CLIP = {
    "embed_dim": 32,
    "vision_cfg": {
        "timm_model_name": "convnext_atto",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
        "image_size": 96,
    },
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
DECODER = DecoderConfig(
    hidden_dim=32, decoder_dims=(16, 16, 8), guidance_proj_dims=(8, 8, 4), corr_proj_dims=(8, 8, 4), kernel_size=5
)


def invoke(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Preset]:
    """A preset in `base`'s place, in all but its sizes."""
    import open_clip

    config = tmp_path_factory.mktemp("open_clip") / "stseg_test_small.json"
    config.write_text(json.dumps(CLIP))
    open_clip.add_model_config(config)
    preset = PRESETS["base"].model_copy(
        update={
            "image_size": 96,
            "clip": ClipConfig(architecture="stseg_test_small"),
            "decoder": DECODER,
            "dea": DeaConfig(heads=4),
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "base", preset)
        yield preset


@pytest.fixture(scope="module")
def network(small_base: Preset) -> STSeg:
    torch.manual_seed(0)
    return build_random_stseg(small_base, dea=False).eval()


def sed_state(network: STSeg) -> dict[str, Tensor]:
    head = {f"sem_seg_head.predictor.transformer.{n}": v for n, v in network.decoder.state_dict().items()}
    return head | {f"sem_seg_head.predictor.clip_model.{n}": v for n, v in network.clip.clip.state_dict().items()}


@pytest.fixture(scope="module")
def imported(network: STSeg, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("sed")
    state = sed_state(network) | {"sem_seg_head.predictor.vis_prompt": torch.zeros(1)}
    torch.save({"model": state, "iteration": 80000}, folder / "sed.pth")
    code, out, err = invoke("import", "sed", str(folder / "sed.pth"), "--out", str(folder / "out"), "--json")
    assert code == 0, err
    return folder / "out", json.loads(out)


@torch.no_grad()
def test_the_converted_model_says_the_same(network: STSeg, imported: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = imported
    loaded = load_stseg(
        ModelConfig(
            preset="base",
            dea=False,
            clip_weights=folder / "clip.safetensors",
            weights=folder / "stage1.safetensors",
        )
    )
    vocabulary = Vocabulary.from_names(["cat", "grass"], templates=prompt_templates("openai80"))
    image = torch.rand(1, 3, 96, 96)
    before = network(image, embed_vocabulary(network, vocabulary)).logits_BKHW
    after = loaded(image, embed_vocabulary(loaded, vocabulary)).logits_BKHW
    assert before.std() > 0
    assert torch.equal(before, after)


def test_the_card_tells_checksums_and_what_was_left_out_and_the_next_commands(
    imported: tuple[Path, dict[str, Any]],
) -> None:
    folder, told = imported
    card = json.loads((folder / "card.json").read_text())
    assert (card["preset"], card["dea"]) == ("base", False)
    assert card["left_out"] == ["sem_seg_head.predictor.vis_prompt"]
    assert {name: facts["sha256"] for name, facts in card["files"].items()} == {
        name: sha256_file(folder / name) for name in ("clip.safetensors", "stage1.safetensors")
    }
    assert [command.split()[1] for command in told["next"]] == ["predict", "init", "pretrain"]
    assert all(str(folder / "clip.safetensors") in command for command in told["next"])


def test_weights_that_are_there_are_not_replaced_unasked(imported: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = imported
    again = ["import", "sed", str(folder.parent / "sed.pth"), "--out", str(folder)]
    assert invoke(*again)[0] == 3
    assert invoke(*again, "--overwrite")[0] == 0


def test_stage_1_takes_it_with_dea_at_its_identity(imported: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = imported
    config = ModelConfig(
        preset="base", clip_weights=folder / "clip.safetensors", weights=folder / "stage1.safetensors", adds_dea=True
    )
    model = load_stseg(config)
    assert model.dea is not None
    assert not model.dea.cross.value.weight.any()
    assert torch.equal(model.dea.cross.query.weight, torch.eye(32))
    head = read_weights(folder / "stage1.safetensors")
    assert isinstance(model.decoder, CostAwareDecoder)
    assert torch.equal(model.decoder.conv1.weight, head["decoder.conv1.weight"])
    with pytest.raises(ValueError, match=r"missing \['dea"):
        load_stseg(config.model_copy(update={"adds_dea": False}))


@pytest.mark.parametrize("part", ["clip_model.visual.head.proj.weight", "transformer.head.bias"])
def test_a_missing_tensor_is_exit_2_and_named(part: str, network: STSeg, tmp_path: Path) -> None:
    state = sed_state(network)
    del state[f"sem_seg_head.predictor.{part}"]
    torch.save(state, tmp_path / "sed.pth")
    code, _, err = invoke("import", "sed", str(tmp_path / "sed.pth"), "--out", str(tmp_path / "out"))
    assert (code, part.split(".", 1)[1] in err) == (2, True)
    assert not (tmp_path / "out").exists()


def test_sizes_that_no_preset_has_are_refused(network: STSeg, tmp_path: Path) -> None:
    state = sed_state(network)
    stem = "sem_seg_head.predictor.clip_model.visual.trunk.stem.0.weight"
    state[stem] = state[stem][:-1].clone()
    torch.save(state, tmp_path / "sed.pth")
    code, _, err = invoke("import", "sed", str(tmp_path / "sed.pth"), "--out", str(tmp_path / "out"))
    assert (code, "no preset has a CLIP" in err) == (2, True)


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"model": {"x": Evil(tmp_path / "ran")}}, tmp_path / "evil.pth")
    code, _, err = invoke("import", "sed", str(tmp_path / "evil.pth"), "--out", str(tmp_path / "out"))
    assert (code, "plain weights" in err) == (2, True)
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert (tmp_path / "ran").exists()  # it was a trap indeed


def test_pretrain_starts_from_a_head_without_dea(tmp_path: Path) -> None:
    from models.weights.files import WEIGHTS_FOLDER

    start, out = WEIGHTS_FOLDER / "stage1_baseline.safetensors", tmp_path / "stage1.safetensors"
    few = ["source.count=2", "train.steps=1", "train.source_per_step=1", "train.learning_rate=1e-6"]
    sets = [part for setting in few for part in ("--set", setting)]
    code, _, err = invoke("pretrain", "--init-from", str(start), "--out", str(out), *sets)
    assert code == 0, err
    before, after = read_weights(start), read_weights(out)
    assert any(name.startswith("dea.") for name in after)
    torch.testing.assert_close(
        {name: value.float() for name, value in after.items() if name in before},
        {name: value.float() for name, value in before.items()},
        atol=1e-3,
        rtol=1e-3,
    )
    code, _, err = invoke("pretrain", "--init-from", str(tmp_path / "none.safetensors"), "--out", str(out))
    assert (code, "which does not exist" in err) == (2, True)
