"""The samples of a protocol: records of a data set, grouped by video so that a video is encoded once."""

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.files import image_size, read_image
from ..errors import DataError, EvaluationError
from ..video_io import VideoSource, open_video
from .protocols import Protocol

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["ANSWERS", "MASKS", "SampleSet", "Unit", "load_samples", "make_samples", "open_frames"]

# What is predicted about a video: masks for expressions, or answers to questions. Each has a folder of predictions.
MASKS = "masks"
ANSWERS = "answers"
MASK_COLUMNS = ("masks", "ignore_masks")
# Data sets of single images: a prediction is one mask.
IMAGE_CATEGORIES = ("semantic_segmentation", "referring_image", "reasoning_image")


@dataclass(frozen=True)
class Unit:
    """
    All that is asked about one video: the piece of work of a process, and one file of predictions.

    Args:
        kind (`str`): `"masks"` or `"answers"`.
        video_id (`str`): The video or image.
        expression_ids (`tuple[str]`): Its expressions or questions, in the order of the data set.
        expressions (`tuple[str]`): Their texts.
        indices (`tuple[int]`): Rows of the data set.
        num_frames (`int`): Frames of the video; 0 for a video file.
    """

    kind: str
    video_id: str
    expression_ids: tuple[str, ...]
    expressions: tuple[str, ...]
    indices: tuple[int, ...]
    num_frames: int

    @property
    def cost(self) -> int:
        """A rough measure of the work: every frame is encoded once and tracked for every expression."""
        return max(self.num_frames, 1) * (len(self.indices) + 1)


@dataclass
class SampleSet:
    """
    The samples of a protocol.

    Args:
        protocol ([`Protocol`]): The protocol, with the split that was found.
        root (`pathlib.Path`): Folder of the data set.
        dataset (`datasets.Dataset`): Its records.
        units (`list[Unit]`): One for each video, in the order of the data set; with a limit the first ones.
        all_units (`list[Unit]`): The same without a limit.
        fingerprint (`str`): Changes when videos, frames, expressions or their order change.
    """

    protocol: Protocol
    root: Path
    dataset: "Dataset"
    units: list[Unit]
    all_units: list[Unit]
    fingerprint: str

    @property
    def is_partial(self) -> bool:
        """Whether a limit left videos out."""
        return len(self.units) < len(self.all_units)

    def rows(self, unit: Unit, with_masks: bool = True) -> list[dict[str, Any]]:
        """Records of a unit.

        Args:
            unit ([`Unit`]): One of `units`.
            with_masks (`bool`, *optional*, defaults to `True`): Whether to read the targets, the largest part.

        Returns:
            `list[dict]`: One record for each of its expressions.
        """
        columns = [name for name in self.dataset.column_names if with_masks or name not in MASK_COLUMNS]
        part = self.dataset.select_columns(columns).select(unit.indices)
        return list(part)

    def row(self, unit: Unit, position: int) -> dict[str, Any]:
        """The record of one expression of a unit, masks included."""
        return self.dataset[unit.indices[position]]

    def of_kind(self, kind: str) -> Iterator[Unit]:
        """Units with masks, or those with answers."""
        return (unit for unit in self.units if unit.kind == kind)


def open_frames(row: Mapping[str, Any]) -> VideoSource:
    """The frames of a record, as stored: masks belong to pixels before any rotation that a camera noted.

    Args:
        row (`dict`): A record.

    Returns:
        [`VideoSource`]: Its frames, read one at a time.

    Raises:
        DataError: It has no frames; or, while they are read, one is damaged or of another size.
        VideoError: Its video file cannot be read.
    """
    if row["video_path"] is not None:
        return open_video(row["video_path"])
    paths = row["frame_paths"]
    if not paths:
        raise DataError(f"{row['video_id']} has no frames.")
    height, width = row["height"], row["width"]
    if height is None or width is None:
        height, width = image_size(paths[0])

    def read() -> Iterator[np.ndarray]:
        for path in paths:
            frame = read_image(path)
            if frame.shape[:2] != (height, width):
                raise DataError(f"{path} is {frame.shape[0]} x {frame.shape[1]}, expected {height} x {width}.")
            yield frame

    is_image = row["category"] in IMAGE_CATEGORIES
    return VideoSource(row["video_id"], len(paths), height, width, read, is_image=is_image)


