"""Segment Anything: built in any size from segment_anything's own classes, loaded, and its two halves run.

The frozen image encoder runs once for an image, the mask decoder for the prompts of many images at once.
"""

# B image, C channel, g side of the embedding grid (h w as rows and columns), S side of SAM's square frame, M prompt,
# T point, s = 4g side of the low-resolution mask frame, H W pixels

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn

from models.sam.decoder import MaskPrompts, check_prompts, decode_tokens, embed_prompts
from models.sam.encoder import encode_frames
from models.sam.frame import masks_to_original, sam_input, to_sam_frame
from models.sam.settings import SamConfig
from models.weights.files import load_weights_into, shipped_weights

__all__ = [
    "MaskPrompts",
    "SamEmbedding",
    "SamEncoder",
    "SamMaskDecoder",
    "build_sam",
    "load_sam",
    "masks_to_original",
    "to_sam_frame",
]
# segment_anything's own constants, in the range 0 to 255.
PIXEL_MEAN: Final = (123.675, 116.28, 103.53)
PIXEL_STD: Final = (58.395, 57.12, 57.375)


def build_sam(config: SamConfig) -> Sam:
    """Build a SAM with random weights, in evaluation mode.

    Returns:
        segment_anything's `Sam`; for the published sizes its state dict has the published keys and shapes.

    Raises:
        ValueError: Sizes do not fit together; the two are named.
    """
    # segment_anything would fail later, with a shape that names neither setting.
    _check_sizes(config)
    grid = config.image_size // config.patch_size
    encoder = ImageEncoderViT(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.encoder_dim,
        depth=config.encoder_depth,
        num_heads=config.encoder_heads,
        mlp_ratio=config.encoder_mlp_ratio,
        out_chans=config.embedding_dim,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=config.relative_positions,
        window_size=config.window_size,
        global_attn_indexes=config.global_blocks,
    )
    prompts = PromptEncoder(
        embed_dim=config.embedding_dim,
        image_embedding_size=(grid, grid),
        input_image_size=(config.image_size, config.image_size),
        mask_in_chans=config.mask_channels,
    )
    transformer = TwoWayTransformer(
        depth=2, embedding_dim=config.embedding_dim, mlp_dim=config.decoder_mlp_dim, num_heads=config.decoder_heads
    )
    decoder = MaskDecoder(
        transformer_dim=config.embedding_dim, transformer=transformer, iou_head_hidden_dim=config.iou_head_dim
    )
    return Sam(encoder, prompts, decoder, list(PIXEL_MEAN), list(PIXEL_STD)).eval()


def _check_sizes(config: SamConfig) -> None:
    for name, whole, divisor_name, divisor in (
        ("image_size", config.image_size, "patch_size", config.patch_size),
        ("encoder_dim", config.encoder_dim, "encoder_heads", config.encoder_heads),
        ("embedding_dim", config.embedding_dim, "2 * decoder_heads", 2 * config.decoder_heads),
        ("embedding_dim", config.embedding_dim, "8 (two upscaling steps)", 8),
        ("mask_channels", config.mask_channels, "4", 4),
    ):
        if whole % divisor:
            raise ValueError(f"sam.{name} = {whole} must be a multiple of {divisor_name} = {divisor}")


def load_sam(config: SamConfig, weights: Path | None = None, *, with_decoder: bool) -> Sam:
    """Load a frozen SAM.

    Args:
        config: Its sizes.
        weights: A state dict of all of SAM (safetensors or `.pth`); None takes what is shipped with the package.
        with_decoder: Keep the prompt encoder and the mask decoder; without them the model can only encode images.

    Returns:
        segment_anything's `Sam` in evaluation mode, no parameter asking for gradients.

    Raises:
        ValueError: Weights are not shipped for this size, missing, unreadable, or do not fit the sizes.
    """
    path = shipped_weights(config.weights, what="SAM") if weights is None else weights
    sam = build_sam(config)
    load_weights_into(sam, path)
    # Embedding and prediction never need the decoder.
    if not with_decoder:
        del sam.prompt_encoder, sam.mask_decoder
    return sam.requires_grad_(False)


@dataclass(frozen=True)
class SamEmbedding:
    """SAM's embeddings of some images.

    Attributes:
        embedding_BCHW: (B, C, g, g) float, embeddings of the padded squares.
        valid_B2: (B, 2) float32 in (0, 1], the share (height, width) of the square that is image.
    """

    embedding_BCHW: Tensor
    valid_B2: Tensor

    def to(self, device: torch.device) -> "SamEmbedding":
        """Return the same as float32 on a device."""
        # Stored as float16: with 1024-pixel frames 2 MiB per image instead of 4, read by teacher, refine and student.
        return SamEmbedding(self.embedding_BCHW.to(device).float(), self.valid_B2.to(device))


