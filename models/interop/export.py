"""Exported networks: classes built in, written as torch.export's or ONNX files, and run again to be compared."""

# B image, K class, P template, D embedding, N side of the input in pixels, S side of the preset's square

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.presets import Preset
from models.sam.sam import SamEmbedding, SamEncoder
from models.stseg.stseg import STSeg


class FixedVocabulary(nn.Module):
    """STSeg for a fixed list of classes, SAM's encoder inside where DEA is on.

    CLIP's text tower is left out: the classes are constants.

    Attributes:
        side: N, side of the square it takes: SAM's frame with DEA, else the preset's square.
    """

    def __init__(self, model: STSeg, text_KPD: Tensor, encoder: SamEncoder | None, preset: Preset) -> None:
        """Assemble the parts.

        Raises:
            ValueError: The model has DEA and no encoder is given.
        """
        super().__init__()
        if model.dea is not None and encoder is None:
            raise ValueError("this model aggregates SAM's embedding (dea: true), and no encoder was given")
        self.model = model
        self.encoder = encoder if model.dea is not None else None
        self.image_size = preset.image_size
        self.side = preset.image_size if self.encoder is None else self.encoder.image_size
        self.text_KPD: Tensor
        self.register_buffer("text_KPD", text_KPD.detach().clone())

    def forward(self, image_B3NN: Tensor) -> Tensor:
        """Return (B, K, h, w) logits.

        Args:
            image_B3NN: RGB in [0, 1], resized to the square of `side` pixels, without keeping the aspect.
        """
        # Both networks read the same pixels, resized inside: whoever runs the file has one input to prepare.
        size = (self.image_size, self.image_size)
        image_B3SS = image_B3NN
        if tuple(image_B3NN.shape[-2:]) != size:
            image_B3SS = F.interpolate(image_B3NN, size, mode="bilinear", align_corners=False, antialias=True)
            image_B3SS = image_B3SS.clamp(0, 1)
        sam = None
        if self.encoder is not None:
            frame_B3NN = (image_B3NN * 255 - self.encoder.pixel_mean) / self.encoder.pixel_std
            valid_B2 = torch.ones(len(image_B3NN), 2, device=image_B3NN.device)
            # segment_anything's own forward: `encode_frames` works in place and under no_grad.
            sam = SamEmbedding(self.encoder.image_encoder(frame_B3NN), valid_B2)
        logits_BKhw: Tensor = self.model(image_B3SS, self.text_KPD, sam).logits_BKHW
        return logits_BKhw


def without_text_tower(model: STSeg) -> STSeg:
    """Remove what only serves to embed class names from a network, in place."""
    # Half of CLIP's parameters, and constants once the classes are.
    for name in ("transformer", "token_embedding", "ln_final"):
        if hasattr(model.clip.clip, name):
            delattr(model.clip.clip, name)
    return model


Format = Literal["pt2", "onnx"]
FORMATS: Final = ("pt2", "onnx")

_ONNX_PACKAGES: Final = ("onnx", "onnxscript", "onnxruntime")
_ONNX_BYTES: Final = 2_000_000_000  # what one ONNX file can hold, a protobuf
_INPUT, _OUTPUT = "image", "logits"


def check_format(name: str, module: nn.Module | None = None) -> Format:
    """Check a format's name, its packages, and that the network fits into it.

    Raises:
        ValueError: There is none, a package is missing, or the network is too large for it.
    """
    if name == "pt2":
        return "pt2"
    if name != "onnx":
        raise ValueError(f"--format is {name!r}; expected {' or '.join(FORMATS)}")
    missing = [package for package in _ONNX_PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise ValueError(
            # Not the extra: it can only be installed from a checkout.
            f"--format onnx needs {', '.join(missing)}: pip install {' '.join(missing)} (or use --format pt2)"
        )
    size = 0 if module is None else sum(t.numel() * t.element_size() for t in module.state_dict().values())
    if size > _ONNX_BYTES:
        raise ValueError(f"the network has {size / 1e9:.1f} GB and an ONNX file holds 2; use --format pt2")
    return "onnx"


@torch.no_grad()
def write_exported(module: nn.Module, image_13NN: Tensor, path: Path, kind: Format) -> None:
    """Write a module that takes one image, for inputs of exactly this shape."""
    # Shapes are fixed: the decoder chooses its chunks by them.
    program = torch.export.export(module, (image_13NN,))
    if kind == "pt2":
        torch.export.save(program, path)
        return
    torch.onnx.export(
        program,
        (image_13NN,),
        path,
        input_names=[_INPUT],
        output_names=[_OUTPUT],
        external_data=False,
        dynamo=True,
        verbose=False,
    )


def read_exported(path: Path, kind: Format) -> Callable[[Tensor], Tensor]:
    """Load what `write_exported` wrote, as a function of an image; runs on the CPU."""
    if kind == "pt2":
        module = torch.export.load(path).module()

        def run_program(image_13NN: Tensor) -> Tensor:
            with torch.no_grad():
                logits: Tensor = module(image_13NN)
            return logits

        return run_program
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run_session(image_13NN: Tensor) -> Tensor:
        return torch.from_numpy(session.run([_OUTPUT], {_INPUT: image_13NN.numpy()})[0])

    return run_session
