"""Ref-DAVIS17: four expressions for each object of DAVIS 2017, by two people who saw a frame, then the whole video."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from .builder import Report, VirstDataConfig, VirstDatasetBuilder
from .davis_text import NUM_ANNOTATORS, TEXT_FILES, TextFile, merge_texts, read_sequences, read_text_file
from .files import UnsafePathError, data_path, describe, list_images
from .mask_dict import read_videos
from .palettes import PaletteReader

__all__ = ["RefDAVIS17", "RefDAVIS17Config"]

FOLDERS = ("davis17", "ref-davis", "ref-davis17")
# Their trees are alike; a folder of this name is not taken for this set.
OTHER_SETS = ("refytvos", "Ref-Youtube-VOS", "ref-youtube-vos")
VOID = 255
# Split -> its list of sequences in the release.
LISTS = {"train": "train.txt", "valid": "val.txt"}
RESOLUTION = "480p"
# Of the two annotations of the release the one that ReferFormer took, and others after it.
RAW_ANNOTATIONS, CONVERTED_ANNOTATIONS = "Annotations_unsupervised", "Annotations"


@dataclasses.dataclass
class RefDAVIS17Config(VirstDataConfig):
    """
    What can be chosen for Ref-DAVIS17.

    Args:
        annotation_root (`str`, *optional*): Folder of the palette PNGs. When not given: `"Annotations_unsupervised"`
            in the tree of the release, whose `"Annotations"` are those of the semi-supervised task, and
            `"Annotations"` in the converted tree.
    """

    annotation_root: str | None = None


class RefDAVIS17(VirstDatasetBuilder):
    """
    Ref-DAVIS17. Expression `4 * r + k` is what annotator `k` says of the object of rank `r`, so `k` is
    `int(expression_id) % 4`. Void pixels are in `ignore_masks`.
    """

    NAME = "ref-davis17"
    CATEGORY = "rvos"
    SPLITS = ("train", "valid")
    TREE = """\
davis17/                     (the root may be this folder or the one above), as released:
  DAVIS/ImageSets/2017/{train,val}.txt
  DAVIS/JPEGImages/480p/<sequence>/00000.jpg ...
  DAVIS/Annotations_unsupervised/480p/<sequence>/00000.png ...
  davis_text_annotations/{Davis17_annot1,Davis17_annot1_full_video,Davis17_annot2,Davis17_annot2_full_video}.txt
