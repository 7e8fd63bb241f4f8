"""Refuses a checkpoint that does not fit its configuration.

Transformers fills tensors that a checkpoint lacks with random numbers, and leaves out those that it does not know,
both with a warning only. Masks from such a model look like masks, so here both are errors that list the names.
"""

from collections.abc import Iterable
from typing import Any

from .errors import CheckpointError

__all__ = ["check_loading_info"]

MOST_NAMES = 5


def check_loading_info(name: str, info: dict[str, Any]) -> None:
    """Fail on any name in what `from_pretrained(..., output_loading_info=True)` gives.

    Args:
        name (`str`): The checkpoint, for the message.
        info (`dict`): With `missing_keys`, `unexpected_keys` and `mismatched_keys`.

    Raises:
        CheckpointError: One of the three is not empty.
    """
    faults = []
    if info["missing_keys"]:
        faults.append(f"lacks {_listing(info['missing_keys'])}")
    if info["unexpected_keys"]:
        faults.append(f"has unknown {_listing(info['unexpected_keys'])}")
    if info["mismatched_keys"]:
        shapes = [f"{key} {tuple(found)} instead of {tuple(want)}" for key, found, want in info["mismatched_keys"]]
        faults.append(f"has other shapes in {_listing(shapes)}")
    if faults:
        raise CheckpointError(
            f"The checkpoint {name} does not fit its config.json: it {'; it '.join(faults)}. "
            "Convert it again, or correct the sizes in config.json (strict=False loads it as it is)."
        )


def _listing(names: Iterable[str]) -> str:
    """How many names there are, and the first few of them."""
    names = sorted(names)
    shown = ", ".join(names[:MOST_NAMES])
    rest = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''}: {shown}{rest}"
