"""A damaged plan is noticed whichever byte it is, and comes back as it was or stays refused."""

import json
from pathlib import Path

import pytest

from shards.data.plan import Plan, list_path
from shards.data.plan_repair import damaged_lists, rebuild_lists, rebuild_plan
from shards.data.plan_writing import write_plan
from shards.data.sources import SampleRef

REFS = [SampleRef(f"k{n:03d}", f"{n:x}" * 64, f"folder/k{n:03d}.jpg") for n in range(10)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_plan(tmp_path / "plan.json", REFS, 4)
    return tmp_path / "plan.json"


def without_checksums(path: Path) -> None:
    """Make a plan what an earlier version wrote."""
    content = json.loads(path.read_bytes())
    del content["checksum"], content["image_extension"]
    for row in content["shards"]:
        del row["checksum"]
    path.write_text(json.dumps(content, indent=1) + "\n")


def test_an_exchanged_path_of_an_image_is_refused_when_the_list_is_read(path: Path) -> None:
    place = list_path(path, "000001")
    place.write_text(place.read_text().replace("k005.jpg", "k006.jpg"))
    with pytest.raises(ValueError, match=r"000001\.json is not the list that was planned"):
        list(Plan.load(path).samples)
    assert [found for found, _ in damaged_lists(Plan.load(path))] == [place]


def test_any_flipped_byte_of_a_plan_and_its_lists_is_noticed(path: Path) -> None:
    for place in (path, list_path(path, "000002")):
        whole = place.read_bytes()
        for index in range(len(whole)):
            place.write_bytes(whole[:index] + bytes([whole[index] ^ (1 << index % 8)]) + whole[index + 1 :])
            with pytest.raises(ValueError, match=place.name):
                list(Plan.load(path).samples)
        place.write_bytes(whole)
    assert list(Plan.load(path).samples) == REFS


def test_a_plan_of_an_earlier_version_without_checksums_is_read_and_saved(path: Path) -> None:
    digests = Plan.load(path).digests
    without_checksums(path)
    plan = Plan.load(path)
    assert (plan.digests, list(plan.samples), plan.image_extension) == (digests, REFS, None)
    plan.save(path)
    assert Plan.load(path) == plan
    assert list(Plan.load(path).samples) == REFS


def test_a_plan_comes_back_out_of_its_lists_and_a_list_out_of_the_samples(path: Path) -> None:
    plan, whole = Plan.load(path), path.read_bytes()
    known = {"000001": plan.digests[1]}
    path.write_bytes(b"{")
    assert rebuild_plan(path, 4, known) == plan
    assert path.read_bytes() == whole
    lists = {place: place.read_bytes() for place in plan.samples.paths}
    for place in plan.samples.paths[:2]:
        place.write_bytes(b"[")
    rebuild_lists(path, REFS)
    assert {place: place.read_bytes() for place in plan.samples.paths} == lists


def test_a_plan_is_not_made_out_of_fewer_or_other_lists_than_records_vouch_for(path: Path) -> None:
    plan = Plan.load(path)
    known = dict(zip(("000000", "000001", "000002"), plan.digests, strict=True))
    path.unlink()
    last = list_path(path, "000002")
    kept = last.read_bytes()
    last.unlink()
    with pytest.raises(ValueError, match="000002 is lost"):
        rebuild_plan(path, 4, known)
    last.write_bytes(kept)
    list_path(path, "000001").unlink()
    with pytest.raises(ValueError, match="000001 is lost"):
        rebuild_plan(path, 4, known)
    with pytest.raises(ValueError, match="is lost"):
        rebuild_plan(path, 4, {})
    assert not path.exists()


def test_a_list_whose_images_changed_stays_as_it_is(path: Path) -> None:
    place = list_path(path, "000000")
    place.write_bytes(b"[")
    rebuild_lists(path, [REFS[0]._replace(digest="f" * 64), *REFS[1:]])
    assert place.read_bytes() == b"["
    rebuild_lists(path, [REFS[0]._replace(uri="moved.jpg"), *REFS[1:]])
    assert place.read_bytes() == b"["
