"""One video, many questions: a session keeps what was encoded, and follows expressions that come and go."""

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .errors import VideoError, VirstError
from .modeling_virst import VirstForVideoSegmentation
from .modules.tracker import EXACT, TrackingOptions
from .processing_virst import VirstProcessor
from .streaming import StreamedFrame, Window, WindowTracker, make_window
from .video_io import VideoSource, open_video

__all__ = ["VirstSession"]


class VirstSession:
    """
    Interactive use of one video: it is encoded once, whatever is asked of it.

    The features of every frame are held (about 17 MB a frame at full size in float32), so a session is for clips; for
    long videos there is [`~VirstForVideoSegmentation.stream`]. Sessions of several threads may share a model.

    Args:
        model ([`VirstForVideoSegmentation`]): The model.
        processor ([`VirstProcessor`]): Of the model.
        video (`Any`): The video, as [`open_video`] takes it.
        tracking ([`TrackingOptions`], *optional*): Ways to be faster; as in the paper when not given.

    Raises:
        VideoError: The video cannot be read.
        ConfigError: The options do not fit the model.

    Example:

    ```python
    >>> import numpy as np
    >>> from virst_hf import VirstSession
    >>> from virst_hf.untrained import untrained_model, untrained_processor
    >>> frames = np.zeros((9, 36, 48, 3), dtype=np.uint8)
    >>> session = VirstSession(untrained_model(), untrained_processor(), frames[:8])
    >>> cat, dog = session.add("the cat", "the dog")
    >>> session.masks(cat).shape
    torch.Size([8, 36, 48])
    >>> session.remove(dog)
    >>> [frame.masks.shape for frame in session.extend(frames[8:])]  # one more frame of a live source
    [torch.Size([1, 36, 48])]

    ```
    """

    def __init__(
        self,
        model: VirstForVideoSegmentation,
        processor: VirstProcessor,
        video: Any,
        tracking: TrackingOptions = EXACT,
    ) -> None:
        model.empty_memory(1, tracking=tracking)  # options that do not fit the model are told before the work
        self.model, self.processor, self.tracking = model, processor, tracking
        self._windows: list[Window] = []
        # Expressions that were added together are tracked together; each group has its numbers.
        self._groups: list[tuple[list[int], WindowTracker]] = []
        self._masks: dict[int, list[Tensor]] = {}
        self._count = 0
        self._windows.append(self._encode(open_video(video)))

    @property
    def num_frames(self) -> int:
        """Frames so far."""
        return sum(window.features.num_frames for window in self._windows)

    @property
    def expressions(self) -> dict[int, str]:
        """The expressions that are followed, by their numbers."""
        return {n: t for numbers, tracker in self._groups for n, t in zip(numbers, tracker.texts, strict=True)}

    def add(self, *texts: str) -> list[int]:
        """Segment expressions in all frames so far, and follow them in those still to come.

        Args:
            *texts (`str`): The expressions; those of one call share most of the work.

        Returns:
            `list[int]`: Their numbers.

        Raises:
            VirstError: There is no text, or one is empty.
        """
        if not texts:
            raise VirstError("There is no expression: say what is to be segmented.")
        tracker = WindowTracker(self.model, self.processor, texts, self.tracking, self.num_frames)
        frames = [frame for window in self._windows for frame in tracker.segment(window)]
        numbers = list(range(self._count, self._count + len(texts)))
        self._count += len(texts)
        self._groups.append((list(numbers), tracker))
        for row, number in enumerate(numbers):
            self._masks[number] = [frame.masks[row] for frame in frames]
        return numbers

    def remove(self, number: int) -> None:
        """Follow an expression no longer, and drop its masks.

        Args:
            number (`int`): What `add` gave.

        Raises:
            VirstError: There is no such expression.
        """
        self._check(number)
        numbers, tracker = next(group for group in self._groups if number in group[0])
        tracker.remove(numbers.index(number))
        numbers.remove(number)
        self._groups = [group for group in self._groups if group[0]]
        del self._masks[number]

    def masks(self, number: int) -> Tensor:
        """Masks of an expression.

        Args:
            number (`int`): What `add` gave.

        Returns:
            `torch.BoolTensor` of shape `(num_frames, height, width)`: On the CPU.

        Raises:
            VirstError: There is no such expression.
        """
        self._check(number)
        return torch.stack(self._masks[number])

    def ask(self, question: str, max_new_tokens: int = 128) -> str:
        """Answer a question about the last window: the whole video, where nothing was added to it.

        Args:
            question (`str`): The question.
            max_new_tokens (`int`, *optional*, defaults to 128): Longest answer, in tokens.

        Returns:
            `str`: The answer.

        Raises:
            VirstError: The question is empty.
        """
        window = self._windows[-1]
        inputs = self.processor(text=[question], task="ask", num_vlm_frames=[window.num_vlm_frames])
        tokens = self.model.generate(
            **inputs, features=[window.features], max_new_tokens=max_new_tokens, do_sample=False
        )
        return self.processor.batch_decode(tokens, skip_special_tokens=True)[0].strip()

    def extend(self, frames: Any) -> list[StreamedFrame]:
        """Go on with more frames of a live source, as one window: it gives prompts and anchors of its own.

        Args:
            frames (`Any`): The frames, as [`open_video`] takes a video, of the size of the first.

        Returns:
            `list[StreamedFrame]`: For each new frame the masks of all expressions, in the order of their numbers.

        Raises:
            VideoError: The frames cannot be read, or are of another size.
        """
        window = self._encode(open_video(frames))
        # Kept only when all has gone well: an error, or an interruption, leaves the session as it was.
        groups = [(list(numbers), tracker.fork()) for numbers, tracker in self._groups]
        found: dict[int, list[tuple[Tensor, Tensor, Tensor, bool]]] = {}
        for numbers, tracker in groups:
            for frame in tracker.segment(window):
                for number, *parts in zip(numbers, frame.masks, frame.scores, frame.iou_scores, strict=True):
                    found.setdefault(number, []).append((*parts, frame.is_anchor))
        self._windows.append(window)
        self._groups = groups
        for number, parts in found.items():
            self._masks[number].extend(mask for mask, *_ in parts)
        return [self._joined(window, frame, found) for frame in range(window.features.num_frames)]

    def _joined(
        self, window: Window, frame: int, found: dict[int, list[tuple[Tensor, Tensor, Tensor, bool]]]
    ) -> StreamedFrame:
        """One frame of all expressions."""
        if not found:
            masks, empty = torch.zeros(0, *window.size, dtype=torch.bool), torch.zeros(0)
            return StreamedFrame(window.start + frame, masks, empty, empty, False)
        masks, scores, ious, anchors = zip(*(found[number][frame] for number in sorted(found)), strict=True)
        return StreamedFrame(
            window.start + frame, torch.stack(masks), torch.stack(scores), torch.stack(ious), anchors[0]
        )

    def _encode(self, source: VideoSource) -> Window:
        """Encode frames, to be the next window."""
        views = self.processor.video_processor
        small, sam, size = [], [], None if not self._windows else self._windows[0].size
        is_image = source.is_image and not self._windows
        for frame in source:
            size = size or frame.shape[:2]
            if frame.shape[:2] != size:
                raise VideoError(f"A frame is {frame.shape[:2]}, those before it {size} (height, width).")
            image = Image.fromarray(frame)
            small.append(views.vlm_view(image))
            sam.append(views.sam_view(image))
        with torch.no_grad():
            return make_window(
                self.model, small, sam, views, self.num_frames, size, keep_frames=True, is_image=is_image
            )

    def _check(self, number: int) -> None:
        if number not in self._masks:
            known = ", ".join(map(str, self._masks)) or "none"
            raise VirstError(f"There is no expression {number}; those that are followed: {known}.")
