"""What the ids of label maps mean, in a form that is read without this program."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt

Channel = Annotated[int, Field(ge=0, le=255)]


class LegendClass(BaseModel):
    """One class: its id in label maps, its name and other words for it, and its colour, r g b in 0..255."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: NonNegativeInt
    name: str
    synonyms: tuple[str, ...]
    colour: tuple[Channel, Channel, Channel]


class Legend(BaseModel):
    """All classes, in the order of their ids, and the id of pixels without a class."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ignore_index: NonNegativeInt
    classes: tuple[LegendClass, ...]
