"""The budget for images that cannot be read."""

from collections import Counter
from collections.abc import Iterable

from pipeline.config import QuarantineSettings
from pipeline.errors import DataFault
from shards.formats.records import Drop, Record

_NAMED = 5


def check_quarantine(records: Iterable[Record], total: int, budget: QuarantineSettings, dataset: str) -> list[Drop]:
    """Give the unreadable images of a data set.

    Args:
        records: The records of all its embed shards.
        total: Planned images.
        budget: How many may be unreadable: `max_share` of them, or `min_samples` if that is more; never all.
        dataset: What to call the data set in the message.

    Raises:
        DataFault: There are more; reasons and some keys are named.
    """
    drops = [drop for record in records for drop in record.drops]
    allowed = max(int(budget.max_share * total), budget.min_samples)
    if len(drops) > allowed or (drops and len(drops) == total):
        reasons = ", ".join(f"{reason} {count}" for reason, count in Counter(d.reason for d in drops).most_common())
        named = ", ".join(f"{drop.key} ({drop.reason})" for drop in drops[:_NAMED])
        raise DataFault(
            f"{len(drops)} of {total} {dataset} images are unreadable, {min(allowed, total)} are allowed ({reasons}): "
            f"{named}{', …' if len(drops) > _NAMED else ''}. Mend or remove them and start a new run, or allow more "
            "with --set quarantine.max_share=SHARE"
        )
    return drops
