"""Where a private Ray keeps its files: Ray's own choice where that can work, else a folder of this user alone."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.cluster.connection import ROOT
from jobs.cluster.session_folder import session_folder, why_unusable

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere Ray does not read TMPDIR")
pytestmark = LINUX


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short folder, which stands for /tmp."""
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    folder = Path(tempfile.mkdtemp(prefix="s", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_a_folder_that_can_hold_the_sockets_is_left_to_ray(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(short))
    assert session_folder() == (None, "")
    monkeypatch.setenv("TMPDIR", "x" * 500)
    monkeypatch.setenv("RAY_TMPDIR", str(short))  # which Ray prefers
    assert session_folder() == (None, "")


def test_the_limit_is_that_of_rays_sockets(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = 12345
    monkeypatch.setattr(os, "getpid", lambda: pid)
    long = short / ("a" * (41 - len(str(short)) - 1))
    longer = long.with_name(f"{long.name}b")
    for folder in (long, longer):
        folder.mkdir()
    assert why_unusable(long / "ray", long) is None
    assert why_unusable(longer / "ray", longer) == "is 42 characters long, and Ray's sockets allow 41"


@pytest.mark.parametrize("fault", ["long", "missing", "relative", "empty", "ascii", "full", "foreign"])
def test_instead_of_a_folder_that_ray_cannot_use_a_private_one_is_taken_and_said_in_a_line(
    fault: str, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = short / {"long": "a" * 60, "ascii": "é"}.get(fault, "t")
    if fault != "missing":
        folder.mkdir()
    if fault == "foreign":  # another user's /tmp/ray
        (folder / "ray").mkdir()
        access = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: path != folder / "ray" and access(path, mode))
    if fault == "full":
        usage = shutil.disk_usage
        few = usage(short)._replace(free=2**20)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: few if path == folder else usage(path))
    named = {"relative": "t", "empty": ""}.get(fault, str(folder))
    monkeypatch.setenv("TMPDIR", named)
    others = [short]
    chosen, why = session_folder(others)
    assert chosen == short / f"ray-{os.getuid()}" / "ray"
    assert stat.S_IMODE(chosen.parent.stat().st_mode) == 0o700
    assert why.startswith("TMPDIR ")
    assert "\n" not in why
    assert str(chosen) in why
    assert session_folder(others)[0] == chosen


def test_a_folder_that_others_can_enter_is_not_taken(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(short / "missing"))
    guessed = short / f"ray-{os.getuid()}"
    guessed.mkdir(mode=0o755)
    guessed.chmod(0o755)
    chosen, _ = session_folder([short])
    assert chosen is not None
    assert chosen.parent != guessed
    assert stat.S_IMODE(chosen.parent.stat().st_mode) == 0o700


def test_without_any_folder_the_setting_is_named(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = short / ("a" * 60)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    with pytest.raises(ValueError, match=rf"TMPDIR {long} is \d+ characters long.*allow \d+.*set TMPDIR to a folder"):
        session_folder([short / "missing"])


@pytest.mark.ray
@pytest.mark.slow
def test_ray_works_under_a_long_tmpdir(short: Path) -> None:
    long = short / ("a" * 60)
    long.mkdir()
    code = """
from jobs.cluster.connection import connection
with connection(num_cpus=1):
    import ray
    print(ray.get(ray.remote(num_cpus=0)(lambda: 7).remote()))
"""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", code]
    environment = {**plain, "TMPDIR": str(long)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.stdout.split() == ["7"], done.stderr
    assert "Ray's sockets allow" in done.stderr
