"""The one record of every data set: an expression about a video or an image, and the target's masks as RLE."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError
from ..rle import decode_rle
from .files import describe

if TYPE_CHECKING:
    import datasets

__all__ = [
    "CATEGORIES",
    "CATEGORY_WEIGHTS",
    "FIELDS",
    "decode_masks",
    "is_text",
    "make_row",
    "num_frames",
    "record_features",
]

# Supplement A: how often training draws from each of the five categories.
CATEGORY_WEIGHTS = {
    "semantic_segmentation": 4,
    "referring_image": 3,
    "reasoning_image": 1,
    "rvos": 12,
    "video_qa": 1,
}
CATEGORIES = tuple(CATEGORY_WEIGHTS)
# Field -> what it holds; the order of the columns.
FIELDS = {
    "video_id": "video or image, unique in its split",
    "expression_id": "unique in its video",
    "expression": "the sentence as written; for video_qa the question",
    "answer": "what is to be said: the answer to a question, the explanation of ReasonSeg; else None",
    "frame_names": "names of the frames without suffix, in temporal order",
    "frame_paths": "file of each frame; empty where there is a video file",
    "video_path": "video file instead of frames, or None",
    "height": "of the frames in pixels; None for video_qa on a video file",
    "width": "as height",
    "object_ids": "the target objects; empty: nothing in the video fits",
    "annotation_ids": "keys of these objects in the annotation file; empty where it has none",
    "masks": "for each frame the united target as COCO RLE, None where absent; None in all: the split has no masks",
    "ignore_masks": "for each frame the pixels that count neither way, or None",
    "category": "one of the five categories of the mixture",
    "expression_type": "the set's own type of expression, 'no_target', or 'referring'",
    "source": "name of the data set in the catalogue",
    "split": "its split",
}
# Arrow keeps 32 and 64 bits; a larger id in a file is damage.
MAX_ID = 2**63 - 1


def record_features() -> "datasets.Features":
    """The columns of every set, as `datasets` declares them.

    Returns:
        `datasets.Features`: One entry for each of `FIELDS`.
    """
    from datasets import Features, List, Value

    text, number = Value("string"), Value("int32")
    masks = List({"size": List(number), "counts": text})
    kinds = {
        "frame_names": List(text),
        "frame_paths": List(text),
        "height": number,
        "width": number,
        "object_ids": List(Value("int64")),
        "annotation_ids": List(Value("int64")),
        "masks": masks,
        "ignore_masks": masks,
    }
    return Features({name: kinds.get(name, text) for name in FIELDS})


def is_text(value: Any) -> bool:
    """Whether a value is a text with something in it that can be stored (no half of a surrogate pair)."""
    if not isinstance(value, str) or not value.strip():
        return False
    return not any("\ud800" <= sign <= "\udfff" for sign in value)


def make_row(**fields: Any) -> dict[str, Any]:
    """A record, with what is not given filled in and its lengths checked.

    Args:
        **fields: Of `FIELDS`. `video_id`, `expression_id`, `expression`, `category`, `source` and `split` are needed;
            `expression_type` is `"no_target"` where masks are known and no object is named, else `"referring"`.

    Returns:
        `dict`: One value for each of `FIELDS`, in their order.

    Raises:
        DataError: A field is unknown or missing, a text is empty, an id is no whole number, or there are more or
            fewer masks than frames.

    Example:

    ```python
    >>> from virst_hf.data.records import make_row
    >>> row = make_row(video_id="a", expression_id="0", expression="the red ball", category="rvos", source="own",
    ...                split="train", frame_names=["0"], frame_paths=["0.jpg"], masks=[None])
    >>> row["expression_type"], row["object_ids"]
    ('no_target', [])

    ```
    """
    unknown = sorted(set(fields) - set(FIELDS))
    if unknown:
        raise DataError(f"A record has no field {', '.join(unknown)}.")
    row = {name: fields.get(name) for name in FIELDS}
    for name in ("frame_names", "frame_paths", "object_ids", "annotation_ids"):
        row[name] = [] if row[name] is None else list(row[name])
    if row["expression_type"] is None:
        row["expression_type"] = "no_target" if row["masks"] is not None and not row["object_ids"] else "referring"
    if row["category"] not in CATEGORIES:
        raise DataError(f"Unknown category {describe(row['category'])}; expected one of {', '.join(CATEGORIES)}.")
    _check_fields(row)
    return row


def _check_fields(row: Mapping[str, Any]) -> None:
    """What Arrow could not store, and lengths that do not fit together."""
    where = f"{row['source']} {row['split']}, {describe(row['video_id'])}, expression {describe(row['expression_id'])}"
    for name in ("video_id", "expression_id", "expression", "expression_type", "source", "split"):
        if not is_text(row[name]):
            raise DataError(f"{where}: {name} must be a text with something in it, found {describe(row[name])}.")
    for name in ("answer", "video_path"):
        if row[name] is not None and not is_text(row[name]):
            raise DataError(f"{where}: {name} must be a text with something in it, found {describe(row[name])}.")
    for name in ("object_ids", "annotation_ids"):
        if not all(type(number) is int and abs(number) <= MAX_ID for number in row[name]):
            raise DataError(f"{where}: {name} must be whole numbers.")
    length = len(row["frame_names"])
    if row["video_path"] is None and len(row["frame_paths"]) != length:
        raise DataError(f"{where}: {length} names of frames, but {len(row['frame_paths'])} files.")
    for name in ("masks", "ignore_masks"):
        if row[name] is not None and len(row[name]) != length:
            raise DataError(f"{where}: {length} frames, but {len(row[name])} {name}.")


def num_frames(row: Mapping[str, Any]) -> int:
    """Number of frames of a record whose frames are named (0 for a video file of `video_qa`)."""
    return len(row["frame_names"])


def decode_masks(row: Mapping[str, Any], field: str = "masks") -> np.ndarray:
    """The masks of a record.

    Args:
        row (`dict`): A record.
        field (`str`, *optional*, defaults to `"masks"`): Or `"ignore_masks"`, where `None` gives empty masks.

    Returns:
        `numpy.ndarray` of shape `(frames, height, width)`, `bool`: The masks.

    Raises:
        DataError: The split has no masks, or a mask does not fit its frame.
    """
    masks, size = row[field], (row["height"], row["width"])
    if masks is None:
        if field == "masks":
            raise DataError(f"{row['source']} {row['split']} has no masks: they are with the server of the benchmark.")
        masks = [None] * num_frames(row)
    if None in size:
        raise DataError(f"{row['source']} {row['split']}, {row['video_id']}: the size of its frames is not known.")
    return np.stack([decode_rle(rle, size) for rle in masks]) if masks else np.zeros((0, *size), dtype=bool)
