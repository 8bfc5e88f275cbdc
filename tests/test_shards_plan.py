"""The plan is stable, and extending it leaves old shards alone."""

import json
import random
from pathlib import Path

import pytest

from shards.plan import Plan, extend_plan, make_plan
from shards.sources import SampleRef


def ref(name: str, digest: str = "a", label: str | None = None) -> SampleRef:
    return SampleRef(key=name, digest=digest * 64, uri=f"{name}.jpg", label_digest=label and label * 64)


REFS = [ref(f"k{n:03d}") for n in range(10)]


def test_samples_go_into_equal_shards_whatever_the_order() -> None:
    plan = make_plan(REFS, 4)
    assert [shard.name for shard in plan.shards] == ["000000", "000001", "000002"]
    assert [len(shard.samples) for shard in plan.shards] == [4, 4, 2]
    assert plan.sample_count == 10
    assert make_plan(random.Random(0).sample(REFS, 10), 4) == plan
    assert plan.shard("000001").samples[0].key == "k004"
    with pytest.raises(ValueError, match="no shard '9'"):
        plan.shard("9")


@pytest.mark.parametrize(
    ("refs", "size", "message"),
    [([], 4, "no sample"), (REFS, 0, "shard_size is 0"), (REFS[:1] * 2, 4, "stands 2 times")],
)
def test_plans_that_make_no_sense_are_refused(refs: list[SampleRef], size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_plan(refs, size)


def test_shard_digest_depends_on_keys_bytes_and_labels_alone() -> None:
    base = make_plan([ref("a"), ref("b")], 2).shards[0].digest
    moved = [SampleRef(key=name, digest="a" * 64, uri=f"elsewhere/{name}.png") for name in "ab"]
    assert make_plan(moved, 2).shards[0].digest == base
    others = [[ref("a"), ref("c")], [ref("a"), ref("b", "b")], [ref("a"), ref("b", "a", "c")], [ref("a")]]
    assert len({make_plan(refs, 2).shards[0].digest for refs in others} | {base}) == 5


def test_extending_leaves_old_shards_alone() -> None:
    plan = make_plan(REFS, 4)
    more = extend_plan(plan, [*REFS, ref("a000"), ref("k0035"), ref("z")])
    assert more.shards[:3] == plan.shards
    assert [sample.key for sample in more.shards[3].samples] == ["a000", "k0035", "z"]
    assert extend_plan(plan, REFS[3:]) == plan
    assert extend_plan(more, []) == more


def test_extending_refuses_changed_files_and_renames_taken_keys() -> None:
    plan = make_plan(REFS, 4)
    with pytest.raises(ValueError, match=r"k003\.jpg changed"):
        extend_plan(plan, [ref("k003", "b")])
    with pytest.raises(ValueError, match=r"k003\.jpg changed"):
        extend_plan(plan, [ref("k003", "a", "b")])
    other = SampleRef(key="k003", digest="c" * 64, uri="k003.png")
    assert extend_plan(plan, [other]).shards[-1].samples[0].key == "k003-cccccccc"
    with pytest.raises(ValueError, match="stands 2 times"):
        extend_plan(plan, [other, SampleRef(key="k003", digest="c" * 64, uri="copy.png")])


def test_saved_plan_comes_back_with_the_same_bytes(tmp_path: Path) -> None:
    plan = make_plan([*REFS, ref("label", "a", "b")], 4)
    plan.save(tmp_path / "plan.json")
    before = (tmp_path / "plan.json").read_bytes()
    loaded = Plan.load(tmp_path / "plan.json")
    assert loaded == plan
    loaded.save(tmp_path / "plan.json")
    assert (tmp_path / "plan.json").read_bytes() == before


def test_damaged_plans_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    make_plan(REFS, 4).save(path)
    whole = json.loads(path.read_text())
    doubled = {**whole, "shards": [whole["shards"][0], {**whole["shards"][0], "name": "000001"}]}
    shuffled = {**whole, "shards": whole["shards"][::-1]}
    hostile = json.loads(path.read_text().replace("k000", "../k"))
    contents: tuple[object, ...] = (doubled, shuffled, hostile, {**whole, "shards": []}, {**whole, "version": 2}, [])
    for content in contents:
        path.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"plan\.json is not a plan"):
            Plan.load(path)
    path.write_bytes(b'{"version": 1, "sh')
    with pytest.raises(ValueError, match=r"plan\.json is not a plan"):
        Plan.load(path)
    with pytest.raises(FileNotFoundError):
        Plan.load(tmp_path / "none.json")
