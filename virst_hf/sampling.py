"""Which frames are seen, anchored and propagated: pure functions over indices (supplement Alg. 1 and Alg. 2)."""

import random
from collections.abc import Sequence

from .errors import VirstError

__all__ = [
    "bin_centres",
    "closest_anchors",
    "inference_anchors",
    "jittered_bins",
    "sample_training_frames",
    "seg_frame_positions",
    "vlm_frame_indices",
]


def bin_centres(length: int, num_bins: int) -> list[int]:
    """The frame at the centre of each of `num_bins` equal bins of a video: `floor((i + 0.5) * length / num_bins)`.

    Args:
        length (`int`): Number of frames, at least 1.
        num_bins (`int`): Number of bins, at least 1.

    Returns:
        `list[int]`: `num_bins` ascending indices in `[0, length)`.

    Raises:
        VirstError: `length` or `num_bins` is below 1.

    Example:

    ```python
    >>> from virst_hf.sampling import bin_centres
    >>> bin_centres(10, 4)
    [1, 3, 6, 8]

    ```
    """
    if length < 1 or num_bins < 1:
        raise VirstError(f"Frames and bins must be at least 1, but there are {length} frames and {num_bins} bins.")
    # Integer arithmetic: (i + 0.5) * length / num_bins without the rounding of a float.
    return [(2 * i + 1) * length // (2 * num_bins) for i in range(num_bins)]


def jittered_bins(length: int, num_bins: int, rng: random.Random) -> list[int]:
    """A frame at random from each of `num_bins` bins of a video: [`bin_centres`] with the jitter of training.

    The bins part the frames: each frame is in one bin, its centre among them, so that no frame is drawn twice.

    Args:
        length (`int`): Number of frames, at least `num_bins`.
        num_bins (`int`): Number of bins, at least 1.
        rng (`random.Random`): Source of randomness.

    Returns:
        `list[int]`: `num_bins` strictly ascending indices in `[0, length)`.

    Raises:
        VirstError: There are fewer frames than bins, or no bin.

    Example:

    ```python
    >>> import random
    >>> from virst_hf.sampling import bin_centres, jittered_bins
    >>> jittered_bins(100, 4, random.Random(0)), bin_centres(100, 4)
    ([12, 49, 63, 76], [12, 37, 62, 87])

    ```
    """
    if length < num_bins:
        raise VirstError(f"{num_bins} bins need at least as many frames, but there are {length}.")
    centres = bin_centres(length, num_bins)
    # Where bins are narrower than two frames, the centre of a bin may be the first frame behind it, counted in whole
    # frames; then the border moves behind that frame.
    starts = [0, *(max(i * length // num_bins, centres[i - 1] + 1) for i in range(1, num_bins)), length]
    return [rng.randrange(start, end) for start, end in zip(starts, starts[1:], strict=False)]


def vlm_frame_indices(
    num_frames: int,
    max_frames: int = 64,
    multiple: int = 4,
    min_frames: int = 8,
    rng: random.Random | None = None,
) -> list[int]:
    """The source frame of each frame that the language model sees: bin centres, or jittered in training.

    `T_vlm = min(max_frames, length)` rounded down to a multiple of the vision tower's clip. A video shorter than
    `min_frames` is padded to it by its last frame, so the last index repeats.

    Args:
        num_frames (`int`): Frames of the video, at least 1.
        max_frames (`int`, *optional*, defaults to 64): Most frames that the language model sees.
        multiple (`int`, *optional*, defaults to 4): Frames of one clip of the vision tower.
        min_frames (`int`, *optional*, defaults to 8): Length to which a shorter video is padded.
        rng (`random.Random`, *optional*): For training: a frame at random from each bin, see [`jittered_bins`].

    Returns:
        `list[int]`: `T_vlm` ascending indices in `[0, num_frames)`.

    Raises:
        VirstError: `num_frames` is below 1, or `max_frames` or `min_frames` below `multiple`.

    Example:

    ```python
    >>> from virst_hf.sampling import vlm_frame_indices
    >>> vlm_frame_indices(10), vlm_frame_indices(3)
    ([0, 1, 3, 4, 5, 6, 8, 9], [0, 1, 2, 2, 2, 2, 2, 2])

    ```
    """
    if num_frames < 1:
        raise VirstError(f"A video needs at least one frame, but this one has {num_frames}.")
    if min(max_frames, min_frames) < multiple:
        raise VirstError(
            f"max_frames ({max_frames}) and min_frames ({min_frames}) must hold a clip of {multiple} frames each."
        )
    length = max(num_frames, min_frames)
    num_vlm = min(max_frames, length) // multiple * multiple
    chosen = bin_centres(length, num_vlm) if rng is None else jittered_bins(length, num_vlm, rng)
    return [min(i, num_frames - 1) for i in chosen]


def seg_frame_positions(num_vlm: int, max_frames: int = 32) -> list[int]:
    """Positions, among the frames of the language model, of the `T_seg` frames that both fusions look at.

    Args:
        num_vlm (`int`): Frames of the language model, `T_vlm`.
        max_frames (`int`, *optional*, defaults to 32): Most frames that a fusion looks at.

    Returns:
        `list[int]`: `T_seg = min(max_frames, num_vlm)` ascending positions in `[0, num_vlm)`.
    """
    return bin_centres(num_vlm, min(max_frames, num_vlm))


def inference_anchors(num_seg: int, stride: int = 4) -> list[int]:
    """Anchor positions at inference (Alg. 2): `K = max(1, num_seg // stride)` of them, evenly over `0 .. num_seg - 1`.

    Args:
        num_seg (`int`): `T_seg`, at least 1.
        stride (`int`, *optional*, defaults to 4): One anchor for this many frames.

    Returns:
        `list[int]`: Ascending positions, `linspace(0, num_seg - 1, K)` rounded half to even.

    Example:

    ```python
    >>> from virst_hf.sampling import inference_anchors
    >>> inference_anchors(16), inference_anchors(3)
    ([0, 5, 10, 15], [0])

    ```
    """
    if num_seg < 1 or stride < 1:
        raise VirstError(f"num_seg and stride must be at least 1, found {num_seg} and {stride}.")
    count = max(1, num_seg // stride)
    if count == 1:
        return [0]
    anchors = []
    for i in range(count):
        quotient, remainder = divmod(i * (num_seg - 1), count - 1)
        twice = 2 * remainder
        up = twice > count - 1 or (twice == count - 1 and quotient % 2 == 1)
        anchors.append(quotient + int(up))
    return anchors


def closest_anchors(frame: int, anchors: Sequence[int], num_anchors: int) -> list[int]:
    """The anchors that a frame attends to (Alg. 2): the `num_anchors` nearest by `|k - t|`, ties to the earlier.

    Args:
        frame (`int`): The frame `t`.
        anchors (`Sequence[int]`): Anchor frames.
        num_anchors (`int`): Alpha; all anchors where there are fewer.

    Returns:
        `list[int]`: The chosen anchors, ascending.

    Example:

    ```python
    >>> from virst_hf.sampling import closest_anchors
    >>> closest_anchors(5, [0, 4, 6, 10], 3)
    [0, 4, 6]

    ```
    """
    return sorted(sorted(anchors, key=lambda k: (abs(k - frame), k))[:num_anchors])


def sample_training_frames(
    num_seg: int,
    num_anchors: int = 3,
    num_before: int = 2,
    num_propagation: int = 5,
    rng: random.Random | None = None,
) -> tuple[list[int], list[int]]:
    """Anchor and propagation frames of one training sample (Alg. 1).

    Args:
        num_seg (`int`): `T_seg`, at least 1.
        num_anchors (`int`, *optional*, defaults to 3): Alpha, the most anchors that are drawn.
        num_before (`int`, *optional*, defaults to 2): Frames before each anchor that are propagation frames.
        num_propagation (`int`, *optional*, defaults to 5): `n_prop`, frames after each anchor.
        rng (`random.Random`, *optional*): Source of randomness; the module's own generator when not given.

    Returns:
        `tuple[list[int], list[int]]`: Anchors and propagation frames, both ascending and without a common element.

    Example:

    ```python
    >>> import random
    >>> from virst_hf.sampling import sample_training_frames
    >>> anchors, propagation = sample_training_frames(32, rng=random.Random(0))
    >>> len(anchors), set(anchors) & set(propagation)
    (3, set())

    ```
    """
    if num_seg < 1 or num_anchors < 1:
        raise VirstError(f"num_seg and num_anchors must be at least 1, found {num_seg} and {num_anchors}.")
    draw = rng if rng is not None else random
    anchors = sorted(draw.sample(range(num_seg), min(num_anchors, num_seg)))
    near = {t for k in anchors for t in range(k - num_before, k + num_propagation + 1) if 0 <= t < num_seg}
    return anchors, sorted(near - set(anchors))
