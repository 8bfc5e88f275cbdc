"""The sizes of a Segment Anything model, apart from the code that needs torch."""

from pydantic import BaseModel, ConfigDict


class SamConfig(BaseModel):
    """The sizes of a Segment Anything model; the defaults are those that all published ones share.

    Attributes:
        image_size: Longest side after resizing, pixels.
        patch_size: Side of a patch, pixels; the embedding grid is image_size / patch_size.
        encoder_dim: Width of the image encoder.
        encoder_depth: Number of its blocks.
        encoder_heads: Number of its attention heads.
        encoder_mlp_ratio: Hidden width of its MLPs over its width.
        global_blocks: Blocks with global attention; the others use windows.
        window_size: Side of an attention window in patches; 0 makes every block global.
        relative_positions: Whether attention has decomposed relative positions.
        embedding_dim: Channels of the image embedding and width of the mask decoder.
        decoder_mlp_dim: Hidden width of the two-way transformer's MLPs.
        decoder_heads: Heads of the two-way transformer.
        mask_channels: Hidden channels of the mask prompt's embedding.
        iou_head_dim: Hidden width of the head that predicts IoU.
        weights: File under `models/weights`, or None when the user must name a file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    image_size: int = 1024
    patch_size: int = 16
    encoder_dim: int
    encoder_depth: int
    encoder_heads: int
    encoder_mlp_ratio: float = 4.0
    global_blocks: tuple[int, ...]
    window_size: int = 14
    relative_positions: bool = True
    embedding_dim: int = 256
    decoder_mlp_dim: int = 2048
    decoder_heads: int = 8
    mask_channels: int = 16
    iou_head_dim: int = 256
    weights: str | None = None
