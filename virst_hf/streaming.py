"""A video frame by frame: masks come as soon as they are known, and what is held does not grow with the video.

With the anchor policy `"uniform"` the anchors lie evenly over the whole video, as in the paper. So the video is read
twice: once for the frames that the language model and the fusions see, once to track. With `"windowed"` a video of any
length, or a live source, is cut into windows, each with prompts and anchors of its own; memories go on from one window
to the next.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .errors import VideoError, VirstError
from .frame_reader import LazyFrames, pinned_copies, read_ahead
from .modeling_outputs import VirstVideoFeatures
from .modules.frame_store import FrameStore
from .modules.segmenter import FrameMasks
from .modules.text import unpad_rows
from .modules.tracker import EXACT, AnchorMemory, TrackingOptions, track_frames, track_video
from .processing_virst import VirstProcessor, iter_masks
from .sampling import seg_frame_positions, vlm_frame_indices
from .video_io import VideoSource, live_frames, open_video
from .video_processing_virst import VirstVideoProcessor

if TYPE_CHECKING:
    from .modeling_virst import VirstForVideoSegmentation

__all__ = ["AnchorPolicy", "StreamedFrame", "StreamingMixin", "Window", "WindowTracker", "make_window", "windows_of"]

AnchorPolicy = Literal["uniform", "windowed"]
SamView = Callable[[Image.Image], Tensor]
POLICIES = ("uniform", "windowed")
# Frames of a window: twice what the language model sees of it at most, in the release.
WINDOW = 128


class StreamedFrame(NamedTuple):
    """
    The masks of one frame.

    Args:
        index (`int`): The frame, from 0.
        masks (`torch.BoolTensor` of shape `(num_expressions, height, width)`): At the size of the video, on the CPU.
        scores (`torch.FloatTensor` of shape `(num_expressions,)`): Object scores, logits; <= 0 is absent.
        iou_scores (`torch.FloatTensor` of shape `(num_expressions,)`): The predicted IoU of each mask.
        is_anchor (`bool`): Whether the frame was an anchor.

    Example:

    ```python
    >>> import numpy as np
    >>> from virst_hf.untrained import untrained_model, untrained_processor
    >>> frames = np.zeros((9, 36, 48, 3), dtype=np.uint8)
    >>> found = next(untrained_model().stream(frames, ["the cat", "the dog"], untrained_processor()))
    >>> found.index, found.is_anchor, found.masks.shape
    (0, True, torch.Size([2, 36, 48]))

    ```
    """

    index: int
    masks: Tensor
    scores: Tensor
    iou_scores: Tensor
    is_anchor: bool


class Window(NamedTuple):
    """
    Some frames of a video that are segmented together.

    Args:
        start (`int`): Index of its first frame in the video.
        features ([`VirstVideoFeatures`]): Of its frames, counted from 0.
        num_vlm_frames (`int`): Frames that the language model sees.
        size (`tuple[int, int]`): Height and width of the video.
    """

    start: int
    features: VirstVideoFeatures
    num_vlm_frames: int
    size: tuple[int, int]


class StreamingMixin:
    """Gives [`VirstForVideoSegmentation`] its method `stream`."""

    def stream(
        self,
        video: Any,
        texts: str | Sequence[str],
        processor: VirstProcessor,
        anchor_policy: AnchorPolicy = "uniform",
        window: int = WINDOW,
        ahead: int = 8,
        tracking: TrackingOptions = EXACT,
        pinned: bool = False,
    ) -> Iterator[StreamedFrame]:
        """Segment a video frame by frame. What is held in memory does not grow with the length of the video.

        Args:
            video (`Any`): A video, as [`open_video`] takes it; it is read from the start, with `"uniform"` twice. With
                `"windowed"` also an iterator of frames, such as those of a camera: arrays `(height, width, 3)`,
                images or tensors.
            texts (`str` or `list[str]`): The expressions.
            processor ([`VirstProcessor`]): Of the model.
            anchor_policy (`str`, *optional*, defaults to `"uniform"`): `"uniform"`: anchors lie evenly over the whole
                video (Alg. 2), and masks are those of `segment`. `"windowed"`: every `window` frames have prompts and
                anchors of their own: for videos of many minutes, and for live sources.
            window (`int`, *optional*, defaults to 128): Frames of a window. The first masks of a window come when it
                has been read.
            ahead (`int`, *optional*, defaults to 8): Frames that are read and resized ahead, in a thread.
            tracking ([`TrackingOptions`], *optional*): Ways to be faster; as in the paper when not given. Within a
                window the last frame is always tracked.
            pinned (`bool`, *optional*, defaults to `False`): With a model on CUDA: the thread that reads ahead also
                copies each frame to the device, from pinned memory, so that nothing waits for it. `ahead` frames, or
                those of a window, are on the device then.

        Yields:
            [`StreamedFrame`]: Index, masks and scores of each frame, in order.

        Raises:
            VideoError: The video cannot be read; where it breaks off, or a file is cut short, after the masks of the
                frames before (with a stride in `tracking`: up to the last one that was tracked).
            VirstError: There is no expression, one is empty, or an argument is of no use (`pinned` without CUDA, for
                one).
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        _check_arguments(self, texts, processor, anchor_policy, window, ahead, tracking)
        views = processor.video_processor
        sam_view = pinned_copies(views.sam_view, self.device) if pinned else views.sam_view
        live = isinstance(video, Iterator)
        source = None if live else open_video(video, allow_cut=True)
        if anchor_policy == "uniform":
            if source is None:
                raise VideoError('A live source cannot be read twice: use anchor_policy="windowed".')
            return _uniform(self, source, texts, processor, ahead, tracking, sam_view)
        frames = live_frames(video) if source is None else source
        return _windowed(self, frames, texts, processor, window, ahead, tracking, sam_view)


