"""What the model returns, and the features of a video that many expressions share."""

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.utils import ModelOutput

from .modules.frame_store import FrameStore

__all__ = ["VirstOutput", "VirstSegmentationOutput", "VirstVideoFeatures"]


@dataclass
class VirstVideoFeatures:
    """
    Everything about a video that does not depend on an expression. Made by
    [`~VirstForVideoSegmentation.encode_video`], and reused by any number of calls.

    Args:
        video_embeds (`torch.Tensor` of shape `(num_video_tokens, text_width)`): Tokens for the language model.
        is_image (`bool`): Whether it is a still image.
        seg_features (`torch.Tensor` of shape `(T_seg, C, S / 16, S / 16)`, *optional*):
            Maps that both fusions look at. This and the rest are missing where there is no SAM view, as for questions.
        seg_frame_indices (`list[int]`, *optional*): Source frame of each of the `T_seg` frames.
        num_frames (`int`, *optional*, defaults to 0): Frames of the video, T.
        frames (`FrameStore`, *optional*): SAM features of each frame.
        prefixes (`dict`, *optional*): Where there is a dictionary, the language model's keys and values of what texts
            about this video begin with are kept in it, for the next text.

    Example:

    ```python
    >>> import numpy as np
    >>> from virst_hf.untrained import untrained_model, untrained_processor
    >>> model, processor = untrained_model(), untrained_processor()
    >>> inputs = processor(videos=np.zeros((9, 48, 64, 3), dtype=np.uint8))
    >>> features = model.encode_video(**inputs)
    >>> text = processor(text=["the cat", "the dog"], num_vlm_frames=inputs["num_vlm_frames"])
    >>> len(model.segment(features=features, **text).mask_logits)
    2

    ```
    """

    video_embeds: torch.Tensor
    is_image: bool
    seg_features: torch.Tensor | None = None
    seg_frame_indices: list[int] = field(default_factory=list)
    num_frames: int = 0
    frames: FrameStore | None = None
    prefixes: dict[tuple[int, ...], Any] | None = None


@dataclass
class VirstOutput(ModelOutput):
    """
    Output of [`VirstForVideoSegmentation`]'s `forward`. The parts of the loss carry their weights of Eq. 16: the loss
    is their sum.

    Args:
        loss (`torch.FloatTensor`, *optional*): Sum of the parts, where labels or masks are given.
        token_loss (`torch.FloatTensor`, *optional*): Token cross entropy.
        bce_loss (`torch.FloatTensor`, *optional*): Mask BCE.
        dice_loss (`torch.FloatTensor`, *optional*): Dice loss.
        occlusion_loss (`torch.FloatTensor`, *optional*): Occlusion loss.
        iou_loss (`torch.FloatTensor`, *optional*): IoU loss.
        logits (`torch.FloatTensor` of shape `(batch_size, length, vocab_size)`, *optional*):
            Token logits, where no labels are given (with labels only the supervised positions are projected).
        mask_logits (`tuple[torch.FloatTensor]`, *optional*):
            For each text with masks, logits `(num_supervised_frames, S / 4, S / 4)` before the absent gate.
        object_scores (`tuple[torch.FloatTensor]`, *optional*): The same texts' object scores, a frame each.
        supervised_frames (`tuple[list[int]]`, *optional*): Positions among the `T_seg` frames that were supervised.
        past_key_values (`Cache`, *optional*): Keys and values, where `use_cache` is on.

    Example:

    ```python
    >>> import numpy as np
    >>> from virst_hf.untrained import untrained_model, untrained_processor
    >>> video = np.zeros((8, 48, 64, 3), dtype=np.uint8)
    >>> inputs = untrained_processor()(videos=video, text=["the cat"], return_labels=True)
    >>> output = untrained_model()(**inputs)
    >>> bool(output.loss == output.token_loss)
    True

    ```
    """

    loss: torch.FloatTensor | None = None
    token_loss: torch.FloatTensor | None = None
    bce_loss: torch.FloatTensor | None = None
    dice_loss: torch.FloatTensor | None = None
    occlusion_loss: torch.FloatTensor | None = None
    iou_loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    mask_logits: tuple | None = None
    object_scores: tuple | None = None
    supervised_frames: tuple | None = None
    past_key_values: object | None = None


@dataclass
class VirstSegmentationOutput(ModelOutput):
    """
    Output of [`~VirstForVideoSegmentation.segment`]. Tensors are on the CPU, so that a long video does not fill the
    accelerator.

    Args:
        mask_logits (`tuple[torch.FloatTensor]`): For each expression `(num_frames, S / 4, S / 4)` logits; above 0 is
            object, -1024 everywhere where it is absent.
        object_scores (`tuple[torch.FloatTensor]`): For each expression `(num_frames,)` logits; <= 0 is absent.
        iou_scores (`tuple[torch.FloatTensor]`): For each expression `(num_frames,)`, the predicted IoU of each mask.
        anchor_indices (`tuple[list[int]]`): For each expression, the frames that were anchors.
        video_indices (`torch.LongTensor` of shape `(num_expressions,)`): Video of each expression.
        original_sizes (`torch.LongTensor` of shape `(num_videos, 2)`, *optional*): Height and width of each video.
        sequences (`torch.LongTensor` of shape `(num_expressions, length)`, *optional*): Ids of the explanations.

    Example:

    ```python
    >>> import numpy as np
    >>> from virst_hf.untrained import untrained_model, untrained_processor
    >>> inputs = untrained_processor()(videos=np.zeros((8, 48, 64, 3), dtype=np.uint8), text=["the cat"])
    >>> output = untrained_model().segment(**inputs)
    >>> output.mask_logits[0].shape, output.object_scores[0].shape, output.anchor_indices
    (torch.Size([8, 32, 32]), torch.Size([8]), ([0, 7],))

    ```
    """

    mask_logits: tuple | None = None
    object_scores: tuple | None = None
    iou_scores: tuple | None = None
    anchor_indices: tuple | None = None
    video_indices: torch.LongTensor | None = None
    original_sizes: torch.LongTensor | None = None
    sequences: torch.LongTensor | None = None
