"""How steady the masks of a video are from frame to frame, for which no ground truth is needed."""

from typing import Any

import numpy as np

from ..errors import EvaluationError
from .masks import as_masks
from .region import region_similarity

__all__ = ["temporal_consistency"]


def temporal_consistency(masks: Any) -> float:
    """Mean IoU of the masks of consecutive frames, `1 / (T - 1) * sum_t J(M_t, M_t+1)`, 1 for two empty masks.

    It says how much the mask flickers: an object lost for one frame costs two zeros. It is no measure of being right:
    a fixed wrong mask scores 1, and an object that moves, grows or leaves lowers it as flicker does. So set it beside
    the same number of the ground truth, or compare predictions of one video.

    Args:
        masks (`array_like` of shape `(num_frames, height, width)`): Masks of one video in temporal order, boolean or
            integer; whatever is not 0 is the object.

    Returns:
        `float`: In `[0, 1]`; 1 for a single frame.

    Raises:
        EvaluationError: The array holds no masks, or no frame.

    Example:

    ```python
    >>> import numpy as np
    >>> from virst_hf.metrics.stability import temporal_consistency
    >>> masks = np.zeros((5, 4, 6), dtype=bool)
    >>> masks[:, 1:3, 1:3] = True
    >>> masks[2] = False
    >>> temporal_consistency(masks)
    0.5

    ```
    """
    masks = as_masks(masks, "video", dimensions=(3,))
    if not len(masks):
        raise EvaluationError("The video has no frame.")
    return float(np.mean(region_similarity(masks[:-1], masks[1:]))) if len(masks) > 1 else 1.0
