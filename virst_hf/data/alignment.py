"""Do the masks of a clip lie on the things in its frames? A score for clips whose masks belong to other frames.

Many clips of ReVOS have masks of another time or place (VISA issues 9 and 18), and their lists are as long as those
of the others, so only the pixels can tell. The outline of a mask that fits lies on edges of the picture, and the
colours on its two sides differ; the same outline pushed aside loses both. So the outline is tried at all shifts of a
window, each frame votes for the shifts that fit it, and the median of the votes is taken: what is weak in one frame
remains at shift zero where masks fit, at another shift where they are displaced, and nowhere where they belong to
other times. A mask of another time fits, too, where nothing moves: such a clip is not found, and does no harm.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from scipy.signal import fftconvolve

from ..rle import decode_rle, rle_area

__all__ = ["THRESHOLD", "ClipScore", "clip_score", "sample_frames", "shift_votes"]

# Frames are scored at this length of their longer side: outlines are drawn by hand, finer detail says nothing.
WORK_SIZE = 256
# Shifts that are tried, in working pixels to each side, and those that count as none.
WINDOW = 40
TOLERANCE = 4
# Frames and targets of a clip that are looked at.
MAX_FRAMES = 8
MAX_TARGETS = 3
# Outlines shorter than this (working pixels) prove nothing.
MIN_OUTLINE = 24
# A shift may push this part of the outline out of the frame.
MAX_LOST = 0.5
# Colours are compared in bands of this width along the outline.
BAND = 5
# The best vote of one frame is partly chance, so what the frames have in common is measured against this part of it.
AGREEMENT = 0.5
# Clips that score less are reported; see `clip_score` for the scale and tests/test_doctor.py for what it separates.
THRESHOLD = 0.6


@dataclass(frozen=True)
class ClipScore:
    """
    How well the masks of a clip fit its frames.

    Args:
        score (`float`): Median vote of the frames for no shift (within 1.6 % of the frame's longer side) over the
            larger of that for the best shift and half of what single frames give to theirs. 1 and more: the masks
            fit; 0: they fit no better than anywhere else.
        shift (`tuple[float, float]`): The best shift, down and right, as part of the longer side of the frame.
        num_votes (`int`): Pairs of a frame and a target that were looked at.

    Example:

    ```python
    >>> from virst_hf.data.alignment import ClipScore
    >>> ClipScore(score=0.2, shift=(0.0, 0.1), num_votes=8).misaligned
    True

    ```
    """

    score: float
    shift: tuple[float, float]
    num_votes: int

    @property
    def misaligned(self) -> bool:
        """Whether the score is below the threshold."""
        return self.score < THRESHOLD


def sample_frames(masks: Sequence[Mapping[str, Any] | None], count: int = MAX_FRAMES) -> list[int]:
    """Frames of a target that are worth a look, spread over the clip.

    Args:
        masks (`Sequence[dict | None]`): The target in each frame, as RLE.
        count (`int`, *optional*): At most so many.

    Returns:
        `list[int]`: Indices of frames in which the target is present, in order.
    """
    present = [index for index, rle in enumerate(masks) if rle_area(rle)]
    if len(present) <= count:
        return present
    chosen = np.linspace(0, len(present) - 1, count).round().astype(int)
    return [present[index] for index in chosen]


def shift_votes(frame: np.ndarray, mask: np.ndarray) -> np.ndarray | None:
    """How much better the outline of a mask fits the frame at each shift than at the average shift.

    Args:
        frame (`numpy.ndarray` of shape `(height, width, 3)`, `uint8`): RGB frame.
        mask (`numpy.ndarray` of shape `(height, width)`, `bool`): Mask of a target in it.

    Returns:
        `numpy.ndarray` of shape `(81, 81)`, `float`, or `None`: Standard scores; the middle is no shift, axis 0 is
        down, axis 1 right, in pixels of a frame whose longer side is 256. `None` where the outline is too short.
    """
    scale = WORK_SIZE / max(mask.shape)
    size = (max(8, round(mask.shape[1] * scale)), max(8, round(mask.shape[0] * scale)))
    small = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) >= 0.5
    outline = _outline(small)
    if outline.sum() < MIN_OUTLINE:
        return None
    shrink = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    image = cv2.GaussianBlur(cv2.resize(frame, size, interpolation=shrink).astype(np.float32), (0, 0), 1.0)
    inside = _correlate(np.ones(small.shape, dtype=np.float32), outline)
    usable = inside >= (1 - MAX_LOST) * outline.sum()
    edges = _correlate(_edges(image), outline) / np.maximum(inside, 1)
    return _standard(edges, usable) + _standard(_colour_contrast(image, small, outline), usable)


def _outline(mask: np.ndarray) -> np.ndarray:
    """Pixels on both sides of the outline; where the mask is cut off by the border of the frame is no outline."""
    kernel = np.ones((3, 3), np.uint8)
    value = mask.astype(np.uint8)
    # The default border of OpenCV does not count, neither as mask nor as background.
    return (cv2.dilate(value, kernel) != cv2.erode(value, kernel)).astype(np.float32)


def _edges(image: np.ndarray) -> np.ndarray:
    """Strength of edges, as ranks from 0 to 1: a few glaring edges must not outweigh all others."""
    dx, dy = (cv2.Sobel(image, cv2.CV_32F, *order) for order in ((1, 0), (0, 1)))
    strength = np.sqrt(dx**2 + dy**2).max(-1)
    ranks = np.empty(strength.size, dtype=np.float32)
    ranks[np.argsort(strength, axis=None, kind="stable")] = np.linspace(0, 1, strength.size, dtype=np.float32)
    return ranks.reshape(strength.shape)


def _colour_contrast(image: np.ndarray, mask: np.ndarray, outline: np.ndarray) -> np.ndarray:
    """Difference of the mean colours on the two sides of the outline, at each shift."""
    near = cv2.dilate(outline, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * BAND + 1, 2 * BAND + 1))) > 0
    inner, outer = (near & mask).astype(np.float32), (near & ~mask).astype(np.float32)
    ones = np.ones(mask.shape, dtype=np.float32)
    areas = [np.maximum(_correlate(ones, band), 1) for band in (inner, outer)]
    distance = 0
    for channel in np.moveaxis(image, -1, 0):
        centred = channel - channel.mean()
        means = [_correlate(centred, band) / area for band, area in zip((inner, outer), areas, strict=True)]
        distance = distance + (means[0] - means[1]) ** 2
    return np.sqrt(distance)


def _correlate(values: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Sum of `values` under the shifted `kernel`, for all shifts of the window."""
    rows, columns = (np.flatnonzero(kernel.any(axis)) for axis in (1, 0))
    if not len(rows):
        return np.zeros((2 * WINDOW + 1, 2 * WINDOW + 1))
    top, left = rows[0], columns[0]
    cut = kernel[top : rows[-1] + 1, left : columns[-1] + 1]
    padded = np.pad(values, WINDOW)[
        top : top + cut.shape[0] + 2 * WINDOW,
        left : left + cut.shape[1] + 2 * WINDOW,
    ]
    return fftconvolve(padded, cut[::-1, ::-1], mode="valid")


def _standard(values: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Standard scores over the usable shifts; the others are average."""
    spread = values[usable].std()
    return np.where(usable, (values - values[usable].mean()) / max(spread, 1e-6), 0.0)


def clip_score(
    read_frame: Callable[[int], np.ndarray], targets: Sequence[Sequence[Mapping[str, Any] | None]]
) -> ClipScore | None:
    """Score a clip by its targets.

    Args:
        read_frame (`Callable[[int], numpy.ndarray]`): Gives the RGB frame of an index.
        targets (`Sequence[Sequence[dict | None]]`): Masks of some targets, an RLE or None for each frame.

    Returns:
        [`ClipScore`] or `None`: The score; `None` where no target is large enough to tell.
    """
    wanted: dict[int, list[Mapping[str, Any]]] = {}
    for masks in targets[:MAX_TARGETS]:
        for index in sample_frames(masks):
            wanted.setdefault(index, []).append(masks[index])
    votes = []
    for index, rles in sorted(wanted.items()):
        frame = read_frame(index)
        votes += [shift_votes(frame, decode_rle(rle, frame.shape[:2])) for rle in rles]
    votes = [vote for vote in votes if vote is not None]
    if not votes:
        return None
    stacked = np.stack(votes)
    near = slice(WINDOW - TOLERANCE, WINDOW + TOLERANCE + 1)
    # Medians: a few frames that fit by chance, as the first does where masks drift away in time, decide nothing.
    pooled = np.median(stacked, axis=0)
    here = float(pooled[near, near].max())
    elsewhere = float(np.median(stacked.max((1, 2))))
    best = np.array(np.unravel_index(pooled.argmax(), pooled.shape)) - WINDOW
    down, right = (round(float(step) / WORK_SIZE, 3) for step in best)
    return ClipScore(here / max(float(pooled.max()), elsewhere * AGREEMENT, 1e-6), (down, right), len(votes))
