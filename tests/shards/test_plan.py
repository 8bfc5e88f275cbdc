"""The plan is stable, and its lists are read by who needs them."""

import gc
import json
from pathlib import Path

import pytest

from shards.data.plan import Plan, list_path
from shards.data.plan_writing import gc_disabled, make_plan, write_plan
from shards.data.sources import SampleRef


def ref(name: str, digest: str = "a", label: str | None = None) -> SampleRef:
    return SampleRef(key=name, digest=digest * 64, uri=f"{name}.jpg", label_digest=label and label * 64)


REFS = [ref(f"k{n:03d}") for n in range(10)]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_samples_go_into_equal_shards() -> None:
    plan = make_plan(REFS, 4)
    assert [shard.name for shard in plan.shards] == ["000000", "000001", "000002"]
    assert [len(shard.samples) for shard in plan.shards] == [4, 4, 2]
    assert plan.sample_count == 10
    assert [sample.key for sample in plan.samples] == [sample.key for sample in REFS]
    assert (plan.shard("000001").first, plan.shard("000001").last) == ("k004", "k007")
    with pytest.raises(ValueError, match="no shard '9'"):
        plan.shard("9")


@pytest.mark.parametrize(
    ("uris", "expected"),
    [
        (["a.jpg", "b.JPEG", "c.jpeg"], "jpg"),
        (["a.png", "b.PNG"], "png"),
        (["a.tif", "b.tiff"], "tif"),
        (["a.webp"], "webp"),
        (["a.bmp"], "bmp"),
        (["scenes:target/0/0", "scenes:target/0/1"], "png"),
        (["a.jpg", "b.png"], "jpg"),
        (["a.png", "b.webp"], "jpg"),
        (["a.png", "b"], "jpg"),
        (["x.y/b", "c.png"], "jpg"),
        (["quoted:%FF.png", "b.png"], "png"),
    ],
)
def test_all_images_of_a_run_get_one_name_in_its_tars_whatever_the_shards(
    tmp_path: Path, uris: list[str], expected: str
) -> None:
    refs = [ref(f"k{index}")._replace(uri=uri) for index, uri in enumerate(uris)]
    for size in (1, 10):
        path = tmp_path / str(size) / "plan.json"
        assert write_plan(path, refs, size).image_extension == make_plan(refs, size).image_extension == expected
        assert Plan.load(path).image_extension == expected


@pytest.mark.parametrize(
    ("refs", "size", "message"),
    [
        ([], 4, "no sample"),
        (REFS, 0, "shard_size is 0"),
        (REFS[:1] * 2, 4, "stands 2 times"),
        (REFS[:1] * 2, 1, "stands 2 times"),
        (REFS[::-1], 4, "'k008' comes after k009"),
        (REFS[::-1], 1, "'k008' comes after k009"),
        ([ref("a", "x")], 1, "checksum"),
    ],
)
def test_plans_that_make_no_sense_are_refused(refs: list[SampleRef], size: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        make_plan(refs, size)
    with pytest.raises(ValueError, match=message):
        write_plan(tmp_path / "plan.json", refs, size)
    assert not (tmp_path / "plan.json").exists()


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "ä", "a b", "a\n", "a\nb", "x" * 81])
def test_odd_keys_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match="a key is not"):
        make_plan([ref("a")._replace(key=key)], 1)


def test_shard_digest_depends_on_keys_bytes_and_labels_alone() -> None:
    base = make_plan([ref("a"), ref("b")], 2).shards[0].digest
    moved = [SampleRef(key=name, digest="a" * 64, uri=f"elsewhere/{name}.png") for name in "ab"]
    assert make_plan(moved, 2).shards[0].digest == base
    others = [[ref("a"), ref("c")], [ref("a"), ref("b", "b")], [ref("a"), ref("b", "a", "c")], [ref("a")]]
    assert len({make_plan(refs, 2).shards[0].digest for refs in others} | {base}) == 5


def test_plan_on_disk_is_that_in_memory_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    refs = [*REFS, ref("label", "a", "b")]
    held = make_plan(refs, 4)
    written = write_plan(tmp_path / "a" / "plan.json", refs, 4)
    assert Plan.load(tmp_path / "a" / "plan.json") == written
    assert written.digests == held.digests
    assert list(written.samples) == list(held.samples) == refs
    write_plan(tmp_path / "b" / "plan.json", REFS, 2)
    write_plan(tmp_path / "b" / "plan.json", refs, 4)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert sorted(contents(tmp_path / "a")) == ["plan.json", "plan/000000.json", "plan/000001.json", "plan/000002.json"]


def test_a_loaded_plan_reads_lists_only_when_they_are_gone_through(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_plan(path, REFS, 4)
    for name in ("000000", "000002"):
        list_path(path, name).unlink()
    plan = Plan.load(path)
    assert (plan.sample_count, len(plan.samples), len(plan.digests)) == (10, 10, 3)
    assert plan.samples.paths == tuple(list_path(path, shard.name) for shard in plan.shards)
    picked = plan.pick([9, 4, 6])
    assert {name: len(samples) for name, samples in picked.items()} == {"000001": 2, "000002": 1}
    assert [sample.key for sample in picked["000001"]] == ["k004", "k006"]
    found = plan.find("k005")
    assert found is not None
    assert (found[0].name, found[1].uri) == ("000001", "k005.jpg")
    assert plan.find("k0055") is None
    with pytest.raises(ValueError, match=r"000000\.json, a list of the plan's samples, is missing"):
        list(plan.shards[0].samples)


def test_choices_of_a_shard_differ_in_their_digest() -> None:
    plan = make_plan(REFS, 4)
    digests = {plan.pick(places)["000000"].digest for places in ([0], [1], [0, 1], range(4))}
    assert len(digests | {plan.shards[0].digest}) == 5


def test_changed_lists_are_found_when_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plan = write_plan(path, REFS, 4)
    place = list_path(path, "000000")
    whole = json.loads(place.read_text())
    other = [["k0", *whole[0][1:]], *whole[1:]]
    wrong: list[object] = [whole[:3], other, [*whole, whole[0]], [["../k", *whole[0][1:]]], [1], {}, None, [["k"]]]
    for content in wrong:
        place.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"000000\.json is not .*start a new run"):
            list(plan.shards[0].samples)
    place.write_bytes(b'[["k000"')
    with pytest.raises(ValueError, match=r"000000\.json is not a list"):
        list(plan.shards[0].samples)


def test_damaged_plans_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_plan(path, REFS, 4)
    whole = json.loads(path.read_text())
    doubled = {**whole, "shards": [whole["shards"][0], {**whole["shards"][0], "name": "000001"}]}
    shuffled = {**whole, "shards": whole["shards"][::-1]}
    contents: tuple[object, ...] = (doubled, shuffled, {**whole, "shards": []}, {**whole, "shard_size": 0}, [])
    for content in contents:
        path.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"plan\.json is not a plan"):
            Plan.load(path)
    path.write_bytes(b'{"version": 2, "sh')
    with pytest.raises(ValueError, match=r"plan\.json is not a plan"):
        Plan.load(path)
    path.write_text(json.dumps({**whole, "version": 1}))
    with pytest.raises(ValueError, match="another version of the program made; start a new run"):
        Plan.load(path)
    with pytest.raises(FileNotFoundError):
        Plan.load(tmp_path / "none.json")


def test_collector_rests_in_the_block_and_is_as_it_was_after_an_error() -> None:
    assert gc.isenabled()
    with pytest.raises(ValueError, match="inside"), gc_disabled():
        assert not gc.isenabled()
        raise ValueError("inside")
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with gc_disabled(), gc_disabled():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
