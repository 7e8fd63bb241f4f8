"""Spatio-Temporal Fusion: frame-aware video tokenizer, initial fusion, prompt decoder (supplement B.3)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..configuration_virst import VirstFusionConfig
from .rotary import rotary_table, rotate_pairs

__all__ = ["FrameAwareTokenizer", "VirstInitialFusion", "VirstPromptDecoder"]


class FrameAwareTokenizer(nn.Module):
    """
    Stride-2 convolutions, each with a ReLU, over SAM's stride-16 map of a frame, then a LayerNorm (Eq. 20 to 22).

    Args:
        width (`int`): Channels C of the segmenter.
        num_downsamples (`int`): Convolutions; the grid shrinks by `2 ** num_downsamples`.

    Example:

    ```python
    >>> import torch
    >>> from virst_hf.modules.fusion import FrameAwareTokenizer
    >>> tokens, grid = FrameAwareTokenizer(8, 3)(torch.zeros(5, 8, 64, 64))
    >>> tokens.shape, grid
    (torch.Size([5, 64, 8]), (8, 8))

    ```
    """

    def __init__(self, width: int, num_downsamples: int) -> None:
        super().__init__()
        layers = []
        for _ in range(num_downsamples):
            layers += [nn.Conv2d(width, width, kernel_size=3, stride=2, padding=1), nn.ReLU()]
        self.spatial_down = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """
        Args:
            features (`torch.Tensor` of shape `(num_frames, width, height, width)`): Stride-16 maps.

        Returns:
            `tuple[torch.Tensor, tuple[int, int]]`: Tokens `(num_frames, grid_height * grid_width, width)`, the grid.
        """
        maps = self.spatial_down(features)
        return self.norm(maps.flatten(2).transpose(1, 2)), tuple(maps.shape[-2:])


class VirstInitialFusion(nn.Module):
    """
    The first fusion: [SEG] embeddings ask the tokens of the video; the answer is added times a learned gate.

    Args:
        config ([`VirstFusionConfig`]): Heads, convolutions and the gate's first value.
        width (`int`): Channels C of the segmenter.
        text_width (`int`): Width D of the language model.
    """

    def __init__(self, config: VirstFusionConfig, width: int, text_width: int) -> None:
        super().__init__()
        self.gate_init = config.gate_init
        self.tokenizer = FrameAwareTokenizer(width, config.num_downsamples)
        self.vision_proj = nn.Linear(width, text_width)
        self.norm_q = nn.LayerNorm(text_width)
        self.norm_kv = nn.LayerNorm(text_width)
        self.cross_attn = nn.MultiheadAttention(text_width, config.num_heads, batch_first=True)
        # Of shape (1,), not (): DeepSpeed and FSDP take no parameter without axes.
        self.gate = nn.Parameter(torch.full((1,), config.gate_init))

    def forward(self, seg_embeds: Tensor, features: Tensor) -> Tensor:
        """
        Args:
            seg_embeds (`torch.Tensor` of shape `(num_expressions, num_seg_tokens, text_width)`): Embeddings of [SEG].
            features (`torch.Tensor` of shape `(T_seg, width, height, width)`): Stride-16 maps of one video.

        Returns:
            `torch.Tensor` of shape `(num_expressions, num_seg_tokens, text_width)`: Embeddings that know the video.
        """
        tokens, _ = self.tokenizer(features)
        memory = self.norm_kv(self.vision_proj(tokens.flatten(0, 1)))[None]
        # All expressions ask the same memory, so their queries stand in one row: keys are projected once.
        query = self.norm_q(seg_embeds).flatten(0, 1)[None]
        read = self.cross_attn(query, memory, memory, need_weights=False)[0]
        return seg_embeds + self.gate * read.view_as(seg_embeds)


class RotaryCrossAttention(nn.Module):
    """
    Cross-attention to video tokens. Keys are rotated by `(t, y, x)`, queries by `t` alone.

    The channels of a head are split into three runs, each the largest even number within a third of the head, and a
    rest that is left as it is.

    Args:
        width (`int`): Channels C.
        num_heads (`int`): Heads.
        theta (`float`): Base of the frequencies.
    """

    def __init__(self, width: int, num_heads: int, theta: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.theta = theta
        self.axis_width = width // num_heads // 3 // 2 * 2
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.o_proj = nn.Linear(width, width)

    def heads(self, x: Tensor) -> Tensor:
        """`(batch_size, length, width)` to `(batch_size, num_heads, length, head_width)`."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def rotate(self, x: Tensor, *positions: Tensor) -> Tensor:
        """Rotate one run of channels for each axis whose positions are given; the others stay."""
        parts = list(x.split((self.axis_width,) * 3 + (x.shape[-1] - 3 * self.axis_width,), dim=-1))
        for axis, position in enumerate(positions):
            parts[axis] = rotate_pairs(parts[axis], *rotary_table(position, self.axis_width, self.theta))
        return torch.cat(parts, dim=-1)

    def forward(self, query: Tensor, memory: Tensor, query_time: Tensor, key_positions: tuple[Tensor, ...]) -> Tensor:
        """
        Args:
            query (`torch.Tensor` of shape `(num_expressions, num_queries, width)`): Queries.
            memory (`torch.Tensor` of shape `(1, num_tokens, width)`): Tokens of the video, shared by all expressions.
            query_time (`torch.Tensor` of shape `(num_queries,)`): Frame of each query.
            key_positions (`tuple[torch.Tensor, ...]`): Frame, row and column of each token.

        Returns:
            `torch.Tensor` of shape `(num_expressions, num_queries, width)`: What was read.
        """
        q = self.rotate(self.heads(self.q_proj(query)), query_time)
        k = self.rotate(self.heads(self.k_proj(memory)), *key_positions)
        v = self.heads(self.v_proj(memory))
        k, v = (x.expand(len(q), -1, -1, -1) for x in (k, v))
        return self.o_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class VirstPromptDecoderLayer(nn.Module):
    """A post-norm decoder layer: self-attention, cross-attention to the video, feed-forward."""

    def __init__(self, config: VirstFusionConfig, width: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, config.num_heads, batch_first=True)
        self.cross_attn = RotaryCrossAttention(width, config.num_heads, config.rope_theta)
        self.ff = nn.Sequential(
            nn.Linear(width, config.prompter_feedforward), nn.GELU(), nn.Linear(config.prompter_feedforward, width)
        )
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)

    def forward(self, query: Tensor, memory: Tensor, query_time: Tensor, key_positions: tuple[Tensor, ...]) -> Tensor:
        """Arguments and result as in [`RotaryCrossAttention`]."""
        query = self.norm1(query + self.self_attn(query, query, query, need_weights=False)[0])
        query = self.norm2(query + self.cross_attn(query, memory, query_time, key_positions))
        return self.norm3(query + self.ff(query))


