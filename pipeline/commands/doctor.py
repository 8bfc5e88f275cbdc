"""`doctor`: what this machine has for a preset, and the next command for what is missing; never goes online."""

# Machines of clusters often have no network, and weights have licences: fetching anything is left to the user, with the
# exact command to type.

import os
import platform
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from jobs.cluster.connection import refuse_foreign_packages
from jobs.inference.model import NO_STAGE1, ModelSettings
from jobs.stages.start import SHIPPED, start_weights
from models.interop.find_weights import (
    SAM_PAGE,
    SED_PAGE,
    Found,
    clip_locations,
    clip_page,
    find_weights,
    sam_file,
    sam_locations,
)
from models.presets import Preset, load_preset
from pipeline.config import resolve_config

LIBRARIES: Final = ("torch", "open_clip_torch", "timm", "segment-anything", "ray", "zarr", "webdataset", "onnx")
_SHARED_MEMORY: Final = Path("/dev/shm")  # where Ray puts its object store
_STORE_BYTES: Final = 256 * 1024**2  # containers have 64 MiB there by default


def examine(preset: str, sets: Sequence[str], folder: Path) -> dict[str, Any]:
    """Examine this machine; nothing is loaded, started or fetched.

    Args:
        preset: tiny, base or large.
        sets: `key=value` texts, such as model.clip_weights=FILE.
        folder: The folder for runs, whose free space is reported.

    Returns:
        preset, dea, ready (all weights are there), weights, versions, torch, disk, ray, and next: the commands to run.

    Raises:
        ValueError: There is no such preset or setting.
    """
    load_preset(preset)  # raises its own message for an unknown preset
    settings = resolve_config({}, [f"model.preset={preset}", *sets], where="--set").model
    weights = _weights(settings, load_preset(settings.preset))
    ready = all(entry["state"] in ("set", "shipped", "cached") for entry in weights)
    return {
        "preset": settings.preset,
        "dea": settings.dea,
        "ready": ready,
        "weights": weights,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in LIBRARIES}},
        "torch": _torch(),
        "disk": _disk(folder),
        "ray": _ray(),
        "next": [entry["next"] for entry in weights if entry["next"]]
        if not ready
        else [_first_command(settings, weights)],
    }


def _weights(settings: ModelSettings, preset: Preset) -> list[dict[str, Any]]:
    clip = find_weights(settings.clip_weights, preset.clip.weights, clip_locations(preset.clip))
    sam = find_weights(settings.sam_weights, preset.sam.weights, sam_locations(preset.sam))
    own = start_weights(settings, dea=settings.dea) if settings.stage1_weights == NO_STAGE1 else settings.stage1_file
    head = find_weights(own, SHIPPED[settings.dea] if preset.name == "tiny" else None)
    if own is not None and settings.stage1_weights == NO_STAGE1:
        head = replace(head, path=Path(NO_STAGE1))  # as it is typed
    return [
        _entry("clip_weights", f"CLIP {preset.clip.architecture}", clip, _clip_hint(preset)),
        _entry("sam_weights", "SAM", sam, _sam_hint(preset)),
        _entry("stage1_weights", f"stage 1 (dea: {str(settings.dea).lower()})", head, _head_hint(settings, preset)),
    ]


def _entry(setting: str, what: str, found: Found, hint: str) -> dict[str, Any]:
    fault = f"damaged: {found.reason}; " if found.state == "damaged" else "missing: "
    return {
        "what": what,
        "setting": f"model.{setting}",
        "state": found.state,
        "path": None if found.path is None else str(found.path),
        "looked": list(found.looked),
        "next": None if found.usable else fault + hint,
    }


def _clip_hint(preset: Preset) -> str:
    if preset.name == "tiny":
        return "CLIP: the package is incomplete; install it again"
    name, tag = preset.clip.architecture, preset.clip.weights
    return (
        f"CLIP {name}, get it from {clip_page(preset.clip)}, then --set model.clip_weights=FILE; or fill the cache "
        f"that is searched, where there is a network: python -c \"import open_clip; open_clip.create_model('{name}', "
        f"pretrained='{tag}')\""
    )


def _sam_hint(preset: Preset) -> str:
    if preset.name == "tiny":
        return "SAM: the package is incomplete; install it again"
    return f"SAM's {sam_file(preset.sam)}, get it from {SAM_PAGE}, then --set model.sam_weights=FILE"


def _head_hint(settings: ModelSettings, preset: Preset) -> str:
    if preset.name == "tiny":
        return "stage 1: stseg-pipeline pretrain --out stage1.safetensors, then --set model.stage1_weights=FILE"
    letter = {"base": "B", "large": "L"}.get(preset.name, "B")
    source = f"stage 1, which SED's checkpoint for ConvNeXt-{letter} gives (CLIP, too), get it from {SED_PAGE}"
    imported, loss = "stseg-pipeline import sed CHECKPOINT --out sed", "--set train.loss.kind=bce"  # SED's own loss
    if not settings.dea:
        return f"{source}, then {imported}, and --set model.stage1_weights=sed/stage1.safetensors {loss}"
    return (
        f"{source}, then {imported}, and the pretrain command that it prints; or without DEA: --set model.dea=false "
        f"--set model.stage1_weights=sed/stage1.safetensors {loss}"
    )


def _first_command(settings: ModelSettings, weights: Sequence[dict[str, Any]]) -> str:
    if settings.preset == "tiny" and all(entry["state"] == "shipped" for entry in weights):
        return "stseg-pipeline round --n 3"
    named = [f"--set {e['setting']}={shlex.quote(e['path'])}" for e in weights if e["state"] in ("set", "cached")]
    dea = [] if settings.dea else ["--set model.dea=false"]
    first = "stseg-pipeline init my-run --images photos/ --classes names.txt"
    return " ".join([first, f"--preset {settings.preset}", *dea, *named])


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _torch() -> dict[str, Any]:
    import torch

    gpus = []
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        gpus.append({"name": facts.name, "memory_gb": round(facts.total_memory / 1024**3, 1)})
    return {
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "gpus": gpus,
        "mps": bool(torch.backends.mps.is_available()),
    }


def _disk(folder: Path) -> dict[str, Any]:
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    return {"folder": str(there), "free_gb": round(shutil.disk_usage(there).free / 1024**3, 1)}


def _ray() -> dict[str, Any]:
    """Return whether a private Ray could be started from here, without starting it."""
    why = None
    if _version("ray") is None:
        why = "ray is not installed; use --backend inline"
    try:
        refuse_foreign_packages([Path.cwd(), Path(sys.path[0] or ".")])
    except ValueError as error:
        why = str(error)
    if why is None and _SHARED_MEMORY.is_dir() and shutil.disk_usage(_SHARED_MEMORY).free < _STORE_BYTES:
        why = f"{_SHARED_MEMORY} has less than {_STORE_BYTES // 1024**2} MiB free for Ray's store; use --backend inline"
    return {"can_start": why is None, "why_not": why}
