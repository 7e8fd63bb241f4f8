"""J, the region similarity of DAVIS: intersection over union of every frame (Perazzi et al., CVPR 2016)."""

from typing import Any

import numpy as np

from .masks import mask_triple

__all__ = ["intersection_and_union", "region_similarity"]


def intersection_and_union(prediction: Any, target: Any, ignore: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Pixels in both masks and in either, per frame.

    Args:
        prediction (`array_like` of shape `(num_frames, height, width)` or `(height, width)`): Predicted masks,
            boolean or integer; whatever is not 0 is the object.
        target (`array_like`): Masks of the ground truth, of the same shape.
        ignore (`array_like`, *optional*): Pixels that are removed from both, of the same shape.

    Returns:
        `tuple[numpy.ndarray, numpy.ndarray]`: `|P and G|` and `|P or G|`, `int64` of shape `(num_frames,)`.

    Raises:
        EvaluationError: An array holds no masks, or the shapes differ.
    """
    prediction, target, ignore = mask_triple(prediction, target, ignore)
    counts = np.zeros((2, len(target)), dtype=np.int64)
    # One frame at a time: it stays in the cache, and the counting of whole booleans is the fast one.
    for t, (p, g) in enumerate(zip(prediction, target, strict=True)):
        if ignore is not None:
            p, g = p & ~ignore[t], g & ~ignore[t]
        both = np.count_nonzero(p & g)
        counts[:, t] = both, np.count_nonzero(p) + np.count_nonzero(g) - both
    return counts[0], counts[1]


def region_similarity(prediction: Any, target: Any, ignore: Any = None) -> np.ndarray:
    """J per frame, `|P and G| / |P or G|`, and 1 where both masks are empty.

    Args:
        prediction (`array_like` of shape `(num_frames, height, width)` or `(height, width)`): Predicted masks,
            boolean or integer; whatever is not 0 is the object.
        target (`array_like`): Masks of the ground truth, of the same shape.
        ignore (`array_like`, *optional*): Pixels that are removed from both (void), of the same shape.

    Returns:
        `numpy.ndarray` of shape `(num_frames,)`, `float64`: J in `[0, 1]`.

    Raises:
        EvaluationError: An array holds no masks, or the shapes differ.

    Example:

    ```python
    >>> import numpy as np
    >>> from virst_hf.metrics.region import region_similarity
    >>> target = np.zeros((2, 4, 6), dtype=bool)
    >>> target[0, :2] = True
    >>> prediction = np.zeros_like(target)
    >>> prediction[0, :1] = True
    >>> region_similarity(prediction, target).tolist()
    [0.5, 1.0]

    ```
    """
    both, either = intersection_and_union(prediction, target, ignore)
    return np.where(either == 0, 1.0, both / np.maximum(either, 1))
