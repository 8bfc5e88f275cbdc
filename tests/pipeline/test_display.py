"""Bars on terminals of any width, lines elsewhere, and never a long silence."""

import io
import re
import time
from itertools import pairwise

import pytest
from rich.console import Console

from pipeline.display import Display, Row, duration, open_display, rate, silence_s
from pipeline.progress import ImageProgress
from pipeline.terminal import speak


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def in_a_log() -> tuple[Display, io.StringIO, Clock]:
    out, clock = io.StringIO(), Clock()
    return Display(Console(file=out, width=80), clock), out, clock


def times_of_lines(display: Display, out: io.StringIO, clock: Clock, seconds: float) -> list[float]:
    """Let time pass and return when there were lines."""
    times, shown = [], out.getvalue()
    end = clock.now + seconds
    while clock.now < end:
        clock.now += 0.5
        display.tick()
        if out.getvalue() != shown:
            times.append(clock.now)
            shown = out.getvalue()
    return times


def test_a_stage_that_starts_for_long_is_never_silent_for_five_seconds_and_says_so() -> None:
    display, out, clock = in_a_log()
    row = Row("round 1 train", 0.0, state="starting")
    with display.shown(), display.showing([row]):
        times = times_of_lines(display, out, clock, 60)
    assert max(later - earlier for earlier, later in pairwise([0.0, *times])) < 5
    lines = out.getvalue().splitlines()
    assert lines[0] == "round 1 train: starting …"
    assert lines[1] == "round 1 train: still starting, 4 s"


def test_a_week_of_a_stage_is_a_line_a_minute() -> None:
    display, out, clock = in_a_log()
    with display.shown(), display.showing([Row("embed", 0.0, state="loading")]):
        clock.now = 7 * 24 * 3600.0
        assert len(times_of_lines(display, out, clock, 600)) <= 11
    assert [silence_s(age) for age in (1, 61, 601)] == [4, 10, 60]


def test_stages_at_the_same_time_do_not_each_break_the_same_silence() -> None:
    display, out, clock = in_a_log()
    rows = [Row(name, 0.0, state="loading") for name in ("one", "two", "three")]
    with display.shown(), display.showing(rows):
        times = times_of_lines(display, out, clock, 30)
    assert len(out.getvalue().splitlines()) == 3 + len(times)


def test_what_takes_a_moment_is_no_line_and_what_takes_long_is() -> None:
    display, out, clock = in_a_log()
    row = Row("promote", 0.0, quiet=True)
    with display.shown(), display.showing([row]):
        times_of_lines(display, out, clock, 3)
        assert out.getvalue() == ""
        times_of_lines(display, out, clock, 3)
        assert out.getvalue() == "promote: at work\n"
        display.finish(row)
    assert out.getvalue() == "promote: at work\n"


def test_the_time_between_two_stages_is_not_silent() -> None:
    display, out, clock = in_a_log()
    with display.shown():
        assert times_of_lines(display, out, clock, 9) == [4.0, 8.0]


def test_long_silences_are_broken_without_anybody_asking() -> None:
    out = io.StringIO()
    clock = Clock()
    display = Display(Console(file=out), clock)
    with display.shown(), display.showing([Row("embed", 0.0, state="loading")]):
        clock.now = 4.5
        deadline = time.monotonic() + 10
        while "still loading" not in out.getvalue() and time.monotonic() < deadline:
            time.sleep(0.05)
    assert "embed: still loading, 4 s" in out.getvalue()


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120])
@pytest.mark.parametrize("name", ["embed", "round 12 evaluate-validation", "round 1 日本語"])
def test_a_bar_is_one_line_of_any_terminal(name: str, width: int) -> None:
    row = Row(name, 0.0, total=1_000_000, done=123_456, worked=123_456, extra="loss 0.123")
    row.works_since = 0.0
    starting = Row(name, 0.0, total=3, state="starting workers, loading models")
    for one in (row, starting):
        bar = one.bar(4000.0, width)
        assert bar.cell_len <= width
        assert "\n" not in bar.plain


