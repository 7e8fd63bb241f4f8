"""Masks of single objects, where the united target of an expression is not enough."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.mask_dict import read_mask_dict
from ..errors import DataError, EvaluationError
from ..rle import check_rle

__all__ = ["Track", "object_tracks"]

MASK_FILE = "mask_dict.json"
# A frame of ReVOS lies five folders below the file.
MAX_LEVELS = 10
# An RLE or None for each frame.
Track = list[dict[str, Any] | None]


def object_tracks(rows: Sequence[Mapping[str, Any]]) -> dict[int, Track]:
    """Masks of the objects that any expression of a video names.

    Args:
        rows (`Sequence[dict]`): Records of the video, of a set in the layout of MeViS: `mask_dict.json` stands in a
            folder above the frames.

    Returns:
        `dict[int, list]`: Annotation id -> a checked RLE or `None` for each frame.

    Raises:
        EvaluationError: There is no such file, or the masks of an object are missing or damaged in it.
    """
    numbers = sorted({number for row in rows for number in row["annotation_ids"]})
    if not numbers:
        return {}
    first = rows[0]
    above = list(Path(first["frame_paths"][0]).parents)[:MAX_LEVELS] if first["frame_paths"] else []
    path = next((folder / MASK_FILE for folder in above if (folder / MASK_FILE).is_file()), None)
    if path is None:
        raise EvaluationError(f"{first['video_id']}: there is no {MASK_FILE} above its frames.")
    masks, size, length = read_mask_dict(path), (first["height"], first["width"]), len(first["frame_names"])
    tracks = {}
    for number in numbers:
        track = masks.get(str(number))
        if not isinstance(track, list) or len(track) != length:
            raise EvaluationError(f"{path} has no masks of object {number} for the frames of {first['video_id']}.")
        try:
            tracks[number] = [check_rle(rle, size) for rle in track]
        except DataError as error:
            raise EvaluationError(f"{path}, object {number}: {error}") from error
    return tracks
