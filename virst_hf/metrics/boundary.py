"""F, the boundary accuracy of DAVIS (Perazzi et al., CVPR 2016), computed on 64 pixels at a time.

The definition asks which boundary pixels of one mask lie in the other boundary dilated by a disk. A row of the disk is
a horizontal run, so the dilation is a union of shifted runs; and on masks packed to one bit a pixel a shift or a union
is one processor instruction for 64 pixels. The two maps are stacked, and cut to the words that hold a boundary, so the
result is exact: what is cut off is empty, and no pixel there is asked for.
"""

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from ..errors import EvaluationError
from .masks import mask_triple

__all__ = ["boundary_accuracy", "tolerance_radius"]

# Little-endian on every machine: the bit of the next pixel is the next higher one, across words as well.
WORD = np.dtype("<u8")
BITS = 64
# Operands of shifts: numpy takes an array of no dimension at once, and converts a number each time.
SHIFTS = [np.array(i, dtype=WORD) for i in range(BITS)]


def boundary_accuracy(prediction: Any, target: Any, ignore: Any = None, tolerance: float = 0.008) -> np.ndarray:
    """F per frame: the harmonic mean `2PR / (P + R)` of the precision and recall of boundary pixels.

    A pixel is on the boundary where it differs from its right, lower or lower-right neighbour inside the image. `P` is
    the share of the predicted boundary within a disk of [`tolerance_radius`] pixels of a true boundary pixel, `R` the
    reverse. F is 1 where both boundaries are empty, and 0 where one is. (A mask that fills the frame has no boundary.)

    Args:
        prediction (`array_like` of shape `(num_frames, height, width)` or `(height, width)`): Predicted masks,
            boolean or integer; whatever is not 0 is the object.
        target (`array_like`): Masks of the ground truth, of the same shape.
        ignore (`array_like`, *optional*): Pixels that are taken out of both masks before the boundaries (void).
        tolerance (`float`, *optional*, defaults to 0.008): Radius of the disk as a part of the frame's diagonal, in
            `[0, 1)`.

    Returns:
        `numpy.ndarray` of shape `(num_frames,)`, `float64`: F in `[0, 1]`.

    Raises:
        EvaluationError: An array holds no masks, the shapes differ, or the tolerance is out of range.

    Example:

    ```python
    >>> import numpy as np
    >>> from virst_hf.metrics.boundary import boundary_accuracy
    >>> target = np.zeros((1, 60, 80), dtype=bool)
    >>> target[0, 20:40, 20:60] = True
    >>> boundary_accuracy(np.roll(target, 1, axis=1), target).tolist()  # radius 1
    [1.0]
    >>> boundary_accuracy(np.roll(target, 30, axis=2), target).tolist() == [1.0]
    False

    ```
    """
    prediction, target, ignore = mask_triple(prediction, target, ignore)
    radius = tolerance_radius(target.shape[1:], tolerance)
    # Zeros between the pixels of two rows, so that no disk reaches from one row into the next.
    room = radius // BITS + 1
    scores = np.empty(len(target))
    for t in range(len(target)):
        maps = boundary_maps((prediction[t], target[t]), None if ignore is None else ignore[t], room)
        scores[t] = frame_score(maps, radius)
    return scores


def tolerance_radius(size: tuple[int, int], tolerance: float = 0.008) -> int:
    """Pixels by which two boundaries may differ: `ceil(tolerance * sqrt(height^2 + width^2))`.

    Args:
        size (`tuple[int, int]`): Height and width of the frame.
        tolerance (`float`, *optional*, defaults to 0.008): Part of the diagonal, in `[0, 1)`.

    Returns:
        `int`: The radius; 8 at 480 x 854.

    Raises:
        EvaluationError: The tolerance is out of range.
    """
    if not 0 <= tolerance < 1:
        raise EvaluationError(
            f"The tolerance is a part of the frame's diagonal, from 0 to below 1; found {tolerance}."
        )
    return math.ceil(tolerance * np.linalg.norm(size))


def boundary_maps(masks: Sequence[np.ndarray], ignore: np.ndarray | None, room: int) -> np.ndarray | None:
    """Boundary pixels of two masks `(height, width)`, packed to `(rows, 2, words)`, where any are.

    Every row begins with `room` words; they stay empty but for the last bit, the pixel left of the first word kept.
    `None` where both masks are empty.
    """
    height, width = masks[0].shape
    packed = packed_masks(masks, ignore, room)
    left, top, words, rows = cv2.boundingRect(((packed[:height, 0] | packed[:height, 1]) != 0).view(np.uint8))
    if not words:
        return None
    # A row more at both ends: a pixel above a mask is on its boundary, and the last row is compared with the next.
    columns = slice(left - room, left + words)
    packed = np.ascontiguousarray(packed[max(top - 1, 0) : top + rows + 1, :, columns])
    flat = packed.reshape(-1)
    right = flat >> SHIFTS[1]
    right[:-1] |= flat[1:] << SHIFTS[BITS - 1]
    right = right.reshape(packed.shape)
    here = packed[:-1]
    maps = here ^ right[:-1]
    maps |= here ^ packed[1:]
    maps |= here ^ right[1:]
    maps &= words_inside(width, room)[columns]
    return maps


