"""SED's published checkpoints: which tensors they hold, the sizes that follow from them, and our names for them."""

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from models.presets import PRESETS, load_preset
from models.stseg.decoder import CostAwareDecoder
from models.stseg.settings import ClipConfig, DecoderConfig

logger = logging.getLogger(__name__)

PREDICTOR: Final = "sem_seg_head.predictor."
_DECODER: Final = f"{PREDICTOR}transformer."
_CLIP: Final = f"{PREDICTOR}clip_model."
_NAMED: Final = 8  # names in a message; the rest are counted

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class SedParts:
    """A SED checkpoint, sorted.

    Attributes:
        preset: Name of the preset whose CLIP and decoder have these very shapes.
        clip: CLIP's weights under open_clip's names.
        decoder: The decoder's under ours, which are SED's.
        unexpected: Names, as in the checkpoint, that belong to neither.
    """

    preset: str
    clip: dict[str, Tensor]
    decoder: dict[str, Tensor]
    unexpected: tuple[str, ...]


def sort_sed(checkpoint: Mapping[str, Any], preset: str | None = None) -> SedParts:
    """Sort a whole SED checkpoint: CLIP and decoder under our names, and what is left over.

    Args:
        checkpoint: A state dict, or one under "model" as detectron2 writes it.
        preset: The preset it has to fit; None: found by the shapes of CLIP and decoder.

    Raises:
        ValueError: No preset has these shapes, or tensors are missing; they are named.

    Source: SED (Xie et al., CVPR 2024), the names in its published code.
    """
    # Nothing is dropped silently: a checkpoint of another variant would load in part and predict nonsense.
    state = _bare(checkpoint)
    clip, decoder = _under(state, _CLIP), _under(state, _DECODER)
    for prefix, part, what in ((_CLIP, clip, "CLIP"), (_DECODER, decoder, "the decoder")):
        if not part:
            raise ValueError(f"this is no SED checkpoint: it holds nothing under {prefix}* ({what})")
    config, guidance, prompts = decoder_sizes(decoder)
    name = preset or _preset_of(clip, config)
    meant = load_preset(name)
    wanted_clip = _shapes(partial(_empty_clip, meant.clip))
    wanted_decoder = _shapes(partial(CostAwareDecoder, meant.decoder, guidance, prompts))
    _refuse_misfits(clip, wanted_clip, f"CLIP {meant.clip.architecture} (preset {name})")
    _refuse_misfits(decoder, wanted_decoder, f"the decoder of preset {name}")
    if config != meant.decoder:
        raise ValueError(f"the decoder's sizes are {config}; preset {name} has {meant.decoder}")
    known = {_CLIP + key for key in wanted_clip} | {_DECODER + key for key in wanted_decoder}
    return SedParts(
        preset=name,
        clip={key: clip[key] for key in wanted_clip},
        decoder={key: decoder[key] for key in wanted_decoder},
        unexpected=tuple(sorted(state.keys() - known)),
    )


def decoder_from_sed(checkpoint: Mapping[str, Any]) -> CostAwareDecoder:
    """Build SED's decoder, in evaluation mode, with all sizes read off the tensors.

    Args:
        checkpoint: A SED checkpoint, `{"model": ...}` or bare; `sem_seg_head.predictor.transformer.*` is taken, or the
            decoder's own names where there is no such prefix. What has no counterpart is logged by name.

    Raises:
        ValueError: Tensors are missing or have shapes that do not fit together; they are named.
    """
    state = _bare(checkpoint)
    own = _under(state, _DECODER) or dict(state)
    config, guidance, prompts = decoder_sizes(own)
    decoder = CostAwareDecoder(config, guidance, prompts)
    wanted = {name: tensor.shape for name, tensor in decoder.state_dict().items()}
    _refuse_misfits(own, wanted, "SED's decoder")
    unexpected = sorted(own.keys() - wanted.keys())
    if unexpected:
        logger.warning("SED checkpoint: %d tensors have no place here: %s", len(unexpected), named(unexpected))
    decoder.load_state_dict({name: own[name].float() for name in wanted})
    return decoder.eval()


