"""How stages are joined into what runs at the same time, and what is done where shards are given up."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from jobs.executor import StageFailed
from jobs.run import Run, RunRef
from jobs.stage import Done, ShardTask, Stage, StagePlan, Worker
from pipeline.progress import RunProgress
from pipeline.rounds.driver import Driver, RoundRequest
from pipeline.run.run import OpenRun, read_run
from pipeline.tasks.recipe import ROUND, parts_of, shards_chain, stage_of, stage_plans
from shards.formats.records import Json


def nobody() -> Worker:
    raise AssertionError


def plan(name: str, *reads: str, after: str | None = None, where: str = "workers", shards: int = 2) -> StagePlan:
    """Return a plan whose shards read those of others."""
    tasks = [
        ShardTask(
            stage=name,
            shard=f"{n:06d}",
            output=Path(f"/{name}/{n:06d}.tar"),
            inputs={role: Path(f"/{role}/{n:06d}.tar") for role in reads},
        )
        for n in range(shards)
    ]
    return StagePlan(name, nobody, tasks, after=after, where=where)  # type: ignore[arg-type]


def names(plans: list[StagePlan]) -> list[list[str]]:
    return [[one.name for one in part] for part in parts_of(plans)]


def test_stages_that_follow_shard_by_shard_are_one_part() -> None:
    chain = [plan("a"), plan("b", "a", after="a"), plan("c", "b", "a", after="b")]
    assert names(chain) == [["a", "b", "c"]]
    assert [one.after for one in next(parts_of(chain))] == [None, "a", "b"]


def test_a_stage_that_reads_another_without_following_it_waits_for_all_of_it() -> None:
    assert names([plan("a"), plan("b", "a")]) == [["a"], ["b"]]
    assert names([plan("a"), plan("b", "a", after="a"), plan("c", "a")]) == [["a", "b"], ["c"]]


def test_stages_that_read_nothing_of_each_other_work_at_the_same_time() -> None:
    assert names([plan("a"), plan("b"), plan("c", "elsewhere")]) == [["a", "b", "c"]]
    assert names([plan("a"), plan("b"), plan("c", "a"), plan("d", "b")]) == [["a", "b"], ["c", "d"]]


def test_a_stage_whose_forerunner_is_in_an_earlier_part_or_missing_follows_nobody() -> None:
    parts = parts_of([plan("a"), plan("between", "a"), plan("b", "a", "between", after="a")])
    assert [[(one.name, one.after) for one in part] for part in parts] == [
        [("a", None)],
        [("between", None)],
        [("b", None)],
    ]
    ((alone,),) = parts_of([plan("b", "a", after="a")])
    assert alone.after is None


def test_what_a_group_or_the_driver_does_is_a_part_of_its_own() -> None:
    plans = [plan("a"), plan("here", where="driver"), plan("there", where="driver"), plan("group", where="group")]
    assert names([*plans, plan("b")]) == [["a"], ["here"], ["there"], ["group"], ["b"]]


def test_the_round_is_cut_where_it_waits_for_all_shards(one_round: Path) -> None:
    run = read_run(one_round)
    assert [[one.name for one in part] for part in parts_of(stage_plans(ROUND, run, 1))] == [
        ["teacher"],
        ["refine-shares"],
        ["refine", "write"],
        ["write-index"],
        ["refine-scores"],
        ["train"],
        ["evaluate", "evaluate-holdout", "evaluate-target"],
        ["promote"],
        ["promote-weights"],
        ["report"],
    ]
    first = next(parts_of(stage_plans(ROUND, run, 0)))
    assert [one.name for one in first] == ["embed", "embed-source", "embed-test", "embed-validation"]


def test_a_part_of_a_stage_and_a_chain_are_found_by_their_names() -> None:
    assert (stage_of("refine-thresholds"), stage_of("refine")) == ("refine", "refine")
    for name in ("teacher", "refine", "write"):
        assert shards_chain(name) == ("teacher", "refine", "write")
    assert shards_chain("train") == ("train",)


@dataclass(frozen=True)
class Texts:
    """Stages that write the names of what they read, and of which some shards fail."""

    folder: Path
    poisoned: frozenset[str] = frozenset()

    def stage(self, name: str, *reads: str, whole: bool = False, after: str | None = None) -> Stage[None]:
        """Return a stage that reads others' shards of its own name; with `whole`, all of them."""

        def tasks(run: Run, round: int) -> list[ShardTask]:
            shards = ["000000", "000001", "000002"]
            return [
                ShardTask(
                    stage=name,
                    round=round,
                    shard=shard,
                    output=self.output(name, round, shard),
                    inputs={
                        f"{role}/{other}": self.output(role, round, other)
                        for role in reads
                        for other in (shards if whole else [shard])
                    },
                )
                for shard in (["000000"] if whole else shards)
            ]

        def work(loaded: None, task: ShardTask) -> Done:
            if f"{name} {task.shard}" in self.poisoned:
                raise RuntimeError("poison")
            task.output.write_text(" ".join(path.name for path in task.inputs.values()))
            return Done(1)

        return Stage(name, tasks, _nothing, _load, work, after=after)

    def output(self, name: str, round: int, shard: str) -> Path:
        return self.folder / f"{name}-{round}-{shard}.txt"

    def done(self) -> set[str]:
        return {path.stem for path in self.folder.glob("*.json")}


