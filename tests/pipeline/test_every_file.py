"""No file of a run can be damaged or exchanged without a word, and `repair` brings back the bytes that were there."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from run_setup import again, invoke

from benchmarks.chaos_compare import contents, differences
from pipeline.run.verify import CheckResult, verify_run
from shards.formats.layout import record_path

pytestmark = pytest.mark.slow

SEED = 12
SAMPLED = 30  # of the files below embeddings and rounds; what the run rests on is always tried
LOGS = {"events.jsonl", "metrics.jsonl", "report.html", "run.lock", "run.lock.guard"}
LETTERS = "0123456789abcdefABCDEF_.-"


@pytest.fixture(scope="module")
def two_rounds(one_round: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two rounds done."""
    run = Path(shutil.copytree(one_round, tmp_path_factory.mktemp("two") / "run"))
    code, _, err = invoke("round", "--n", "2", "--run", str(run), "--backend", "inline")
    assert code == 0, err
    return run


@pytest.fixture
def run(two_rounds: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(two_rounds, tmp_path / "run"))


def files(run: Path) -> list[Path]:
    """Return the files to try, those of the run folder itself and its plans first."""
    found = sorted(path for path in run.rglob("*") if path.is_file() and path.name not in LOGS)
    base = [path for path in found if path.relative_to(run).parts[0] not in ("embeddings", "rounds")]
    rest = [path for path in found if path not in base]
    return base + random.Random(SEED).sample(rest, SAMPLED)


def flip_byte(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(bytes(data))


def change_character(path: Path, chance: random.Random) -> None:
    text = path.read_text()
    index = chance.choice([index for index, letter in enumerate(text) if letter in LETTERS])
    other = chance.choice([letter for letter in LETTERS if letter != text[index]])
    path.write_text(text[:index] + other + text[index + 1 :])


def names(verdict: CheckResult, path: Path) -> bool:
    """Return whether a fault or something stale is about a file, an output that it is part of or a record of it."""
    found = [fault.output for fault in verdict.faults] + [state.task.output for state in verdict.stale]
    return any(path in (output, record_path(output)) or output in path.parents for output in found)


def pairs(run: Path) -> Iterator[tuple[Path, Path]]:
    """Yield outputs of round 1 with the same ones of round 2, and the first shard of each stage with the second."""
    first, second = run / "rounds" / "001", run / "rounds" / "002"
    for path in sorted(first.rglob("*")):
        is_result = path.suffix == ".json" and path.with_suffix(".record.json").is_file()
        # The shares are measured in round 1 alone where no class starves.
        if (is_result or path.suffix in (".zarr", ".tar", ".safetensors")) and path.name != "shares.json":
            yield path, second / path.relative_to(first)
    for folder, name in (
        (first / "teacher", "{}.zarr"),
        (first / "refine", "{}.zarr"),
        (first / "pseudo", "pseudo-{}.tar"),
    ):
        yield folder / name.format("000000"), folder / name.format("000001")
    yield run / "embeddings" / "sam" / "000000.zarr", run / "embeddings" / "sam" / "000001.zarr"
    yield run / "embeddings" / "sam" / "source-000000.zarr", run / "embeddings" / "sam" / "test-000000.zarr"


def exchange(one: Path, other: Path) -> None:
    """Exchange two outputs together with their records."""
    for left, right in ((one, other), (record_path(one), record_path(other))):
        aside = left.with_name("aside")
        left.rename(aside)
        right.rename(left)
        aside.rename(right)


def test_verify_names_every_flipped_byte(run: Path) -> None:
    chance = random.Random(SEED)
    assert verify_run(run) == CheckResult(verify_run(run).checked, 0, ())
    for path in files(run):
        kept = path.read_bytes()
        flip_byte(path, chance)
        assert names(verify_run(run), path), path
        path.write_bytes(kept)


def test_verify_names_every_changed_character(run: Path) -> None:
    chance = random.Random(SEED + 1)
    for path in (path for path in files(run) if path.suffix in (".json", ".yaml")):
        kept = path.read_bytes()
        change_character(path, chance)
        assert names(verify_run(run), path), path
        path.write_bytes(kept)


def test_verify_names_outputs_that_were_exchanged_with_their_records(run: Path) -> None:
    for one, other in pairs(run):
        exchange(one, other)
        verdict = verify_run(run)
        assert {one, other} <= {fault.output for fault in verdict.faults}, (one, other)
        exchange(one, other)
    assert verify_run(run).faults == ()


@pytest.mark.parametrize("seed", range(2))
def test_repair_restores_the_bytes_of_the_undisturbed_run(run: Path, seed: int) -> None:
    wanted, chance = contents(run), random.Random(seed)
    found = [path for path in files(run) if path.name != "config.yaml"]
    # Of a plan and its lists one can be made out of the other, not both out of nothing.
    spared = {"plan.json", "source_plan.json"} if seed else {"000000.json", "000001.json"}
    for path in found[:8]:
        if path.name not in spared:
            flip_byte(path, chance)
    for path in chance.sample(found[8:], 6):
        flip_byte(path, chance)
    exchange(*chance.choice(list(pairs(run))))
    code, out, err = invoke("shards", "repair", "--run", str(run), "--backend", "inline")
    assert code == 0, out + err
    assert differences(wanted, contents(run)) == []
    assert verify_run(run) == CheckResult(verify_run(run).checked, 0, ())


def test_a_round_with_verify_mends_what_all_rounds_share_as_repair_does(run: Path) -> None:
    wanted, chance = contents(run), random.Random(SEED)
    damaged = [run / "vocabulary.json", run / "plan.json", run / "source_plan" / "000000.json"]
    damaged.append(next((run / "embeddings" / "text").glob("*.safetensors")))
    for path in damaged:
        flip_byte(path, chance)
    code, out, err = again(run, "--verify")
    assert code == 0, out + err
    assert differences(wanted, contents(run)) == []


def test_settings_that_are_not_as_they_were_written_are_named_and_nothing_is_done_with_them(run: Path) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("threshold: 0.0", "threshold: 0.5"))
    wanted = contents(run)
    code, out, _ = invoke("shards", "verify", "--run", str(run))
    assert (code, "edited by hand, or is damaged" in out, "gate.threshold" in out) == (4, True, True), out
    for command in (["shards", "repair"], ["round", "--n", "2", "--verify"]):
        code, _, err = invoke(*command, "--run", str(run), "--backend", "inline")
        assert (code, "edited by hand, or is damaged" in err) == (4, True)
    assert differences(wanted, contents(run)) == []


def test_a_changed_setting_is_stale_and_no_fault(run: Path) -> None:
    from pipeline.config import load_config, save_config

    config = load_config(run / "config.yaml")
    save_config(
        run / "config.yaml", config.model_copy(update={"alarms": config.alarms.model_copy(update={"churn": 0.9})})
    )
    verdict = verify_run(run)
    assert verdict.faults == ()
    assert {state.task.stage for state in verdict.stale} == {"report"}
    code, out, _ = invoke("shards", "verify", "--run", str(run))
    assert (code, "would be made again: round 1 report, 1 outputs: alarms.churn" in out) == (0, True)


def test_lost_images_leave_a_damaged_list_of_samples_named_and_in_place(run: Path) -> None:
    path = run / "plan" / "000001.json"
    path.write_text(path.read_text().replace("target-000002", "target-000003"))
    (run / "plan.json").unlink()
    code, _, err = invoke("shards", "repair", "--run", str(run), "--backend", "inline")
    assert (code, "restore the file from a copy" in err) == (4, True)
    assert not (run / "plan.json").exists()
