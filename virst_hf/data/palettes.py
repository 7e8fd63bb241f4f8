"""Masks in palette PNGs: one for each frame, whose pixels are the numbers of all objects of the video."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..rle import encode_rle
from .builder import Report
from .files import UnsafePathError, describe, frame_paths, read_label_map
from .mask_dict import ExpressionReader, whole_numbers
from .records import is_text

__all__ = ["PaletteReader", "PaletteTracks", "read_palettes"]

Rle = dict[str, Any]
# 0 is the background; a pixel has one byte.
MAX_OBJECT = 255


@dataclass(frozen=True)
class PaletteTracks:
    """
    What the palette PNGs of a video hold.

    Args:
        objects (`dict[int, list]`): Object id -> for each frame its mask as RLE, `None` where it is absent.
        ignored (`list`, *optional*): For each frame the void pixels; `None` in all where the video has none.
    """

    objects: dict[int, list[Rle | None]]
    ignored: list[Rle | None] | None


def read_palettes(
    files: Sequence[Path],
    objects: Collection[int],
    size: tuple[int, int],
    report: Report,
    item: str,
    void: int | None = None,
) -> PaletteTracks | None:
    """The tracks of some objects of a video. Each file is decoded once for all of them.

    Args:
        files (`Sequence[pathlib.Path]`): The PNG of each frame, in order.
        objects (`Collection[int]`): Ids from 1 to 255. One that is in no PNG has `None` for each frame.
        size (`tuple[int, int]`): Height and width of the frames.
        report (`Report`): Told of each defect.
        item (`str`): Name of the video, for the report.
        void (`int`, *optional*): The value of pixels that count neither way (255 in DAVIS).

    Returns:
        [`PaletteTracks`] or `None`: The tracks; `None` after a defect.
    """
    wanted = sorted(objects)
    tracks: dict[int, list[Rle | None]] = {number: [] for number in wanted}
    ignored: list[Rle | None] = []
    for file in files:
        try:
            labels = read_label_map(file)
        except DataError as error:
            report("bad_mask", f"{item}, {file.name}", str(error))
            return None
        if labels.shape != size:
            said = f"{labels.shape[0]} x {labels.shape[1]} (height x width), but its frame is {size[0]} x {size[1]}."
            report("mask_size", f"{item}, {file.name}", f"the PNG is {said}")
            return None
        for number in wanted:
            tracks[number].append(_mask_of(labels, number))
        ignored.append(None if void is None else _mask_of(labels, void))
    return PaletteTracks(tracks, ignored if any(ignored) else None)


def _mask_of(labels: np.ndarray, number: int) -> Rle | None:
    """The pixels of one value; `None` if there is none."""
    mask = labels == number
    return encode_rle(mask) if mask.any() else None


class PaletteReader(ExpressionReader):
    """
    Reads the records of videos whose expressions are listed as in MeViS, each about one object, with masks in palette
    PNGs beside the frames. One object serves one split.

    Args:
        root (`pathlib.Path`): Root of the data set, which no path may leave.
        folder (`str`): Folder of the videos' frame folders, relative to `root`.
        videos (`Mapping[str, Any]`): As [`~mask_dict.read_videos`] gives them.
        annotations (`str`, *optional*): Folder of the videos' PNG folders, relative to `root`; `None` for a split
            without masks.
        report (`Report`): Told of each defect.
        common (`Mapping[str, Any]`): Fields of the record that are the same in the whole split.
        void (`int`, *optional*): The value of pixels that count neither way.
        follow_links (`bool`, *optional*, defaults to `False`): Whether symbolic links may leave `root`.
    """

    def __init__(
        self,
        root: Path,
        folder: str,
        videos: Mapping[str, Any],
        annotations: str | None,
        report: Report,
        common: Mapping[str, Any],
        void: int | None = None,
        follow_links: bool = False,
    ) -> None:
        super().__init__(root, folder, videos, None, report, common, follow_links=follow_links)
        self.annotations, self.void = annotations, void

    def rows(self, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Records of the expressions of these videos, in the order of the file.

        Args:
            names (`Sequence[str]`): Videos.

        Yields:
            `dict`: Records.
        """
        for name in names:
            video = self._video(name)
            if video is None:
                continue
            fields, expressions = video
            asked = self._asked(name, expressions)
            found = self._targets(name, fields, asked) if self.has_masks else ({key: None for key in asked}, None)
            if found is None:
                continue
            masks, ignored = found
            for key in (key for key in asked if key in masks):
                fields |= {"masks": masks[key], "ignore_masks": ignored, "object_ids": asked[key]}
                row = self._record(name, key, expressions[key], fields)
                if row is not None:
                    yield row

    @property
    def has_masks(self) -> bool:
        """Whether the split has masks."""
        return self.annotations is not None

    def _asked(self, name: str, expressions: Mapping[str, Any]) -> dict[str, list[int]]:
        """Expression -> its object, as a list of one; of a split without masks an empty list. Those with a defect are
        left out."""
        asked: dict[str, list[int]] = {}
        for key, entry in expressions.items():
            text = entry.get("exp") if isinstance(entry, dict) else None
            if not is_text(text) or not is_text(key):
                message = f'"exp" must be a text with something in it, found {describe(text)}.'
                self.report("bad_entry", f"{name}/{key}", message)
                continue
            if not self.has_masks:
                asked[key] = []
                continue
            ids = whole_numbers(entry.get("obj_id"))
            if ids is None or len(ids) != 1 or not 0 < ids[0] <= MAX_OBJECT or ids[0] == self.void:
                found = describe(entry.get("obj_id"))
                message = f'"obj_id" must be the number of one object as it stands in the PNGs, found {found}.'
                self.report("bad_entry", f"{name}/{key}", message)
                continue
            asked[key] = ids
        return asked

    def _targets(
        self, name: str, fields: Mapping[str, Any], asked: Mapping[str, list[int]]
    ) -> tuple[dict[str, list[Rle | None]], list[Rle | None] | None] | None:
        """Masks of each expression, and the ignored pixels; `None` after a defect."""
        folder = f"{self.annotations}/{name}"
        try:
            files = frame_paths(self.root, folder, fields["frame_names"], (".png",), self.follow_links)
        except DataError as error:
            self.report("unsafe_path" if isinstance(error, UnsafePathError) else "missing_file", name, str(error))
            return None
        size = (fields["height"], fields["width"])
        objects = {number for ids in asked.values() for number in ids}
        found = read_palettes(files, objects, size, self.report, name, self.void)
        if found is None:
            return None
        return {key: found.objects[number] for key, (number,) in asked.items()}, found.ignored
