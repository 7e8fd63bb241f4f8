"""ADE20K in the form of the scene parsing challenge (ADEChallengeData2016): 150 classes, one label map a picture."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .builder import Report, VirstDatasetBuilder
from .class_names import ADE20K_NAMES
from .semantic import LabelMaps, Place, find_place

__all__ = ["ADE20K"]

# The challenge's own folder, LISA's and VIRST's.
FOLDERS = ("", "ade20k", "ADEChallengeData2016", "sem_seg/ade20k")
FOLDERS += ("ade20k/ADEChallengeData2016", "sem_seg/ade20k/ADEChallengeData2016")
# 0 is "other"; 255 is what LISA writes for it.
IGNORED = frozenset({0, 255})


class ADE20K(VirstDatasetBuilder):
    """
    ADE20K, one record for each class in each picture. The expression is the name of the class; pixels without a class
    are in `ignore_masks`.
    """

    NAME = "ade20k"
    CATEGORY = "semantic_segmentation"
    SPLITS = ("training", "validation")
    TREE = """\
ade20k/   (or ADEChallengeData2016/, sem_seg/ade20k/, or this folder itself)
  images/training/ADE_train_00000001.jpg ...        annotations/training/ADE_train_00000001.png ...
  images/validation/ADE_val_00000001.jpg ...        annotations/validation/ADE_val_00000001.png ..."""

    def _base(self, root: Path) -> Place | None:
        def fits(place: Place) -> bool:
            return any(place.file("annotations", split).is_dir() for split in self.SPLITS)

        return find_place(Place(root, (), self.config.follow_links), FOLDERS, fits)

    def _reader(self, root: Path, split: str) -> LabelMaps:
        base = self._base(root) or Place(root, (), self.config.follow_links)
        return LabelMaps(
            base.below("annotations", split),
            base.below("images", split),
            {index + 1: (index, name) for index, name in enumerate(ADE20K_NAMES)},
            IGNORED,
            {"category": self.CATEGORY, "source": self.NAME, "split": split},
        )

    def find_splits(self, root: Path) -> list[str]:
        """Splits that have a folder of label maps."""
        base = self._base(root)
        return [split for split in self.SPLITS if base and base.file("annotations", split).is_dir()]

    def annotation_paths(self, root: Path, split: str) -> list[Path]:
        """The folder of the label maps."""
        return [self._reader(root, split).maps.path]

    def units(self, root: Path, split: str, report: Report) -> list[str]:
        """Names of the pictures and of the label maps, sorted."""
        return self._reader(root, split).units(report, with_images=True)

    def rows(self, root: Path, split: str, units: Sequence[str], report: Report) -> Iterator[dict[str, Any]]:
        """One record for each class that a picture shows."""
        yield from self._reader(root, split).rows(units, report)
