"""The settings of loss and augmentation, apart from the code that needs torch."""

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, model_validator

_EVEN_ALPHA: Final = 0.5  # seen and unseen classes weigh the same


class LossConfig(BaseModel):
    """Which loss, and how much seen classes count against unseen ones.

    Attributes:
        kind: "eq6" is Eq. 6 as printed: positives only, over a softmax. "bce" is its binary form, positives and
            negatives, over independent sigmoids, which is what SED is trained with.
        alpha: Weight of a seen class; an unseen one weighs 1 - alpha. The paper sets 0.3.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["eq6", "bce"] = "eq6"
    alpha: float = Field(default=0.3, gt=0, lt=1)


class AugmentConfig(BaseModel):
    """Settings of the augmentation of training images; each is off at its default.

    Attributes:
        flip: Chance that a picture is mirrored, left to right.
        scale: Least and largest enlargement, drawn evenly in its logarithm. Above 1 the picture is a random square crop
            of 1 / scale of each side; below 1 the picture shrinks at a random place in its square, and the area
            around it repeats its edge and has no label.
        brightness: A factor from 1 - this to 1 + this on all values.
        contrast: The same on the distance from the picture's mean grey.
        saturation: The same on each pixel's distance from its own grey.
        grey: Chance that a picture loses its colours.
        embeddings: Where SAM's embedding of the changed picture comes from. "transform" resamples the stored one, which
            costs next to nothing and is an approximation: SAM would see more in an enlarged crop, its features are not
            symmetric under a flip, and a change of colour does not reach it. "encode" runs SAM's image encoder on every
            changed picture in every step.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Off by default: with colour, flips or crops one round of the embedded data ended 0.2 to 4 points lower (two
    # seeds); its 200 steps pass over the target one and a half times, which leaves little to overfit to.
    flip: float = Field(default=0.0, ge=0, le=1)
    scale: tuple[PositiveFloat, PositiveFloat] = (1.0, 1.0)
    brightness: float = Field(default=0.0, ge=0, lt=1)
    contrast: float = Field(default=0.0, ge=0, lt=1)
    saturation: float = Field(default=0.0, ge=0, lt=1)
    grey: float = Field(default=0.0, ge=0, le=1)
    # Mean cosine of "transform" with what SAM makes of the changed picture: 0.85 for a flip, 0.87 for a crop of 1.5.
    # Yet students of "encode", 14 % more time per tiny step, were within half a point.
    embeddings: Literal["transform", "encode"] = "transform"

    @model_validator(mode="after")
    def _check(self) -> "AugmentConfig":
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale is {list(self.scale)}; the first number is the least, such as [0.8, 1.5]")
        if self.embeddings == "encode" and not self.changes:
            raise ValueError("embeddings is 'encode', but nothing is augmented; set flip, scale or a colour beside it")
        return self

    @property
    def changes(self) -> bool:
        """Whether any picture may change."""
        return self.model_copy(update={"embeddings": "transform"}) != AugmentConfig()


def matched_alpha(alpha: float, strength: float) -> float:
    """Return the weight of a seen class: alpha at strength 0, and with 0.3 as alpha 0.3 + 0.2 g."""
    return alpha + strength * (_EVEN_ALPHA - alpha)
