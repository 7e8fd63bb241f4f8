"""Videos from wherever they are: file, folder of frames, array, tensor, list of images, or a still image.

A [`VideoSource`] gives its frames one at a time, any number of times, and never holds a file's frames all at once.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import VideoError
from .video_decoders import decode_file, probe_file

__all__ = ["IMAGE_FORMATS", "IMAGE_SUFFIXES", "VideoSource", "live_frames", "natural_key", "open_video"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
# Whatever a file is called, Pillow goes by its content, and for PostScript it would start Ghostscript.
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
DEFAULT_FPS = 25.0


@dataclass
class VideoSource:
    """
    The frames of a video, upright, `uint8` RGB of shape `(height, width, 3)`. Made by [`open_video`]; iterate over it
    as often as needed.

    Args:
        name (`str`): What it was opened from, for messages.
        num_frames (`int`): Frames, after start, end and stride.
        height (`int`): In pixels.
        width (`int`): In pixels.
        read (`Callable[[], Iterator[numpy.ndarray]]`): Reads all frames of the origin, before start, end and stride.
        fps (`float`, *optional*, defaults to 25.0): Frames a second, the stride taken into account.
        frame_times (`list[float]`, *optional*): Seconds of each frame since the first of the origin.
        is_image (`bool`, *optional*, defaults to `False`): Whether it is a still image.
        selection (`range`, *optional*): Frames of the origin that are given out; all when not given.

    Example:

    ```python
    >>> import numpy as np
    >>> from virst_hf import open_video
    >>> video = open_video(np.zeros((10, 48, 64, 3), dtype=np.uint8), stride=3)
    >>> video.num_frames, video.height, [frame.shape for frame in video][0]
    (4, 48, (48, 64, 3))

    ```
    """

    name: str
    num_frames: int
    height: int
    width: int
    read: Callable[[], Iterator[np.ndarray]]
    fps: float = DEFAULT_FPS
    frame_times: list[float] = field(default_factory=list)
    is_image: bool = False
    selection: range | None = None

    def __len__(self) -> int:
        return self.num_frames

    def __iter__(self) -> Iterator[np.ndarray]:
        if self.selection is None:
            yield from self.read()
            return
        wanted, last = set(self.selection), self.selection[-1]
        for index, frame in enumerate(self.read()):
            if index in wanted:
                yield frame
            if index == last:
                return

    def frames(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Some frames, in the order asked for; they are all held.

        Args:
            indices (`Sequence[int]`): Indices in `[0, num_frames)`.

        Returns:
            `list[numpy.ndarray]`: Frames.

        Raises:
            VideoError: An index is out of range.
        """
        indices = [int(i) for i in indices]
        if any(not 0 <= i < self.num_frames for i in indices):
            raise VideoError(f"{self.name} has frames 0 to {self.num_frames - 1}; asked for {indices}.")
        found: dict[int, np.ndarray] = {}
        for index, frame in enumerate(self):
            if index in indices:
                found[index] = frame
            if len(found) == len(set(indices)):
                break
        return [found[i] for i in indices]


def open_video(
    source: Any,
    *,
    start: int = 0,
    end: int | None = None,
    stride: int = 1,
    backend: str | None = None,
    allow_cut: bool = False,
) -> VideoSource:
    """Open a video.

    Args:
        source (`str`, `os.PathLike`, `numpy.ndarray`, `torch.Tensor`, `PIL.Image.Image`, `list` or `VideoSource`):
            A video file, a folder of frames (sorted by the last number in their names), an image file; an array or
            tensor of shape `(T, H, W, 3)`, `(T, 3, H, W)` or `(T, H, W)`, or `(H, W, 3)` or `(H, W)` for a still
            image, `uint8` or floats in [0, 1]; a PIL image; a list of images, arrays or image files. Grey and palette
            images become RGB; an alpha channel is dropped. With three axes, a last or first one of size 1, 3 or 4 is
            taken for channels: give a grey video of that many frames as `(T, H, W, 1)`. Rotation that a video or
            image file states is applied.
        start (`int`, *optional*, defaults to 0): First frame.
        end (`int`, *optional*): Frame to stop before; the end when not given.
        stride (`int`, *optional*, defaults to 1): Take every `stride`-th frame.
        backend (`str`, *optional*): `"decord"` or `"pyav"`, to force a decoder for a file.
        allow_cut (`bool`, *optional*, defaults to `False`): Open a file whose end is missing all the same, with as
            many frames as its header promises: the error comes when it is read, behind the last frame that is there.

    Returns:
        [`VideoSource`]: The frames.

    Raises:
        VideoError: It is missing, cannot be read, has no frame, or its frames do not fit together.
    """
    if isinstance(source, VideoSource):
        video = source
    elif isinstance(source, str | os.PathLike):
        video = _open_path(Path(source).expanduser(), backend, allow_cut)
    elif isinstance(source, Image.Image):
        video = _open_array(_image_array(source, "the image")[None], "the image", is_image=True)
    elif isinstance(source, list | tuple):
        video = _open_list(source)
    else:
        video = _open_tensor(source)
    return _select(video, start, end, stride)


