"""Runs in object stores: the same bytes as in a folder, resumed on any machine, looked into without bringing them."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from run_setup import SMALL, again, invoke, sets
from store_setup import files_of, results_of
from torch import nn
from training_setup import training_setup

from jobs.training.config import GroupResources
from jobs.training.group import run_training
from jobs.training.samples import TrainingSample
from jobs.training.step import TrainingStep
from shards.files.atomic import sha256_file
from shards.files.locks import RunLock
from shards.formats.events import append_event
from shards.formats.layout import record_path
from shards.formats.records import Json
from shards.storage.mirror import fetched, publish, put_files
from shards.storage.store import MIRROR_VARIABLE, location_of, run_folder

_numbers = itertools.count()


def objects_of(url: str) -> dict[str, bytes]:
    fs, path = fsspec.url_to_fs(url)
    return {name.removeprefix(path.rstrip("/") + "/"): fs.cat_file(name) for name in fs.find(path)}


def store_of(run: Path) -> str:
    """Return the URL of a store in memory with a run's objects."""
    url = f"memory://stores/run-{next(_numbers)}"
    fs, path = fsspec.url_to_fs(url)
    for name, data in files_of(run).items():
        if not name.startswith(("run.lock", "locks/")):
            fs.pipe_file(f"{path}/{name}", data)
    return url


