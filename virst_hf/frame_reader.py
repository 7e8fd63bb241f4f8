"""Frames that are read when they are needed, a few ahead in a thread, so that decoding and encoding overlap."""

import queue
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from .errors import VideoError, VirstError

__all__ = ["LazyFrames", "pinned_copies", "read_ahead"]

T = TypeVar("T")
# Seconds between two looks at whether the reader is still wanted, and that its end is waited for.
PATIENCE, FAREWELL = 0.1, 5.0


def read_ahead(source: Iterable[np.ndarray], make: Callable[[int, np.ndarray], T], ahead: int) -> Iterator[T]:
    """What `make` gives for each frame, made in a thread up to `ahead` frames before it is asked for.

    The thread ends with the source, with an error, which is raised here after what was read before it, or when this
    generator is closed.

    Args:
        source (`Iterable[numpy.ndarray]`): Frames.
        make (`Callable`): Of the index of a frame, and the frame.
        ahead (`int`): How many are made ahead, at least 1.

    Yields:
        `T`: What was made of each frame, in order.
    """
    done = object()
    made: queue.Queue = queue.Queue(max(1, ahead))
    stop = threading.Event()

    def put(item: object) -> bool:
        while not stop.is_set():
            try:
                made.put(item, timeout=PATIENCE)
                return True
            except queue.Full:
                continue
        return False

    def run() -> None:
        try:
            # zip would read one frame more than is wanted.
            for index, frame in zip(count(), source, strict=False):
                if not put((make(index, frame), None)):
                    return
            put((done, None))
        # Whatever it is, it is raised where the frame is asked for: there somebody waits, for ever without it.
        except BaseException as error:
            put((done, error))

    thread = threading.Thread(target=run, name="virst frames", daemon=True)
    thread.start()
    try:
        while True:
            value, error = made.get()
            if error is not None:
                try:
                    raise error
                finally:
                    # Its traceback holds this frame: a circle, which would keep tensors until it is collected.
                    del error
            if value is done:
                return
            yield value
    finally:
        stop.set()
        # A live source may keep the thread waiting for its next frame; it is a daemon and ends with that.
        thread.join(FAREWELL)


def pinned_copies(view: Callable[[T], Tensor], device: torch.device) -> Callable[[T], Tensor]:
    """A view that is on a CUDA device when it is needed: the thread that reads copies it there from pinned memory.

    Args:
        view (`Callable`): Makes a tensor of a frame, on the CPU.
        device (`torch.device`): Where the model is.

    Returns:
        `Callable`: Makes the same tensor on `device`; the copy may still be on its way, which later work waits for.

    Raises:
        VirstError: The device is not CUDA.
    """
    if device.type != "cuda":
        raise VirstError(f"Pinned memory needs a model on CUDA; this one is on {device}. Leave `pinned` out.")
    return lambda frame: view(frame).pin_memory().to(device, non_blocking=True)


class LazyFrames:
    """
    Frames of a video, resized, in their order. Only those that were read ahead are held.

    Args:
        source (`Iterable[numpy.ndarray]`): The frames, `uint8` of shape `(height, width, 3)`.
        resize (`Callable`): Makes a tensor of `(3, S, S)` of a frame.
        num_frames (`int`): How many there are.
        known (`dict[int, torch.Tensor]`, *optional*): Frames that are there already. They may be asked for at any
            time, once, and are not resized again.
        ahead (`int`, *optional*, defaults to 8): Most frames that are read ahead, at least 1.
        wanted (`Collection[int]`, *optional*): Frames that will be asked for; the others are read, but not resized.
            All of them when not given.

    Example:

    ```python
    >>> import numpy as np, torch
    >>> from virst_hf.frame_reader import LazyFrames
    >>> video = [np.full((4, 4, 3), i, dtype=np.uint8) for i in range(5)]
    >>> with LazyFrames(video, lambda frame: torch.from_numpy(frame).permute(2, 0, 1), 5) as frames:
    ...     frames[[0, 1]].shape, int(frames[[4]].max())
    (torch.Size([2, 3, 4, 4]), 4)

    ```
    """

    def __init__(
        self,
        source: Iterable[np.ndarray],
        resize: Callable[[np.ndarray], Tensor],
        num_frames: int,
        known: Mapping[int, Tensor] | None = None,
        ahead: int = 8,
        wanted: Collection[int] | None = None,
    ) -> None:
        self.num_frames = num_frames
        self.known = dict(known or {})
        skipped, needed = frozenset(self.known), range(num_frames) if wanted is None else frozenset(wanted)

        def view(index: int, frame: np.ndarray) -> tuple[int, Tensor | None]:
            return index, resize(frame) if index in needed and index not in skipped else None

        self._frames = read_ahead(source, view, ahead)
        self._next = 0
        # Only what the error said: its traceback would hold whatever the caller holds.
        self._broken: str | None = None

    def __len__(self) -> int:
        return self.num_frames

    def __enter__(self) -> "LazyFrames":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getitem__(self, frames: Sequence[int]) -> Tensor:
        """Some frames; those that are not known, later than any that were asked for before.

        Args:
            frames (`Sequence[int]`): Ascending indices.

        Returns:
            `torch.Tensor` of shape `(len(frames), 3, S, S)`: The frames; fewer, at least one, where a later one of
            them cannot be read. The next call then raises.

        Raises:
            VideoError: The first of them cannot be read, or was passed already.
        """
        found: list[Tensor] = []
        for frame in frames:
            try:
                found.append(self.known.pop(frame) if frame in self.known else self._read_to(frame))
            except VideoError:
                if not found:
                    raise
                break
        return torch.stack(found)

    def close(self) -> None:
        """End the thread, and drop what it has read."""
        self._frames.close()
        self.known.clear()

    def _read_to(self, frame: int) -> Tensor:
        """Read on to a frame; the error of a frame is raised whenever a frame behind it is asked for."""
        if self._broken is not None:
            raise VideoError(self._broken)
        if frame < self._next:
            raise VideoError(f"Frame {frame} was passed already; the next one is {self._next}.")
        try:
            for index, value in self._frames:
                self._next = index + 1
                if index == frame:
                    if value is None:
                        raise VideoError(f"Frame {frame} is not among those that were to be asked for.")
                    return value
            raise VideoError(f"The video ends after {self._next} frames; expected {self.num_frames}.")
        except VideoError as error:
            self._broken = str(error)
            raise
