"""Shapes, the synthetic benchmark of `virst data make-shapes`, read by the readers whose layouts it has."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from .builder import Report, VirstDataConfig, VirstDatasetBuilder
from .coco_parts import PartReader
from .llava_video import VideoQuestionReader
from .mask_dict import ExpressionReader, read_mask_dict, read_videos
from .paco_lvis import file_of
from .reason_seg import ReasonSegReader
from .records import CATEGORIES
from .refer import ReferReader, find_refer_files
from .semantic import Place

__all__ = ["Shapes"]

# The file that says with which arguments a split was made; it is written last.
MANIFEST = "shapes.json"
# What the layouts of the still images call our splits.
IMAGE_SPLITS = {"train": "train", "valid": "val", "test": "test"}


class Shapes(VirstDatasetBuilder):
    """
    Shapes. Its configurations are the five categories: `"rvos"` (the benchmark itself, the default),
    `"referring_image"`, `"reasoning_image"`, `"semantic_segmentation"` and `"video_qa"`.
    """

    NAME = "shapes"
    CATEGORY = "rvos"
    SPLITS = ("train", "valid", "test")
    TREE = """\
root/                                  (virst data make-shapes --root root --split test --videos 200 --seed 0)
  <split>/                             train, valid, test
    JPEGImages/<video>/00000.jpg ...   meta_expressions.json   mask_dict.json       rvos, as MeViS
    refer_seg/                                                                      referring_image, as RefCOCO
    reason_seg/                                                                     reasoning_image, as ReasonSeg
    paco/                                                                           semantic_segmentation, as PACO-LVIS
    llava_video/questions.json                                                      video_qa, as LLaVA-Video"""
    BUILDER_CONFIGS = [VirstDataConfig(name=name) for name in sorted(CATEGORIES, key=lambda name: name != "rvos")]

    def find_splits(self, root: Path) -> list[str]:
        """Split folders that were made."""
        return [split for split in self.SPLITS if (root / split / MANIFEST).is_file()]

    def annotation_paths(self, root: Path, split: str) -> list[Path]:
        """Those of the layout."""
        base = root / split
        paths = {
            "rvos": [base / "meta_expressions.json", base / "mask_dict.json"],
            "referring_image": [base / "refer_seg" / "refcoco"],
            "reasoning_image": [base / "reason_seg"],
            "semantic_segmentation": [base / "paco" / "annotations"],
            "video_qa": [base / "llava_video"],
        }
        return paths[self.config.name]

    def units(self, root: Path, split: str, report: Report) -> list[str]:
        """Videos or images."""
        return self._read(root, split, None, report)

    def rows(self, root: Path, split: str, units: Sequence[str], report: Report) -> Iterator[dict[str, Any]]:
        """Records of this configuration."""
        yield from self._read(root, split, units, report)

    def _read(self, root: Path, split: str, units: Sequence[str] | None, report: Report) -> Any:
        """The records of some units, or without `units` the units themselves."""
        category, links = self.config.name, self.config.follow_links
        common = {"category": category, "source": self.NAME, "split": split}
        paths = self.annotation_paths(root, split)
        if category == "rvos":
            videos = read_videos(paths[0])
            if units is None:
                return list(videos)
            folder = f"{split}/JPEGImages"
            masks = read_mask_dict(paths[1])
            return ExpressionReader(root, folder, videos, masks, report, common, follow_links=links).rows(units)
        inner = IMAGE_SPLITS[split]
        if category == "semantic_segmentation":
            images = Place(root, (split, "paco", "coco"), links)
            parts = PartReader(paths[0] / file_of(inner), images, common)
            return parts.units(report) if units is None else parts.rows(units, report)
        if category == "referring_image":
            files = find_refer_files(root / split, ("refcoco",), "unc", follow_links=links)
            if files is None:
                raise DataError(f"{root / split} has no refer_seg/refcoco/refs(unc).json; make the split again.")
            reader: Any = ReferReader(files, None, report, common, links)
        elif category == "reasoning_image":
            folder = f"{split}/reason_seg/{inner}"
            reader = ReasonSegReader(root, folder, report, common, all_texts=True, follow_links=links)
        else:
            questions = paths[0] / "questions.json"
            reader = VideoQuestionReader(root, split, questions, report, common, frames=True, follow_links=links)
        return reader.units() if units is None else reader.rows(units)
