"""PACO-LVIS: 75 classes of objects and 456 of their parts, in pictures of COCO 2017."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .builder import Report, VirstDatasetBuilder
from .coco_parts import PartReader
from .semantic import Place, SemanticConfig, find_place

__all__ = ["PACOLVIS"]

# LISA's folder, VIRST's, and the set's own with and without its folder of annotations.
FOLDERS = ("vlpart/paco", "sem_seg/vlpart/paco", "paco", "")
ANNOTATIONS = ("annotations", "")


class PACOLVIS(VirstDatasetBuilder):
    """
    PACO-LVIS, one record for each class of objects and each part of one in each picture. The target unites all
    annotations of the class. Not every instance is annotated.
    """

    NAME = "paco-lvis"
    CATEGORY = "semantic_segmentation"
    SPLITS = ("train", "val", "test")
    TREE = """\
vlpart/paco/annotations/paco_lvis_v1_{train,val,test}.json
coco/train2017/000000000009.jpg ...   coco/val2017/000000000139.jpg ...
(both may lie in sem_seg/, and coco/ in vlpart/paco/; image_root names the folder that has train2017/)"""
    BUILDER_CONFIG_CLASS = SemanticConfig
    BUILDER_CONFIGS = [SemanticConfig(name="default")]

    def _annotations(self, root: Path, split: str) -> Place | None:
        """The folder with the file of a split."""
        folders = [f"{folder}/{inner}".strip("/") for folder in FOLDERS for inner in ANNOTATIONS]
        start = Place(root, (), self.config.follow_links)
        return find_place(start, folders, lambda place: place.file(file_of(split)).is_file())

    def _images(self, annotations: Place) -> Place:
        """The folder that has train2017: COCO's, in the set's own folder, beside it, or further up."""
        if self.config.image_root is not None:
            return Place(Path(self.config.image_root).expanduser().absolute(), (), self.config.follow_links)
        parts = annotations.parts[:-1] if annotations.parts[-1:] == ("annotations",) else annotations.parts
        tops = [Place(annotations.root, parts[:end], annotations.follow_links) for end in range(len(parts), -1, -1)]
        if not parts:
            # The root is the set's own folder: LISA has it as vlpart/paco beside coco.
            beside = (annotations.root.parent, annotations.root.parent.parent)
            tops += [Place(folder, (), annotations.follow_links) for folder in beside]
        for top in tops:
            if top.file("coco").is_dir():
                return top.below("coco")
        return tops[-1 if parts else 0].below("coco")

    def _reader(self, root: Path, split: str) -> PartReader:
        place = self._annotations(root, split) or Place(root, ("annotations",), self.config.follow_links)
        common = {"category": self.CATEGORY, "source": self.NAME, "split": split}
        return PartReader(place.file(file_of(split)), self._images(place), common)

    def find_splits(self, root: Path) -> list[str]:
        """Splits whose file is there."""
        return [split for split in self.SPLITS if self._annotations(root, split)]

    def annotation_paths(self, root: Path, split: str) -> list[Path]:
        """The file of the split."""
        return [self._reader(root, split).path]

    def units(self, root: Path, split: str, report: Report) -> list[str]:
        """Ids of the pictures, in the order of the file."""
        return self._reader(root, split).units(report)

    def rows(self, root: Path, split: str, units: Sequence[str], report: Report) -> Iterator[dict[str, Any]]:
        """One record for each object class and each part in a picture."""
        yield from self._reader(root, split).rows(units, report)


def file_of(split: str) -> str:
    """Name of the annotation file of a split.

    Args:
        split (`str`): `"train"`, `"val"` or `"test"`; Shapes has splits of other names.

    Returns:
        `str`: The name.
    """
    return f"paco_lvis_v1_{split}.json"
