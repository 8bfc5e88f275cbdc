"""CLIP's text tower on short texts: it is causal, so nothing after the end of a text has to be computed."""

# N text, L token, W width, D embedding

import hashlib
from typing import Any

import torch
from torch import Tensor

_TOKENS_AT_ONCE = 1024
_TOKENS_ENOUGH = 128  # for matrix products at full speed; a longer text then starts a batch of its own


@torch.inference_mode()
def encode_tokens(clip: Any, tokens_NL: Tensor) -> Tensor:
    """Give the text embeddings that `clip.encode_text` gives, in a fraction of the time.

    Texts of like length share a batch, which is cut behind its longest text. No token sees a later one, and a text is
    read off at its end, so the cut changes nothing but rounding.

    Args:
        clip: open_clip's `CLIP` (its modules are untyped), in evaluation mode.
        tokens_NL: (N, L) int64, L up to the tower's context length. The end of a text is its largest id; what
            follows is padding. N may be 0.

    Returns:
        (N, D) on the tower's device and of its dtype, not normalised.

    Raises:
        ValueError: The tower is not causal, or does not read a text off at its largest id.
    """
    if clip.attn_mask is None or clip.text_pool_type != "argmax":
        raise ValueError(
            f"this text tower (pooling {clip.text_pool_type!r}, {'no ' if clip.attn_mask is None else ''}causal mask) "
            "cannot be cut behind a text's end; expected a causal one with pooling 'argmax'"
        )
    end_N = tokens_NL.argmax(dim=1)
    order = end_N.argsort(stable=True)
    device = clip.positional_embedding.device
    embedding_ND = torch.empty(len(tokens_NL), embedding_dim(clip), dtype=clip.transformer.get_cast_dtype())
    embedding_ND = embedding_ND.to(device)
    for rows in _batches(order.tolist(), (end_N + 1).tolist()):
        length = int(end_N[rows[-1]]) + 1
        embedding_ND[rows] = _encode_batch(clip, tokens_NL[rows, :length].to(device), end_N[rows].to(device))
    return embedding_ND


def embedding_dim(clip: Any) -> int:
    """Give the width of the embeddings of open_clip's `CLIP`."""
    projection = clip.text_projection
    return int(projection.out_features if isinstance(projection, torch.nn.Linear) else projection.shape[1])


def tower_checksum(clip: Any) -> str:
    """Give the SHA-256 over everything that the text tower of open_clip's `CLIP` has learned: names and values."""
    total = hashlib.sha256()
    for name, value in sorted(clip.state_dict().items()):
        if not name.startswith(("visual.", "logit_")):
            total.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
            total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()


def _batches(order: list[int], lengths: list[int]) -> list[list[int]]:
    """Split texts, shortest first, into batches of one length, or of a few lengths where there are too few texts."""
    batches: list[list[int]] = []
    for row in order:
        if batches:
            length, tokens = lengths[batches[-1][0]], (len(batches[-1]) + 1) * lengths[row]
            longer = lengths[row] > length and len(batches[-1]) * length >= _TOKENS_ENOUGH
        if not batches or longer or tokens > _TOKENS_AT_ONCE:
            batches.append([])
        batches[-1].append(row)
    return batches


def _encode_batch(clip: Any, tokens_NL: Tensor, end_N: Tensor) -> Tensor:
    length = tokens_NL.shape[1]
    dtype = clip.transformer.get_cast_dtype()
    x_NLW = clip.token_embedding(tokens_NL).to(dtype) + clip.positional_embedding[:length].to(dtype)
    x_NLW = clip.transformer(x_NLW, attn_mask=clip.attn_mask[:length, :length])
    end_NW = clip.ln_final(x_NLW[torch.arange(len(tokens_NL), device=end_N.device), end_N])
    projection = clip.text_projection
    embedding: Tensor = projection(end_NW) if isinstance(projection, torch.nn.Linear) else end_NW @ projection
    return embedding
