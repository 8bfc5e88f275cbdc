"""`predict` with the shipped model: files, folders and tars, again and again, in bounded memory."""

import gc
import io
import json
import shutil
import tarfile
import tracemalloc
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import jobs.inference.segmenter
import models.sam.sam
from pipeline.cli.app import app
from pipeline.commands.predict import usual_batch
from pipeline.commands.watched import Watched
from pipeline.progress import ImageProgress
from shards.data.class_lists import load_class_names
from shards.scenes.scenes import render_scene


def invoke(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


def png(index: int, size: tuple[int, int] = (60, 50)) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(render_scene("test", 0, index).image).resize(size).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two images and a broken one, and a tar with one of each."""
    root = tmp_path_factory.mktemp("inputs")
    (root / "photos" / "sub").mkdir(parents=True)
    (root / "photos" / "a.png").write_bytes(png(0))
    (root / "photos" / "sub" / "b.png").write_bytes(png(1, (31, 200)))
    (root / "photos" / "cut.png").write_bytes(png(0)[:300])
    with tarfile.open(root / "set.tar", "w") as tar:
        for name, data in {"0001.png": png(2), "0001.json": b"{}", "0002.png": b"no image"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return root


def predict(photos: Path, out: Path, *more: str, classes: str = "grass, stone, red ring") -> dict[str, Any]:
    inputs = [str(photos / "photos"), str(photos / "set.tar")]
    code, text, err = invoke("predict", *inputs, "--classes", classes, "--out", str(out), "--json", *more)
    assert code == 0, err
    result: dict[str, Any] = json.loads(text)
    return result


@pytest.fixture(scope="module")
def done(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("out")
    return out, predict(photos, out, "--batch", "2")


def label(path: str) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.mark.slow
def test_folders_and_tars_are_predicted_and_broken_images_named(done: tuple[Path, dict[str, Any]]) -> None:
    out, result = done
    assert [Path(entry["label"]).name for entry in result["images"]] == [
        "a.label.png",
        "sub_b.label.png",
        "0001.label.png",
    ]
    assert [Image.open(entry["label"]).size for entry in result["images"]] == [(60, 50), (31, 200), (60, 50)]
    assert (result["predicted"], result["skipped"]) == (3, 0)
    broken = {Path(entry["image"].split(": ")[-1]).name: entry["reason"] for entry in result["unreadable"]}
    assert broken == {"cut.png": "truncated", "0002.png": "not_an_image"}
    results = {path.suffix for path in out.iterdir() if path.is_file() and path.name != ".predict.lock.guard"}
    assert results == {".png", ".json", ".index"}
    assert all(set(entry["classes"]) <= {"grass", "stone", "red ring"} for entry in result["images"])


@pytest.mark.slow
def test_ids_of_label_maps_have_their_names_and_colours_in_one_file(done: tuple[Path, dict[str, Any]]) -> None:
    out, result = done
    (path,) = (out / "classes").iterdir()
    assert str(path) == result["class_list"]
    legend = json.loads(path.read_bytes())
    assert [(entry["id"], entry["name"]) for entry in legend["classes"]] == [
        (0, "grass"),
        (1, "stone"),
        (2, "red ring"),
    ]
    assert legend["ignore_index"] == 255
    assert load_class_names(path) == ["grass", "stone", "red ring"]
    for entry in result["images"]:
        assert json.loads((out / f"{Path(entry['label']).name.partition('.')[0]}.json").read_bytes())[
            "class_list"
        ] == str(path.relative_to(out))
        with Image.open(entry["label"]) as picture:
            assert picture.mode == "P"  # made to be looked at, and Pillow still reads ids
            ids, colours = np.asarray(picture), np.asarray(picture.convert("RGB"))
        assert {legend["classes"][index]["name"] for index in np.unique(ids)} == set(entry["classes"])
        for index in np.unique(ids):
            assert (colours[ids == index] == legend["classes"][index]["colour"]).all()


@pytest.mark.slow
def test_results_of_other_classes_in_the_same_folder_name_their_own_list(
    photos: Path, done: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(done[0], out)
    image = str(photos / "photos" / "a.png")
    code, text, err = invoke("predict", image, "--classes", "stone, grass", "--out", str(out), "--json")
    assert code == 0, err
    assert len(list((out / "classes").iterdir())) == 2

    def names(key: str) -> list[str]:
        listed = json.loads((out / json.loads((out / f"{key}.json").read_bytes())["class_list"]).read_bytes())
        return [entry["name"] for entry in listed["classes"]]

    assert (names("a"), names("sub_b")) == (["stone", "grass"], ["grass", "stone", "red ring"])
    assert json.loads(text)["class_list"].startswith(str(out / "classes"))


def test_again_skips_what_stands_and_does_what_is_missing(photos: Path, done: tuple[Path, dict[str, Any]]) -> None:
    out, first = done
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    again = predict(photos, out)
    assert (again["predicted"], again["skipped"]) == (0, 3)
    assert [e["classes"] for e in again["images"]] == [e["classes"] for e in first["images"]]
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    (out / "a.label.png").unlink()
    third = predict(photos, out)
    assert [e["state"] for e in third["images"]] == ["predicted", "skipped", "skipped"]


def test_another_opacity_draws_other_overlays_of_the_same_labels(
    photos: Path, done: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(done[0], out)
    assert predict(photos, out, "--opacity", "0.62")["skipped"] == 3  # the default
    assert predict(photos, out, "--opacity", "0.2")["predicted"] == 3
    assert (out / "a.label.png").read_bytes() == (done[0] / "a.label.png").read_bytes()
    assert (out / "a.png").read_bytes() != (done[0] / "a.png").read_bytes()
    for wrong in ("1.5", "-0.1", "thick"):
        assert invoke("predict", str(photos), "--classes", "a", "--out", str(out), "--opacity", wrong)[0] == 2


@pytest.mark.slow
def test_other_classes_or_overwrite_predict_anew(
    photos: Path, done: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(done[0], out)
    assert predict(photos, out, "--overwrite")["predicted"] == 3
    assert predict(photos, out, classes="grass")["predicted"] == 3
    assert (label(str(out / "a.label.png")) == 0).all()


@pytest.mark.slow
def test_batches_change_no_label_and_windows_do(
    photos: Path, done: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    _, first = done
    one = predict(photos, tmp_path / "one", "--batch", "1")
    windows = predict(photos, tmp_path / "windows", "--windows", "2", "--batch", "3")
    pairs = list(zip(first["images"], one["images"], windows["images"], strict=True))
    assert all((label(a["label"]) == label(b["label"])).mean() > 0.999 for a, b, _ in pairs)
    shares = [(label(a["label"]) == label(c["label"])).mean() for a, _, c in pairs]
    assert min(shares) < 1
    assert np.mean(shares) > 0.5


@pytest.mark.slow
def test_more_than_255_names_from_a_file_give_16_bit_labels(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\n".join([*(f"thing {n}" for n in range(259)), "grass, lawn"]))
    image = str(photos / "photos" / "a.png")
    file = ["--classes-file", str(tmp_path / "names.txt")]
    code, out, err = invoke("predict", image, *file, "--out", str(tmp_path / "out"), "--json")
    assert code == 0, err
    (found,) = json.loads(out)["images"]
    assert label(found["label"]).dtype.itemsize > 1
    assert label(found["label"]).max() < 260
    assert invoke("predict", image, *file, "--classes", "grass")[0] == 2


def test_no_sam_decoder_is_in_memory_while_it_predicts(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()
    encoders: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()

    def spied(name: str, seen: "weakref.WeakSet[torch.nn.Module]") -> None:
        original = getattr(models.sam.sam, name)

        def build(*args: Any, **kwargs: Any) -> Any:
            made = original(*args, **kwargs)
            seen.add(made)
            return made

        monkeypatch.setattr(models.sam.sam, name, build)

    for name, seen in (("MaskDecoder", alive), ("PromptEncoder", alive), ("ImageEncoderViT", encoders)):
        spied(name, seen)
    counts = []
    original = jobs.inference.segmenter.StsegSegmenter.logits

    def logits(self: Any, images: Any, sam: Any = None) -> Any:
        gc.collect()
        counts.append((len(alive), len(encoders)))
        return original(self, images, sam)

    monkeypatch.setattr(jobs.inference.segmenter.StsegSegmenter, "logits", logits)
    one = ["predict", str(photos / "photos" / "a.png"), "--classes", "grass", "--out", str(tmp_path)]
    assert invoke(*one)[0] == 0
    assert set(counts) == {(0, 1)}


def test_nothing_readable_is_exit_4_and_wrong_paths_or_devices_exit_2(photos: Path, tmp_path: Path) -> None:
    classes = ["--classes", "grass", "--out", str(tmp_path / "out")]
    code, _, err = invoke("predict", str(photos / "photos" / "cut.png"), *classes)
    assert (code, "none of 1 images can be read" in err) == (4, True)
    code, _, err = invoke("predict", str(tmp_path / "none.png"), *classes)
    assert (code, "none.png: no such file" in err) == (2, True)
    code, _, err = invoke("predict", str(photos / "photos"), *classes, "--device", "abacus")
    assert (code, "expected one of auto, cpu" in err) == (2, True)
    if not torch.cuda.is_available():
        code, _, err = invoke("predict", str(photos / "photos"), *classes, "--device", "cuda")
        assert (code, "use --device cpu" in err) == (2, True)
    assert not (tmp_path / "out").exists()


def test_many_classes_and_large_presets_are_looked_at_in_smaller_batches() -> None:
    assert [usual_batch(96, classes) for classes in (1, 24, 100, 10_000)] == [8, 8, 2, 1]
    assert usual_batch(768, 150) == 1


def test_progress_is_a_line_per_interval_off_a_terminal() -> None:
    from rich.console import Console

    now = [0.0]
    out = io.StringIO()
    with ImageProgress(Console(file=out), lambda: now[0]) as progress:
        for seconds, worked in ((3.0, True), (12.0, True), (13.0, False), (30.0, False)):
            now[0] = seconds
            progress.count(40, worked=worked)
    lines = ["2/40 images, 6.0 s/image, 4 min left", "4/40 images, 15.0 s/image, 9 min left"]
    assert out.getvalue().splitlines() == [f"predict: {line}" for line in lines]


def test_classes_are_counted_without_a_copy_of_all_pixels() -> None:
    label = np.zeros((4000, 2000), np.int32)
    label[:, 1500:] = 1
    watched = Watched(SimpleNamespace(needs_embedding=False), 2)
    tracemalloc.start()
    watched.count(label)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert watched._pixels_K.tolist() == [6_000_000, 2_000_000]
    assert peak < label.nbytes / 4
