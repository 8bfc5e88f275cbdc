"""What is fuzzed: for each kind of file whole ones to begin with, how they are made hostile, and who reads them."""

import io
import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import yaml
from PIL import Image

from benchmarks.fuzz_mutations import hostile_tar, hostile_value, hostile_yaml, mutated, mutated_json
from jobs.stages.promote import Settings as PromotionSettings
from jobs.stages.promote import read_decision, start_decision
from jobs.training.checkpoint_files import TrainingProgress, checkpoint_fault
from jobs.training.checkpoints import TrainingState, WeightAverage, load_checkpoint, save_checkpoint
from models.weights.files import read_weights, write_weights
from pipeline.config import RunConfig, load_config, resolve_config
from pipeline.run.jobs import job_rows, newest_outcome, read_outcome
from pipeline.run.status import run_status
from pipeline.settings import read_settings
from shards.data.class_lists import load_class_names
from shards.data.images import ImageFrame, UnreadableImage, decode_image
from shards.data.inputs import find_images
from shards.data.labels import decode_label, decode_weight, encode_label, encode_weight, legend_of
from shards.data.plan import Plan
from shards.data.plan_writing import write_plan
from shards.data.sources import FolderSourceConfig, open_source
from shards.data.vocabulary import Vocabulary
from shards.files.atomic import sha256_path
from shards.files.locks import live_holder, lock_content
from shards.formats.arrays import pack_ragged, read_arrays, read_ragged_row, read_rows, write_arrays
from shards.formats.events import append_event, read_events
from shards.formats.layout import RunLayout
from shards.formats.records import Drop, Record, read_counts, read_record, record_or_none, why_stale, write_record
from shards.formats.tar import (
    TarContents,
    TarSample,
    index_tar,
    read_member,
    read_pseudo_index,
    write_pseudo_index,
    write_tar,
)

