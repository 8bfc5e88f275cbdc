import numpy as np

from models.refinement.components import Component, find_components
from models.refinement.prompt_shapes import NO_POINT, ON_BACKGROUND, background_points, deepest_points
from models.refinement.settings import ComponentConfig
from models.sam.frame import GridFrame


def component_of(cells: np.ndarray) -> Component:
    (component,) = find_components(cells.astype(np.int32), [1], ComponentConfig(min_area=1)).kept
    return component


def test_point_is_the_deepest_cell_and_lies_in_thecomponent_of() -> None:
    cells = np.zeros((12, 12))
    cells[0:5, 0:5] = 1
    cells[2, 5:12] = 1
    assert deepest_points([component_of(cells)], GridFrame((12, 12), (1.0, 1.0), 12)).tolist() == [[2, 2]]
    assert deepest_points([component_of(cells)], GridFrame((12, 12), (1.0, 0.5), 24)).tolist() == [[2, 4.5]]
    ring = np.ones((9, 9))
    ring[2:7, 2:7] = 0
    x, y = deepest_points([component_of(ring)], GridFrame((9, 9), (1.0, 1.0), 9))[0].astype(int)
    assert ring[y, x] == 1


def test_background_point_is_the_farthest_cell_of_another_class_in_the_box() -> None:
    first = np.zeros((9, 9), dtype=np.int64)
    first[0:9, 0] = first[8, 0:9] = 1
    (component,) = find_components(first, [1], ComponentConfig(min_area=1)).kept
    points, labels = background_points([component], first, GridFrame((9, 9), (1.0, 1.0), 9))
    assert points.tolist() == [[8, 0]]
    assert labels.tolist() == [ON_BACKGROUND]
    first[0:4, 5:9] = 1
    points, _ = background_points([component], first, GridFrame((9, 9), (1.0, 1.0), 9))
    x, y = points[0].astype(int)
    assert first[y, x] == 0


def test_there_is_no_background_point_in_a_full_box() -> None:
    first = np.ones((4, 5), dtype=np.int64)
    points, labels = background_points([component_of(first)], first, GridFrame((4, 5), (0.8, 1.0), 96))
    assert labels.tolist() == [NO_POINT]
    assert points.tolist() == [[0, 0]]
    nothing, none = background_points([], first, GridFrame((4, 5), (0.8, 1.0), 96))
    assert (nothing.shape, none.shape) == ((0, 2), (0,))
