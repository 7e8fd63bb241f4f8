"""ReVOS: referring and reasoning expressions about videos of six sets (cilinyan/ReVOS-api)."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..rle import union_rle
from .builder import Report, VirstDataConfig, VirstDatasetBuilder, raise_problem
from .files import UnsafePathError, data_path, describe, list_images
from .mask_dict import ExpressionReader, Rle, read_mask_dict, read_videos

__all__ = ["ReVOS", "ReVOSConfig", "is_misaligned"]

# The underscore before the suffix is the release's own. A third file, ..._train_sub_.json, is part of the first.
EXPRESSION_FILES = {"train": "meta_expressions_train_.json", "valid": "meta_expressions_valid_.json"}
MASKS, FRAMES = "mask_dict.json", "JPEGImages"
FOLDERS = ("ReVOS", "revos")
# The evaluation script of ReVOS averages 0 and 1 and skips 2.
EXPRESSION_TYPES = {0: "referring", 1: "reasoning", 2: "no_target"}


def is_misaligned(name: str) -> bool:
    """Whether the masks of a video are known to lie beside its objects (VISA, issue 9): the Charades part of TAO.

    Args:
        name (`str`): Name of the video.

    Returns:
        `bool`: Whether training leaves it out.

    Example:

    ```python
    >>> from virst_hf.data.revos import is_misaligned
    >>> is_misaligned("TAO/train/Charades/x"), is_misaligned("TAO/train/YFCC100M/x")
    (True, False)

    ```
    """
    return "TAO" in name and "Charades" in name


def expression_type(entry: Mapping[str, Any]) -> str:
    """The type of an expression, by its `type_id`.

    Args:
        entry (`Mapping[str, Any]`): What the JSON says of the expression.

    Returns:
        `str`: `"referring"`, `"reasoning"` or `"no_target"`.

    Raises:
        DataError: It has none of the three.
    """
    number = entry.get("type_id")
    # A comparison alone would take true for 1.
    if type(number) is not int or number not in EXPRESSION_TYPES:
        raise DataError(f'"type_id" must be 0 (referring), 1 (reasoning) or 2 (no target), found {describe(number)}.')
    return EXPRESSION_TYPES[number]


@dataclasses.dataclass
class ReVOSConfig(VirstDataConfig):
    """
    What can be chosen for ReVOS.

    Args:
        exclude_misaligned (`bool`, *optional*, defaults to `True`): Leave out the clips whose masks are known to be
            misaligned, in training; validation is always read as provided.
    """

    exclude_misaligned: bool = True


class ReVOS(VirstDatasetBuilder):
    """
    ReVOS. A record has `expression_type` "referring", "reasoning" or "no_target"; names of videos are paths, as
    `UVO/all/-fbscFfkh4M`.
    """

    NAME = "revos"
    CATEGORY = "rvos"
    SPLITS = ("train", "valid")
    TREE = """\
ReVOS/
  JPEGImages/<source>/.../<clip>/<frame>.jpg ...      (or the folders of the sources beside the JSON files)
  mask_dict.json                                      (both splits)
  meta_expressions_train_.json
  meta_expressions_valid_.json
