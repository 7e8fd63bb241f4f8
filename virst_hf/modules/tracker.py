"""The Temporal Dynamic Anchor Updater: anchors from prompts, all other frames from anchors and the last few frames."""

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError
from ..sampling import closest_anchors
from .segmenter import FrameFeatures, FrameMasks, VirstSegmenter

__all__ = ["EXACT", "AnchorMemory", "TrackingOptions", "track_frames", "track_supervised_frames", "track_video"]


@dataclass(frozen=True)
class TrackingOptions:
    """
    Ways to track faster, or in less memory. The first changes no mask; each of the others changes them.

    Args:
        chunk (`int`, *optional*): Expressions that attend to memory together; all of them when not given.
        recent (`int`, *optional*): How many of the last frames are attended to: the nearest ones of those that were
            tracked among the last 6. All of them, as in SAM 2.1, when not given.
        stride (`int`, *optional*, defaults to 1): Track every `stride`-th frame and the anchors, and interpolate the
            logits of the frames between.
        pool (`int`, *optional*, defaults to 1): Memories are means over `pool * pool` of their tokens; the side of
            their grid (64 in SAM 2.1) must be a multiple of it. Pointers stay as they are.

    Raises:
        ConfigError: A number is too small.

    Example:

    ```python
    >>> from virst_hf.modules.tracker import TrackingOptions
    >>> TrackingOptions(stride=2).tracked(range(7), anchors=[3])
    [0, 2, 3, 4, 6]

    ```
    """

    chunk: int | None = None
    recent: int | None = None
    stride: int = 1
    pool: int = 1

    def __post_init__(self) -> None:
        for name, least in (("chunk", 1), ("recent", 0), ("stride", 1), ("pool", 1)):
            value = getattr(self, name)
            optional = getattr(type(self), name) is None
            if not (optional and value is None) and (type(value) is not int or value < least):
                raise ConfigError(f"{name} must be a whole number of at least {least}, found {value!r}.")

    def tracked(self, frames: range, anchors: Collection[int]) -> list[int]:
        """The frames that are decoded, the last one always among them.

        Args:
            frames (`range`): A run of frames.
            anchors (`Collection[int]`): Those of them that are anchors.

        Returns:
            `list[int]`: Ascending indices.
        """
        last = frames[-1]
        return [t for t in frames if (t - frames[0]) % self.stride == 0 or t in anchors or t == last]