def _nothing(run: RunRef) -> dict[str, Json]:
    return {}


def _load(run: RunRef) -> None:
    return None


def do_rounds(run: OpenRun, recipe: list[Stage[None]], numbers: list[int]) -> list[int]:
    """Do a recipe's rounds, each shard with one attempt; give the rounds that were told to be done."""
    execution = run.config.execution.model_copy(update={"max_attempts": 1})
    once = replace(run, config=run.config.model_copy(update={"execution": execution}))
    told: list[int] = []
    request = RoundRequest(rounds=max(numbers), backend="inline")
    Driver(once, request, RunProgress(run.layout.events)).rounds(recipe, numbers, after_each=told.append)
    return told


@pytest.fixture
def run(one_round: Path, tmp_path: Path) -> OpenRun:
    """A run whose stages are those of a test."""
    (tmp_path / "texts").mkdir()
    return read_run(Path(shutil.copytree(one_round, tmp_path / "run")))


def test_what_reads_nothing_of_failed_shards_is_done_and_the_rest_is_named(run: OpenRun, tmp_path: Path) -> None:
    texts = Texts(tmp_path / "texts", frozenset({"one 000001", "other 000002"}))
    recipe = [
        texts.stage("one"),
        texts.stage("two", "one"),
        texts.stage("three", "two", after="two"),
        texts.stage("other"),
        texts.stage("all", "three", whole=True),
    ]
    with pytest.raises(StageFailed) as caught:
        do_rounds(run, recipe, [1])
    done = {f"{stage}-1-{shard}" for stage in ("one", "two", "three") for shard in ("000000", "000002")}
    assert texts.done() == done | {"other-1-000000", "other-1-000001"}
    assert [(one.stage, one.shard) for one in caught.value.failures] == [("one", "000001"), ("other", "000002")]
    assert caught.value.blocked == (("two", "000001"), ("three", "000001"), ("all", "000000"))
    assert "round --n 1" in caught.value.hint
    texts = replace(texts, poisoned=frozenset())
    assert do_rounds(run, [replace(one, work=texts.stage(one.name).work) for one in recipe], [1]) == [1]
    assert len(texts.done()) == 4 * 3 + 1


def test_a_round_after_one_with_failed_shards_does_what_it_can_and_none_is_told_to_be_done(
    run: OpenRun, tmp_path: Path
) -> None:
    texts = Texts(tmp_path / "texts", frozenset({"one 000001"}))
    with pytest.raises(StageFailed):
        do_rounds(run, [texts.stage("one"), texts.stage("two", "one")], [0, 1])
    assert "two-0-000000" in texts.done()
    assert "two-1-000002" in texts.done()
    assert not [name for name in texts.done() if name.endswith("000001")]


def test_nothing_is_tried_that_could_not_be_made_whole(run: OpenRun, tmp_path: Path) -> None:
    texts = Texts(tmp_path / "texts", frozenset({"one 000000", "one 000001", "one 000002"}))
    with pytest.raises(StageFailed) as caught:
        do_rounds(run, [texts.stage("one"), texts.stage("two", "one"), texts.stage("three", "two")], [1])
    assert texts.done() == set()
    assert len(caught.value.failures) == 3
    assert [stage for stage, _ in caught.value.blocked] == ["two"] * 3