def packed_masks(masks: Sequence[np.ndarray], ignore: np.ndarray | None, room: int) -> np.ndarray:
    """Masks `(height, width)` with one bit a pixel, `(height + 1, masks, room + words)`, without the ignored pixels.

    They are continued beyond their last row and column by a copy of them: then a pixel there differs from a neighbour
    exactly when the definition says so, which leaves the neighbours outside of the image out.
    """
    height, width = masks[0].shape
    packed = np.zeros((height + 1, len(masks), room + width // BITS + 1), dtype=WORD)
    rows = packed.view(np.uint8)[:height, :, room * (BITS // 8) :][..., : -(-width // 8)]
    for i, mask in enumerate(masks):
        rows[:, i] = np.packbits(mask, axis=1, bitorder="little")
    if ignore is not None:
        rows &= ~np.packbits(ignore, axis=1, bitorder="little")[:, None]
    last, beyond = width - 1, width
    copy = (packed[..., room + last // BITS] >> SHIFTS[last % BITS]) & SHIFTS[1]
    packed[..., room + beyond // BITS] |= copy << SHIFTS[beyond % BITS]
    packed[height] = packed[height - 1]
    return packed


def words_inside(width: int, room: int) -> np.ndarray:
    """The bits of a packed row `(room + words,)` that are pixels of the image."""
    inside = np.zeros(room + width // BITS + 1, dtype=WORD)
    inside[room:-1] = (1 << BITS) - 1
    inside[-1] = (1 << width % BITS) - 1
    return inside


def frame_score(maps: np.ndarray | None, radius: int) -> float:
    """F of two boundary maps `(rows, 2, words)`, the prediction's and the target's; `None` is no boundary at all."""
    num_predicted, num_true = (0, 0) if maps is None else (count(maps[:, 0]), count(maps[:, 1]))
    if not num_predicted or not num_true:
        return 1.0 if num_predicted == num_true else 0.0
    near = dilated(maps, radius)
    precision = count(maps[:, 0] & near[:, 1]) / num_predicted
    recall = count(maps[:, 1] & near[:, 0]) / num_true
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def count(packed: np.ndarray) -> int:
    """Number of bits that are set."""
    # OpenCV counts them with the processor's own instruction; numpy has bitwise_count from 2.0 on only.
    return int(cv2.norm(np.ascontiguousarray(packed).view(np.uint8).reshape(1, -1), cv2.NORM_HAMMING))


def dilated(maps: np.ndarray, radius: int) -> np.ndarray:
    """Packed maps `(rows, 2, words)`, each dilated by the disk `x^2 + y^2 <= radius^2`.

    Rows must begin with `radius` empty bits. What is set outside of the image by this has no meaning.
    """
    run, half = maps.reshape(-1), 0
    out = np.zeros_like(run)
    # Written in turns: new memory for every step would cost as much as the step.
    wider, spare, moved = np.empty((3, run.size), dtype=WORD)
    # From the tip of the disk to its middle row, the runs only grow.
    for dy in range(radius, -1, -1):
        width = math.isqrt(radius * radius - dy * dy)
        while half < width:
            # A run moved further than its own length would leave a gap.
            step = min(width - half, 2 * half + 1, BITS - 1)
            widen(run, step, wider, moved)
            if step > half:  # the two moved runs do not meet
                wider |= run
            run, wider, spare, half = wider, spare, wider, half + step
        if dy == 0:
            out |= run
        elif dy < len(maps):
            rows = dy * maps[0].size
            out[rows:] |= run[:-rows]
            out[:-rows] |= run[rows:]
    return out.reshape(maps.shape)


def widen(bits: np.ndarray, step: int, out: np.ndarray, scratch: np.ndarray) -> None:
    """Write to `out` the union of packed bits `(words,)` moved by `step` (1 to 63) pixels to the left and right."""
    here, across = SHIFTS[step], SHIFTS[BITS - step]
    np.left_shift(bits, here, out=out)
    np.right_shift(bits, here, out=scratch)
    out |= scratch
    np.right_shift(bits, across, out=scratch)
    out[1:] |= scratch[:-1]
    np.left_shift(bits, across, out=scratch)
    out[:-1] |= scratch[1:]
