"""The official protocol of Ref-DAVIS17: all expressions of one annotator together, objects matched to proposals.

The masks of a sequence's expressions are merged to one index map, as the benchmark stores them in palette PNG files,
and scored as the "unsupervised" task of DAVIS 2017 (Caelles et al., 2019): every proposal is compared with every
object, the best one-to-one assignment counts, and J and F are means over all frames. Numbers computed one expression
at a time, as papers on language models mostly do, are something else and lower.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from ..errors import EvaluationError
from .boundary import boundary_accuracy
from .masks import as_masks, check_sizes
from .region import region_similarity

__all__ = ["MAX_PROPOSALS", "VOID", "SequenceScores", "index_map", "match_objects", "num_first_frame_objects"]

VOID = 255
MAX_PROPOSALS = 20


class SequenceScores(NamedTuple):
    """Scores of the objects of one sequence.

    Args:
        j (`numpy.ndarray` of shape `(num_objects,)`): Mean J over all frames of each object, in `[0, 1]`.
        f (`numpy.ndarray` of shape `(num_objects,)`): Mean F over all frames of each object, in `[0, 1]`.
        proposals (`numpy.ndarray` of shape `(num_objects,)`): Index in the prediction's map of the proposal that was
            matched to each object, from 1; above the largest one in the map where an empty proposal was.
    """

    j: np.ndarray
    f: np.ndarray
    proposals: np.ndarray


def index_map(masks: Any) -> np.ndarray:
    """One map of object indices made of the hard masks of several objects; in an overlap the lowest index wins.

    The benchmark's own merging takes the largest soft score, and the first of equal ones: for hard masks that is the
    lowest index.

    Args:
        masks (`array_like` of shape `(num_objects, num_frames, height, width)` or `(num_objects, height, width)`):
            Masks, boolean or integer; at most 254 objects.

    Returns:
        `numpy.ndarray` of shape `(num_frames, height, width)` or `(height, width)`, `uint8`: 0 for the background, and
        `i + 1` where the object `i` is.

    Raises:
        EvaluationError: The array holds no masks, or too many objects.

    Example:

    ```python
    >>> import numpy as np
    >>> from virst_hf.metrics.davis import index_map
    >>> index_map(np.array([[[1, 1, 0, 0]], [[0, 1, 1, 0]]])).tolist()
    [[1, 1, 2, 0]]

    ```
    """
    masks = as_masks(masks, "stack of the objects' masks", dimensions=(3, 4))
    if not 0 < len(masks) < VOID:
        raise EvaluationError(f"An index map holds 1 to {VOID - 1} objects, found {len(masks)}.")
    indices = np.zeros(masks.shape[1:], dtype=np.uint8)
    for i in range(len(masks), 0, -1):
        indices[masks[i - 1]] = i
    return indices


def num_first_frame_objects(target: np.ndarray) -> int:
    """Objects of a sequence by the rule of DAVIS: the largest index in the first frame, void left out.

    Args:
        target (`numpy.ndarray` of shape `(num_frames, height, width)`, integer): Index maps of the ground truth.

    Returns:
        `int`: Number of objects; objects that appear later with a larger index are not scored.

    Raises:
        EvaluationError: There is no frame, or no object in the first one.
    """
    if not len(target):
        raise EvaluationError("The sequence has no frame.")
    first = target[0]
    number = int(np.max(first, where=first != VOID, initial=0))
    if not number:
        raise EvaluationError("The first frame of the sequence has no object, so there is nothing to score.")
    return number


def match_objects(prediction: Any, target: Any, tolerance: float = 0.008) -> SequenceScores:
    """J and F of every object of one sequence after the best assignment of proposals to objects.

    Void pixels (255 in the target) are removed from both. Proposals are the indices 1 to the largest in the
    prediction; where there are fewer than objects, empty ones are added. The assignment maximises the sum of
    `(J + F) / 2`, J and F being means over all frames, the first and the last included (Hungarian method).

    Args:
        prediction (`array_like` of shape `(num_frames, height, width)`, integer): Index maps, as [`index_map`] makes
            them.
        target (`array_like` of the same shape, integer): Index maps of the ground truth, 255 for void.
        tolerance (`float`, *optional*, defaults to 0.008): As in [`boundary_accuracy`].

    Returns:
        [`SequenceScores`]: J and F of each object, and which proposal it was given.

    Raises:
        EvaluationError: A map has no integers or another shape, has more than 20 proposals, or the first frame of the
            target has no object.

    Example:

    ```python
    >>> import numpy as np
    >>> from virst_hf.metrics.davis import match_objects
    >>> target = np.zeros((2, 8, 8), dtype=np.uint8)
    >>> target[:, :3], target[:, 5:] = 1, 2
    >>> scores = match_objects(np.choose(target, [0, 2, 1]), target)  # the two ids exchanged
    >>> scores.j.tolist(), scores.proposals.tolist()
    ([1.0, 1.0], [2, 1])

    ```
    """
    prediction, target = _indices(prediction, "prediction"), _indices(target, "target")
    check_sizes(prediction=prediction, target=target)
    num_objects = num_first_frame_objects(target)
    void = target == VOID
    ignore = void if void.any() else None
    num_proposals = int(prediction.max())
    if num_proposals > MAX_PROPOSALS:
        raise EvaluationError(f"A sequence may have {MAX_PROPOSALS} proposals, found an index of {num_proposals}.")
    scores = np.zeros((2, max(num_proposals, num_objects), num_objects))
    for i in range(scores.shape[1]):
        proposal = prediction == i + 1
        for j in range(num_objects):
            shape = target == j + 1
            scores[0, i, j] = region_similarity(proposal, shape, ignore).mean()
            scores[1, i, j] = boundary_accuracy(proposal, shape, ignore, tolerance).mean()
    rows, columns = linear_sum_assignment(scores.mean(axis=0), maximize=True)
    order = np.argsort(columns)
    rows, columns = rows[order], columns[order]
    return SequenceScores(scores[0, rows, columns], scores[1, rows, columns], rows + 1)


def _indices(maps: Any, name: str) -> np.ndarray:
    """Index maps `(num_frames, height, width)`, checked."""
    as_masks(maps, name, dimensions=(3,))
    array = np.asarray(maps)
    if array.dtype == bool:
        raise EvaluationError(f"The {name} must be a map of object indices, found booleans; make one with index_map.")
    if array.size and (array.min() < 0 or array.max() > VOID):
        raise EvaluationError(f"The {name} must hold indices of 0 to {VOID}, found {array.min()} to {array.max()}.")
    return array