or the folder above (ReVOS/ or revos/ in it)"""
    BUILDER_CONFIG_CLASS = ReVOSConfig
    BUILDER_CONFIGS = [ReVOSConfig(name="default")]

    def _path(self, root: Path, name: str) -> Path:
        """A file of the set's folder: `root`, or ReVOS or revos in it."""
        for place in ((), *((folder,) for folder in FOLDERS)):
            if any(root.joinpath(*place, file).is_file() for file in EXPRESSION_FILES.values()):
                return data_path(root, *place, name, follow_links=self.config.follow_links)
        return root / name

    def find_splits(self, root: Path) -> list[str]:
        """Splits whose file of expressions is there."""
        return [split for split, name in EXPRESSION_FILES.items() if self._path(root, name).is_file()]

    def annotation_paths(self, root: Path, split: str) -> list[Path]:
        """The expressions and the masks."""
        return [self._path(root, EXPRESSION_FILES[split]), self._path(root, MASKS)]

    def excluded_units(self, root: Path, split: str) -> list[str]:
        """Videos that a split leaves out, because their masks are known to be misaligned.

        Args:
            root (`pathlib.Path`): Root of the data set.
            split (`str`): `"train"` or `"valid"`.

        Returns:
            `list[str]`: Names; none for validation, or if `exclude_misaligned` is off.
        """
        if split != "train" or not self.config.exclude_misaligned:
            return []
        return [name for name in read_videos(self._path(root, EXPRESSION_FILES[split])) if is_misaligned(name)]

    def units(self, root: Path, split: str, report: Report) -> list[str]:
        """Videos, in the order of the file, without those that are left out."""
        left_out = set(self.excluded_units(root, split))
        return [name for name in read_videos(self._path(root, EXPRESSION_FILES[split])) if name not in left_out]

    def rows(self, root: Path, split: str, units: Sequence[str], report: Report) -> Iterator[dict[str, Any]]:
        """One record for each expression."""
        expressions, masks = self.annotation_paths(root, split)
        yield from self._rows(root, split, read_videos(expressions), units, read_mask_dict(masks), report)

    def _rows(
        self,
        root: Path,
        split: str,
        videos: Mapping[str, Any],
        units: Sequence[str],
        masks: Mapping[str, Any],
        report: Report,
    ) -> Iterator[dict[str, Any]]:
        """Records of these videos, wherever the frames are."""
        base = self._path(root, MASKS).parent
        folder = base / FRAMES if (base / FRAMES).is_dir() else base
        links = self.config.follow_links
        if folder == root:
            # The reader wants a folder of videos below its root, so it gets the folder above; links are looked at
            # here, as ours may itself be one, and none of them may lead beside it.
            units = [name for name in units if _stays_below(root, name, links, report)]
            root, links = root.parent, True
        common = {"category": self.CATEGORY, "source": self.NAME, "split": split}
        reader = ExpressionReader(
            root,
            folder.relative_to(root).as_posix(),
            videos,
            masks,
            report,
            common,
            expression_type=expression_type,
            follow_links=links,
        )
        yield from reader.rows(units)

    # --- what the measures of ReVOS need -----------------------------------------------------------------------------
    def foreground_tracks(
        self, root: Path, split: str, names: Sequence[str]
    ) -> Iterator[tuple[str, list[Rle | None]]]:
        """What `mask_dict_foreground.json` holds, made anew: the union of all objects that any expression names.

        Args:
            root (`pathlib.Path`): Root of the data set.
            split (`str`): Whose expressions count.
            names (`Sequence[str]`): Videos. One without expressions is passed over.

        Yields:
            `tuple[str, list]`: Name of the video, and an RLE or `None` (nothing there) for each frame.

        Raises:
            DataError: A video has a defect.
        """
        rows = self.rows(root, split, names, raise_problem)
        for name, group in itertools.groupby(rows, key=lambda row: row["video_id"]):
            tracks = [row["masks"] for row in group]
            yield name, [union_rle(frame) for frame in zip(*tracks, strict=True)]

    def object_tracks(
        self, root: Path, split: str, annotation_ids: Sequence[int], name: str
    ) -> list[list[Rle | None]]:
        """Each object of an expression by itself; the record has their union.

        Args:
            root (`pathlib.Path`): Root of the data set.
            split (`str`): Split of the video.
            annotation_ids (`Sequence[int]`): Of the record.
            name (`str`): The video.

        Returns:
            `list[list]`: For each of `annotation_ids` an RLE or `None` for each frame.

        Raises:
            DataError: The video is unknown, an object has no masks, or they are damaged.
        """
        expressions, masks = self.annotation_paths(root, split)
        entry = read_videos(expressions).get(name)
        if not isinstance(entry, dict):
            raise DataError(f"{expressions} has no video {describe(name)}.")
        # An expression for each object, so that they are read and checked as those of the file.
        alone = {str(n): {"exp": "object", "obj_id": [n], "anno_id": [n], "type_id": 0} for n in annotation_ids}
        videos = {name: {**entry, "expressions": alone}}
        rows = self._rows(root, split, videos, [name], read_mask_dict(masks), raise_problem)
        found = {row["expression_id"]: row["masks"] for row in rows}
        return [found[str(number)] for number in annotation_ids]


def _stays_below(root: Path, name: str, follow_links: bool, report: Report) -> bool:
    """Whether the folder of a video and its files are below `root`; if not, it is reported."""
    try:
        list_images(root, name, follow_links=follow_links)
    except DataError as error:
        report("unsafe_path" if isinstance(error, UnsafePathError) else "missing_frame", name, str(error))
        return False
    return True
