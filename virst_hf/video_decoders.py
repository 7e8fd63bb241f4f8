"""Decoding of video files: decord where it is installed, PyAV for the rest. The only file that knows a decoder."""

import importlib.util
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError

from .errors import VideoError

__all__ = ["BACKENDS", "FileInfo", "decode_file", "probe_file"]

BACKENDS = ("decord", "pyav")
LOGGER = logging.getLogger(__name__)


class DecordError(VideoError):
    """decord breaks off in a file that it has opened; PyAV may still read it."""


@dataclass
class FileInfo:
    """What is known of a video file before it is decoded.

    Args:
        num_frames (`int`): Frames that will be shown.
        height (`int`): Pixels, rotation applied.
        width (`int`): Pixels, rotation applied.
        fps (`float`): Mean frames a second.
        frame_times (`list[float]`): Seconds from the first frame, ascending.
        quarter_turns (`int`): Counter-clockwise quarter turns to be applied to a decoded frame, 0 to 3.
    """

    num_frames: int
    height: int
    width: int
    fps: float
    frame_times: list[float]
    quarter_turns: int


def open_container(
    path: Path, options: dict[str, str] | None = None
) -> tuple[av.container.InputContainer, av.video.stream.VideoStream]:
    """Open a file and its first video stream; the caller closes the container."""
    try:
        container = av.open(str(path), container_options=options)
    except (FFmpegError, ValueError) as error:
        raise VideoError(
            f"{path} cannot be read as a video ({error}). Is it complete, and really a video file?"
        ) from error
    if not container.streams.video:
        container.close()
        raise VideoError(f"{path} holds no video stream.")
    return container, container.streams.video[0]


def probe_file(path: Path, allow_cut: bool = False) -> FileInfo:
    """Count the frames of a file and read their times, without decoding where the container can be trusted.

    Args:
        path (`pathlib.Path`): The file.
        allow_cut (`bool`, *optional*, defaults to `False`): Whether its end may be missing. Its frames are then those
            that the header promises, and decoding raises the error where they end.

    Returns:
        [`FileInfo`]: Count, size, times, rotation.

    Raises:
        VideoError: It is no video, is cut short, or has no frame.
    """
    container, stream = open_container(path)
    with container:
        promised = stream.frames  # 0 where the container does not say
        fps = float(stream.average_rate or stream.guessed_rate or 25)
        base = float(stream.time_base or 0)
        first = next(decode_with_pyav(path), None)
        if first is None:
            raise VideoError(f"{path} has no frame that can be decoded.")
        packets = read_packets(path, container, stream, allow_cut)
        times = [packet.pts * base for packet in packets if not packet.is_discard and packet.pts is not None]
        shown = sum(not packet.is_discard for packet in packets)
        if promised and len(packets) < promised:
            try:
                check_complete(path, promised)
            except VideoError:
                if not allow_cut:
                    raise
                shown = promised
    if not promised:
        # Streams without an index may hold packets that show no frame: only decoding tells.
        shown, times = sum(1 for _ in decode_with_pyav(path)), []
    turns = round(first.rotation / 90) % 4
    height, width = (first.width, first.height) if turns % 2 else (first.height, first.width)
    times = sorted(t - min(times) for t in times) if len(times) == shown else [i / fps for i in range(shown)]
    return FileInfo(shown, height, width, fps, times, turns)


def check_complete(path: Path, promised: int) -> None:
    """Raise unless the frames that the header promises are in the file, be they shown or not."""
    # A clip that was trimmed without a new encoding has an edit list that hides packets: count those too.
    container, stream = open_container(path, {"ignore_editlist": "1"})
    with container:
        held = len(read_packets(path, container, stream))
    if held < promised:
        raise VideoError(
            f"{path} is cut short: its header promises {promised} frames, the file holds {held}. Fetch or copy it "
            "again."
        )


