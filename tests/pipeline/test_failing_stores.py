"""Whole runs in a store that is slow and fails every tenth request, or stops to answer in the middle."""

import itertools
from pathlib import Path

import pytest
from run_setup import SMALL, again, sets
from store_setup import FlakyFileSystem, files_of, results_of

from jobs.execution.settings import ExecutionConfig
from shards.storage import store_calls
from shards.storage.store import MIRROR_VARIABLE, Store

_numbers = itertools.count()


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the URL of such a store, with short pauses between attempts."""
    monkeypatch.setattr(store_calls, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(store_calls, "LONGEST_PAUSE_S", 0.01)
    monkeypatch.setattr(ExecutionConfig, "delay_s", lambda self, failed: 0.01)
    monkeypatch.setenv(MIRROR_VARIABLE, str(tmp_path))
    return f"flaky://stores/failing-{next(_numbers)}"


def made_in(url: str) -> dict[str, bytes]:
    store = Store(url)
    return {name: store.read(name) or b"" for name in store.find()}


@pytest.mark.slow
def test_a_slow_store_that_fails_every_tenth_request_changes_nothing(
    url: str, one_round: Path, weights: dict[str, str]
) -> None:
    before = FlakyFileSystem.failed
    code, _, err = again(url, *sets({**SMALL, **weights}))
    assert code == 0, err
    assert FlakyFileSystem.failed - before > 20
    assert results_of(made_in(url)) == results_of(files_of(one_round))


@pytest.mark.slow
@pytest.mark.parametrize("last", ["teacher/000000.json", "pseudo_labels.record.json"])
def test_a_store_that_does_not_answer_any_more_is_named_and_the_same_command_goes_on(
    url: str, one_round: Path, weights: dict[str, str], monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(FlakyFileSystem, "gone_at", f"{url.partition('://')[2]}/rounds/001/{last}")
        code, _, err = again(url, *sets({**SMALL, **weights}))
    told = [line for line in err.splitlines() if line.startswith("stseg-pipeline: ")]
    assert (code, len(told), "Traceback" in err) == (75, 1, False), err
    assert told[0] == err.splitlines()[-1]
    assert url in told[0] and "resume with the same command" in told[0]
    Store(url).remove(["run.lock"])  # of this process, which lives; that of a command that has ended is taken over
    code, _, err = again(url)
    assert code == 0, err
    assert results_of(made_in(url)) == results_of(files_of(one_round))
