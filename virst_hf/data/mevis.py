"""MeViS: expressions about motion, several objects to an expression (henghuiding/MeViS)."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .builder import Report, VirstDataConfig, VirstDatasetBuilder
from .files import data_path
from .mask_dict import ExpressionReader, read_mask_dict, read_videos

__all__ = ["MeViS"]

# Configuration -> the file of expressions. Version 2 adds sentences, those without a target among them.
EXPRESSION_FILES = {"v1": "meta_expressions.json", "v2": "meta_expressions_v2.json"}
# The server keeps the masks of this split.
WITHOUT_MASKS = ("valid",)


class MeViS(VirstDatasetBuilder):
    """
    MeViS, versions 1 and 2 as the configurations `"v1"` and `"v2"`: numbers of the two are not comparable.
    """

    NAME = "mevis"
    CATEGORY = "rvos"
    SPLITS = ("train", "valid_u", "valid")
    TREE = """\
mevis/
  train/    JPEGImages/<video>/00000.jpg ...   mask_dict.json   meta_expressions.json
  valid_u/  JPEGImages/<video>/00000.jpg ...   mask_dict.json   meta_expressions.json
  valid/    JPEGImages/<video>/00000.jpg ...                    meta_expressions.json   (masks are on the server)
(version 2: meta_expressions_v2.json)"""
    BUILDER_CONFIGS = [VirstDataConfig(name="v1"), VirstDataConfig(name="v2")]

    def _base(self, root: Path) -> Path:
        """The folder of the splits: `root`, or `mevis` in it."""
        inner = root / "mevis"
        return inner if inner.is_dir() and not any((root / split).is_dir() for split in self.SPLITS) else root

    def _path(self, root: Path, split: str, name: str) -> Path:
        """A file of a split; links out of the root are refused."""
        above = self._base(root).relative_to(root).parts
        return data_path(root, *above, split, name, follow_links=self.config.follow_links)

    def _expressions(self, root: Path, split: str) -> Path:
        return self._path(root, split, EXPRESSION_FILES[self.config.name])

    def find_splits(self, root: Path) -> list[str]:
        """Splits whose file of expressions is there."""
        return [split for split in self.SPLITS if self._expressions(root, split).is_file()]

    def annotation_paths(self, root: Path, split: str) -> list[Path]:
        """The expressions and the masks."""
        return [self._expressions(root, split), self._path(root, split, "mask_dict.json")]

    def units(self, root: Path, split: str, report: Report) -> list[str]:
        """Videos, in the order of the file."""
        return list(read_videos(self._expressions(root, split)))

    def rows(self, root: Path, split: str, units: Sequence[str], report: Report) -> Iterator[dict[str, Any]]:
        """One record for each expression."""
        expressions, masks = self.annotation_paths(root, split)
        reader = ExpressionReader(
            root,
            f"{expressions.parent.relative_to(root).as_posix()}/JPEGImages",
            read_videos(expressions),
            None if split in WITHOUT_MASKS and not masks.is_file() else read_mask_dict(masks),
            report,
            {"category": self.CATEGORY, "source": self.NAME, "split": split},
            follow_links=self.config.follow_links,
        )
        yield from reader.rows(units)
