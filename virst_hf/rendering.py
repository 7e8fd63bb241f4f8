"""Drawing masks over frames, and writing mp4 and mask files so that a half-written file is never left behind."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .errors import VideoError, VirstError

__all__ = ["VideoWriter", "draw_overlay", "expression_color", "replacing", "write_json", "write_mask"]

# Eight colours that keep apart for most forms of colour blindness (after Okabe and Ito, the black left out).
COLORS = (
    (230, 85, 0),
    (0, 114, 178),
    (0, 158, 115),
    (240, 228, 66),
    (204, 102, 167),
    (86, 180, 233),
    (230, 159, 0),
    (160, 160, 160),
)
DEFAULT_FPS = 10.0


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary name beside `path` to write to, and move it to `path` once the block has ended well.

    Args:
        path (`str` or `os.PathLike`): The file that is to be written; its folder is made.

    Yields:
        `pathlib.Path`: The temporary file. It is removed when the block raises.

    Example:

    ```python
    >>> import tempfile
    >>> from virst_hf.rendering import replacing
    >>> path = Path(tempfile.mkdtemp()) / "note.txt"
    >>> with replacing(path) as temporary:
    ...     _ = temporary.write_text("done")
    >>> path.read_text()
    'done'

    ```
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays: Pillow and PyAV choose the format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Write `content` as JSON (UTF-8, no NaN), atomically.

    Args:
        path (`str` or `os.PathLike`): The file.
        content (`Any`): Anything that `json` can write.
    """
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def write_mask(path: str | os.PathLike, mask: np.ndarray) -> None:
    """Write a mask as a one-channel PNG of 0 and 255, atomically.

    Args:
        path (`str` or `os.PathLike`): The file, ending in `.png`.
        mask (`np.ndarray` of shape `(height, width)`): Boolean mask.

    Raises:
        VirstError: `mask` is not a boolean array with two axes.
    """
    if mask.dtype != np.bool_ or mask.ndim != 2:
        raise VirstError(f"A mask must be a boolean array (height, width), found {mask.dtype} of shape {mask.shape}.")
    with replacing(path) as temporary:
        Image.fromarray(mask.astype(np.uint8) * 255).save(temporary)


def expression_color(index: int) -> tuple[int, int, int]:
    """The RGB colour, 0 to 255, of expression `index`; after eight expressions the colours come again."""
    return COLORS[index % len(COLORS)]


def draw_overlay(
    frame: np.ndarray,
    masks: Sequence[np.ndarray],
    expressions: Sequence[str] = (),
    opacity: float = 0.5,
) -> np.ndarray:
    """Draw masks over a frame, each in its own colour with a solid outline, and name the colours in a corner.

    Args:
        frame (`np.ndarray` of shape `(height, width, 3)`): RGB frame, uint8.
        masks (`Sequence[np.ndarray]`): One boolean array of shape `(height, width)` for each expression.
        expressions (`Sequence[str]`, *optional*, defaults to `()`):
            The texts of the legend, in the order of the masks; no legend without them.
        opacity (`float`, *optional*, defaults to 0.5): Weight of the colour inside a mask, 0 to 1.

    Returns:
        `np.ndarray` of shape `(height, width, 3)`: A new RGB frame, uint8.

    Raises:
        VirstError: A mask has another size than the frame, or there are more expressions than masks or fewer.
    """
    if expressions and len(expressions) != len(masks):
        raise VirstError(f"The legend needs one expression per mask, found {len(expressions)} and {len(masks)} masks.")
    drawn = frame.astype(np.float32)
    for index, mask in enumerate(masks):
        if mask.shape != frame.shape[:2]:
            raise VirstError(f"Mask {index} has shape {mask.shape}, but the frame has {frame.shape[:2]}.")
        color = np.array(expression_color(index), dtype=np.float32)
        drawn[mask] += (color - drawn[mask]) * opacity
        drawn[_outline(mask)] = color
    image = Image.fromarray(drawn.round().astype(np.uint8))
    if expressions:
        _draw_legend(image, expressions)
    return np.array(image)


def _outline(mask: np.ndarray) -> np.ndarray:
    """Pixels of a mask with a 4-neighbour outside of it; the border of the frame is no outline."""
    inner = np.pad(mask, 1, mode="edge")
    return mask & ~(inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:])


