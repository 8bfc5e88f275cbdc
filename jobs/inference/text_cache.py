"""Text embeddings on disk, made once per list of classes, templates and text weights."""

# K class, P template, D embedding

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from jobs.inference.model import ModelConfig
from jobs.inference.segmenter import worker_device
from models.presets import load_preset
from models.stseg.clip import DenseClip, load_clip
from models.stseg.text import TEXT_VERSION, text_embeddings, tower_checksum
from models.weights.files import read_weights, write_weights
from shards.data.vocabulary import Vocabulary
from shards.files.atomic import remove_stale_temporaries, sha256_file
from shards.formats.layout import record_of
from shards.formats.records import Record, fingerprint_digest, read_record, why_stale, write_record

log = logging.getLogger(__name__)
_NAME: Final = "text_KPD"
_UNIT_LENGTH_ERROR: Final = 1e-3


def cached_text_embeddings(clip: DenseClip, vocabulary: Vocabulary, folder: Path) -> Tensor:
    """Return the text embeddings of a vocabulary, read from a folder or computed and stored there.

    Processes may share the folder: files are written atomically, and with the same bytes by whoever writes them. A
    damaged file is made again; where the folder cannot be written, the embeddings are not kept, with a warning.

    Args:
        clip: Embeds the names, in evaluation mode.
        vocabulary: The classes and templates.
        folder: Holds `<digest>.safetensors`, each with a record; made if it is missing.

    Returns:
        (K, P, D) float32 of unit length on the model's device.
    """
    # Worth a cache: 847 classes with synonyms and 80 templates are 102 480 prompts, nine minutes of two cores at best,
    # and each worker of each stage starts with them.
    path = folder / f"{embeddings_digest(clip, vocabulary)}.safetensors"
    shape = (len(vocabulary), len(vocabulary.templates), clip.embedding_dim)
    if path.is_file():
        try:
            return _read(path, shape).to(clip.mean.device)
        except (ValueError, OSError) as error:
            log.warning("the stored text embeddings are made again: %s", error)
    with _one_thread():
        text_KPD = text_embeddings(clip, vocabulary)
    try:
        remove_stale_temporaries(folder)
        record_of(path).unlink(missing_ok=True)
        write_weights({_NAME: text_KPD}, path)
        outputs = {path.name: sha256_file(path)}
        write_record(record_of(path), Record(stage="text", shard="000000", count=len(vocabulary), outputs=outputs))
    except OSError as error:
        log.warning("the text embeddings are not kept, the next start makes them again: %s", error)
    return text_KPD


def restore_text_embeddings(config: ModelConfig, vocabulary: Vocabulary, folder: Path) -> None:
    """Make the text embeddings of a model unless the folder has them undamaged.

    Args:
        config: The model; only its CLIP is loaded.
        vocabulary: The classes and templates.
        folder: See `cached_text_embeddings`.
    """
    clip = load_clip(load_preset(config.preset).clip, config.clip_weights)
    cached_text_embeddings(clip.eval().to(worker_device()), vocabulary, folder)


def embeddings_digest(clip: DenseClip, vocabulary: Vocabulary) -> str:
    """Return the SHA-256 of what text embeddings depend on."""
    # Not the vocabulary's own digest: ids, colours and which classes are seen change no embedding.
    return fingerprint_digest(
        {
            "code": TEXT_VERSION,
            "classes": [[entry.name, *entry.synonyms] for entry in vocabulary.classes],
            "templates": list(vocabulary.templates),
            "tokenizer": type(clip.tokenizer).__name__,
            "weights": tower_checksum(clip.clip),
        }
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute with one thread in the block."""
    # Stages have different numbers of threads, and sums then differ in their last bits: which stage embeds first must
    # not change the bytes.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _read(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """Read embeddings.

    Raises:
        ValueError: The file does not match its record, has another shape or type, or vectors not of unit length.
    """
    reason = why_stale(record_of(path), fingerprint={}, inputs={})
    if reason is None and path.name not in read_record(record_of(path)).outputs:
        reason = "its record is that of another file"
    if reason is not None:
        raise ValueError(f"{path}: {reason}")
    text_KPD = read_weights(path).get(_NAME)
    if text_KPD is None or tuple(text_KPD.shape) != shape or text_KPD.dtype != torch.float32:
        found = "nothing" if text_KPD is None else f"{tuple(text_KPD.shape)} {text_KPD.dtype}"
        raise ValueError(f"{path} holds {found} as {_NAME}; expected {shape} torch.float32")
    off = (text_KPD.norm(dim=-1) - 1).abs()
    if not bool((off < _UNIT_LENGTH_ERROR).all()):  # nan is not below either
        raise ValueError(f"{path} holds embeddings that are not finite or not of unit length")
    return text_KPD
