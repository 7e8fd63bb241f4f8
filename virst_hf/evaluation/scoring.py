"""Scores of stored predictions: one record for each expression, from the masks of the data set and no model.

A prediction that is missing, unreadable, of another size or of an unknown expression is an error, and then there is no
number at all. A prediction that failed in the run is known to have failed: it counts as the protocol says.
"""

import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from ..data.records import decode_masks
from ..errors import EvaluationError
from ..metrics.boundary import boundary_accuracy
from ..metrics.region import intersection_and_union, region_similarity
from ..metrics.revos import accuracy, accuracy_as_published, robustness, robustness_as_published
from ..metrics.stability import temporal_consistency
from ..rle import decode_rle, union_rle
from .controls import control_scores
from .official import score_sequence
from .predictions import PredictionStore
from .protocols import Protocol
from .samples import ANSWERS, MASKS, SampleSet, Unit
from .tracks import Track, object_tracks

__all__ = ["check_files", "is_right_answer", "score_samples", "score_unit"]

# Below this many masks a pool of processes takes longer to start than to work.
MIN_POOL_MASKS = 2000
MAX_NAMED = 5


@dataclass(frozen=True)
class Task:
    """
    One video to be scored, in a form that goes to another process.

    Args:
        protocol ([`Protocol`]): What is computed.
        folder (`str`): Folder of the run.
        run_hash (`str`): Identity of the run.
        unit ([`Unit`]): The video.
        rows (`list[dict]`): Its records.
        tracks (`dict`): Masks of its single objects, where the protocol asks for them.
    """

    protocol: Protocol
    folder: str
    run_hash: str
    unit: Unit
    rows: list[dict[str, Any]]
    tracks: dict[int, Track]


def score_samples(
    samples: SampleSet, store: PredictionStore, run_hash: str, workers: int | None = None
) -> list[dict[str, Any]]:
    """Score all predictions of a run.

    Args:
        samples ([`SampleSet`]): The data set, with masks.
        store ([`PredictionStore`]): The predictions.
        run_hash (`str`): Identity of the run.
        workers (`int`, *optional*): Processes; by default one for each core, or this one alone for a small set.

    Returns:
        `list[dict]`: For each expression, question or (official Ref-DAVIS17) object and annotator a record, in the
        order of the data set.

    Raises:
        EvaluationError: A prediction is missing, unreadable, of another size, or of an unknown expression; the
            message has their number and the first names.
    """
    check_files(samples, store)
    records: list[dict[str, Any]] = []
    problems: list[str] = []
    masks = sum(len(unit.indices) * unit.num_frames for unit in samples.units)
    if workers is None:
        workers = (os.cpu_count() or 1) if masks >= MIN_POOL_MASKS else 1
    tasks = (_make_task(samples, store, run_hash, unit) for unit in samples.units)
    for found, problem in tqdm(_run(tasks, workers), total=len(samples.units), desc="scoring", unit="video"):
        records += found
        problems += [problem] if problem else []
    if problems:
        raise EvaluationError(f"{len(problems)} of {len(samples.units)} videos cannot be scored: " + _first(problems))
    return records


def _make_task(samples: SampleSet, store: PredictionStore, run_hash: str, unit: Unit) -> Task:
    protocol, rows = samples.protocol, samples.rows(unit)
    # Here, not in the pool: the file of all masks of ReVOS is parsed once.
    wanted = protocol.control_predictions or protocol.averaging == "group_mean"
    tracks = object_tracks(rows) if wanted and unit.kind == MASKS else {}
    return Task(protocol, str(store.folder), run_hash, unit, rows, tracks)


