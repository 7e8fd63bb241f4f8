"""The doctor: every defect of a data set on disk at once, before a training run or an evaluation meets the first."""

import dataclasses
import itertools
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError, VirstError
from ..video_io import IMAGE_SUFFIXES, open_video
from .alignment import MAX_TARGETS, THRESHOLD, clip_score
from .catalog import builder_class, make_builder
from .files import image_size, read_image

if TYPE_CHECKING:
    from .builder import VirstDatasetBuilder

__all__ = ["ADVICE", "Diagnosis", "Finding", "diagnose"]

# Check -> what to do about it; the order of the table.
ADVICE = {
    "json_version": "Take the file of expressions of this set and version, or choose another --config.",
    "missing_file": "Unpack the release again; compare the tree of `virst data list NAME`.",
    "bad_entry": "The annotation file is damaged or edited: fetch it again and compare its checksum.",
    "unsafe_path": "A name or link leaves the root: do not trust this copy; --follow-links allows your own links.",
    "duplicate": "Remove one of the two: an expression counts twice, or replaces another.",
    "missing_frame": "Unpack the frames again; a video of the list has fewer files than names.",
    "extra_frame": "Frames and annotations may be of different releases: the i-th mask belongs to the i-th name.",
    "undecodable": "The file is cut off or damaged: fetch it again.",
    "size_mismatch": "Frames were resized or mixed: take those of the release, whose size the masks have.",
    "unsorted_frames": "Sort the names (pad numbers with zeros): masks are matched to frames by their order.",
    "mask_count": "Masks and frames are of different versions: take both from one release.",
    "mask_size": "Masks and frames are of different versions: take both from one release.",
    "bad_mask": "The mask cannot be decoded: fetch the annotation file again.",
    "unknown_id": "Expressions and masks are of different versions: take both files from one release.",
    "empty_mask": "The expression names objects, but no frame has a mask: leave it out of training.",
    "misaligned": "The masks lie beside the things in the picture: leave the clip out of training.",
}
# Sets in which several people described the same object on their own, so that the same words are no mistake.
SEVERAL_ANNOTATORS = ("ref-youtube-vos", "ref-davis17", "refcoco", "refcoco+", "refcocog", "reasonseg", "llava-video")
# Sets that are known to have misaligned clips.
SCORE_ALIGNMENT = ("revos",)
# Sets with a file of expressions in the folder of each split, where a file of another name is a common mix-up.
SPLIT_FOLDERS = ("mevis", "lv-vis", "shapes")
VIDEO_CATEGORIES = ("rvos", "video_qa")
# Readers work on chunks, so that what they prepare is prepared a few times only.
NUM_CHUNKS = 64
# So many videos in a row with one and the same error have it from a file that they share.
SAME_ERROR = 3


@dataclass(frozen=True)
class Finding:
    """
    A defect.

    Args:
        check (`str`): Name of the check, one of `ADVICE`.
        item (`str`): Video, expression or file that has it.
        message (`str`): What was found, and what was expected.

    Example:

    ```python
    >>> from virst_hf.data.doctor import ADVICE, Finding
    >>> finding = Finding("mask_count", "v1, annotation 2", "it has 4 masks, but its video has 5 frames.")
    >>> ADVICE[finding.check]
    'Masks and frames are of different versions: take both from one release.'

    ```
    """

    check: str
    item: str
    message: str


@dataclass
class Diagnosis:
    """
    What the doctor found.

    Args:
        findings (`list[Finding]`): Defects, each once; with several splits the message begins with that of the video.
        notes (`list[str]`): What is worth knowing and no defect.
        splits (`list[str]`): Splits that were checked.
        num_videos (`int`): Videos or images in them.
        num_expressions (`int`): Expressions that could be read.

    Example:

    ```python
    >>> from virst_hf.data.doctor import Diagnosis
    >>> Diagnosis(splits=["train"], num_videos=3).clean
    True

    ```
    """

    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    num_videos: int = 0
    num_expressions: int = 0

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not self.findings


