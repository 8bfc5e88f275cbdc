"""Text embeddings of a vocabulary: every class name in every template, through a text tower that repeats no work."""

# K class, P template, D embedding, N text, T token of a pack, L token of a text, W width

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.stseg.clip import DenseClip

if TYPE_CHECKING:
    from shards.data.vocabulary import Vocabulary

TEXT_VERSION: Final = 1  # goes up when the same names, templates and weights yield other embeddings

# K class, P template, D embedding


@torch.inference_mode()
def text_embeddings(clip: DenseClip, vocabulary: "Vocabulary") -> Tensor:
    """Embed each class in each template.

    Returns:
        (K, P, D) float32 of unit length on the model's device. Synonyms of a class are embedded one by one,
        normalised, averaged and normalised again.

    Source: SED's text classifier, whose text tower runs to the end of its context for every prompt.
    """
    # SED's order of averages: synonyms are unit vectors before they are averaged, or a longer one would count more.
    prompts = [
        template.format(synonym)
        for entry in vocabulary.classes
        for template in vocabulary.templates
        for synonym in entry.synonyms
    ]
    unit = F.normalize(encode_tokens(clip.clip, clip.tokenizer(prompts)).float(), dim=-1)
    counts = [len(entry.synonyms) for entry in vocabulary.classes for _ in vocabulary.templates]
    means = torch.stack([part.mean(dim=0) for part in torch.split(unit, counts)])
    text_KPD = means.view(len(vocabulary), len(vocabulary.templates), -1)
    return F.normalize(text_KPD, dim=-1)


_TOKENS_AT_ONCE = 512  # of a pack; attention over it costs its square


@torch.inference_mode()
def encode_tokens(clip: Any, tokens_NL: Tensor) -> Tensor:
    """Return the text embeddings of `clip.encode_text`, up to rounding, in a fraction of the time.

    Args:
        clip: open_clip's `CLIP` (its modules are untyped), in evaluation mode.
        tokens_NL: (N, L) int64, L up to the tower's context length. The end of a text is its largest id; what
            follows is padding. N may be 0.

    Returns:
        (N, D) on the tower's device and of its dtype, not normalised.

    Raises:
        ValueError: The tower is not causal, or does not read a text off at its largest id.
    """
    # No token sees a later one, and a text is read off at its end. So a text is cut at its end (9 tokens on average
    # where the context has 77), and texts that begin alike, as a template's prompts do, share their beginning: sorted
    # texts are packed into one sequence in which each beginning appears once, and a token sees only those before it
    # in its own text. 17 times as fast as the untruncated tower on the prompts of `make bench`.
    if clip.attn_mask is None or clip.text_pool_type != "argmax":
        raise ValueError(
            f"this text tower (pooling {clip.text_pool_type!r}, {'no ' if clip.attn_mask is None else ''}causal mask) "
            "cannot be cut behind a text's end; expected a causal one with pooling 'argmax'"
        )
    ends = (tokens_NL.argmax(dim=1) + 1).tolist()
    texts = [row[:end] for row, end in zip(tokens_NL.tolist(), ends, strict=True)]
    dtype, device = clip.transformer.get_cast_dtype(), clip.positional_embedding.device
    embedding_ND = torch.empty(len(texts), embedding_dim(clip), dtype=dtype, device=device)
    for pack in _packed(texts):
        embedding_ND[pack.rows] = _encode_pack(clip, pack)
    return embedding_ND


def embedding_dim(clip: Any) -> int:
    """Return the width of the embeddings of open_clip's `CLIP`."""
    # open_clip has both: a bare parameter, or a layer where the projection has a bias.
    projection = clip.text_projection
    return int(projection.out_features if isinstance(projection, torch.nn.Linear) else projection.shape[1])


def tower_checksum(clip: Any) -> str:
    """Return the SHA-256 over the names and values of all parameters of the text tower of open_clip's `CLIP`."""
    # The key of cached embeddings: a trained image tower must not change it, and logit_scale has no part in them.
    total = hashlib.sha256()
    for name, value in sorted(clip.state_dict().items()):
        if not name.startswith(("visual.", "logit_")):
            total.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
            total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()


@dataclass(frozen=True)
class _Pack:
    """Texts as one sequence in which a beginning that several share appears once: a tree, parents before children.

    Attributes:
        tokens: Id of each token.
        positions: Its position in its text, from 0.
        parents: Index in the sequence of the token before it; -1 for the first of a text.
        rows: Which texts these are.
        ends: Index in the sequence of the last token of each.
    """

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)


def _packed(texts: list[list[int]]) -> list[_Pack]:
    """Pack texts in the order of their ids, in which those that begin alike are neighbours."""
    packs: list[_Pack] = []
    path: list[int] = []  # indices of the tokens of the previous text
    before: list[int] = []
    for row in sorted(range(len(texts)), key=texts.__getitem__):
        text = texts[row]
        shared = _shared_length(before, text)
        if not packs or len(packs[-1].tokens) + len(text) - shared > _TOKENS_AT_ONCE:
            packs.append(_Pack())
            shared = 0
        pack = packs[-1]
        del path[shared:]
        for position in range(shared, len(text)):
            pack.parents.append(path[-1] if path else -1)
            path.append(len(pack.tokens))
            pack.tokens.append(text[position])
            pack.positions.append(position)
        pack.rows.append(row)
        pack.ends.append(path[-1])
        before = text
    return packs


def _shared_length(first: list[int], second: list[int]) -> int:
    """Return the number of tokens that two texts have in common at their start."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((position for position, (a, b) in pairs if a != b), min(len(first), len(second)))


def _encode_pack(clip: Any, pack: _Pack) -> Tensor:
    dtype, device = clip.transformer.get_cast_dtype(), clip.positional_embedding.device
    tokens_T, positions_T, ends_N = (torch.tensor(v, device=device) for v in (pack.tokens, pack.positions, pack.ends))
    hidden_TT = torch.from_numpy(~_own_text(pack.parents)).to(device)
    mask_TT = torch.zeros(hidden_TT.shape, dtype=dtype, device=device).masked_fill(hidden_TT, -torch.inf)
    x_TW = clip.token_embedding(tokens_T).to(dtype) + clip.positional_embedding[positions_T].to(dtype)
    x_TW = clip.transformer(x_TW[None], attn_mask=mask_TT)[0]
    end_NW = clip.ln_final(x_TW[ends_N])
    projection = clip.text_projection
    embedding: Tensor = projection(end_NW) if isinstance(projection, torch.nn.Linear) else end_NW @ projection
    return embedding


def _own_text(parents: list[int]) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """Return (T, T) bool: whether the token of a row sees that of a column, itself or one before it in its text."""
    sees_TT = np.eye(len(parents), dtype=np.bool_)
    for token, parent in enumerate(parents):
        if parent >= 0:
            sees_TT[token] |= sees_TT[parent]
    return sees_TT
