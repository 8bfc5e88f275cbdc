"""The connection to Ray: what is refused before it is made, and what workers find."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.cluster.connection import ROOT, connect, disconnect, refuse_foreign_packages, uploaded_code
from jobs.execution.code import PACKAGES


def test_foreign_package_of_the_same_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("")
    with pytest.raises(ValueError, match="in place of this project's own models"):
        refuse_foreign_packages([tmp_path])


def test_foreign_module_of_the_same_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "jobs.py").write_text("")
    with pytest.raises(ValueError, match="run from another folder"):
        refuse_foreign_packages([tmp_path])


def test_own_packages_and_folders_without_packages_are_fine(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "link").symlink_to(ROOT)
    refuse_foreign_packages([ROOT, tmp_path, tmp_path / "link", tmp_path / "missing"])


def test_second_connection_keeps_the_first(ray_session: None) -> None:
    import ray

    assert connect() is False
    assert ray.is_initialized()


def test_workers_import_this_repository(ray_session: None) -> None:
    import ray

    @ray.remote(num_cpus=0)
    def where() -> tuple[str, str]:
        import models

        return str(models.__file__), os.environ.get("RAY_AUTH_MODE", "")

    found, mode = ray.get(where.remote())
    assert Path(found) == ROOT / "models" / "__init__.py"
    assert mode == os.environ["RAY_AUTH_MODE"] == "token"


def test_authentication_reaches_a_ray_that_was_imported_before() -> None:
    """Ray reads its authentication mode when it is imported; a mode chosen later must still reach it."""
    code = """
import ray
from jobs.cluster.connection import connect
from ray._raylet import AuthenticationMode, get_authentication_mode
before = get_authentication_mode() == AuthenticationMode.TOKEN
ray.init = lambda **settings: None
connect()
print(before, get_authentication_mode() == AuthenticationMode.TOKEN)
"""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=plain, capture_output=True, text=True, timeout=180, check=False)
    assert done.stdout.split() == ["False", "True"], done.stderr


def test_start_that_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    tries: list[object] = []
    good_from = 3

    def start(**settings: object) -> None:
        tries.append(settings["address"])
        if len(tries) < good_from:
            raise Exception("timed out")  # what Ray raises

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "init", start)
    assert connect()
    assert tries == ["local"] * 3
    good_from = 100
    with pytest.raises(ConnectionError, match="3 attempts: timed out"):
        connect()


@pytest.mark.parametrize(("told", "expected"), [("10.0.0.1:6379", "10.0.0.1:6379"), (None, "auto")])
def test_auto_is_the_cluster_that_a_job_belongs_to(
    told: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    joined: list[object] = []
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **settings: joined.append(settings["address"]))
    if told is None:
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
    else:
        monkeypatch.setenv("RAY_ADDRESS", told)
    assert connect("auto")
    assert joined == [expected]


def test_a_cluster_that_does_not_let_us_in_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def refuse(**settings: object) -> None:
        raise RuntimeError("invalid token")

    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(ConnectionError, match="answers at host:1: invalid token"):
        connect("host:1")


def test_only_the_packages_travel_to_a_cluster() -> None:
    code = uploaded_code()
    left = {path.name for path in ROOT.iterdir()} - {name.lstrip("/") for name in code["excludes"]}
    assert left == set(PACKAGES)


def test_disconnecting_without_ray_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    disconnect()
    assert "ray" not in sys.modules
