"""Faulty masks, labels and images: left out by sample, and taken up once the user has replaced them."""

import io
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from run_setup import invoke, snapshot

from jobs.stages import refine_masks
from models.presets import SAM_TINY
from models.sam.sam import build_sam
from models.weights.files import write_weights
from pipeline.run import replaced
from pipeline.run.verify import verify_run
from shards.data.label_reader import LabelReader
from shards.data.plan import Plan
from shards.files.atomic import sha256_path
from shards.files.locks import RunLock
from shards.formats.layout import RunLayout
from shards.formats.tar import index_tar
from shards.storage.store import MIRROR_VARIABLE

KEYS = ("a", "b", "c", "d")
_numbers = itertools.count()


class Killed(BaseException):
    """The process ends here."""


def png(values: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format="PNG")
    return buffer.getvalue()


def mask() -> NDArray[np.uint8]:
    label = np.full((40, 60), 255, np.uint8)
    label[5:20, 10:40], label[30:38, :] = 0, 2
    return label


GOOD, OTHER_SIZE = png(mask()), png(mask()[:20])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four images with masks, of which that of `b` has another size."""
    torch.manual_seed(0)
    write_weights(build_sam(SAM_TINY).state_dict(), tmp_path / "sam.safetensors")
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    rng = np.random.default_rng(0)
    for key in KEYS:
        (tmp_path / "images" / f"{key}.png").write_bytes(png(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)))
        (tmp_path / "masks" / f"{key}.png").write_bytes(GOOD)
    (tmp_path / "masks" / "b.png").write_bytes(OTHER_SIZE)
    return tmp_path


def refine(root: Path, *more: str, out: str | None = None) -> dict[str, Any]:
    """Refine the masks in shards of two; return what the command says, with `code` and `err`."""
    arguments = ["refine", "--backend", "inline", "--json", "--set", f"model.sam_weights={root / 'sam.safetensors'}"]
    arguments += ["--masks", str(root / "masks"), "--images", str(root / "images"), "--set", "shard_size=2"]
    code, text, err = invoke(*arguments, "--out", out or str(root / "out"), *more)
    return {**(json.loads(text) if code == 0 else {}), "code": code, "err": err}


def reasons(found: dict[str, Any]) -> dict[str, str]:
    return {drop["key"]: drop["reason"] for drop in found["quarantined"]}


def keys_in_tars(run: Path) -> list[str]:
    return [key for tar in sorted(run.glob("rounds/001/pseudo/*.tar")) for key in index_tar(tar).places]


def results(run: Path) -> dict[str, str]:
    return {str(tar.relative_to(run)): sha256_path(tar) for tar in run.glob("rounds/001/*/*.tar")}


@pytest.fixture
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The tars of a run that never had a faulty mask."""
    other = Path(shutil.copytree(root, tmp_path_factory.mktemp("whole") / "root"))
    (other / "masks" / "b.png").write_bytes(GOOD)
    assert refine(other)["code"] == 0
    return results(other / "out")


def test_a_faulty_mask_costs_its_sample_alone_and_its_mended_file_is_taken_up(
    root: Path, whole: dict[str, str]
) -> None:
    found = refine(root)
    assert (found["code"], found["refined"], reasons(found)) == (0, 3, {"b": "label_of_other_size"})
    assert str(root / "masks" / "b.png") in found["quarantined"][0]["detail"]
    assert any("left out: 1 of 4 target labels of" in line for line in found["left_out"])
    run = root / "out"
    assert keys_in_tars(run) == ["a", "c", "d"]
    files = snapshot(run)
    assert "nothing to do" in refine(root)["err"]

    (root / "masks" / "b.png").write_bytes(GOOD)
    code, text, err = invoke("plan", "--run", str(run), "--n", "1", "--json")
    told = [row["because"] for row in json.loads(text) if row["because"]]
    assert (code, told[0]) == (0, "1 label was replaced: b.png"), err
    assert json.loads(invoke("status", "--run", str(run), "--json")[1])["replaced"] == ["1 label was replaced: b.png"]
    assert "1 label was replaced: b.png" in invoke("status", "--run", str(run))[1]
    assert snapshot(run) == files

    found = refine(root)
    assert (found["code"], found["refined"], found["quarantined"]) == (0, 4, [])
    assert "1 label was replaced: b.png" in found["err"]
    assert results(run) == whole
    now = snapshot(run)
    untouched = [name for name in files if "000001" in name]
    assert {name: now[name] for name in untouched} == {name: files[name] for name in untouched}
    assert sorted(file.name for file in (run / "plan").iterdir()) == ["000000.1.json", "000001.json"]
    assert "nothing to do" in refine(root)["err"]
    assert snapshot(run) == now
    assert verify_run(run).faults == ()


def test_a_mended_mask_that_is_faulty_again_is_named_anew_and_then_left_alone(root: Path) -> None:
    refine(root)
    (root / "masks" / "b.png").write_bytes(GOOD[:80])
    assert reasons(refine(root)) == {"b": "label_damaged"}
    files = snapshot(root / "out")
    found = refine(root)
    assert ("nothing to do" in found["err"], reasons(found)) == (True, {"b": "label_damaged"})
    assert snapshot(root / "out") == files
    (root / "masks" / "b.png").write_bytes(GOOD)
    found = refine(root)
    assert (found["code"], found.get("refined")) == (0, 4), found["err"]
    assert Plan.load(root / "out" / "plan.json").shard("000000").revision == 2


