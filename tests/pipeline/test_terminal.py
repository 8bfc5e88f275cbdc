"""Whatever a name holds and whoever reads, printing never ends work."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys
from pipeline.terminal import escape_unencodable_output
escape_unencodable_output()
import typer
from rich.console import Console
for number in range(2000):
    typer.echo(f"{number} \\u0442\\u0440\\u0430\\u0432\\u0430 \\U0001f600 \\udce9")
    print("\\u0442", file=sys.stderr)
Console(stderr=True).print("\\u0442\\u0440\\u0430\\u0432\\u0430 \\u2501")
open(sys.argv[1], "w").write("done")
"""


def run(done: Path, environment: dict[str, str], stdout: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", SCRIPT, str(done)]
    settings = os.environ | environment | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=settings, stdout=stdout, stderr=subprocess.PIPE)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "ascii"},
        {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {},
    ],
    ids=["latin-1", "ascii", "C", "usual"],
)
def test_names_that_no_encoding_has_and_a_reader_that_ends_do_not_end_work(
    tmp_path: Path, environment: dict[str, str], unbuffered: str
) -> None:
    process = run(tmp_path / "done", environment | {"PYTHONUNBUFFERED": unbuffered})
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().startswith(b"0 ")
    process.stdout.close()
    process.stderr.close()
    assert process.wait(60) == 0
    assert (tmp_path / "done").read_text() == "done"


@pytest.mark.parametrize("closed", ["1", "2", "1 2"])
def test_streams_that_are_not_open_do_not_end_work(tmp_path: Path, closed: str) -> None:
    command = " ".join(f"{number}>&-" for number in closed.split())
    found = subprocess.run(
        ["sh", "-c", f'"$0" -c "$1" "$2" {command}', sys.executable, SCRIPT, str(tmp_path / "done")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
        timeout=60,
    )
    assert found.returncode == 0
    assert (tmp_path / "done").read_text() == "done"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_standard_output_ends_with_its_reason(tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        process = run(tmp_path / "done", {"PYTHONUNBUFFERED": ""}, full.fileno())
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"No space left" in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
def test_notes_that_fit_nowhere_end_no_work() -> None:
    code = "import sys; from pipeline.terminal import escape_unencodable_output as take; take(); "
    code += "print('x' * 9999, file=sys.stderr, flush=True); print('done')"
    command = [sys.executable, "-c", code]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stderr=full, stdout=subprocess.PIPE, check=False, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stdout) == (0, b"done\n")