def read_packets(
    path: Path, container: av.container.InputContainer, stream: av.video.stream.VideoStream, allow_cut: bool = False
) -> list:
    """All packets of a stream that hold data; those before the first that cannot be read, where a cut is allowed."""
    packets = []
    try:
        packets.extend(packet for packet in container.demux(stream) if packet.size)
    except FFmpegError as error:
        if not allow_cut:
            raise VideoError(f"{path} breaks off while it is read ({error}). Fetch or copy it again.") from error
    return packets


def decode_with_pyav(path: Path) -> Iterator[av.VideoFrame]:
    """Frames in the order in which they are shown."""
    container, stream = open_container(path)
    stream.thread_type = "AUTO"
    count = 0
    with container:
        try:
            for frame in container.decode(stream):
                yield frame
                count += 1
        except FFmpegError as error:
            raise VideoError(f"{path} cannot be decoded after {count} frames ({error}).") from error


def pyav_arrays(path: Path, info: FileInfo) -> Iterator[np.ndarray]:
    """RGB frames of PyAV, which leaves the rotation to its caller."""
    for frame in decode_with_pyav(path):
        array = frame.to_ndarray(format="rgb24")
        yield np.ascontiguousarray(np.rot90(array, info.quarter_turns)) if info.quarter_turns else array


def decord_arrays(path: Path, info: FileInfo) -> Iterator[np.ndarray] | None:
    """RGB frames of decord; `None` where it cannot open the file or counts other frames than PyAV."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
    except (decord.DECORDError, RuntimeError):
        return None
    if len(reader) != info.num_frames:
        return None
    return decord_frames(path, reader, info)


def decord_frames(path: Path, reader: object, info: FileInfo) -> Iterator[np.ndarray]:
    """Read a decord reader, which applies the rotation itself, to its end."""
    import decord

    for i in range(len(reader)):
        try:
            array = reader[i].asnumpy()
        except (decord.DECORDError, RuntimeError, IndexError) as error:
            raise DecordError(f"{path} cannot be decoded after {i} frames ({str(error).splitlines()[0]}).") from error
        if array.shape[-1] != 3:
            # A row that was padded for alignment is told as if it had more channels (seen on rotated files).
            array = array.reshape(info.height, -1)[:, : 3 * info.width].reshape(info.height, info.width, 3)
        yield array


def decode_file(path: Path, info: FileInfo, backend: str | None = None) -> Iterator[np.ndarray]:
    """Decode a file from its first frame to its last.

    Args:
        path (`pathlib.Path`): The file.
        info ([`FileInfo`]): What `probe_file` said of it.
        backend (`str`, *optional*):
            `"decord"` or `"pyav"`; by default decord where it is installed and takes the file.

    Yields:
        `numpy.ndarray` of shape `(height, width, 3)`: `uint8` RGB, upright.

    Raises:
        VideoError: The backend is unknown or not installed, or decoding ends before the last frame.
    """
    frames = None
    if backend not in (None, *BACKENDS):
        raise VideoError(f"There is no decoder {backend!r}; choose one of {', '.join(BACKENDS)}.")
    if backend != "pyav" and importlib.util.find_spec("decord") is not None:
        frames = decord_arrays(path, info)
    elif backend == "decord":
        raise VideoError("decord is not installed here; leave `backend` out to decode with PyAV.")
    if frames is None and backend == "decord":
        raise VideoError(f"decord does not take {path}; leave `backend` out to decode it with PyAV.")
    count = 0
    try:
        for frame in frames if frames is not None else pyav_arrays(path, info):
            yield frame
            count += 1
    except DecordError as error:
        if backend == "decord":
            raise
        # Some files are opened by decord but break off in it (transport streams, for one). PyAV reads on from there,
        # since both give equal frames, or says itself what is wrong with the file.
        LOGGER.debug("%s; going on with PyAV", error)
        for frame in islice(pyav_arrays(path, info), count, None):
            yield frame
            count += 1
    if count != info.num_frames:
        raise VideoError(
            f"{path} has {info.num_frames} frames by its index, but {count} could be decoded. The file is damaged or "
            "cut short: fetch or copy it again."
        )
