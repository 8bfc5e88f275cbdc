"""The weak foundation: its words, its caption rates, and its table."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import weak
from benchmarks.ablation_rows import Seed
from models.stseg.tiny_clip import WordTokenizer
from models.tiny.clip_training import ClipTrainingConfig
from pipeline.config import resolve_config
from pipeline.run.run import build_vocabulary
from shards.scenes.scenes import SCENE_CLASSES, UNSEEN


def scores(seen: float, unseen: float) -> dict[str, float]:
    return {"miou": (2 * seen + unseen) / 3, "miou_seen": seen, "miou_unseen": unseen, "hiou": 0.0}


def run_of(*rounds: dict[str, float]) -> dict[str, Any]:
    count = len(rounds)
    return {
        "rounds": list(rounds),
        "outcomes": ["start"] + ["promoted"] * (count - 1),
        "vanished": [[], *[["wood"]] * (count - 1)],
        "passing": [{"seen": 0.5, "unseen": 0.1, "ratio": 0.2}] * (count - 1),
    }


def test_every_class_has_a_word_of_its_own_that_no_other_begins_and_clip_never_met() -> None:
    assert len(set(weak.WORDS)) == len(SCENE_CLASSES)
    assert not any(one != two and one in two for one in weak.WORDS for two in weak.WORDS)
    known = WordTokenizer().ids
    assert not [word for word in weak.WORDS if word in known]


def test_only_unseen_classes_are_named_rarely() -> None:
    for name, rate in zip(SCENE_CLASSES, weak.rates(), strict=True):
        assert (rate == 1) == (name not in UNSEEN)
        assert rate > 0


def test_only_unseen_classes_are_prompted_by_the_word_of_another_and_by_their_own_more_often() -> None:
    for name, own in zip(SCENE_CLASSES, weak.WORDS, strict=True):
        prompts = weak.prompt_names()[name].split(", ")
        assert len(set(prompts)) == len(prompts)
        words = [one.lower() for one in prompts]
        assert (set(words) == {own}) == (name not in UNSEEN)
        assert words.count(own) > len(words) / 2


def test_the_settings_give_clip_the_words_and_keep_the_names_of_the_labels(tmp_path: Path) -> None:
    clip = weak.clip_path(tmp_path, weak.clip_training())
    sets = [one for one in (*weak.foundation_settings(clip), *weak.SETS) if not one.startswith("stage1.")]
    config = resolve_config({}, sets, where="--set")
    vocabulary = build_vocabulary(config)
    assert vocabulary.names == SCENE_CLASSES
    assert tuple(entry.synonyms[0] for entry in vocabulary.classes) == weak.WORDS
    assert config.model.clip_weights == clip


def test_another_training_has_another_file(tmp_path: Path) -> None:
    assert weak.clip_path(tmp_path, weak.clip_training()) == weak.clip_path(tmp_path, weak.clip_training())
    assert weak.clip_path(tmp_path, weak.clip_training()) != weak.clip_path(tmp_path, ClipTrainingConfig())


def test_stage_1_waits_for_the_clip_and_each_run_for_its_stage_1(tmp_path: Path) -> None:
    seeds = [Seed(tmp_path / f"seed-{n}", n, 2) for n in (0, 1)]
    units = {unit.name: unit for unit in weak.units_of(tmp_path / "clip", seeds, {"as set": (), "off": ("a=b",)})}
    assert units["seed-1/stage1"].needs == ("clip",)
    assert units["seed-1/off"].needs == ("seed-1/stage1",)
    assert len({unit.done for unit in units.values()}) == len(units) == 7


def test_passing_shares_count_the_cells_of_classes_that_pass() -> None:
    cells = np.array([[6, 2, 0], [2, 4, 2]])
    passes = np.array([[True, False, True], [False, True, False]])
    found = weak.passing_shares(cells, passes, np.array([False, True, True]))
    assert found == {"seen": 6 / 8, "unseen": 4 / 8, "ratio": pytest.approx((4 / 8) / (6 / 8))}


def test_passing_shares_without_cells_are_none() -> None:
    nothing = np.zeros((0, 2), np.int64)
    unseen = np.array([False, True])
    assert weak.passing_shares(nothing, nothing > 0, unseen) == {"seen": None, "unseen": None, "ratio": None}
    none_pass = weak.passing_shares(np.array([[3, 1]]), np.array([[False, False]]), unseen)
    assert none_pass == {"seen": 0.0, "unseen": 0.0, "ratio": None}


def test_cells_are_counted_per_image_and_class() -> None:
    ids = np.array([[[0, 2], [2, 2]], [[1, 1], [1, 1]]], np.uint16)
    assert weak.cells_per_class(ids, 4).tolist() == [[1, 0, 3, 0], [0, 4, 0, 0]]
    assert weak.cells_per_class(ids[:0], 4).shape == (0, 4)


def test_rows_are_means_over_seeds_and_a_run_that_a_seed_lacks_is_left_out() -> None:
    one = {"runs": {"as set": run_of(scores(40, 10), scores(44, 4)), "off": run_of(scores(40, 10), scores(44, 0))}}
    two = {"runs": {"as set": run_of(scores(42, 20), scores(46, 6))}}
    rows = weak.rows_over_seeds([one, two])
    assert list(rows) == ["start", "as set, round 1"]
    assert rows["start"]["miou_unseen"] == {"mean": 15.0, "std": pytest.approx(7.07)}
    assert rows["as set, round 1"]["miou_seen"]["mean"] == 45
    assert weak.rows_over_seeds([]) == {}


def test_the_table_tells_scores_outcomes_passing_and_what_vanished() -> None:
    per_seed = [{"seed": 3, "runs": {"as set": run_of(scores(40, 10), scores(44, 4))}}]
    naming = {"seen": 99.0, "unseen": 60.0}
    text = weak.table({"rows": weak.rows_over_seeds(per_seed), "naming": naming, "per_seed": per_seed})
    assert "60.0 % of unseen" in text
    first, second = text.splitlines()[-2:]
    assert first == "seed 3, as set, round 0: seen/unseen/all 40.0/10.0/30.0; start"
    assert second == (
        "seed 3, as set, round 1: seen/unseen/all 44.0/4.0/30.7; promoted; "
        "unseen pass 0.20 times as often as seen; vanished: wood"
    )


def test_vanished_classes_are_read_off_the_alarms() -> None:
    alarms = [{"kind": "class_vanished", "class_name": name} for name in ("wood", "ring", "wood")]
    assert weak.vanished({"alarms": [*alarms, {"kind": "churn", "class_name": None}]}) == ["ring", "wood"]
    assert weak.vanished({"alarms": None}) == []