def _check_arguments(
    model: "VirstForVideoSegmentation",
    texts: list[str],
    processor: VirstProcessor,
    anchor_policy: str,
    window: int,
    ahead: int,
    tracking: TrackingOptions,
) -> None:
    """Raise what is wrong with the arguments of a stream before its video is read and encoded."""
    if not texts:
        raise VirstError("There is no expression: say what is to be segmented.")
    if anchor_policy not in POLICIES:
        raise VirstError(f"There is no anchor policy {anchor_policy!r}; there are {' and '.join(POLICIES)}.")
    if window < 1 or ahead < 1:
        raise VirstError(f"window and ahead must be at least 1, found {window} and {ahead}.")
    _rows(processor, texts, processor.video_processor.frames_per_clip)
    model.empty_memory(1, tracking=tracking)


def _uniform(
    model: "VirstForVideoSegmentation",
    source: VideoSource,
    texts: list[str],
    processor: VirstProcessor,
    ahead: int,
    tracking: TrackingOptions,
    sam_view: SamView,
) -> Iterator[StreamedFrame]:
    broken: list[VideoError] = []
    yield from _surveyed(model, source, texts, processor, ahead, tracking, sam_view, broken)
    # By now all that was held is dropped; a name for the error would be a circle by way of its traceback.
    if broken:
        raise broken.pop()


