"""What the project consists of besides code: what the wheel takes along, what make and the hooks offer, links."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("pipeline", "jobs", "models", "shards")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_wheel_takes_every_file_of_a_package_along(package: str) -> None:
    include = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    assert any(fnmatch(package, pattern) for pattern in include)
    data = PROJECT["tool"]["setuptools"]["package-data"][package]
    for path in (ROOT / package).rglob("*"):
        if "__pycache__" in path.parts or path.is_dir():
            continue
        inside = path.relative_to(ROOT / package)
        if path.suffix == ".py":
            assert (path.parent / "__init__.py").is_file(), f"{inside} is in a folder that no wheel takes"
        else:
            assert any(fnmatch(str(inside), pattern) for pattern in data), f"package-data of {package} lacks {inside}"
    assert (ROOT / package / "py.typed").is_file()


def test_the_license_is_the_one_that_is_declared() -> None:
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert PROJECT["project"]["license-files"] == ["LICENSE"]
    text = " ".join((ROOT / "LICENSE").read_text().split())
    assert text.startswith("Apache License Version 2.0, January 2004")
    assert "END OF TERMS AND CONDITIONS" in text


def test_no_text_installs_an_extra_by_the_name_of_a_distribution_that_is_nowhere_to_be_had() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    wrong = re.compile(
        re.escape(PROJECT["project"]["name"]) + r"\[|pip install (-\S+ )*['\"]?" + PROJECT["project"]["name"]
    )
    for name in listed.splitlines():
        path = ROOT / name
        if path.suffix in (".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".sh", "") and path.is_file():
            assert not wrong.search(path.read_text(encoding="utf-8")), name
    extras = set(PROJECT["project"]["optional-dependencies"])
    for page in PAGES:
        named = re.findall(r"\.\[([a-z0-9,]+)\]", page.read_text(encoding="utf-8"))
        assert {extra for one in named for extra in one.split(",")} <= extras, page


@pytest.mark.slow
def test_a_wheel_holds_the_license_the_weights_and_every_module(tmp_path: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [name for name in listed.split("\0") if name and (ROOT / name).is_file()]
    for name in files:  # a copy: the build leaves folders in its source
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / "source" / name)
    build = [sys.executable, "-m", "pip", "wheel", "./source", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "-w", "wheels"], cwd=tmp_path, capture_output=True, check=True)
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
        (license_file,) = (name for name in inside if name.endswith(".dist-info/licenses/LICENSE"))
        assert archive.read(license_file) == (ROOT / "LICENSE").read_bytes()
        (metadata,) = (name for name in inside if name.endswith(".dist-info/METADATA"))
        assert "License-File: LICENSE\n" in archive.read(metadata).decode()
    assert {name for name in files if name.startswith(tuple(f"{package}/" for package in PACKAGES))} <= inside


def test_version_and_license_are_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["project"]["version"]
    assert citation["license"] == PROJECT["project"]["license"]
    assert citation["title"] == PROJECT["project"]["name"]
    assert f"\n## {citation['version']} - " in (ROOT / "CHANGELOG.md").read_text()


def test_make_help_names_every_target() -> None:
    text = (ROOT / "Makefile").read_text()
    (targets,) = re.findall(r"^\.PHONY: (.+)$", text, re.MULTILINE)
    shown = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [line.split()[1] for line in shown.splitlines()] == targets.split()
    assert ".DEFAULT_GOAL := round" in text


def test_every_python_that_the_project_promises_is_tried() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    job = workflow["jobs"]["check"]
    assert {"run": ".ci/run"} in job["steps"]
    assert PROJECT["project"]["requires-python"] == f">={job['strategy']['matrix']['python'][0]}"
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_hooks_need_nothing_but_the_environment_of_make_setup() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    for repo in hooks["repos"]:
        assert repo["repo"] == "local"
        for hook in repo["hooks"]:
            assert hook["language"] == "system"
            assert hook["entry"].startswith(".venv/bin/")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_the_documentation_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" in target:
            continue
        path = (page.parent / target).resolve()
        assert path.exists(), f"{page.name}: {target} is not there"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_a_heading_lead_to_one(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)]+)\)", page.read_text()):
        if "://" not in target:
            there = (page.parent / target).resolve() if target else page
            assert anchor in anchors_of(there), f"{page.name}: {target}#{anchor} is not there"


def anchors_of(page: Path) -> set[str]:
    """The names that GitHub gives the headings of a page."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_markers_come_by_fixture_and_by_parameter() -> None:
    files = ["tests/jobs/test_executor.py", "tests/shards/test_store_lock.py"]
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "--collect-only", "-q", *files, "-m", "ray or s3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    names = {line.rpartition("::")[2] for line in done.stdout.splitlines() if "::" in line}
    assert {"test_attempt_that_raises_is_repeated[ray]", "test_killed_worker_loses_only_its_shard"} <= names, (
        done.stdout
    )
    assert "test_locks_of_other_names_do_not_meet[s3]" in names
    assert not [name for name in names if name.endswith(("[inline]", "[memory]"))]
