"""What the embedded model, preset `tiny`, is good for, and what every command says that uses it for other images."""

# The preset ships with the package, so that everything can be tried at once, and knows nothing but the scenes that the
# package generates. It labels a photograph with as little hesitation: 133 COCO names gave "stone wall" and "sand".

from collections.abc import Mapping, Sequence
from typing import Any, Final

from jobs.inference.model import ModelSettings
from jobs.run import DataSettings
from pipeline.settings import flat, with_sets
from shards.data.sources import ScenesSourceConfig

CLIP: Final = "convnext_base_w_320"  # as in preset base; a test compares them
SAM: Final = "sam_vit_b_01ec64.pth"
_DOCTOR: Final = "stseg-pipeline doctor --preset base"

CAUTION: Final = (
    "preset tiny knows only the scenes that this package generates: its labels of other images are junk, good for "
    f"trying the pipeline and nothing else; for photographs see {_DOCTOR}"
)
MASKS_CAUTION: Final = (
    "the SAM of preset tiny knows only the scenes that this package generates, and makes masks of photographs slightly "
    f"worse; for these: --set model.preset=base --set model.sam_weights={SAM}"
)
PRETRAIN_CAUTION: Final = (
    "the CLIP and SAM of preset tiny know only the scenes that this package generates: on photographs it learns little "
    f"more than colours; for these see {_DOCTOR}"
)


def require_named_model(requested: Mapping[str, Any], sets: Sequence[str], *, option: str) -> None:
    """Check that a model for images of the user's own is named: a preset, or stage-1 weights, which belong to one.

    Args:
        requested: Nested settings.
        sets: `key=value` texts.
        option: How to name `tiny`, for the message.

    Raises:
        ValueError: None is named; the message says what the default knows, and what to get instead.
    """
    named = flat(with_sets(requested, sets))
    if any(named.get(f"model.{name}") is not None for name in ("preset", "stage1_weights")):
        return
    raise ValueError(
        "name a preset: the default, tiny, knows only the scenes that this package generates, and its labels of "
        f"photographs are junk. For photographs get CLIP {CLIP}, {SAM} and SED's checkpoint ({_DOCTOR} says what is "
        f"missing, and the command for each) and name --preset base; to try the pipeline all the same: {option}"
    )


def uses_embedded(settings: ModelSettings) -> bool:
    """Return whether the network is the embedded one, with no stage 1 of the user's."""
    return settings.preset == "tiny" and settings.stage1_weights is None


def caution_of(model: ModelSettings, data: DataSettings) -> str | None:
    """Return what has to be said of a run's labels; None where the model may know the images."""
    return CAUTION if uses_embedded(model) and not isinstance(data.target, ScenesSourceConfig) else None
