"""Labels as stages read them: an unusable one costs its own sample, and is named."""

from typing import Protocol

from numpy import int32
from numpy.typing import NDArray

from shards.data.images import ImageFrame
from shards.data.labels import SourceLabel, UnusableLabel
from shards.data.sources import SampleRef
from shards.files.errors import is_transient
from shards.files.untrusted import UnusableFile
from shards.formats.records import Drop

TURNED = "labels_turned"  # the statistic of records that counts `LabelReader.turned`


class LabelSource(Protocol):
    """What labels are read from: a `Source`, or masks that another model made."""

    def read_label(self, ref: SampleRef, frame: ImageFrame) -> SourceLabel | None:
        """Return the label map of an image with that frame; None if there is none; see `Source.read_label`."""
        ...


class LabelReader:
    """Reads the labels of a source for one task.

    Attributes:
        turned: Labels so far that were in the stored frame of a photograph that EXIF turns, and were turned with it.
    """

    # One place for all stages: what a label's fault costs must not depend on which of them meets it first.

    def __init__(self, source: LabelSource, drops: list[Drop], without: str | None = None) -> None:
        """Prepare to read.

        Args:
            source: The images and labels.
            drops: Takes a drop for each unusable label.
            without: The reason to drop samples that have no label; None: they are not dropped.
        """
        self.turned = 0
        self._source = source
        self._drops = drops
        self._without = without

    def __call__(self, ref: SampleRef, frame: ImageFrame) -> NDArray[int32] | None:
        """Return the (H, W) int32 label of an image with that frame; None if it has none, or an unusable one.

        Raises:
            OSError: The label could not be read for now; the shard is tried again.
        """
        try:
            found = self._source.read_label(ref, frame)
        except UnusableLabel as error:
            self._drop(ref, error.reason, error.detail)
            return None
        except UnusableFile as error:
            self._drop(ref, "label_unreadable", str(error))
            return None
        except OSError as error:
            if is_transient(error):
                raise
            self._drop(ref, "label_unreadable", f"{error.filename or ref.uri}: {error.strerror}; make it readable")
            return None
        if found is None:
            if self._without is not None:
                self._drop(ref, self._without, f"{ref.uri} has no index PNG of its name")
            return None
        if found.ids.shape != frame.size_hw:  # whatever the source: NumPy would stretch or refuse it without a name
            self._drop(ref, "label_of_other_size", f"{ref.uri}: {found.ids.shape}, its image {frame.size_hw}")
            return None
        self.turned += found.turned
        return found.ids

    @property
    def stats(self) -> dict[str, float]:
        """The statistic of the task's record; empty where no label was turned, as in records of earlier versions."""
        return {TURNED: float(self.turned)} if self.turned else {}

    def _drop(self, ref: SampleRef, reason: str, detail: str) -> None:
        self._drops.append(Drop(key=ref.key, reason=reason, detail=detail))
