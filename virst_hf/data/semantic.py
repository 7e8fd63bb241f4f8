"""What the sets of semantic segmentation share: where their folders may stand, and label maps that become records."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..rle import encode_rle
from .builder import Report, VirstDataConfig
from .files import data_path, image_size, list_images, read_label_map
from .records import make_row

__all__ = ["IMAGE_SUFFIXES", "LabelMaps", "Place", "SemanticConfig", "find_image", "find_place"]

IMAGE_SUFFIXES = (".jpg", ".jpeg")


@dataclasses.dataclass
class SemanticConfig(VirstDataConfig):
    """
    What can be chosen when a set is read whose pictures are kept apart from its annotations.

    Args:
        image_root (`str`, *optional*): Folder of the pictures; looked for beside the annotations when not given.
    """

    image_root: str | None = None


@dataclasses.dataclass(frozen=True)
class Place:
    """
    A folder, and the root that no path may leave.

    Args:
        root (`pathlib.Path`): The root.
        parts (`tuple[str, ...]`): Names on the way from the root to the folder.
        follow_links (`bool`, *optional*, defaults to `False`): Whether symbolic links may leave the root.
    """

    root: Path
    parts: tuple[str, ...] = ()
    follow_links: bool = False

    @property
    def path(self) -> Path:
        """The folder; a DataError where a link leads out of the root."""
        return self.file()

    def file(self, *names: str) -> Path:
        """The path of something in the folder, checked by [`data_path`]."""
        return data_path(self.root, *self.parts, *names, follow_links=self.follow_links)

    def below(self, *names: str) -> "Place":
        """A folder in it."""
        return dataclasses.replace(self, parts=(*self.parts, *names))

    def images(self, suffixes: Sequence[str]) -> list[Path]:
        """Images in it, sorted by name, without hidden files (macOS leaves `._name.png` beside each file)."""
        found = list_images(self.root, "/".join(self.parts), suffixes, self.follow_links)
        return [path for path in found if not path.name.startswith(".")]


def find_place(start: Place, folders: Sequence[str], fits: Callable[[Place], bool]) -> Place | None:
    """The first of several folders that looks right.

    Args:
        start (`Place`): Where to look.
        folders (`Sequence[str]`): Folders below it, separated by "/"; "" is `start` itself.
        fits (`Callable[[Place], bool]`): Whether it is the one.

    Returns:
        `Place` or `None`: The folder, if there is one.

    Raises:
        DataError: A folder is a link out of the root.
    """
    for folder in folders:
        place = start.below(*folder.split("/")) if folder else start
        if fits(place):
            return place
    return None


def find_image(place: Place, name: str, report: Report) -> tuple[Path, tuple[int, int]] | None:
    """A picture and its size.

    Args:
        place (`Place`): Folder of the pictures.
        name (`str`): From an annotation or a list of files; may hold "/".
        report (`Report`): Told of what is wrong.

    Returns:
        `tuple[Path, tuple[int, int]]` or `None`: The file with its height and width; `None` after a defect.
    """
    try:
        path = place.file(name)
    except DataError as error:
        report("unsafe_path", name if isinstance(name, str) else "image", str(error))
        return None
    if not path.is_file():
        report("missing_file", name, f"there is no picture {path}; fetch it, or pass image_root.")
        return None
    try:
        return path, image_size(path)
    except DataError as error:
        report("undecodable", name, str(error))
        return None


class LabelMaps:
    """
    Reads a folder of label maps (PNG, a number for each pixel) beside a folder of pictures.

    Args:
        maps (`Place`): Folder of the label maps.
        images (`Place`): Folder of the pictures, which have the same names with `.jpg`.
        classes (`dict[int, tuple[int, str]]`): Value in a map -> index and name of its class.
        ignored (`frozenset[int]`): Values that count neither way; any value in neither is a defect.
        common (`dict`): Fields of the record that are the same in the whole split.
    """

    def __init__(
        self,
        maps: Place,
        images: Place,
        classes: dict[int, tuple[int, str]],
        ignored: frozenset[int],
        common: dict[str, Any],
    ) -> None:
        self.maps, self.images, self.classes, self.ignored, self.common = maps, images, classes, ignored, common

    def units(self, report: Report, with_images: bool, skip: str | None = None) -> list[str]:
        """Names of the pictures, without suffix and in order; nothing is decoded.

        Args:
            report (`Report`): Told of folders that cannot be read and of names that stand twice.
            with_images (`bool`): Whether pictures without a map count, too (their rows are then a defect).
            skip (`str`, *optional*): End of the names of maps that are left out.

        Returns:
            `list[str]`: The names.
        """
        names: set[str] = set()
        listings = [(self.maps, (".png",))] + ([(self.images, IMAGE_SUFFIXES)] if with_images else [])
        for place, suffixes in listings:
            try:
                stems = [path.stem for path in place.images(suffixes)]
            except DataError as error:
                kind = "unsafe_path" if "link out of" in str(error) else "missing_file"
                report(kind, "/".join(place.parts), str(error))
                continue
            for twice in [stem for stem, count in Counter(stems).items() if count > 1]:
                report("duplicate", twice, f"{place.path} has several files of this name with different suffixes.")
            names.update(stem for stem in stems if skip is None or not stem.endswith(skip))
        return sorted(names)

    def rows(self, units: Sequence[str], report: Report) -> Iterator[dict[str, Any]]:
        """A record for each class in each picture, in the order of the classes.

        Args:
            units (`Sequence[str]`): Names of pictures.
            report (`Report`): Told of each defect.

        Yields:
            `dict`: Records.
        """
        for name in units:
            suffix = next((s for s in IMAGE_SUFFIXES if self._has(f"{name}{s}")), IMAGE_SUFFIXES[0])
            found = find_image(self.images, f"{name}{suffix}", report)
            labels = self._labels(name, found[1], report) if found is not None else None
            if labels is None:
                continue
            yield from self._records(name, found[0], labels, report)

    def _has(self, name: str) -> bool:
        try:
            return self.images.file(name).is_file()
        except DataError:
            return False

    def _labels(self, name: str, size: tuple[int, int], report: Report) -> np.ndarray | None:
        """The label map of a picture; `None` after a defect."""
        try:
            path = self.maps.file(f"{name}.png")
        except DataError as error:
            report("unsafe_path", name, str(error))
            return None
        if not path.is_file():
            report("missing_file", name, f"the picture has no label map {path}.")
            return None
        try:
            labels = read_label_map(path)
        except DataError as error:
            report("bad_mask", name, str(error))
            return None
        if labels.shape != size:
            height, width = labels.shape
            report(
                "mask_size", name, f"its label map is {height} x {width}, but the picture is {size[0]} x {size[1]}."
            )
            return None
        unknown = [v for v in _present(labels) if v not in self.classes and v not in self.ignored]
        if unknown:
            highest = max(self.classes)
            found = ", ".join(map(str, unknown[:5]))
            report("bad_entry", name, f"{path} has the values {found}; classes go up to {highest}. Is it another set?")
            return None
        return labels

    def _records(self, name: str, path: Path, labels: np.ndarray, report: Report) -> Iterator[dict[str, Any]]:
        """The records of one picture."""
        left_out = np.isin(labels, sorted(self.ignored))
        ignore_masks = [encode_rle(left_out)] if left_out.any() else None
        for value in _present(labels):
            if value not in self.classes:
                continue
            index, text = self.classes[value]
            try:
                yield make_row(
                    **self.common,
                    video_id=name,
                    expression_id=str(index),
                    expression=text,
                    frame_names=[name],
                    frame_paths=[str(path)],
                    height=labels.shape[0],
                    width=labels.shape[1],
                    object_ids=[index],
                    masks=[encode_rle(labels == value)],
                    ignore_masks=ignore_masks,
                    expression_type="category",
                )
            except DataError as error:
                report("bad_entry", name, str(error))
                return


def _present(labels: np.ndarray) -> list[int]:
    """The values of a label map, in order."""
    return np.flatnonzero(np.bincount(labels.ravel(), minlength=256)).tolist()
