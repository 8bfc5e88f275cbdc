"""Files of weights as people have them: wrappers are taken off, and what is no checkpoint is named as what it is."""

import argparse
import collections
import gzip
import io
import logging
import pickle
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.weights.files import load_weights_into, read_weights, why_no_weights, write_weights

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.int64)}


def prefixed(prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in STATE.items()}


def same(found: dict[str, Tensor]) -> bool:
    return found.keys() == STATE.keys() and all(torch.equal(found[name], STATE[name]) for name in STATE)


DETECTRON2 = {
    "model": collections.OrderedDict(STATE),
    "optimizer": {"state": {}, "param_groups": [{"lr": np.float64(1e-4)}]},
    "scheduler": {"base_lrs": [np.float64(1e-4)], "last": np.int64(3), "on": np.bool_(True), "name": np.str_("poly")},
    "iteration": 79999,
}
WRAPPED: dict[str, Any] = {
    "bare": STATE,
    "model": {"model": STATE, "args": argparse.Namespace(lr=0.1, out=Path("x")), "epoch": 3},
    "state_dict": {"state_dict": STATE, "best": np.float32(0.5), "history": np.zeros((2, 3))},
    "model_state_dict": {"model_state_dict": STATE, "optimizer_state_dict": {}},
    "detectron2": DETECTRON2,
    "DataParallel": prefixed("module."),
    "compiled": prefixed("_orig_mod."),
    "compiled within": {"a._orig_mod.weight": STATE["a.weight"], "b": STATE["b"]},
    "compiled DataParallel in a wrapper": {"state_dict": prefixed("module._orig_mod."), "epoch": 1},
    "Lightning": {"pytorch-lightning_version": "2.4.0", "state_dict": prefixed("model."), "callbacks": {}},
    "Lightning with an average": {"state_dict": {**prefixed("model."), **prefixed("ema_model.")}},
    "DeepSpeed": {"module": STATE, "ds_version": "1"},
    "an average alone": {"ema": STATE, "updates": 3},
    "model and average": {"model": STATE, "ema": {name: value + 1 for name, value in STATE.items()}},
    "SWA": {"n_averaged": torch.tensor(3), **prefixed("module.")},
    "wrapped twice": {"state_dict": {"model": STATE}},
    "with numbers": {**STATE, "epoch": 7},
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", WRAPPED)
def test_wrappers_and_prefixes_of_training_tools_are_taken_off(tmp_path: Path, name: str, legacy: bool) -> None:
    torch.save(WRAPPED[name], tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    assert why_no_weights(tmp_path / "a.pth") is None
    assert same(read_weights(tmp_path / "a.pth"))


def test_what_was_taken_off_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save({"state_dict": prefixed("module."), "epoch": 3}, tmp_path / "a.pth")
    write_weights(STATE, tmp_path / "plain.safetensors")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            read_weights(tmp_path / "a.pth")
            read_weights(tmp_path / "plain.safetensors")
    (line,) = caplog.messages
    assert "the entry 'state_dict' is read, not epoch; the prefix 'module.' is removed" in line


def test_names_that_share_no_prefix_stay(tmp_path: Path) -> None:
    state = {"model.a": torch.zeros(1), "head.b": torch.zeros(1)}
    torch.save(state, tmp_path / "a.pth")
    assert read_weights(tmp_path / "a.pth").keys() == state.keys()


def test_logs_of_mmengine_next_to_the_tensors_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("mmengine.logging.history_buffer")
    buffer = type("HistoryBuffer", (), {"__module__": module.__name__})
    module.HistoryBuffer = buffer  # type: ignore[attr-defined]
    for name in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    one = buffer()
    one.log = np.zeros(3)
    torch.save({"state_dict": STATE, "message_hub": {"loss": one}}, tmp_path / "a.pth")
    assert same(read_weights(tmp_path / "a.pth"))


def test_the_content_and_not_the_ending_decides_the_format(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_weights(STATE, tmp_path / "a.pth")
    torch.save(STATE, tmp_path / "a.safetensors")
    assert same(read_weights(tmp_path / "a.pth"))
    assert same(read_weights(tmp_path / "a.safetensors"))
    assert "a.pth: it is a safetensors file" in caplog.text
    assert "a.safetensors: it is a file of torch.save" in caplog.text


def zipped(names: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in names.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def saved(state: Any, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def tensors() -> bytes:
    from safetensors.torch import save

    return save(STATE)


OTHERS: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", r"is empty \(0 bytes\)"),
    "a web page": (lambda: b"\n<!DOCTYPE html><html>moved</html>", r"a web page \(HTML\)"),
    "a page of a store": (lambda: b"<?xml version='1.0'?><Error/>", "a web page"),
    "a pointer": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
        "a Git LFS pointer.*git lfs pull",
    ),
    "gzip": (lambda: gzip.compress(saved(STATE)), "a gzip archive"),
    "an index": (lambda: b'{"weight_map": {}}' + b" " * 50, "JSON text"),
    "an array": (lambda: b"\x93NUMPY\x01\x00", "a NumPy array"),
    "text": (lambda: b"weights", "neither a safetensors file nor one of torch.save"),
    "a cut checkpoint": (lambda: saved(STATE)[:-100], "cut short"),
    "a cut old checkpoint": (lambda: saved(STATE, legacy=True)[:-10], "damaged or cut short"),
    "a cut safetensors": (lambda: tensors()[:-5], "a safetensors file that is cut short: it has .* of .* bytes"),
    "a cut table": (lambda: tensors()[:40], "not a whole safetensors file: it is cut short"),
    "a zip of photos": (
        lambda: zipped({"photos/a.jpg": b"x"}),
        r"a zip archive and no checkpoint; it holds photos/a\.jpg",
    ),
    "TorchScript": (lambda: zipped({"a/data.pkl": b"x", "a/constants.pkl": b"x"}), "a TorchScript program"),
    "a pickle": (lambda: pickle.dumps({"a": 1}, protocol=2), "not hold a state dict|cannot be read as plain weights"),
    "a whole model": (
        lambda: saved(torch.nn.Linear(2, 2)),
        r"holds torch\.nn\..*Linear.*torch\.save\(model\.state_dict",
    ),
    "no tensors": (lambda: saved({"epoch": 3, "best": 0.5}), r"does not hold a state dict .* it holds epoch, best"),
    "a list": (lambda: saved([torch.zeros(1)]), "does not hold a state dict .* it holds list"),
    "NaN": (
        lambda: saved({"ok": torch.zeros(2), "bad": torch.tensor([1.0, float("nan")])}),
        "1 of 2 values of bad are NaN",
    ),
    "infinity": (
        lambda: saved({"bad": torch.tensor([float("inf")], dtype=torch.float16)}),
        "values of bad are NaN or infinity",
    ),
}


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_checkpoint_is_named_as_what_it_is(tmp_path: Path, name: str, ending: str) -> None:
    make, told = OTHERS[name]
    path = tmp_path / f"a.{ending}"
    path.write_bytes(make())
    with pytest.raises(ValueError, match=told) as caught:
        read_weights(path)
    text = str(caught.value)
    assert str(path) in text
    assert not any(word in text for word in ("weights_only", "\n", "\x1b", "http"))


def test_masks_of_attention_may_hold_infinity(tmp_path: Path) -> None:
    torch.save({"attn_mask": torch.full((2, 2), float("-inf")), "w": torch.zeros(1)}, tmp_path / "a.pth")
    assert read_weights(tmp_path / "a.pth").keys() == {"attn_mask", "w"}


def test_an_array_of_objects_runs_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"model": STATE, "more": np.array([Evil()], dtype=object)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="plain weights"):
        read_weights(tmp_path / "a.pth")
    assert not (tmp_path / "ran").exists()


def test_a_folder_and_a_missing_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder; name the file"):
        read_weights(tmp_path)
    with pytest.raises(ValueError, match="weights not found"):
        read_weights(tmp_path / "none.pth")


def test_weights_of_another_network_are_refused_in_one_line(tmp_path: Path) -> None:
    wide = {f"{index}.weight": torch.zeros(3, 3) for index in range(20)}
    torch.save({**wide, "0.bias": torch.zeros(2)}, tmp_path / "a.pth")
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(3, 3))
    with pytest.raises(ValueError, match="does not fit Sequential: missing: ") as caught:
        load_weights_into(module, tmp_path / "a.pth")
    text = str(caught.value)
    assert "missing: 1.bias; left over: 10.weight, 11.weight" in text
    assert "and 12 more; of another shape: 0.weight" in text
    assert "\n" not in text


def test_a_network_inside_a_larger_model_is_found_by_its_prefix(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module, other = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    state = {f"backbone.sam.{name}": value for name, value in module.state_dict().items()}
    torch.save({"state_dict": {**state, "loss.weight": torch.ones(1)}}, tmp_path / "part.ckpt")
    load_weights_into(other, tmp_path / "part.ckpt")
    assert torch.equal(other.weight, module.weight)
    assert "the prefix 'backbone.sam.' is removed, loss.weight left out" in caplog.text
    del state["backbone.sam.bias"]
    torch.save(state, tmp_path / "lacking.ckpt")
    with pytest.raises(ValueError, match="does not fit Linear: missing: bias, weight; left over"):
        load_weights_into(other, tmp_path / "lacking.ckpt")
