"""Helpers around the language model: padding rows of embeddings, and one prefix shared by many expressions."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import Cache

__all__ = ["packed_states", "pad_rows", "shared_prefix_length", "states_after_prefix", "unpad_rows"]


def unpad_rows(values: Tensor, attention_mask: Tensor | None) -> list[Tensor]:
    """Rows of a padded batch without their padding, on whichever side it is.

    Args:
        values (`torch.Tensor` of shape `(batch_size, length, ...)`): The batch.
        attention_mask (`torch.Tensor` of shape `(batch_size, length)`, *optional*): 1 where a token is real.

    Returns:
        `list[torch.Tensor]`: One tensor of shape `(length_i, ...)` a row.
    """
    if attention_mask is None:
        return list(values)
    return [row[keep] for row, keep in zip(values, attention_mask.bool(), strict=True)]


def pad_rows(rows: Sequence[Tensor], left: bool = False, fill: float = 0) -> tuple[Tensor, Tensor]:
    """Stack rows of different length, padded on one side.

    Args:
        rows (`Sequence[torch.Tensor]`): Tensors of shape `(length_i, width)`.
        left (`bool`, *optional*, defaults to `False`): Whether the padding stands in front (for generation).
        fill (`float`, *optional*, defaults to 0): What the padding holds.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: `(batch_size, length, ...)` and the attention mask
        `(batch_size, length)`, `int64`.
    """
    length = max(len(row) for row in rows)
    out = rows[0].new_full((len(rows), length, *rows[0].shape[1:]), fill)
    mask = torch.zeros(len(rows), length, dtype=torch.long, device=rows[0].device)
    for i, row in enumerate(rows):
        place = slice(length - len(row), length) if left else slice(0, len(row))
        out[i, place], mask[i, place] = row, 1
    return out, mask


def shared_prefix_length(rows: Sequence[Tensor], video_token_id: int) -> int:
    """Tokens up to the end of the video placeholders, if all rows begin alike; else 0.

    Args:
        rows (`Sequence[torch.Tensor]`): Token ids, each of shape `(length_i,)`.
        video_token_id (`int`): Id of the placeholder.

    Returns:
        `int`: Length of the common prefix; at least one token of each row is left behind it.
    """
    places = (rows[0] == video_token_id).nonzero()
    end = int(places[-1]) + 1 if len(places) else 0
    prefix = rows[0][:end]
    alike = all(len(row) > end and torch.equal(row[:end], prefix) for row in rows)
    return end if alike else 0


def states_after_prefix(
    language_model: nn.Module,
    rows: Sequence[Tensor],
    prefix_length: int,
    known: dict[tuple[int, ...], Cache] | None = None,
    prefix_ids: Tensor | None = None,
) -> Tensor:
    """Hidden states behind a prefix that all rows share: the prefix is computed once, its keys and values are reused.

    Args:
        language_model (`torch.nn.Module`): A decoder of `transformers` that takes `inputs_embeds`.
        rows (`Sequence[torch.Tensor]`): Embeddings of shape `(length_i, width)`, equal in the first `prefix_length`.
        prefix_length (`int`): Length of the prefix; 0 runs each row on its own from the start.
        known (`dict`, *optional*): Keys and values of prefixes of this video by their ids; taken from there, or put
            there for the next call.
        prefix_ids (`torch.LongTensor` of shape `(prefix_length,)`, *optional*): Ids of the prefix, where there is
            `known`.

    Returns:
        `torch.Tensor` of shape `(len(rows), max length - prefix_length, width)`: Final norm included; rows are padded
        on the right.
    """
    suffix, mask = pad_rows([row[prefix_length:] for row in rows])
    if prefix_length == 0:
        return language_model(inputs_embeds=suffix, attention_mask=mask, use_cache=False).last_hidden_state
    name = None if known is None else tuple(prefix_ids.tolist())
    cache = None if known is None else known.get(name)
    if cache is None:
        cache = language_model(inputs_embeds=rows[0][None, :prefix_length], use_cache=True).past_key_values
        if known is not None:
            known[name] = cache
    if known is not None:
        cache = copy.deepcopy(cache)  # the texts are written behind it
    cache.batch_repeat_interleave(len(rows))
    positions = torch.arange(prefix_length, prefix_length + suffix.shape[1], device=suffix.device)
    return language_model(
        inputs_embeds=suffix,
        attention_mask=torch.cat((mask.new_ones(len(rows), prefix_length), mask), dim=1),
        position_ids=positions[None].expand(len(rows), -1),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state


def packed_states(language_model: nn.Module, packs: Sequence[tuple[Sequence[Tensor], int]]) -> list[Tensor]:
    """Hidden states of texts, where those about one video are packed in one row behind their common prefix.

    The prefix is computed once, with its graph; behind it each text sees the prefix and itself. A video's tokens are
    most of a text, so that several texts about it cost little more than one.

    Args:
        language_model (`torch.nn.Module`): A decoder of `transformers` with the attention `"sdpa"` or `"eager"`.
        packs (`Sequence[tuple[Sequence[torch.Tensor], int]]`):
            For each video the embeddings of its texts, of shape `(length_i, width)`, and how many of them, from the
            start, all of its texts have in common.

    Returns:
        `list[torch.Tensor]`: Hidden states `(length_i, width)` of all texts, in order; final norm included.
    """
    joined, segments, positions = [], [], []
    for rows, prefix in packs:
        parts = [rows[0][:prefix], *(row[prefix:] for row in rows)]
        device = parts[0].device
        joined.append(torch.cat(parts))
        segments.append(torch.cat([torch.full((len(part),), i, device=device) for i, part in enumerate(parts)]))
        steps = [torch.arange(prefix, device=device)]
        positions.append(torch.cat(steps + [torch.arange(prefix, prefix + len(p), device=device) for p in parts[1:]]))
    embeds, real = pad_rows(joined)
    segment, place = pad_rows(segments, fill=-1)[0], pad_rows(positions)[0]
    length = embeds.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=embeds.device).tril()
    # Segment 0 is the prefix. Padding sees itself: a row of nothing would be NaN.
    seen = (segment[:, None, :] == segment[:, :, None]) | (segment[:, None, :] == 0)
    mask = (causal & seen & (real[:, None, :] == real[:, :, None]))[:, None]
    if language_model.config._attn_implementation == "eager":
        mask = torch.zeros_like(mask, dtype=embeds.dtype).masked_fill(~mask, torch.finfo(embeds.dtype).min)
    hidden = language_model(
        inputs_embeds=embeds, attention_mask=mask, position_ids=place, use_cache=False
    ).last_hidden_state
    out = []
    for row, (rows, prefix) in zip(hidden, packs, strict=True):
        start = prefix
        for text in rows:
            stop = start + len(text) - prefix
            out.append(torch.cat((row[:prefix], row[start:stop])))
            start = stop
    return out
