"""The write stage: what stands in the tars, and what does not."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shard_setup import BROKEN, SIZES_HW, VOCABULARY, next_task, refined_shard, run_write
from stage_setup import do

from jobs.artifacts.labels import read_refined
from jobs.commit import why_stale
from jobs.stage import EmptyStage, ShardTask
from jobs.stages.write import write_index
from shards.data.labels import decode_label, decode_weight, legend_of
from shards.files.atomic import sha256_file
from shards.formats.records import fingerprint_digest
from shards.formats.tar import TarContents, index_tar, read_member, read_pseudo_index

CONTENTS = TarContents(VOCABULARY.digest, legend_of(VOCABULARY), "jpg")


@pytest.fixture
def written(tmp_path: Path) -> ShardTask:
    refine, source = refined_shard(tmp_path)
    task = next_task(refine, "write", refine=refine)
    run_write(task, source)
    return task


def index_task(tar: ShardTask) -> ShardTask:
    """Return the task of the list of one tar."""
    output = tar.output.parent / "index.json"
    inputs = {"pseudo/000000": tar.output}
    return ShardTask(stage="write-index", round=1, shard="000000", output=output, inputs=inputs, by_record=True)


def members(task: ShardTask, key: str) -> dict[str, bytes]:
    return {ext: read_member(task.output, *place) for ext, place in index_tar(task.output).places[key].items()}


def test_each_image_stands_with_label_weight_and_provenance(tmp_path: Path, written: ShardTask) -> None:
    assert [key for key, _ in index_tar(written.output).entries] == sorted(SIZES_HW)
    store = read_refined(tmp_path / "refine" / "000000.zarr")
    for row, key in enumerate(store.keys):
        found = members(written, key)
        name = f"{key}.jpg" if key == "turned" else f"{key}.png"
        assert set(found) == {"jpg", "label.png", "weight.png", "json"}
        assert found["jpg"] == (tmp_path / "images" / name).read_bytes()
        assert json.loads(found["json"])["image_format"] == ("JPEG" if key == "turned" else "PNG")
        assert np.array_equal(decode_label(found["label.png"]), store.maps["label"][row])
        assert np.array_equal(decode_weight(found["weight.png"]), store.maps["weight"][row])
    assert why_stale(written) is None


def test_a_run_of_an_earlier_version_goes_on_with_palettes_and_own_extensions(
    tmp_path: Path, written: ShardTask
) -> None:
    refine, source = refined_shard(tmp_path / "older")
    older = next_task(refine, "write", refine=refine)
    run_write(older, source, image_extension=None)
    for key in SIZES_HW:
        now, before = members(written, key), members(older, key)
        extension = "jpg" if key == "turned" else "png"
        assert set(before) == {extension, "label.png", "weight.png", "json"}
        assert "image_format" not in json.loads(before["json"])
        with Image.open(io.BytesIO(before["label.png"])) as label:
            assert label.mode == "P"
        assert np.array_equal(decode_label(before["label.png"]), decode_label(now["label.png"]))


def test_label_of_a_turned_photo_lines_up_with_its_stored_pixels(tmp_path: Path, written: ShardTask) -> None:
    found = members(written, "turned")
    image, label = (Image.open(io.BytesIO(found[extension])) for extension in ("jpg", "label.png"))
    assert image.size == label.size == (24, 16)
    assert image.getexif()[0x0112] == label.getexif()[0x0112] == 6


def test_provenance_says_where_the_label_comes_from(written: ShardTask) -> None:
    facts = json.loads(members(written, "a")["json"])
    assert facts["key"] == "a"
    assert facts["round"] == 1
    assert facts["size_hw"] == [20, 30]
    assert facts["exif_orientation"] == 1
    assert facts["source"]["uri"] == "a.png"
    assert facts["teacher_weights"] == "random"
    assert facts["fingerprint"] == fingerprint_digest({"gate": {"threshold": 0.9}})
    assert facts["gate_settings"] == {"threshold": 0.9}
    assert {fact["class"] for fact in facts["gate"]} == {"left", "right"}
    assert {"class", "confidence", "prompts", "predicted_iou", "accepted", "reason"} <= set(facts["masks"][0])


def test_images_without_a_labelled_pixel_are_left_out_and_counted(tmp_path: Path) -> None:
    refine, source = refined_shard(tmp_path, logit=1.0)
    task = next_task(refine, "write", refine=refine)
    record = run_write(task, source)
    assert record.count == 0
    assert {drop.reason for drop in record.drops} == {"all_ignored"}
    assert {drop.key for drop in record.drops} == set(SIZES_HW)
    assert len(index_tar(task.output).places) == 0
    with pytest.raises(EmptyStage, match="all_ignored 4"):
        do(write_index, CONTENTS, index_task(task))


def test_broken_images_never_reach_the_tar(written: ShardTask) -> None:
    assert not set(BROKEN) & set(index_tar(written.output).places)


def test_same_inputs_give_the_same_tar(tmp_path: Path, written: ShardTask) -> None:
    first = written.output.read_bytes()
    refine, source = refined_shard(tmp_path / "again")
    again = next_task(refine, "write", refine=refine)
    run_write(again, source)
    assert again.output.read_bytes() == first


def test_index_lists_the_tars_with_their_checksums(written: ShardTask) -> None:
    record = do(write_index, CONTENTS, index_task(written))
    index = read_pseudo_index(written.output.parent)
    assert [(shard.url, shard.nsamples) for shard in index.shardlist] == [("000000.tar", 4)]
    assert [shard.sha256 for shard in index.shardlist] == [sha256_file(written.output)]
    assert index.image_extension == "jpg"
    assert [(entry.id, entry.name) for entry in index.classes] == [(0, "left"), (1, "right"), (2, "never")]
    assert [entry.colour for entry in index.classes] == [entry.colour for entry in VOCABULARY.classes]
    assert index.ignore_index == 255
    assert (record.count, record.inputs) == (1, {"pseudo/000000": sha256_file(written.output)})


def test_stock_webdataset_reads_the_tar(written: ShardTask) -> None:
    import webdataset

    samples = list(webdataset.WebDataset(str(written.output), shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in samples] == sorted(SIZES_HW)
