import numpy as np
import pytest

from models.refinement.components import Component, find_components
from models.refinement.prompt_shapes import boxes_in_sam_frame, elastic_box
from models.refinement.settings import ComponentConfig
from models.sam.frame import GridFrame


def component_of(cells: np.ndarray) -> Component:
    (component,) = find_components(cells.astype(np.int32), [1], ComponentConfig(min_area=1)).kept
    return component


def test_box_is_the_first_and_last_pixel_in_the_sam_frame() -> None:
    cells = np.zeros((48, 48))
    cells[10:12, 20:25] = 1
    assert boxes_in_sam_frame([component_of(cells).box], GridFrame((48, 48), (1.0, 1.0), 96)).tolist() == [
        [40, 20, 49, 23]
    ]
    assert boxes_in_sam_frame([component_of(cells).box], GridFrame((48, 48), (0.5, 1.0), 96)).tolist() == [
        [40, 10, 49, 11]
    ]
    whole = component_of(np.ones((6, 9)))
    assert boxes_in_sam_frame([whole.box], GridFrame((6, 9), (1.0, 0.75), 1024)).tolist() == [[0, 0, 767, 1023]]
    assert boxes_in_sam_frame([], GridFrame((6, 9), (1.0, 1.0), 96)).shape == (0, 4)


def test_box_of_a_cell_thinner_than_a_pixel_does_not_turn_over() -> None:
    cells = np.zeros((192, 192))
    cells[100, 7] = 1
    x0, y0, x1, y1 = boxes_in_sam_frame([component_of(cells).box], GridFrame((192, 192), (1.0, 0.1), 96))[0]
    assert x0 == x1
    assert y0 == y1 == 50


def two_halves(column: int) -> np.ndarray:
    """An embedding of an 8 x 8 grid whose columns before one look alike, and differ from the others."""
    embedding = np.zeros((2, 8, 8), dtype=np.float16)
    embedding[0, :, :column] = 1
    embedding[1, :, column:] = 1
    return embedding


@pytest.mark.parametrize("side", [8, 16, 24])
def test_elastic_box_grows_to_where_the_image_changes_and_no_further(side: int) -> None:
    cells = np.zeros((side, side))
    cells[side // 4 : side // 2, side // 4 : side // 2] = 1
    component = component_of(cells)
    frame = GridFrame((side, side), (1.0, 1.0), 96)
    x0, y0, x1, y1 = elastic_box(component, two_halves(4), frame, similarity=0.5, share=0.1)
    length = side // 4
    assert x1 == side // 2
    assert x0 == y0 == side // 4 - length // 2
    assert y1 == side // 2 + length // 2


def test_elastic_box_stays_tight_in_an_image_that_looks_different_all_around_and_within_the_grid() -> None:
    cells = np.zeros((8, 8))
    cells[2:6, 0:4] = 1
    frame = GridFrame((8, 8), (1.0, 1.0), 96)
    embedding = np.zeros((2, 8, 8), dtype=np.float16)
    embedding[1] = 1
    embedding[:, 2:6, 0:4] = np.array([1, 0])[:, None, None]
    assert elastic_box(component_of(cells), embedding, frame, similarity=0.5, share=0.1) == (0, 2, 4, 6)
    alike = np.ones((2, 8, 8), dtype=np.float16)
    assert elastic_box(component_of(cells), alike, frame, similarity=0.5, share=0.1) == (0, 0, 6, 8)


def test_elastic_box_reads_the_image_part_of_the_embedding_only() -> None:
    cells = np.zeros((4, 8))
    cells[1:3, 2:6] = 1
    embedding = np.ones((1, 8, 8), dtype=np.float16)
    embedding[:, 4:] = -1
    frame = GridFrame((4, 8), (0.5, 1.0), 96)
    assert elastic_box(component_of(cells), embedding, frame, similarity=0.5, share=0.1) == (0, 0, 8, 4)
