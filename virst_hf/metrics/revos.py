"""Accuracy A and robustness R of ReVOS, as meant, and as the published numbers were computed.

R is from R2VOS (Li et al., ICCV 2023): how little of the prediction lies off the target, relative to the area of all
annotated objects. The script that ReVOS numbers are computed with reads predictions as they are stored in PNG files, 0
and 255, and never turns them to 0 and 1; a false pixel then counts 255 times. Published tables of R fit that scale, so
it is here under its own name, [`robustness_as_published`], and must not be set beside [`robustness`].
"""

from typing import Any

import numpy as np

from ..errors import EvaluationError
from .masks import as_masks, check_sizes

__all__ = ["accuracy", "accuracy_as_published", "robustness", "robustness_as_published"]

# Keeps the division defined where no object is annotated.
EPSILON = 1e-6


def accuracy(prediction: Any, target: Any) -> np.ndarray:
    """A per frame: the share of pixels, object or not, on which prediction and target agree.

    Args:
        prediction (`array_like` of shape `(num_frames, height, width)` or `(height, width)`): Predicted masks,
            boolean or integer; whatever is not 0 is the object.
        target (`array_like`): Masks of the ground truth, of the same shape.

    Returns:
        `numpy.ndarray` of shape `(num_frames,)`, `float64`: A in `[0, 1]`.

    Raises:
        EvaluationError: An array holds no masks, or the shapes differ.
    """
    prediction, target = _videos(prediction=as_masks(prediction, "prediction"), target=as_masks(target, "target"))
    return (prediction == target).mean(axis=(1, 2))


def robustness(prediction: Any, target: Any, foreground: Any) -> np.ndarray:
    """R per frame: `max(1 - |P and not G| / (|A| + 1e-6), 0)`, `A` being the union of all annotated objects.

    An empty prediction scores 1; a wrong one in a frame without any annotated object scores 0.

    Args:
        prediction (`array_like` of shape `(num_frames, height, width)` or `(height, width)`): Predicted masks,
            boolean or integer; whatever is not 0 is the object.
        target (`array_like`): The union of the masks of the expression's objects, of the same shape.
        foreground (`array_like`): The union of the masks of all objects of the video, of the same shape.

    Returns:
        `numpy.ndarray` of shape `(num_frames,)`, `float64`: R in `[0, 1]`.

    Raises:
        EvaluationError: An array holds no masks, or the shapes differ.

    Example:

    ```python
    >>> import numpy as np
    >>> from virst_hf.metrics.revos import robustness, robustness_as_published
    >>> target = np.array([[1, 1, 1, 1, 1, 0, 0, 0, 0, 0]], dtype=np.uint8)
    >>> prediction = np.array([[1, 1, 1, 1, 1, 1, 0, 0, 0, 0]], dtype=np.uint8)
    >>> robustness(prediction, target, target).round(6).tolist()
    [0.8]
    >>> robustness_as_published(prediction, target, target).tolist()
    [0.0]

    ```
    """
    prediction, target, foreground = _videos(
        prediction=as_masks(prediction, "prediction"),
        target=as_masks(target, "target"),
        foreground=as_masks(foreground, "foreground"),
    )
    return _robustness((prediction & ~target).sum(axis=(1, 2)), foreground)


def accuracy_as_published(prediction: Any, target_sum: Any) -> np.ndarray:
    """A per frame as the published script computes it: predictions of 0 and 255 compared with sums of masks.

    A pixel of the object never agrees (255 against 1), so only true background counts as right.

    Args:
        prediction (`array_like` of shape `(num_frames, height, width)` or `(height, width)`): Predicted masks, boolean
            or integer; whatever is not 0 is read as the 255 of the stored PNG file.
        target_sum (`array_like` of integers): In each pixel the number of the expression's objects that cover it, of
            the same shape.

    Returns:
        `numpy.ndarray` of shape `(num_frames,)`, `float64`: The number in `[0, 1]`.

    Raises:
        EvaluationError: An array holds no masks, or the shapes differ.
    """
    stored, target_sum = _as_stored(prediction, target_sum)
    return (stored == target_sum).mean(axis=(1, 2))


def robustness_as_published(prediction: Any, target_sum: Any, foreground: Any) -> np.ndarray:
    """R per frame as the published script computes it: `max(1 - sum((1 - G) * P) / (|A| + 1e-6), 0)` in 8 bits.

    `P` is 0 or 255, `G` the sum of the objects' masks, and the arithmetic that of unsigned bytes: a false pixel counts
    255 times, and where two objects overlap `1 - 2` wraps to 255, so that a right pixel counts as one false.

    Args:
        prediction (`array_like` of shape `(num_frames, height, width)` or `(height, width)`): Predicted masks, boolean
            or integer; whatever is not 0 is read as the 255 of the stored PNG file.
        target_sum (`array_like` of integers): In each pixel the number of the expression's objects that cover it, of
            the same shape.
        foreground (`array_like`): The union of the masks of all objects of the video, of the same shape.

    Returns:
        `numpy.ndarray` of shape `(num_frames,)`, `float64`: The number in `[0, 1]`.

    Raises:
        EvaluationError: An array holds no masks, or the shapes differ.
    """
    stored, target_sum = _as_stored(prediction, target_sum)
    (foreground,) = _videos(foreground=as_masks(foreground, "foreground"))
    check_sizes(prediction=stored, foreground=foreground)
    off_target = (np.uint8(1) - target_sum) * stored
    return _robustness(off_target.sum(axis=(1, 2), dtype=np.int64), foreground)


def _robustness(off_target: np.ndarray, foreground: np.ndarray) -> np.ndarray:
    """R of the area (or weight) of false pixels per frame `(num_frames,)`."""
    return np.maximum(1 - off_target / (foreground.sum(axis=(1, 2)) + EPSILON), 0.0)


def _as_stored(prediction: Any, target_sum: Any) -> tuple[np.ndarray, np.ndarray]:
    """Predictions as bytes of 0 and 255, and the counts of objects as bytes, both `(num_frames, height, width)`."""
    shown = as_masks(prediction, "prediction")
    as_masks(target_sum, "target")  # for its checks
    counts = np.asarray(target_sum)
    if counts.size and (counts.min() < 0 or counts.max() > 255):
        raise EvaluationError(
            f"The target must hold the number of objects in each pixel, 0 to 255; found {counts.min()} to "
            f"{counts.max()}."
        )
    shown, counts = _videos(prediction=shown, target=counts.astype(np.uint8))
    return shown.astype(np.uint8) * np.uint8(255), counts


def _videos(**arrays: np.ndarray) -> list[np.ndarray]:
    """The arrays as `(num_frames, height, width)`, checked to be of one shape."""
    check_sizes(**arrays)
    return [array if array.ndim == 3 else array[None] for array in arrays.values()]
