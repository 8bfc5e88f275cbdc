"""A whole network without weights."""

from models.presets import Preset, build_stseg
from models.stseg.clip import build_clip
from models.stseg.stseg import STSeg


def build_random_stseg(preset: Preset, *, dea: bool) -> STSeg:
    return build_stseg(preset, build_clip(preset.clip), dea=dea)
