"""LV-VIS: names of categories, all instances the target; from VISA's files or the release (haochenheheda/LVVIS)."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..rle import polygons_to_rle
from ..video_io import IMAGE_SUFFIXES
from .builder import Report, VirstDatasetBuilder
from .files import cached_file_reader, data_path, describe, read_json
from .mask_dict import ExpressionReader, read_mask_dict, read_videos
from .records import MAX_ID, is_text

__all__ = ["LVVIS", "read_instances"]

EXPRESSIONS, MASKS, INSTANCES = "meta_expressions.json", "mask_dict.json", "train_instances.json"
FOLDERS = ("lvvis", "LVVIS", "LV-VIS")
# Where the file of the original release may have been put, below the set's folder.
INSTANCE_PLACES = ((), ("train",), ("annotations",))
# (check, item, message), as a report takes them.
Problem = tuple[str, str, str]


@cached_file_reader
def read_instances(path: Path) -> tuple[dict[str, Any], list[Problem]]:
    """The videos of a `train_instances.json`, which is in the style of YouTube-VIS.

    Args:
        path (`pathlib.Path`): The file.

    Returns:
        `tuple[dict, list]`: Name of a video -> `height`, `width`, `frames` (`list[str]`, in the order of the file)
        and `instances` (a list of annotation id, name of the category, and segmentations as they are in the file);
        and the defects, as a `Report` takes them. Videos without instances are left out, as VISA's files have none.

    Raises:
        DataError: It is no such file.
    """
    content = read_json(path)
    keys = ("videos", "annotations", "categories")
    videos, annotations, categories = (content.get(key) if isinstance(content, dict) else None for key in keys)
    if not (isinstance(videos, list) and isinstance(annotations, list) and isinstance(categories, list)):
        raise DataError(f'{path} must hold "videos", "annotations" and "categories", three lists; it does not.')
    problems: list[Problem] = []
    names = _category_names(categories, problems)
    by_name: dict[str, Any] = {}
    by_id: dict[int, Any] = {}
    for index, item in enumerate(videos):
        try:
            number, name, video = _video(item)
        except DataError as error:
            problems.append(("bad_entry", f"videos, entry {index}", str(error)))
            continue
        if number in by_id or name in by_name:
            problems.append(("duplicate", name, f"two videos have this name, or the id {number}; the first is taken."))
            continue
        by_id[number] = by_name[name] = video
    seen: set[int] = set()
    for index, item in enumerate(annotations):
        problem = _add_instance(item, by_id, names, seen)
        if problem is not None:
            problems.append((problem[0], f"annotations, entry {index}", problem[1]))
    return {name: video for name, video in by_name.items() if video["instances"]}, problems


def _is_id(value: Any) -> bool:
    return type(value) is int and abs(value) <= MAX_ID


def _category_names(categories: list[Any], problems: list[Problem]) -> dict[int, str]:
    """Category id -> its name, as written."""
    names: dict[int, str] = {}
    for index, item in enumerate(categories):
        number, name = (item.get("id"), item.get("name")) if isinstance(item, dict) else (None, None)
        where = f"categories, entry {index}"
        if not _is_id(number) or not is_text(name):
            problems.append(("bad_entry", where, 'it needs "id", a whole number, and "name", a text.'))
        elif number in names:
            problems.append(("duplicate", where, f"two categories have the id {number}; the first is taken."))
        else:
            names[number] = name
    return names


def _video(item: Any) -> tuple[int, str, dict[str, Any]]:
    """Id, name, and what the reader of expressions wants to know of a video."""
    number, files = (item.get("id"), item.get("file_names")) if isinstance(item, dict) else (None, None)
    if not _is_id(number):
        raise DataError(f'a video needs "id", a whole number, found {describe(number)}.')
    size = item.get("height"), item.get("width")
    if not all(type(length) is int and length > 0 for length in size):
        raise DataError(f'video {number} needs "height" and "width", two positive whole numbers.')
    if not isinstance(files, list) or not files or not all(is_text(file) for file in files):
        raise DataError(f'video {number} needs "file_names", a list with at least one name.')
    folders, frames = set(), []
    for file in files:
        # The release was written on Windows; what stands before the last two parts depends on the disk it was on.
        steps = file.replace("\\", "/").split("/")
        frame, dot, suffix = steps[-1].rpartition(".")
        if len(steps) < 2 or not is_text(steps[-2]) or not is_text(frame) or dot + suffix not in IMAGE_SUFFIXES:
            raise DataError(f"video {number}: {describe(file)} is no <video>/<frame>.jpg.")
        folders.add(steps[-2])
        frames.append(frame)
    if len(folders) > 1:
        raise DataError(
            f"video {number}: its frames are of {len(folders)} folders, among them {describe(min(folders))}."
        )
    return number, folders.pop(), {"height": size[0], "width": size[1], "frames": frames, "instances": []}


def _add_instance(
    item: Any, videos: Mapping[int, Any], names: Mapping[int, str], seen: set[int]
) -> tuple[str, str] | None:
    """Put an annotation to its video; a check and a message after a defect."""
    keys = ("id", "video_id", "category_id")
    numbers = [item.get(key) if isinstance(item, dict) else None for key in keys]
    if not all(_is_id(number) for number in numbers):
        return "bad_entry", 'it needs "id", "video_id" and "category_id", whole numbers.'
    number, video, category = numbers
    if number in seen:
        return "duplicate", f"two annotations have the id {number}; the first is taken."
    seen.add(number)
    if video not in videos or category not in names:
        missing = f"video {video}" if video not in videos else f"category {category}"
        return "unknown_id", f"annotation {number} is of {missing}, which the file does not have."
    videos[video]["instances"].append((number, names[category], item.get("segmentations")))
    return None


def _spoken(text: str) -> str:
    return text.replace("_", " ")


def _no_type(entry: Mapping[str, Any]) -> None:
    """LV-VIS has expressions of one type."""


class LVVIS(VirstDatasetBuilder):
    """
    LV-VIS. Each record is about all instances of a category in a video. Where VISA's two JSON files are missing, the
    same records are made from the original release, with its annotation ids.
    """

    NAME = "lv-vis"
    CATEGORY = "rvos"
    SPLITS = ("train",)
    TREE = """\
