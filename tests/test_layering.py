"""The packages import in one direction only, and are the ones of this repository."""

import ast
import importlib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ORDER = ("pipeline", "jobs", "models", "shards")
TORCH = {"torch", "torchvision", "timm", "open_clip", "segment_anything", "ray"}
SLOW = TORCH | {"scipy", "zarr", "fsspec", "safetensors", "webdataset"}
# Which parts of its own package each part may import. A part is a folder, or a file that lies in no folder.
SAM = {"sam", "weights"}
STAGE = {"run", "resources", "counting", "stage", "commit"}
WORKING = {*STAGE, "artifacts", "inference", "quality", "execution"}
ASKED = {"errors", "terminal", "settings", "progress"}
PARTS: dict[str, dict[str, set[str]]] = {
    "shards": {
        "files": set(),
        "formats": {"files"},
        "scenes": {"files", "formats"},
        "storage": {"files", "formats"},  # and never `data`: an object store holds names and bytes
        "data": {"files", "formats", "scenes"},
    },
    "jobs": {
        "run": set(),
        "resources": set(),
        "counting": set(),
        "stage": {"run", "resources"},
        "commit": {"run", "stage"},
        "artifacts": STAGE,
        "inference": {*STAGE, "artifacts"},
        "quality": {*STAGE, "artifacts"},
        "execution": {*STAGE, "artifacts"},
        "training": WORKING,
        "cluster": WORKING,
        "stages": {*WORKING, "training"},
        "executor": {*WORKING, "cluster"},
    },
    "pipeline": {
        "terminal": set(),
        "errors": set(),
        "setting_comments": set(),
        "settings": {"setting_comments"},
        "display": {"terminal"},
        "progress": {"terminal", "display"},
        "report": ASKED,
        "tasks": {"report"},
        "config": {"setting_comments", "settings"},
        "run": {*ASKED, "config", "tasks"},
        "rounds": {*ASKED, "config", "tasks", "run", "report"},
        "submit": {*ASKED, "config", "tasks", "run", "report", "rounds"},
        "commands": {*ASKED, "config", "tasks", "run", "report", "rounds"},
        "cli": {*ASKED, "config", "tasks", "run", "report", "rounds", "submit", "commands"},
        "__main__": {"cli"},
    },
    "models": {
        "devices": set(),
        "evaluation": set(),
        "weights": set(),
        "sam": {"weights"},
        "stseg": SAM,
        "refinement": SAM,
        "training": {*SAM, "stseg", "refinement"},
        "presets": {*SAM, "stseg", "refinement"},
        "interop": {*SAM, "stseg", "refinement", "training", "presets"},
        "tiny": {*SAM, "stseg", "refinement", "training", "presets"},
    },
}


def imported_packages(source: str) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add("." if node.level else (node.module or "").partition(".")[0])
    return names


def imports_of(package: str) -> dict[str, set[str]]:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, package
    return {str(path.relative_to(ROOT)): imported_packages(path.read_text()) for path in files}


def offenders(package: str, forbidden: set[str]) -> dict[str, set[str]]:
    return {path: names & forbidden for path, names in imports_of(package).items() if names & forbidden}


def imported_parts(source: str, package: str) -> set[str]:
    """The parts of a package that a module imports, wherever in the module it does."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == package:
            modules.update(f"{package}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module or "")
    return {name.split(".")[1] for name in modules if name.startswith(f"{package}.")}


def imported_at_once(source: str) -> set[str]:
    """What a module imports while it is imported itself: not in functions, not for type checkers alone."""
    names: set[str] = set()

    def visit(body: list[ast.stmt]) -> None:
        for node in body:
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                module = node.module or ""
                names.update({module, *(f"{module}.{alias.name}" for alias in node.names)})
            elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                visit(node.orelse)
            elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for field in ("body", "orelse", "handlers", "finalbody"):
                    visit(getattr(node, field, []))

    visit(ast.parse(source).body)
    return names


def slow_imports() -> dict[str, str]:
    """For each of our modules that loads a slow library as soon as it is imported: by way of which modules."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): imported_at_once(path.read_text())
        for package in ORDER
        for path in sorted((ROOT / package).rglob("*.py"))
    }
    slow = {
        name: f"{name} < {min(libraries)}"
        for name, names in modules.items()
        if (libraries := {one.partition(".")[0] for one in names} & SLOW)
    }
    reached = list(slow)
    for found in reached:  # grows while it is read: whoever imports a slow module is one
        for name, names in modules.items():
            if found in names and name not in slow:
                slow[name] = f"{name} < {slow[found]}"
                reached.append(name)
    return slow


def parts_of(package: str) -> dict[str, list[Path]]:
    """The files of each part of a package."""
    parts: dict[str, list[Path]] = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        part = path.relative_to(ROOT / package).with_suffix("").parts[0]
        if part != "__init__":
            parts.setdefault(part, []).append(path)
    return parts