@torch.no_grad()
def _surveyed(
    model: "VirstForVideoSegmentation",
    source: VideoSource,
    texts: list[str],
    processor: VirstProcessor,
    ahead: int,
    tracking: TrackingOptions,
    sam_view: SamView,
    broken: list[VideoError],
) -> Iterator[StreamedFrame]:
    """All frames that can be read; the error of the next one, where the first reading met it, goes to `broken`."""
    views = processor.video_processor
    survey = _survey(source, views, sam_view, broken)
    known = {frame: survey.sam[frame] for frame in survey.seg}
    # Anchors are known, whichever they will be.
    tracked = None if tracking.stride == 1 else tracking.tracked(range(survey.length), ())
    with LazyFrames(source, lambda f: sam_view(Image.fromarray(f)), survey.length, known, ahead, tracked) as frames:
        store = FrameStore(model.model.segmenter, frames, survey.seg, release=True)
        features = VirstVideoFeatures(
            video_embeds=model.model.get_video_features(survey.vlm),
            is_image=source.is_image,
            seg_features=store.seg_features(survey.seg),
            seg_frame_indices=survey.seg,
            num_frames=survey.length,
            frames=store,
        )
        prompts = model.anchor_prompts(features, _rows(processor, texts, len(survey.vlm)))
        memory = model.empty_memory(survey.length, source.is_image, tracking)
        size, length = (source.height, source.width), survey.length
        # Only the pinned frames are needed from here on.
        store.tops.clear()
        del features, survey, known
        store.wanted = tracking.tracked(range(length), prompts)
        for index, masks in track_video(memory, store, length, prompts):
            yield _streamed(index, masks, size, index in prompts)


class _Survey(NamedTuple):
    """What the first reading of a video gives."""

    length: int
    vlm: Tensor
    sam: dict[int, Tensor]
    seg: list[int]


def _survey(
    source: VideoSource,
    views: VirstVideoProcessor,
    sam_view: SamView,
    broken: list[VideoError],
    length: int | None = None,
) -> _Survey:
    """Read the frames that are seen before tracking begins; of a video that breaks off, those of what can be read."""
    length = source.num_frames if length is None else length
    vlm, seg = _chosen_frames(length, source.is_image, views)
    small = torch.empty(len(vlm), 3, views.image_size, views.image_size)
    sam: dict[int, Tensor] = {}
    index = -1
    try:
        for index, frame in enumerate(islice(source, vlm[-1] + 1)):
            if index in vlm:
                image = Image.fromarray(frame)
                small[[row for row, wanted in enumerate(vlm) if wanted == index]] = views.vlm_view(image)
                if index in seg:
                    sam[index] = sam_view(image)
        if index < vlm[-1]:
            raise VideoError(f"{source.name} ends after {index + 1} frames; expected {length}.")
    except VideoError as error:
        if index < 0:
            raise
        # Without its traceback, which holds the frames that were read.
        broken[:] = [error.with_traceback(None)]
        del small, sam
        return _survey(source, views, sam_view, broken, index + 1)
    return _Survey(length, small, sam, seg)


def _chosen_frames(length: int, is_image: bool, views: VirstVideoProcessor) -> tuple[list[int], list[int]]:
    """Frames that the language model sees, and those of them that the fusions see."""
    vlm = [0]
    if not is_image:
        vlm = vlm_frame_indices(length, views.max_vlm_frames, views.frames_per_clip, views.min_frames)
    return vlm, [vlm[position] for position in seg_frame_positions(len(vlm), views.max_seg_frames)]


def _rows(processor: VirstProcessor, texts: Sequence[str], num_vlm_frames: int) -> list[Tensor]:
    """Ids of the prompts, without padding."""
    inputs = processor(text=list(texts), num_vlm_frames=[num_vlm_frames])
    return unpad_rows(inputs["input_ids"], inputs["attention_mask"])


def _streamed(index: int, masks: FrameMasks, size: tuple[int, int], is_anchor: bool) -> StreamedFrame:
    """Masks of a frame at the size of the video."""
    scores, ious = masks.object_scores.detach().cpu(), masks.iou_scores.detach().cpu()
    drawn = np.stack(list(iter_masks(masks.gated_logits, masks.object_scores, size)))
    return StreamedFrame(index, torch.from_numpy(drawn), scores, ious, is_anchor)


# --- windows ---------------------------------------------------------------------------------------------------------
def _windowed(
    model: "VirstForVideoSegmentation",
    frames: Iterable[np.ndarray],
    texts: list[str],
    processor: VirstProcessor,
    window: int,
    ahead: int,
    tracking: TrackingOptions,
    sam_view: SamView,
) -> Iterator[StreamedFrame]:
    num_frames = frames.num_frames if isinstance(frames, VideoSource) else None
    tracker = WindowTracker(model, processor, texts, tracking, num_frames)
    with closing(windows_of(model, frames, processor, window, ahead, sam_view=sam_view)) as parts:
        for part in parts:
            yield from tracker.segment(part)
            del part  # else it would be held while the next one is encoded


