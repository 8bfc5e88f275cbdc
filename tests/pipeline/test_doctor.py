"""`doctor`: what is here, what is missing and how to get it, without a network."""

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from models.weights.files import write_weights
from pipeline.cli.app import app


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, and empty caches."""

    def refuse(*_: object) -> None:
        raise AssertionError("doctor went online")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in ("HF_HUB_CACHE", "HF_HOME", "TORCH_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))


def doctor(*arguments: str) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(app, ["doctor", "--json", *arguments])
    return result.exit_code, json.loads(result.stdout)


def states(found: dict[str, Any]) -> list[str]:
    return [entry["state"] for entry in found["weights"]]


def some_weights(path: Path) -> Path:
    write_weights({"weight": torch.zeros(2)}, path)
    return path


def test_the_default_has_all_it_needs(tmp_path: Path) -> None:
    code, found = doctor("--folder", str(tmp_path / "runs" / "new"))
    assert (code, found["ready"], states(found)) == (0, True, ["shipped"] * 3)
    assert found["next"] == ["stseg-pipeline round --n 3"]
    assert found["versions"]["torch"] == torch.__version__.split("+")[0]
    assert found["torch"]["threads"] == torch.get_num_threads()
    assert (found["disk"]["folder"], found["disk"]["free_gb"] > 0) == (str(tmp_path), True)
    assert found["ray"]["can_start"] is (found["ray"]["why_not"] is None)


def test_the_full_size_model_without_weights_is_exit_4_and_says_where_to_get_each() -> None:
    code, found = doctor("--preset", "base")
    assert (code, found["ready"], states(found)) == (4, False, ["missing"] * 3)
    clip, sam, head = found["next"]
    assert "create_model('convnext_base_w_320', pretrained='laion_aesthetic_s13b_b82k_augreg')" in clip
    assert "sam_vit_b_01ec64.pth" in sam
    assert "stseg-pipeline import sed" in head
    assert all("--set model." in cure for cure in found["next"])


@pytest.mark.parametrize("preset", ["base", "large"])
@pytest.mark.parametrize("dea", ["true", "false"])
def test_each_missing_file_is_one_line_with_the_page_of_its_authors(preset: str, dea: str) -> None:
    code, found = doctor("--preset", preset, "--set", f"model.dea={dea}")
    assert code == 4
    for line, page in zip(
        found["next"],
        [
            "https://huggingface.co/laion/CLIP-convnext_",
            "https://github.com/facebookresearch/segment-anything#model-checkpoints",
            "https://github.com/xb534/SED",
        ],
        strict=True,
    ):
        assert line.startswith("missing: ")
        assert f"get it from {page}" in line
        assert re.search(r", then (stseg-pipeline import sed .*)?--set model\.\w+=", line)
        assert "\n" not in line


def test_files_in_caches_are_found_and_the_next_command_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = tmp_path / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(hub))
    model = "models--laion--CLIP-convnext_base_w_320-laion_aesthetic-s13B-b82K-augreg"
    clip = some_weights(hub / model / "snapshots" / "abc" / "open_clip_model.safetensors")
    sam = tmp_path / ".cache" / "torch" / "hub" / "checkpoints" / "sam_vit_b_01ec64.pth"
    sam.parent.mkdir(parents=True)
    torch.save({"weight": torch.zeros(2)}, sam)
    head = some_weights(tmp_path / "head.safetensors")
    code, found = doctor("--preset", "base", "--set", f"model.stage1_weights={head}")
    assert (code, states(found)) == (0, ["cached", "cached", "set"])
    assert all(f"={path}" in found["next"][0] for path in (clip, sam, head))


def test_a_file_that_is_not_there_or_no_weights_is_told(tmp_path: Path) -> None:
    (tmp_path / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    clip, sam = tmp_path / "pointer.safetensors", tmp_path / "none.pth"
    code, found = doctor("--set", f"model.clip_weights={clip}", "--set", f"model.sam_weights={sam}")
    assert (code, states(found)) == (4, ["damaged", "missing", "shipped"])
    assert "holds no weights" in found["next"][0]
    assert found["weights"][1]["looked"] == [str(sam)]


def test_it_reads_as_text_and_refuses_presets_that_do_not_exist() -> None:
    result = CliRunner().invoke(app, ["doctor", "--preset", "large", "--set", "model.dea=false"])
    assert (result.exit_code, "next:" in result.stdout, "sam_vit_l" in result.stdout) == (4, True, True)
    assert "model.dea=false" in result.stdout or "stage1.safetensors" in result.stdout
    assert CliRunner().invoke(app, ["doctor", "--preset", "huge"]).exit_code == 2
