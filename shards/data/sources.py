"""Sources of images and labels: a folder of the user's, or the generated scenes."""

from collections.abc import Iterable
from typing import Annotated, Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from shards.data.images import ImageFrame
from shards.data.label_rules import LabelRules
from shards.data.labels import SourceLabel
from shards.data.vocabulary import Vocabulary

Split = Literal["source", "target", "validation", "test"]


class SampleRef(NamedTuple):
    """One image and where to get it.

    Attributes:
        key: Its name in the run, unique and stable.
        digest: SHA-256 of the file's bytes; for a scene, of (version, split, seed, index).
        uri: The path relative to the source's folder, or "scenes:split/seed/index".
        label_digest: SHA-256 of the label's file, if there is one.
    """

    # A plain tuple, as there are millions; they are checked where a plan is made or read.

    key: str
    digest: str
    uri: str
    label_digest: str | None = None


class ScenesSourceConfig(BaseModel):
    """The generated data set: the first `count` scenes of a split and seed.

    Attributes:
        kind: Generated scenes.
        split: The split; each has its own scenes and camera.
        seed: Seed of the scenes.
        count: How many scenes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["scenes"] = "scenes"
    split: Split
    seed: NonNegativeInt = 0
    count: PositiveInt


class FolderSourceConfig(BaseModel):
    """A folder of images, searched with its sub-folders, and optionally one of index PNGs.

    Attributes:
        kind: A folder of images.
        images: The folder of images.
        labels: The folder of their labels.
        label_rules: How labels are found and read; null: as `data.labels` says.
        name: The name of the images in results; null: that of their folder. A folder that moves keeps its name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["folder"] = "folder"
    images: str
    labels: str | None = None
    label_rules: LabelRules | None = None
    name: str | None = None

    def with_rules(self, default: LabelRules) -> "FolderSourceConfig":
        """Return the source with its own rules, or else the default ones; without labels it needs none."""
        if self.labels is None or self.label_rules is not None:
            return self
        return self.model_copy(update={"label_rules": default})


SourceConfig = Annotated[ScenesSourceConfig | FolderSourceConfig, Field(discriminator="kind")]


class Source(Protocol):
    """A set of images, perhaps with labels."""

    labelled: bool

    def refs(self) -> Iterable[SampleRef]:
        """All samples in ascending order of their keys, including those that will turn out unreadable."""
        ...

    def read_image(self, ref: SampleRef) -> tuple[bytes, str]:
        """The image file's bytes and its extension without dot.

        Raises:
            UnreadableImage: The file is gone, cannot be read, is too large or has changed since the plan was made.
        """
        ...

    def read_label(self, ref: SampleRef, frame: ImageFrame) -> SourceLabel | None:
        """The label map of an image with that frame, in the vocabulary's ids; None if there is none.

        Raises:
            UnusableLabel: It is gone, changed or damaged, has another size than its image, or holds an id that the
                vocabulary does not have.
        """
        ...


def open_source(config: ScenesSourceConfig | FolderSourceConfig, vocabulary: Vocabulary) -> Source:
    """Open the source that the settings name.

    Raises:
        ValueError: A folder does not exist, or the vocabulary names none of the scenes' classes.
    """
    if isinstance(config, ScenesSourceConfig):
        # Imported here: the scenes need scipy, which the settings, and so every command, would import with this file.
        from shards.data.scenes_source import ScenesSource

        return ScenesSource(config, vocabulary)
    from shards.data.folder_source import FolderSource  # which needs the settings and samples of this file

    return FolderSource(config, vocabulary)
