"""Where the score grid, which covers the whole image, lies in SAM's square input frame."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GridFrame:
    """A score grid in SAM's frame.

    Attributes:
        grid_hw: The grid's size in cells.
        valid_hw: Share of SAM's square that is image, each in (0, 1].
        image_size: Side of SAM's input frame, pixels.
    """

    grid_hw: tuple[int, int]
    valid_hw: tuple[float, float]
    image_size: int

    @property
    def scale_xy(self) -> tuple[float, float]:
        """Width and height of a cell in pixels of SAM's frame."""
        (rows, columns), (high, wide) = self.grid_hw, self.valid_hw
        return wide * self.image_size / columns, high * self.image_size / rows
