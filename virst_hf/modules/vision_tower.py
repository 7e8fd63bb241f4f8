"""The vision tower: UMT-L ("umt-hd-large"), clips of four frames that attend to one another. Frozen in all stages."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..configuration_virst import VirstVisionConfig

__all__ = ["VirstVisionTower", "position_table"]


@lru_cache(maxsize=8)
def position_table(num_frames: int, width: int, pretrained_grid: int, grid: int) -> Tensor:
    """Sin-cos positions of the patches of a clip, each frame's grid interpolated to the size at hand.

    The table runs over `num_frames * pretrained_grid ** 2` consecutive positions (sine in even, cosine in odd
    channels, exponent `2 * (j // 2) / width`), then each frame is interpolated bicubically.

    Args:
        num_frames (`int`): Frames of the clip, 1 for a still image.
        width (`int`): Width of the tower.
        pretrained_grid (`int`): Side of a frame's grid before interpolation.
        grid (`int`): Side of a frame's grid after it.

    Returns:
        `torch.Tensor` of shape `(num_frames * grid * grid, width)`: float32, on the CPU.
    """
    positions = np.arange(num_frames * pretrained_grid**2)[:, None]
    table = positions / np.power(10000, 2 * (np.arange(width) // 2) / width)[None]
    table[:, 0::2], table[:, 1::2] = np.sin(table[:, 0::2]), np.cos(table[:, 1::2])
    with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
        frames = torch.from_numpy(table).float().view(num_frames, pretrained_grid, pretrained_grid, width)
        frames = F.interpolate(frames.permute(0, 3, 1, 2), size=(grid, grid), mode="bicubic", align_corners=False)
        return frames.permute(0, 2, 3, 1).reshape(-1, width)


class VirstPatchEmbedding(nn.Module):
    """A 3-D convolution of kernel and stride `(1, patch_size, patch_size)`."""

    def __init__(self, config: VirstVisionConfig) -> None:
        super().__init__()
        kernel = (1, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(3, config.hidden_size, kernel, stride=kernel)

    def forward(self, pixels: Tensor) -> Tensor:
        """`(num_clips, 3, frames, height, width)` pixels to `(num_clips, num_patches, hidden_size)` tokens."""
        return self.proj(pixels).flatten(2).transpose(1, 2)


class VirstVisionAttention(nn.Module):
    """Self-attention whose fused projection has a bias for queries and values only."""

    def __init__(self, config: VirstVisionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """`(num_clips, num_patches, hidden_size)` to the same."""
        bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
        qkv = F.linear(x, self.qkv.weight, bias).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class VirstVisionMLP(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, config: VirstVisionConfig) -> None:
        super().__init__()
        inner = int(config.hidden_size * config.mlp_ratio)
        self.fc1 = nn.Linear(config.hidden_size, inner)
        self.fc2 = nn.Linear(inner, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., hidden_size)` to the same."""
        return self.fc2(F.gelu(self.fc1(x)))


class VirstVisionBlock(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, config: VirstVisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = VirstVisionAttention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = VirstVisionMLP(config)

    def forward(self, x: Tensor) -> Tensor:
        """`(num_clips, num_patches, hidden_size)` to the same."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VirstVisionTower(nn.Module):
    """
    UMT-L up to the selected layer, then a LayerNorm.

    Args:
        config ([`VirstVisionConfig`]): Its sizes.

    Example:

    ```python
    >>> import torch
    >>> from virst_hf import VirstVisionConfig
    >>> from virst_hf.modules.vision_tower import VirstVisionTower
    >>> config = VirstVisionConfig(
    ...     hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, tokens_per_clip=4
    ... )
    >>> VirstVisionTower(config)(torch.zeros(3, 4, 3, 32, 32)).shape
    torch.Size([3, 16, 16])

    ```
    """

    def __init__(self, config: VirstVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = VirstPatchEmbedding(config)
        self.blocks = nn.ModuleList(VirstVisionBlock(config) for _ in range(config.num_built_layers))
        self.vision_layernorm = nn.LayerNorm(config.hidden_size, eps=config.final_layer_norm_eps)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(num_clips, frames, 3, image_size, image_size)`):
                Normalised clips; `frames` is `frames_per_clip`, or 1 for still images.

        Returns:
            `torch.Tensor` of shape `(num_clips, frames * grid_size ** 2, hidden_size)`: One token a patch.
        """
        config = self.config
        x = self.patch_embed(pixel_values.transpose(1, 2).to(self.patch_embed.proj.weight.dtype))
        table = position_table(pixel_values.shape[1], config.hidden_size, config.pretrained_grid, config.grid_size)
        x = x + table.to(x)
        for block in self.blocks:
            x = block(x)
        return self.vision_layernorm(x)
