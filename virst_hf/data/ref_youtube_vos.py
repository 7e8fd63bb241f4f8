"""Ref-YouTube-VOS: about two expressions for each object of YouTube-VOS (youtube-vos.org)."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from .builder import Report, VirstDatasetBuilder
from .files import cached_file_reader, data_path, describe
from .mask_dict import read_videos
from .palettes import PaletteReader, Rle
from .pickles import read_pickle
from .ref_youtube_vos_valid import VALID_VIDEOS

__all__ = ["PackedReader", "RefYouTubeVOS", "number_expressions", "read_packed_masks"]

FOLDERS = ("refytvos", "Ref-Youtube-VOS", "ref-youtube-vos")
# Their trees are alike; a folder of this name is not taken for this set.
OTHER_SETS = ("davis17", "ref-davis", "ref-davis17")


@cached_file_reader
def read_packed_masks(path: Path) -> dict[Any, Any]:
    """The masks of a `mask_dict.pkl` of VISA.

    Args:
        path (`pathlib.Path`): The file.

    Returns:
        `dict`: Running number of an expression as text -> list with an RLE or None for each frame, unchecked.

    Raises:
        DataError: It is no pickle of such a dictionary, or of more than plain data.
    """
    content = read_pickle(path)
    if not isinstance(content, dict):
        raise DataError(
            f"{path} must hold {{number of an expression: [mask of each frame]}}, not {describe(content)}."
        )
    return content


def number_expressions(videos: Mapping[str, Any]) -> dict[tuple[str, str], int]:
    """The running numbers by which `mask_dict.pkl` names the expressions: over the videos sorted by name, and in each
    over its expressions sorted as texts ("0", "1", "10", "11", "2").

    Args:
        videos (`Mapping[str, Any]`): As [`~mask_dict.read_videos`] gives them.

    Returns:
        `dict`: (video, expression id) -> number from 0.

    Raises:
        DataError: A video has no dictionary of expressions, so that later numbers could only be guessed.

    Example:

    ```python
    >>> from virst_hf.data.ref_youtube_vos import number_expressions
    >>> number_expressions({"b": {"expressions": {"2": {}, "10": {}}}, "a": {"expressions": {"0": {}}}})
    {('a', '0'): 0, ('b', '10'): 1, ('b', '2'): 2}

    ```
    """
    numbers: dict[tuple[str, str], int] = {}
    for name in sorted(videos):
        entry = videos[name]
        expressions = entry.get("expressions") if isinstance(entry, dict) else None
        if not isinstance(expressions, dict):
            raise DataError(f'{name}: it has no "expressions", so mask_dict.pkl cannot be told apart from there on.')
        for key in sorted(expressions):
            numbers[name, key] = len(numbers)
    return numbers


class PackedReader(PaletteReader):
    """
    Reads the same records with masks from VISA's `mask_dict.pkl`, which has one entry for each expression.

    Args:
        packed (`Mapping[str, Any]`): As [`read_packed_masks`] gives them.
        **fields: As [`~palettes.PaletteReader`] takes them.

    Raises:
        DataError: There are more or fewer entries than expressions: the numbers would name wrong masks.
    """

    def __init__(self, packed: Mapping[str, Any], **fields: Any) -> None:
        super().__init__(**fields)
        self.masks = packed
        self.numbers = number_expressions(self.videos)
        if len(packed) != len(self.numbers):
            raise DataError(
                f"mask_dict.pkl has {len(packed)} entries, but there are {len(self.numbers)} expressions. It names "
                "them by counting, so both files must be of one release; or unpack train/Annotations, which is "
                "preferred."
            )

    def _targets(
        self, name: str, fields: Mapping[str, Any], asked: Mapping[str, list[int]]
    ) -> tuple[dict[str, list[Rle | None]], list[Rle | None] | None] | None:
        """Masks of each expression; those with a defect are left out."""
        size, length = (fields["height"], fields["width"]), len(fields["frame_names"])
        tracks = {key: self._track(name, self.numbers[name, key], size, length) for key in asked}
        return {key: track for key, track in tracks.items() if track is not None}, None


class RefYouTubeVOS(VirstDatasetBuilder):
    """
    Ref-YouTube-VOS. Masks come from the palette PNGs of `train/Annotations`; those of the validation split are with
    the server.
    """

    NAME = "ref-youtube-vos"
    CATEGORY = "rvos"
    SPLITS = ("train", "valid")
    TREE = """\
refytvos/                    (or Ref-Youtube-VOS/; the root may be this folder or the one above)
  meta_expressions/{train,valid}/meta_expressions.json
  train/  JPEGImages/<video>/00000.jpg 00005.jpg ...   Annotations/<video>/00000.png 00005.png ...
  valid/  JPEGImages/<video>/00000.jpg 00005.jpg ...   (masks are on the server)
(train/mask_dict.pkl of VISA is read where train/Annotations is missing; train/meta.json is not needed)"""

    def _base(self, root: Path) -> Path:
        """The folder of `meta_expressions`: `root`, or one of the known names in it."""
        if (root / "meta_expressions").is_dir():
            return root
        return next((root / name for name in FOLDERS if (root / name / "meta_expressions").is_dir()), root)

    def _path(self, root: Path, *parts: str) -> Path:
        """A path in the folder of the set; links out of the root are refused."""
        above = self._base(root).relative_to(root).parts
        return data_path(root, *above, *parts, follow_links=self.config.follow_links)

    def _expressions(self, root: Path, split: str) -> Path:
        return self._path(root, "meta_expressions", split, "meta_expressions.json")

    def find_splits(self, root: Path) -> list[str]:
        """Splits whose file of expressions is there."""
        if root.name in OTHER_SETS:
            return []
        return [split for split in self.SPLITS if self._expressions(root, split).is_file()]

    def annotation_paths(self, root: Path, split: str) -> list[Path]:
        """The expressions, and in training the masks."""
        expressions = self._expressions(root, split)
        return [expressions, self._masks(root)] if split == "train" else [expressions]

    def _masks(self, root: Path) -> Path:
        """The folder of PNGs, or VISA's pickle where there is only that."""
        folder, packed = self._path(root, "train", "Annotations"), self._path(root, "train", "mask_dict.pkl")
        return packed if packed.is_file() and not folder.is_dir() else folder

    def units(self, root: Path, split: str, report: Report) -> list[str]:
        """Videos, in the order of the file; of the validation file only those of the validation split."""
        videos = list(read_videos(self._expressions(root, split)))
        if split == "train":
            return videos
        known = set(VALID_VIDEOS)
        return [name for name in videos if name in known]

    def rows(self, root: Path, split: str, units: Sequence[str], report: Report) -> Iterator[dict[str, Any]]:
        """One record for each expression."""
        folder = self._path(root, split).relative_to(root).as_posix()
        masks = self._masks(root) if split == "train" else None
        if masks is not None and not masks.exists():
            message = f"there is neither {masks} with PNGs nor mask_dict.pkl beside it; unpack the release again."
            report("missing_file", split, message)
            return
        fields = {
            "root": root,
            "folder": f"{folder}/JPEGImages",
            "videos": read_videos(self._expressions(root, split)),
            "annotations": None if masks is None else f"{folder}/Annotations",
            "report": report,
            "common": {"category": self.CATEGORY, "source": self.NAME, "split": split},
            "follow_links": self.config.follow_links,
        }
        if masks is not None and masks.is_file():
            reader: PaletteReader = PackedReader(read_packed_masks(masks), **fields)
        else:
            reader = PaletteReader(**fields)
        yield from reader.rows(units)
