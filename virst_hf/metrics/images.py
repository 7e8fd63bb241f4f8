"""gIoU and cIoU of image sets, by the rules of LISA (Lai et al., CVPR 2024) for ReasonSeg and the RefCOCO family.

Both are functions of the two areas of each sample, which [`intersection_and_union`] in region.py gives (with the
pixels of label 255 as `ignore`): areas can be kept, gathered from several processes in any order, and scored again.
"""

from typing import Any

import numpy as np

from ..errors import EvaluationError

__all__ = ["c_iou", "g_iou"]


def g_iou(intersections: Any, unions: Any) -> float:
    """Mean over samples of `I / (U + 1e-5)`, 1 where `U` is 0 (nothing to find and nothing found).

    A sample with an empty target and any prediction scores 0.

    Args:
        intersections (`array_like` of shape `(num_samples,)`): `|P and G|` of each sample in pixels.
        unions (`array_like` of shape `(num_samples,)`): `|P or G|` of each sample in pixels.

    Returns:
        `float`: gIoU in `[0, 1]`.

    Raises:
        EvaluationError: There is no sample, or the areas cannot be right.

    Example:

    ```python
    >>> from virst_hf.metrics.images import c_iou, g_iou
    >>> round(g_iou([50, 0], [100, 0]), 4), round(c_iou([50, 0], [100, 0]), 4)
    (0.75, 0.5)

    ```
    """
    both, either = _areas(intersections, unions)
    return float(np.where(either == 0, 1.0, both / (either + 1e-5)).mean())


def c_iou(intersections: Any, unions: Any) -> float:
    """The cumulative IoU of a split, `sum I / (sum U + 1e-10)`: large objects weigh more.

    Args:
        intersections (`array_like` of shape `(num_samples,)`): `|P and G|` of each sample in pixels.
        unions (`array_like` of shape `(num_samples,)`): `|P or G|` of each sample in pixels.

    Returns:
        `float`: cIoU in `[0, 1]`; 0 where all masks are empty, which is LISA's rule.

    Raises:
        EvaluationError: There is no sample, or the areas cannot be right.
    """
    both, either = _areas(intersections, unions)
    return float(both.sum() / (either.sum() + 1e-10))


def _areas(intersections: Any, unions: Any) -> tuple[np.ndarray, np.ndarray]:
    """The areas as arrays, checked."""
    both, either = np.asarray(intersections), np.asarray(unions)
    if both.ndim != 1 or both.shape != either.shape:
        raise EvaluationError(f"Expected one intersection and one union a sample, found {both.shape}, {either.shape}.")
    if not len(both):
        raise EvaluationError("There is no sample to score.")
    if both.dtype.kind not in "iuf" or either.dtype.kind not in "iuf" or not ((0 <= both) & (both <= either)).all():
        raise EvaluationError("An intersection must be an area of at least 0 and at most that of the union.")
    return both.astype(np.float64), either.astype(np.float64)
