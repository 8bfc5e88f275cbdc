"""What several test files share: one private Ray for the whole session, random weights, and a run made with them."""

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A Ray of two CPUs on this machine; it starts when the first test asks for it."""
    from jobs.cluster import connection

    with connection(num_cpus=2):
        yield


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Settings that name random weights for every part of the tiny preset."""
    from run_setup import random_weights

    return random_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="session")
def one_round(weights: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one round done; take a copy of it to work on."""
    from run_setup import SMALL, invoke, sets

    root = tmp_path_factory.mktemp("one_round") / "run"
    code, out, err = invoke("round", "--n", "1", "--run", str(root), "--backend", "inline", *sets({**SMALL, **weights}))
    assert code == 0, err
    assert str(root / "rounds" / "001" / "report.html") in out
    assert str(root / "rounds" / "001" / "pseudo") in out
    return root
