"""What several test files share: one private Ray for the whole session, random weights, and a run made with them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

NEEDS = {"ray": "ray_session", "s3": "s3"}  # marker -> the fixture that a test with it uses


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a Ray or an S3 server: by the fixture, or by a parameter of that name, such as a backend."""
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        callspec = getattr(item, "callspec", None)
        parameters = () if callspec is None else callspec.params.values()
        for marker, fixture in NEEDS.items():
            if fixture in fixtures or any(value == marker for value in parameters if isinstance(value, str)):
                item.add_marker(marker)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A Ray of two CPUs on this machine; it starts when the first test asks for it."""
    from jobs.cluster.connection import connection

    with connection(num_cpus=2):
        yield


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The URL of a bucket of an S3 that listens on loopback; it starts when the first test asks for it."""
    pytest.importorskip("s3fs", reason="pip install -e '.[dev]' brings it")
    server_module = pytest.importorskip("moto.server", reason="pip install -e '.[dev]' brings it")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
        for name, value in {**keys, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
            patch.setenv(name, value)
        import fsspec

        fsspec.filesystem("s3").mkdir("stseg-bucket")
        yield "s3://stseg-bucket"
    server.stop()


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
