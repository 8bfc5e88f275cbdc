"""The settings of every step after the gate, apart from the code that needs torch."""

from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

PromptKind = Literal["mask", "box", "point", "negative_point"]


class ComponentConfig(BaseModel):
    """Which components get a prompt.

    Attributes:
        per: Each connected "component" of a class, or all components of the "class" together. SAM was trained on one
            object at a time: a prompt over several works badly where they are apart.
        min_area: Components of fewer cells of the score grid get no prompt. A cell is 2 pixels wide in the tiny
            preset and 4 in the others.
        merge: Merge components of a class that fill their common box well: parts of one object.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    per: Literal["component", "class"] = "component"
    min_area: int = Field(default=6, ge=1)
    merge: bool = False


class PromptConfig(ComponentConfig):
    """What SAM is prompted with.

    Attributes:
        kinds: Which of "mask", "box", "point" (the component's deepest cell) and "negative_point" (the cell of another
            class in its box that is farthest from it) a component gets. A negative point alone is refused; a mask
            alone works badly with the published SAM weights.
        elastic_box: Grow the box where SAM's embedding goes on resembling the component.
        elastic_similarity: Cosine above which a cell resembles the component.
        elastic_share: Share of the cells next to a side that must resemble it for the side to move.
        mask_logit: What the mask prompt shows: the logit of the class's "probability", or the "margin", log p minus
            log of the best other class's p, positive exactly where the teacher prefers the class. The two differ where
            the teacher is unsure among many classes.
        logit_clip: The mask prompt's logits are kept within plus and minus this.
        other_components_logit: Cells of the class's other components get at most this logit.
        candidates: Take SAM's "single" answer, or the "best" of its three by their predicted IoU.
        iterations: How many times SAM is run; from the second on its own mask is the mask prompt, whatever `kinds`.
        feed_box: From the second iteration on the box is that of its own mask.
        mirror: Prompt SAM on the mirror image too, and take the mean of both masks' logits: twice the time of the
            decoder, and the mirrored images are embedded once for all rounds, if they are not for the teacher's views.
            Given masks and predictions at inference are refined without it.
    """

    # Mask and box gain most on coarse masks with the tiny SAM (13.9 points of IoU; mask alone 12.7, box 10.2, point
    # 6.8); points on top of them add nothing.
    kinds: tuple[PromptKind, ...] = ("mask", "box")
    elastic_box: bool = False
    elastic_similarity: float = Field(default=0.5, ge=-1, le=1)
    elastic_share: float = Field(default=0.1, ge=0, lt=1)
    mask_logit: Literal["probability", "margin"] = "probability"
    logit_clip: float = Field(default=10.0, gt=0)
    other_components_logit: float = -4.0
    candidates: Literal["single", "best"] = "single"
    # A second iteration gains 0.2 points on a round's pseudo-labels at twice the cost.
    iterations: int = Field(default=1, ge=1, le=10)
    feed_box: bool = False
    mirror: bool = False

    @field_validator("kinds")
    @classmethod
    def _some_once(cls, kinds: tuple[PromptKind, ...]) -> tuple[PromptKind, ...]:
        if not set(kinds) - {"negative_point"} or len(set(kinds)) != len(kinds):
            raise ValueError(
                f"prompt kinds are {kinds}; name mask, box or point, and perhaps negative_point, each once"
            )
        return kinds

    @model_validator(mode="after")
    def _in_effect(self) -> Self:
        if self.elastic_box and "box" not in self.kinds:
            raise ValueError(f"elastic_box needs a box, but prompt kinds are {self.kinds}; add box or leave it off")
        if self.feed_box and ("box" not in self.kinds or self.iterations < 2):
            raise ValueError(
                f"feed_box needs a box and a second iteration, but prompt kinds are {self.kinds} and iterations "
                f"{self.iterations}; add them or leave it off"
            )
        return self


class AcceptConfig(BaseModel):
    """When a mask of SAM's is accepted; the first test it fails is its reason.

    Attributes:
        min_area_ratio: It must be at least this many times as large as its component ("rejected_area").
        max_area_ratio: And at most this many times.
        min_iou: Lowest IoU with its component ("rejected_disagrees"). From 0.5 on it implies a ratio in [0.5, 2].
        min_predicted_iou: Lowest IoU that SAM itself predicts ("rejected_predicted_iou"); 0: not tested.
        min_stability: Lowest stability score ("rejected_unstable"); 0: not tested.
        stability_offset: How far the threshold on the logits is moved both ways for the stability score.
        min_gain: By how much the IoU that SAM predicts must exceed the IoU with the component, that is by how much more
            the two differ than SAM expects to err; else the component is kept as it is, whatever the fallback
            ("kept_agrees"); null: not tested.
        min_conviction: Lowest mean distance of SAM's logits from 0 over the pixels where mask and component differ;
            else the component is kept likewise ("kept_in_doubt"); 0: not tested. Of a good mask SAM differs where it is
            in doubt itself, of a coarse one where it is sure.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # `min_gain` and `min_conviction` are off by default: on a teacher's coarse masks they cost more than they save
    # (68.1 to 64.6 mIoU of a round's pseudo-labels with a conviction of 3). Masks that may be good already need them:
    # accepting whatever agrees loses 7 points of IoU there; see `FOR_MASKS`.
    min_area_ratio: float = Field(default=0.25, ge=0)
    max_area_ratio: float = Field(default=4.0, gt=0)
    min_iou: float = Field(default=0.5, ge=0, le=1)
    min_predicted_iou: float = Field(default=0.0, ge=0, le=1)
    min_stability: float = Field(default=0.0, ge=0, le=1)
    stability_offset: float = Field(default=1.0, ge=0)
    min_gain: float | None = Field(default=None, ge=-1, le=1)
    min_conviction: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_area_ratio > self.max_area_ratio:
            raise ValueError(
                f"min_area_ratio {self.min_area_ratio} is above max_area_ratio {self.max_area_ratio}; swap them"
            )
        return self