def diagnose(
    name: str,
    root: str | os.PathLike,
    split: str | None = None,
    config: str | None = None,
    *,
    quick: bool = False,
    limit: int | None = None,
    alignment: bool | None = None,
    progress: bool = False,
    **fields: Any,
) -> Diagnosis:
    """Check a data set on disk.

    Args:
        name (`str`): Its name in the catalogue.
        root (`str` or `os.PathLike`): Its folder.
        split (`str`, *optional*): One split; all that are there when not given.
        config (`str`, *optional*): One of its configurations.
        quick (`bool`, *optional*, defaults to `False`): Read the heads of frames only instead of decoding them.
        limit (`int`, *optional*): Check only the first so many videos of each split.
        alignment (`bool`, *optional*): Score each clip for masks that lie beside the things in its frames. By default
            for ReVOS only.
        progress (`bool`, *optional*, defaults to `False`): Show a bar on stderr.
        **fields: Options of the set, such as `follow_links=True`.

    Returns:
        [`Diagnosis`]: All findings.

    Raises:
        DataError: Nothing could be checked: the set, its configuration or an option is unknown, or there is no such
            folder, or nothing of the set is in it.
    """
    diagnosis = Diagnosis()
    fields["hash"] = "doctor"
    diagnosis.findings += _other_versions(name, root, split, config, fields)
    try:
        builder = make_builder(name, root, split, config, **fields)
        diagnosis.splits = builder.available_splits()
    except DataError:
        if not diagnosis.findings:
            raise
        return diagnosis
    for each in diagnosis.splits:
        check = _SplitCheck(builder, each, quick, name in SCORE_ALIGNMENT if alignment is None else alignment)
        check.run(limit, progress)
        # Videos of two splits may have the same name.
        where = f"{each}: " if len(diagnosis.splits) > 1 else ""
        diagnosis.findings += [
            Finding(finding.check, finding.item, f"{where}{finding.message}") for finding in check.findings
        ]
        diagnosis.notes += check.notes
        diagnosis.num_videos += check.num_videos
        diagnosis.num_expressions += check.num_expressions
    order = list(ADVICE)
    diagnosis.findings.sort(key=lambda finding: order.index(finding.check) if finding.check in order else len(order))
    return diagnosis


# --- files of another version ----------------------------------------------------------------------------------------
def _other_versions(
    name: str, root: str | os.PathLike, split: str | None, config: str | None, fields: Mapping[str, Any]
) -> list[Finding]:
    """Splits that are missing although a file of another version or set stands where theirs should."""
    kind, base = builder_class(name), Path(root).expanduser().absolute()
    if not base.is_dir():
        return []
    chosen = config if config is not None else kind.BUILDER_CONFIGS[0].name
    found = {each.name: _splits_of(name, base, each.name, fields) for each in kind.BUILDER_CONFIGS}
    known = {each.name for each in dataclasses.fields(kind.BUILDER_CONFIGS[0])} | {"hash", "cache_dir"}
    if chosen not in found or not set(fields) <= known:
        # The builder says so itself.
        return []
    here, findings = found.pop(chosen), []
    wanted = [split] if split is not None else [each for each in kind.SPLITS if each not in here]
    for each in wanted:
        others = [other for other, splits in found.items() if each in splits]
        if each in here:
            continue
        if others:
            message = f"it has no files of configuration {chosen}, but those of {', '.join(others)}: --config."
            findings.append(Finding("json_version", each, message))
        elif name in SPLIT_FOLDERS or not here:
            findings += _foreign_lists(base, name, each)
    return findings


def _splits_of(name: str, root: Path, config: str, fields: Mapping[str, Any]) -> list[str]:
    """Splits of a configuration under `root`; none where it is not there."""
    try:
        return make_builder(name, root, None, config, **fields).available_splits()
    except DataError:
        return []


