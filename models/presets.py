"""The sizes of every network, by preset name.

`tiny` is the embedded default with weights of its own; `base` is the paper's model; `large` its bigger sibling.
All three are built by the same code from open_clip's, timm's and segment_anything's own classes.
"""

from typing import TYPE_CHECKING, Final, Literal

from pydantic import BaseModel, ConfigDict

from models.sam.settings import SamConfig
from models.stseg.settings import ClipConfig, DeaConfig, DecoderConfig
from models.stseg.templates import prompt_templates

if TYPE_CHECKING:
    from models.stseg.clip import DenseClip
    from models.stseg.stseg import STSeg


class Preset(BaseModel):
    """A whole model.

    Attributes:
        name: The preset's name.
        image_size: Side of the square that every image is resized to for CLIP, pixels.
        templates: Name of the prompt templates in `shards.data.vocabulary`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    image_size: int
    templates: Literal["tiny8", "openai80"]
    clip: ClipConfig
    sam: SamConfig
    dea: DeaConfig
    decoder: DecoderConfig


SAM_TINY: Final = SamConfig(
    image_size=96,
    patch_size=6,  # a grid of 16 x 16, and low-resolution masks of 64 x 64
    encoder_dim=96,
    encoder_depth=4,
    encoder_heads=4,
    encoder_mlp_ratio=3.0,
    global_blocks=(0, 1, 2, 3),
    window_size=0,  # the whole grid is 16 x 16, a published window 14 x 14
    relative_positions=False,
    embedding_dim=64,
    decoder_mlp_dim=128,
    decoder_heads=4,
    iou_head_dim=64,
    weights="sam_tiny.safetensors",
)
# The published sizes have no weights here: files of hundreds of megabytes are named by the user, never downloaded.
SAM_VIT_B: Final = SamConfig(encoder_dim=768, encoder_depth=12, encoder_heads=12, global_blocks=(2, 5, 8, 11))
SAM_VIT_L: Final = SamConfig(encoder_dim=1024, encoder_depth=24, encoder_heads=16, global_blocks=(5, 11, 17, 23))

PRESETS: Final[dict[str, Preset]] = {
    "tiny": Preset(
        name="tiny",
        image_size=96,
        templates="tiny8",
        clip=ClipConfig(architecture="stseg_tiny", weights="clip_tiny.safetensors"),
        sam=SAM_TINY,
        dea=DeaConfig(heads=4, ffn_ratio=2),
        decoder=DecoderConfig(
            hidden_dim=32,
            decoder_dims=(16, 8),
            guidance_proj_dims=(16, 8),
            corr_proj_dims=(8, 4),
            kernel_size=5,
            pooling=(2, 2),
            cost_scale=10.0,  # plain cosines are small, and this decoder starts from random weights
        ),
    ),
    "base": Preset(
        name="base",
        image_size=768,  # the paper's crop, in training and inference
        templates="openai80",
        clip=ClipConfig(architecture="convnext_base_w_320", weights="laion_aesthetic_s13b_b82k_augreg"),
        sam=SAM_VIT_B,
        dea=DeaConfig(heads=8, ffn_ratio=4),
        decoder=DecoderConfig(),  # SED's sizes, so that its published weights fit
    ),
    "large": Preset(
        name="large",
        image_size=768,
        templates="openai80",
        clip=ClipConfig(architecture="convnext_large_d_320", weights="laion2b_s29b_b131k_ft_soup"),
        sam=SAM_VIT_L,
        dea=DeaConfig(heads=8, ffn_ratio=4),
        decoder=DecoderConfig(),
    ),
}


def load_preset(name: str) -> Preset:
    """Return the preset of that name.

    Raises:
        ValueError: There is none.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: expected one of {', '.join(PRESETS)}")
    return PRESETS[name]


def build_stseg(preset: Preset, clip: "DenseClip", *, dea: bool) -> "STSeg":
    """Build the network around a CLIP, with random DEA (at its identity start) and decoder."""
    # Imported here, since they load torch: fingerprints and `init` need only the sizes above.
    from models.stseg.dea import DualEmbeddingAggregation
    from models.stseg.decoder import CostAwareDecoder
    from models.stseg.stseg import STSeg

    aggregation = None
    if dea:
        aggregation = DualEmbeddingAggregation(preset.dea, clip.embedding_dim, preset.sam.embedding_dim)
    templates = len(prompt_templates(preset.templates))
    decoder = CostAwareDecoder(preset.decoder, clip.guidance_channels(preset.image_size), templates)
    return STSeg(clip, aggregation, decoder)
