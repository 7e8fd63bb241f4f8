"""The Temporal Dynamic Anchor Updater: anchors from prompts, all other frames from anchors and the last few frames."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..sampling import closest_anchors
from .segmenter import FrameFeatures, FrameMasks, VirstSegmenter

__all__ = ["AnchorMemory", "track_supervised_frames", "track_video"]


@dataclass
class MemoryEntry:
    """Memory tokens (until they are out of reach) and object pointer of one frame."""

    tokens: Tensor | None
    pointer: Tensor


class AnchorMemory:
    """
    Memories of the anchors and of the last frames, and the frames that are decoded from them (Eq. 17 to 19).

    Positions are frame indices of the video at inference, and indices among the supervised frames in training. What
    can no longer be reached is dropped, so the size does not depend on the length of the video.

    Args:
        segmenter ([`VirstSegmenter`]): The segmenter.
        num_frames (`int`): Frames in the run; object pointers reach back `min(num_frames, max_object_pointers) - 1`.
        num_anchors (`int`): Alpha, the anchors that a frame attends to.
        future_pointers (`bool`): Whether anchors of the future give an object pointer (as in training).
        multimask (`bool`): Take the best of the multi-mask outputs, or the single-mask output.
    """

    def __init__(
        self, segmenter: VirstSegmenter, num_frames: int, num_anchors: int, future_pointers: bool, multimask: bool
    ) -> None:
        self.segmenter = segmenter
        self.num_anchors = num_anchors
        self.future_pointers = future_pointers
        self.multimask = multimask
        self.pointer_reach = min(num_frames, segmenter.config.max_object_pointers) - 1
        self.anchors: dict[int, MemoryEntry] = {}
        self.recent: dict[int, MemoryEntry] = {}

    def decode_anchor(self, index: int, frame: FrameFeatures, prompts: Tensor, remember: bool = True) -> FrameMasks:
        """Decode an anchor from its prompts, without memory.

        Args:
            index (`int`): Its position.
            frame ([`FrameFeatures`]): The frame.
            prompts (`torch.Tensor` of shape `(num_expressions, num_seg_tokens, C)`): Its prompts.
            remember (`bool`, *optional*, defaults to `True`): Encode it into memory, for frames still to come.

        Returns:
            [`FrameMasks`]: Its masks.
        """
        segmenter = self.segmenter
        masks = segmenter.decode(segmenter.without_memory(frame), prompts, frame, self.multimask)
        if remember:
            self.anchors[index] = MemoryEntry(segmenter.encode_memory(frame, masks), masks.pointer)
        return masks

    def propagate(self, index: int, frame: FrameFeatures, remember: bool = True) -> FrameMasks:
        """Decode a frame from memory with the empty prompt. Arguments and result as in `decode_anchor`."""
        segmenter = self.segmenter
        embedding = segmenter.attend_to_memory(frame, *self.gather(index))
        masks = segmenter.decode(embedding, None, frame, self.multimask)
        if remember:
            self.recent[index] = MemoryEntry(segmenter.encode_memory(frame, masks), masks.pointer)
            self.forget(index)
        return masks

    def forget(self, index: int) -> None:
        """Drop memories that no frame after `index` reaches: tokens after P frames, pointers after their reach."""
        for position in list(self.recent):
            if index - position >= self.segmenter.num_maskmem - 1:
                self.recent[position].tokens = None
            if index - position >= max(self.pointer_reach, self.segmenter.num_maskmem - 1):
                del self.recent[position]

    def entry(self, index: int, chosen: Sequence[int]) -> MemoryEntry | None:
        """The entry of a past frame that fills a FIFO slot: a propagated frame, or an anchor that was not chosen."""
        if index in chosen:
            return None
        return self.recent.get(index) or self.anchors.get(index)

    def gather(self, index: int) -> tuple[Tensor, Tensor, int]:
        """Memory tokens, their codes and the number of pointer tokens for the frame at `index`."""
        segmenter = self.segmenter
        chosen = closest_anchors(index, list(self.anchors), self.num_anchors)
        spatial = [(0, self.anchors[k].tokens) for k in chosen]
        num_recent = segmenter.num_maskmem - 1
        for tau in range(1, num_recent + 1):
            past = self.entry(index - (num_recent + 1 - tau), chosen)
            if past is not None and past.tokens is not None:
                spatial.append((tau, past.tokens))
        pointers = [(index - k, self.anchors[k].pointer) for k in chosen if self.future_pointers or k <= index]
        for distance in range(1, self.pointer_reach + 1):
            past = self.entry(index - distance, chosen)
            if past is not None:
                pointers.append((distance, past.pointer))
        tokens = [memory for _, memory in spatial]
        codes = [segmenter.memory_positions(tau, memory) for tau, memory in spatial]
        num_pointers = 0
        if pointers:
            distances, vectors = zip(*pointers, strict=True)
            pointer_tokens, code = segmenter.pointer_tokens(list(vectors), list(distances), self.pointer_reach)
            num_pointers = len(pointer_tokens)
            tokens.append(pointer_tokens)
            codes.append(code)
        return torch.cat(tokens), torch.cat(codes), num_pointers


def track_video(
    memory: AnchorMemory, get_frame: Callable[[int], FrameFeatures], num_frames: int, prompts: dict[int, Tensor]
) -> Iterator[tuple[int, FrameMasks]]:
    """Inference: every anchor from its own prompts first, then all frames of the video in order.

    Args:
        memory ([`AnchorMemory`]): An empty memory.
        get_frame (`Callable[[int], FrameFeatures]`): Gives the features of a frame.
        num_frames (`int`): Frames of the video.
        prompts (`dict[int, torch.Tensor]`): Prompts `(num_expressions, num_seg_tokens, C)` of each anchor frame.

    Yields:
        `tuple[int, FrameMasks]`: Frame and masks, in temporal order.
    """
    propagates = len(prompts) < num_frames
    anchors = {
        index: memory.decode_anchor(index, get_frame(index), prompts[index], remember=propagates)
        for index in sorted(prompts)
    }
    last = max((index for index in range(num_frames) if index not in anchors), default=-1)
    for index in range(num_frames):
        if index in anchors:
            yield index, anchors.pop(index)
        else:
            yield index, memory.propagate(index, get_frame(index), remember=index != last)


def track_supervised_frames(
    memory: AnchorMemory, get_frame: Callable[[int], FrameFeatures], frames: Sequence[int], prompts: dict[int, Tensor]
) -> list[FrameMasks]:
    """Training: the first anchor first, then the rest in temporal order, each anchor from its prompts when reached.

    Args:
        memory ([`AnchorMemory`]): An empty memory; positions in it are indices into `frames`.
        get_frame (`Callable[[int], FrameFeatures]`): Gives the features of one of `frames`.
        frames (`Sequence[int]`): The supervised frames, ascending.
        prompts (`dict[int, torch.Tensor]`): Prompts of the frames among them that are anchors.

    Returns:
        `list[FrameMasks]`: Masks of each of `frames`, in their order.
    """
    propagated = [i for i, frame in enumerate(frames) if frame not in prompts]
    last = max(propagated, default=-1)
    first = min(i for i, frame in enumerate(frames) if frame in prompts)
    masks: dict[int, FrameMasks] = {}
    for i in [first, *(i for i in range(len(frames)) if i != first)]:
        frame = get_frame(frames[i])
        if frames[i] in prompts:
            # Only the first anchor is seen by frames before it, later ones by frames behind them.
            remember = bool(propagated) and (i < last or i == first)
            masks[i] = memory.decode_anchor(i, frame, prompts[frames[i]], remember)
        else:
            masks[i] = memory.propagate(i, frame, remember=i != last)
    return [masks[i] for i in range(len(frames))]
