"""What only lists, plans or refuses loads no network library: each command in a process of its own."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SLOW = ("torch", "ray", "scipy", "timm", "open_clip", "segment_anything", "zarr", "fsspec")
# Which of them a command has loaded when it ends, on the last line of standard error.
RUNNER = f"""
import atexit, sys
atexit.register(lambda: print("loaded", *[name for name in {SLOW} if name in sys.modules], file=sys.stderr))
from pipeline.cli.app import main
main()
"""


def ended(*arguments: str) -> tuple[int, list[str], str]:
    """Exit code, slow libraries and standard error of a command."""
    done = subprocess.run([sys.executable, "-c", RUNNER, *arguments], capture_output=True, text=True, check=False)
    *lines, loaded = done.stderr.splitlines()
    assert loaded.startswith("loaded"), done.stderr
    return done.returncode, loaded.split()[1:], "\n".join(lines)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of images and of labels, and a file of class names."""
    folder = tmp_path_factory.mktemp("own")
    for name in ("images", "labels"):
        (folder / name).mkdir()
    for index in range(3):
        image = np.full((20, 30, 3), 40 * index, np.uint8)
        Image.fromarray(image).save(folder / "images" / f"{index}.png")
        Image.fromarray(image[..., 0] % 2).save(folder / "labels" / f"{index}.png")
    (folder / "names.txt").write_text("cat\ndog\n")
    return folder


@pytest.mark.parametrize("command", [[], ["round"], ["init"], ["predict"], ["shards", "ls"], ["export", "model"]])
def test_help_loads_no_slow_library(command: list[str]) -> None:
    assert ended(*command, "--help") == (0, [], "")


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("preset", ["tiny", "base"])
def test_init_loads_no_slow_library(photos: Path, tmp_path: Path, preset: str, labelled: bool) -> None:
    labels = ["--labels", str(photos / "labels")] if labelled else []
    own = ["--images", str(photos / "images"), "--classes", str(photos / "names.txt"), *labels]
    code, loaded, err = ended("init", str(tmp_path / "run"), *own, "--preset", preset)
    assert (code, loaded) == (0, [])
    assert err == "" or (preset == "tiny" and err.startswith("caution: preset tiny knows only"))


@pytest.mark.parametrize(
    "command", [["plan", "--n", "2"], ["status"], ["shards", "ls"], ["shards", "keys"], ["shards", "verify"]]
)
def test_looking_at_a_finished_round_loads_no_slow_library(one_round: Path, command: list[str]) -> None:
    assert ended(*command, "--run", str(one_round)) == (0, [], "")


def test_showing_a_sample_loads_what_reads_arrays_and_no_network(one_round: Path, tmp_path: Path) -> None:
    where = ["--run", str(one_round), "--out", str(tmp_path / "shown.png")]
    code, loaded, err = ended("shards", "show", "target-000000", *where)
    assert (code, err) == (0, "")
    assert set(loaded) <= {"zarr", "fsspec"}  # zarr brings fsspec
    assert (tmp_path / "shown.png").is_file()


def test_a_round_with_nothing_to_do_loads_no_slow_library(one_round: Path) -> None:
    code, loaded, err = ended("round", "--n", "1", "--run", str(one_round))
    assert (code, loaded) == (0, [])
    assert "nothing to do" in err


TYPO = ["--set", "refine.gat.threshold=1"]
REFUSED = {
    "round": ["round", "--run", "{new}", *TYPO],
    "round of a run": ["round", "--run", "{run}", *TYPO],
    "round of a job": ["round", "--run", "{new}", "--submit", "http://127.0.0.1:9", *TYPO],
    "wrong value": ["round", "--run", "{new}", "--set", "refine.gate.threshold=high"],
    "stage": ["stage", "refine", "--run", "{run}", *TYPO],
    "plan": ["plan", "--run", "{run}", *TYPO],
    "init": ["init", "{new}", "--images", "{own}/images", "--classes", "{own}/names.txt", "--preset", "tiny", *TYPO],
    "pretrain": ["pretrain", "--out", "{new}/a.safetensors", "--set", "train.stepz=1"],
    "predict": ["predict", "{own}/images", "--classes", "cat", *TYPO],
    "export": ["export", "model", "--out", "{new}.pt2", "--classes", "cat", *TYPO],
    "refine": ["refine", "--masks", "{own}/labels", "--images", "{own}/images", "--out", "{new}", *TYPO],
    "replay": ["replay", "--round", "1", "--run", "{run}", "--set", "gat.threshold=1"],
    "doctor": ["doctor", *TYPO],
    "option": ["round", "--run", "{new}", "--threshold", "1"],
    "option of predict": ["predict", "{own}/images", "--clases", "cat"],
    "device": ["predict", "{own}/images", "--classes", "cat", "--device", "gpu"],
    "image": ["predict", "{own}/nowhere.jpg", "--classes", "cat"],
    "no classes": ["predict", "{own}/images"],
}


@pytest.mark.parametrize("command", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused_loads_no_slow_library_and_leaves_nothing(
    command: list[str], one_round: Path, photos: Path, tmp_path: Path
) -> None:
    new = tmp_path / "new"
    code, loaded, err = ended(*(word.format(new=new, run=one_round, own=photos) for word in command))
    assert (code, loaded) == (2, []), err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command", [["status"], ["plan"], ["shards", "ls"], ["shards", "verify"], ["evaluate"], ["replay", "--round", "1"]]
)
def test_a_run_that_is_not_there_is_noticed_without_a_slow_library(command: list[str], tmp_path: Path) -> None:
    code, loaded, err = ended(*command, "--run", str(tmp_path / "none"))
    assert (code, loaded) == (4, []), err


def test_a_wrong_setting_is_reported_although_another_command_holds_the_run(one_round: Path) -> None:
    """It is reported at once, and not after the other command has ended."""
    from pipeline.run.lock import holding

    with holding(one_round):
        code, _, err = ended("round", "--run", str(one_round), *TYPO)
        assert (code, "refine.gate" in err) == (2, True)
        assert ended("round", "--run", str(one_round))[0] == 75