def test_the_check_sees_imports_inside_functions() -> None:
    source = "def f():\n    import ray.train\n    from models.stseg.dea import x\n"
    assert imported_packages(source) == {"ray", "models"}


@pytest.mark.parametrize("package", ORDER)
def test_packages_import_only_what_stands_to_their_right(package: str) -> None:
    left = set(ORDER[: ORDER.index(package)])
    assert offenders(package, left | {"tests", "benchmarks", "."}) == {}


def test_only_the_cluster_and_the_training_group_import_ray() -> None:
    found = {path for package in ORDER for path in offenders(package, {"ray"})}
    assert {path for path in found if not path.startswith("jobs/cluster/")} == {"jobs/training/group.py"}


def test_only_runners_and_runs_know_that_a_run_may_be_in_an_object_store() -> None:
    """Who else imports `shards.storage` may only ask what a path is called, or whether it is of a store."""
    training = {f"jobs/training/{name}.py" for name in ("group", "loop", "checkpoint_files")}
    runners = {"jobs/run.py", "jobs/execution/worker.py", *training}
    asking = {"as_argument", "as_shown", "is_in_store", "run_folder"}
    strays: dict[str, set[str]] = {}
    for package in ("pipeline", "jobs", "models"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = str(path.relative_to(ROOT))
            if name in runners or name.startswith("pipeline/run/"):
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("shards.storage"):
                    stray = {alias.name for alias in node.names} - asking
                    strays |= {name: stray} if stray else {}
    assert strays == {}


def test_shards_imports_no_torch() -> None:
    assert offenders("shards", TORCH) == {}


def test_the_check_sees_every_way_to_import_a_part() -> None:
    source = "import m.a.x\nfrom m import b\ndef f():\n    from m.c import y\n    from m.d.z import w\nimport mm.e\n"
    assert imported_parts(source, "m") == {"a", "b", "c", "d"}


@pytest.mark.parametrize("package", PARTS)
def test_parts_of_a_package_import_only_what_the_table_allows(package: str) -> None:
    allowed, files = PARTS[package], parts_of(package)
    assert files.keys() == allowed.keys(), "the table names every part and no other"
    strays = {
        str(path.relative_to(ROOT)): stray
        for part, paths in files.items()
        for path in paths
        if (stray := imported_parts(path.read_text(), package) - allowed[part] - {part})
    }
    assert strays == {}


def test_the_check_of_slow_imports_sees_those_of_the_module_alone() -> None:
    source = """
import a
if TYPE_CHECKING:
    import b
else:
    import c
try:
    from d import x
except ImportError:
    import e
class C:
    import f
    def method(self):
        import g
def function():
    import h
"""
    assert imported_at_once(source) == {"a", "c", "d", "d.x", "e", "f"}


def test_commands_settings_and_stages_load_slow_libraries_only_where_they_work() -> None:
    """Listing, planning and refusing a wrong setting take a tenth of the time that torch needs to load."""
    slow = slow_imports()
    assert {"models.stseg.stseg", "jobs.training.loop", "jobs.training.group"} <= slow.keys()
    quick = ("pipeline.", "shards.", "jobs.stages.", "jobs.artifacts.", "jobs.execution.", "jobs.cluster.")
    strays = {
        name: way
        for name, way in slow.items()
        if name.startswith(quick) or name.endswith((".settings", ".config")) or name == "models.presets"
    }
    # The command imports the module once model and settings are known.
    assert strays.keys() == {"pipeline.commands.export"}, strays


@pytest.mark.parametrize("package", PARTS)
def test_the_table_of_parts_has_no_circle(package: str) -> None:
    order = list(TopologicalSorter(PARTS[package]).static_order())
    assert set(order) == PARTS[package].keys()


def test_evaluation_imports_no_torch() -> None:
    assert offenders("models/evaluation", TORCH) == {}


@pytest.mark.parametrize("package", ORDER)
def test_packages_lie_in_this_repository(package: str) -> None:
    file = importlib.import_module(package).__file__
    assert file is not None
    assert Path(file).resolve() == ROOT / package / "__init__.py"


def test_init_files_hold_only_a_docstring() -> None:
    for package in ORDER:
        for path in sorted((ROOT / package).rglob("__init__.py")):
            tree = ast.parse(path.read_text())
            assert len(tree.body) == 1, path
            assert ast.get_docstring(tree), path


def test_tests_lie_in_a_folder_per_package_and_shadow_none() -> None:
    """A folder without `__init__.py` never hides a package of the same name; support modules lie apart."""
    files = {path.relative_to(ROOT / "tests").as_posix() for path in (ROOT / "tests").rglob("*.py")}
    folders = {name.rpartition("/")[0] for name in files}
    assert folders == {"", "support", "benchmarks", *ORDER}
    assert not [name for name in files if name.endswith("__init__.py")]
    tests = [name.rpartition("/")[2] for name in files if not name.startswith("support/")]
    assert len(tests) == len(set(tests)), "two test files of one name cannot be collected together"