@torch.no_grad()
def windows_of(
    model: "VirstForVideoSegmentation",
    frames: Iterable[np.ndarray],
    processor: VirstProcessor,
    length: int = WINDOW,
    ahead: int = 8,
    start: int = 0,
    sam_view: SamView | None = None,
) -> Iterator[Window]:
    """Cut frames into windows and encode each. A source that breaks off gives its last frames, then the error.

    Args:
        model ([`VirstForVideoSegmentation`]): The model.
        frames (`Iterable[numpy.ndarray]`): `uint8` frames of shape `(height, width, 3)`, all of one size.
        processor ([`VirstProcessor`]): Of the model.
        length (`int`, *optional*, defaults to 128): Frames of a window; the last may be shorter.
        ahead (`int`, *optional*, defaults to 8): Frames that are read and resized ahead, in a thread.
        start (`int`, *optional*, defaults to 0): Index of the first frame.
        sam_view (`Callable`, *optional*): Makes the SAM view of a frame; the processor's own when not given.

    Yields:
        [`Window`]: The next window.

    Raises:
        VideoError: A frame cannot be read, or is of another size than the first.
    """
    views = processor.video_processor
    sam_view_of = views.sam_view if sam_view is None else sam_view

    def both(index: int, frame: np.ndarray) -> tuple[Tensor, Tensor, tuple[int, int]]:
        image = Image.fromarray(frame)
        return views.vlm_view(image), sam_view_of(image), frame.shape[:2]

    size: tuple[int, int] | None = None
    is_image = isinstance(frames, VideoSource) and frames.is_image
    with closing(read_ahead(frames, both, ahead)) as ready:
        broken: list[VideoError] = []
        while not broken:
            small, sam = [], []
            try:
                for vlm_view, view, found in islice(ready, length):
                    size = size or found
                    if found != size:
                        raise VideoError(
                            f"Frame {start + len(sam)} is {found} (height, width), those before it {size}."
                        )
                    small.append(vlm_view)
                    sam.append(view)
            except VideoError as error:
                broken.append(error.with_traceback(None))
            if sam:
                window = make_window(model, small, sam, views, start, size, is_image=is_image)
                start += len(sam)
                # The window has what it needs of them.
                del small, sam, vlm_view, view
                yield window
                del window
            elif not broken:
                return
        raise broken.pop()


def make_window(
    model: "VirstForVideoSegmentation",
    small: list[Tensor],
    sam: list[Tensor],
    views: VirstVideoProcessor,
    start: int,
    size: tuple[int, int],
    keep_frames: bool = False,
    is_image: bool = False,
) -> Window:
    """Encode the frames of a window, as a video of its own.

    Args:
        model ([`VirstForVideoSegmentation`]): The model.
        small (`list[torch.Tensor]`): VLM view of each frame.
        sam (`list[torch.Tensor]`): SAM view of each frame.
        views ([`VirstVideoProcessor`]): The processor that made them.
        start (`int`): Index of the first of them.
        size (`tuple[int, int]`): Height and width of the video.
        keep_frames (`bool`, *optional*, defaults to `False`): Encode and hold all frames, for any number of passes.
        is_image (`bool`, *optional*, defaults to `False`): Whether it is a still image.

    Returns:
        [`Window`]: The window. Unless all are held, its frames go through the SAM encoder when they are reached.
    """
    vlm, seg = _chosen_frames(len(small), is_image, views)
    store = FrameStore(model.model.segmenter, torch.stack(sam), range(len(sam)) if keep_frames else seg)
    features = VirstVideoFeatures(
        video_embeds=model.model.get_video_features(torch.stack([small[frame] for frame in vlm])),
        is_image=is_image,
        seg_features=store.seg_features(seg),
        seg_frame_indices=seg,
        num_frames=len(sam),
        frames=store,
        prefixes={} if keep_frames else None,
    )
    return Window(start, features, len(vlm), size)


