"""The batches of one step of the optimiser, of which only the next ones are in memory."""

from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

__all__ = ["StepBatches"]


class StepBatches:
    """
    The micro-batches of a step, read when they are needed.

    The Trainer of Transformers reads all of them, on the device, before the first forward pass, as it may have to
    count their tokens. Our loss is the mean of a batch's samples and counts nothing across batches; so 16 clips need
    not be in memory at once. The first batch is read at once: a loader draws the seed of its workers at its first one,
    and a run that is resumed takes its random states back after that.

    Args:
        batches (`Iterator`): Of the data loader; read on from where it stands.
        count (`int`): How many belong to the step; it has as many.

    Example:

    ```python
    >>> from virst_hf.training.step_batches import StepBatches
    >>> loader = iter("abcdef")
    >>> step = StepBatches(loader, 4)
    >>> len(step), next(loader), "".join(step)
    (4, 'b', 'acde')

    ```
    """

    def __init__(self, batches: Iterator[Any], count: int) -> None:
        first = list(islice(batches, 1))
        self._count = count if first else 0
        self._batches = chain(_given_away(first), islice(batches, count - 1))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Any]:
        return self._batches


def _given_away(batches: list[Any]) -> Iterator[Any]:
    """The batches of a list, which lets go of them."""
    while batches:
        yield batches.pop(0)