def _draw_legend(image: Image.Image, expressions: Sequence[str]) -> None:
    """Write the expressions into the upper left corner of `image`, each behind a square of its colour."""
    size = max(10, min(28, image.height // 24))
    font = ImageFont.load_default(size)
    pad = size // 3
    draw = ImageDraw.Draw(image, "RGBA")
    room = image.width - size - 3 * pad
    texts = [_fit(text, draw, font, room) for text in expressions]
    width = 3 * pad + size + max(round(draw.textlength(text, font)) for text in texts)
    draw.rectangle((0, 0, width, pad + len(texts) * (size + pad)), fill=(0, 0, 0, 150))
    for index, text in enumerate(texts):
        top = pad + index * (size + pad)
        draw.rectangle((pad, top, pad + size - 1, top + size - 1), fill=expression_color(index))
        draw.text((2 * pad + size, top + size / 2), text, fill=(255, 255, 255), font=font, anchor="lm")


def _fit(text: str, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont, room: int) -> str:
    """`text` on one line, cut with dots where it is longer than `room` pixels; empty where nothing fits."""
    text = " ".join(text.split())
    if draw.textlength(text, font) <= room:
        return text
    while text and draw.textlength(text + "...", font) > room:
        text = text[:-1]
    return text + "..." if text else ""


class VideoWriter:
    """Writes RGB frames to an H.264 mp4 file, as a context manager; the file appears when the block has ended well.

    H.264 with 4:2:0 chroma has even sizes only: an odd height or width is padded by repeating its last row or column.

    Args:
        path (`str` or `os.PathLike`): The file, ending in `.mp4`.
        height (`int`): Height of the frames, in pixels.
        width (`int`): Width of the frames, in pixels.
        fps (`float`, *optional*, defaults to 10.0): Frames in a second; `None` is the default, too.
        crf (`int`, *optional*, defaults to 18): Quality of libx264, 0 (lossless) to 51 (worst).

    Raises:
        VideoError: The block has ended without a frame.

    Example:

    ```python
    >>> import tempfile
    >>> import numpy as np
    >>> from virst_hf.rendering import VideoWriter
    >>> path = Path(tempfile.mkdtemp()) / "black.mp4"
    >>> with VideoWriter(path, height=33, width=64) as writer:
    ...     writer.write(np.zeros((33, 64, 3), dtype=np.uint8))
    >>> path.exists()
    True

    ```
    """

    def __init__(
        self, path: str | os.PathLike, height: int, width: int, fps: float | None = DEFAULT_FPS, crf: int = 18
    ) -> None:
        self.path, self.height, self.width, self.crf = path, height, width, crf
        self.rate = Fraction(fps or DEFAULT_FPS).limit_denominator(1001)
        self.num_frames = 0
        self._stack = ExitStack()

    def write(self, frame: np.ndarray) -> None:
        """Add a frame.

        Args:
            frame (`np.ndarray` of shape `(height, width, 3)`): RGB frame, uint8.

        Raises:
            VideoError: The frame has another shape or type.
        """
        expected = (self.height, self.width, 3)
        if frame.shape != expected or frame.dtype != np.uint8:
            raise VideoError(f"Expected a uint8 frame of shape {expected}, found {frame.dtype} of {frame.shape}.")
        padded = np.pad(frame, ((0, self.height % 2), (0, self.width % 2), (0, 0)), mode="edge")
        for packet in self._stream.encode(av.VideoFrame.from_ndarray(padded, format="rgb24")):
            self._container.mux(packet)
        self.num_frames += 1

    def __enter__(self) -> "VideoWriter":
        with ExitStack() as stack:
            temporary = stack.enter_context(replacing(self.path))
            self._container = stack.enter_context(av.open(str(temporary), "w"))
            options = {"crf": str(self.crf), "preset": "fast"}
            self._stream = self._container.add_stream("libx264", rate=self.rate, options=options)
            self._stream.height, self._stream.width = self.height + self.height % 2, self.width + self.width % 2
            self._stream.pix_fmt = "yuv420p"
            # Only now: had one of these lines raised, the temporary file would be gone already.
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            if self.num_frames == 0:
                raise VideoError(f"No frame was written to {self.path}; a video needs at least one.")
            for packet in self._stream.encode():
                self._container.mux(packet)
