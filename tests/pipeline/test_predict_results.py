"""Every result of `predict` knows its image, and no file of anyone else is replaced or labelled."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.commands.result_keys import ResultKeys
from shards.data.inputs import find_images
from shards.files.atomic import write_bytes_atomic
from shards.formats.records import sealed
from shards.formats.result_index import INDEX_NAME, read_index, result_facts, write_index

ROOT = Path(__file__).resolve().parents[2]


def picture(path: Path, seed: int = 0, kind: str = "PNG") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path, kind)
    return path


def predict(*arguments: object) -> tuple[int, str, str]:
    found = CliRunner().invoke(app, ["predict", *map(str, arguments), "--classes", "grass, water"])
    return found.exit_code, found.stdout, found.stderr


def results(out: Path) -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(out.glob("*.json"))}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_equal_names_of_several_commands_keep_their_own_results(tmp_path: Path) -> None:
    for seed, name in enumerate("abc"):
        picture(tmp_path / name / "p0.png", seed)
    for name in "abca":
        code, _, err = predict(tmp_path / name, "--out", tmp_path / "out")
        assert code == 0, err
    found = results(tmp_path / "out")
    assert sorted(facts["source"] for facts in found.values()) == [str(tmp_path / name / "p0.png") for name in "abc"]
    assert found["p0"]["source"] == str(tmp_path / "a" / "p0.png")
    assert read_index(tmp_path / "out") == {facts["source"]: key for key, facts in found.items()}
    assert "1 had results already" in predict(tmp_path / "b", "--out", tmp_path / "out")[1]


def test_files_without_an_ending_have_results_with_a_stem(tmp_path: Path) -> None:
    for seed, name in enumerate(("f00d", "cafe")):
        picture(tmp_path / name, seed)
        assert predict(tmp_path / name, "--out", tmp_path / "out")[0] == 0
    assert set(results(tmp_path / "out")) == {"f00d", "cafe"}
    assert not [path for path in (tmp_path / "out").iterdir() if path.name in (".png", ".json", ".label.png")]


@pytest.mark.parametrize("taken", ["p0.png", "p0.json", "p0.label.png", INDEX_NAME])
def test_a_name_that_is_taken_is_refused_before_any_work_and_both_files_are_named(tmp_path: Path, taken: str) -> None:
    folder = tmp_path / "photos"
    image = picture(folder / "p0.jpg", kind="JPEG")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / taken).write_bytes(b'{"shapes": []}')
    before = contents(tmp_path)
    code, _, err = predict(folder, "--out", tmp_path / "out")
    assert code == 2
    assert str(tmp_path / "out" / taken) in err
    assert taken == INDEX_NAME or str(image) in err
    assert contents(tmp_path) == before


def test_a_photograph_is_never_replaced_by_its_result(tmp_path: Path) -> None:
    picture(tmp_path / "p0.png")
    before = contents(tmp_path)
    code, _, err = predict(tmp_path, "--out", tmp_path)
    assert (code, "is one of the images" in err) == (2, True)
    assert contents(tmp_path) == before


def test_results_are_not_predicted_wherever_they_are(tmp_path: Path) -> None:
    picture(tmp_path / "p0.jpg", kind="JPEG")
    picture(tmp_path / "p1.jpg", 1, kind="JPEG")
    for out in (tmp_path / "out", tmp_path):  # a folder of their own, or among the photographs
        for _ in range(2):
            code, text, err = predict(tmp_path, "--out", out, "--json")
            assert code == 0, err
            assert len(json.loads(text)["images"]) == 2
        assert set(results(out)) == {"p0", "p1"}
    assert "left out: 12 files that predict made" in err


def test_what_else_a_folder_holds_is_said_in_a_line(tmp_path: Path) -> None:
    picture(tmp_path / "p0.jfif", kind="JPEG")
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x20ftypheic")
    code, text, err = predict(tmp_path, "--out", tmp_path / "out", "--json")
    assert (code, "left out: 1 .heic" in err) == (0, True)
    assert json.loads(text)["left_out"] == {".heic": 1}


def as_earlier(out: Path, shown: dict[str, str]) -> None:
    """Turn a folder of results into one of an earlier version."""
    (out / INDEX_NAME).unlink()
    for key, image in shown.items():
        facts = json.loads((out / f"{key}.json").read_text())
        del facts["source"]
        (out / f"{key}.json").write_text(json.dumps({**facts, "image": image}))


def test_folders_of_earlier_versions_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "a" / "p0.png")
    picture(tmp_path / "b" / "p0.png", 1)
    out = tmp_path / "out"
    assert predict("a", "--out", out)[0] == 0
    as_earlier(out, {"p0": "a/p0.png"})
    assert "1 had results already" in predict("a", "--out", out)[1]
    assert predict("b", "--out", out)[0] == 0
    assert len(results(out)) == 2
    assert results(out)["p0"]["image"] == "a/p0.png"
    assert "2 had results already" in predict("a", "b", "--out", out)[1]


def test_a_damaged_index_is_made_again_from_the_results(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "p0.png")
    picture(tmp_path / "b" / "p0.png", 1)
    out = tmp_path / "out"
    assert predict(tmp_path / "a", "--out", out)[0] == 0
    (out / INDEX_NAME).write_bytes((out / INDEX_NAME).read_bytes().replace(b"p0", b"p1"))
    assert predict(tmp_path / "b", "--out", out)[0] == 0
    assert len(results(out)) == 2
    assert read_index(out)[str(tmp_path / "b" / "p0.png")] != "p0"


def test_an_index_from_elsewhere_leads_nowhere(tmp_path: Path) -> None:
    photo = picture(tmp_path / "a.png")
    hostile: tuple[Any, ...] = (
        {str(photo): "../evil"},
        {str(photo): "a/b"},
        {str(photo): ""},
        {str(photo): 1},
        [],
        None,
    )
    for keys in hostile:
        body = (json.dumps({"version": 1, "keys": keys}, indent=1) + "\n").encode()
        write_bytes_atomic(tmp_path / "out" / "predict.index", sealed(body))
        with pytest.raises(ValueError, match="was not written by this program"):
            read_index(tmp_path / "out")


def test_photographs_that_moved_keep_their_results(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "p0.png")
    out = tmp_path / "out"
    assert predict(tmp_path / "a", "--out", out)[0] == 0
    (tmp_path / "a").rename(tmp_path / "z")
    assert "1 had results already" in predict(tmp_path / "z", "--out", out)[1]
    assert set(results(out)) == {"p0"}


def test_members_of_tars_have_names_of_their_own(tmp_path: Path) -> None:
    data = io.BytesIO()
    Image.new("RGB", (4, 4)).save(data, "PNG")
    for name in ("a", "b"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            info = tarfile.TarInfo("p0.png")
            info.size = len(data.getvalue())
            tar.addfile(info, io.BytesIO(data.getvalue()))
    first, second = find_images([tmp_path / "a.tar"]), find_images([tmp_path / "b.tar"])
    assert first[0].source == f"{tmp_path / 'a.tar'}: p0.png"
    keys = ResultKeys(tmp_path / "out", first)
    keys.claim()
    other = ResultKeys(tmp_path / "out", second)
    assert keys[first[0]] == "p0"
    assert other[second[0]] != "p0"


def test_the_index_keeps_names_that_are_not_utf8(tmp_path: Path) -> None:
    keys = {os.fsdecode(b"/x/caf\xe9.png"): "caf_", "/x/\u6c34.png": "_"}
    write_index(tmp_path, keys)
    assert read_index(tmp_path) == keys
    assert result_facts(tmp_path / INDEX_NAME) is None


@pytest.mark.slow
def test_two_commands_at_once_lose_and_mix_nothing(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        for number in range(4):
            picture(tmp_path / name / f"p{number}.png", 10 * seed + number)
    picture(tmp_path / "same.png", 99)
    out = tmp_path / "out"

    def start(name: str, classes: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "pipeline", "predict", tmp_path / name, tmp_path / "same.png", "--out", out]
        return subprocess.Popen(
            [*map(str, command), "--classes", classes], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    running = [start("a", "grass, water"), start("b", "stone")]
    for process in running:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    found = results(out)
    assert len(found) == 9
    assert read_index(out) == {facts["source"]: key for key, facts in found.items()}
    ids = {key: np.unique(np.asarray(Image.open(out / f"{key}.label.png"))) for key in found}
    assert all(len(found[key]["classes"]) == len(ids[key]) for key in found)


def test_a_run_takes_no_results_and_a_folder_inside_of_it_does(tmp_path: Path) -> None:
    picture(tmp_path / "photos" / "inputs.png")
    (tmp_path / "names.txt").write_text("grass\nwater\n")
    run = tmp_path / "run"
    own = ["--images", str(tmp_path / "photos"), "--classes", str(tmp_path / "names.txt"), "--preset", "tiny"]
    assert CliRunner().invoke(app, ["init", str(run), *own]).exit_code == 0
    before = contents(run)
    code, _, err = predict(tmp_path / "photos", "--out", run)
    assert (code, "is a run; name another folder with --out" in err) == (2, True), err
    assert contents(run) == before
    assert predict(tmp_path / "photos", "--out", run / "predicted")[0] == 0


def test_the_lists_of_classes_next_to_results_are_not_told_as_other_files(tmp_path: Path) -> None:
    picture(tmp_path / "photos" / "a.png")
    assert predict(tmp_path / "photos", "--out", tmp_path / "photos/out")[0] == 0
    code, out, err = predict(tmp_path / "photos", "--out", tmp_path / "photos/out")
    assert (code, "left out: 3 files that predict made\n" in out + err) == (0, True), out + err
