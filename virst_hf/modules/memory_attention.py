"""SAM 2's memory attention, its modules and names as in the `sam2` package, with memories that may be pooled."""

from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
from torch import Tensor

from ..configuration_virst import VirstSegmenterConfig
from .rotary import AxialRotaryAttention

__all__ = ["VirstMemoryAttention", "VirstMemoryAttentionLayer", "build_memory_attention"]


class VirstMemoryAttentionLayer(MemoryAttentionLayer):
    """Self-attention of a frame, cross-attention to memories, feed-forward; each behind a norm."""

    def forward(self, tgt: Tensor, memory: Tensor, pos: Tensor, num_k_exclude_rope: int = 0, pool: int = 1) -> Tensor:
        """
        Args:
            tgt (`torch.Tensor` of shape `(num_expressions, S / 16 * S / 16, C)`): The frame.
            memory (`torch.Tensor` of shape `(num_expressions, num_tokens, memory_dim)`): Memories, then pointers.
            pos (`torch.Tensor` of shape `(1, num_tokens, memory_dim)`): Their codes.
            num_k_exclude_rope (`int`, *optional*, defaults to 0): Tokens of pointers.
            pool (`int`, *optional*, defaults to 1): By how much the sides of the memories are smaller.

        Returns:
            `torch.Tensor`: In the shape of `tgt`.
        """
        seen = self.norm1(tgt)
        tgt = tgt + self.dropout1(self.self_attn(seen, seen, seen))
        read = self.cross_attn_image(self.norm2(tgt), memory + pos, memory, num_k_exclude_rope, pool)
        tgt = tgt + self.dropout2(read)
        inner = self.dropout(self.activation(self.linear1(self.norm3(tgt))))
        return tgt + self.dropout3(self.linear2(inner))


class VirstMemoryAttention(MemoryAttention):
    """All layers, and a norm behind them."""

    def forward(
        self,
        curr: Tensor,
        memory: Tensor,
        curr_pos: Tensor,
        memory_pos: Tensor,
        num_obj_ptr_tokens: int = 0,
        pool: int = 1,
    ) -> Tensor:
        """
        Args:
            curr (`torch.Tensor` of shape `(S / 16 * S / 16, num_expressions, C)`): The frame.
            memory (`torch.Tensor` of shape `(num_tokens, num_expressions, memory_dim)`): Memories, then pointers.
            curr_pos (`torch.Tensor` of shape `(S / 16 * S / 16, 1, C)`): Position code of the frame.
            memory_pos (`torch.Tensor` of shape `(num_tokens, 1, memory_dim)`): Codes of the memories.
            num_obj_ptr_tokens (`int`, *optional*, defaults to 0): Tokens of pointers.
            pool (`int`, *optional*, defaults to 1): By how much the sides of the memories are smaller.

        Returns:
            `torch.Tensor`: In the shape of `curr`.
        """
        out = (curr + 0.1 * curr_pos).transpose(0, 1)
        memory, memory_pos = memory.transpose(0, 1), memory_pos.transpose(0, 1)
        for layer in self.layers:
            out = layer(out, memory, memory_pos, num_obj_ptr_tokens, pool)
        return self.norm(out).transpose(0, 1)


def build_memory_attention(config: VirstSegmenterConfig) -> VirstMemoryAttention:
    """Self-attention of a frame, then cross-attention to memories, `memory_attention_layers` times.

    Args:
        config ([`VirstSegmenterConfig`]): Its sizes.

    Returns:
        [`VirstMemoryAttention`]: With the names of SAM 2.1 checkpoints.
    """
    width = config.hidden_size
    common = {
        "rope_theta": config.rope_theta,
        "embedding_dim": width,
        "num_heads": config.memory_attention_heads,
        "dropout": config.memory_attention_dropout,
    }
    layer = VirstMemoryAttentionLayer(
        activation="relu",
        d_model=width,
        dim_feedforward=config.memory_attention_feedforward,
        dropout=config.memory_attention_dropout,
        pos_enc_at_attn=False,
        pos_enc_at_cross_attn_keys=True,
        pos_enc_at_cross_attn_queries=False,
        self_attention=AxialRotaryAttention(**common),
        cross_attention=AxialRotaryAttention(rope_k_repeat=True, kv_in_dim=config.memory_dim, **common),
    )
    return VirstMemoryAttention(
        d_model=width, pos_enc_at_input=True, layer=layer, num_layers=config.memory_attention_layers
    )
