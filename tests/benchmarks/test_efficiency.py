"""What counts as bare time: each model call once, also where one is made inside of another."""

from collections import defaultdict

import pytest

from benchmarks import efficiency
from pipeline.config import resolve_config


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_a_call_inside_of_a_call_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, spent, depth = _Clock(), defaultdict[str, float](float), [0]
    monkeypatch.setattr(efficiency, "time", clock)

    def network() -> None:
        clock.now += 2

    def step() -> None:
        timed_network()
        clock.now += 1

    timed_network = efficiency._timed(network, "network", spent, depth)
    efficiency._timed(step, "step", spent, depth)()
    timed_network()
    assert dict(spent) == {"step": 3, "network": 2}


def test_what_is_timed_is_there() -> None:
    with efficiency._timed_calls({}):
        pass


@pytest.mark.parametrize(("images", "steps"), [(None, None), (40, 20)])
def test_its_settings_are_settings(images: int | None, steps: int | None) -> None:
    config = resolve_config({}, efficiency.settings(images, steps), where="--set")
    assert config.resources.teacher.max_workers == efficiency.WORKERS
