"""From the score grid, which covers the whole image, to SAM's square, which is padded on the right or below."""

# M mask, h w score grid, S side of the square that is drawn in

import numpy as np
from numpy.typing import NDArray


def letterbox_bilinear(
    grid_MHW: NDArray[np.float32], valid_hw: tuple[float, float], side: int, padding: float
) -> NDArray[np.float32]:
    """Draw score grids into SAM's square, bilinear with half-pixel centres and antialias.

    Args:
        grid_MHW: (M, h, w) float32; M may be 0.
        valid_hw: Share of the square that is image, each in (0, 1].
        side: S, e.g. 256 for the mask prompts of a 1024 pixel SAM.
        padding: The value of pixels whose centre lies outside the image.

    Returns:
        (M, S, S) float32.

    Raises:
        ValueError: A share lies outside (0, 1].
    """
    valid_SS = letterbox_valid(valid_hw, side)
    rows_SH = _axis_weights(grid_MHW.shape[1], valid_hw[0], side)
    columns_SW = _axis_weights(grid_MHW.shape[2], valid_hw[1], side)
    square_MSS: NDArray[np.float32] = np.matmul(np.matmul(rows_SH, grid_MHW), columns_SW.T, dtype=np.float32)
    square_MSS[:, ~valid_SS] = padding
    return square_MSS


def letterbox_nearest(
    grid_HW: NDArray[np.int32], valid_hw: tuple[float, float], side: int, padding: int
) -> NDArray[np.int32]:
    """Draw one grid of integers into SAM's square, each pixel from the cell its centre lies in.

    Args:
        grid_HW: (h, w) int32.
        valid_hw: Share of the square that is image, each in (0, 1].
        side: S.
        padding: The value of pixels whose centre lies outside the image.

    Returns:
        (S, S) int32.

    Raises:
        ValueError: A share lies outside (0, 1].
    """
    valid_SS = letterbox_valid(valid_hw, side)
    rows = _cells_of_pixels(grid_HW.shape[0], valid_hw[0], side)
    columns = _cells_of_pixels(grid_HW.shape[1], valid_hw[1], side)
    square_SS = grid_HW[np.floor(rows).astype(np.int64)][:, np.floor(columns).astype(np.int64)]
    return np.where(valid_SS, square_SS, np.int32(padding))


def letterbox_valid(valid_hw: tuple[float, float], side: int) -> NDArray[np.bool_]:
    """Give (S, S) bool, True where a pixel's centre lies in the image.

    Raises:
        ValueError: A share lies outside (0, 1].
    """
    for share in valid_hw:
        if not 0 < share <= 1:
            raise ValueError(f"valid_hw is {valid_hw}; the share of SAM's square that is image lies in (0, 1]")
    centres = (np.arange(side) + 0.5) / side
    valid: NDArray[np.bool_] = (centres < valid_hw[0])[:, None] & (centres < valid_hw[1])[None, :]
    return valid


def _cells_of_pixels(cells: int, share: float, side: int) -> NDArray[np.float64]:
    """Give where on an axis of the grid each pixel's centre lies, in cells from the edge, kept inside."""
    position = (np.arange(side) + 0.5) / side / share * cells
    return np.clip(position, 0.0, np.nextafter(float(cells), 0.0))


def _axis_weights(cells: int, share: float, side: int) -> NDArray[np.float32]:
    """Give (side, cells) float32, rows of sum 1: how much each cell of an axis counts for each pixel."""
    centre = np.clip(_cells_of_pixels(cells, share, side) - 0.5, 0, cells - 1)
    width = max(1.0, cells / (share * side))
    weights = np.maximum(0.0, 1.0 - np.abs(centre[:, None] - np.arange(cells)[None, :]) / width)
    normalised: NDArray[np.float32] = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return normalised