class VirstPromptDecoder(nn.Module):
    """
    The second fusion: hidden states of the [SEG] tokens become prompts for each of the `T_seg` frames.

    Args:
        config ([`VirstFusionConfig`]): Heads, layers, convolutions.
        width (`int`): Channels C of the segmenter, the width of a prompt.
        text_width (`int`): Width D of the language model.
    """

    def __init__(self, config: VirstFusionConfig, width: int, text_width: int) -> None:
        super().__init__()
        self.seg_proj = nn.Linear(text_width, width)
        self.tokenizer = FrameAwareTokenizer(width, config.num_downsamples)
        self.layers = nn.ModuleList(VirstPromptDecoderLayer(config, width) for _ in range(config.prompter_layers))

    def forward(self, seg_states: Tensor, features: Tensor) -> Tensor:
        """
        Args:
            seg_states (`torch.Tensor` of shape `(num_expressions, num_seg_tokens, text_width)`):
                Hidden states at the [SEG] positions.
            features (`torch.Tensor` of shape `(T_seg, width, height, width)`): Stride-16 maps of one video.

        Returns:
            `torch.Tensor` of shape `(num_expressions, num_seg_tokens, T_seg, width)`: Prompts of each frame.
        """
        num_frames, num_seg = len(features), seg_states.shape[1]
        tokens, (rows, columns) = self.tokenizer(features)
        time, y, x = (
            axis.flatten()
            for axis in torch.meshgrid(
                *(torch.arange(n, device=features.device) for n in (num_frames, rows, columns)), indexing="ij"
            )
        )
        # One query for each [SEG] token and frame, the frame index running fastest.
        query = self.seg_proj(seg_states)[:, :, None].expand(-1, -1, num_frames, -1).flatten(1, 2)
        query_time = torch.arange(num_frames, device=features.device).repeat(num_seg)
        memory = tokens.flatten(0, 1)[None]
        for layer in self.layers:
            query = layer(query, memory, query_time, (time, y, x))
        return query.unflatten(1, (num_seg, num_frames))
