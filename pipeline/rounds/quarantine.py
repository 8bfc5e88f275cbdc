"""The budget for images that cannot be read."""

from pipeline.config import QuarantineSettings
from pipeline.errors import DataFault
from pipeline.report.left_out import NAMED, LeftOut


def check_quarantine(found: LeftOut, budget: QuarantineSettings) -> None:
    """Hold what is left out of a data set against the budget: at whatever stage it was that an image could not be read.

    Args:
        found: What is left out.
        budget: How many may be unreadable: `max_share` of them, or `min_samples` if that is more; never all.

    Raises:
        DataFault: There are more; reasons, some keys and the folder are named.
    """
    count, total = len(found.drops), found.total
    allowed = max(int(budget.max_share * total), budget.min_samples)
    if count <= allowed and (count < total or not count):
        return
    named = ", ".join(f"{drop.key} ({drop.reason})" for drop in found.drops[:NAMED])
    back = "put back what is missing or changed and give the same command"
    hint = back if found.may_return else "mend or remove them and start a new run"
    images = f"{count} of {total} {found.dataset} images are unreadable, {min(allowed, total)} are allowed"
    raise DataFault(
        f"{images} ({found.reasons}): {named}{', …' if count > NAMED else ''}. They are in {found.folder}: {hint}, or "
        "allow more with --set quarantine.max_share=SHARE"
    )
