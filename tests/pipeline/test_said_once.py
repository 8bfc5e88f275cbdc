"""Results go to standard output, progress to standard error, and who sees both reads nothing twice."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from run_setup import SMALL, invoke, sets

from jobs.cluster.connection import ROOT

COMMAND = [
    sys.executable,
    "-c",
    "from pipeline.cli.app import main; main()",
    "round",
    "--n",
    "0",
    "--backend",
    "inline",
]


@pytest.mark.slow
def test_scores_are_results_and_are_said_once_where_both_streams_are_read(
    weights: dict[str, str], tmp_path: Path
) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    run = ["--run", str(tmp_path / "run"), *sets({**SMALL, **weights})]
    both = subprocess.run(
        [*COMMAND, *run], cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
    )
    assert [line for line, times in Counter(both.stdout.splitlines()).items() if times > 1] == []
    assert both.stdout.count("mIoU") == 1 + both.stdout.count("plain baseline: mIoU")
    apart = subprocess.run([*COMMAND, *run], cwd=ROOT, env=environ, capture_output=True, text=True, check=True)
    assert "mIoU" in apart.stdout


def test_images_are_counted_while_they_are_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.display._SILENCES_S", ((float("inf"), 0.0),))
    images = tmp_path / "images"
    images.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(images / name)
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    classes = str(tmp_path / "names.txt")
    own = ["--images", str(images), "--classes", classes, "--preset", "tiny"]
    code, _, err = invoke("init", str(tmp_path / "run"), *own)
    assert code == 0, err
    assert "hashing: 2/2 images" in err
