"""A second vocabulary of the scenes: their classes and as many names that no scene shows, as real vocabularies have.

A list of 847 names finds ten of them in a picture. Here each absent name is a colour and a stuff of the scenes, "red
brick" or "blue water": words that the tiny CLIP knows, for something close to what it sees. The labels keep their ids,
as the absent names come after the scenes' own; none of them is seen.
"""

import json
import statistics
from collections.abc import Mapping
from typing import Final

from shards.scenes.scenes import SCENE_CLASSES, SEEN, UNSEEN
from shards.scenes.textures import COLOURS, STUFF

# Two thirds of all pairs, each colour and each stuff as often as any other; easy ones and such as "green grass", which
# is a true word for grass.
ABSENT_NAMES: Final = tuple(
    f"{colour} {stuff}" for c, colour in enumerate(COLOURS) for s, stuff in enumerate(STUFF) if (c + s) % 3 != 1
)


WITNESS_SETTINGS: Final = ("teacher.presence.witness=clip", "evaluate.present=true")


def absent_settings(*, witness: bool = False) -> list[str]:
    """Give the settings of a run on the scenes with absent names, perhaps with CLIP as witness; `seen` stays."""
    names = f"vocabulary.classes={json.dumps([*SCENE_CLASSES, *ABSENT_NAMES])}"
    return [names, *WITNESS_SETTINGS] if witness else [names]


def real_scores(iou: Mapping[str, float | None]) -> dict[str, float]:
    """Give the means over the scenes' own classes of IoUs by class name: a predicted absent name has an IoU of 0."""

    # `vocabulary.unseen_ids` holds the absent names too, whose zeros would hide how the real classes fare.
    def mean(names: tuple[str, ...]) -> float:
        found = [value for name in names if (value := iou.get(name)) is not None]
        return statistics.fmean(found) if found else 0.0

    seen, unseen = (mean(tuple(name for name in SCENE_CLASSES if name in some)) for some in (SEEN, UNSEEN))
    both = 2 * seen * unseen / (seen + unseen) if seen + unseen else 0.0
    return {"miou": mean(SCENE_CLASSES), "miou_seen": seen, "miou_unseen": unseen, "hiou": both}