def check_files(samples: SampleSet, store: PredictionStore) -> None:
    """Every video has its file, and there is no file of a video that the data set does not have.

    Args:
        samples ([`SampleSet`]): The data set.
        store ([`PredictionStore`]): The predictions.

    Raises:
        EvaluationError: A file is missing or unknown.
    """
    for kind in (MASKS, ANSWERS):
        names = store.names(kind)
        missing = [unit for unit in samples.of_kind(kind) if store.path(unit).name not in names]
        if missing:
            count = sum(len(unit.indices) for unit in missing)
            raise EvaluationError(
                f"Predictions are missing for {count} expressions of {len(missing)} videos: "
                f"{_first([unit.video_id for unit in missing])}. Run virst evaluate to its end."
            )
        known = {store.path(unit).name for unit in samples.all_units if unit.kind == kind}
        unknown = sorted(names - known)
        if unknown:
            raise EvaluationError(
                f"{store.folder} has predictions of {len(unknown)} videos that the data set does not have: "
                f"{_first(unknown)}."
            )


def _first(names: Sequence[str]) -> str:
    return "; ".join(names[:MAX_NAMED]) + (" ..." if len(names) > MAX_NAMED else "")


def _run(tasks: Iterator[Task], workers: int) -> Iterator[tuple[list[dict[str, Any]], str | None]]:
    """Results in the order of the tasks."""
    if workers <= 1:
        yield from map(_score_task, tasks)
        return
    # Spawned, not forked: a process that has run a model has threads, which a fork would leave in any state.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        waiting = []
        for task in tasks:
            waiting.append(pool.submit(_score_task, task))
            # Only so many ahead: a task holds the masks of its video.
            if len(waiting) >= 4 * workers:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


def _score_task(task: Task) -> tuple[list[dict[str, Any]], str | None]:
    """Records of a video, or what is wrong with its predictions."""
    try:
        frames = task.rows[0]["frame_names"] if task.unit.kind == MASKS else None
        content = PredictionStore(task.folder).read(task.unit, task.run_hash, frames)
        return score_unit(task.protocol, task.unit, task.rows, content, task.tracks), None
    except EvaluationError as error:
        return [], str(error)


def score_unit(
    protocol: Protocol,
    unit: Unit,
    rows: Sequence[Mapping[str, Any]],
    content: Mapping[str, Any],
    tracks: Mapping[int, Track],
) -> list[dict[str, Any]]:
    """Score the predictions of one video.

    Args:
        protocol ([`Protocol`]): What is computed.
        unit ([`Unit`]): The video.
        rows (`Sequence[dict]`): Its records, with masks.
        content (`dict`): Its predictions, as [`PredictionStore.read`] gives them.
        tracks (`dict`): Masks of its single objects: for ReVOS and for controls.

    Returns:
        `list[dict]`: Records with `kind`, `video`, `expression_id`, `expression`, `type` and scores from 0 to 1.

    Raises:
        EvaluationError: The data set has no masks for an expression, or sizes differ.
    """
    if unit.kind == ANSWERS:
        return [_score_answer(row, content["expressions"][row["expression_id"]]) for row in rows]
    lacking = [row["expression_id"] for row in rows if row["masks"] is None]
    if lacking:
        raise EvaluationError(f"The data set has no masks for {unit.video_id}, expression {lacking[0]}.")
    expected, found = (rows[0]["height"], rows[0]["width"]), (content["height"], content["width"])
    if expected != found:
        raise EvaluationError(
            f"The predictions of {unit.video_id} are {found[0]} x {found[1]}, but its frames are {expected[0]} x "
            f"{expected[1]}."
        )
    if protocol.averaging == "davis_official":
        return score_sequence(unit, rows, content)
    entries = [content["expressions"][row["expression_id"]] for row in rows]
    records = [_score_masks(protocol, row, entry) for row, entry in zip(rows, entries, strict=True)]
    if protocol.averaging == "group_mean":
        foreground = _decode([union_rle(masks) for masks in zip(*tracks.values(), strict=True)], rows[0])
        for record, row, entry in zip(records, rows, entries, strict=True):
            record |= _score_revos(row, entry, foreground, tracks)
    if protocol.control_predictions:
        for record, scores in zip(records, control_scores(rows, content, tracks), strict=True):
            record["controls"] = scores
    return records


