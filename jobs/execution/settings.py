"""How often and when a shard is tried again: the settings, and the clock that measures them."""

import time
from typing import Final

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat, PositiveInt

# Of the ten seconds that a preempted machine has: a training's workers may take so long to save their state, and a
# command that got SIGTERM ends then, whatever it does. A checkpoint of preset `base` (87 MB) takes 0.5 s to write.
STOP_WITHIN_S: Final = 8.0
_LONGEST_DELAY_S: Final = 60.0


class ExecutionConfig(BaseModel):
    """What happens to shards and workers that fail; none of it changes results.

    Attributes:
        max_attempts: Attempts for a shard that raises, whose worker dies, or that runs out of memory; then it is
            given up, and the others are finished. Also failed starts of a worker in a row without a shard done.
        store_attempts: Attempts for a shard that meets transient errors of the store: input/output errors, stale
            handles, time-outs, broken connections.
        retry_delay_s: Seconds before a shard that met such an error is tried again; doubled each time, up to a minute.
        start_timeout_s: Seconds that a stage without any worker waits for a machine that could hold one, and again,
            once its process is up, for its models. While other work occupies such a machine it waits without limit,
            and warns each time that these seconds have passed.
        idle_s: Seconds after which a free worker above `min_workers` is stopped, where another stage or job could use
            its place. It is kept for at least four times as long as it took to start.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_attempts: PositiveInt = 3
    store_attempts: PositiveInt = 6
    retry_delay_s: NonNegativeFloat = 1.0
    start_timeout_s: PositiveFloat = 600.0
    idle_s: NonNegativeFloat = 30.0

    def delay_s(self, failed: int) -> float:
        """Return the seconds to wait after so many errors of the store: by default 1, 2, 4, … 60."""
        # The exponent is capped: a float overflows at 2^1024, and `store_attempts` has no upper bound.
        return min(self.retry_delay_s * 2.0 ** min(failed - 1, 30), max(_LONGEST_DELAY_S, self.retry_delay_s))


class Clock:
    """Time as the executor sees it; tests pass their own."""

    def now(self) -> float:
        """Return seconds that never decrease."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait that long."""
        time.sleep(seconds)
