"""Other packages called as ours are, on PYTHONPATH or in the current folder, are not imported in their place."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
(SCRIPT,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["script-files"]


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    for name in ("pipeline", "jobs", "models", "shards"):
        (tmp_path / "foreign" / name).mkdir(parents=True)
        (tmp_path / "foreign" / name / "__init__.py").write_text("raise RuntimeError('foreign')\n")
    return tmp_path / "foreign"


def status(*command: str, cwd: Path, path: tuple[Path, ...]) -> tuple[int, str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    arguments = [sys.executable, *command, "status", "--run", "none"]
    done = subprocess.run(arguments, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def test_the_command_runs_where_python_path_names_other_packages_first(foreign: Path, tmp_path: Path) -> None:
    code, shown = status(str(ROOT / SCRIPT), cwd=tmp_path, path=(foreign, ROOT))
    assert (code, "Traceback" in shown) == (4, False), shown
    assert "none holds no run" in shown


def test_the_command_runs_in_a_folder_of_other_packages(foreign: Path) -> None:
    code, shown = status(str(ROOT / SCRIPT), cwd=foreign, path=(ROOT,))
    assert (code, "Traceback" in shown) == (4, False), shown


def test_python_m_runs_in_a_folder_with_other_packages_than_the_pipeline(foreign: Path) -> None:
    (foreign / "pipeline" / "__init__.py").unlink()
    (foreign / "pipeline").rmdir()
    code, shown = status("-m", "pipeline", cwd=foreign, path=(foreign, ROOT))
    assert (code, "Traceback" in shown) == (4, False), shown


def test_a_working_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    command = f'cd "{gone}" && rmdir "{gone}" && "{sys.executable}" -m pipeline status'
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, "the working folder is gone" in done.stderr) == (2, True), done.stderr
