"""Objects and parts in COCO's JSON form, as PACO-LVIS, PASCAL-Part and Shapes have them."""

import dataclasses
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..rle import union_rle
from .builder import Report
from .files import cached_file_reader, describe, read_json
from .records import MAX_ID, is_text, make_row
from .refer import segmentation_to_rle
from .semantic import Place, find_image

__all__ = ["PartFile", "PartReader", "part_text", "read_part_file", "split_part_name"]

Defect = tuple[str, str, str]


@dataclasses.dataclass(frozen=True)
class PartFile:
    """
    What a COCO file of objects and parts says, by picture.

    Args:
        images (`dict[str, dict]`): Unit (the id of the picture as text) -> its entry.
        names (`dict[int, tuple[str, str]]`): Id of a category -> object and part; the part of a whole object is "".
        annotations (`dict[str, list]`): Unit -> `(annotation id, category id, segmentation)` of each annotation.
        defects (`list[tuple[str, str, str]]`): What was left out, as a report takes it.
    """

    images: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    names: dict[int, tuple[str, str]] = dataclasses.field(default_factory=dict)
    annotations: dict[str, list[tuple[int, int, Any]]] = dataclasses.field(default_factory=dict)
    defects: list[Defect] = dataclasses.field(default_factory=list)


def split_part_name(name: str) -> tuple[str, str] | None:
    """Object and part of the name of a category, without the senses of WordNet in brackets.

    Args:
        name (`str`): Such as `"car_(automobile):antenna"`, or `"car_(automobile)"` for the whole object.

    Returns:
        `tuple[str, str]` or `None`: Object and part ("" for the whole); `None` if it is no such name.

    Example:

    ```python
    >>> from virst_hf.data.coco_parts import split_part_name
    >>> split_part_name("car_(automobile):antenna"), split_part_name("potted plant:pot"), split_part_name("trash_can")
    (('car', 'antenna'), ('potted plant', 'pot'), ('trash_can', ''))

    ```
    """
    sides = [side.split("_(")[0].strip() for side in name.split(":")]
    if len(sides) > 2 or not all(is_text(side) for side in sides):
        return None
    return sides[0], sides[1] if len(sides) == 2 else ""


def part_text(image: str, category: int, names: tuple[str, str]) -> str:
    """The expression of an object or a part. LISA tosses a coin between two wordings of a part; here the ids of the
    picture and the category decide, so that a record is the same in every run.

    Args:
        image (`str`): Id of the picture.
        category (`int`): Id of the category.
        names (`tuple[str, str]`): As [`split_part_name`] gives them.

    Returns:
        `str`: The object, `"object part"` or `"the part of the object"`.
    """
    whole, part = names
    if not part:
        return whole
    return f"{whole} {part}" if zlib.crc32(f"{image}:{category}".encode()) % 2 else f"the {part} of the {whole}"


# --- the file --------------------------------------------------------------------------------------------------------
@cached_file_reader
def read_part_file(path: Path) -> PartFile:
    """A COCO file of objects and parts.

    Args:
        path (`pathlib.Path`): Such as `paco_lvis_v1_train.json`.

    Returns:
        [`PartFile`]: Its content by picture; entries that cannot be used are among its defects.

    Raises:
        DataError: It is no such file.
    """
    content = read_json(path)
    lists = [
        content.get(key) if isinstance(content, dict) else None for key in ("categories", "images", "annotations")
    ]
    if not all(isinstance(entries, list) for entries in lists):
        raise DataError(f'{path} must hold the lists "images", "annotations" and "categories" of COCO; it does not.')
    found = PartFile()
    categories, images, annotations = lists
    for index, entry in enumerate(categories):
        _add_category(found, f"categories[{index}]", entry)
    for index, entry in enumerate(images):
        _add_image(found, f"images[{index}]", entry)
    seen: set[int] = set()
    for index, entry in enumerate(annotations):
        _add_annotation(found, f"annotations[{index}]", entry, seen)
    return found


def _number(entry: Any, key: str) -> int | None:
    """A whole number of an entry, 0 among them; `None` if it has none."""
    value = entry.get(key) if isinstance(entry, dict) else None
    return value if type(value) is int and abs(value) <= MAX_ID else None


def _add_category(found: PartFile, item: str, entry: Any) -> None:
    number = _number(entry, "id")
    name = entry.get("name") if isinstance(entry, dict) else None
    names = split_part_name(name) if is_text(name) else None
    if number is None or names is None:
        message = f'expected a whole number "id" and a "name" such as "dog" or "dog:head", found {describe(name)}.'
        found.defects.append(("bad_entry", item, message))
    elif number in found.names:
        found.defects.append(("duplicate", item, f"the category id {number} stands twice."))
    else:
        found.names[number] = names