lvvis/
  train/  JPEGImages/<video>/00000.jpg ...   mask_dict.json   meta_expressions.json       (VISA's JSON files)
or, where one of the two is missing,
lvvis/
  train/  JPEGImages/<video>/00000.jpg ...
  train_instances.json                       (original release; also in train/ or annotations/)
or the folder above (lvvis/, LVVIS/ or LV-VIS/ in it)"""

    def _base(self, root: Path) -> tuple[str, ...]:
        """The set's folder, as steps from `root`."""
        for place in ((), *((folder,) for folder in FOLDERS)):
            if (root.joinpath(*place) / "train" / "JPEGImages").is_dir():
                return place
        return ()

    def _path(self, root: Path, *steps: str) -> Path:
        return data_path(root, *self._base(root), *steps, follow_links=self.config.follow_links)

    def _instances(self, root: Path) -> Path | None:
        """The file of the original release, if it is to be read."""
        if all(self._path(root, "train", name).is_file() for name in (EXPRESSIONS, MASKS)):
            return None
        paths = [self._path(root, *place, INSTANCES) for place in INSTANCE_PLACES]
        return next((path for path in paths if path.is_file()), None)

    def find_splits(self, root: Path) -> list[str]:
        """Training, if one of the two forms is there."""
        found = self._path(root, "train", EXPRESSIONS).is_file() or self._instances(root) is not None
        return ["train"] if found else []

    def annotation_paths(self, root: Path, split: str) -> list[Path]:
        """VISA's two files, or that of the original release."""
        instances = self._instances(root)
        return [self._path(root, "train", name) for name in (EXPRESSIONS, MASKS)] if instances is None else [instances]

    def units(self, root: Path, split: str, report: Report) -> list[str]:
        """Videos, in the order of the file."""
        instances = self._instances(root)
        if instances is None:
            return list(read_videos(self._path(root, "train", EXPRESSIONS)))
        videos, problems = read_instances(instances)
        for problem in problems:
            report(*problem)
        return list(videos)

    def rows(self, root: Path, split: str, units: Sequence[str], report: Report) -> Iterator[dict[str, Any]]:
        """One record for each category of a video."""
        instances = self._instances(root)
        if instances is None:
            expressions, masks = self.annotation_paths(root, split)
            yield from self._reader(root, read_videos(expressions), read_mask_dict(masks), report).rows(units)
            return
        videos = read_instances(instances)[0]
        for name in units:
            # One video at a time: as RLE all polygons of the release would not fit into memory.
            entry, masks = _as_expressions(name, videos[name], report)
            yield from self._reader(root, {name: entry}, masks, report).rows([name])

    def _reader(
        self, root: Path, videos: Mapping[str, Any], masks: Mapping[str, Any], report: Report
    ) -> ExpressionReader:
        return ExpressionReader(
            root,
            "/".join((*self._base(root), "train", "JPEGImages")),
            videos,
            masks,
            report,
            {"category": self.CATEGORY, "source": self.NAME, "split": "train"},
            expression_type=_no_type,
            clean=_spoken,
            follow_links=self.config.follow_links,
        )


def _as_expressions(name: str, video: Mapping[str, Any], report: Report) -> tuple[dict[str, Any], dict[str, Any]]:
    """A video of the original release in VISA's form: its entry, and the masks of its instances."""
    groups: dict[str, dict[str, Any]] = {}
    masks: dict[str, Any] = {}
    broken = set()
    for index, (number, category, track) in enumerate(video["instances"]):
        group = groups.setdefault(category, {"exp": category, "obj_id": [], "anno_id": []})
        group["obj_id"].append(index)
        group["anno_id"].append(number)
        try:
            masks[str(number)] = _as_rles(track, (video["height"], video["width"]))
        except DataError as error:
            report("bad_mask", f"{name}, annotation {number}", str(error))
            broken.add(category)
    expressions = {str(key): group for key, group in enumerate(groups.values()) if group["exp"] not in broken}
    return {**video, "expressions": expressions}, masks


def _as_rles(track: Any, size: tuple[int, int]) -> Any:
    """Polygons drawn; everything else as it is, for the reader to check."""
    if not isinstance(track, list):
        return track
    return [polygons_to_rle(item, size) if isinstance(item, list) else item for item in track]
