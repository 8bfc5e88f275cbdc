"""Commands on folders that hold pipes, devices, odd names, links, and the user's own files under names of ours."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from run_setup import invoke

from pipeline.commands.repair import _take_out
from pipeline.config import RunConfig
from pipeline.run.lock import holding, holding_stage
from pipeline.run.run import make_run, read_run
from pipeline.run.status import run_status
from pipeline.run.verify import verify_run
from pipeline.settings import load_yaml
from pipeline.tasks.recipe import begun_rounds
from pipeline.terminal import printable
from shards.formats.layout import RunLayout
from shards.scenes.scenes import render_scene

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def photo(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(render_scene("test", 0, 0).image).resize((40, 30)).save(path)


def test_predict_goes_on_past_pipes_devices_and_names_that_are_not_utf_8(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    photo(folder / "plain.png")
    try:
        shutil.copy(folder / "plain.png", folder / "caf\udce9.png")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    shutil.copy(folder / "plain.png", folder / "red\x1b[31m.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "random.png").symlink_to("/dev/urandom")
    (folder / "zero.png").symlink_to("/dev/zero")
    arguments = ("predict", str(folder), "--classes", "трава, вода", "--out", str(tmp_path / "out"))
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        timeout=300,  # a hang is what it is about
        check=False,
    )
    out, err = done.stdout, done.stderr
    assert done.returncode == 0, err
    assert len(list((tmp_path / "out").glob("*.json"))) == 3
    assert err.count(b"not_a_file") == 3
    assert b"\x1b" not in out + err
    code, text, _ = invoke(*arguments, "--json")
    result = json.loads(text)
    assert code == 0
    assert (result["skipped"], len(result["unreadable"])) == (3, 3)
    assert str(folder / "caf\udce9.png") in [image["image"] for image in result["images"]]


def test_commands_refuse_a_pipe_in_the_place_of_any_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    photo(tmp_path / "in" / "a.png")
    os.mkfifo(tmp_path / "in" / "b.png")
    for arguments in (
        ("predict", str(tmp_path / "in"), "--classes-file", str(pipe)),
        ("predict", str(tmp_path / "in"), "--classes", "a", "--config", str(pipe)),
        ("predict", str(tmp_path / "in"), "--classes", "a", "--weights", str(pipe)),
        ("predict", str(tmp_path / "in"), "--classes", "a", "--set", f"model.clip_weights={pipe}"),
        ("init", str(tmp_path / "run"), "--images", str(tmp_path / "in"), "--classes", str(pipe), "--preset", "tiny"),
        ("import", "sed", str(pipe), "--out", str(tmp_path / "sed")),
        ("refine", "--masks", str(tmp_path / "in"), "--images", str(tmp_path / "in"), "--out", str(tmp_path / "run")),
        ("pretrain", "--config", str(pipe), "--out", str(tmp_path / "w.safetensors")),
    ):
        code, _, err = invoke(*arguments)
        assert code in (2, 4), (arguments, err)
        assert err.count("\n") == 1, err


def test_a_run_with_links_to_somewhere_else_is_not_worked_on(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "000000.zarr").mkdir()
    (theirs / "001-teacher.lock").write_bytes(b"not ours")
    os.utime(theirs / "001-teacher.lock", (0, 0))
    for place in ("rounds", "locks", "events.jsonl"):
        run = tmp_path / f"run-{place}"
        run.mkdir()
        (run / place).symlink_to(theirs)
        for hold in (holding(run), holding_stage(run, 1, "teacher")):
            with pytest.raises(ValueError, match="is a link to"), hold:
                pass
        code, _, err = invoke("round", "--n", "0", "--run", str(run), "--backend", "inline")
        assert (code, "is a link to" in err) == (2, True)
    assert sorted(path.name for path in theirs.iterdir()) == ["000000.zarr", "001-teacher.lock"]


def test_locks_of_other_programs_in_the_folder_of_locks_stay(tmp_path: Path) -> None:
    (tmp_path / "locks").mkdir()
    for name in ("yarn.lock", "poetry.lock"):
        (tmp_path / "locks" / name).write_bytes(b"[[package]]")
        os.utime(tmp_path / "locks" / name, (0, 0))
    with holding(tmp_path):
        pass
    assert {"yarn.lock", "poetry.lock"} <= {path.name for path in (tmp_path / "locks").iterdir()}


@pytest.mark.parametrize(
    "name", ["plan/notes.txt", "source_plan/a/000000.json", "plan", "plan.json", "vocabulary.json"]
)
def test_a_folder_with_files_of_the_users_under_our_names_is_no_run_and_stays_as_it_is(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / "project" / name
    path.parent.mkdir(parents=True)
    path.write_text('{"mine": 1}')
    photo(tmp_path / "in" / "a.png")
    (tmp_path / "names.txt").write_text("a\nb\n")
    arguments = ("--images", str(tmp_path / "in"), "--classes", str(tmp_path / "names.txt"), "--preset", "tiny")
    code, _, err = invoke("init", str(tmp_path / "project"), *arguments)
    assert (code, "is no run" in err) == (2, True), err
    assert path.read_text() == '{"mine": 1}'


def test_a_killed_init_is_taken_up(tmp_path: Path) -> None:
    photo(tmp_path / "in" / "a.png")
    (tmp_path / "names.txt").write_text("a\nb\n")
    run = tmp_path / "run"
    images = ("--images", str(tmp_path / "in"), "--classes", str(tmp_path / "names.txt"))
    arguments = ("init", str(run), *images, "--preset", "tiny")
    assert invoke(*arguments)[0] == 0
    (run / "config.yaml").unlink()
    assert invoke(*arguments)[0] == 0


def test_files_of_the_users_in_a_run_are_no_outputs_whatever_their_ending(one_round: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(one_round, tmp_path / "run"))
    before = verify_run(run)
    mine = ("backup.tar", "pseudo/mine.tar", "student/export.safetensors", "notes.record.json", "a.zarr/x")
    for name in mine:
        path = run / "rounds" / "001" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"mine")
    assert verify_run(run) == before
    (run / "rounds" / "001" / "pseudo" / "pseudo-000000.json").unlink()
    assert [fault.output.name for fault in verify_run(run).faults] == ["pseudo-000000.tar"]
    for fault in verify_run(run).faults:
        _take_out(read_run(run), fault.output)
    assert all((run / "rounds" / "001" / name).is_file() for name in mine)


def test_status_stands_odd_folders_events_and_jobs(one_round: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(one_round, tmp_path / "run"))
    layout = RunLayout(run)
    rounds = begun_rounds(layout)
    for name in ("1²", "0007", "7", "9" * 200):
        (run / "rounds" / name).mkdir()
    assert begun_rounds(layout) == rounds
    odd = [
        {"kind": "shard_failed", "round": []},
        {"kind": "run_started", "rounds": "x"},
        {"kind": ["x"]},
        {"round": {}},
    ]
    with layout.events.open("a") as events:
        events.writelines(json.dumps(event) + "\n" for event in odd)
    layout.jobs.mkdir()
    for name, content in (("a", {"id": "../../../etc/x", "attempt": []}), ("b", {"attempt": "1", "id": None})):
        (layout.jobs / f"{name}.json").write_text(json.dumps(content))
    assert run_status(run).quarantined == ()
    code, out, err = invoke("status", "--run", str(run), "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)


def test_settings_with_aliases_of_aliases_loops_and_odd_names_are_refused() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "\n".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)
    )
    for text in (bomb, "a: &a [*a]", "a: &a {b: *a}", "[" * 5000, "1: 2", "a: 2001-99-99", "a: !!int x", "a: *b"):
        with pytest.raises(ValueError, match=r"\w"):
            load_yaml(text)
    assert load_yaml("a: &x [1, 2]\nb: *x") == {"a": [1, 2], "b": [1, 2]}


def test_any_name_can_be_printed() -> None:
    assert printable("caf\udce9 \x1b[2J\r\x07 трава 😀\n\tx") == "caf\\udce9 \\x1b[2J\\r\\x07 трава 😀\n\tx"


def test_making_a_run_leaves_what_a_link_of_our_name_leads_to(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "000000.json").write_text("[]")
    run = tmp_path / "run"
    run.mkdir()
    (run / "plan").symlink_to(tmp_path / "theirs")
    with pytest.raises(ValueError, match="is no run"):
        make_run(run, RunConfig())
    assert (tmp_path / "theirs" / "000000.json").read_text() == "[]"
