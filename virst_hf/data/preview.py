"""Contact sheets: a few expressions of a data set with their masks drawn, to see at a glance whether all fits."""

import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..errors import DataError
from ..rendering import draw_overlay, replacing
from ..rle import decode_rle
from ..video_io import open_video
from .builder import raise_problem
from .catalog import make_builder
from .files import read_image

if TYPE_CHECKING:
    from .builder import VirstDatasetBuilder

__all__ = ["contact_sheet", "pick_rows", "write_preview"]

SUFFIXES = (".jpg", ".jpeg", ".png")
BACKGROUND, INK = (255, 255, 255), (20, 20, 20)
FONT_SIZE = 14
GAP = 6
# Lines of text above the frames of an expression.
MAX_LINES = 3


def pick_rows(builder: "VirstDatasetBuilder", split: str, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Some records of a split, each of another video as long as there are enough.

    Args:
        builder ([`VirstDatasetBuilder`]): The data set.
        split (`str`): One of its splits.
        count (`int`): Number of records, at least 1.
        seed (`int`, *optional*, defaults to 0): Another seed gives others.

    Returns:
        `list[dict]`: At most `count` records.

    Raises:
        DataError: The split has no record, or has a defect.
    """
    if count < 1:
        raise DataError(f"A preview needs at least 1 expression, found {count}.")
    rng = random.Random(seed)
    units = builder.units(builder.root, split, raise_problem)
    first, later = [], []
    for unit in rng.sample(units, len(units)):
        if len(first) == count:
            break
        rows = list(builder.rows(builder.root, split, [unit], raise_problem))
        rng.shuffle(rows)
        first += rows[:1]
        later += rows[1:count]
    if not first:
        raise DataError(f"Split {split} of {builder.NAME} under {builder.root} has no expressions to show.")
    return (first + later)[:count]


def contact_sheet(rows: Sequence[Mapping[str, Any]], columns: int = 5, tile_width: int = 240) -> np.ndarray:
    """Draw records below one another: a text, and frames spread over the clip from left to right.

    Args:
        rows (`Sequence[Mapping]`): Records.
        columns (`int`, *optional*, defaults to 5): Frames of each record, fewer for a shorter clip.
        tile_width (`int`, *optional*, defaults to 240): Width of a frame on the sheet, in pixels.

    Returns:
        `numpy.ndarray` of shape `(height, width, 3)`, `uint8`: RGB. Targets are orange, ignored pixels blue.

    Raises:
        DataError: A frame cannot be read, or a mask does not fit it.
        VideoError: A video cannot be read.
    """
    width = GAP + columns * (tile_width + GAP)
    strips = [strip for row in rows for strip in (_caption(row, width), _frames(row, columns, tile_width, width))]
    return np.concatenate(strips)


def _caption(row: Mapping[str, Any], width: int) -> np.ndarray:
    """The text of a record: where it is from, and the expression."""
    font = ImageFont.load_default(FONT_SIZE)
    where = f"{row['source']} {row['split']} | {row['video_id']} / {row['expression_id']} | {row['expression_type']}"
    text = row["expression"] if row["answer"] is None else f"{row['expression']} -> {row['answer']}"
    lines = [where, *_wrap(" ".join(text.split()), font, width - 2 * GAP)]
    image = Image.new("RGB", (width, GAP + len(lines) * (FONT_SIZE + GAP)), BACKGROUND)
    draw = ImageDraw.Draw(image)
    for index, line in enumerate(lines):
        draw.text((GAP, GAP + index * (FONT_SIZE + GAP)), line, fill=INK if index else (110, 110, 110), font=font)
    return np.array(image)


def _wrap(text: str, font: ImageFont.FreeTypeFont, room: int) -> list[str]:
    """`text` in lines of at most `room` pixels; what is left after the last line is cut."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > room:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines if len(lines) <= MAX_LINES else [*lines[: MAX_LINES - 1], lines[MAX_LINES - 1] + " ..."]


def _frames(row: Mapping[str, Any], columns: int, tile_width: int, width: int) -> np.ndarray:
    """Frames of a record side by side, masks drawn at full size."""
    video = open_video(row["video_path"]) if row["video_path"] is not None else None
    length = len(row["frame_paths"]) if video is None else video.num_frames
    tiles = []
    for index in dict.fromkeys(np.linspace(0, length - 1, min(columns, length)).round().astype(int).tolist()):
        frame = read_image(row["frame_paths"][index]) if video is None else video.frames([index])[0]
        drawn = draw_overlay(frame, _masks(row, index, frame.shape[:2]))
        height = max(1, round(tile_width * frame.shape[0] / frame.shape[1]))
        shrink = cv2.INTER_AREA if tile_width < frame.shape[1] else cv2.INTER_NEAREST
        tiles.append(cv2.resize(drawn, (tile_width, height), interpolation=shrink))
    strip = np.full((max(tile.shape[0] for tile in tiles) + GAP, width, 3), BACKGROUND, dtype=np.uint8)
    for column, tile in enumerate(tiles):
        left = GAP + column * (tile_width + GAP)
        strip[: tile.shape[0], left : left + tile_width] = tile
    return strip


def _masks(row: Mapping[str, Any], index: int, size: tuple[int, int]) -> list[np.ndarray]:
    """The target in a frame, and the pixels that do not count, if there are any."""
    fields = [row[name] for name in ("masks", "ignore_masks") if row[name] is not None]
    return [decode_rle(masks[index], size) for masks in fields]


def write_preview(
    name: str,
    root: str | os.PathLike,
    output: str | os.PathLike,
    split: str | None = None,
    config: str | None = None,
    *,
    count: int = 6,
    seed: int = 0,
    **fields: Any,
) -> Path:
    """Write a contact sheet of a data set on disk.

    Args:
        name (`str`): Its name in the catalogue.
        root (`str` or `os.PathLike`): Its folder.
        output (`str` or `os.PathLike`): The file, ending in `.jpg` or `.png`; replaced if it is there.
        split (`str`, *optional*): Its split; the first that is there when not given.
        config (`str`, *optional*): One of its configurations.
        count (`int`, *optional*, defaults to 6): Number of expressions.
        seed (`int`, *optional*, defaults to 0): Another seed shows others.
        **fields: Options of the set.

    Returns:
        `pathlib.Path`: The file.

    Raises:
        DataError: There is no such set or split, it has a defect, or `output` is no name of a picture.
    """
    path = Path(output).expanduser()
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"A preview is written as {', '.join(SUFFIXES)}; found {path.name!r}.")
    builder = make_builder(name, root, split, config, **fields)
    rows = pick_rows(builder, builder.available_splits()[0], count, seed)
    image = Image.fromarray(contact_sheet(rows))
    with replacing(path) as temporary:
        image.save(temporary, quality=90)
    return path
