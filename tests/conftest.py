"""What several test files share: one private Ray for the whole session."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A Ray of two CPUs on this machine; it starts when the first test asks for it."""
    from jobs.cluster import connection

    with connection(num_cpus=2):
        yield
