"""PASCAL-Part in the form of VLPart: 93 parts of the objects of VOC 2010, in one COCO file."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .builder import Report, VirstDatasetBuilder
from .coco_parts import PartReader
from .semantic import Place, SemanticConfig, find_place

__all__ = ["PASCALPart"]

# LISA's folder, VIRST's, and the set's own.
FOLDERS = ("vlpart/pascal_part", "sem_seg/vlpart/pascal_part", "pascal_part", "")
IMAGE_FOLDERS = ("VOCdevkit/VOC2010/JPEGImages", "VOC2010/JPEGImages", "JPEGImages")


class PASCALPart(VirstDatasetBuilder):
    """
    PASCAL-Part, one record for each part of a class of objects in each picture; the target unites all instances.
    """

    NAME = "pascal-part"
    CATEGORY = "semantic_segmentation"
    SPLITS = ("train",)
    TREE = """\
vlpart/pascal_part/train.json     vlpart/pascal_part/VOCdevkit/VOC2010/JPEGImages/2008_000002.jpg ...
(or sem_seg/vlpart/pascal_part/, or this folder itself; image_root names the folder of the pictures)"""
    BUILDER_CONFIG_CLASS = SemanticConfig
    BUILDER_CONFIGS = [SemanticConfig(name="default")]

    def _base(self, root: Path, split: str) -> Place | None:
        start = Place(root, (), self.config.follow_links)
        return find_place(start, FOLDERS, lambda place: place.file(f"{split}.json").is_file())

    def _images(self, base: Place) -> Place:
        """The folder of the pictures."""
        if self.config.image_root is not None:
            return Place(Path(self.config.image_root).expanduser().absolute(), (), self.config.follow_links)
        found = find_place(base, IMAGE_FOLDERS, lambda place: place.path.is_dir())
        return found or base.below(*IMAGE_FOLDERS[0].split("/"))

    def _reader(self, root: Path, split: str) -> PartReader:
        base = self._base(root, split) or Place(root, (), self.config.follow_links)
        common = {"category": self.CATEGORY, "source": self.NAME, "split": split}
        return PartReader(base.file(f"{split}.json"), self._images(base), common)

    def find_splits(self, root: Path) -> list[str]:
        """Splits whose file is there."""
        return [split for split in self.SPLITS if self._base(root, split)]

    def annotation_paths(self, root: Path, split: str) -> list[Path]:
        """The file of the split."""
        return [self._reader(root, split).path]

    def units(self, root: Path, split: str, report: Report) -> list[str]:
        """Ids of the pictures, in the order of the file."""
        return self._reader(root, split).units(report)

    def rows(self, root: Path, split: str, units: Sequence[str], report: Report) -> Iterator[dict[str, Any]]:
        """One record for each part in a picture."""
        yield from self._reader(root, split).rows(units, report)
