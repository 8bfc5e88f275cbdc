import numpy as np
import pytest
from numpy.typing import NDArray

from models.refinement.confidence import Region, class_confidence

Ids = NDArray[np.uint16]
CLASSES = 12
STATISTICS = ["max", "mean", "area_mean", "quantile:0", "quantile:0.3", "quantile:0.9", "quantile:1"]


def random_scores(seed: int, kept: int = 3) -> tuple[Ids, NDArray[np.float16]]:
    """Give a map of 13 x 7 cells in which classes 10 and 11 are never seen and 9 is never first."""
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.permutation(9)[:kept] for _ in range(91)]).T.reshape(kept, 13, 7).astype(np.uint16)
    ids[kept - 1, 0, 0] = 9
    scores = np.sort(rng.dirichlet(np.ones(5), 91)[:, :kept])[:, ::-1].T.reshape(kept, 13, 7)
    return ids, scores.astype(np.float16)


def by_hand(ids: Ids, scores: NDArray[np.float16], class_id: int, statistic: str, over: Region) -> float:
    where = ids == class_id
    if not where[0].any():
        return 0.0
    wide = scores.astype(np.float64)
    values = wide[0][where[0]] if over == "argmax" else np.where(where, wide, 0).sum(axis=0).ravel()
    if statistic == "area_mean":
        return float((values**2).sum() / values.sum())
    if statistic == "mean":
        return float(values.mean())
    return float(np.quantile(values, 1.0 if statistic == "max" else float(statistic.partition(":")[2])))


@pytest.mark.parametrize("over", ["argmax", "image"])
@pytest.mark.parametrize("statistic", STATISTICS)
def test_every_statistic_is_that_of_a_loop_over_classes(statistic: str, over: Region) -> None:
    for seed in range(5):
        ids, scores = random_scores(seed)
        found = class_confidence(ids, scores, CLASSES, statistic, over)
        expected = [by_hand(ids, scores, class_id, statistic, over) for class_id in range(CLASSES)]
        assert found == pytest.approx(expected, rel=1e-6, abs=0)


@pytest.mark.parametrize("statistic", ["max", "mean", "quantile:0.3", "quantile:0.9", "quantile:0.55"])
def test_the_statistics_there_always_were_are_the_same_to_the_last_bit(statistic: str) -> None:
    for seed in range(20):
        ids, scores = random_scores(seed)
        found = class_confidence(ids, scores, CLASSES, statistic)
        expected = [by_hand(ids, scores, class_id, statistic, "argmax") for class_id in range(CLASSES)]
        assert found.tolist() == np.array(expected, dtype=np.float32).tolist()


def test_a_class_that_is_nowhere_first_has_no_confidence_over_the_image_either() -> None:
    ids, scores = random_scores(0)
    assert class_confidence(ids, scores, CLASSES, "max", "image")[9] == 0


def test_area_mean_weighs_sure_cells_more_and_cells_without_a_class_count_nowhere() -> None:
    ids = np.zeros((1, 1, 4), np.uint16)
    scores = np.array([[[1.0, 0.5, 0.0, 0.0]]], np.float16)
    assert class_confidence(ids, scores, 1, "area_mean")[0] == pytest.approx(1.25 / 1.5)
    assert class_confidence(ids, scores, 1, "mean")[0] == pytest.approx(0.75)
    assert class_confidence(ids, scores, 1, "mean", "image")[0] == pytest.approx(0.375)
    assert class_confidence(ids, scores * 0, 1, "area_mean")[0] == 0


def test_the_order_of_cells_changes_no_stored_score_s_mean() -> None:
    ids, scores = random_scores(3)
    flipped = class_confidence(ids[:, ::-1, ::-1], scores[:, ::-1, ::-1], CLASSES, "mean")
    assert flipped.tolist() == class_confidence(ids, scores, CLASSES, "mean").tolist()


def test_one_cell_and_more_classes_than_255() -> None:
    ids = np.array([[[300]]], np.uint16)
    for statistic in STATISTICS:
        for over in ("argmax", "image"):
            found = class_confidence(ids, np.array([[[0.5]]], np.float16), 400, statistic, over)
            assert np.flatnonzero(found).tolist() == [300]
            assert found[300] == 0.5