class WindowTracker:
    """
    Expressions that are followed from window to window.

    Each window gives prompts and anchors of its own; anchors of the window before and the last frames stay in memory.

    Args:
        model ([`VirstForVideoSegmentation`]): The model.
        processor ([`VirstProcessor`]): Of the model.
        texts (`Sequence[str]`): The expressions.
        tracking ([`TrackingOptions`], *optional*): Ways to be faster.
        num_frames (`int`, *optional*): Frames of the whole, so far as they are known. When not given, object pointers
            reach back as far as ever, as in a long video.

    Example:

    ```python
    >>> import numpy as np
    >>> from virst_hf import WindowTracker, windows_of
    >>> from virst_hf.untrained import untrained_model, untrained_processor
    >>> model, processor = untrained_model(), untrained_processor()
    >>> tracker = WindowTracker(model, processor, ["the cat"])
    >>> windows = windows_of(model, np.zeros((7, 36, 48, 3), dtype=np.uint8), processor, length=4)
    >>> [[frame.index for frame in tracker.segment(window)] for window in windows]
    [[0, 1, 2, 3], [4, 5, 6]]

    ```
    """

    def __init__(
        self,
        model: "VirstForVideoSegmentation",
        processor: VirstProcessor,
        texts: Sequence[str],
        tracking: TrackingOptions = EXACT,
        num_frames: int | None = None,
    ) -> None:
        self.model, self.processor, self.texts = model, processor, list(texts)
        if num_frames is None:
            num_frames = model.config.segmenter_config.max_object_pointers
        self.memory: AnchorMemory = model.empty_memory(num_frames, tracking=tracking)
        self._last_start = 0

    def fork(self) -> "WindowTracker":
        """Another tracker in the same state. What one of them segments leaves the other as it is."""
        twin = copy.copy(self)
        twin.texts, twin.memory = list(self.texts), self.memory.fork()
        return twin

    @torch.no_grad()
    def segment(self, window: Window) -> Iterator[StreamedFrame]:
        """Segment the next window.

        Args:
            window ([`Window`]): The window; it begins where the last one ended.

        Yields:
            [`StreamedFrame`]: Each of its frames, in order.
        """
        video = window.features
        rows = _rows(self.processor, self.texts, window.num_vlm_frames)
        prompts = self.model.anchor_prompts(video, rows)
        self.memory.lengthen(window.start + video.num_frames)
        # Anchors of the last window are near the first frames of this one. Older ones never are again; but where
        # windows are short some are among the last frames, whose memories and pointers are in reach.
        reach = max(self.memory.pointer_reach, self.model.config.segmenter_config.num_maskmem - 1)
        oldest = min(self._last_start, window.start - reach)
        for anchor in [anchor for anchor in self.memory.anchors if anchor < oldest]:
            del self.memory.anchors[anchor]
        self._last_start = window.start
        video.frames.wanted = self.memory.options.tracked(range(video.num_frames), prompts)
        shifted = {window.start + frame: prompt for frame, prompt in prompts.items()}
        frames = range(window.start, window.start + video.num_frames)
        for index, found in track_frames(self.memory, lambda t: video.frames(t - window.start), frames, shifted):
            yield _streamed(index, found, window.size, index in shifted)

    def remove(self, index: int) -> None:
        """Follow an expression no longer.

        Args:
            index (`int`): Its place among `texts`.
        """
        del self.texts[index]
        kept = [row for row in range(len(self.texts) + 1) if row != index]
        for entry in (*self.memory.anchors.values(), *self.memory.recent.values()):
            entry.pointer = entry.pointer[kept]
            entry.tokens = None if entry.tokens is None else entry.tokens[:, kept]