def decoder_sizes(state: State) -> tuple[DecoderConfig, tuple[int, ...], int]:
    """Read a decoder's sizes off its tensors.

    Sizes that no tensor shows have SED's values: 4 heads, pooling 2, groups of 16 channels, plain cosines.

    Args:
        state: The decoder's entries, without prefix.

    Returns:
        Its settings, the channels of the guidance maps (fine to coarse), and the number of prompt templates.

    Raises:
        ValueError: Tensors that show a size are missing, or contradict each other.
    """
    numbers = sorted(int(m[1]) for name in state if (m := re.fullmatch(r"decoder(\d+)\.up\.weight", name)))
    levels = max(1, len(numbers))
    guidance = [f"decoder_guidance_projection.{level}.0.weight" for level in range(levels)]
    corr = [f"decoder_corr_guidance_projection.{level}.0.weight" for level in range(levels)]
    convs = [f"decoder{level + 1}.conv.double_conv.0.weight" for level in range(levels)]
    depthwise = [f"decoder{level + 1}.cnext.dwconv.weight" for level in range(levels)]
    sizing = ["conv1.weight", *guidance, *corr, *convs, *depthwise]
    missing = [name for name in sizing if name not in state]
    if missing:
        raise ValueError(f"SED's decoder: {len(missing)} tensors are missing: {named(missing)}")
    flat = [name for name in sizing if state[name].ndim != 4]
    if flat:
        raise ValueError(f"SED's decoder: these are no convolutions (four axes): {named(flat)}")
    kernels = {state[name].shape[-1] for name in depthwise}
    if len(kernels) > 1:
        raise ValueError(f"SED's decoder: the levels' kernels have sides {sorted(kernels)}; one for all is supported")
    first = state["conv1.weight"]
    try:
        config = DecoderConfig(
            hidden_dim=first.shape[0],
            decoder_dims=tuple(state[name].shape[0] for name in convs),
            guidance_proj_dims=tuple(state[name].shape[0] for name in guidance),
            corr_proj_dims=tuple(state[name].shape[1] for name in corr),
            kernel_size=kernels.pop(),
            conv1_kernel=first.shape[-1],
            pooling=(2,) * levels,
        )
    except ValidationError as error:
        fault = error.errors()[0]
        raise ValueError(f"SED's decoder: {fault.get('ctx', {}).get('error') or fault['msg']}") from error
    return config, tuple(state[name].shape[1] for name in reversed(guidance)), first.shape[1]


def named(names: Iterable[str]) -> str:
    """Format names for a message: the first few, and the number of the others."""
    listed = list(names)
    more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
    return ", ".join(listed[:_NAMED]) + more


def _bare(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    # detectron2 nests the state dict; entries that are no tensors belong to neither CLIP nor the decoder.
    inner = checkpoint.get("model", checkpoint)
    if not isinstance(inner, Mapping):
        raise ValueError("this is no SED checkpoint: its entry 'model' holds no state dict")
    return {name: value for name, value in inner.items() if isinstance(value, Tensor)}


def _under(state: State, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _preset_of(clip: State, config: DecoderConfig) -> str:
    stem = "visual.trunk.stem.0.weight"
    found = clip[stem].shape if stem in clip else None
    if found is None:
        raise ValueError(f"CLIP: 1 tensor is missing: {stem}")
    for name, preset in PRESETS.items():
        if config == preset.decoder and _shapes(partial(_empty_clip, preset.clip)).get(stem) == found:
            return name
    raise ValueError(
        f"no preset has a CLIP whose {stem} is {tuple(found)} and a decoder of these sizes: {config}; name the one "
        "that is meant with --preset to see what differs"
    )


def _refuse_misfits(state: State, wanted: Mapping[str, torch.Size], what: str) -> None:
    missing = sorted(wanted.keys() - state.keys())
    if missing:
        raise ValueError(f"{what}: {len(missing)} tensors are missing: {named(missing)}")
    wrong = [f"{n} {tuple(state[n].shape)} for {tuple(wanted[n])}" for n in wanted if state[n].shape != wanted[n]]
    if wrong:
        raise ValueError(f"{what}: {len(wrong)} tensors have other shapes: {named(wrong)}")


def _shapes(build: Callable[[], nn.Module]) -> dict[str, torch.Size]:
    """Return names and shapes of a module without allocating its values."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in build().state_dict().items()}


def _empty_clip(config: ClipConfig) -> nn.Module:
    if config.architecture == "stseg_tiny":
        from models.stseg.tiny_clip import build_tiny_clip

        return build_tiny_clip()
    import open_clip
    from open_clip.model import CLIP

    # Not `create_model`: it moves values to a device, and tensors on the meta device have none.
    sizes = open_clip.get_model_config(config.architecture)
    if sizes is None:
        raise ValueError(f"open_clip knows no model {config.architecture}")
    clip: nn.Module = CLIP(**sizes)
    return clip
