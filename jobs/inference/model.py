"""Which model a stage loads, and the fingerprints of models and their weights."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, PositiveInt

from jobs.run import Run, RunRef, Section
from shards.data.vocabulary import Vocabulary
from shards.files.atomic import sha256_file
from shards.formats.layout import RunLayout
from shards.formats.records import Json

if TYPE_CHECKING:
    from torch import Tensor

    from models.presets import Preset
    from models.sam.sam import SamEmbedding, SamEncoder, SamMaskDecoder
    from models.stseg.stseg import STSeg

NO_STAGE1: Final = "none"


class ModelConfig(BaseModel):
    """A model and its weights.

    Attributes:
        preset: "tiny" (embedded, with weights), "base" (the paper's) or "large".
        dea: Whether CLIP's features are aggregated with SAM's; without, the network is SED's.
        weights: Checkpoint of DEA and decoder (stage 1 or a student); None: random.
        adds_dea: Whether `weights` may lack DEA, which then starts at its identity.
        clip_weights: CLIP's weights; None: the shipped ones.
        sam_weights: SAM's weights; None: the shipped ones.
        sam_dtype: The number type of SAM's image encoder. "bfloat16" takes about half the time on processors that
            support it; embeddings then differ by about one percent.
        early_rejection: Classes that each pixel keeps at each of SED's three gates; classes that no pixel keeps are not
            decoded further. None: all are decoded. It needs trained coarse heads (`train.aux_loss`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    preset: Literal["tiny", "base", "large"] = "tiny"
    dea: bool = True
    weights: Path | None = None
    adds_dea: bool = False
    clip_weights: Path | None = None
    sam_weights: Path | None = None
    sam_dtype: Literal["float32", "bfloat16"] = "float32"
    early_rejection: PositiveInt | None = None


class ModelSettings(Section):
    """Which model, and where the weights of round 0 come from.

    Attributes:
        preset: "tiny" (embedded, with weights), "base" (the paper's) or "large".
        dea: Whether CLIP's features are aggregated with SAM's; without, the network is SED's.
        clip_weights: CLIP's weights; null: the preset's own.
        sam_weights: SAM's weights; null: the preset's own.
        sam_dtype: The number type of SAM's image encoder: "float32", or "bfloat16" for half the time and embeddings
            that differ by about one percent.
        early_rejection: Classes that each pixel keeps at each of SED's gates when the network predicts; null: all.
        stage1_weights: DEA and decoder after stage 1; null: those shipped for the preset. "none": there are none; CLIP
            alone then teaches round 1, whose student starts from a random decoder and DEA's identity.
        baseline_weights: The decoder of the plain baseline without DEA; null: those shipped for the preset.
    """

    preset: Literal["tiny", "base", "large"] = "tiny"
    dea: bool = True
    clip_weights: Path | None = None
    sam_weights: Path | None = None
    # The name first: a text is a path, too.
    stage1_weights: Literal["none"] | Path | None = None
    baseline_weights: Path | None = None
    sam_dtype: Literal["float32", "bfloat16"] = "float32"
    early_rejection: PositiveInt | None = None

    @property
    def stage1_file(self) -> Path | None:
        """The file that `stage1_weights` names; None if it names none."""
        return None if self.stage1_weights == NO_STAGE1 else self.stage1_weights

    def with_weights(self, weights: Path | None, *, dea: bool | None = None, adds_dea: bool = False) -> ModelConfig:
        """Return the model with a head's weights; `dea` overrides the setting."""
        return ModelConfig(
            preset=self.preset,
            dea=self.dea if dea is None else dea,
            weights=weights,
            adds_dea=adds_dea,
            clip_weights=self.clip_weights,
            sam_weights=self.sam_weights,
            sam_dtype=self.sam_dtype,
            early_rejection=self.early_rejection,
        )

    def with_whole_paths(self) -> "ModelSettings":
        """Return the settings with absolute paths of weights."""
        # A run may be continued from another folder than the one that its paths were typed in.
        files = {name: getattr(self, name) for name in ModelSettings.model_fields if name.endswith("_weights")}
        return self.model_copy(
            update={name: path.expanduser().resolve() for name, path in files.items() if isinstance(path, Path)}
        )


class ImageEncoder(Protocol):
    """SAM's image encoder, or a test's fake."""

    def encode(self, images: Sequence[NDArray[np.uint8]]) -> "SamEmbedding":
        """Return (B, C, g, g) embeddings and the (B, 2) share of each square that its image covers; B may be 0."""
        ...


def model_of(run: Run | RunRef, weights: Path | None = None, *, dea: bool | None = None) -> ModelConfig:
    """Return the run's model with the given weights of its head; `dea` overrides the setting."""
    return run.section(ModelSettings).with_weights(weights, dea=dea)


def load_stseg(config: ModelConfig, *, to_train: bool = False) -> "STSeg":
    """Load the whole network in evaluation mode.

    Args:
        config: The model. Its weights may stand for the training-free network, which has no head.
        to_train: Whether it is to be trained: in place of the training-free network it is then one with a random head.

    Raises:
        ValueError: Weights are missing or do not fit.
    """
    # Imported here, since they load torch: planning and `status` need only fingerprints, and start without it.
    from models.presets import build_stseg, load_preset
    from models.stseg.clip import load_clip
    from models.stseg.stseg import STSeg, load_head
    from models.stseg.training_free import MeanCosine, is_training_free

    preset = load_preset(config.preset)
    clip = load_clip(preset.clip, config.clip_weights)
    no_head = config.weights is not None and is_training_free(config.weights)
    if no_head and not to_train:
        return STSeg(clip, None, MeanCosine(clip)).eval()
    model = build_stseg(preset, clip, dea=config.dea)
    if config.weights is not None and not no_head:
        load_head(model, config.weights, may_lack_dea=config.adds_dea)
    return model.eval()


def load_sam_encoder(config: ModelConfig) -> "SamEncoder":
    """Load SAM's image encoder alone."""
    import torch

    from models.presets import load_preset
    from models.sam.sam import SamEncoder, load_sam

    sam = load_sam(load_preset(config.preset).sam, config.sam_weights, with_decoder=False)
    return SamEncoder(sam, dtype=getattr(torch, config.sam_dtype))


def load_sam_decoder(config: ModelConfig) -> "SamMaskDecoder":
    """Load SAM with its prompt encoder and mask decoder, for refinement."""
    from models.presets import load_preset
    from models.sam.sam import SamMaskDecoder, load_sam

    return SamMaskDecoder(load_sam(load_preset(config.preset).sam, config.sam_weights, with_decoder=True))


def embed_vocabulary(model: "STSeg", vocabulary: Vocabulary, cache_folder: Path | None = None) -> "Tensor":
    """Return the (K, P, D) text embeddings of a vocabulary, float32 of unit length on the model's device.

    Args:
        model: Its CLIP embeds the names.
        vocabulary: The classes.
        cache_folder: Where the embeddings are kept for the next start; None: they are not kept.
    """
    if cache_folder is not None:
        from jobs.inference.text_cache import cached_text_embeddings

        return cached_text_embeddings(model.clip, vocabulary, cache_folder)
    from models.stseg.text import text_embeddings

    return text_embeddings(model.clip, vocabulary)


def text_cache_folder(vocabulary: Path) -> Path:
    """Return the folder of the text embeddings of the run that a `vocabulary.json` belongs to."""
    return RunLayout(vocabulary.parent).text_embeddings


def clip_fingerprint(config: ModelConfig) -> dict[str, Json]:
    """Return what of CLIP changes results: architecture and weights."""
    preset = _preset(config)
    return {"architecture": preset.clip.architecture, "weights": _checksum(config.clip_weights, preset.clip.weights)}


def sam_fingerprint(config: ModelConfig) -> dict[str, Json]:
    """Return what of SAM changes results: sizes, weights and the encoder's number type."""
    weights = _checksum(config.sam_weights, _preset(config).sam.weights)
    return {"preset": config.preset, "weights": weights, "dtype": config.sam_dtype}


def stseg_fingerprint(config: ModelConfig) -> dict[str, Json]:
    """Return what of the network changes results, except the head's weights, which are an input of each stage."""
    preset = _preset(config)
    # Without DEA nothing of SAM is in it: other weights of SAM then make no teacher or student stale.
    return {
        "preset": config.preset,
        "dea": preset.dea.model_dump(mode="json") if config.dea else False,
        "decoder": preset.decoder.model_dump(mode="json"),
        "clip": clip_fingerprint(config),
        "sam": sam_fingerprint(config) if config.dea else None,
        "early_rejection": config.early_rejection,
    }


def weights_checksum(path: Path | None) -> str:
    """Return the SHA-256 of a head's checkpoint; "random" for none."""
    return "random" if path is None else _file_checksum(path, path.stat().st_mtime_ns)


def _preset(config: ModelConfig) -> "Preset":
    from models.presets import load_preset

    return load_preset(config.preset)


def _checksum(own: Path | None, shipped: str | None) -> str:
    from models.weights.files import shipped_weights

    return weights_checksum(own or shipped_weights(shipped, what="this preset"))


# Weights are read by the fingerprints of several stages, and those of `large` have gigabytes.
@cache
def _file_checksum(path: Path, _mtime_ns: int) -> str:
    return sha256_file(path)