@pytest.fixture
def work_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Go to another machine; machines share nothing but the store."""
    return lambda machine: monkeypatch.setenv(MIRROR_VARIABLE, str(tmp_path / machine))


@pytest.mark.slow
def test_a_run_on_s3_has_the_bytes_of_a_run_in_a_folder(
    s3: str, one_round: Path, weights: dict[str, str], work_on: Callable[[str], None]
) -> None:
    work_on("first")
    url = f"{s3}/runs/run"
    code, out, err = again(url, *sets({**SMALL, **weights}))
    assert code == 0, err
    assert f"shards: {url}/rounds/001/pseudo" in out
    made = objects_of(url)
    assert results_of(made) == results_of(files_of(one_round))
    assert "rounds/001/report.html" in made
    assert b'"kind": "report"' in made["events.jsonl"]
    assert not [name for name in made if name.startswith(("run.lock", "locks/"))]
    work_on("second")
    code, _, err = again(url)
    assert code == 0, err
    assert "nothing to do" in err
    assert objects_of(url) == made


def test_another_machine_finds_it_done_without_bringing_shard_data(
    one_round: Path, work_on: Callable[[str], None]
) -> None:
    url = store_of(one_round)
    before = objects_of(url)
    work_on("second")
    code, _, err = again(url)
    assert code == 0, err
    assert "nothing to do" in err
    assert objects_of(url) == before
    work_on("third")
    code, out, _ = invoke("status", "--run", url, "--json")
    rows = {(row["round"], row["stage"]): row["done"] for row in json.loads(out)["stages"]}
    assert (code, rows[(1, "write")], rows[(1, "train")]) == (0, 2, 1)
    code, out, _ = invoke("plan", "--run", url, "--json")
    assert (code, {row["to do"] + row["stale"] for row in json.loads(out)}) == (0, {0})
    code, out, _ = invoke("shards", "ls", "--run", url, "--json")
    shards = json.loads(out)
    assert (code, [row["state"] for row in shards]) == (0, ["done", "done"])
    assert shards[0]["path"] == f"{url}/rounds/001/pseudo/pseudo-000000.tar"
    mirror = run_folder(url)
    assert not [*mirror.rglob("*.tar"), *mirror.rglob("*.zarr")]


@pytest.mark.parametrize("content", ['{"url": "file:///somewhere/empty"}', '{"registry": 1}', "[1]"])
def test_no_command_deletes_anything_for_a_mirror_json_above_a_run(
    one_round: Path, tmp_path: Path, content: str
) -> None:
    run = tmp_path / "home" / "runs" / "mine"
    shutil.copytree(one_round, run)
    (run.parent / "second").mkdir()
    for path in (run.parent / "mirror.json", run.parents[1] / "mirror.json"):
        path.write_text(content)
    for name in ("home/compose.yaml", "home/page.html", "home/runs/second/plan.json", "home/runs/mine/notes.json"):
        (tmp_path / name).write_text("{}")
    before = files_of(tmp_path)
    for command in (
        ("status", "--run", str(run)),
        ("plan", "--run", str(run)),
        ("shards", "ls", "--run", str(run)),
        ("shards", "show", "target-000000", "--run", str(run), "--out", str(tmp_path / "sample.png")),
        ("shards", "verify", "--run", str(run)),
    ):
        code, _, err = invoke(*command)
        assert (code, err) == (0, ""), command
    (tmp_path / "sample.png").unlink()
    assert files_of(tmp_path) == before
    assert again(run)[0] == 0
    after = files_of(tmp_path)
    assert {name for name in before if after.get(name) != before[name]} <= {"home/runs/mine/events.jsonl"}


@pytest.mark.slow
def test_another_machine_goes_on_in_the_middle_with_the_same_bytes(
    one_round: Path, work_on: Callable[[str], None]
) -> None:
    url = store_of(one_round)
    fs, path = fsspec.url_to_fs(url)
    before = objects_of(url)
    fs.rm_file(f"{path}/rounds/001/refine/000001.json")  # the data stays: without its record it is not accepted
    fs.pipe_file(f"{path}/rounds/001/refine/000001.zarr/zarr.json", b"half")
    fs.rm_file(f"{path}/rounds/001/student/model.json")
    work_on("second")
    code, _, err = again(url)
    assert code == 0, err
    assert results_of(objects_of(url)) == results_of(before)
    redone = {name for name, data in objects_of(url).items() if before[name] != data}
    assert {name for name in redone if name.endswith(".json")} == {
        "rounds/001/refine/000001.json",
        "rounds/001/student/model.json",
    }
    mirror = run_folder(url)
    assert {path.name for path in mirror.rglob("*.zarr")} == {"000001.zarr"}  # made here; what was brought is gone
    assert not list(mirror.rglob("*.tar"))


def test_a_truncated_object_is_named_by_verify_and_not_used(one_round: Path, work_on: Callable[[str], None]) -> None:
    url = store_of(one_round)
    fs, path = fsspec.url_to_fs(url)
    tar = "rounds/001/pseudo/pseudo-000001.tar"
    fs.pipe_file(f"{path}/{tar}", fs.cat_file(f"{path}/{tar}")[:-512])
    work_on("second")
    code, out, _ = invoke("shards", "verify", "--run", url)
    assert code == 4
    assert f"{url}/{tar} does not match its checksum" in out
    assert "1 faults" in out
    fs.rm_file(f"{path}/rounds/001/student/model.json")  # so that the tar is read
    code, _, err = again(url)
    assert code == 4
    assert f"shards repair --run {url}" in err


def test_repair_makes_a_truncated_object_again(one_round: Path, work_on: Callable[[str], None]) -> None:
    url = store_of(one_round)
    fs, path = fsspec.url_to_fs(url)
    wanted = results_of(objects_of(url))
    tar = f"{path}/rounds/001/pseudo/pseudo-000001.tar"
    fs.pipe_file(tar, fs.cat_file(tar)[:-512])
    work_on("second")
    code, out, err = invoke("shards", "repair", "--run", url, "--backend", "inline")
    assert code == 0, err
    assert "1 outputs were damaged, 0 still are" in out
    assert results_of(objects_of(url)) == wanted


def test_one_sample_is_drawn_out_of_a_store(one_round: Path, work_on: Callable[[str], None], tmp_path: Path) -> None:
    url = store_of(one_round)
    work_on("second")
    key = json.loads(objects_of(url)["plan.json"])["shards"][0]["first"]
    code, out, err = invoke("shards", "show", key, "--run", url, "--out", str(tmp_path / "x.png"))
    assert (code, out.strip()) == (0, str(tmp_path / "x.png")), err


def test_messages_name_the_run_by_its_url(one_round: Path, work_on: Callable[[str], None]) -> None:
    url = store_of(one_round)
    work_on("second")
    code, _, err = again(url, "--set", "seed=7")
    assert (code, f"{url} was made with other settings" in err) == (3, True), err
    code, _, err = invoke("stage", "refine", "--round", "2", "--run", url, "--backend", "inline")
    assert (code, f"stseg-pipeline stage teacher --round 2 --run {url}\n" in err) == (4, True), err
    lost: dict[str, Json] = {"kind": "shard_failed", "round": 1, "stage": "teacher", "shard": "000000"}
    append_event(run_folder(url) / "events.jsonl", lost)
    _, out, _ = invoke("status", "--run", url, "--json")
    assert json.loads(out)["retry"] == f"stseg-pipeline round --n 1 --run {url}"
    with RunLock(run_folder(url) / "run.lock"):
        code, _, err = again(url)
    assert (code, f"{url}/run.lock is held by" in err) == (75, True), err


def test_a_bucket_that_is_not_there_is_named(s3: str, work_on: Callable[[str], None]) -> None:
    work_on("first")
    url = s3.replace("stseg-bucket", "no-such-bucket") + "/run"
    for command in (("status",), ("round", "--backend", "inline")):
        code, _, err = invoke(*command, "--run", url)
        assert code == 4
        assert url in err and "bucket does not exist" in err


def test_a_url_that_cannot_be_used_is_refused_with_the_cure() -> None:
    for url, cure in (("s3://", "names no run"), ("nosuch://bucket/run", "no kind of store")):
        code, _, err = invoke("status", "--run", url)
        assert code == 2
        assert cure in " ".join(err.replace("│", " ").split())


@pytest.mark.parametrize(
    "command",
    [
        ("pretrain", "--out", "s3://bucket/weights.safetensors"),
        ("pretrain", "--out", "weights.safetensors", "--work", "s3://bucket/work"),
        ("predict", "photos", "--out", "s3://bucket/predictions"),
        ("calibrate", "--out", "s3://bucket/calibration.json"),
        ("export", "model", "--out", "s3://bucket/model.onnx"),
        ("import", "sed", "sed.pth", "--out", "s3://bucket/sed"),
        ("shards", "show", "key", "--out", "s3://bucket/x.png"),
    ],
)
def test_a_url_where_a_file_of_this_machine_is_written_is_refused(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = invoke(*command)
    assert code == 2
    assert "s3://bucket/" in err and "is a URL" in err
    assert not list(tmp_path.iterdir())


class _KilledError(Exception):
    pass


@pytest.mark.slow
def test_a_training_that_was_killed_goes_on_on_another_machine_with_the_same_bytes(
    work_on: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"memory://stores/training-{next(_numbers)}"
    whole, job = training_setup(tmp_path / "whole")
    group = GroupResources()
    run_training(whole, job, group, backend="inline", run="whole")

    work_on("first")
    place = location_of(run_folder(url))
    task, job = training_setup(place.root)
    put_files(place, [job.vocabulary])
    for path in task.inputs.values():
        publish(place, path, record_path(path))
    take_step = TrainingStep.__call__
    taken: list[int] = []

    def step_or_die(self: TrainingStep, model: nn.Module, batch: TrainingSample, step: int) -> float:
        taken.append(step)
        if len(taken) == 4:
            raise _KilledError
        return take_step(self, model, batch, step)

    monkeypatch.setattr(TrainingStep, "__call__", step_or_die)
    with pytest.raises(_KilledError):
        run_training(task, job, group, backend="inline", run="first")
    assert not task.record.exists()

    work_on("second")
    other = location_of(run_folder(url))
    moved = task.model_copy(
        update={
            "output": other.root / place.name_of(task.output),
            "inputs": {role: other.root / place.name_of(path) for role, path in task.inputs.items()},
        }
    )
    with fetched(other, [(path, record_path(path)) for path in moved.inputs.values()]):
        pass  # as the driver has brought their records
    moved_job = job.model_copy(update={"vocabulary": other.root / "vocabulary.json"})
    run_training(moved, moved_job, group, backend="inline", run="second")
    assert taken == [0, 1, 2, 3, 2, 3, 4, 5]
    assert sha256_file(moved.output) == sha256_file(whole.output)
    made = objects_of(url)
    assert made["student/model.safetensors"] == whole.output.read_bytes()
    assert "student/model.json" in made
    assert not [name for name in made if "checkpoints" in name]
