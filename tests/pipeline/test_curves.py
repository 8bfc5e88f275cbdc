import itertools
import xml.etree.ElementTree as ElementTree

from pipeline.report.curves import Curve, curves_svg

SVG = "{http://www.w3.org/2000/svg}"


def test_each_measured_value_is_a_dot_and_the_baseline_a_dashed_line() -> None:
    curve = Curve("mIoU", "#123456", {0: 50.0, 1: None, 2: 60.0}, baseline=55.0)
    root = ElementTree.fromstring(curves_svg([curve]))
    dots = root.findall(f"{SVG}circle")
    dashed = [line for line in root.findall(f"{SVG}line") if line.get("stroke-dasharray")]
    assert len(dots) == 2
    assert float(dots[0].get("cy", 0)) > float(dashed[0].get("y1", 0)) > float(dots[1].get("cy", 0))


def test_one_round_without_baseline_draws_one_dot_in_the_picture() -> None:
    root = ElementTree.fromstring(curves_svg([Curve("mIoU", "red", {0: 50.0})]))
    (dot,) = root.findall(f"{SVG}circle")
    assert 0 < float(dot.get("cx", 0)) < 760
    assert 0 < float(dot.get("cy", 0)) < 330


def test_extreme_values_stay_in_the_picture() -> None:
    root = ElementTree.fromstring(curves_svg([Curve("a", "red", {0: 0.0, 1: 100.0})]))
    assert all(0 <= float(dot.get("cy", -1)) <= 330 for dot in root.findall(f"{SVG}circle"))


def test_labels_of_curves_that_end_together_do_not_overlap() -> None:
    curves = [Curve(name, "red", {0: 50.0, 1: 60.0 + number / 10}) for number, name in enumerate("abc")]
    root = ElementTree.fromstring(curves_svg(curves))
    heights = sorted(float(text.get("y", 0)) for text in root.findall(f"{SVG}text") if text.get("class") == "end")
    assert all(second - first >= 14.9 for first, second in itertools.pairwise(heights))


def test_names_are_escaped_and_nothing_measured_draws_nothing() -> None:
    assert "<b>" not in curves_svg([Curve("<b>", "red", {0: 1.0})])
    assert curves_svg([Curve("a", "red", {0: None})]) == ""
    assert curves_svg([]) == ""
