"""Files of exported networks: torch.export's and ONNX, written and run again to be compared."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import torch
from torch import Tensor, nn

Format = Literal["pt2", "onnx"]
FORMATS: Final = ("pt2", "onnx")

_ONNX_PACKAGES: Final = ("onnx", "onnxscript", "onnxruntime")
_ONNX_BYTES: Final = 2_000_000_000  # what one ONNX file can hold, a protobuf
_INPUT, _OUTPUT = "image", "logits"


def check_format(name: str, module: nn.Module | None = None) -> Format:
    """Give the format of that name.

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
            f"--format onnx needs {', '.join(missing)}: pip install 'stseg-pipeline[onnx]' (or use --format pt2)"
        )
    size = 0 if module is None else sum(t.numel() * t.element_size() for t in module.state_dict().values())
    if size > _ONNX_BYTES:
        raise ValueError(f"the network has {size / 1e9:.1f} GB and an ONNX file holds 2; use --format pt2")
    return "onnx"


@torch.no_grad()
def write_exported(module: nn.Module, image_13NN: Tensor, path: Path, kind: Format) -> None:
    """Write a module that takes one image, for inputs of exactly this shape."""
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
