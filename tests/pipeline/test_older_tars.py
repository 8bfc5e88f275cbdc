"""A run whose plan an earlier version made goes on as it began: no round mixes two formats of tars."""

import io
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from run_setup import again, invoke

from shards.formats.records import read_record, sealed, unsealed
from shards.formats.tar import index_tar, read_member, read_pseudo_index

pytestmark = pytest.mark.slow


def modes(run: Path, number: int = 1) -> set[str]:
    """Return the modes of all label maps of a round."""
    found = set()
    for tar in (run / "rounds" / f"{number:03d}" / "pseudo").glob("*.tar"):
        for _, members in index_tar(tar).entries:
            with Image.open(io.BytesIO(read_member(tar, *members["label.png"]))) as label:
                found.add(label.mode)
    return found


def undone(run: Path) -> list[str]:
    code, out, err = invoke("plan", "--n", "1", "--run", str(run), "--json")
    assert code == 0, err
    return [row["because"] for row in json.loads(out) if row["to do"] or row["stale"] or row["depends"]]


def older_plan(path: Path) -> None:
    content = json.loads(unsealed(path.read_bytes()))
    del content["image_extension"]
    path.write_bytes(sealed((json.dumps(content, indent=1) + "\n").encode()))


@pytest.fixture(scope="module")
def older(one_round: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one round, made as an earlier version made it."""
    run = Path(shutil.copytree(one_round, tmp_path_factory.mktemp("runs") / "run"))
    older_plan(run / "plan.json")
    code, _, err = again(run)
    assert code == 0, err
    assert "image_extension" in err
    return run


def test_a_run_has_grey_labels_and_says_so_in_its_index(one_round: Path) -> None:
    assert modes(one_round) == {"L"}
    index = read_pseudo_index(one_round / "rounds" / "001" / "pseudo")
    assert index.image_extension == "png"
    assert index.ignore_index == 255
    names = [entry["name"] for entry in json.loads((one_round / "vocabulary.json").read_bytes())["classes"]]
    assert [entry.name for entry in index.classes] == names
    record = read_record(one_round / "rounds" / "001" / "pseudo" / "pseudo-000000.json")
    assert record.fingerprint["image_extension"] == "png"


def test_an_older_run_is_done_and_what_it_lacks_is_made_in_its_own_format(older: Path, tmp_path: Path) -> None:
    assert undone(older) == []
    assert modes(older) == {"P"}
    record = read_record(older / "rounds" / "001" / "pseudo" / "pseudo-000000.json")
    assert set(record.fingerprint) == {"code", "vocabulary"}  # as earlier versions wrote it
    run = Path(shutil.copytree(older, tmp_path / "run"))
    tar = run / "rounds" / "001" / "pseudo" / "pseudo-000001.tar"
    before = tar.read_bytes()
    tar.unlink()
    code, _, err = again(run)
    assert code == 0, err
    assert tar.read_bytes() == before
    assert modes(run) == {"P"}


def test_a_damaged_plan_of_an_older_run_comes_back_as_it_was(older: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(older, tmp_path / "run"))
    before = (run / "plan.json").read_bytes()
    (run / "plan.json").write_bytes(b"{")
    code, out, err = invoke("shards", "repair", "--run", str(run), "--backend", "inline")
    assert code == 0, out + err
    assert (run / "plan.json").read_bytes() == before
    assert undone(run) == []
