"""Whatever is damaged in a run is found and named, done again on request, and comes out as it was."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from run_setup import again, invoke, report

from benchmarks.chaos_compare import contents, differences
from pipeline.run.verify import CheckResult, verify_run
from shards.files.atomic import remove_path

FIRST = Path("rounds/001")


def flip(path: Path) -> None:
    """Change a bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def chunk(folder: Path) -> Path:
    """Return the largest file of a zarr folder, which holds numbers."""
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


@pytest.fixture
def run(one_round: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(one_round, tmp_path / "run"))


DAMAGE: dict[str, tuple[str, Callable[[Path], None]]] = {
    "tar, a bit": ("pseudo/pseudo-000000.tar", flip),
    "tar, cut": ("pseudo/pseudo-000001.tar", cut),
    "zarr chunk, a bit": ("teacher/000000.zarr", lambda path: flip(chunk(path))),
    "zarr chunk, cut": ("refine/000001.zarr", lambda path: cut(chunk(path))),
    "zarr metadata": ("refine/000000.zarr", lambda path: flip(path / "zarr.json")),
    "zarr, lost": ("teacher/000001.zarr", remove_path),
    "record, a bit": ("refine/000000.zarr", lambda path: flip(path.with_suffix(".json"))),
    "record, cut": ("pseudo/pseudo-000000.tar", lambda path: cut(path.with_suffix(".json"))),
    "record, lost": ("teacher/000000.zarr", lambda path: path.with_suffix(".json").unlink()),
    "weights, a bit": ("student/model.safetensors", flip),
    "weights, cut": ("best/model.safetensors", cut),
    "list of tars": ("pseudo/index.json", flip),
    "promotion": ("promotion.json", flip),
    "report": ("report.json", flip),
}


@pytest.mark.slow
def test_each_kind_of_damage_is_named_and_nothing_else(run: Path) -> None:
    assert verify_run(run).faults == ()
    for kind, (output, damage) in DAMAGE.items():
        path = run / FIRST / output
        kept = run.parent / "kept"
        shutil.copytree(run / FIRST, kept)
        damage(path)
        assert [fault.output for fault in verify_run(run).faults] == [path], kind
        assert [fault.output for fault in verify_run(run, 1).faults] == [path], kind
        assert verify_run(run, 0).faults == (), kind
        shutil.rmtree(run / FIRST)
        kept.rename(run / FIRST)
    assert verify_run(run).faults == ()


@pytest.mark.slow
@pytest.mark.parametrize(
    "kinds",
    [
        ["tar, a bit", "zarr chunk, cut", "record, a bit", "report", "list of tars"],
        ["zarr metadata", "zarr, lost", "record, cut", "weights, a bit", "promotion"],
    ],
)
def test_the_same_round_with_verify_mends_all_damage_to_the_same_bytes(run: Path, kinds: list[str]) -> None:
    wanted = contents(run)
    for kind in kinds:
        output, damage = DAMAGE[kind]
        damage(run / FIRST / output)
    code, _, err = again(run, "--verify")
    assert code == 0, err
    assert differences(wanted, contents(run)) == []
    assert verify_run(run).faults == ()


@pytest.mark.slow
def test_repair_does_again_what_verify_names(run: Path) -> None:
    wanted, score = contents(run), report(run, 1)["miou"]
    damaged = [
        run / "embeddings" / "sam" / "source-000000.zarr",
        run / FIRST / "pseudo" / "pseudo-000000.tar",
        run / FIRST / "student" / "model.safetensors",
        next((run / "embeddings" / "text").glob("*.safetensors")),
    ]
    flip(chunk(damaged[0]))
    for path in damaged[1:]:
        flip(path)
    code, out, _ = invoke("shards", "verify", "--run", str(run), "--json")
    assert (code, {fault["output"] for fault in json.loads(out)["faults"]}) == (4, {str(path) for path in damaged})
    code, out, err = invoke("shards", "repair", "--run", str(run), "--backend", "inline")
    assert code == 0, err
    assert "4 outputs were damaged, 0 still are" in out
    assert differences(wanted, contents(run)) == []
    assert report(run, 1)["miou"] == score
    code, out, _ = invoke("shards", "repair", "--run", str(run), "--backend", "inline")
    assert (code, "0 outputs were damaged" in out) == (0, True)


def test_what_a_round_under_way_has_not_done_is_no_fault(run: Path) -> None:
    for name in ("report.json", "report.record.json", "student/model.json", "student/model.safetensors"):
        (run / FIRST / name).unlink()
    checkpoints = run / FIRST / "student" / "checkpoints"
    checkpoints.mkdir()
    (checkpoints / "step-00000001.safetensors").write_bytes(b"cut off")
    (checkpoints / "step-00000001.json").write_text(json.dumps({"step": 1, "digest": "a", "sha256": "b"}))
    verdict = verify_run(run)
    assert verdict.undone == 2
    assert [(fault.output.name, fault.reason) for fault in verdict.faults] == [
        ("step-00000001.json", "its tensors do not match their checksum")
    ]
    cut(run / FIRST / "pseudo" / "pseudo-000000.tar")
    code, out, _ = invoke("shards", "verify", "--run", str(run))
    assert (code, "pseudo-000000.tar" in out, "2 not done yet" in out) == (4, True, True)
    assert invoke("shards", "verify", "--run", str(run), "--round", "7")[0] == 4


def test_damage_of_a_replay_is_removed_and_told(run: Path) -> None:
    command = ["replay", "--round", "1", "--run", str(run), "--backend", "inline", "--name", "half"]
    command += ["--set", "gate.threshold=0.05"]
    assert invoke(*command)[0] == 0
    assert verify_run(run) == CheckResult(verify_run(run).checked, 0, ())
    wanted = contents(run)
    tar = run / FIRST / "replays" / "half" / "pseudo" / "pseudo-000001.tar"
    flip(tar)
    code, out, _ = invoke("shards", "repair", "--run", str(run), "--backend", "inline")
    assert not tar.exists()
    assert (code, f"{tar.parents[1]} lacks shards" in out) == (0, True)
    assert invoke(*command)[0] == 0
    assert differences(wanted, contents(run)) == []


def test_a_shard_exchanged_with_its_record_between_a_round_and_its_replay_is_named(run: Path) -> None:
    command = ["replay", "--round", "1", "--run", str(run), "--backend", "inline", "--name", "half"]
    assert invoke(*command, "--set", "gate.threshold=0.05")[0] == 0
    own, other = run / FIRST / "refine", run / FIRST / "replays" / "half" / "refine"
    for name in ("000001.zarr", "000001.json"):
        (own / name).rename(run / name)
        (other / name).rename(own / name)
        (run / name).rename(other / name)
    named = {state.task.output for state in verify_run(run).stale}
    assert {own / "000001.zarr", other / "000001.zarr"} <= named
    assert verify_run(run).faults == ()