def _foreign_lists(root: Path, name: str, split: str) -> list[Finding]:
    """Files of a split that list videos, but are not the one that is read."""
    findings = []
    for folder in (root / split, root / name / split):
        for path in sorted(folder.glob("meta*.json")) if folder.is_dir() else ():
            message = (
                "it stands where the file of expressions should, which is missing; files of this kind without "
                "expressions belong to other sets (meta_valid.json: MOSE)."
            )
            findings.append(Finding("json_version", path.relative_to(root).as_posix(), message))
    return findings


# --- one split -------------------------------------------------------------------------------------------------------
class _SplitCheck:
    """The checks of one split."""

    def __init__(self, builder: "VirstDatasetBuilder", split: str, quick: bool, alignment: bool) -> None:
        self.builder, self.split, self.quick, self.alignment = builder, split, quick, alignment
        self.notes: list[str] = []
        self.num_videos = self.num_expressions = 0
        # A dictionary for its order: readers may tell of a defect each time that they pass it.
        self._found: dict[Finding, None] = {}
        # Message -> units whose reading it ended.
        self._failed: dict[str, list[str]] = {}
        self._clip: tuple[str, str] | None = None
        self._clip_row: Mapping[str, Any] = {}
        self._targets: dict[tuple, Sequence[Mapping[str, Any] | None]] = {}
        self._unscored = 0
        self._videos: set[tuple[str, str]] = set()
        self._keys: set[tuple[str, str, str]] = set()
        self._texts: dict[tuple, str] = {}

    @property
    def findings(self) -> list[Finding]:
        """Defects, each once, in the order in which they were met."""
        return list(self._found)

    def report(self, check: str, item: str, message: str) -> None:
        """Keep a finding; readers call it, too."""
        self._found[Finding(check, item, message)] = None

    def run(self, limit: int | None, progress: bool) -> None:
        """Check all videos, or the first `limit`."""
        from tqdm import tqdm

        root = self.builder.root
        try:
            units = self.builder.units(root, self.split, self.report)[:limit]
        except VirstError as error:
            self.report(_kind(str(error)), self.split, str(error))
            return
        self._note_excluded()
        self.num_videos = len(units)
        if not units and not self._found:
            self.report("bad_entry", self.split, "the split names no video.")
        size = max(1, -(-len(units) // NUM_CHUNKS))
        with (
            tqdm(total=len(units), desc=f"checking {self.split}", file=sys.stderr, disable=not progress) as bar,
            ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool,
        ):
            for start in range(0, len(units), size):
                chunk = units[start : start + size]
                for row in () if self._hopeless else self._rows(chunk):
                    self._check_row(row, pool)
                bar.update(len(chunk))
        self._report_failed()
        self._score_clip()
        if self._unscored:
            self.notes.append(f"{self.split}: {self._unscored} clips have no target that alignment can be scored by.")

    def _note_excluded(self) -> None:
        """Clips that the loader leaves out, where a set says which."""
        listing = getattr(self.builder, "excluded_units", None)
        excluded = listing(self.builder.root, self.split) if listing is not None else []
        if excluded:
            self.notes.append(
                f"{self.split}: {len(excluded)} clips with masks that are known to be misaligned are left out by the "
                f"loader: {', '.join(excluded)}"
            )

    def _rows(self, units: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Rows of some units. After an error that a reader could not get past, one unit at a time."""
        done = 0
        try:
            for row in self.builder.rows(self.builder.root, self.split, units, self.report):
                done += 1
                yield row
            return
        except VirstError as error:
            if len(units) == 1:
                self._failed.setdefault(str(error), []).append(units[0])
                return
        # The same rows come again, up to the error.
        yield from itertools.islice(self._rows_one_by_one(units), done, None)

    def _rows_one_by_one(self, units: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Rows of each unit that can be read."""
        for unit in units:
            if self._hopeless:
                return
            try:
                yield from self.builder.rows(self.builder.root, self.split, [unit], self.report)
            except VirstError as error:
                self._failed.setdefault(str(error), []).append(unit)

    @property
    def _hopeless(self) -> bool:
        """Whether the first units had the same error, and none had rows: it is that of a file that all share, which
        would be read in vain for each of the others."""
        return not self.num_expressions and len(self._failed) == 1 and len(*self._failed.values()) >= SAME_ERROR

    def _report_failed(self) -> None:
        """Errors that a reader could not get past; one that several units have is that of a file of the split."""
        for message, units in self._failed.items():
            self.report(_kind(message), units[0] if len(units) == 1 else self.split, message)

    # --- one row -----------------------------------------------------------------------------------------------------
    def _check_row(self, row: Mapping[str, Any], pool: ThreadPoolExecutor) -> None:
        item = f"{row['video_id']}/{row['expression_id']}"
        video = (row["source"], row["video_id"])
        key = (*video, row["expression_id"])
        self.num_expressions += 1
        if key in self._keys:
            self.report("duplicate", item, "this expression id stands twice in its video.")
        self._keys.add(key)
        self._check_text(row, item, video)
        self._check_masks(row, item)
        if video not in self._videos:
            self._videos.add(video)
            self._check_frames(row, pool)
        self._keep_target(row, video)

    def _check_text(self, row: Mapping[str, Any], item: str, video: tuple[str, str]) -> None:
        """The same words about the same objects, twice."""
        if row["source"] in SEVERAL_ANNOTATORS or self.builder.NAME in SEVERAL_ANNOTATORS:
            return
        target = (tuple(sorted(row["object_ids"])), tuple(sorted(row["annotation_ids"])), row["answer"])
        first = self._texts.setdefault((video, row["expression"], target), item)
        if first != item and row["masks"] is not None:
            self.report("duplicate", item, f"the same text about the same target as {first}: {row['expression']!r}.")

    def _check_masks(self, row: Mapping[str, Any], item: str) -> None:
        """Masks that are of another size than the frames, or all empty."""
        masks, size = row["masks"], [row["height"], row["width"]]
        if masks is None:
            return
        wrong = next((i for i, rle in enumerate(masks) if rle is not None and list(rle["size"]) != size), None)
        if wrong is not None:
            self.report("mask_size", item, f"mask {wrong} is {masks[wrong]['size']}, but its frame is {size}.")
        if row["object_ids"] and not any(masks):
            ids = ", ".join(map(str, row["annotation_ids"] or row["object_ids"]))
            self.report("empty_mask", item, f"it names objects ({ids}), but none of them has a mask in any frame.")

    # --- frames ------------------------------------------------------------------------------------------------------
    def _check_frames(self, row: Mapping[str, Any], pool: ThreadPoolExecutor) -> None:
        """The frames of a video that was not seen before."""
        video, size = row["video_id"], (row["height"], row["width"])
        if row["video_path"] is not None:
            self._check_file(row)
            return
        paths = [Path(path) for path in row["frame_paths"]]
        for path, found in zip(paths, pool.map(self._frame_size, paths), strict=True):
            if isinstance(found, Finding):
                self.report(found.check, f"{video}, {path.name}", found.message)
            elif None not in size and found != size:
                said = f"the frame is {found[0]} x {found[1]} (height x width), but {size[0]} x {size[1]} is expected."
                self.report("size_mismatch", f"{video}, {path.name}", said)
        self._check_order(row)
        if row["category"] in VIDEO_CATEGORIES:
            self._check_folder(video, paths)

    def _frame_size(self, path: Path) -> tuple[int, int] | Finding:
        """Height and width of a frame, or what is wrong with it."""
        if not path.is_file():
            return Finding("missing_frame", "", f"there is no file {path}.")
        try:
            return image_size(path) if self.quick else read_image(path).shape[:2]
        except DataError as error:
            return Finding("undecodable", "", str(error))

    def _check_file(self, row: Mapping[str, Any]) -> None:
        """A video file: that it opens, and in a full check that all its frames decode."""
        path, video = row["video_path"], row["video_id"]
        if not Path(path).is_file():
            self.report("missing_frame", video, f"there is no file {path}.")
            return
        try:
            source = open_video(path)
            count = source.num_frames if self.quick else sum(1 for _ in source)
        except VirstError as error:
            self.report("undecodable", video, str(error))
            return
        if row["masks"] is not None and count != len(row["frame_names"]):
            self.report("mask_count", video, f"the file has {count} frames, but {len(row['frame_names'])} are named.")

    def _check_order(self, row: Mapping[str, Any]) -> None:
        """Numbers in names that do not rise: 1, 10, 2 is the order of names without leading zeros."""
        parts = [re.fullmatch(r"(.*?)(\d+)", name, re.DOTALL) for name in row["frame_names"]]
        if not all(parts) or len({part[1] for part in parts}) != 1:
            return
        numbers = [int(part[2]) for part in parts if len(part[2]) < 19]
        falling = next((i for i in range(1, len(numbers)) if numbers[i] <= numbers[i - 1]), None)
        if falling is not None:
            first, second = row["frame_names"][falling - 1 : falling + 1]
            self.report("unsorted_frames", row["video_id"], f"frame {second} comes after {first}.")

    def _check_folder(self, video: str, paths: Sequence[Path]) -> None:
        """Pictures in the folder of a video that its list does not name."""
        folders = {path.parent for path in paths}
        folder = next(iter(folders), None)
        if len(folders) != 1 or not folder.is_dir():
            return
        named = {path.name for path in paths}
        with os.scandir(folder) as entries:
            names = {entry.name for entry in entries if entry.name.lower().endswith(tuple(IMAGE_SUFFIXES))}
        # macOS leaves files like ._00000.jpg, which no reader takes for a frame.
        extra = sorted(name for name in names - named if not name.startswith("."))
        if extra:
            message = (
                f"its folder has {len(extra)} frames that are not in its list of {len(paths)}, such as {extra[0]}."
            )
            self.report("extra_frame", video, message)

    # --- alignment ---------------------------------------------------------------------------------------------------
    def _keep_target(self, row: Mapping[str, Any], video: tuple[str, str]) -> None:
        """Collect the targets of a clip; score it when the next one begins."""
        if not self.alignment or row["category"] != "rvos":
            return
        if video != self._clip:
            self._score_clip()
            self._clip, self._clip_row, self._targets = video, row, {}
        if row["masks"] is not None and any(row["masks"]) and len(self._targets) < MAX_TARGETS:
            self._targets.setdefault((*row["annotation_ids"], None, *row["object_ids"]), row["masks"])

    def _score_clip(self) -> None:
        if self._clip is None or not self._targets or not self._clip_row["frame_paths"]:
            return
        paths, size = self._clip_row["frame_paths"], (self._clip_row["height"], self._clip_row["width"])

        def read(index: int) -> np.ndarray:
            frame = read_image(paths[index])
            if frame.shape[:2] != size:
                raise DataError("The frame has another size.")
            return frame

        try:
            score = clip_score(read, list(self._targets.values()))
        except DataError:
            # What is wrong with the frame was reported when it was decoded.
            score = None
        if score is None:
            self._unscored += 1
        elif score.misaligned:
            message = (
                f"masks score {score.score:.2f} (below {THRESHOLD}) for lying on edges of the picture; they would fit "
                f"best {score.shift[0]:+.0%} down and {score.shift[1]:+.0%} right of where they are."
            )
            self.report("misaligned", self._clip[1], message)


def _kind(text: str) -> str:
    """The check that an error belongs to which a reader could not get past."""
    for sign, check in (("There is no", "missing_file"), ("stands twice", "duplicate"), ("refused", "unsafe_path")):
        if sign in text:
            return check
    return "unsafe_path" if "link out of" in text else "bad_entry"
