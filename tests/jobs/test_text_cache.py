"""Text embeddings on disk: a second start never runs the text tower, and a file that is not right is made again."""

import logging
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from open_clip.transformer import Transformer
from safetensors.torch import save_file
from torch import Tensor, nn
from training_setup import QUICK, training_setup

import jobs.inference.text_cache
from jobs.inference.model import embed_vocabulary
from jobs.inference.text_cache import cached_text_embeddings, embeddings_digest
from jobs.run import RunRef, student_weights
from jobs.stages import evaluate, teacher
from jobs.training.loop import SingleProcess, train_model
from models.presets import PRESETS
from models.stseg.clip import DenseClip, build_clip
from models.stseg.text import text_embeddings
from pipeline.config import resolve_config
from shards.data.vocabulary import Vocabulary
from shards.formats.layout import RunLayout

VOCABULARY = Vocabulary.from_names(["red ring", "sand, beach"], templates=("a photo of a {}", "a {}"))


@pytest.fixture
def clip() -> DenseClip:
    """A tiny CLIP with random weights."""
    torch.manual_seed(0)
    return build_clip(PRESETS["tiny"].clip)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows with every call of any text tower."""
    made: list[int] = []
    forward: Any = Transformer.forward

    def counted(self: Transformer, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        made.append(len(x))
        encoded: Tensor = forward(self, x, attn_mask)
        return encoded

    monkeypatch.setattr(Transformer, "forward", counted)
    return made


def test_second_start_reads_the_same_bits_and_never_calls_the_tower(
    tmp_path: Path, clip: DenseClip, calls: list[int]
) -> None:
    model: Any = SimpleNamespace(clip=clip)
    first = embed_vocabulary(model, VOCABULARY, tmp_path / "text")
    assert calls
    torch.testing.assert_close(first, text_embeddings(clip, VOCABULARY))  # with more threads sums differ in a last bit
    calls.clear()
    assert torch.equal(embed_vocabulary(model, VOCABULARY, tmp_path / "text"), first)
    assert calls == []
    digest = embeddings_digest(clip, VOCABULARY)
    assert {path.name for path in (tmp_path / "text").iterdir()} == {f"{digest}.safetensors", f"{digest}.json"}
    embed_vocabulary(model, VOCABULARY)
    assert calls


def test_bits_do_not_depend_on_the_threads_of_the_stage(tmp_path: Path, clip: DenseClip) -> None:
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(cached_text_embeddings(clip, VOCABULARY, tmp_path / str(threads)))
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    assert torch.equal(*found)


@pytest.mark.slow
def test_stages_of_a_run_share_the_embeddings(tmp_path: Path, calls: list[int]) -> None:
    task, job = training_setup(tmp_path, QUICK.model_copy(update={"steps": 1}))
    train_model(task, job, SingleProcess())
    assert calls
    (stored,) = RunLayout(tmp_path).text_embeddings.glob("*.safetensors")
    written = stored.stat().st_mtime_ns
    calls.clear()
    config = resolve_config({}, [f"model.clip_weights={job.model.clip_weights}"], where="--set")
    ref = RunRef(RunLayout(tmp_path), config, round=1)
    for weights in (student_weights(ref, 0), student_weights(ref, 1)):
        weights.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(task.output, weights)
    teacher.load(replace(ref, part="teacher"))
    evaluate.load(replace(ref, part="evaluate"))
    train_model(task, job, SingleProcess())
    assert calls == []
    assert stored.stat().st_mtime_ns == written


def test_digest_follows_names_templates_weights_and_nothing_else(clip: DenseClip) -> None:
    words, templates = ["red ring", "sand, beach"], VOCABULARY.templates
    same = Vocabulary.from_names(words, seen=["red ring"], templates=templates)
    others = [
        Vocabulary.from_names(["red ring", "sand"], templates=templates),
        Vocabulary.from_names(["sand, beach", "red ring"], templates=templates),
        Vocabulary.from_names(words, templates=templates[::-1]),
    ]
    digest = embeddings_digest(clip, VOCABULARY)
    assert embeddings_digest(clip, same) == digest
    found = {embeddings_digest(clip, other) for other in others}
    with torch.no_grad():
        next(clip.clip.visual.parameters()).add_(1)
        assert embeddings_digest(clip, VOCABULARY) == digest
        clip.clip.ln_final.bias.add_(1)
    assert len(found | {digest, embeddings_digest(clip, VOCABULARY)}) == 5


def test_new_code_version_reads_no_old_file(clip: DenseClip, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = embeddings_digest(clip, VOCABULARY)
    monkeypatch.setattr(jobs.inference.text_cache, "TEXT_VERSION", 999)
    assert embeddings_digest(clip, VOCABULARY) != digest


def damages(right: Tensor) -> dict[str, dict[str, Tensor] | bytes]:
    """Return what may be in a file instead of the right embeddings."""
    nan = right.clone()
    nan[1, 1, 0] = torch.nan
    return {
        "last bit": {"text_KPD": torch.nextafter(right, torch.zeros(()))},
        "cut": b"\x10\x00",
        "empty": b"",
        "shape": {"text_KPD": right[:1].clone()},
        "type": {"text_KPD": right.half()},
        "name": {"other": right},
        "nan": {"text_KPD": nan},
        "length": {"text_KPD": right * 1.1},
    }


@pytest.mark.parametrize("kind", sorted(damages(torch.ones(2, 2, 1))))
def test_damaged_file_is_made_again(
    tmp_path: Path, clip: DenseClip, kind: str, calls: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    right = cached_text_embeddings(clip, VOCABULARY, tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    whole, damage = path.read_bytes(), damages(right.clone())[kind]
    if isinstance(damage, bytes):
        path.write_bytes(damage)
    else:
        save_file(damage, path)
    calls.clear()
    with caplog.at_level(logging.WARNING):
        assert torch.equal(cached_text_embeddings(clip, VOCABULARY, tmp_path), right)
    assert calls
    assert "made again" in caplog.text
    assert path.read_bytes() == whole


def test_two_starts_at_once_leave_one_right_file(
    tmp_path: Path, clip: DenseClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    both_embedded = threading.Barrier(2, timeout=30)

    def slowly(clip: DenseClip, vocabulary: Vocabulary) -> Tensor:
        found = text_embeddings(clip, vocabulary)
        both_embedded.wait()
        return found

    monkeypatch.setattr(jobs.inference.text_cache, "text_embeddings", slowly)
    found: list[Tensor] = []
    threads = [
        threading.Thread(target=lambda: found.append(cached_text_embeddings(clip, VOCABULARY, tmp_path)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors", ".json"}
    monkeypatch.undo()
    assert all(torch.equal(cached_text_embeddings(clip, VOCABULARY, tmp_path), one) for one in found)


def test_folder_that_cannot_be_written_costs_a_warning(
    tmp_path: Path, clip: DenseClip, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "text").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        found = cached_text_embeddings(clip, VOCABULARY, tmp_path / "text")
    torch.testing.assert_close(found, text_embeddings(clip, VOCABULARY))
    assert "not kept" in caplog.text


def test_embeddings_that_were_read_can_be_trained_against(tmp_path: Path, clip: DenseClip) -> None:
    for _ in range(2):
        layer = nn.Linear(128, 3)
        layer(cached_text_embeddings(clip, VOCABULARY, tmp_path)[torch.tensor([1, 0])]).sum().backward()
        assert layer.weight.grad is not None


def test_a_file_that_came_with_the_record_of_another_one_is_made_again(tmp_path: Path, clip: DenseClip) -> None:
    other = Vocabulary.from_names(["ring", "sand"], templates=VOCABULARY.templates)
    wanted = cached_text_embeddings(clip, VOCABULARY, tmp_path)
    cached_text_embeddings(clip, other, tmp_path)
    for suffix in (".safetensors", ".json"):
        source = tmp_path / f"{embeddings_digest(clip, other)}{suffix}"
        (tmp_path / f"{embeddings_digest(clip, VOCABULARY)}{suffix}").write_bytes(source.read_bytes())
    assert torch.equal(cached_text_embeddings(clip, VOCABULARY, tmp_path), wanted)