class ResolveConfig(BaseModel):
    """What happens where no accepted mask is.

    Attributes:
        fallback: Where a component's mask was rejected: keep the teacher's "coarse" label, or "ignore".
        too_small: The same for components too small for a prompt: the "teacher" label, or "ignore".
        uncovered: All other pixels without a mask: the "teacher" label where its score is above `teacher_floor`,
            whether or not its class passed the gate, or "ignore".
        teacher_floor: See `uncovered`.
        boundary_band: Pixels this near to a change of the label are ignored; 0: none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fallback: Literal["coarse", "ignore"] = "coarse"
    too_small: Literal["teacher", "ignore"] = "ignore"
    uncovered: Literal["teacher", "ignore"] = "ignore"
    teacher_floor: float = Field(default=0.9, ge=0, le=1)
    boundary_band: int = Field(default=0, ge=0)


class RefinementConfig(BaseModel):
    """The settings of every step after the gate.

    Attributes:
        prompts: What SAM is prompted with.
        accept: Which of its masks are accepted.
        resolve: Which mask wins a pixel, and what fills the rest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompts: PromptConfig = PromptConfig()
    accept: AcceptConfig = AcceptConfig()
    resolve: ResolveConfig = ResolveConfig()

    def facts(self) -> dict[str, Any]:
        """Return the settings for fingerprints: what is newer than runs that exist is left out at its default."""
        newer = {} if self.prompts.mirror else {"prompts": {"mirror"}}
        return self.model_dump(mode="json", exclude=newer)


# The default for masks from elsewhere, which may be good already: there SAM must be surer than of a teacher's. Chosen
# on 80 scenes; on 40 others it gains 10.8 points of IoU on coarse masks and 0.1 on good ones. A teacher's acceptance
# loses 7 on good ones.
FOR_MASKS: Final = RefinementConfig(
    prompts=PromptConfig(iterations=2),
    accept=AcceptConfig(min_predicted_iou=0.7, min_gain=0.12, min_conviction=4.5),
    resolve=ResolveConfig(too_small="teacher"),
)
