"""Counts of a run among Ray's own metrics, which the dashboards of a cluster already read."""

from collections import Counter
from typing import Any, Final

from shards.formats.records import Record

TAGS: Final = ("run", "round", "stage")
_SHARD_BOUNDARIES_S: Final = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0]


class RunMetrics:
    """Counts what is done on Ray for a run, by stage.

    Args:
        run: The name of the run.
    """

    # The process that hands out the shards counts, not the workers: their counts would end with them, and a shard that
    # was done twice would count twice. Ray exports a process's metrics from its machine, every ten seconds.

    def __init__(self, run: str) -> None:
        from ray.util import metrics

        self._run = run.encode("ascii", "backslashreplace").decode()  # Ray takes no other characters
        self._images: Any = metrics.Counter("stseg_images_done", "Images in finished shards.", TAGS)
        self._dropped: Any = metrics.Counter(
            "stseg_dropped", "Images, classes and masks that finished shards leave out, by reason.", (*TAGS, "reason")
        )
        self._seconds: Any = metrics.Counter("stseg_seconds", "Working time of finished shards, in seconds.", TAGS)
        self._shards: Any = metrics.Histogram(
            "stseg_shard_seconds", "Working time per finished shard, in seconds.", _SHARD_BOUNDARIES_S, TAGS
        )

    def add(self, round: int, stage: str, record: Record) -> None:
        """Count a finished shard."""
        tags = {"run": self._run, "round": str(round), "stage": stage}
        # Ray refuses an increment of 0.
        if record.count:
            self._images.inc(record.count, tags)
        if record.seconds > 0:
            self._seconds.inc(record.seconds, tags)
        self._shards.observe(record.seconds, tags)
        for reason, count in Counter(drop.reason for drop in record.drops).items():
            self._dropped.inc(count, {**tags, "reason": reason})