def test_a_mask_that_held_no_class_is_taken_up_once_it_is_mended(root: Path, whole: dict[str, str]) -> None:
    (root / "masks" / "b.png").write_bytes(png(np.full((40, 60), 255, np.uint8)))
    assert reasons(refine(root)) == {"b": "all_ignored"}
    assert "nothing to do" in refine(root)["err"]
    (root / "masks" / "b.png").write_bytes(GOOD)
    found = refine(root)
    assert ("1 label was replaced: b.png" in found["err"], found["refined"]) == (True, 4)
    assert results(root / "out") == whole


def test_a_mask_for_an_image_that_had_none_and_a_mended_image_are_taken_up(root: Path, whole: dict[str, str]) -> None:
    (root / "masks" / "b.png").unlink()
    image = root / "images" / "c.png"
    good = image.read_bytes()
    image.write_bytes(good[:200])
    found = refine(root)
    assert (found["without_mask"], list(reasons(found)), found["refined"]) == (["b"], ["c"], 2)
    (root / "masks" / "b.png").write_bytes(GOOD)
    image.write_bytes(good)
    found = refine(root)
    assert "1 image was replaced: c.png; 1 label was replaced: b.png" in found["err"]
    assert (found["refined"], found["quarantined"], found["without_mask"]) == (4, [], [])
    assert results(root / "out") == whole


def test_a_mask_in_good_standing_that_changed_is_not_noticed_until_it_is_read(root: Path) -> None:
    (root / "masks" / "b.png").write_bytes(GOOD)
    refine(root)
    files = snapshot(root / "out")
    (root / "masks" / "a.png").write_bytes(png(np.roll(mask(), 3)))
    assert "nothing to do" in refine(root)["err"]
    assert snapshot(root / "out") == files


def test_masks_that_are_all_replaced_under_way_are_faults_of_that_run_and_taken_up_by_the_next(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late(LabelReader):
        def __call__(self, *arguments: Any) -> Any:
            found = super().__call__(*arguments)
            for key in KEYS:  # the user, after the first mask is read
                (root / "masks" / f"{key}.png").write_bytes(png(np.roll(mask(), 1)))
            return found

    with monkeypatch.context() as patch:
        patch.setattr(refine_masks, "LabelReader", Late)
        found = refine(root)
    assert (found["code"], reasons(found)) == (0, dict.fromkeys("bcd", "label_changed"))
    assert "let the same command take it" in found["quarantined"][0]["detail"]
    found = refine(root)
    # The first one was whole and read as planned: it is noticed now, as its shard is done again.
    assert ("3 labels were replaced" in found["err"], reasons(found)) == (True, {"a": "label_changed"})
    found = refine(root)
    assert (found["refined"], found["quarantined"]) == (4, [])
    assert "nothing to do" in refine(root)["err"]


def test_a_wholly_wrong_folder_of_masks_is_refused_before_any_work_and_names_the_fault(root: Path) -> None:
    (root / "names.txt").write_text("grass\nwater\nsand\n")
    classes = ("--classes", str(root / "names.txt"))
    for key in KEYS:
        (root / "masks" / f"{key}.png").write_bytes(OTHER_SIZE)
    for _ in range(2):
        found = refine(root, *classes)
        assert found["code"] == 2
        assert "has 60 x 20 pixels, its image 60 x 40" in found["err"]
    for key in KEYS:
        (root / "masks" / f"{key}.png").write_bytes(GOOD)
    found = refine(root, *classes)
    assert (found["code"], found.get("refined")) == (0, 4), found["err"]


@pytest.mark.parametrize("at", ["write_revised_lists", "upload", "replace_file", "forget"])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("stored", [False, True])
def test_killed_at_any_write_of_the_revision_the_same_command_ends_it(
    root: Path,
    tmp_path: Path,
    whole: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    at: str,
    after: bool,
    stored: bool,
) -> None:
    monkeypatch.setenv(MIRROR_VARIABLE, str(tmp_path / "mirror"))
    out = f"memory://replaced/run-{next(_numbers)}" if stored else None
    assert refine(root, out=out)["refined"] == 3
    (root / "masks" / "b.png").write_bytes(GOOD)
    real: Callable[..., Any] = getattr(replaced, at)

    def killed(*arguments: Any) -> None:
        if after:
            real(*arguments)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(replaced, at, killed)
        with pytest.raises(Killed):
            refine(root, out=out)
    if stored:
        monkeypatch.setenv(MIRROR_VARIABLE, str(tmp_path / "another machine"))
    found = refine(root, out=out)
    assert found["code"] == 0, found["err"]
    assert (found["refined"], found["quarantined"]) == (4, [])
    assert "nothing to do" in refine(root, out=out)["err"]
    if not stored:
        assert results(root / "out") == whole
        lists = sorted(file.name for file in (root / "out" / "plan").iterdir())
        assert lists == ["000000.1.json", "000001.json"]


def test_a_second_command_changes_no_plan_while_the_first_one_works(root: Path) -> None:
    refine(root)
    (root / "masks" / "b.png").write_bytes(GOOD)
    plan = (root / "out" / "plan.json").read_bytes()
    with RunLock(RunLayout(root / "out").lock):
        assert refine(root)["code"] != 0
        assert (root / "out" / "plan.json").read_bytes() == plan
    found = refine(root)
    assert (found["code"], found.get("refined")) == (0, 4), found["err"]


def test_a_damaged_plan_of_a_revised_run_is_repaired(root: Path) -> None:
    refine(root)
    (root / "masks" / "b.png").write_bytes(GOOD)
    refine(root)
    run = root / "out"
    for damaged in (run / "plan.json", run / "plan" / "000000.1.json"):
        content = damaged.read_bytes()
        damaged.write_bytes(b"{")
        assert [fault.output for fault in verify_run(run).faults] == [damaged]
        assert invoke("shards", "repair", "--run", str(run), "--backend", "inline")[0] == 0
        assert damaged.read_bytes() == content