# As in the paper.
EXACT = TrackingOptions()
# What is interpolated of the masks between two frames.
MEASURED = ("logits", "iou_scores", "object_scores")


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
        options ([`TrackingOptions`], *optional*): Ways to be faster.

    Raises:
        ConfigError: The grid of the segmenter is no multiple of the pooling.
    """

    def __init__(
        self,
        segmenter: VirstSegmenter,
        num_frames: int,
        num_anchors: int,
        future_pointers: bool,
        multimask: bool,
        options: TrackingOptions = EXACT,
    ) -> None:
        side = segmenter.config.grid_size
        if side % options.pool:
            raise ConfigError(f"Memories of {side} x {side} tokens cannot be pooled by {options.pool}.")
        self.segmenter = segmenter
        self.options = options
        self.num_anchors = num_anchors
        self.future_pointers = future_pointers
        self.multimask = multimask
        self.pointer_reach = 0
        self.lengthen(num_frames)
        self.anchors: dict[int, MemoryEntry] = {}
        self.recent: dict[int, MemoryEntry] = {}
        # Codes of memories by their tau: the same in every frame.
        self._codes: dict[int, Tensor] = {}

    def lengthen(self, num_frames: int) -> None:
        """Say that the run has grown.

        Args:
            num_frames (`int`): Frames so far; a smaller number than before changes nothing.
        """
        longest = min(num_frames, self.segmenter.config.max_object_pointers)
        self.pointer_reach = max(self.pointer_reach, longest - 1)

    def fork(self) -> "AnchorMemory":
        """Another memory with the same content; what one of them forgets the other keeps."""
        twin = copy.copy(self)
        twin.anchors = {index: copy.copy(entry) for index, entry in self.anchors.items()}
        twin.recent = {index: copy.copy(entry) for index, entry in self.recent.items()}
        return twin

    def entry_of(self, frame: FrameFeatures, masks: FrameMasks) -> MemoryEntry:
        """What is remembered of a decoded frame."""
        return MemoryEntry(self.segmenter.encode_memory(frame, masks, self.options.pool), masks.pointer)

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
            self.anchors[index] = self.entry_of(frame, masks)
        return masks

    def propagate(self, index: int, frame: FrameFeatures, remember: bool = True) -> FrameMasks:
        """Decode a frame from memory with the empty prompt. Arguments and result as in `decode_anchor`."""
        segmenter = self.segmenter
        memory, positions, num_pointers = self.gather(index)
        # Attention holds a few tensors of the size of its keys for each expression: in chunks, for a few of them.
        chunks = memory.split(self.options.chunk or memory.shape[1], dim=1)
        pool = self.options.pool
        attended = [segmenter.attend_to_memory(frame, chunk, positions, num_pointers, pool) for chunk in chunks]
        embedding = torch.cat(attended)
        masks = segmenter.decode(embedding, None, frame, self.multimask)
        if remember:
            self.recent[index] = self.entry_of(frame, masks)
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

    def code_of(self, tau: int, tokens: Tensor) -> Tensor:
        """The code of a memory, made when it is first asked for."""
        if tau not in self._codes:
            self._codes[tau] = self.segmenter.memory_positions(tau, tokens)
        return self._codes[tau]

    def gather(self, index: int) -> tuple[Tensor, Tensor, int]:
        """Memory tokens, their codes and the number of pointer tokens for the frame at `index`."""
        segmenter = self.segmenter
        chosen = closest_anchors(index, list(self.anchors), self.num_anchors)
        num_recent = segmenter.num_maskmem - 1
        spatial = []
        for tau in range(1, num_recent + 1):
            past = self.entry(index - (num_recent + 1 - tau), chosen)
            if past is not None and past.tokens is not None:
                spatial.append((tau, past.tokens))
        if self.options.recent is not None:
            spatial = spatial[max(0, len(spatial) - self.options.recent) :]
        spatial = [(0, self.anchors[k].tokens) for k in chosen] + spatial
        pointers = [(index - k, self.anchors[k].pointer) for k in chosen if self.future_pointers or k <= index]
        for distance in range(1, self.pointer_reach + 1):
            past = self.entry(index - distance, chosen)
            if past is not None:
                pointers.append((distance, past.pointer))
        tokens = [memory for _, memory in spatial]
        codes = [self.code_of(tau, memory) for tau, memory in spatial]
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
    yield from track_frames(memory, get_frame, range(num_frames), prompts, last=True)


def track_frames(
    memory: AnchorMemory,
    get_frame: Callable[[int], FrameFeatures],
    frames: range,
    prompts: dict[int, Tensor],
    last: bool = False,
) -> Iterator[tuple[int, FrameMasks]]:
    """As [`track_video`], for a run of frames that may go on after another one.

    Args:
        memory ([`AnchorMemory`]): What is known of the frames before.
        get_frame (`Callable[[int], FrameFeatures]`): Gives the features of a frame.
        frames (`range`): The frames.
        prompts (`dict[int, torch.Tensor]`): Prompts `(num_expressions, num_seg_tokens, C)` of each anchor frame.
        last (`bool`, *optional*, defaults to `False`): Whether nothing follows, so that the last frame need not be
            remembered.

    Yields:
        `tuple[int, FrameMasks]`: Frame and masks, in temporal order.
    """
    tracked = memory.options.tracked(frames, prompts)
    forgotten = max((index for index in tracked if index not in prompts), default=None) if last else None
    remember = not last or forgotten is not None
    anchors = {
        index: memory.decode_anchor(index, get_frame(index), prompts[index], remember) for index in sorted(prompts)
    }
    before: tuple[int, FrameMasks] | None = None
    for index in tracked:
        if index in anchors:
            masks = anchors.pop(index)
        else:
            masks = memory.propagate(index, get_frame(index), remember=index != forgotten)
        if before is not None:
            yield from _between(*before, index, masks)
        yield index, masks
        before = index, masks


def _between(start: int, first: FrameMasks, end: int, second: FrameMasks) -> Iterator[tuple[int, FrameMasks]]:
    """The frames between two that were tracked: logits and scores in proportion, the nearer one's pointer."""
    for index in range(start + 1, end):
        weight = (index - start) / (end - start)
        parts = (torch.lerp(getattr(first, name), getattr(second, name), weight) for name in MEASURED)
        yield index, FrameMasks(*parts, (first if weight <= 0.5 else second).pointer)


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