def load_samples(
    protocol: Protocol,
    root: str | os.PathLike,
    *,
    split: str | None = None,
    limit: int | None = None,
    cache_dir: str | None = None,
) -> SampleSet:
    """Read the data set of a protocol.

    Args:
        protocol ([`Protocol`]): What to read.
        root (`str` or `os.PathLike`): Folder of the data set as it was unpacked.
        split (`str`, *optional*): Another split than the protocol's; only for `own`, which states none.
        limit (`int`, *optional*): Take this many videos only, the first ones: for a trial.
        cache_dir (`str`, *optional*): Where `datasets` keeps its copy of the annotations.

    Returns:
        [`SampleSet`]: The samples.

    Raises:
        EvaluationError: The split is not the protocol's, nothing is left to evaluate, or an id stands twice.
        DataError: The data set is missing or has a defect.
    """
    from datasets import concatenate_datasets

    from ..data import load

    if split is not None and protocol.split not in (None, split):
        raise EvaluationError(f"{protocol.name} is defined on the split {protocol.split}, not on {split}.")
    name = split or protocol.split
    fields = {"cache_dir": cache_dir, **protocol.options}
    found = load(protocol.dataset, root, split=name, config=protocol.config, **fields)
    if isinstance(found, dict):
        if len(found) != 1:
            raise EvaluationError(f"{root} has the splits {', '.join(sorted(found))}: say which with --split.")
        (name, found), *_ = found.items()
    if protocol.question_config is not None:
        questions = load(protocol.dataset, root, split=name, config=protocol.question_config, **fields)
        found = concatenate_datasets([found, questions])
    return make_samples(dataclasses.replace(protocol, split=str(name)), found, root, limit)


def make_samples(
    protocol: Protocol, dataset: "Dataset", root: str | os.PathLike = "", limit: int | None = None
) -> SampleSet:
    """The samples in records that are loaded already.

    Args:
        protocol ([`Protocol`]): What is evaluated.
        dataset (`datasets.Dataset`): Records.
        root (`str` or `os.PathLike`, *optional*): Folder of the data set, to be noted.
        limit (`int`, *optional*): Take this many videos only, the first ones.

    Returns:
        [`SampleSet`]: The samples.

    Raises:
        EvaluationError: There is nothing to evaluate, or an expression id stands twice.
    """
    if limit is not None and limit < 1:
        raise EvaluationError(f"The limit must be at least one video, found {limit}.")
    units, fingerprint = _group(protocol, dataset)
    if not units:
        raise EvaluationError(f"{protocol.name}: the split {protocol.split} under {root} holds nothing to evaluate.")
    return SampleSet(protocol, Path(root).expanduser().absolute(), dataset, units[:limit], units, fingerprint)


def _group(protocol: Protocol, dataset: "Dataset") -> tuple[list[Unit], str]:
    """Rows of one video together, in order of appearance, and a hash of what was asked about which frames."""
    digest = hashlib.sha256()
    names = ["video_id", "expression_id", "expression", "category", "frame_names", "video_path"]
    groups: dict[tuple[str, str], dict[str, tuple[int, str, int]]] = {}
    for index, row in enumerate(dataset.select_columns(names)):
        kind = ANSWERS if row["category"] == "video_qa" else MASKS
        entries = groups.setdefault((kind, row["video_id"]), {})
        if protocol.first_text_only and entries:
            continue
        if row["expression_id"] in entries:
            raise EvaluationError(
                f"{protocol.name}: expression {row['expression_id']} stands twice for {row['video_id']}."
            )
        entries[row["expression_id"]] = (index, row["expression"], len(row["frame_names"]))
        parts = [kind, row["video_id"], row["expression_id"], row["expression"], *row["frame_names"]]
        digest.update("\0".join(parts).encode("utf-8") + b"\1")
    units = [
        Unit(
            kind,
            video_id,
            tuple(entries),
            tuple(text for _, text, _ in entries.values()),
            tuple(index for index, _, _ in entries.values()),
            next(iter(entries.values()))[2],
        )
        for (kind, video_id), entries in groups.items()
    ]
    return units, digest.hexdigest()[:16]
