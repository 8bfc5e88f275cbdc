"""`export model`: the network with fixed classes as one file, compared with the running model before it is kept."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from jobs.inference.model import embed_vocabulary, load_sam_encoder, load_stseg, stseg_fingerprint, weights_checksum
from jobs.inference.segmenter import StsegSegmenter
from models.interop.export import FixedVocabulary, check_format, read_exported, without_text_tower, write_exported
from models.presets import load_preset
from pipeline.commands.choose_model import ChosenModel
from pipeline.commands.outputs import require_free
from pipeline.errors import DataFault
from shards.files.atomic import drop_temporary, rename, sha256_file, temporary_sibling, write_bytes_atomic
from shards.formats.records import read_json

# Exporters fuse and reorder sums, which rounds differently; a wrongly translated operator is off by far more than this.
LARGEST_ERROR: Final = 1e-4


def export_model(chosen: ChosenModel, out: Path, kind: str) -> dict[str, Any]:
    """Write a network for a fixed vocabulary, if its logits agree with those of the running model.

    The file takes one image, (1, 3, N, N) float32 RGB in [0, 1], resized to that square whatever its aspect, and
    returns (1, K, h, w) logits. The running model shows SAM images in their own aspect; on square ones both agree.

    Args:
        chosen: Model and classes.
        out: The file; a card, FILE.json, is written next to it, last.
        kind: "pt2" (torch.export) or "onnx".

    Returns:
        The card.

    Raises:
        DataFault: Its logits differ from the running model's by more than 1e-4; nothing is left behind.
        ValueError: There is no such format here, weights are missing, or a file of another kind has the name.
    """
    check_format(kind)
    if out.suffix != f".{kind}":
        raise ValueError(f"--out {out} must end in .{kind} for --format {kind}")
    require_free(out, lambda: _is_exported(out))
    require_free(card_of(out), lambda: (read_json(card_of(out)) or {}).keys() >= {"format", "sha256", "largest_error"})
    preset, device = load_preset(chosen.model.preset), torch.device("cpu")
    running = StsegSegmenter(chosen.model, chosen.vocabulary, with_encoder=True, device=device)
    model = load_stseg(chosen.model)
    text_KPD = embed_vocabulary(model, chosen.vocabulary)
    encoder = load_sam_encoder(chosen.model) if chosen.model.dea else None
    # Compared is the file as it is read back, with another path than the segmenter's: exporters differ in what they
    # keep.
    module = FixedVocabulary(without_text_tower(model), text_KPD.clone(), encoder, preset).eval()
    form = check_format(kind, module)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_sibling(out)
    try:
        write_exported(module, torch.zeros(1, 3, module.side, module.side), temporary, form)
        exported = read_exported(temporary, form)
        images = _trial_images(module.side)
        expected = [running.logits([image], None) for image in images]
        found = [exported(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255) for image in images]
        error = float(
            np.max([_difference(*pair) for pair in zip(found, expected, strict=True)])
        )  # max() may lose a nan
        if not error <= LARGEST_ERROR:
            raise DataFault(
                f"the exported model differs from the running one by {error:.2e} (at most {LARGEST_ERROR:.0e} is "
                f"accepted); {out} is not written"
            )
        rename(temporary, out)
    finally:
        drop_temporary(temporary)
    card = {
        "format": kind,
        "sha256": sha256_file(out),
        "input": {"name": "image", "shape": [1, 3, module.side, module.side], "values": "RGB in [0, 1], float32"},
        "output": {"name": "logits", "shape": list(expected[-1].shape)},
        "classes": list(chosen.vocabulary.names),
        "model": stseg_fingerprint(chosen.model),
        "weights": weights_checksum(chosen.model.weights),
        "largest_error": error,
        "torch": torch.__version__,
    }
    write_bytes_atomic(card_of(out), (json.dumps(card, ensure_ascii=False, indent=1) + "\n").encode())
    return {"out": str(out), **card}


def card_of(out: Path) -> Path:
    """Return the path of an exported file's card."""
    return out.with_name(f"{out.name}.json")


def _is_exported(out: Path) -> bool:
    card = read_json(card_of(out))
    return out.is_file() and card is not None and card.get("sha256") == sha256_file(out)


def _trial_images(side: int) -> Sequence[NDArray[np.uint8]]:
    """Return noise, and a smooth picture with an edge."""
    # Noise has no structure and no flat area, the other has both: an operator that errs on one kind only is found.
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 255, side)
    smooth = np.stack([ramp[:, None] + 0 * ramp, ramp + 0 * ramp[:, None], 255.0 * (ramp[:, None] > ramp)], axis=2)
    return rng.integers(0, 256, (side, side, 3), dtype=np.uint8), smooth.astype(np.uint8)


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).abs().max())
