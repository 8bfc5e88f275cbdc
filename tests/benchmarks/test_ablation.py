"""The ablation: which parts rows need, the tables over seeds, and the figures of pseudo-labels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.ablation import OPTIONAL, of_seed, parsed, parts_of, units_of
from benchmarks.ablation_rows import METRICS, PARTS, Seed
from benchmarks.ablation_tables import GAINS, TITLES, combined, rounds_mean, tables
from benchmarks.absent_names import ABSENT_NAMES
from benchmarks.label_figures import figures_of
from benchmarks.source_controls import refining_sets, rounds_training, run_config, stage1_source
from pipeline.config import TINY_TRAINING
from shards.data.vocabulary import Vocabulary


def seed_rows(rows: dict[str, float], **more: Any) -> dict[str, Any]:
    scores = {row: dict.fromkeys(METRICS, value) for row, value in rows.items()}
    return {"rows": scores, "pseudo_labels": {}, "seconds": {}, **more}


def test_every_row_has_a_title_and_one_part_and_every_gain_has_its_rows() -> None:
    rows = [row for part in PARTS.values() for row in part.rows]
    assert sorted(rows) == sorted(TITLES)
    assert {one for gain in GAINS for one in (gain.row, gain.other)} <= set(TITLES)


def test_needs_come_before_what_needs_them() -> None:
    names = list(PARTS)
    assert all(names.index(need) < names.index(name) for name, part in PARTS.items() for need in part.needs)


def test_a_row_brings_the_parts_that_it_needs_and_no_others() -> None:
    assert parts_of(["final_sam"]) == ["stage1", "start", "dea_st", "final_inference"]
    assert parts_of(["baseline"]) == ["stage1", "start"]


def test_by_default_five_seeds_and_every_row_that_is_not_optional() -> None:
    options = parsed([])
    assert options.seeds == [0, 1, 2, 3, 4]
    assert set(TITLES) - set(options.rows) == set(OPTIONAL)


def test_parts_are_done_for_all_seeds_before_the_next_part(tmp_path: Path) -> None:
    units = units_of([Seed(tmp_path, 0, 3), Seed(tmp_path, 1, 3)], ["stage1", "start"])
    assert [one.name for one in units] == ["seed-0/stage1", "seed-1/stage1", "seed-0/start", "seed-1/start"]
    assert units[3].needs == ("seed-1/stage1",)


def test_settings_of_stage_1_reach_stage_1_alone(tmp_path: Path) -> None:
    seed = Seed(tmp_path, 7, 3, ("train.steps=5", "stage1.source.count=60", "stage1.train.steps=9"))
    assert seed.stage1_sets == ["source.count=60", "train.steps=9"]
    assert run_config(seed).train.steps == 5
    assert run_config(seed).data.target.model_dump()["seed"] == 7
    assert (stage1_source(seed).count, stage1_source(seed).seed) == (60, 7)


def test_controls_train_as_many_steps_and_images_as_the_rounds_at_their_settings(tmp_path: Path) -> None:
    train = rounds_training(Seed(tmp_path, 0, 3, ("train.learning_rate=0.5",)))
    assert train["steps"] == 3 * TINY_TRAINING.steps
    assert train["source_per_step"] == TINY_TRAINING.target_per_step + TINY_TRAINING.source_per_step
    assert (train["target_per_step"], train["learning_rate"]) == (0, 0.5)


def test_the_source_is_refined_with_the_settings_of_the_rounds(tmp_path: Path) -> None:
    (sets,) = refining_sets(Seed(tmp_path, 0, 3, ("refine.refinement.accept.min_iou=0.6",)))
    assert sets.startswith("refine.refinement={") and '"min_iou":0.6' in sets


def test_a_row_that_a_seed_lacks_is_left_out_with_its_gains(tmp_path: Path) -> None:
    found: dict[str, Any] = {"seed-0/start": {"rows": {"baseline": {}, "dea": {}}}}
    whole = of_seed(
        Seed(tmp_path, 0, 3), ["stage1", "start", "dea_st"], ["dea", "dea_st"], found, {"seed-0/start": 2.0}
    )
    assert (set(whole["rows"]), whole["seconds"]) == ({"dea"}, {"start": 2.0})
    result = combined([seed_rows({"dea": 1.0, "st": 2.0}), seed_rows({"dea": 3.0})], ["dea", "st"])
    assert set(result["rows"]) == {"dea"}
    assert result["gains"] == {}


def test_a_gain_is_taken_seed_by_seed_and_held_against_what_is_wanted() -> None:
    seeds = [seed_rows({"dea_st": 60.0 + n, "control_refined": 56.5 + n}, seconds={"dea_st": 60.0}) for n in range(3)]
    result = combined(seeds, ["dea_st", "control_refined"])
    gain = result["gains"]["dea_st over control_refined"]
    assert (gain["miou"]["mean"], gain["miou"]["std"]) == (3.5, 0.0)
    assert gain["miou"]["reached"] and not gain["miou_unseen"]["reached"]
    assert (result["seconds"], result["core_minutes"]) == ({"dea_st": 60.0}, 3.0)


def test_the_protocol_heads_the_tables() -> None:
    labels = {"pseudo_labels": {"dea_st": [{"coverage": 90.0, "unlabelled_objects": None}]}}
    result = combined([seed_rows({"dea_st": 60.0, "baseline": 50.0}, **labels)], ["dea_st", "baseline"])
    text = tables({"seeds": [0], "rounds": 3, **result})
    assert text.startswith("Protocol: transductive")
    assert "wanted miou +14: no, miou_unseen +14: no" in text
    assert "dea_st, round 1" in text


def test_a_figure_that_one_seed_lacks_has_no_mean() -> None:
    assert rounds_mean([[{"a": 1.0, "b": 2.0}], [{"a": 3.0, "b": None}]]) == [{"a": 2.0}]


def test_uncovered_pixels_count_as_wrong_and_absent_names_apart() -> None:
    vocabulary = Vocabulary.from_names(["red ring", "wood", ABSENT_NAMES[0]], seen=["red ring"])
    matrix = np.zeros((4, 4), np.int64)
    matrix[0] = [6, 0, 2, 2]  # an object: a fifth has no label, a fifth an absent name
    matrix[1] = [0, 9, 0, 1]
    found = figures_of(matrix, vocabulary)
    assert found == pytest.approx(
        {
            "scene_all": 75.0,
            "scene_seen_all": 60.0,
            "scene_unseen_all": 90.0,
            "absent_names": 100 * 2 / 17,
            "unlabelled_objects": 20.0,
            "unlabelled_stuff": 10.0,
        }
    )
    assert set(figures_of(np.zeros((4, 4), np.int64), vocabulary).values()) == {None}