def test_a_wide_bar_has_all_facts_and_a_narrow_one_how_far_it_is() -> None:
    row = Row("round 1 train", 0.0, unit="steps", rate_unit="steps", total=100, done=50, worked=50, extra="loss 0.123")
    row.works_since = 0.0
    wide, narrow = row.bar(100.0, 120).plain, row.bar(100.0, 60).plain
    assert wide.startswith("round 1 train")
    assert re.search(r"━{15}─{15}  50/100 steps  2.0 s/step  2 min left  loss 0.123  1:40", wide) is not None
    assert "50/100 steps" in narrow
    assert "━" in narrow


def on_a_terminal(width: int, **environ: str) -> tuple[Display, io.StringIO]:
    out = io.StringIO()
    named = {"TERM": "xterm-256color", **environ}
    return Display(Console(file=out, width=width, force_terminal=True, _environ=named), Clock()), out


@pytest.mark.parametrize("width", [60, 120])
def test_finished_and_failed_stages_stay_above_the_bars(width: int) -> None:
    display, out = on_a_terminal(width)
    done, failed = Row("round 1 teacher", 0.0, total=2), Row("round 1 refine", 0.0, total=2)
    with display.shown(), display.showing([done, failed]):
        done.done, failed.done = 2, 1
        display.finish(done)
        display.say("a line")
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    lines = [line.strip() for line in re.split(r"[\r\n]+", plain)]
    assert max(map(len, lines)) <= width
    assert any(line.startswith("round 1 teacher") and "2/2 images" in line for line in lines)
    assert any(line.startswith("round 1 refine") and "1/2 images" in line for line in lines[-4:])


def test_no_color_is_respected() -> None:
    for environ, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        display, out = on_a_terminal(80, **environ)
        row = Row("embed", 0.0, total=2, done=1)
        with display.shown(), display.showing([row]):
            pass
        assert ("\x1b[32m" in out.getvalue()) == coloured


def test_a_dumb_terminal_gets_lines() -> None:
    display, out = on_a_terminal(80, TERM="dumb")
    with display.shown(), display.showing([Row("embed", 0.0, state="loading")]):
        pass
    assert out.getvalue() == "embed: loading …\n"


def test_forced_colours_are_no_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    display = Display()
    with display.shown(), display.showing([Row("embed", 0.0, state="loading")]):
        pass
    assert capsys.readouterr().err == "embed: loading …\n"


def test_rates_below_one_a_second_are_seconds_each() -> None:
    assert rate(50, 10, "images") == "5.0 images/s"
    assert rate(2, 5, "images") == "2.5 s/image"
    assert rate(1, 40, "steps") == "40.0 s/step"
    assert rate(0, 5, "images") == rate(5, 0, "images") == ""


def test_durations_have_two_units_at_most() -> None:
    assert [duration(s) for s in (4.4, 700, 7300, 400_000)] == ["4 s", "12 min", "2 h 2 min", "4 d 15 h"]


def test_images_are_counted_within_the_display_that_is_shown() -> None:
    display, out, _ = in_a_log()
    with display.shown():
        assert open_display() is display
        with ImageProgress(name="hashing") as progress:
            progress.count(10)
            progress.say("a line")
    assert open_display() is None
    assert "a line" in out.getvalue()


def test_what_is_said_elsewhere_goes_above_the_bars(capsys: pytest.CaptureFixture[str]) -> None:
    display, out, _ = in_a_log()
    with display.shown():
        speak("stopping")
    speak("over\x1b[2J")
    assert out.getvalue() == "stopping\n"
    assert capsys.readouterr().err == "over\\x1b[2J\n"


def test_a_speed_does_not_fall_between_two_batches_and_does_when_nothing_comes() -> None:
    row = Row("embed", 0.0, total=100, done=20, worked=20, works_since=0.0)
    assert row.facts(10.0)[0] == "2.0 images/s"
    assert row.facts(15.0)[0] == "2.0 images/s"
    assert row.facts(40.0)[0] == "2.0 s/image"