Errors = tuple[type[Exception], ...]


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    Attributes:
        make: Leaves a hostile one in a folder.
        read: Reads it as the program does.
        errors: What reading may raise; anything else is a failure.
    """

    make: Callable[[Path, random.Random], None]
    read: Callable[[Path], None]
    errors: Errors = (ValueError, FileNotFoundError)


def _pixels(mode: str) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (24, 20, 4), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    return Image.fromarray(values, "RGBA").convert(mode)


def _images() -> list[bytes]:
    ways: list[tuple[str, str, dict[str, Any]]] = [
        *(("PNG", mode, {}) for mode in ("1", "L", "P", "RGB", "RGBA", "I;16")),
        *(("JPEG", mode, {}) for mode in ("L", "RGB", "CMYK")),
        ("JPEG", "RGB", {"progressive": True}),
        *(("WEBP", mode, {"lossless": lossless}) for mode in ("RGB", "RGBA") for lossless in (True, False)),
        *(
            ("TIFF", "RGB", {"compression": way})
            for way in (None, "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")
        ),
        *(("TIFF", mode, {}) for mode in ("1", "I;16", "CMYK")),
        *(("BMP", mode, {}) for mode in ("1", "P", "RGB")),
        *(("GIF", "P", {}), ("ICO", "RGBA", {}), ("PPM", "RGB", {}), ("TGA", "RGB", {}), ("JPEG2000", "RGB", {})),
    ]
    exif = Image.Exif()
    exif[0x0112] = 6
    found = []
    for name, mode, options in ways:
        buffer = io.BytesIO()
        if name in ("JPEG", "PNG", "WEBP"):
            options = {**options, "exif": exif}
        _pixels(mode).save(buffer, format=name, **options)
        found.append(buffer.getvalue())
    return found


_IMAGES: Final = _images()
_VOCABULARY: Final = Vocabulary.from_names(["ring", "grass, lawn", "water"], seen=["ring"])
_TEXT: Final = yaml.safe_dump(RunConfig().model_dump(mode="json"), sort_keys=False)


def _make_image(folder: Path, rng: random.Random) -> None:
    (folder / "a.png").write_bytes(mutated(rng.choice(_IMAGES), rng))


def _read_image(folder: Path) -> None:
    for entry in find_images([folder]):
        decode_image(entry.read())


def _make_label(folder: Path, rng: random.Random) -> None:
    ids = np.random.default_rng(1).integers(0, 3, (24, 20))
    many = Vocabulary.from_names([f"c{n}" for n in range(300)])
    weight = encode_weight(np.full((24, 20), 9, np.uint8))
    whole = [encode_label(ids, _VOCABULARY, 6), encode_label(ids, many), weight, *_IMAGES[:6]]
    (folder / "a.png").write_bytes(mutated(rng.choice(whole), rng))


def _read_label(folder: Path) -> None:
    data = (folder / "a.png").read_bytes()
    try:
        decode_weight(data)
    except ValueError:
        decode_label(data)


def _make_tar(folder: Path, rng: random.Random) -> None:
    members = {f"{n:04d}.{extension}": rng.choice(_IMAGES)[:700] for n in range(3) for extension in ("json", "png")}
    (folder / "a.tar").write_bytes(hostile_tar(members, rng))


def _read_tar(folder: Path) -> None:
    path = folder / "a.tar"
    try:
        for sample in index_tar(path).places.values():
            for place in sample.values():
                read_member(path, *place)
    except ValueError:
        for entry in find_images([path]):
            decode_image(entry.read())


def _write_record(folder: Path) -> Path:
    (folder / "000000.tar").write_bytes(b"abc")
    drops = (Drop(key="a", reason="empty"),)
    outputs = {"000000.tar": sha256_path(folder / "000000.tar")}
    facts: dict[str, Any] = {
        "stats": {"pixels": 3.0},
        "inputs": {"teacher": "a" * 64},
        "fingerprint": {"a": {"b": [1]}},
    }
    path = folder / "000000.json"
    write_record(path, Record(stage="write", shard="000000", count=2, drops=drops, outputs=outputs, **facts))
    return path


def _make_record(folder: Path, rng: random.Random) -> None:
    path = _write_record(folder)
    content = json.loads(path.read_bytes())
    if rng.random() < 0.7:
        del content["checksum"]
    path.write_bytes(mutated_json(json.dumps(content).encode(), rng))


def _read_record(folder: Path) -> None:
    path = folder / "000000.json"
    record_or_none(path)
    read_counts(path)
    why_stale(path, fingerprint={"a": {"b": [2]}}, inputs={"teacher": "b" * 64})
    record = read_record(path)
    why_stale(path, fingerprint=record.fingerprint, inputs=record.inputs)


def _make_plan(folder: Path, rng: random.Random) -> None:
    images = folder / "images"
    for name in ("a.png", "b/c.png", "b/d.png"):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).write_bytes(_IMAGES[0])
    source = open_source(FolderSourceConfig(images=str(images)), _VOCABULARY)
    write_plan(folder / "plan.json", source.refs(), 2)
    path = folder / rng.choice(("plan.json", "plan/000000.json"))
    path.write_bytes(mutated_json(path.read_bytes(), rng))


def _read_plan(folder: Path) -> None:
    source = open_source(FolderSourceConfig(images=str(folder / "images"), labels=str(folder)), _VOCABULARY)
    for ref in Plan.load(folder / "plan.json").samples:
        source.read_label(ref, ImageFrame((2, 3)))
        source.read_image(ref)


def _make_vocabulary(folder: Path, rng: random.Random) -> None:
    _VOCABULARY.save(folder / "a.json")
    (folder / "a.json").write_bytes(mutated_json((folder / "a.json").read_bytes(), rng))
    (folder / "a.txt").write_bytes(mutated("трава, луг\n# no\nwater\n".encode(), rng))


def _read_vocabulary(folder: Path) -> None:
    for path in (folder / "a.txt", folder / "a.json"):
        try:
            names = load_class_names(path)
        except ValueError:
            continue
        _or_value_error(lambda names=names: Vocabulary.from_names(names))  # type: ignore[misc]
    Vocabulary.load(folder / "a.json")


def _or_value_error(call: Callable[[], object]) -> None:
    try:
        call()
    except ValueError:
        return


def _training_state() -> TrainingState:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.grad = torch.ones(3)
    optimizer.step()
    return TrainingState({"w": parameter}, optimizer, WeightAverage({"w": parameter}, 0.9))


def _make_checkpoint(folder: Path, rng: random.Random) -> None:
    save_checkpoint(folder, TrainingProgress(3, (0.5,), (1,)), _training_state(), "a" * 64)
    path = folder / "step-00000003.json"
    path.write_bytes(mutated_json(path.read_bytes(), rng))


def _read_checkpoint(folder: Path) -> None:
    for path in folder.glob("*.json"):
        checkpoint_fault(path)
    load_checkpoint(folder, _training_state(), "a" * 64)


def _make_weights(folder: Path, rng: random.Random) -> None:
    path = folder / rng.choice(("a.safetensors", "a.pth"))
    state = {"w": torch.ones(3, 4), "b": torch.zeros(2)}
    if path.suffix == ".pth":
        torch.save({"model": state} if rng.random() < 0.5 else state, path)
    else:
        write_weights(state, path)
    path.write_bytes(mutated(path.read_bytes(), rng))


def _read_weights(folder: Path) -> None:
    for path in folder.iterdir():
        read_weights(path)


def _make_settings(folder: Path, rng: random.Random) -> None:
    (folder / "a.yaml").write_bytes(hostile_yaml(_TEXT, rng))


def _read_settings(folder: Path) -> None:
    try:
        load_config(folder / "a.yaml")
    except ValueError:
        resolve_config(read_settings(folder / "a.yaml"), [], where="a.yaml")


def _make_arrays(folder: Path, rng: random.Random) -> None:
    maps = pack_ragged([np.arange(6, dtype=np.uint8).reshape(2, 3), np.ones((1, 4), np.uint8)])
    arrays = {"values": maps["values"], "sizes": maps["sizes_hw"], "f": np.ones((2, 3, 4), np.float16)}
    write_arrays(folder / "a.zarr", arrays, {"keys": ["a", "b"]})
    files = sorted(path for path in (folder / "a.zarr").rglob("*") if path.is_file())
    for _ in range(rng.randint(1, 2)):
        path = rng.choice(files)
        change = mutated_json if path.suffix == ".json" and rng.random() < 0.8 else mutated
        try:
            path.write_bytes(change(path.read_bytes(), rng))
        except ValueError:  # the second change of a file that is no JSON any more
            path.write_bytes(mutated(path.read_bytes(), rng))


def _read_arrays(folder: Path) -> None:
    path = folder / "a.zarr"
    for read in (
        lambda: read_rows(path, "f", 1),
        lambda: read_ragged_row(path, "values", "sizes", 1),
        lambda: sha256_path(path),
    ):
        _or_value_error(read)
    read_arrays(path)


def _make_run(folder: Path, rng: random.Random) -> None:
    """Make the small files of a run, and one or two of them hostile."""
    layout = RunLayout(folder / "run")
    _make_plan(folder, random.Random(0))
    files: Mapping[Path, bytes] = {
        layout.config: _TEXT.encode(),
        layout.report_json(1): json.dumps({"miou": 1.0, "alarms": [], "promotion": {}}).encode(),
        layout.promotion(1): start_decision("none", PromotionSettings(), None).as_json().encode(),
        layout.lock: lock_content(),
        layout.stage_lock(1, "teacher"): lock_content(),
        layout.jobs / "a-1.json": json.dumps(
            {"id": "a-1", "round": "1", "stage": "teacher", "attempt": "1", "address": "http://x", "submitted": "2026"}
        ).encode(),
        layout.jobs / "a-1.outcome.json": b'{"exit_code": 0, "message": ""}',
    }
    _VOCABULARY.save(layout.vocabulary)
    write_plan(layout.plan, open_source(FolderSourceConfig(images=str(folder / "images")), _VOCABULARY).refs(), 2)
    for path, data in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    for kind in ("run_started", "shard_failed", "shard_done"):
        append_event(layout.events, {"kind": kind, "rounds": 1, "round": 1, "stage": "teacher", "shard": "000000"})
    tar = layout.pseudo(1, "000000")
    write_tar(tar, [TarSample("a", {"png": _IMAGES[0]})])
    contents = TarContents("b" * 64, legend_of(_VOCABULARY), "png")
    write_pseudo_index(tar.parent, [tar.name], [1], ["a" * 64], contents)
    for _ in range(rng.randint(1, 2)):
        path = rng.choice([*files, layout.events, tar.parent / "index.json", layout.plan, layout.vocabulary])
        _or_value_error(lambda path=path: path.write_bytes(mutated_json(path.read_bytes(), rng)))  # type: ignore[misc]
    if rng.random() < 0.5:
        line = {"kind": "shard_failed", "round": hostile_value(rng), "stage": hostile_value(rng)}
        _or_value_error(lambda: append_event(layout.events, line))
    for name in rng.sample(("1²", "0001", "9" * 200, "-1", "x"), 2):
        (layout.root / "rounds" / name).mkdir()


def _read_run(folder: Path) -> None:
    def refuse(address: str) -> Any:
        raise ConnectionError(address)

    layout = RunLayout(folder / "run")
    read_events(layout.events)
    for lock in (layout.lock, layout.stage_lock(1, "teacher")):
        live_holder(lock)
    job_rows(layout.root, connect=refuse)
    newest_outcome(layout.jobs, 1, "teacher")
    read_outcome(layout.jobs / "a-1.outcome.json")
    for read in (
        lambda: read_decision(layout.promotion(1)),
        lambda: read_pseudo_index(layout.pseudo_index(1).parent),
        lambda: load_config(layout.config),
    ):
        _or_value_error(read)
    run_status(layout.root)


# What the harness itself is tried with.
HANG: Final = Kind(lambda folder, rng: None, lambda folder: time.sleep(3600))

KINDS: Final[Mapping[str, Kind]] = {
    "image": Kind(_make_image, _read_image, (UnreadableImage,)),
    "label": Kind(_make_label, _read_label, (ValueError,)),
    "tar": Kind(_make_tar, _read_tar, (ValueError,)),
    "record": Kind(_make_record, _read_record, (ValueError,)),
    "plan": Kind(_make_plan, _read_plan, (ValueError,)),
    "vocabulary": Kind(_make_vocabulary, _read_vocabulary, (ValueError,)),
    "checkpoint": Kind(_make_checkpoint, _read_checkpoint, (ValueError,)),
    "weights": Kind(_make_weights, _read_weights, (ValueError,)),
    "settings": Kind(_make_settings, _read_settings),
    "arrays": Kind(_make_arrays, _read_arrays, (ValueError,)),
    "run": Kind(_make_run, _read_run, (ValueError,)),
}
