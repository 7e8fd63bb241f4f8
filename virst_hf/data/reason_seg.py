"""ReasonSeg: sentences that describe a region only by what one knows about it (dvlab-research/LISA)."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..errors import DataError
from ..rle import check_rle, encode_rle
from ..video_io import IMAGE_SUFFIXES
from .builder import Report, VirstDataConfig, VirstDatasetBuilder
from .files import cached_file_reader, data_path, describe, image_size, list_images, read_json
from .records import is_text, make_row

__all__ = ["ReasonSeg", "ReasonSegConfig", "ReasonSegReader", "paint_shapes", "read_explanations"]

# Some files of the release hold quotation marks of Windows.
ENCODINGS = ("utf-8", "cp1252")
IGNORE = 255
# LISA draws with OpenCV, which is exact far beyond any picture up to here.
MAX_COORDINATE = 1e5
MAX_SHAPES = 10_000
# OpenCV takes time with the square of the corners: minutes for 30,000 of them.
MAX_CORNERS = 10_000
EXPLANATIONS = ("explanatory", "train.json")


def paint_shapes(shapes: Any, size: tuple[int, int]) -> np.ndarray:
    """The target of a ReasonSeg file by LISA's rule: polygons are painted by falling area, so that of two that
    overlap the smaller one shows, be it target or region to ignore; the outline belongs to a polygon.

    Args:
        shapes (`Any`): The list under `"shapes"`: each has `label` and `points` (corners in pixels, cut to whole
            numbers). `"flag"` is skipped, a label with "ignore" in it is ignored, every other one is the target.
        size (`tuple[int, int]`): Height and width of the picture.

    Returns:
        `numpy.ndarray` of shape `(height, width)`, `uint8`: 0 background, 1 target, 255 counts neither way.

    Raises:
        DataError: The list or a shape is damaged.

    Example:

    ```python
    >>> from virst_hf.data.reason_seg import paint_shapes
    >>> square = {"label": "target", "points": [[1, 0], [3.9, 0], [3.9, 2], [1, 2]]}
    >>> paint_shapes([square, {"label": "ignore", "points": [[2, 1], [2, 1]]}], (4, 5))
    array([[  0,   1,   1,   1,   0],
           [  0,   1, 255,   1,   0],
           [  0,   1,   1,   1,   0],
           [  0,   0,   0,   0,   0]], dtype=uint8)

    ```
    """
    if not isinstance(shapes, list) or len(shapes) > MAX_SHAPES:
        raise DataError(f'"shapes" must be a list of at most {MAX_SHAPES:,} polygons, found {describe(shapes)}.')
    polygons = []
    for position, shape in enumerate(shapes):
        label = shape.get("label") if isinstance(shape, dict) else None
        if not isinstance(label, str):
            raise DataError(f'shape {position}: "label" must be a text, found {describe(label)}.')
        if label.lower() == "flag":
            continue
        if shape.get("shape_type", "polygon") != "polygon":
            raise DataError(f"shape {position} is no polygon but {describe(shape['shape_type'])}.")
        polygons.append((_corners(shape.get("points"), position), IGNORE if "ignore" in label.lower() else 1))
    if sum(len(corners) for corners, _ in polygons) > MAX_CORNERS:
        raise DataError(f"The polygons have more than {MAX_CORNERS:,} corners in all.")
    areas = []
    for corners, _ in polygons:
        areas.append(int(np.count_nonzero(_paint(np.zeros(size, dtype=np.uint8), corners, 1))))
    painted = np.zeros(size, dtype=np.uint8)
    # Of equal areas the later polygon is painted first, as in LISA, which sorts upwards and turns the order round.
    for index in sorted(range(len(polygons)), key=lambda index: (areas[index], index), reverse=True):
        _paint(painted, *polygons[index])
    return painted


def _corners(points: Any, position: int) -> np.ndarray:
    """Corners as OpenCV takes them, `int32` of shape `(corners, 2)`."""
    if not isinstance(points, list) or not points:
        raise DataError(f'shape {position}: "points" must be a list of corners, found {describe(points)}.')
    corners = []
    for point in points:
        pair = isinstance(point, list) and len(point) == 2 and all(type(number) in (int, float) for number in point)
        # A comparison with NaN is false, so that NaN is refused, too.
        if not pair or not all(-MAX_COORDINATE <= number <= MAX_COORDINATE for number in point):
            raise DataError(f"shape {position}: a corner is no pair of numbers, or far outside of the picture.")
        corners.append([int(number) for number in point])
    return np.array(corners, dtype=np.int32)


def _paint(canvas: np.ndarray, corners: np.ndarray, value: int) -> np.ndarray:
    """Paint a polygon with its outline, in place."""
    cv2.polylines(canvas, [corners], True, value, 1)
    cv2.fillPoly(canvas, [corners], value)
    return canvas


@cached_file_reader
def read_explanations(path: Path) -> tuple[dict[tuple[str, str], str], list[tuple[str, str]]]:
    """What `explanatory/train.json` says.

    Args:
        path (`pathlib.Path`): The file.

    Returns:
        `tuple`: Explanation by picture and sentence (the first where several are given), and the defects as pairs of
        item and message.

    Raises:
        DataError: It is no JSON list.
    """
    content = read_json(path, ENCODINGS)
    if not isinstance(content, list):
        raise DataError(f'{path} must hold a list of {{"image", "query", "outputs"}}, found {describe(content)}.')
    found: dict[tuple[str, str], str] = {}
    defects = []
    for position, entry in enumerate(content):
        texts = [entry.get(key) if isinstance(entry, dict) else None for key in ("image", "query", "outputs")]
        if all(is_text(text) for text in texts):
            found.setdefault((texts[0], _folded(texts[1])), texts[2])
        else:
            message = '"image", "query" and "outputs" must be texts with something in them.'
            defects.append((f"{path.name}, entry {position}", message))
    return found, defects


def _folded(text: str) -> str:
    """A sentence without differences in white space."""
    return " ".join(text.split())


class ReasonSegReader:
    """
    Reads the records of one folder of ReasonSeg: each `<name>.jpg` with a `<name>.json` beside it.

    Args:
        root (`pathlib.Path`): Root of the data set, which no link may leave.
        folder (`str`): The folder, relative to `root`.
        report (`Report`): Told of each defect.
        common (`Mapping[str, Any]`): Fields of the record that are the same in the whole split.
        all_texts (`bool`): Whether each wording gives a record, or only the first, as in LISA's evaluation.
        explanations (`Mapping[tuple[str, str], str]`, *optional*): As [`read_explanations`] gives them.
        follow_links (`bool`, *optional*, defaults to `False`): Whether symbolic links may leave `root`.
    """

    def __init__(
        self,
        root: Path,
        folder: str,
        report: Report,
        common: Mapping[str, Any],
        all_texts: bool,
        explanations: Mapping[tuple[str, str], str] | None = None,
        follow_links: bool = False,
    ) -> None:
        self.root, self.folder, self.report, self.common = root, folder, report, common
        self.all_texts, self.follow_links = all_texts, follow_links
        self.explanations = explanations if explanations is not None else {}

    def units(self) -> list[str]:
        """Names of the pictures in order; tells of pictures without a file of texts, and the reverse.

        Returns:
            `list[str]`: Names without a suffix.
        """
        listed = self._files(IMAGE_SUFFIXES)
        # A folder that cannot be listed is one defect, not two.
        texts = self._files((".json",)) if listed is not None else None
        if listed is None or texts is None:
            return []
        images = {path.stem for path in listed}
        named = {path.stem for path in texts}
        for name in sorted(images - named):
            self.report("missing_file", name, f"there is a picture, but no {name}.json beside it.")
        for name in sorted(named - images):
            self.report("missing_frame", name, f"there is {name}.json, but no picture beside it.")
        stems = [path.stem for path in listed]
        for name in sorted({name for name in stems if stems.count(name) > 1} if len(images) != len(stems) else ()):
            self.report("duplicate", name, "two pictures have this name, with different suffixes; remove one.")
            images.discard(name)
        return sorted(images & named)

    def rows(self, units: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Records of these pictures, in the order of their texts.

        Args:
            units (`Sequence[str]`): Names as [`~ReasonSegReader.units`] gives them.

        Yields:
            `dict`: Records.
        """
        paths = {path.stem: path for path in (self._files(IMAGE_SUFFIXES) or ())} if units else {}
        for name in units:
            content = self._content(name)
            if content is None:
                continue
            try:
                if name not in paths:
                    raise DataError(f"There is no picture {name} in {self.folder} any more.")
                size = image_size(paths[name])
            except DataError as error:
                self.report("missing_frame", name, str(error))
                continue
            try:
                painted = paint_shapes(content.get("shapes"), size)
            except DataError as error:
                self.report("bad_entry", name, str(error))
                continue
            target, ignored = (check_rle(encode_rle(painted == value)) for value in (1, IGNORE))
            labels = [shape["label"].lower() for shape in content["shapes"]]
            fields = {
                "video_id": name,
                "frame_names": [name],
                "frame_paths": [str(paths[name])],
                "height": size[0],
                "width": size[1],
                "object_ids": [1] if any(label != "flag" and "ignore" not in label for label in labels) else [],
                "masks": [target],
                "ignore_masks": None if ignored is None else [ignored],
                "expression_type": "long" if content["is_sentence"] else "short",
            }
            yield from self._texts(name, paths[name].name, content["text"], fields)

    def _files(self, suffixes: Sequence[str]) -> list[Path] | None:
        """Files of the folder in order; `None` after a defect."""
        try:
            found = list_images(self.root, self.folder, suffixes, self.follow_links)
        except DataError as error:
            self.report("unsafe_path" if "link out of" in str(error) else "missing_file", self.folder, str(error))
            return None
        # macOS leaves "._a.jpg" beside "a.jpg" on foreign disks; it is no picture.
        return [path for path in found if not path.name.startswith(".")]

    def _content(self, name: str) -> dict[str, Any] | None:
        """The JSON of a picture; `None` after a defect."""
        try:
            path = data_path(self.root, self.folder, f"{name}.json", follow_links=self.follow_links)
        except DataError as error:
            self.report("unsafe_path", name, str(error))
            return None
        try:
            content = read_json(path, ENCODINGS)
        except DataError as error:
            self.report("bad_entry", name, str(error))
            return None
        fits = isinstance(content, dict) and isinstance(content.get("text"), list) and bool(content["text"])
        if not fits or not isinstance(content.get("is_sentence"), bool):
            message = f'{path} must hold "text", a list of at least one sentence, and "is_sentence", true or false.'
            self.report("bad_entry", name, message)
            return None
        return content

    def _texts(self, name: str, image: str, texts: list[Any], fields: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """One record for each wording, or for the first."""
        for position, text in enumerate(texts if self.all_texts else texts[:1]):
            if not is_text(text):
                message = f'"text" must hold sentences with something in them, found {describe(text)}.'
                self.report("bad_entry", f"{name}/{position}", message)
                continue
            answer = self.explanations.get((image, _folded(text)))
            try:
                yield make_row(**self.common, **fields, expression_id=str(position), expression=text, answer=answer)
            except DataError as error:
                self.report("bad_entry", f"{name}/{position}", str(error))


@dataclasses.dataclass
class ReasonSegConfig(VirstDataConfig):
    """
    What can be chosen for ReasonSeg.

    Args:
        all_texts (`bool`, *optional*): Whether each wording gives a record, or only the first. When not given: each
            in training, the first in validation and test, which is what LISA evaluates.
    """

    all_texts: bool | None = None


class ReasonSeg(VirstDatasetBuilder):
    """
    ReasonSeg. A record has `expression_type` "long" or "short" (the two halves of the test figures), the regions to
    ignore in `ignore_masks`, and in training the explanation, if there is one, as `answer`.
    """

    NAME = "reasonseg"
    CATEGORY = "reasoning_image"
    SPLITS = ("train", "val", "test")
    TREE = """\
reason_seg/
  ReasonSeg/                          (may be left out)
    train/  <name>.jpg  <name>.json ...
    val/    <name>.jpg  <name>.json ...
    test/   <name>.jpg  <name>.json ...
    explanatory/train.json            (optional)
or a folder above or below, down to the one with train/, val/ and test/"""
    BUILDER_CONFIG_CLASS = ReasonSegConfig
    BUILDER_CONFIGS = [ReasonSegConfig(name="default")]

    def _base(self, root: Path) -> str | None:
        """The folder of the splits, relative to `root`; `None` if there is none."""
        for place in ("reason_seg/ReasonSeg", "reason_seg", "ReasonSeg", "."):
            if any(_has_texts(root / place / split) for split in self.SPLITS):
                return place
        return None

    def find_splits(self, root: Path) -> list[str]:
        """Splits whose folder has a file of texts."""
        base = self._base(root)
        return [] if base is None else [split for split in self.SPLITS if _has_texts(root / base / split)]

    def annotation_paths(self, root: Path, split: str) -> list[Path]:
        """The folder of the split, and in training the explanations."""
        base = root / (self._base(root) or ".")
        return [base / split, *([base.joinpath(*EXPLANATIONS)] if split == "train" else [])]

    def _reader(self, root: Path, split: str, report: Report) -> ReasonSegReader:
        base = self._base(root) or "."
        path = self._explanations(root, split)
        return ReasonSegReader(
            root,
            split if base == "." else f"{base}/{split}",
            report,
            {"category": self.CATEGORY, "source": self.NAME, "split": split},
            split == "train" if self.config.all_texts is None else self.config.all_texts,
            None if path is None else read_explanations(path)[0],
            self.config.follow_links,
        )

    def _explanations(self, root: Path, split: str) -> Path | None:
        """The file of explanations, if there is one for this split."""
        path = root.joinpath(self._base(root) or ".", *EXPLANATIONS)
        if split != "train" or not path.is_file():
            return None
        return data_path(root, *path.relative_to(root).parts, follow_links=self.config.follow_links)

    def units(self, root: Path, split: str, report: Report) -> list[str]:
        """Names of the pictures, in order."""
        path = self._explanations(root, split)
        for item, message in [] if path is None else read_explanations(path)[1]:
            report("bad_entry", item, message)
        return self._reader(root, split, report).units()

    def rows(self, root: Path, split: str, units: Sequence[str], report: Report) -> Iterator[dict[str, Any]]:
        """One record for each wording, or for the first of each picture."""
        yield from self._reader(root, split, report).rows(units)


def _has_texts(folder: Path) -> bool:
    return folder.is_dir() and any(folder.glob("*.json"))
