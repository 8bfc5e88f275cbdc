import numpy as np

from models.refinement.components import find_components
from models.refinement.settings import ComponentConfig


def test_cells_that_touch_at_a_corner_are_one_component() -> None:
    found = find_components(np.eye(4, dtype=np.int32), [1], ComponentConfig(min_area=1))
    assert [c.area for c in found.kept] == [4]
    assert found.kept[0].box == (0, 0, 4, 4)


def test_components_come_by_class_then_reading_order_and_do_not_overlap() -> None:
    first = np.array([[300, 0, 7, 0, 7], [300, 0, 7, 0, 7]], dtype=np.uint16)
    found = find_components(first, [300, 7], ComponentConfig(min_area=1))
    assert [(c.class_id, c.box) for c in found.kept] == [(7, (2, 0, 3, 2)), (7, (4, 0, 5, 2)), (300, (0, 0, 1, 2))]
    covered = np.zeros(first.shape, dtype=np.int64)
    for component in found.kept:
        covered[component.slices] += component.cells
    assert covered.tolist() == (first > 0).astype(int).tolist()


def test_too_small_components_are_counted_and_marked() -> None:
    first = np.array([[1, 0, 1, 1], [0, 0, 1, 1], [2, 0, 0, 0]])
    found = find_components(first, [1, 2, 5], ComponentConfig(min_area=2))
    assert [c.area for c in found.kept] == [4]
    assert found.too_small_counts == {1: 1, 2: 1}
    assert np.argwhere(found.too_small).tolist() == [[0, 0], [2, 0]]


def test_no_class_and_absent_class_give_no_component() -> None:
    for ids in ([], [3]):
        found = find_components(np.zeros((3, 3), dtype=np.int32), ids, ComponentConfig(min_area=1))
        assert found.kept == ()
        assert not found.too_small.any()


def test_components_of_a_class_share_a_prompt_if_the_setting_says_so() -> None:
    first = np.zeros((9, 9), dtype=np.int64)
    first[0:2, 0:2] = first[6:8, 5:8] = 1
    first[4, 8] = 1
    found = find_components(first, [1, 3], ComponentConfig(per="class", min_area=2))
    assert [(c.class_id, c.area, c.box) for c in found.kept] == [(1, 10, (0, 0, 8, 8))]
    drawn = np.zeros_like(first)
    drawn[found.kept[0].slices][found.kept[0].cells] = 1
    assert drawn.sum() == 10
    assert drawn[4, 8] == 0
    assert found.too_small_counts == {1: 1}


def test_parts_that_fill_their_common_box_are_merged_and_others_are_not() -> None:
    first = np.zeros((12, 12), dtype=np.int64)
    first[0:4, 0:3] = first[0:4, 4:7] = first[9:12, 9:12] = 1
    split = find_components(first, [1], ComponentConfig(min_area=1))
    merged = find_components(first, [1], ComponentConfig(min_area=1, merge=True))
    assert len(split.kept) == 3
    assert [(c.area, c.box) for c in merged.kept] == [(24, (0, 0, 7, 4)), (9, (9, 9, 12, 12))]
    assert merged.kept[0].cells.sum() == 24
    assert not merged.kept[0].cells[:, 3].any()


def test_a_merged_component_can_take_in_a_further_part() -> None:
    first = np.zeros((4, 11), dtype=np.int64)
    first[:, 0:3] = first[:, 4:7] = first[:, 8:11] = 1
    (one,) = find_components(first, [1], ComponentConfig(min_area=1, merge=True)).kept
    assert (one.area, one.box) == (36, (0, 0, 11, 4))
