"""One call, two views of a video: a few frames for the language model, all frames for SAM."""

import functools
import math
import os
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from scipy import sparse
from torchvision.transforms.functional import pil_to_tensor, resize
from transformers.image_processing_utils import BatchFeature
from transformers.video_processing_utils import BaseVideoProcessor

from .errors import VirstError
from .sampling import seg_frame_positions, vlm_frame_indices
from .video_io import IMAGE_SUFFIXES, VideoSource, open_video

__all__ = ["VirstVideoProcessor"]

# A pixel and its eight neighbours.
AROUND = np.ones((3, 3), np.uint8)


class VirstVideoProcessor(BaseVideoProcessor):
    r"""
    Turns videos into the VLM view (a few frames, bicubic, normalised) and the SAM view (every frame, `uint8`).

    Args:
        image_size (`int`, *optional*, defaults to 448): Side of the VLM view, in pixels.
        sam_image_size (`int`, *optional*, defaults to 1024): Side of the SAM view, in pixels.
        image_mean (`list[float]`, *optional*, defaults to ImageNet's): Mean of the VLM view (0 to 1), per channel.
        image_std (`list[float]`, *optional*, defaults to ImageNet's): Standard deviation of the VLM view.
        max_vlm_frames (`int`, *optional*, defaults to 64): Most frames that the language model sees.
        max_seg_frames (`int`, *optional*, defaults to 32): Most frames that the fusions look at.
        frames_per_clip (`int`, *optional*, defaults to 4): Frames of one clip of the vision tower.
        min_frames (`int`, *optional*, defaults to 8): Length to which a shorter video is padded by its last frame.
        tokens_per_clip (`int`, *optional*, defaults to 64): Tokens of a clip (or a still image) in the prompt.

    Example:

    ```python
    >>> import numpy as np
    >>> from virst_hf import VirstVideoProcessor
    >>> processor = VirstVideoProcessor(image_size=64, sam_image_size=128)
    >>> views = processor(np.zeros((10, 48, 64, 3), dtype=np.uint8))
    >>> views["pixel_values_videos"].shape, views["sam_pixel_values"].shape
    (torch.Size([8, 3, 64, 64]), torch.Size([10, 3, 128, 128]))

    ```
    """

    model_input_names = [
        "pixel_values_videos",
        "num_vlm_frames",
        "sam_pixel_values",
        "num_frames",
        "seg_frame_indices",
        "num_seg_frames",
        "original_sizes",
    ]

    def __init__(
        self,
        image_size: int = 448,
        sam_image_size: int = 1024,
        image_mean: Sequence[float] = (0.485, 0.456, 0.406),
        image_std: Sequence[float] = (0.229, 0.224, 0.225),
        max_vlm_frames: int = 64,
        max_seg_frames: int = 32,
        frames_per_clip: int = 4,
        min_frames: int = 8,
        tokens_per_clip: int = 64,
        **kwargs: Any,
    ) -> None:
        super().__init__(image_mean=list(image_mean), image_std=list(image_std), **kwargs)
        self.image_size = image_size
        self.sam_image_size = sam_image_size
        self.max_vlm_frames = max_vlm_frames
        self.max_seg_frames = max_seg_frames
        self.frames_per_clip = frames_per_clip
        self.min_frames = min_frames
        self.tokens_per_clip = tokens_per_clip

    def preprocess(
        self, videos: Any, return_tensors: str | None = "pt", return_metadata: bool = False, **kwargs: Any
    ) -> BatchFeature:
        """Both views of one or several videos.

        Args:
            videos (`Any`): One video as [`open_video`] takes it, or a list of them. A list of images, of `(H, W, 3)`
                arrays or of image files is one video.
            return_tensors (`str`, *optional*, defaults to `"pt"`): Only `"pt"`: lengths differ, so frames of all
                videos stand one behind the other.
            return_metadata (`bool`, *optional*, defaults to `False`): Add `video_metadata`, a dictionary for each.
            **kwargs: Further keywords of Transformers' video processors; they have no effect and are refused.

        Returns:
            `BatchFeature`: `pixel_values_videos` `(sum of T_vlm, 3, image_size, image_size)` float32, normalised;
            `num_vlm_frames`; `sam_pixel_values` `(sum of T, 3, sam_image_size, sam_image_size)` `uint8`, which the
            model normalises; `num_frames`; `seg_frame_indices` `(sum of T_seg,)`; `num_seg_frames`; `original_sizes`
            `(num_videos, 2)`, height and width.

        Raises:
            VideoError: A video cannot be read.
            VirstError: An argument is unknown, or there is no video.
        """
        if return_tensors not in (None, "pt"):
            raise VirstError(f"return_tensors={return_tensors!r} is not supported; use 'pt'.")
        unknown = sorted(name for name, value in kwargs.items() if value is not None)
        if unknown:
            raise VirstError(f"VirstVideoProcessor does not know {', '.join(unknown)}; set sizes when it is made.")
        sources = self.open_videos(videos)
        views = [self.make_views(source) for source in sources]
        counts = ("num_vlm_frames", "num_frames", "num_seg_frames")
        data: dict[str, Any] = {}
        for name in self.model_input_names:
            values = [view[name] for view in views]
            if name in (*counts, "original_sizes"):
                data[name] = torch.tensor(values)
            else:
                # No second copy of the frames of a single video: they are the largest tensor by far.
                data[name] = values[0] if len(values) == 1 else torch.cat(values)
        if return_metadata:
            data["video_metadata"] = [self.metadata(source) for source in sources]
        return BatchFeature(data)

    def open_videos(self, videos: Any) -> list[VideoSource]:
        """One source for each video; see `preprocess` for what counts as one video."""
        if not isinstance(videos, list | tuple):
            return [open_video(videos)]
        if not videos:
            raise VirstError("There is no video: the list is empty.")
        if all(is_frame(item) for item in videos):
            return [open_video(list(videos))]
        return [open_video(item) for item in videos]

    def make_views(self, source: VideoSource) -> dict[str, Any]:
        """Both views of one video. Frames are resized as they come: none is held at its full size."""
        if source.is_image:
            vlm = [0]
        else:
            vlm = vlm_frame_indices(source.num_frames, self.max_vlm_frames, self.frames_per_clip, self.min_frames)
        # Filled in place: a list that is stacked at the end would hold all frames twice.
        rows = {frame: [row for row, index in enumerate(vlm) if index == frame] for frame in vlm}
        small = torch.empty(len(vlm), 3, self.image_size, self.image_size)
        sam = torch.empty(source.num_frames, 3, self.sam_image_size, self.sam_image_size, dtype=torch.uint8)
        for index, frame in enumerate(source):
            image = Image.fromarray(frame)
            sam[index] = self.sam_view(image)
            if index in rows:
                small[rows[index]] = self.vlm_view(image)
        seg = [vlm[position] for position in seg_frame_positions(len(vlm), self.max_seg_frames)]
        return {
            "pixel_values_videos": small,
            "num_vlm_frames": len(vlm),
            "sam_pixel_values": sam,
            "num_frames": len(sam),
            "seg_frame_indices": torch.tensor(seg),
            "num_seg_frames": len(seg),
            "original_sizes": [source.height, source.width],
        }

    def vlm_view(self, image: Image.Image) -> torch.Tensor:
        """One frame, bicubic and normalised, `(3, image_size, image_size)`."""
        small = image.resize((self.image_size, self.image_size), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.asarray(small).astype(np.float32) / 255).permute(2, 0, 1)
        mean, std = (torch.tensor(list(x))[:, None, None] for x in (self.image_mean, self.image_std))
        return (pixels - mean) / std

    def sam_view(self, image: Image.Image) -> torch.Tensor:
        """One frame, bilinear, `(3, sam_image_size, sam_image_size)` `uint8`; the model normalises it."""
        return pil_to_tensor(resize(image, [self.sam_image_size, self.sam_image_size]))

    def metadata(self, source: VideoSource) -> dict[str, Any]:
        """What is known of a video besides its pixels."""
        return {
            "name": source.name,
            "total_num_frames": source.num_frames,
            "fps": source.fps,
            "height": source.height,
            "width": source.width,
            "frame_times": list(source.frame_times),
            "is_image": source.is_image,
        }

    def num_video_tokens(self, num_vlm_frames: int) -> int:
        """Tokens of one video in the prompt.

        Args:
            num_vlm_frames (`int`): `T_vlm`; 1 for a still image.

        Returns:
            `int`: `tokens_per_clip` for each clip, and for a still image.
        """
        return max(1, num_vlm_frames // self.frames_per_clip) * self.tokens_per_clip

    def resize_masks(self, masks: Any) -> torch.Tensor:
        """Masks at the size of the SAM view, for training labels. Thin and small objects are kept.

        A pixel is object where at least half of the area it stands for is. Where the object is thinner than a pixel of
        the result (a pole, a string, a far-off player), a pixel that a line of one pixel would cross by half is set,
        too: a line stays in one piece, and no part of a mask vanishes. So the area of an object grows or shrinks by at
        most one pixel along its outline; a line comes out about one pixel wide, whatever its width was.

        Args:
            masks (`torch.Tensor` or `numpy.ndarray` of shape `(T, H, W)`): 0 and 1, or 0 and 255.

        Returns:
            `torch.BoolTensor` of shape `(T, sam_image_size, sam_image_size)`: Masks.

        Raises:
            VirstError: The masks have another number of axes, or no pixels.
        """
        masks = np.asarray(masks.detach().cpu() if isinstance(masks, torch.Tensor) else masks)
        if masks.ndim != 3 or 0 in masks.shape[1:]:
            raise VirstError(f"Masks have shape {tuple(masks.shape)}; expected (frames, height, width).")
        return torch.from_numpy(resize_binary(masks > 0, (self.sam_image_size, self.sam_image_size)))


# --- masks -----------------------------------------------------------------------------------------------------------
@functools.lru_cache(maxsize=16)
def overlaps(length: int, target: int) -> sparse.csr_matrix:
    """How much of each of `length` pixels lies in each of `target` pixels along one axis, in whole units.

    A pixel of the origin is `target / gcd` units long and one of the result `length / gcd`, so all is exact.
    """
    unit = math.gcd(length, target)
    old, new = target // unit, length // unit
    edges = np.union1d(np.arange(length + 1) * old, np.arange(target + 1) * new)
    starts, sizes = edges[:-1], np.diff(edges)
    entries = (sizes.astype(np.int64), (starts // new, starts // old))
    return sparse.csr_matrix(entries, shape=(target, length))


def box_area(mask: np.ndarray, rows: sparse.csr_matrix, columns: sparse.csr_matrix) -> np.ndarray:
    """Area of a mask in each pixel of the result, in the units of [`overlaps`]."""
    return (columns @ (rows @ mask.astype(np.int64)).T).T


def resize_binary(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The masks of `VirstVideoProcessor.resize_masks`, `(T, H, W)` to `(T, *size)`, all `bool`."""
    shape = masks.shape[1:]
    axes = [overlaps(old, new) for old, new in zip(shape, size, strict=True)]
    full = math.prod(old // math.gcd(old, new) for old, new in zip(shape, size, strict=True))
    crossed = full * min(1.0, size[0] / shape[0], size[1] / shape[1])
    resized = np.zeros((len(masks), *size), dtype=bool)
    for mask, target in zip(masks, resized, strict=True):
        extents = [np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0)]
        if not len(extents[0]):
            continue
        # Only the box around the object is looked at: most objects are small.
        box = tuple(slice(int(e[0]), int(e[-1]) + 1) for e in extents)
        place = tuple(
            slice(b.start * new // old, -(-b.stop * new // old)) for b, old, new in zip(box, shape, size, strict=True)
        )
        rows, columns = (axis[p, b] for axis, p, b in zip(axes, place, box, strict=True))
        area = box_area(mask[box], rows, columns)
        count, parts, stats, _ = cv2.connectedComponentsWithStats(mask[box].astype(np.uint8), connectivity=8)
        drawn = draw_area(area, full, crossed, count)
        if count > 2 or not drawn.any():
            keep_parts(drawn, parts, stats, rows, columns)
        target[place] = drawn
    return resized


def draw_area(area: np.ndarray, full: int, crossed: float, count: int) -> np.ndarray:
    """The pixels that are set, by the area of the object in each; `crossed` is the area of a line of one pixel.

    Besides those that are half full, a pixel that a line crosses by half is set, unless it lies beside a full one,
    where it is but the rim of something larger. Of two pixels that a line crosses side by side, it crosses one by
    half: so the line stays in one piece. Where the `count - 1` parts of a mask come to more pieces all the same
    (where a line leaves something larger, where pixels meet at a corner), less of a crossing is enough.
    """
    rim = cv2.dilate((area == full).astype(np.uint8), AROUND).astype(bool)
    for part in (2, 4, 8, 16):
        drawn = (2 * area >= full) | ((part * area >= crossed * (1 - 1e-9)) & ~rim)
        if join_pieces(drawn, area > 0, count):
            break
    return drawn


def join_pieces(drawn: np.ndarray, touched: np.ndarray, count: int) -> bool:
    """Set, in place, touched pixels between two pieces; whether there are fewer than `count` pieces at the end."""
    pieces, labels = cv2.connectedComponents(drawn.astype(np.uint8), connectivity=8)
    if pieces <= count:
        return True
    labels = labels.astype(np.float32)
    highest = cv2.dilate(labels, AROUND)
    lowest = cv2.erode(np.where(drawn, labels, np.float32(pieces)), AROUND)
    drawn |= touched & (highest > lowest)
    return cv2.connectedComponents(drawn.astype(np.uint8), connectivity=8)[0] <= count


def keep_parts(
    drawn: np.ndarray,
    parts: np.ndarray,
    stats: np.ndarray,
    rows: sparse.csr_matrix,
    columns: sparse.csr_matrix,
) -> None:
    """Set one pixel, in place, for each part of a mask of which nothing is drawn: the one that it fills most."""
    # A pixel of the origin is shown if a pixel of the result that it lies in is set.
    shown = box_area(drawn, rows.T, columns.T) > 0
    seen = np.bincount(parts[shown], minlength=len(stats))
    for number in np.flatnonzero(seen[1:] == 0) + 1:
        left, top, width, height = (int(n) for n in stats[number, :4])
        box = (slice(top, top + height), slice(left, left + width))
        share = box_area(parts[box] == number, rows[:, box[0]], columns[:, box[1]])
        drawn[np.unravel_index(share.argmax(), drawn.shape)] = True


def is_frame(item: Any) -> bool:
    """Whether an item of a list is one frame, so that the list is one video."""
    if isinstance(item, str | os.PathLike):
        return os.fspath(item).lower().endswith(IMAGE_SUFFIXES)
    shape = getattr(item, "shape", None)
    if shape is not None:
        return len(shape) == 2 or (len(shape) == 3 and (shape[-1] in (1, 3, 4) or shape[0] in (1, 3, 4)))
    return isinstance(item, Image.Image)