def live_frames(source: Iterable[Any]) -> Iterator[np.ndarray]:
    """Frames of a live source, such as a camera, as they come.

    Args:
        source (`Iterable[Any]`): Frames: images, arrays or tensors, as in a list that [`open_video`] takes.

    Yields:
        `numpy.ndarray`: `uint8` RGB of shape `(height, width, 3)`.

    Raises:
        VideoError: The source raises an error, or gives something that is no frame.
    """
    frames = iter(source)
    for index in count():
        try:
            frame = next(frames, frames)
        except VideoError:
            raise
        # The source is the user's, and may raise anything; the frames before are still to be segmented.
        except Exception as error:
            raise VideoError(f"The live source gives no frame {index} ({type(error).__name__}: {error}).") from error
        if frame is frames:
            return
        yield _image_array(frame, f"frame {index} of the live source")


def _select(video: VideoSource, start: int, end: int | None, stride: int) -> VideoSource:
    """Keep some of the frames."""
    if (start, end, stride) == (0, None, 1):
        return video
    total = video.num_frames
    for name, value in (("start", start), ("end", end), ("stride", stride)):
        if not isinstance(value, Integral) and not (name == "end" and value is None):
            raise VideoError(f"{name} must be a whole number of frames, found {value!r}.")
    stop = total if end is None else min(end, total)
    if stride < 1 or start < 0 or start >= stop:
        raise VideoError(
            f"{video.name} has {total} frames; start {start}, end {end} and stride {stride} select none of them. "
            "Expected 0 <= start < end and stride >= 1."
        )
    origin = video.selection or range(total)
    selection = origin[start:stop:stride]
    return VideoSource(
        video.name,
        len(selection),
        video.height,
        video.width,
        video.read,
        fps=video.fps / stride,
        frame_times=video.frame_times[start:stop:stride],
        is_image=video.is_image,
        selection=selection,
    )


def natural_key(path: Path) -> tuple[float, str]:
    """Sort key of a frame file: the last number in its name, then the name."""
    numbers = re.findall(r"\d+", path.stem)
    return (int(numbers[-1]) if numbers else float("inf"), path.name)


def _is_frame_file(path: Path) -> bool:
    # macOS leaves "._00000.jpg" beside "00000.jpg" on foreign disks; it is no image.
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _open_path(path: Path, backend: str | None, allow_cut: bool) -> VideoSource:
    if path.is_dir():
        frames = sorted(filter(_is_frame_file, path.iterdir()), key=natural_key)
        if not frames:
            raise VideoError(f"The folder {path} holds no frames; expected files like 00000.jpg or 00000.png.")
        return _open_images(frames, str(path))
    if not path.exists():
        raise VideoError(f"There is no file or folder {path}.")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return _open_array(_image_array(path, str(path))[None], str(path), is_image=True)
    info = probe_file(path, allow_cut)
    return VideoSource(
        str(path),
        info.num_frames,
        info.height,
        info.width,
        lambda: decode_file(path, info, backend),
        fps=info.fps,
        frame_times=info.frame_times,
    )


def _open_list(items: Sequence[Any]) -> VideoSource:
    if not items:
        raise VideoError("The list of frames is empty; expected at least one image.")
    return _open_images(items, f"the list of {len(items)} frames")


def _open_images(items: Sequence[Any], name: str) -> VideoSource:
    """Frames that are read one at a time: files, PIL images or arrays."""
    height, width = _image_array(items[0], f"{name}, frame 0").shape[:2]

    def read() -> Iterator[np.ndarray]:
        for index, item in enumerate(items):
            frame = _image_array(item, f"{name}, frame {index}")
            if frame.shape[:2] != (height, width):
                raise VideoError(
                    f"The frames of {name} differ in size: {_label(items[0], 0)} is {width}x{height}, "
                    f"{_label(item, index)} is {frame.shape[1]}x{frame.shape[0]}. Expected one size for all."
                )
            yield frame

    return VideoSource(name, len(items), height, width, read, frame_times=_even_times(len(items)))


