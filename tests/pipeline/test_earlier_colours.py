"""Runs of earlier versions, with colours by index, stay valid and are repaired with these; masks are called masks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from run_setup import invoke

import pipeline.commands.inspect as inspecting
import shards.data.vocabulary as vocabularies
from benchmarks.chaos_compare import contents, differences
from models.presets import SAM_TINY
from models.sam.sam import build_sam
from models.weights.files import write_weights
from pipeline.commands.pretrain import _in_earlier_colours
from pipeline.report.drawing import panels
from pipeline.run.verify import verify_run
from shards.data.colours import colours_of_indices, colours_of_names
from shards.data.vocabulary import Vocabulary
from shards.formats.layout import RunLayout


def by_index(names: list[str]) -> list[tuple[int, int, int]]:
    """Return the colours that earlier versions gave."""
    return colours_of_indices(len(names))


def refine(folder: Path) -> tuple[int, str, str]:
    arguments = ["refine", "--backend", "inline", "--set", f"model.sam_weights={folder / 'sam.safetensors'}"]
    return invoke(
        *arguments, "--masks", str(folder / "masks"), "--images", str(folder / "images"), "--out", str(folder / "out")
    )


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of masks as an earlier version would have made it."""
    torch.manual_seed(0)
    write_weights(build_sam(SAM_TINY).state_dict(), tmp_path / "sam.safetensors")
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(tmp_path / "images" / "a.png")
    label = np.full((40, 60), 255, np.uint8)
    label[5:20, 10:40], label[30:38, :] = 0, 2
    Image.fromarray(label).save(tmp_path / "masks" / "a.png")
    with monkeypatch.context() as patched:
        patched.setattr(vocabularies, "colours_of_names", by_index)
        assert refine(tmp_path)[0] == 0
    return tmp_path


def test_a_run_with_colours_by_index_is_done_and_whole(earlier: Path) -> None:
    code, _, err = refine(earlier)
    assert code == 0
    assert "nothing to do" in err
    verdict = verify_run(earlier / "out")
    assert (verdict.faults, verdict.stale, verdict.undone) == ((), (), 0)


def test_repair_makes_the_vocabulary_again_in_the_colours_of_its_run(earlier: Path) -> None:
    run = earlier / "out"
    wanted = contents(run)
    colours = [entry.colour for entry in Vocabulary.load(run / "vocabulary.json").classes]
    assert colours == colours_of_indices(len(colours))
    (run / "vocabulary.json").unlink()
    code, out, err = invoke("shards", "repair", "--run", str(run), "--backend", "inline")
    assert code == 0, out + err
    assert differences(wanted, contents(run)) == []


def test_repair_makes_a_new_runs_vocabulary_again_in_the_colours_of_its_names(earlier: Path) -> None:
    run = earlier / "out"
    (run.rename(earlier / "set aside"))
    assert refine(earlier)[0] == 0
    wanted = contents(run)
    found = Vocabulary.load(run / "vocabulary.json")
    assert [entry.colour for entry in found.classes] == colours_of_names(found.names)
    (run / "vocabulary.json").unlink()
    assert invoke("shards", "repair", "--run", str(run), "--backend", "inline")[0] == 0
    assert differences(wanted, contents(run)) == []


def test_show_titles_the_users_masks_as_masks(earlier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []

    def noted(columns: list[tuple[str, np.ndarray]], *, side: int) -> Image.Image:
        titles.extend(title for title, _ in columns)
        return panels(columns, side=side)

    monkeypatch.setattr(inspecting, "panels", noted)
    where = ("--run", str(earlier / "out"), "--out", str(earlier / "shown.png"))
    assert invoke("shards", "show", "a", *where, "--opacity", "1")[0] == 0
    assert titles == ["image", "mask", "refined"]
    first = (earlier / "shown.png").read_bytes()
    assert invoke("shards", "show", "a", *where)[0] == 0
    assert (earlier / "shown.png").read_bytes() != first


def test_stage_1_goes_on_in_the_colours_that_its_folder_has(tmp_path: Path) -> None:
    layout, wanted = RunLayout(tmp_path), Vocabulary.from_names(["grass", "red ring"])
    assert _in_earlier_colours(wanted, layout) == wanted
    by_ids = wanted.with_colours(colours_of_indices(2))
    by_ids.save(layout.vocabulary)
    assert _in_earlier_colours(wanted, layout).digest == by_ids.digest
    for others in (["grass"], ["grass", "stone"]):
        assert _in_earlier_colours(Vocabulary.from_names(others), layout) == Vocabulary.from_names(others)
    layout.vocabulary.write_bytes(b"{")
    assert _in_earlier_colours(wanted, layout) == wanted
