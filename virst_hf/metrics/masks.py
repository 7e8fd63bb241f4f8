"""What the metrics take as masks, and the checks that all of them share."""

from typing import Any

import numpy as np

from ..errors import EvaluationError

__all__ = ["as_masks", "check_sizes", "mask_triple"]

SHAPES = {2: "(height, width)", 3: "(num_frames, height, width)", 4: "(num_objects, num_frames, height, width)"}


def as_masks(masks: Any, name: str, dimensions: tuple[int, ...] = (2, 3)) -> np.ndarray:
    """Masks as booleans: whatever is not 0 belongs to the object, so that 0/1 and 0/255 are the same mask.

    Args:
        masks (`array_like` of shape `(num_frames, height, width)` or `(height, width)`, `bool` or integer): Masks.
        name (`str`): What they are, for the error.
        dimensions (`tuple[int, ...]`, *optional*, defaults to `(2, 3)`): Numbers of dimensions that are allowed.

    Returns:
        `numpy.ndarray` of the same shape, `bool`: The masks; the array itself where it was boolean.

    Raises:
        EvaluationError: It is no array of booleans or integers, has other dimensions, or no pixel.
    """
    try:
        array = np.asarray(masks)
    except ValueError as error:
        raise EvaluationError(f"The {name} is no array of masks: its frames differ in size.") from error
    if array.dtype.kind not in "bui":
        raise EvaluationError(
            f"The {name} must be masks of booleans or whole numbers, found {array.dtype}; compare scores with their "
            f"threshold first."
        )
    if array.ndim not in dimensions or 0 in array.shape[-2:]:
        expected = " or ".join(SHAPES[n] for n in dimensions)
        raise EvaluationError(f"The {name} must have the shape {expected}, found {array.shape}.")
    return array if array.dtype == bool else array != 0


def check_sizes(**arrays: np.ndarray) -> None:
    """Arrays have one shape.

    Args:
        **arrays (`numpy.ndarray`): The arrays by what they are.

    Raises:
        EvaluationError: Two shapes differ; the message holds all of them.
    """
    if len({array.shape for array in arrays.values()}) > 1:
        found = ", ".join(f"{name} {' x '.join(map(str, array.shape))}" for name, array in arrays.items())
        raise EvaluationError(f"Masks that are compared must have one size (frames x height x width), found: {found}.")


def mask_triple(prediction: Any, target: Any, ignore: Any = None) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Prediction, target and ignored pixels of a video as booleans of one shape `(num_frames, height, width)`.

    Args:
        prediction (`array_like`): Predicted masks, as [`as_masks`] takes them.
        target (`array_like`): Masks of the ground truth, of the same shape.
        ignore (`array_like`, *optional*): Pixels that count neither way, of the same shape.

    Returns:
        `tuple`: The three, `ignore` being `None` where it was not given.

    Raises:
        EvaluationError: An array holds no masks, or the shapes differ.
    """
    arrays = {"prediction": as_masks(prediction, "prediction"), "target": as_masks(target, "target")}
    if ignore is not None:
        arrays["ignore"] = as_masks(ignore, "ignore map")
    check_sizes(**arrays)
    frames = [array if array.ndim == 3 else array[None] for array in arrays.values()]
    return frames[0], frames[1], frames[2] if ignore is not None else None
