"""`import sed`: convert a published SED checkpoint to our weights, with a card of what was done."""

import json
import logging
import shlex
from pathlib import Path
from typing import Any, Final

from pipeline.errors import SettingsConflict
from shards.files.atomic import sha256_file, write_bytes_atomic

logger = logging.getLogger(__name__)

CLIP_FILE: Final = "clip.safetensors"
HEAD_FILE: Final = "stage1.safetensors"
CARD_FILE: Final = "card.json"


def import_sed(checkpoint: Path, out: Path, preset: str | None, *, overwrite: bool = False) -> dict[str, Any]:
    """Convert a whole SED checkpoint, CLIP and decoder; the card is written last.

    Args:
        checkpoint: The `.pth` that SED's authors publish; never unpickled beyond plain tensors.
        out: Folder for CLIP's weights, the head's and the card.
        preset: The preset that it has to fit; None: found by its shapes.
        overwrite: Replace existing weights.

    Returns:
        The card, and `next`: the commands that use the weights.

    Raises:
        SettingsConflict: The folder holds other weights.
        ValueError: The file is no SED checkpoint, or tensors are missing; they are named.
    """
    from models.interop.sed import named, sort_sed
    from models.weights.files import read_weights, write_weights

    existing = [out / name for name in (CLIP_FILE, HEAD_FILE) if (out / name).exists()]
    if existing and not overwrite:
        raise SettingsConflict(f"{existing[0]} exists already; name another folder with --out, or add --overwrite")
    parts = sort_sed(read_weights(checkpoint), preset)
    if parts.unexpected:
        count, names = len(parts.unexpected), named(parts.unexpected)
        logger.warning("%s: %d tensors have no place in the network and are left out: %s", checkpoint, count, names)
    # The card goes first and comes back last: a killed import leaves weights without a card, never with a wrong one.
    (out / CARD_FILE).unlink(missing_ok=True)
    write_weights(parts.clip, out / CLIP_FILE)
    write_weights({f"decoder.{name}": value for name, value in parts.decoder.items()}, out / HEAD_FILE)
    card = {
        "made_from": {"file": checkpoint.name, "sha256": sha256_file(checkpoint), "network": "SED"},
        "preset": parts.preset,
        "dea": False,
        "files": {
            name: {
                "sha256": sha256_file(out / name),
                "tensors": len(state),
                "values": sum(int(value.numel()) for value in state.values()),
            }
            for name, state in ((CLIP_FILE, parts.clip), (HEAD_FILE, parts.decoder))
        },
        "left_out": list(parts.unexpected),
    }
    write_bytes_atomic(out / CARD_FILE, (json.dumps(card, indent=1) + "\n").encode())
    return {**card, "out": str(out), "next": next_commands(out, parts.preset)}


def next_commands(out: Path, preset: str) -> list[str]:
    """Return the commands that use imported weights: predict, a run of rounds, and stage 1 with DEA added."""
    clip, head, trained = (shlex.quote(str(out / n)) for n in (CLIP_FILE, HEAD_FILE, "stage1_dea.safetensors"))
    model = f"--set model.preset={preset} --set model.clip_weights={clip}"
    sigmoid = "--set train.loss.kind=bce"  # SED was trained with it, and it decides how windows are merged
    return [
        f'stseg-pipeline predict photos/ --classes "cat, grass" {model} --set model.dea=false {sigmoid} '
        f"--weights {head}",
        f"stseg-pipeline init my-run --images photos/ --classes names.txt {model} --set model.dea=false {sigmoid} "
        f"--set model.stage1_weights={head} --set model.sam_weights=SAM_FILE",
        f"stseg-pipeline pretrain --init-from {head} --images photos/ --labels masks/ --classes names.txt "
        f"--out {trained} {model} --set model.sam_weights=SAM_FILE",
    ]
