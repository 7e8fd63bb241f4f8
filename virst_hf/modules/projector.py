"""The token-merging projector ("tome16_mlp_hd64"): a clip is merged to 64 tokens of the width of the LLM."""

import torch
from torch import Tensor, nn

__all__ = ["VirstProjector", "merge_tokens"]


def merge_round(tokens: Tensor, size: Tensor, num_merged: int, num_heads: int) -> tuple[Tensor, Tensor]:
    """One round of bipartite soft matching: `num_merged` even tokens join their best odd token.

    Args:
        tokens (`torch.Tensor` of shape `(batch_size, length, width)`): Tokens.
        size (`torch.Tensor` of shape `(batch_size, length, 1)`): How many patches each stands for.
        num_merged (`int`): r, at most `length // 2`.
        num_heads (`int`): Heads over which the metric is averaged.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: `length - num_merged` tokens and sizes: the even tokens that were not
        merged by descending score, then all odd ones.
    """
    metric = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    metric = metric.unflatten(-1, (num_heads, -1)).mean(2)
    metric = metric / metric.norm(dim=-1, keepdim=True)
    best, partner = (metric[:, ::2] @ metric[:, 1::2].transpose(1, 2)).max(-1)
    order = best.sort(dim=-1, descending=True, stable=True).indices
    merged, kept = order[:, :num_merged, None], order[:, num_merged:, None]
    partner = partner[..., None].gather(1, merged)

    def join(values: Tensor) -> Tensor:
        even, odd, width = values[:, ::2], values[:, 1::2], values.shape[-1]
        odd = odd.scatter_add(1, partner.expand(-1, -1, width), even.gather(1, merged.expand(-1, -1, width)))
        return torch.cat((even.gather(1, kept.expand(-1, -1, width)), odd), dim=1)

    total, size = join(tokens * size), join(size)
    return total / size, size


def merge_tokens(tokens: Tensor, target: int, num_heads: int) -> Tensor:
    """Merge tokens down to `target` (ToMe, arXiv 2210.09461): each round takes away at most half of them.

    Args:
        tokens (`torch.Tensor` of shape `(batch_size, length, width)`): Tokens; `width` is a multiple of `num_heads`.
        target (`int`): Tokens to be left, at least 1.
        num_heads (`int`): Heads of the tower; the metric is the mean over them, L2-normalised.

    Returns:
        `torch.Tensor` of shape `(batch_size, min(length, target), width)`: Size-weighted means.

    Example:

    ```python
    >>> import torch
    >>> from virst_hf.modules.projector import merge_tokens
    >>> merge_tokens(torch.randn(2, 36, 8), target=5, num_heads=2).shape
    torch.Size([2, 5, 8])

    ```
    """
    size = torch.ones_like(tokens[..., :1])
    while (length := tokens.shape[1]) > target:
        tokens, size = merge_round(tokens, size, min(length - target, length // 2), num_heads)
    return tokens


class VirstProjector(nn.Module):
    """
    Token merging, then Linear, GELU, Linear.

    Args:
        vision_width (`int`): Width of the vision tower.
        text_width (`int`): Width D of the language model.
        num_tokens (`int`): Tokens that are left of a clip.
        num_heads (`int`): Heads of the vision tower.
    """

    def __init__(self, vision_width: int, text_width: int, num_tokens: int, num_heads: int) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.num_heads = num_heads
        self.mlp = nn.Sequential(nn.Linear(vision_width, text_width), nn.GELU(), nn.Linear(text_width, text_width))

    def forward(self, tokens: Tensor) -> Tensor:
        """
        Args:
            tokens (`torch.Tensor` of shape `(num_clips, num_patches, vision_width)`): The tower's tokens.

        Returns:
            `torch.Tensor` of shape `(num_clips, num_tokens, text_width)`: Tokens for the language model.
        """
        return self.mlp(merge_tokens(tokens, self.num_tokens, self.num_heads))
