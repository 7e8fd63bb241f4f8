"""Rotary position codes. Tables are functions of sizes and device: no module holds a tensor that loading loses."""

from functools import lru_cache

import torch
from sam2.modeling.position_encoding import PositionEmbeddingRandom
from sam2.modeling.sam.transformer import Attention, RoPEAttention
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "AxialRotaryAttention",
    "FourierPositionEmbedding",
    "attend_in_parts",
    "axial_rotary_table",
    "rotary_table",
    "rotate_pairs",
]

# Scores of `attend_in_parts`, for all of a batch: 16 MB of them.
SCORES_AT_A_TIME = 1 << 23


def rotary_table(positions: Tensor, width: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines for `width` channels (an even number) at the given positions.

    Args:
        positions (`torch.Tensor` of shape `(num_positions,)`): Positions, any number type.
        width (`int`): Channels to be rotated; the pair `i` turns by `position * theta ** (-2 i / width)`.
        theta (`float`): Base of the frequencies.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Cosine and sine, each of shape `(num_positions, width)`, float32.
    """
    half = width // 2
    exponents = torch.arange(half, device=positions.device, dtype=torch.float32) / max(half, 1)
    angles = positions.float()[:, None] * theta**-exponents
    return angles.cos().repeat_interleave(2, -1), angles.sin().repeat_interleave(2, -1)


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the interleaved channel pairs `(2 i, 2 i + 1)` of `x` (last axis) by the given angles, in float32 or finer.

    Args:
        x (`torch.Tensor` of shape `(..., length, channels)`): What to rotate.
        cos (`torch.Tensor` of shape `(length, channels)`): Cosines of the angles.
        sin (`torch.Tensor` of shape `(length, channels)`): Sines of the angles.

    Returns:
        `torch.Tensor`: The rotated tensor, in the type of `x`.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if not torch.compiler.is_compiling():
        # A product of complex numbers passes over memory once, which is several times faster. torch.compile makes one
        # pass of the lines below, and none of complex numbers.
        turns = torch.complex(cos[..., ::2], sin[..., ::2])
        return torch.view_as_real(torch.view_as_complex(wide.unflatten(-1, (-1, 2))) * turns).flatten(-2).to(x.dtype)
    turned = torch.stack((-wide[..., 1::2], wide[..., 0::2]), dim=-1).flatten(-2)
    return (wide * cos + turned * sin).to(x.dtype)


@lru_cache(maxsize=16)
def axial_rotary_table(
    side: int, width: int, theta: float, device: torch.device, pool: int = 1
) -> tuple[Tensor, Tensor]:
    """The table of SAM 2's memory attention: half of the channels turn with x, half with y, over a square grid.

    Args:
        side (`int`): Side of the grid, in tokens.
        width (`int`): Channels of a head, a multiple of 4.
        theta (`float`): Base of the frequencies.
        device (`torch.device`): Where the table is needed.
        pool (`int`, *optional*, defaults to 1): Of a grid whose tokens stand for `pool * pool` each: at their centre.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Cosine and sine, each of shape `((side / pool) ** 2, width)`, float32.
    """
    # A cached tensor must not be an inference tensor, or a later training step could not use it.
    with torch.inference_mode(False), torch.no_grad():
        side, centre = side // pool, (pool - 1) / 2
        index = torch.arange(side * side, device=device)
        cos_x, sin_x = rotary_table(index % side * pool + centre, width // 2, theta)
        cos_y, sin_y = rotary_table(index // side * pool + centre, width // 2, theta)
        return torch.cat((cos_x, cos_y), -1), torch.cat((sin_x, sin_y), -1)


class AxialRotaryAttention(RoPEAttention):
    """SAM 2's rotary attention without its `freqs_cis` tensor, which loading under the meta device would lose.

    Args:
        rope_theta (`float`, *optional*, defaults to 10000.0): Base of the frequencies.
        rope_k_repeat (`bool`, *optional*, defaults to `False`):
            Whether the keys are several frames' grids one after the other, each rotated as the queries' grid.
        **kwargs: Arguments of `sam2.modeling.sam.transformer.Attention`.
    """

    def __init__(self, rope_theta: float = 10000.0, rope_k_repeat: bool = False, **kwargs) -> None:
        # Past RoPEAttention's own constructor, which would make the table and ask for a CUDA device.
        Attention.__init__(self, **kwargs)
        self.rope_theta = rope_theta
        self.rope_k_repeat = rope_k_repeat

    def forward(self, q: Tensor, k: Tensor, v: Tensor, num_k_exclude_rope: int = 0, pool: int = 1) -> Tensor:
        """Attend from a square grid of queries.

        Args:
            q (`torch.Tensor` of shape `(batch_size, side * side, channels)`): Queries.
            k (`torch.Tensor` of shape `(batch_size, num_keys, key_channels)`): Keys.
            v (`torch.Tensor` of shape `(batch_size, num_keys, key_channels)`): Values.
            num_k_exclude_rope (`int`, *optional*, defaults to 0): Keys at the end (object pointers) without a place.
            pool (`int`, *optional*, defaults to 1): By how much the sides of the keys' grids are smaller.

        Returns:
            `torch.Tensor` of shape `(batch_size, side * side, channels)`: What the queries have read.
        """
        q, k, v = (self._separate_heads(x, self.num_heads) for x in (self.q_proj(q), self.k_proj(k), self.v_proj(v)))
        side, width = round(q.shape[-2] ** 0.5), q.shape[-1]
        # torch.compile looks through a cache, and warns; what it makes of the table is a few cheap operations.
        table = axial_rotary_table.__wrapped__ if torch.compiler.is_compiling() else axial_rotary_table
        cos, sin = table(side, width, self.rope_theta, q.device)
        cos_k, sin_k = table(side, width, self.rope_theta, q.device, pool) if pool > 1 else (cos, sin)
        placed, free = k.split((k.shape[-2] - num_k_exclude_rope, num_k_exclude_rope), dim=-2)
        grids = placed.unflatten(-2, (-1, len(cos_k)))
        k = torch.cat((rotate_pairs(grids, cos_k, sin_k).flatten(-3, -2), free), dim=-2)
        q = rotate_pairs(q, cos, sin)
        if q.dtype == torch.bfloat16 and q.device.type == "cpu" and not _needs_kernel():
            return self.out_proj(self._recombine_heads(attend_in_parts(q, k, v)))
        dropout = self.dropout_p if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return self.out_proj(self._recombine_heads(out))


def _needs_kernel() -> bool:
    """Whether torch's own attention is to be called: it has dropout and a backward pass, and is compiled better."""
    return torch.is_grad_enabled() or torch.compiler.is_compiling()


def attend_in_parts(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention as products of matrices, a part of the queries at a time.

    For bfloat16 on a CPU: torch's fused attention is no faster there than in float32, while these products are, by as
    much as the CPU calculates in bfloat16 itself.

    Args:
        q (`torch.Tensor` of shape `(batch_size, heads, num_queries, width)`): Queries.
        k (`torch.Tensor` of shape `(batch_size, heads, num_keys, width)`): Keys.
        v (`torch.Tensor` of shape `(batch_size, heads, num_keys, width)`): Values.

    Returns:
        `torch.Tensor` of shape `(batch_size, heads, num_queries, width)`: What the queries have read.
    """
    q, keys = q * q.shape[-1] ** -0.5, k.transpose(-1, -2)
    rows = max(1, SCORES_AT_A_TIME // (keys.shape[0] * keys.shape[1] * keys.shape[-1]))
    return torch.cat([(part @ keys).softmax(-1) @ v for part in q.split(rows, dim=-2)], dim=-2)


class FourierPositionEmbedding(PositionEmbeddingRandom):
    """SAM's random Fourier position code, computed in float32 whatever type the model has been cast to."""

    def _pe_encoding(self, coords: Tensor) -> Tensor:
        angles = 2 * torch.pi * ((2 * coords.float() - 1) @ self.positional_encoding_gaussian_matrix.float())
        return torch.cat((angles.sin(), angles.cos()), dim=-1)


def module_dtype(module: nn.Module) -> torch.dtype:
    """The type of a module's first parameter."""
    return next(module.parameters()).dtype
