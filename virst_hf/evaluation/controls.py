"""Controls: predictions that need not understand the sentence. A benchmark on which they score well says little."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..metrics.boundary import boundary_accuracy
from ..metrics.region import region_similarity
from ..rle import decode_rle, union_rle
from .tracks import Track

__all__ = ["CONTROLS", "control_scores"]

# Name -> what is predicted in place of the model's masks.
CONTROLS = {
    "union_of_objects": "the union of all objects of the clip",
    "random_object": "one object of the clip at random",
    "other_expression": "the model's own masks for another expression of the clip, which has another target",
}


def control_scores(
    rows: Sequence[Mapping[str, Any]], content: Mapping[str, Any], tracks: Mapping[int, Track]
) -> list[dict[str, dict[str, float]]]:
    """J and F of the controls for every expression of a video.

    Args:
        rows (`Sequence[dict]`): Records of the video.
        content (`dict`): Its predictions.
        tracks (`dict[int, list]`): Masks of its objects, as [`~tracks.object_tracks`] gives them.

    Returns:
        `list[dict]`: For each record the controls that it has, each with `J` and `F` from 0 to 1. A clip all of whose
        expressions have one target has no `other_expression`.
    """
    size, length = (rows[0]["height"], rows[0]["width"]), len(rows[0]["frame_names"])
    union = [union_rle(track[t] for track in tracks.values()) for t in range(length)]
    decoded: dict[int, np.ndarray] = {}

    def decode(track: Track) -> np.ndarray:
        if id(track) not in decoded:
            decoded[id(track)] = np.stack([decode_rle(rle, size) for rle in track])
        return decoded[id(track)]

    results = []
    for index, row in enumerate(rows):
        predictions: dict[str, Track] = {"union_of_objects": union}
        if tracks:
            key = f"{row['video_id']}\0{row['expression_id']}"
            predictions["random_object"] = tracks[fixed_choice(key, list(tracks))]
        other = other_row(rows, index)
        entry = content["expressions"][other["expression_id"]] if other is not None else {"error": ""}
        if "error" not in entry:
            predictions["other_expression"] = entry["masks"]
        target = np.stack([decode_rle(rle, size) for rle in row["masks"]])
        results.append({name: _scores(decode(track), target) for name, track in predictions.items()})
    return results


def _scores(prediction: np.ndarray, target: np.ndarray) -> dict[str, float]:
    region = float(region_similarity(prediction, target).mean())
    return {"J": region, "F": float(boundary_accuracy(prediction, target).mean())}


def fixed_choice(key: str, items: Sequence[Any]) -> Any:
    """One of `items`, as if drawn at random, but always the same for a key.

    Args:
        key (`str`): Names the draw.
        items (`Sequence`): At least one.

    Returns:
        `Any`: The item.
    """
    number = int.from_bytes(hashlib.sha256(key.encode("utf-8")).digest()[:8], "big")
    return items[number % len(items)]


def other_row(rows: Sequence[Mapping[str, Any]], index: int) -> Mapping[str, Any] | None:
    """The next expression of the video (after the last comes the first) that has another target.

    Args:
        rows (`Sequence[dict]`): Records of the video.
        index (`int`): The expression.

    Returns:
        `dict` or `None`: Its record; `None` where all expressions have the same target.
    """
    own = sorted(rows[index]["object_ids"])
    order = [*rows[index + 1 :], *rows[:index]]
    return next((row for row in order if sorted(row["object_ids"]) != own), None)
