"""Expressions that name nothing in the video or image: was the answer "nothing"?"""

from typing import Any

import numpy as np

from ..errors import EvaluationError
from .masks import as_masks

__all__ = ["is_empty", "no_target_accuracy", "target_accuracy"]


def is_empty(masks: Any) -> bool:
    """Whether a prediction names nothing: every frame is empty. One pixel in one frame is an object.

    Args:
        masks (`array_like` of shape `(num_frames, height, width)` or `(height, width)`): Predicted masks.

    Returns:
        `bool`: True where no pixel is set.

    Raises:
        EvaluationError: The array holds no masks.
    """
    return not as_masks(masks, "prediction").any()


def no_target_accuracy(predicted_empty: Any, no_target: Any) -> float | None:
    """Share of the no-target expressions that were answered by empty masks, `TP / (TP + FN)`.

    With images this is N-acc of GRES (Liu et al., CVPR 2023).

    Args:
        predicted_empty (`array_like` of shape `(num_expressions,)`, `bool`): [`is_empty`] of each prediction.
        no_target (`array_like` of shape `(num_expressions,)`, `bool`): Whether the expression names nothing.

    Returns:
        `float` or `None`: In `[0, 1]`; `None` where no expression is without a target.

    Raises:
        EvaluationError: The two are not booleans of one length.

    Example:

    ```python
    >>> from virst_hf.metrics.no_target import no_target_accuracy, target_accuracy
    >>> predicted_empty, no_target = [True, False, False, True, False], [True, True, False, False, False]
    >>> no_target_accuracy(predicted_empty, no_target), round(target_accuracy(predicted_empty, no_target), 4)
    (0.5, 0.6667)

    ```
    """
    empty, absent = _flags(predicted_empty, no_target)
    return float(empty[absent].mean()) if absent.any() else None


def target_accuracy(predicted_empty: Any, no_target: Any) -> float | None:
    """Share of the expressions with a target that were answered by some mask (T-acc of GRES): the other side.

    A model that always answers "nothing" has a no-target accuracy of 1 and a target accuracy of 0.

    Args:
        predicted_empty (`array_like` of shape `(num_expressions,)`, `bool`): [`is_empty`] of each prediction.
        no_target (`array_like` of shape `(num_expressions,)`, `bool`): Whether the expression names nothing.

    Returns:
        `float` or `None`: In `[0, 1]`; `None` where no expression has a target.

    Raises:
        EvaluationError: The two are not booleans of one length.
    """
    empty, absent = _flags(predicted_empty, no_target)
    return float(1 - empty[~absent].mean()) if not absent.all() else None


def _flags(predicted_empty: Any, no_target: Any) -> tuple[np.ndarray, np.ndarray]:
    """The two as boolean arrays of one length."""
    flags = np.asarray(predicted_empty), np.asarray(no_target)
    # An empty list has the type float in numpy.
    flags = tuple(array.astype(bool) if not array.size else array for array in flags)
    if flags[0].ndim != 1 or flags[0].shape != flags[1].shape or any(array.dtype != bool for array in flags):
        raise EvaluationError(
            f"Expected one boolean an expression in both, found {flags[0].dtype} {flags[0].shape} and "
            f"{flags[1].dtype} {flags[1].shape}."
        )
    return flags