or converted, as VISA and VIRST expect it:
  meta_expressions/{train,valid}/meta_expressions.json
  {train,valid}/  JPEGImages/<sequence>/00000.jpg ...   Annotations/<sequence>/00000.png ..."""
    BUILDER_CONFIG_CLASS = RefDAVIS17Config
    BUILDER_CONFIGS = [RefDAVIS17Config(name="default")]

    # --- where things are --------------------------------------------------------------------------------------------
    def _layout(self, root: Path) -> tuple[Path, bool] | None:
        """The folder of the set, and whether it is converted; `None` if there is none."""
        if root.name in OTHER_SETS:
            return None
        places = [root, *(root / name for name in FOLDERS)]
        for place in places:
            if (place / "meta_expressions").is_dir():
                return place, True
        for place in places:
            if (place / "DAVIS" / "ImageSets").is_dir() and (place / "davis_text_annotations").is_dir():
                return place, False
        return None

    def _place(self, root: Path) -> tuple[Path, bool]:
        """As `_layout`, of a root that has one."""
        found = self._layout(root)
        if found is None:
            raise DataError(f"{root} does not look like {self.NAME}. Expected:\n{self.TREE}")
        return found

    def _path(self, root: Path, *parts: str) -> Path:
        """A path in the folder of the set; links out of the root are refused."""
        above = self._place(root)[0].relative_to(root).parts
        return data_path(root, *above, *parts, follow_links=self.config.follow_links)

    def _list(self, root: Path, split: str) -> Path:
        """The file that says which sequences a split has."""
        if self._place(root)[1]:
            return self._path(root, "meta_expressions", split, "meta_expressions.json")
        return self._path(root, "DAVIS", "ImageSets", "2017", LISTS[split])

    def _frames(self, root: Path, split: str) -> Path:
        """The folder of the sequences' frame folders."""
        parts = (split, "JPEGImages") if self._place(root)[1] else ("DAVIS", "JPEGImages", RESOLUTION)
        return self._path(root, *parts)

    def _annotations(self, root: Path, split: str) -> Path:
        """The folder of the sequences' PNG folders."""
        chosen = self.config.annotation_root
        if self._place(root)[1]:
            return self._path(root, split, CONVERTED_ANNOTATIONS if chosen is None else chosen)
        return self._path(root, "DAVIS", RAW_ANNOTATIONS if chosen is None else chosen, RESOLUTION)

    def _texts(self, root: Path) -> list[Path]:
        """The text files of the release."""
        return [self._path(root, "davis_text_annotations", name) for name in TEXT_FILES]

    # --- what the base asks for --------------------------------------------------------------------------------------
    def find_splits(self, root: Path) -> list[str]:
        """Splits whose list is there."""
        if self._layout(root) is None:
            return []
        return [split for split in self.SPLITS if self._list(root, split).is_file()]

    def annotation_paths(self, root: Path, split: str) -> list[Path]:
        """The list, the PNGs, and in the tree of the release the texts and the frames, which are listed nowhere."""
        listed = [self._list(root, split), self._annotations(root, split)]
        return listed if self._place(root)[1] else [*listed, *self._texts(root), self._frames(root, split)]

    def units(self, root: Path, split: str, report: Report) -> list[str]:
        """Sequences, sorted."""
        path = self._list(root, split)
        if self._place(root)[1]:
            return sorted(read_videos(path))
        for text in self._texts(root):
            for defect in read_text_file(text).defects:
                report(*defect)
        return read_sequences(path, report)

    def rows(self, root: Path, split: str, units: Sequence[str], report: Report) -> Iterator[dict[str, Any]]:
        """One record for each expression, in the order of their numbers."""
        annotations = self._annotations(root, split)
        if not annotations.is_dir():
            message = f"there is no folder {annotations} with PNGs; annotation_root names another one."
            report("missing_file", split, message)
            return
        frames = self._frames(root, split).relative_to(root).as_posix()
        masks = annotations.relative_to(root).as_posix()
        if self._place(root)[1]:
            listed = read_videos(self._list(root, split))
            videos = {name: _in_order(name, listed.get(name), report) for name in units}
        else:
            videos = self._released(root, frames, masks, units, report)
        common = {"category": self.CATEGORY, "source": self.NAME, "split": split}
        links = self.config.follow_links
        reader = PaletteReader(root, frames, videos, masks, report, common, VOID, follow_links=links)
        yield from reader.rows(list(videos))

    def _released(
        self, root: Path, frames: str, masks: str, units: Sequence[str], report: Report
    ) -> dict[str, dict[str, Any]]:
        """What the converted tree would say of these sequences; those with a defect are left out."""
        texts: list[TextFile] = [read_text_file(path) for path in self._texts(root)]
        videos = {}
        for name in units:
            expressions = merge_texts(name, texts, report)
            if expressions is None:
                continue
            stems = self._stems(root, name, (frames, masks), report)
            if stems is None:
                continue
            alone = sorted(set(stems[1]) - set(stems[0]))
            if alone:
                message = f"there is a PNG, but no frame {', '.join(alone[:5])}; {len(alone)} frames are missing."
                report("missing_frame", name, message)
                continue
            videos[name] = {"expressions": expressions, "frames": stems[0]}
        return videos

    def _stems(
        self, root: Path, name: str, folders: tuple[str, str], report: Report
    ) -> tuple[list[str], list[str]] | None:
        """Names of the frames and of the PNGs of a sequence; `None` after a defect."""
        found = []
        kinds = (((".jpg", ".jpeg"), "missing_frame"), ((".png",), "missing_file"))
        for folder, (suffixes, check) in zip(folders, kinds, strict=True):
            try:
                paths = list_images(root, f"{folder}/{name}", suffixes, self.config.follow_links)
            except DataError as error:
                report("unsafe_path" if isinstance(error, UnsafePathError) else check, name, str(error))
                return None
            # macOS leaves "._00000.jpg" beside "00000.jpg" on foreign disks; it is no picture.
            found.append([path.stem for path in paths if not path.name.startswith(".")])
        return found[0], found[1]


def _in_order(name: str, entry: Any, report: Report) -> Any:
    """What the file says of a video, its expressions in the order of their numbers; other keys are a defect."""
    expressions = entry.get("expressions") if isinstance(entry, Mapping) else None
    if not isinstance(expressions, dict):
        return entry
    numbers = {}
    for key in expressions:
        # A number in its one way of writing: not "03", not a digit of another alphabet.
        if key.isascii() and key.isdigit() and len(key) < 19 and str(int(key)) == key:
            numbers[int(key)] = key
            continue
        message = (
            f"the id must be {NUM_ANNOTATORS} * rank of the object + number of the annotator, found {describe(key)}."
        )
        report("bad_entry", f"{name}/{key}", message)
    return {**entry, "expressions": {numbers[number]: expressions[numbers[number]] for number in sorted(numbers)}}
