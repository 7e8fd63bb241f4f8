"""Eq. 16 on a batch: which frames are supervised, and the weighted parts of the loss."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .configuration_virst import VirstConfig
from .errors import VirstError
from .modeling_outputs import VirstVideoFeatures
from .modules.losses import dice_loss, iou_loss, mask_bce_loss, occlusion_loss, token_loss
from .modules.segmenter import FrameFeatures, FrameMasks, VirstSegmenter
from .modules.tracker import AnchorMemory, track_supervised_frames
from .sampling import inference_anchors, sample_training_frames

__all__ = [
    "SupervisedFrames",
    "TrainingText",
    "mask_objective",
    "select_target",
    "supervised_frames",
    "token_objective",
    "track_texts",
]


@dataclass
class SupervisedFrames:
    """Positions among the `T_seg` frames of one text that are supervised.

    Args:
        anchors (`list[int]`): Decoded from prompts, ascending.
        frames (`list[int]`): All supervised positions, anchors among them, ascending.
    """

    anchors: list[int]
    frames: list[int]


def supervised_frames(
    config: VirstConfig,
    num_seg: int,
    training: bool,
    anchors: Sequence[int] | None = None,
    propagation: Sequence[int] | None = None,
) -> SupervisedFrames:
    """The supervised frames of one text: those given, or drawn by Alg. 1 in training, or set by Alg. 2 otherwise.

    Args:
        config ([`VirstConfig`]): For its anchor configuration.
        num_seg (`int`): `T_seg` of the video.
        training (`bool`): Whether to draw (from torch's generator, so that a seed and a resumed run repeat it).
        anchors (`Sequence[int]`, *optional*): Anchor positions.
        propagation (`Sequence[int]`, *optional*): Propagation positions; none where only anchors are given.

    Returns:
        [`SupervisedFrames`]: Positions in `[0, num_seg)`.

    Raises:
        VirstError: A given position is out of range, or there is no anchor.
    """
    sizes = config.anchor_config
    if anchors is not None:
        chosen, others = sorted({int(i) for i in anchors}), {int(i) for i in propagation or ()}
    elif training:
        rng = random.Random(int(torch.randint(2**62, ())))
        chosen, drawn = sample_training_frames(
            num_seg, sizes.num_anchors, sizes.num_before, sizes.num_propagation, rng
        )
        others = set(drawn)
    else:
        chosen, others = inference_anchors(num_seg, sizes.anchor_stride), set(range(num_seg))
    frames = sorted(others | set(chosen))
    if not chosen or frames[0] < 0 or frames[-1] >= num_seg:
        raise VirstError(
            f"Supervised frames {frames} with anchors {chosen} do not fit a video of T_seg = {num_seg}: positions run "
            f"from 0 to {num_seg - 1} and at least one must be an anchor."
        )
    return SupervisedFrames(chosen, frames)


def token_objective(
    config: VirstConfig, lm_head: nn.Module, hidden: Tensor, labels: Sequence[Tensor], weights: Sequence[float]
) -> Tensor:
    """Token cross entropy: averaged over the tokens of a text, then over texts. Only labelled positions are projected.

    Args:
        config ([`VirstConfig`]): For the weight, and for the id of [SEG], which the loss leaves out.
        lm_head (`torch.nn.Module`): Hidden states to logits.
        hidden (`torch.Tensor` of shape `(num_texts, length, text_width)`): Hidden states, padded on the right.
        labels (`Sequence[torch.Tensor]`): Labels of each text, without padding; -100 where not supervised.
        weights (`Sequence[float]`): Share of each text in the mean; they add up to 1.

    Returns:
        `torch.Tensor`: The weighted loss, a scalar.
    """
    total = hidden.sum() * 0.0
    for states, target, weight in zip(hidden, labels, weights, strict=True):
        target = target.to(hidden.device)[1:]
        kept = (target != -100) & (target != config.seg_token_id)
        if bool(kept.any()):
            total = total + weight * token_loss(lm_head(states[: len(target)][kept]), target[kept])
    return config.token_loss_weight * total


@dataclass
class TrainingText:
    """One text on its way to the mask losses.

    Args:
        video ([`VirstVideoFeatures`]): Features of its video.
        prompts (`torch.Tensor` of shape `(num_seg_tokens, T_seg, C)`): Its prompts.
        which ([`SupervisedFrames`]): Its supervised positions.
    """

    video: VirstVideoFeatures
    prompts: Tensor
    which: SupervisedFrames


def track_texts(config: VirstConfig, segmenter: VirstSegmenter, texts: Sequence[TrainingText]) -> list[FrameMasks]:
    """Masks of the supervised frames of each text, with the single-mask output.

    Texts with the same order of anchors and propagation frames are tracked in lockstep, whatever their videos: memory
    positions in training are indices among the supervised frames, so they have the same memories at the same time.

    Args:
        config ([`VirstConfig`]): For alpha.
        segmenter ([`VirstSegmenter`]): The segmenter.
        texts (`Sequence[TrainingText]`): What is tracked.

    Returns:
        `list[FrameMasks]`: For each text, a row for each supervised frame, in order.
    """
    groups: dict[tuple[bool, ...], list[int]] = {}
    for i, text in enumerate(texts):
        groups.setdefault(tuple(frame in text.which.anchors for frame in text.which.frames), []).append(i)
    out: dict[int, FrameMasks] = {}
    for pattern, members in groups.items():
        memory = AnchorMemory(
            segmenter, len(pattern), config.anchor_config.num_anchors, future_pointers=True, multimask=False
        )
        group = [texts[i] for i in members]
        masks = track_supervised_frames(
            memory,
            lambda slot, group=group: _frames_of(group, slot),
            range(len(pattern)),
            {
                slot: torch.stack([text.prompts[:, text.which.frames[slot]] for text in group])
                for slot, is_anchor in enumerate(pattern)
                if is_anchor
            },
        )
        for row, i in enumerate(members):
            out[i] = FrameMasks(
                *(
                    torch.stack([getattr(frame, name)[row] for frame in masks])
                    for name in ("logits", "iou_scores", "object_scores", "pointer")
                )
            )
    return [out[i] for i in range(len(texts))]


def _frames_of(group: Sequence[TrainingText], slot: int) -> FrameFeatures:
    """Features of the frame that each text of a group has in a slot; of batch size 1 where all have the same one."""
    sources = [(text.video, text.video.seg_frame_indices[text.which.frames[slot]]) for text in group]
    first = sources[0]
    if all(video is first[0] and index == first[1] for video, index in sources):
        return first[0].frames(first[1])
    frames = [video.frames(index) for video, index in sources]
    return FrameFeatures(*(torch.cat([getattr(f, name) for f in frames]) for name in ("top", "stride8", "stride4")))


def select_target(target: Tensor, which: SupervisedFrames, num_seg: int, side: int) -> Tensor:
    """Masks of the supervised frames out of masks of those or of all `T_seg` frames, checked.

    Args:
        target (`torch.Tensor` of shape `(num_masks, S, S)`): Masks, 0 or 1.
        which ([`SupervisedFrames`]): Positions.
        num_seg (`int`): `T_seg`.
        side (`int`): S.

    Returns:
        `torch.Tensor` of shape `(number of supervised frames, S, S)`: Masks.

    Raises:
        VirstError: Another number of masks, or another size.
    """
    if tuple(target.shape[1:]) != (side, side) or len(target) not in (num_seg, len(which.frames)):
        raise VirstError(
            f"mask_labels have shape {tuple(target.shape)}; expected ({num_seg}, {side}, {side}) for all T_seg frames "
            f"or ({len(which.frames)}, {side}, {side}) for the supervised ones. The video processor's resize_masks() "
            "brings masks to that size."
        )
    return target if len(target) == len(which.frames) else target[which.frames]


def mask_objective(config: VirstConfig, segmenter: VirstSegmenter, masks: FrameMasks, target: Tensor) -> list[Tensor]:
    """The four mask terms of one text, weighted, each averaged over its supervised frames.

    Args:
        config ([`VirstConfig`]): For the weights.
        segmenter ([`VirstSegmenter`]): For the size of the masks.
        masks ([`FrameMasks`]): Prediction. The losses see the logits before the absent gate: a wrong "absent" must
            not blow up the BCE.
        target (`torch.Tensor` of shape `(number of supervised frames, S, S)`): Masks, 0 or 1.

    Returns:
        `list[torch.Tensor]`: BCE, Dice, occlusion and IoU loss.
    """
    logits = segmenter.resize_logits(masks.logits)
    target = target.to(logits.device)
    return [
        config.bce_loss_weight * mask_bce_loss(logits, target),
        config.dice_loss_weight * dice_loss(logits, target),
        config.occlusion_loss_weight * occlusion_loss(masks.object_scores, target),
        config.iou_loss_weight * iou_loss(masks.iou_scores, logits, target),
    ]
