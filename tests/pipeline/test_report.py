from pathlib import Path

import pytest

from models.refinement.gate import AdaptiveThreshold, GateConfig
from pipeline.report.gate import gate_facts
from pipeline.report.round_report import PseudoLabelFacts, RoundReport
from pipeline.report.score_line import score_line


def test_the_default_gate_in_a_sentence() -> None:
    assert gate_facts(GateConfig(), sigmoid=False).definition == (
        "The gate: a class of an image passes if its confidence is greater than 0.9. The confidence of a class is the "
        "highest of its softmax probabilities over the grid cells of the image where it is the teacher's first choice."
    )


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (GateConfig(threshold=0.75), "greater than 0.75."),
        (GateConfig(statistic="quantile:0.9"), "the 0.9-quantile of its"),
        (GateConfig(statistic="area_mean"), "sum p^2 / sum p"),
        (GateConfig(over="image"), "over all grid cells of the image, 0 where"),
        (GateConfig(calibration=Path("/a/b/c.json")), "probabilities, calibrated by c.json, over"),
        (
            GateConfig(adaptive=AdaptiveThreshold(floor=0.4, share=0.8)),
            "the class's own threshold, the highest that lets 80 % of its images pass, but at least 0.4 and at "
            "most 0.9",
        ),
    ],
)
def test_every_setting_of_the_gate_is_said(config: GateConfig, said: str) -> None:
    assert said in gate_facts(config, sigmoid=False).definition


def test_probabilities_are_called_what_they_are() -> None:
    assert "sigmoid probabilities" in gate_facts(GateConfig(), sigmoid=True).definition


def test_the_line_of_a_round_scores_uncovered_pixels_as_wrong_too() -> None:
    labels = PseudoLabelFacts(
        coverage=95.4, miou_before=68.0, miou_after=80.2, miou_before_all=59.5, miou_after_all=70.6
    )
    line = score_line(RoundReport(round=1, run="r", pseudo_labels=labels))
    assert "coverage 95.4, mIoU 68.0 -> 80.2 (uncovered = wrong: 59.5 -> 70.6)" in line
    unlabelled = RoundReport(round=1, run="r", pseudo_labels=PseudoLabelFacts(coverage=95.4))
    assert score_line(unlabelled).endswith("pseudo-labels: coverage 95.4")


def test_the_line_of_a_round_names_what_is_done_at_inference_beyond_the_paper() -> None:
    plain = RoundReport(round=1, run="r", miou=50.0, split="test", images=2)
    assert "(test, 2 images, seed 0)" in score_line(plain)
    assert "(test, 2 images, seed 0, flip, refine)" in score_line(
        plain.model_copy(update={"inference": ("flip", "refine")})
    )
