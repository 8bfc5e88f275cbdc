"""`export model`: the file says what the model says, or there is no file."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from stseg_setup import build_random_stseg
from torch import Tensor
from typer.testing import CliRunner

import pipeline.commands.export
from models.interop.export import FixedVocabulary, check_format, read_exported, write_exported
from models.presets import PRESETS
from models.sam.sam import SamEncoder, build_sam
from pipeline.cli.app import app
from shards.files.atomic import sha256_file


def invoke(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.slow
def test_a_model_with_sam_inside_runs_from_its_file_as_before(tmp_path: Path) -> None:
    out = tmp_path / "model.pt2"
    code, text, err = invoke("export", "model", "--classes", "grass, red ring", "--out", str(out), "--json")
    assert code == 0, err
    card = json.loads((tmp_path / "model.pt2.json").read_text())
    assert {**card, "out": str(out)} == json.loads(text)
    assert card["largest_error"] <= 1e-4
    assert (card["classes"], card["sha256"]) == (["grass", "red ring"], sha256_file(out))
    image = torch.rand(*card["input"]["shape"])
    exported = read_exported(out, "pt2")
    assert list(exported(image).shape) == card["output"]["shape"] == [1, 2, 48, 48]
    assert not torch.equal(exported(image), exported(1 - image))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt2", "model.pt2.json"]


def test_an_export_that_says_something_else_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[torch.nn.Module] = []

    def write(module: torch.nn.Module, image: Tensor, path: Path, kind: str) -> None:
        kept.append(module)
        path.write_bytes(b"program")

    def read(error: float) -> Callable[..., Callable[[Tensor], Tensor]]:
        return lambda path, kind: lambda image: (kept[-1](image) + error).detach()

    arguments = ["export", "model", "--classes", "grass", "--set", "model.dea=false", "--out", str(tmp_path / "m.pt2")]
    monkeypatch.setattr(pipeline.commands.export, "write_exported", write)
    monkeypatch.setattr(pipeline.commands.export, "read_exported", read(2e-4))
    code, _, err = invoke(*arguments)
    assert (code, "differs from the running one by 2.0" in err) == (4, True)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(pipeline.commands.export, "read_exported", read(5e-5))
    assert invoke(*arguments)[0] == 0


def test_onnx_without_its_packages_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name.startswith("onnx") else find(name, *rest)
    )
    code, _, err = invoke("export", "model", "--classes", "grass", "--out", str(tmp_path / "m.onnx"))
    command = "pip install onnx onnxscript onnxruntime"
    assert (code, "needs onnx, onnxscript, onnxruntime" in err, command in err) == (2, True, True)


@pytest.mark.parametrize(("name", "form"), [("m.bin", "pt2"), ("m.pt2", "onnx2"), ("m", "")])
def test_endings_and_formats_that_do_not_fit_are_exit_2(name: str, form: str, tmp_path: Path) -> None:
    more = ["--format", form] if form else []
    assert invoke("export", "model", "--classes", "grass", "--out", str(tmp_path / name), *more)[0] == 2


@torch.no_grad()
def test_onnx_says_what_the_model_says(tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    torch.manual_seed(0)
    text = torch.nn.functional.normalize(torch.randn(2, 8, 128), dim=-1)
    tiny = PRESETS["tiny"]
    module = FixedVocabulary(build_random_stseg(tiny, dea=True), text, SamEncoder(build_sam(tiny.sam)), tiny).eval()
    image = torch.rand(1, 3, module.side, module.side)
    kind = check_format("onnx", module)
    write_exported(module, image, tmp_path / "m.onnx", kind)
    torch.testing.assert_close(read_exported(tmp_path / "m.onnx", kind)(image), module(image), atol=1e-4, rtol=0)


def test_a_model_with_dea_needs_its_encoder() -> None:
    tiny = PRESETS["tiny"]
    with pytest.raises(ValueError, match="no encoder was given"):
        FixedVocabulary(build_random_stseg(tiny, dea=True), torch.randn(2, 8, 128), None, tiny)
