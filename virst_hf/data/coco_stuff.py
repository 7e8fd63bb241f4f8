"""COCO-Stuff (stuffthingmaps_trainval2017): things and stuff of COCO 2017, one label map a picture."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .builder import Report, VirstDatasetBuilder
from .class_names import COCO_STUFF_NAMES
from .semantic import LabelMaps, Place, SemanticConfig, find_place

__all__ = ["COCOStuff"]

MAP_FOLDERS = ("cocostuff", "stuffthingmaps_trainval2017", "sem_seg/cocostuff", "")
# Beside the folder of the maps. The last one: pictures and folder of maps both lie in the root.
IMAGE_FOLDERS = ("coco", "images", "coco/images", "")
# LISA leaves these classes out ("wall-brick", "desk-stuff"): no one would ask for them by such a name.
IGNORED = frozenset({255, *(value for value, name in enumerate(COCO_STUFF_NAMES) if "-" in name)})
# mmsegmentation writes maps with numbers of its own beside the originals.
FOREIGN = "_labelTrainIds"


class COCOStuff(VirstDatasetBuilder):
    """
    COCO-Stuff, one record for each class in each picture. The expression is the name of the class; unlabelled pixels
    and those of classes with "-" in the name are in `ignore_masks`, as LISA treats them.
    """

    NAME = "coco-stuff"
    CATEGORY = "semantic_segmentation"
    SPLITS = ("train2017", "val2017")
    TREE = """\
cocostuff/train2017/000000000009.png ...     coco/train2017/000000000009.jpg ...
cocostuff/val2017/000000000139.png ...       coco/val2017/000000000139.jpg ...
(or stuffthingmaps_trainval2017/ for cocostuff/; both may lie in sem_seg/; image_root names the pictures' folder)"""
    BUILDER_CONFIG_CLASS = SemanticConfig
    BUILDER_CONFIGS = [SemanticConfig(name="default")]

    def _maps(self, root: Path) -> Place | None:
        def fits(place: Place) -> bool:
            return any(_has_maps(place.file(split)) for split in self.SPLITS)

        return find_place(Place(root, (), self.config.follow_links), MAP_FOLDERS, fits)

    def _images(self, maps: Place, split: str) -> Place:
        """The folder of the pictures: found by its place, never by replacing a part of a path."""
        if self.config.image_root is not None:
            return Place(Path(self.config.image_root).expanduser().absolute(), (split,), self.config.follow_links)
        # Where the root is the folder of the maps, the pictures are beside it.
        top = Place(maps.root if maps.parts else maps.root.parent, maps.parts[:-1], maps.follow_links)

        def fits(place: Place) -> bool:
            return place.below(split).path != maps.below(split).path and place.below(split).path.is_dir()

        return (find_place(top, IMAGE_FOLDERS, fits) or top.below(IMAGE_FOLDERS[0])).below(split)

    def _reader(self, root: Path, split: str) -> LabelMaps:
        maps = self._maps(root) or Place(root, (MAP_FOLDERS[0],), self.config.follow_links)
        return LabelMaps(
            maps.below(split),
            self._images(maps, split),
            {value: (value, name) for value, name in enumerate(COCO_STUFF_NAMES) if value not in IGNORED},
            IGNORED,
            {"category": self.CATEGORY, "source": self.NAME, "split": split},
        )

    def find_splits(self, root: Path) -> list[str]:
        """Splits that have label maps."""
        maps = self._maps(root)
        return [split for split in self.SPLITS if maps and _has_maps(maps.file(split))]

    def annotation_paths(self, root: Path, split: str) -> list[Path]:
        """The folder of the label maps."""
        return [self._reader(root, split).maps.path]

    def units(self, root: Path, split: str, report: Report) -> list[str]:
        """Names of the label maps, sorted."""
        return self._reader(root, split).units(report, with_images=False, skip=FOREIGN)

    def rows(self, root: Path, split: str, units: Sequence[str], report: Report) -> Iterator[dict[str, Any]]:
        """One record for each class that a picture shows."""
        yield from self._reader(root, split).rows(units, report)


def _has_maps(folder: Path) -> bool:
    """Whether a folder has label maps; COCO's own folders of the same name have pictures only."""
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return any(entry.name.endswith(".png") for entry in entries)
