"""Features of a video's frames: each frame is encoded once, only what is still needed is held."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import islice

import torch
from torch import Tensor

from ..frame_reader import LazyFrames
from .segmenter import FrameFeatures, VirstSegmenter

__all__ = ["FrameStore"]


class FrameStore:
    """
    Gives the SAM features of any frame of a video.

    Pinned frames (those that the fusions look at, anchors among them) are encoded at once and held. The others are
    encoded a few at a time when they are first asked for, and dropped when the next few are: asked in temporal order,
    each frame goes through the encoder once and what is held does not grow with the video.

    Args:
        segmenter ([`VirstSegmenter`]): The encoder.
        pixel_values (`torch.Tensor` of shape `(num_frames, 3, S, S)`, or [`LazyFrames`]): `uint8` frames.
        pinned (`Iterable[int]`): Frames to hold.
        detailed (`Iterable[int]`, *optional*):
            Pinned frames that will be decoded. The others keep their stride-16 map only. All when not given.
        batch_size (`int`, *optional*): Frames that go through the encoder together; `segmenter.frames_per_batch` when
            not given.
        release (`bool`, *optional*, defaults to `False`): Drop a pinned frame once it was given: for one pass only.
    """

    def __init__(
        self,
        segmenter: VirstSegmenter,
        pixel_values: Tensor | LazyFrames,
        pinned: Iterable[int],
        detailed: Iterable[int] | None = None,
        batch_size: int | None = None,
        release: bool = False,
    ) -> None:
        self.segmenter = segmenter
        self.pixel_values = pixel_values
        self.batch_size = segmenter.frames_per_batch if batch_size is None else batch_size
        self.release = release
        # Ascending frames that will be asked for; all of them when not set.
        self.wanted: Sequence[int] | None = None
        self.window: dict[int, FrameFeatures] = {}
        frames = sorted(set(pinned))
        self.given = set(frames)
        fine = set(frames if detailed is None else detailed)
        self.pinned = self.encode([i for i in frames if i in fine])
        self.tops: dict[int, Tensor] = {i: frame.top for i, frame in self.pinned.items()}
        with torch.no_grad():  # the stride-16 map comes from the frozen encoder alone
            rest = [i for i in frames if i not in fine]
            for start in range(0, len(rest), self.batch_size):
                part = rest[start : start + self.batch_size]
                self.tops.update({i: frame.top for i, frame in self.encode(part).items()})

    def __len__(self) -> int:
        return len(self.pixel_values)

    def encode(self, frames: Sequence[int]) -> dict[int, FrameFeatures]:
        """Encode the given frames, `batch_size` at a time."""
        out: dict[int, FrameFeatures] = {}
        for start in range(0, len(frames), self.batch_size):
            part = frames[start : start + self.batch_size]
            # Where a video breaks off, frames that are read ahead are fewer than were asked for.
            pixels = self.pixel_values[part]
            features = self.segmenter.encode_frames(pixels)
            out.update({frame: features[i] for i, frame in enumerate(part[: len(pixels)])})
        return out

    def seg_features(self, frames: Sequence[int]) -> Tensor:
        """Stride-16 maps of pinned frames, `(len(frames), C, S / 16, S / 16)`; a frame may repeat."""
        return torch.cat([self.tops[i] for i in frames])

    def __call__(self, index: int) -> FrameFeatures:
        """Features of one frame, of batch size 1."""
        if index in self.pinned:
            return self.pinned.pop(index) if self.release else self.pinned[index]
        if index not in self.window:
            behind = range(index + 1, len(self))
            if self.wanted is not None:
                behind = self.wanted[bisect_right(self.wanted, index) :]
            coming = (i for i in behind if i not in self.given)
            ahead = [index, *islice(coming, self.batch_size - 1)]
            self.window.clear()
            self.window.update(self.encode(ahead))
        return self.window[index]
