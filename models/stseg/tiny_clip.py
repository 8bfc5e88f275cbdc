"""The tiny CLIP: open_clip's class around a small timm ConvNeXt, its word tokenizer and its templates."""

import re
from typing import Any, Final

import torch
from torch import Tensor, nn

CONTEXT_LENGTH: Final = 24
EMBEDDING_DIM: Final = 128
_WORDS: Final = (
    *("red", "yellow", "green", "cyan", "blue", "pink", "triangle", "star", "ring"),
    *("grass", "water", "sand", "brick", "wood", "stone", "a", "an", "the", "of", "and", "with", "on", "in"),
    *("photo", "picture", "view", "there", "is", "scene", "close", "up", "some", "this"),
)
# Words outside the list are spelled, so that any class name has an embedding of its own.
_CHARACTERS: Final = "abcdefghijklmnopqrstuvwxyz0123456789"


class WordTokenizer:
    """Turn texts into token ids, one per word; a word that is not in the vocabulary is spelled.

    Calling it with a text or a list of N texts returns (N, 24) int64, zero-padded. Texts that are too long are cut.
    """

    def __init__(self) -> None:
        self.ids = {token: i + 1 for i, token in enumerate([*_WORDS, *(f"{c}/" for c in _CHARACTERS)])}
        self.start_id = len(self.ids) + 1
        # The largest id: that is where open_clip's text tower reads its output.
        self.end_id = self.start_id + 1
        self.vocab_size = self.end_id + 1

    def __call__(self, texts: str | list[str]) -> Tensor:
        """Return the token ids of one or more texts."""
        rows = [texts] if isinstance(texts, str) else texts
        tokens = torch.zeros(len(rows), CONTEXT_LENGTH, dtype=torch.long)
        for row, text in zip(tokens, rows, strict=True):
            ids = [self.start_id, *self._words(text)[: CONTEXT_LENGTH - 2], self.end_id]
            row[: len(ids)] = torch.tensor(ids)
        return tokens

    def _words(self, text: str) -> list[int]:
        ids: list[int] = []
        for word in re.findall(r"[a-z0-9]+", text.lower()):
            ids.extend([self.ids[word]] if word in self.ids else [self.ids[f"{c}/"] for c in word])
        return ids


def stseg_tiny_convnext(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build the ConvNeXt trunk: strides 2 (stem), 4, 8, 8, 8; called by timm under this name."""
    from timm.models.convnext import ConvNeXt

    # timm and open_clip pass more arguments than ConvNeXt takes.
    kwargs = {k: v for k, v in kwargs.items() if k in ("num_classes", "global_pool", "drop_path_rate", "in_chans")}
    trunk: nn.Module = ConvNeXt(
        patch_size=2,
        dims=(32, 64, 96, 128),
        depths=(1, 2, 3, 1),
        kernel_sizes=5,
        output_stride=8,
        ls_init_value=None,  # as with `_widen`: timm's defaults never learn shapes at this width
        **kwargs,
    )
    trunk.default_cfg = {"pool_size": None, "input_size": (3, 96, 96)}  # type: ignore[assignment]
    return trunk


def build_tiny_clip() -> nn.Module:
    """Build the tiny CLIP with random weights, as open_clip's own class."""
    import timm
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    if not timm.is_model("stseg_tiny_convnext"):
        timm.models.register_model(stseg_tiny_convnext)
    vision = CLIPVisionCfg(timm_model_name="stseg_tiny_convnext", image_size=96, timm_pool="", timm_proj="linear")
    text = CLIPTextCfg(
        context_length=CONTEXT_LENGTH, vocab_size=WordTokenizer().vocab_size, width=96, heads=4, layers=2
    )
    clip: Any = CLIP(EMBEDDING_DIM, vision, text)
    _undilate(clip.visual)
    _widen(clip.visual)
    built: nn.Module = clip
    return built


def _undilate(visual: nn.Module) -> None:
    """Take the holes out of the depth-wise kernels that `output_stride` put there."""
    # On a 12 x 12 grid the kernels see enough without them, and training is a third faster.
    for module in visual.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            module.dilation, module.padding = (1, 1), (module.kernel_size[0] // 2, module.kernel_size[1] // 2)


def _widen(visual: nn.Module) -> None:
    """Start the trunk with deviation 1/sqrt(fan-in)."""
    # At this width timm's 0.02 learns colours but never shapes.
    for module in visual.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            nn.init.normal_(module.weight, std=fan_in**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