def _decode(track: Sequence[Mapping[str, Any] | None], row: Mapping[str, Any]) -> np.ndarray:
    """Masks `(num_frames, height, width)`; no mask at all is one empty for each frame."""
    track = track or [None] * len(row["frame_names"])
    return np.stack([decode_rle(rle, (row["height"], row["width"])) for rle in track])


def _score_masks(protocol: Protocol, row: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """The record of one expression."""
    record = {
        "kind": MASKS,
        "video": row["video_id"],
        "expression_id": row["expression_id"],
        "expression": row["expression"],
        "type": row["expression_type"],
        "num_frames": len(row["frame_names"]),
        "no_target": not row["object_ids"],
    }
    target = decode_masks(row)
    # The scripts that score videos one expression at a time know no void: Ref-DAVIS17's counts as background there.
    with_ignore = protocol.averaging == "image" and row["ignore_masks"] is not None
    ignore = decode_masks(row, "ignore_masks") if with_ignore else None
    if "error" in entry:
        record |= {"J": 0.0, "F": 0.0, "empty_prediction": False, "error": entry["error"]}
        if protocol.averaging == "image":
            area = int((target if ignore is None else target & ~ignore).sum())
            # At least a pixel: with an empty target as well, the sample counts 0 and not 1.
            record |= {"intersection": 0, "union": max(area, 1)}
        return record
    prediction = _decode(entry["masks"], row)
    record["J"] = float(region_similarity(prediction, target, ignore).mean())
    record["F"] = float(boundary_accuracy(prediction, target, ignore).mean())
    record["empty_prediction"] = not any(entry["masks"])
    if protocol.averaging == "image":
        both, either = intersection_and_union(prediction, target, ignore)
        record |= {"intersection": int(both.sum()), "union": int(either.sum())}
    elif len(target) > 1:
        record["temporal_consistency"] = temporal_consistency(prediction)
        record["temporal_consistency_target"] = temporal_consistency(target)
    return record


def _score_revos(
    row: Mapping[str, Any], entry: Mapping[str, Any], foreground: np.ndarray, tracks: Mapping[int, Track]
) -> dict[str, float]:
    """A and R of one expression, as meant and as published."""
    if "error" in entry:
        return dict.fromkeys(("A", "R", "A_published", "R_published"), 0.0)
    prediction, target = _decode(entry["masks"], row), decode_masks(row)
    # How many of its objects cover a pixel: the published script adds their masks.
    objects = np.zeros(target.shape, dtype=np.uint8)
    for number in row["annotation_ids"]:
        objects += _decode(tracks[number], row)
    return {
        "A": float(accuracy(prediction, target).mean()),
        "R": float(robustness(prediction, target, foreground).mean()),
        "A_published": float(accuracy_as_published(prediction, objects).mean()),
        "R_published": float(robustness_as_published(prediction, objects, foreground).mean()),
    }


def _score_answer(row: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """The record of one question."""
    answer = entry.get("answer")
    record = {
        "kind": ANSWERS,
        "video": row["video_id"],
        "expression_id": row["expression_id"],
        "expression": row["expression"],
        "type": row["expression_type"],
        "expected": row["answer"],
        "answer": answer,
        "right": answer is not None and is_right_answer(answer, row["answer"]),
    }
    if "error" in entry:
        record |= {"error": entry["error"], "right": False}
    return record


def is_right_answer(answer: str, expected: str | None) -> bool:
    """Exact match, with case and the spaces around left out of account.

    Args:
        answer (`str`): What the model said.
        expected (`str` or `None`): The answer of the data set.

    Returns:
        `bool`: Whether they match.

    Example:

    ```python
    >>> from virst_hf.evaluation.scoring import is_right_answer
    >>> is_right_answer(" Red ", "red"), is_right_answer("reddish", "red")
    (True, False)

    ```
    """
    return expected is not None and answer.strip().lower() == expected.strip().lower()
