"""Images that a shard lacks because their files were not there as planned, and that are back."""

from collections.abc import Iterable

from shards.data.images import PASSING_REASONS, UnreadableImage
from shards.data.sources import FolderSourceConfig, SampleRef, ScenesSourceConfig, image_path
from shards.files.untrusted import MAX_FILE_BYTES, sha256_regular
from shards.formats.records import Drop


def why_returned(
    drops: Iterable[Drop], samples: Iterable[SampleRef], source: ScenesSourceConfig | FolderSourceConfig
) -> str | None:
    """Return why a finished shard has to be redone for images that it lacks, such as "3 images are back", or None.

    Args:
        drops: What the shard was made without.
        samples: Its samples, as planned.
        source: Where they are.
    """
    # Asked of every finished shard: where nothing is lacking not even the samples are read.
    lost = {drop.key for drop in drops if drop.reason in PASSING_REASONS}
    if not lost or isinstance(source, ScenesSourceConfig):  # a scene is drawn: none is ever missing
        return None
    back = sum(ref.key in lost and _is_back(source, ref) for ref in samples)
    return None if not back else "1 image is back" if back == 1 else f"{back} images are back"


def _is_back(source: FolderSourceConfig, ref: SampleRef) -> bool:
    try:
        path = image_path(source, ref)
        return path.is_file() and sha256_regular(path, MAX_FILE_BYTES) == ref.digest
    except (OSError, ValueError, UnreadableImage):  # a file system that fails brings nothing back
        return False
