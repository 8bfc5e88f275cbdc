"""Code that Ray has unpacked, and unpacks again while a job or a worker uses it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from jobs.cluster.connection import ROOT
from jobs.execution import code
from jobs.execution.code import PACKAGES, WORKERS_PACKAGES, import_all, is_code_missing, names_our_module
from jobs.execution.faults import Fault, fault_of
from jobs.execution.scheduler import Scheduler
from jobs.execution.settings import ExecutionConfig
from jobs.execution.worker import WorkerSlot
from jobs.stage import ShardTask, StagePlan
from pipeline.cli.exit_codes import end_with, exit_code_of
from pipeline.errors import EXIT_RESUMABLE
from pipeline.run import jobs
from pipeline.run.jobs import outcome_written, read_outcome


def missing(name: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(f"No module named {name!r}", name=name)


def late_imports(packages: tuple[str, ...]) -> set[str]:
    """The modules of ours that functions of these packages import."""
    found = set()
    for path in [path for package in packages for path in (ROOT / package).rglob("*.py")]:
        for function in [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]:
            for node in ast.walk(function):
                if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in PACKAGES:
                    found.add(node.module or "")
    return found


@pytest.mark.parametrize("packages", [PACKAGES, WORKERS_PACKAGES])
def test_nothing_of_ours_is_left_to_import_once_all_is_imported(packages: tuple[str, ...]) -> None:
    program = (
        "import sys; from jobs.execution.code import import_all; import_all(sys.argv[1:]); print(*sorted(sys.modules))"
    )
    command = [sys.executable, "-c", program, *packages]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    loaded = set(done.stdout.split())
    assert late_imports(packages)
    assert late_imports(packages) <= loaded
    assert "ray" not in loaded


def test_a_module_that_is_missing_is_named_and_not_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "torn"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "half.py").write_text("import jobs.gone\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match=r"jobs\.gone"):
        import_all(["torn"])


def test_what_is_missing_of_unpacked_code_passes_and_elsewhere_not(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = [
        missing("jobs.stages.refine"),
        ImportError("cannot import name 'STAGE' from 'jobs.stages.refine'", name="jobs.stages.refine"),
        SyntaxError("'(' was never closed", (str(ROOT / "jobs" / "stage.py"), 1, 1, "(")),
        FileNotFoundError(2, "No such file", str(ROOT / "models" / "tiny" / "x.safetensors")),
    ]
    others = [missing("typer"), FileNotFoundError(2, "No such file", "/data/x.jpg"), ValueError("x")]
    assert not any(map(is_code_missing, ours))
    assert exit_code_of(missing("jobs.x")) is None
    monkeypatch.setattr(code, "UNPACKED", True)
    assert all(map(is_code_missing, ours))
    assert not any(map(is_code_missing, others))
    assert [fault_of(error).kind for error in ours] == ["transient"] * 4
    assert {exit_code_of(error) for error in ours} == {EXIT_RESUMABLE}
    behind = RuntimeError("could not start")
    behind.__cause__ = ours[0]
    assert fault_of(behind).kind == "transient"


def test_the_message_of_missing_code_says_to_resume(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(code, "UNPACKED", True)
    with pytest.raises(typer.Exit):
        end_with(missing("jobs.x"))
    assert "No module named 'jobs.x': Ray unpacks the uploaded code anew; resume" in capsys.readouterr().err


def test_texts_that_name_a_module_of_ours_are_told_from_others() -> None:
    assert names_our_module("... ModuleNotFoundError: No module named 'shards.files'")
    assert names_our_module("/usr/bin/python: No module named pipeline")
    assert not names_our_module("No module named 'typer'")
    assert not names_our_module("No module named 'jobsite'")


def test_a_worker_imports_everything_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[object] = []
    monkeypatch.setattr("jobs.execution.worker.import_all", order.append)
    slot = WorkerSlot(lambda: order.append("worker"), 1, WORKERS_PACKAGES)  # type: ignore[arg-type, return-value]
    assert slot.start() is None
    assert order == [WORKERS_PACKAGES, "worker"]


def test_a_worker_whose_code_is_missing_is_started_again_after_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    time = [0.0]
    task = ShardTask(stage="a", shard="0", output=Path("/a/0"))
    plan = StagePlan("a", lambda: None, [task])  # type: ignore[arg-type, return-value]
    scheduler = Scheduler([plan], ExecutionConfig(store_attempts=4), lambda: time[0])
    monkeypatch.setattr(code, "UNPACKED", True)
    fault = fault_of(missing("jobs.x"))
    for pause in (1.0, 2.0, 4.0):
        assert scheduler.fail_start("a", fault) == []
        assert scheduler.waiting("a") == 0
        assert scheduler.delay_left == pause
        time[0] += pause
        assert scheduler.waiting("a") == 1
    assert scheduler.fail_start("a", Fault("transient", "x")) == [task]


def test_a_job_imports_everything_first_and_its_missing_code_is_resumable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn() -> None:
        raise missing("jobs.x")

    path = tmp_path / "a.outcome.json"
    monkeypatch.setattr(code, "UNPACKED", True)
    monkeypatch.setattr(jobs, "import_all", torn)
    with pytest.raises(ModuleNotFoundError), outcome_written(path):
        raise AssertionError("the work must not begin")
    outcome = read_outcome(path)
    assert outcome is not None
    assert (outcome.exit_code, "jobs.x" in outcome.message) == (EXIT_RESUMABLE, True)
    with outcome_written(None):
        pass
