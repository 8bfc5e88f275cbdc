"""SAM's image encoder sees every image once, in whatever round and for whatever purpose."""

import shutil
from pathlib import Path

import pytest
from run_setup import SMALL, invoke, sets
from segment_anything.modeling import ImageEncoderViT
from torch import Tensor

from models.sam.encoder import encode_frames


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of frames that SAM's image encoder is given, call by call."""
    counts: list[int] = []

    def counted(encoder: ImageEncoderViT, frames: Tensor) -> Tensor:
        counts.append(len(frames))
        return encode_frames(encoder, frames)

    monkeypatch.setattr("models.sam.sam.encode_frames", counted)
    return counts


def test_the_start_encodes_every_image_once(weights: dict[str, str], tmp_path: Path, encoded: list[int]) -> None:
    run = tmp_path / "run"
    code, _, err = invoke("round", "--n", "0", "--run", str(run), "--backend", "inline", *sets({**SMALL, **weights}))
    assert code == 0, err
    assert sum(encoded) == sum(int(SMALL[f"data.{part}.count"]) for part in ("target", "source", "test", "validation"))


@pytest.mark.slow
def test_rounds_after_that_do_not_call_the_encoder(one_round: Path, tmp_path: Path, encoded: list[int]) -> None:
    run = tmp_path / "run"
    shutil.copytree(one_round, run, ignore=shutil.ignore_patterns("run.lock*", "locks"))
    code, _, err = invoke(
        *("round", "--n", "2", "--run", str(run), "--backend", "inline", "--set", "promotion.on_regression=keep")
    )
    assert code == 0, err
    assert (run / "rounds" / "002" / "report.json").is_file()
    assert encoded == []


def test_windows_are_new_images_to_sam(one_round: Path, tmp_path: Path, encoded: list[int]) -> None:
    run = tmp_path / "run"
    shutil.copytree(one_round, run, ignore=shutil.ignore_patterns("run.lock*", "locks"))
    windows = sets({"evaluate.windows": "2", "promotion.measure": "none"})
    assert invoke("stage", "evaluate", "--round", "1", "--run", str(run), "--backend", "inline", *windows)[0] == 0
    assert sum(encoded) == int(SMALL["data.test.count"]) * (2 * 2 + 1)
