"""Where weights of a preset may be on this machine, and which of them are; nothing is loaded or downloaded."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple

from models.sam.settings import SamConfig
from models.stseg.settings import ClipConfig
from models.weights.files import WEIGHTS_FOLDER, why_no_weights

State = Literal["set", "shipped", "cached", "missing", "damaged"]

_HUB_FILES: Final = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
# Where the authors publish their weights: pages to read and click on, which nothing here opens.
SAM_PAGE: Final = "https://github.com/facebookresearch/segment-anything#model-checkpoints"
SED_PAGE: Final = "https://github.com/xb534/SED"
_CLIP_HUB: Final = "https://huggingface.co/"
_CLIP_PAGE: Final = "https://github.com/mlfoundations/open_clip"
_SAM_FILES: Final = {768: "sam_vit_b_01ec64.pth", 1024: "sam_vit_l_0b3195.pth"}


class Location(NamedTuple):
    """A folder, and the pattern of the files in it that would do."""

    folder: Path
    pattern: str


@dataclass(frozen=True)
class Found:
    """The result of looking for one file of weights.

    Attributes:
        state: "set" (named in the settings), "shipped" with the package, "cached" by another program, "missing", or
            "damaged": there, but no file of weights.
        path: The file; None: missing.
        looked: Where it was looked for, in order.
        reason: What a damaged one is, in a sentence that names it.
    """

    state: State
    path: Path | None
    looked: tuple[str, ...]
    reason: str | None = None

    @property
    def usable(self) -> bool:
        """Whether there is something to load."""
        return self.state in ("set", "shipped", "cached")


def find_weights(own: Path | None, shipped: str | None, cached: Sequence[Location] = ()) -> Found:
    """Look for a file of weights: the one that the settings name, the shipped one, then other programs' caches.

    Args:
        own: The file that the settings name; if there is one, no other is looked for.
        shipped: File name under `models/weights`.
        cached: Where else to look; a folder that does not exist is no error.
    """
    if own is not None:
        return _first_usable([("set", own)] if own.is_file() else [], (str(own),))
    looked = []
    candidates: list[tuple[State, Path]] = []
    if shipped is not None:
        looked.append(str(WEIGHTS_FOLDER / shipped))
        if (WEIGHTS_FOLDER / shipped).is_file():
            candidates.append(("shipped", WEIGHTS_FOLDER / shipped))
    for folder, pattern in cached:
        looked.append(str(folder / pattern))
        candidates += [("cached", path) for path in sorted(folder.glob(pattern)) if path.is_file()]
    return _first_usable(candidates, tuple(looked))


def clip_locations(config: ClipConfig) -> list[Location]:
    """Return the folders where open_clip and the model hub keep the CLIP of a preset, with patterns."""
    if config.weights is None or (WEIGHTS_FOLDER / config.weights).is_file() or config.architecture == "stseg_tiny":
        return []
    locations = []
    repository = _hub_repository(config)
    if repository:
        folder = _hub_folder() / f"models--{repository.replace('/', '--')}"
        locations += [Location(folder, f"snapshots/*/{name}") for name in _HUB_FILES]
    locations.append(Location(Path.home() / ".cache" / "clip", f"*{config.architecture}*{config.weights}*"))
    return locations


def clip_page(config: ClipConfig) -> str:
    """Return the page where the CLIP of a preset can be downloaded: open_clip's of these weights, or of all."""
    repository = _hub_repository(config)
    return _CLIP_HUB + repository if repository else _CLIP_PAGE


def _hub_repository(config: ClipConfig) -> str:
    """Return the name of the hub's repository that open_clip has a CLIP from; "" if it has none there."""
    from open_clip import get_pretrained_cfg

    published = get_pretrained_cfg(config.architecture, config.weights) or {}
    return str(published.get("hf_hub", "")).strip("/")


def sam_file(config: SamConfig) -> str:
    """Return the name of the published file with these sizes, or a description of such a file."""
    return _SAM_FILES.get(config.encoder_dim, f"a SAM with an encoder of width {config.encoder_dim}")


def sam_locations(config: SamConfig) -> list[Location]:
    """Return the folders where SAM's published file may be, with patterns: PyTorch's cache and the working folder."""
    name = _SAM_FILES.get(config.encoder_dim)
    if name is None:
        return []
    # With and without the checksum in the name.
    pattern = re.sub(r"_[0-9a-f]{6}\.", "*.", name)
    checkpoints = _cache_folder("TORCH_HOME", "torch") / "hub" / "checkpoints"
    return [Location(checkpoints, pattern), Location(Path.cwd(), pattern)]


def _first_usable(candidates: list[tuple[State, Path]], looked: tuple[str, ...]) -> Found:
    if not candidates:
        return Found("missing", None, looked)
    # An interrupted download shows in a file's head and table, without reading gigabytes.
    reasons = [why_no_weights(path) for _, path in candidates]
    for (state, path), reason in zip(candidates, reasons, strict=True):
        if reason is None:
            return Found(state, path, looked)
    return Found("damaged", candidates[0][1], looked, reasons[0])


def _hub_folder() -> Path:
    named = os.environ.get("HF_HUB_CACHE")
    return Path(named) if named else _cache_folder("HF_HOME", "huggingface") / "hub"


def _cache_folder(variable: str, name: str) -> Path:
    named = os.environ.get(variable)
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / name