def _images_at_once(image_size: int) -> int:
    # About as many tokens as one published frame of 1024 pixels has: small SAMs batch, published ones go one by one.
    return max(1, (1024 // image_size) ** 2 // 4)


class SamEncoder(nn.Module):
    """SAM's image encoder with its preprocessing; nothing else of the model is kept alive."""

    def __init__(self, sam: Sam, dtype: torch.dtype | None = None) -> None:
        """Take the image encoder of a SAM that has its weights.

        Args:
            sam: Its encoder becomes this one's, and its weights are converted where `dtype` differs.
            dtype: The precision to compute in; bfloat16 is about twice as fast as float32 where the processor
                multiplies it, and its embeddings differ by about one percent. None: the weights' own.
        """
        super().__init__()
        self.image_encoder: ImageEncoderViT = sam.image_encoder if dtype is None else sam.image_encoder.to(dtype)
        self.image_size: int = sam.image_encoder.img_size
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        self.register_buffer("pixel_mean", sam.pixel_mean, persistent=False)
        self.register_buffer("pixel_std", sam.pixel_std, persistent=False)

    @torch.no_grad()
    def encode(self, images: Sequence[NDArray[np.uint8]]) -> SamEmbedding:
        """Return the embeddings of images.

        Args:
            images: (H, W, 3) uint8 RGB each, upright; sizes may differ, since every frame is the same square.

        Returns:
            Embeddings in float32 whatever the encoder computes in, on its device, in the images' order; B may be 0.

        Raises:
            ValueError: An image has another shape or dtype.
        """
        # Results are float32 whatever the encoder computes in, so that nothing downstream depends on its dtype.
        device, dtype, side = self.pixel_mean.device, self.image_encoder.neck[0].weight.dtype, self.image_size
        size = _images_at_once(side)
        embeddings, valid = [], torch.ones(len(images), 2)
        for start in range(0, len(images), size):
            frames = []
            for number, image in enumerate(images[start : start + size], start):
                frame, (height, width) = sam_input(image, side)
                shown = (frame.to(device) - self.pixel_mean) / self.pixel_std
                frames.append(F.pad(shown, (0, side - width, 0, side - height)))
                valid[number] = torch.tensor([height / side, width / side])
            embeddings.append(encode_frames(self.image_encoder, torch.stack(frames).to(dtype)).float())
        if not embeddings:
            grid = self.image_encoder.pos_embed.shape[1]
            embeddings.append(torch.empty(0, self.image_encoder.neck[0].out_channels, grid, grid, device=device))
        return SamEmbedding(torch.cat(embeddings), valid)


class SamMaskDecoder(nn.Module):
    """SAM's prompt encoder and mask decoder, for the prompts of many images at once.

    Attributes:
        image_size: S, side of the frame that boxes and points are in, pixels.
        low_res_size: s, side of mask prompts and mask logits.
    """

    def __init__(self, sam: Sam) -> None:
        """Take the prompt encoder and mask decoder of a SAM that has its weights.

        Raises:
            ValueError: It was loaded without them.
        """
        super().__init__()
        if not hasattr(sam, "mask_decoder"):
            raise ValueError("this SAM has no mask decoder: load it with load_sam(..., with_decoder=True)")
        self.prompt_encoder: PromptEncoder = sam.prompt_encoder
        self.mask_decoder: MaskDecoder = sam.mask_decoder
        self.image_size: int = sam.prompt_encoder.input_image_size[0]
        self.low_res_size: int = sam.prompt_encoder.mask_input_size[0]
        self.position_hwC: Tensor
        self.register_buffer("position_hwC", None, persistent=False)
        self._encode_grid_positions()
        self.prompt_encoder.register_load_state_dict_post_hook(self._encode_grid_positions)

    def _encode_grid_positions(self, *_: object) -> None:
        """Compute the positional encoding of the grid."""
        # Constant for given weights; segment_anything computes it anew on every call.
        self.position_hwC = self.prompt_encoder.get_dense_pe()[0].permute(1, 2, 0).contiguous().detach()

    @torch.no_grad()
    def decode(
        self, embedding_BCHW: Tensor, prompts: MaskPrompts, *, multimask: bool = False, chunk: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return a mask per prompt.

        Args:
            embedding_BCHW: (B, C, g, g) float (float16 too), embeddings of the padded squares.
            prompts: M of them, each with the number of its image; M may be 0.
            multimask: Return SAM's three alternatives instead of its single answer.
            chunk: Prompts to run at once; apart from the results, memory depends on nothing else. None: 1 on a CPU, 16
                elsewhere.

        Returns:
            (M, s, s) mask logits and (M,) predicted IoU, float32; with `multimask` (M, 3, s, s) and (M, 3). No result
            depends on the other prompts of the call.

        Raises:
            ValueError: There is no prompt of any kind, or shapes, labels or image numbers do not fit.
        """
        check_prompts(prompts, len(embedding_BCHW), self.low_res_size)
        wanted, count = (slice(1, None), 3) if multimask else (slice(0, 1), 1)
        side, device = self.low_res_size, self.position_hwC.device
        # Channels last once per image here, not once per prompt in the loop.
        embedding_BhwC = embedding_BCHW.permute(0, 2, 3, 1).contiguous()
        masks = torch.empty(len(prompts.image_index_M), count, side, side, device=device)
        quality = torch.empty(len(masks), count, device=device)
        # A CPU's cache holds the patches of one published prompt. segment_anything's own batched call is slower there
        # than its loop over prompts: 0.45 to 0.7 times as fast for 4 to 64 of them, measured at 1024 pixels.
        size = chunk or (1 if device.type == "cpu" else 16)
        for start in range(0, len(masks), size):
            rows = slice(start, start + size)
            part = prompts.take(rows).to(device)
            own_MhwC = embedding_BhwC[part.image_index_M.to(embedding_BhwC.device)].to(self.position_hwC)
            sparse, dense = embed_prompts(self.prompt_encoder, part)
            source = own_MhwC + dense
            masks[rows], quality[rows] = decode_tokens(self.mask_decoder, source, self.position_hwC, sparse, wanted)
        return (masks, quality) if multimask else (masks[:, 0], quality[:, 0])
