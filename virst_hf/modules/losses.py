"""The parts of Eq. 16, each averaged inside a sample. Pure functions, in float32."""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["dice_loss", "iou_loss", "mask_bce_loss", "mask_iou", "occlusion_loss", "token_loss"]

EPSILON = 1e-6
# The release divides pixel sums by this before it adds epsilon, which sets the weight of an empty mask.
DICE_SCALE = 1000.0


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of supervised tokens, their mean.

    Args:
        logits (`torch.Tensor` of shape `(num_tokens, vocab_size)`): Logits at the positions before the targets.
        targets (`torch.Tensor` of shape `(num_tokens,)`): Ids, at least one.

    Returns:
        `torch.Tensor`: A scalar, at least 0.
    """
    return F.cross_entropy(logits.float(), targets)


def mask_bce_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross entropy, the mean over pixels and frames.

    Args:
        logits (`torch.Tensor` of shape `(num_frames, height, width)`): Mask logits, before the absent gate.
        target (`torch.Tensor` of shape `(num_frames, height, width)`): 0 or 1.

    Returns:
        `torch.Tensor`: A scalar, at least 0.
    """
    return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype))


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """`1 - (2 |p g| / s + eps) / ((|p| + |g|) / s + eps)` with `s = 1000`, the mean over frames.

    Args:
        logits (`torch.Tensor` of shape `(num_frames, height, width)`): Mask logits, before the absent gate.
        target (`torch.Tensor` of shape `(num_frames, height, width)`): 0 or 1.

    Returns:
        `torch.Tensor`: A scalar, 0 to 1.
    """
    p, g = logits.sigmoid().flatten(1), target.to(logits.dtype).flatten(1)
    overlap = (p * g).sum(-1) / DICE_SCALE
    total = (p.sum(-1) + g.sum(-1)) / DICE_SCALE
    return (1 - (2 * overlap + EPSILON) / (total + EPSILON)).mean()


def mask_iou(logits: Tensor, target: Tensor) -> Tensor:
    """IoU of the thresholded masks, frame by frame; 0 where both are empty.

    Args:
        logits (`torch.Tensor` of shape `(num_frames, height, width)`): Mask logits; above 0 is object.
        target (`torch.Tensor` of shape `(num_frames, height, width)`): 0 or 1.

    Returns:
        `torch.Tensor` of shape `(num_frames,)`: 0 to 1.
    """
    p, g = (logits > 0).flatten(1), (target > 0.5).flatten(1)
    return (p & g).sum(-1) / ((p | g).sum(-1) + EPSILON)


def iou_loss(iou_scores: Tensor, logits: Tensor, target: Tensor) -> Tensor:
    """L1 between predicted IoU and the IoU of the thresholded mask, the mean over frames.

    Args:
        iou_scores (`torch.Tensor` of shape `(num_frames,)`): Predicted IoU, 0 to 1.
        logits (`torch.Tensor` of shape `(num_frames, height, width)`): Mask logits; no gradient flows into them.
        target (`torch.Tensor` of shape `(num_frames, height, width)`): 0 or 1.

    Returns:
        `torch.Tensor`: A scalar, 0 to 1.
    """
    with torch.no_grad():
        real = mask_iou(logits, target)
    return (real.to(iou_scores.dtype) - iou_scores).abs().mean()


def occlusion_loss(object_scores: Tensor, target: Tensor) -> Tensor:
    """Binary cross entropy of the object score against "the object is visible", the mean over frames.

    Args:
        object_scores (`torch.Tensor` of shape `(num_frames,)`): Logits.
        target (`torch.Tensor` of shape `(num_frames, height, width)`): 0 or 1.

    Returns:
        `torch.Tensor`: A scalar, at least 0.
    """
    visible = (target.flatten(1) > 0.5).any(-1).to(object_scores.dtype)
    return F.binary_cross_entropy_with_logits(object_scores, visible)