def _label(item: Any, index: int) -> str:
    return str(item) if isinstance(item, str | os.PathLike) else f"frame {index}"


def _even_times(num_frames: int) -> list[float]:
    return [i / DEFAULT_FPS for i in range(num_frames)]


def _open_tensor(source: Any) -> VideoSource:
    """An array or a tensor of any layout that is accepted."""
    source = _numpy(source)
    if not isinstance(source, np.ndarray):
        raise VideoError(
            f"A video cannot be made of {type(source).__name__}; expected a path, an array, a tensor, an image or a "
            "list of images."
        )
    array, shape = source, source.shape
    is_image = array.ndim == 2 or (array.ndim == 3 and (shape[-1] in (1, 3, 4) or shape[0] in (1, 3, 4)))
    if array.ndim == 3 and is_image and shape[-1] not in (1, 3, 4):
        array = np.moveaxis(array, 0, -1)
    elif array.ndim == 4 and shape[-1] not in (1, 3, 4) and shape[1] in (1, 3, 4):
        array = np.moveaxis(array, 1, -1)
    if is_image:
        array = array[None]
    if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[-1] not in (1, 3, 4)):
        raise VideoError(f"An array of shape {shape} is no video; expected (T, H, W, 3), (T, 3, H, W) or (T, H, W).")
    return _open_array(array, f"the array of shape {shape}", is_image)


def _open_array(array: np.ndarray, name: str, is_image: bool = False) -> VideoSource:
    if array.size == 0:
        raise VideoError(f"{name} has no frames or no pixels.")

    def read() -> Iterator[np.ndarray]:
        for index in range(len(array)):
            yield _rgb(array[index], f"{name}, frame {index}")

    times = _even_times(len(array))
    return VideoSource(name, len(array), *array.shape[1:3], read, frame_times=times, is_image=is_image)


def _image_array(item: Any, name: str) -> np.ndarray:
    """One frame of a list or folder as RGB."""
    if isinstance(item, str | os.PathLike):
        try:
            with Image.open(item, formats=IMAGE_FORMATS) as image:
                return _image_array(ImageOps.exif_transpose(image), str(item))
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError) as error:
            raise VideoError(f"The image {item} cannot be read ({error}).") from error
    if isinstance(item, Image.Image):
        if item.mode.startswith("I;16"):
            # Pillow would clip 16 bits to 8: keep the upper ones instead.
            return _rgb((np.asarray(item) >> 8).astype(np.uint8), name)
        if item.mode in ("I", "F"):
            raise VideoError(f"{name} has PIL mode {item.mode}, whose range is not known; expected 8 or 16 bits.")
        return np.asarray(item.convert("RGBA").convert("RGB") if "transparency" in item.info else item.convert("RGB"))
    item = _numpy(item)
    if not isinstance(item, np.ndarray):
        raise VideoError(f"{name} is a {type(item).__name__}; expected an image, an array or the path of an image.")
    if item.ndim == 3 and item.shape[-1] not in (1, 3, 4) and item.shape[0] in (1, 3, 4):
        item = np.moveaxis(item, 0, -1)
    return _rgb(item, name)


def _numpy(value: Any) -> Any:
    """A tensor as an array; anything else as it is."""
    if not hasattr(value, "detach"):
        return value
    value = value.detach().cpu()
    # NumPy has no bfloat16.
    return (value.float() if value.is_floating_point() and value.element_size() < 4 else value).numpy()


def _rgb(frame: np.ndarray, name: str) -> np.ndarray:
    """`uint8` RGB of one frame: grey is repeated, alpha dropped, floats in [0, 1] scaled."""
    if frame.ndim == 2:
        frame = frame[..., None]
    if frame.ndim != 3 or frame.shape[-1] not in (1, 3, 4) or 0 in frame.shape:
        raise VideoError(f"{name} has shape {frame.shape}; expected (height, width), or 1, 3 or 4 channels.")
    if np.issubdtype(frame.dtype, np.floating):
        low, high = float(frame.min()), float(frame.max())
        if not (low >= 0 and high <= 1):  # False for NaN as well
            raise VideoError(f"{name} has values from {low:g} to {high:g}; floats must lie in [0, 1].")
        frame = np.rint(frame * 255).astype(np.uint8)
    elif frame.dtype == bool:
        frame = frame.astype(np.uint8) * 255
    elif frame.dtype != np.uint8:
        raise VideoError(f"{name} has type {frame.dtype}; expected uint8, or floats in [0, 1].")
    frame = frame[..., :3]
    return np.ascontiguousarray(frame if frame.shape[-1] == 3 else np.repeat(frame, 3, axis=-1))