def _add_image(found: PartFile, item: str, entry: Any) -> None:
    number = _number(entry, "id")
    name = entry.get("file_name") if isinstance(entry, dict) else None
    if number is None or not is_text(name):
        message = f'expected a whole number "id" and a "file_name", found {describe(name)}.'
        found.defects.append(("bad_entry", item, message))
    elif str(number) in found.images:
        found.defects.append(("duplicate", item, f"the image id {number} stands twice."))
    else:
        found.images[str(number)] = {key: entry.get(key) for key in ("file_name", "height", "width")}


def _add_annotation(found: PartFile, item: str, entry: Any, seen: set[int]) -> None:
    number, image, category = (_number(entry, key) for key in ("id", "image_id", "category_id"))
    if number is None or image is None or category is None:
        found.defects.append(("bad_entry", item, 'expected whole numbers "id", "image_id" and "category_id".'))
    elif number in seen:
        found.defects.append(("duplicate", item, f"the annotation id {number} stands twice."))
    elif str(image) not in found.images:
        found.defects.append(("unknown_id", item, f"there is no image {image}."))
    elif category not in found.names:
        found.defects.append(("unknown_id", item, f"there is no category {category}."))
    else:
        seen.add(number)
        found.annotations.setdefault(str(image), []).append((number, category, entry.get("segmentation")))


# --- records ---------------------------------------------------------------------------------------------------------
class PartReader:
    """
    Reads the records of one COCO file of objects and parts.

    Args:
        annotations (`pathlib.Path`): The file.
        images (`Place`): Folder that the `file_name`s refer to.
        common (`Mapping[str, Any]`): Fields of the record that are the same in the whole split.
    """

    def __init__(self, annotations: Path, images: Place, common: Mapping[str, Any]) -> None:
        self.path, self.images, self.common = annotations, images, common

    def units(self, report: Report) -> list[str]:
        """Ids of the pictures, in the order of the file.

        Args:
            report (`Report`): Told of entries of the file that cannot be used.

        Returns:
            `list[str]`: The ids.
        """
        found = read_part_file(self.path)
        for check, item, message in found.defects:
            report(check, f"{self.path.name}, {item}", message)
        return list(found.images)

    def rows(self, units: Sequence[str], report: Report) -> Iterator[dict[str, Any]]:
        """A record for each object class and each part of it in each picture, in the order of the category ids.

        Args:
            units (`Sequence[str]`): Ids of pictures.
            report (`Report`): Told of each defect.

        Yields:
            `dict`: Records.
        """
        found = read_part_file(self.path)
        for unit in units:
            entry = found.images.get(unit)
            if entry is None:
                report("unknown_id", unit, f"{self.path} has no such image.")
                continue
            picture = find_image(self.images, entry["file_name"], report)
            if picture is None or not self._fits(unit, entry, picture[1], report):
                continue
            # Categories that differ only in what stands in brackets have one text, so one target.
            groups: dict[tuple[str, str], list[tuple[int, int, Any]]] = {}
            for annotation in sorted(found.annotations.get(unit, []), key=lambda each: each[1]):
                groups.setdefault(found.names[annotation[1]], []).append(annotation)
            for names, group in groups.items():
                row = self._row(unit, names, group, picture, entry["file_name"], report)
                if row is not None:
                    yield row

    def _fits(self, unit: str, entry: Mapping[str, Any], size: tuple[int, int], report: Report) -> bool:
        """Whether the picture has the size that the file states; one that states none is believed."""
        stated = (entry["height"], entry["width"])
        if stated in ((None, None), size):
            return True
        said = f"{describe(stated[0])} x {describe(stated[1])}"
        report("size_mismatch", unit, f"the file says {said}, but {entry['file_name']} is {size[0]} x {size[1]}.")
        return False

    def _row(
        self,
        unit: str,
        names: tuple[str, str],
        group: Sequence[tuple[int, int, Any]],
        picture: tuple[Path, tuple[int, int]],
        file_name: str,
        report: Report,
    ) -> dict[str, Any] | None:
        """One record, or `None` after a defect."""
        path, size = picture
        masks = []
        for number, _, segmentation in group:
            try:
                masks.append(segmentation_to_rle(segmentation, size))
            except DataError as error:
                kind = "mask_size" if "its frame is" in str(error) else "bad_mask"
                report(kind, f"image {unit}, annotation {number}", str(error))
                return None
        category = group[0][1]
        try:
            return make_row(
                **self.common,
                video_id=unit,
                expression_id=str(category),
                expression=part_text(unit, category, names),
                frame_names=[Path(file_name).stem],
                frame_paths=[str(path)],
                height=size[0],
                width=size[1],
                object_ids=sorted({each[1] for each in group}),
                annotation_ids=[each[0] for each in group],
                masks=[union_rle(masks)],
                expression_type="category",
            )
        except DataError as error:
            report("bad_entry", f"image {unit}, category {category}", str(error))
            return None
