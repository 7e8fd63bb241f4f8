"""The official protocol of Ref-DAVIS17 on stored predictions: four annotators, one index map of a sequence each."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.files import read_label_map
from ..data.records import decode_masks
from ..errors import DataError, EvaluationError
from ..metrics.davis import VOID, match_objects
from ..rle import decode_rle
from .samples import MASKS, Unit

__all__ = ["NUM_ANNOTATORS", "score_sequence"]

# Two people, each once after the first frame and once after the whole video.
NUM_ANNOTATORS = 4
ANNOTATION_FOLDERS = ("Annotations_unsupervised", "Annotations")


def score_sequence(unit: Unit, rows: Sequence[Mapping[str, Any]], content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Score a sequence: for each annotator all objects at once, matched to the masks of the annotator's expressions.

    Args:
        unit ([`Unit`]): The sequence.
        rows (`Sequence[dict]`): Its records; expression `4 * r + k` is of the object of rank `r` by annotator `k`.
        content (`dict`): Its predictions.

    Returns:
        `list[dict]`: One record for each annotator and object of the first frame, with `J` and `F` from 0 to 1.

    Raises:
        EvaluationError: An expression id is no number, or the masks cannot be matched.
    """
    by_place: dict[tuple[int, int], Mapping[str, Any]] = {}
    for row in rows:
        if not row["expression_id"].isdecimal():
            raise EvaluationError(
                f"{unit.video_id}: expression {row['expression_id']} should be 4 * object + annotator."
            )
        rank, annotator = divmod(int(row["expression_id"]), NUM_ANNOTATORS)
        by_place[rank, annotator] = row
    target = label_maps(rows)
    records = []
    for annotator in range(NUM_ANNOTATORS):
        records += _score_annotator(unit, by_place, annotator, target, content)
    return records


def _score_annotator(
    unit: Unit,
    by_place: Mapping[tuple[int, int], Mapping[str, Any]],
    annotator: int,
    target: np.ndarray,
    content: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Records of the objects for one annotator."""
    num_ranks = max(rank for rank, _ in by_place) + 1
    # One rank after the other: the masks of all objects at once would be large.
    merged = np.zeros(target.shape, dtype=np.uint8)
    owners: dict[int, Mapping[str, Any]] = {}
    for rank in range(num_ranks):
        row = by_place.get((rank, annotator))
        if row is None:
            continue
        for number in row["object_ids"]:
            owners[number] = row
        entry = content["expressions"][row["expression_id"]]
        if "error" not in entry:
            mask = np.stack([decode_rle(rle, target.shape[1:]) for rle in entry["masks"]])
            # The lowest index wins: only what is still free is taken.
            merged = np.where((merged == 0) & mask, np.uint8(rank + 1), merged)
    scores = match_objects(merged, target)
    records = []
    for index, (region, boundary) in enumerate(zip(scores.j, scores.f, strict=True)):
        row = owners.get(index + 1)
        record = {
            "kind": MASKS,
            "video": unit.video_id,
            "expression_id": "" if row is None else row["expression_id"],
            "expression": "" if row is None else row["expression"],
            "type": f"annotator {annotator + 1}",
            "object": index + 1,
            "matched_proposal": int(scores.proposals[index]),
            "num_frames": len(target),
            "num_expressions": 0 if row is None else 1,
            "J": float(region),
            "F": float(boundary),
        }
        entry = {} if row is None else content["expressions"][row["expression_id"]]
        if "error" in entry:
            record |= {"J": 0.0, "F": 0.0, "error": entry["error"]}
        records.append(record)
    return records


def label_maps(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Index maps of the ground truth of a sequence, objects that no sentence names included, 255 for void.

    Args:
        rows (`Sequence[dict]`): Its records.

    Returns:
        `numpy.ndarray` of shape `(num_frames, height, width)`, `uint8`: The palette PNGs that the records were made
        from; or, where these are not beside the frames, maps made of the records.
    """
    maps = np.zeros((len(rows[0]["frame_names"]), rows[0]["height"], rows[0]["width"]), dtype=np.uint8)
    for row in rows:
        for number in row["object_ids"][:1]:
            maps[decode_masks(row)] = number
    if rows[0]["ignore_masks"] is not None:
        maps[decode_masks(rows[0], "ignore_masks")] = VOID
    known = sorted({number for row in rows for number in row["object_ids"]})
    for folder in ANNOTATION_FOLDERS:
        stored = _read_maps(rows[0], folder)
        if stored is not None and stored.shape == maps.shape:
            # Two annotations of one sequence may stand side by side: only that of the records counts.
            if all(np.array_equal(stored == number, maps == number) for number in known):
                return stored
    return maps


def _read_maps(row: Mapping[str, Any], folder: str) -> np.ndarray | None:
    """The palette PNGs of a sequence in a folder beside JPEGImages, if they are there."""
    files = []
    for path in map(Path, row["frame_paths"]):
        parts = list(path.with_suffix(".png").parts)
        if "JPEGImages" not in parts:
            return None
        parts[len(parts) - 1 - parts[::-1].index("JPEGImages")] = folder
        files.append(Path(*parts))
    if not files or not all(file.is_file() for file in files):
        return None
    try:
        return np.stack([read_label_map(file) for file in files])
    except (DataError, ValueError):
        return None
