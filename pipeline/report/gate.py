"""What the report says of the gate: its settings, and their meaning in a sentence."""

from typing import Final

from models.refinement.gate import GateConfig
from pipeline.report.round_report import GateFacts

_GATE_STATISTICS: Final = {
    "max": "the highest",
    "mean": "the mean",
    "area_mean": "the mean, weighted by themselves (sum p^2 / sum p),",
}


def gate_facts(config: GateConfig, *, sigmoid: bool, matched: bool = False) -> GateFacts:
    """Return the gate's settings, and their meaning in a sentence; `matched` is whether shares are."""
    # In words, in every report: "0.9" means nothing without the statistic, the region and the kind of probability that
    # it is applied to.
    statistic = _GATE_STATISTICS.get(config.statistic) or f"the {config.statistic.partition(':')[2]}-quantile"
    threshold, region = f"{config.threshold:g}", "the grid cells of the image where it is the teacher's first choice"
    if config.adaptive is not None:
        threshold = (
            f"the class's own threshold, the highest that lets {100 * config.adaptive.share:g} % of its images pass, "
            f"but at least {config.adaptive.floor:g} and at most {config.adaptive.cap:g}"
        )
    if matched:
        threshold = "the class's own threshold, which the strength of share matching lowers for what it rarely reaches"
    if config.over == "image":
        region = "all grid cells of the image, 0 where it is not among the teacher's kept choices"
    kind = "sigmoid" if sigmoid else "softmax"
    calibrated = "" if config.calibration is None else f", calibrated by {config.calibration.name},"
    definition = (
        f"The gate: a class of an image passes if its confidence is greater than {threshold}. The confidence "
        f"of a class is {statistic} of its {kind} probabilities{calibrated} over {region}."
    )
    if config.decision == "mask":
        inside = "grid cells" if config.over == "image" else "grid cells where it is the teacher's first choice"
        definition = (
            f"The gate: a mask of SAM's passes if its confidence is greater than {threshold}. Its class is the one "
            f"with the highest sum of {kind} probabilities over the mask, and its confidence is {statistic} of that "
            f"class's probabilities{calibrated} over the mask's {inside}."
        )
    return GateFacts(**config.model_dump(), definition=definition)
