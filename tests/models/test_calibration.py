from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit, logit

from models.refinement.calibration import (
    Calibration,
    CalibrationTable,
    ClassCalibration,
    LabelledCells,
    calibration_error,
    calibration_table,
    fit_calibration,
    joined,
    labelled_cells,
)

NAMES = ("cat", "dog")


def cells(score: NDArray[np.float64], right: NDArray[np.bool_], class_id: int = 0, images: int = 10) -> LabelledCells:
    number = np.arange(len(score))
    return LabelledCells(np.full(len(score), class_id), score, right, number % images)


def drawn(temperature: float, bias: float, count: int = 20000) -> LabelledCells:
    """Give cells of a teacher whose true probabilities are sigmoid(logit(p) / temperature + bias)."""
    rng = np.random.default_rng(0)
    score = rng.uniform(0.3, 0.99, count)
    return cells(score, rng.random(count) < expit(logit(score) / temperature + bias), images=200)


def test_identity_leaves_scores_as_they_are_to_the_last_bit() -> None:
    table = Calibration().table(NAMES)
    scores = np.array([0, 0.3, 1], np.float16)
    assert table.apply(np.array([0, 1, 1]), scores).tolist() == scores.astype(np.float64).tolist()


def test_each_class_gets_its_own_temperature_and_bias() -> None:
    table = CalibrationTable(scale=np.array([1.0, 0.5]), bias=np.array([0.0, 1.0]))
    found = table.apply(np.array([[0, 1]]), np.array([[0.8, 0.8]]))
    assert found.shape == (1, 2)
    assert found[0].tolist() == pytest.approx([0.8, 1 / (1 + np.exp(-(0.5 * np.log(4) + 1)))])


def test_saturated_scores_stay_finite_and_in_order() -> None:
    table = CalibrationTable(scale=np.array([0.5]), bias=np.array([-1.0]))
    found = table.apply(np.zeros(4, int), np.array([0, 0.5, 0.9995, 1], np.float16))
    assert np.isfinite(found).all()
    assert (np.diff(found) > 0).all()
    assert found[-1] < 1


def test_fit_finds_an_overconfident_teacher_s_temperature_and_bias() -> None:
    made = drawn(2.0, -0.5)
    entry = fit_calibration(made, NAMES, min_cells=100).classes["cat"]
    assert entry.temperature == pytest.approx(2.0, rel=0.15)
    assert entry.bias == pytest.approx(-0.5, abs=0.1)
    after = Calibration(classes={"cat": entry}).table(NAMES).apply(made.class_id, made.score)
    before = calibration_error(made.score, made.right)
    error = calibration_error(after, made.right)
    assert before is not None
    assert error is not None
    assert error < before / 3


def test_a_calibrated_teacher_stays_near_the_identity() -> None:
    entry = fit_calibration(drawn(1.0, 0.0), NAMES, min_cells=100).classes["cat"]
    assert entry.temperature == pytest.approx(1, abs=0.1)
    assert entry.bias == pytest.approx(0, abs=0.1)


def test_classes_with_too_few_cells_are_left_out() -> None:
    score = np.full(30, 0.7)
    few = joined([cells(score, score > 0.5), cells(score[:29], score[:29] > 0.5, class_id=1)])
    assert set(fit_calibration(few, NAMES, min_cells=30).classes) == {"cat"}
    assert fit_calibration(joined([]), NAMES, min_cells=1).classes == {}


@pytest.mark.parametrize("right", [True, False])
def test_a_class_that_is_always_right_or_never_gets_finite_numbers(right: bool) -> None:
    entry = fit_calibration(cells(np.full(50, 0.9), np.full(50, right)), NAMES, min_cells=1).classes["cat"]
    assert np.isfinite([entry.temperature, entry.bias]).all()
    assert (entry.bias > 0) == right


def test_fewer_images_move_a_class_less() -> None:
    wrong = np.zeros(60, bool)
    of_one = fit_calibration(cells(np.full(60, 0.9), wrong, images=1), NAMES, min_cells=1).classes["cat"]
    of_many = fit_calibration(cells(np.full(60, 0.9), wrong, images=30), NAMES, min_cells=1).classes["cat"]
    assert of_many.bias < of_one.bias < 0


def test_labels_are_read_at_the_cells_centres_and_ignored_ones_left_out() -> None:
    truth = np.repeat(np.repeat(np.array([[0, 1], [255, 1]]), 3, axis=0), 5, axis=1)
    ids = np.array([[[0, 0], [0, 1]]], np.uint16)
    found = labelled_cells(ids, np.full((1, 2, 2), 0.5, np.float16), truth, 255, image=7)
    assert found.class_id.tolist() == [0, 0, 1]
    assert found.right.tolist() == [True, False, True]
    assert found.image.tolist() == [7, 7, 7]


def test_calibration_error_is_the_gap_between_said_and_right() -> None:
    score = np.array([0.9, 0.9, 0.1, 0.1])
    assert calibration_error(score, np.array([True, False, False, False])) == pytest.approx((0.4 + 0.1) / 2)
    assert calibration_error(np.ones(3), np.ones(3, bool)) == 0
    assert calibration_error(np.zeros(0), np.zeros(0, bool)) is None


def test_a_file_is_read_back_and_its_digest_knows_its_content_alone(tmp_path: Path) -> None:
    made = Calibration(classes={"dog": ClassCalibration(temperature=2.0, bias=0.5)})
    made.save(tmp_path / "a.json")
    (tmp_path / "b.json").write_text(made.model_dump_json())
    assert Calibration.load(tmp_path / "a.json") == made
    assert Calibration.load(tmp_path / "b.json").digest == made.digest
    assert Calibration(classes={"dog": ClassCalibration(temperature=2.0)}).digest != made.digest
    table = calibration_table(tmp_path / "a.json", NAMES)
    assert table is not None
    assert (table.scale.tolist(), table.bias.tolist()) == ([1, 0.5], [0, 0.5])
    assert calibration_table(None, NAMES) is None


@pytest.mark.parametrize("text", ["", "[]", '{"version": 2}', '{"classes": {"cat": {"temperature": 0}}}'])
def test_a_damaged_file_is_refused_and_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ValueError, match=r"c\.json is not a calibration"):
        Calibration.load(tmp_path / "c.json")


def test_a_missing_file_and_a_foreign_class_are_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stseg-pipeline calibrate"):
        Calibration.load(tmp_path / "none.json")
    with pytest.raises(ValueError, match="'bird'"):
        Calibration(classes={"bird": ClassCalibration()}).table(NAMES)
