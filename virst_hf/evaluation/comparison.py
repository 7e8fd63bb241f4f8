"""Two runs side by side: differences for each type of expression, with an interval from resampled videos."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.files import read_json, read_text
from ..errors import DataError, EvaluationError
from .protocols import get_protocol
from .report import RECORDS_FILE, RESULTS_FILE
from .samples import ANSWERS, MASKS

__all__ = ["bootstrap_interval", "compare_runs"]

RESAMPLES = 2000
LEVEL = 0.95
# What every record has.
NEEDED = {"kind", "video", "expression_id", "type"}
# Resamples that are drawn at a time: their weights are (resamples, videos).
CHUNK = 250


def compare_runs(first: str | os.PathLike, second: str | os.PathLike, seed: int = 0) -> list[dict[str, Any]]:
    """Compare two results of one protocol on the same expressions.

    The videos are drawn anew with replacement, the same ones for both runs, and the difference is computed again: the
    interval says how far it depends on which videos the benchmark happens to have. Expressions of one video belong
    together, so videos are drawn and not expressions.

    Args:
        first (`str` or `os.PathLike`): Output folder of `virst evaluate`.
        second (`str` or `os.PathLike`): Another.
        seed (`int`, *optional*, defaults to 0): Seed of the resampling.

    Returns:
        `list[dict]`: For everything that is compared: `name`, `score` (such as `"J&F"`), `count`, `first`, `second`
        and `difference` (second minus first) from 0 to 100, and `low` and `high`, the 95 % interval of the difference.

    Raises:
        EvaluationError: A folder has no results, or protocol or expressions differ.
    """
    results = [_read(folder) for folder in (first, second)]
    names = [result["protocol"] for result, _ in results]
    if names[0] != names[1]:
        raise EvaluationError(f"The protocols differ: {names[0]} and {names[1]}. Their numbers cannot be compared.")
    keyed = [{_key(record): record for record in records} for _, records in results]
    if keyed[0].keys() != keyed[1].keys():
        lone = sorted(keyed[0].keys() ^ keyed[1].keys())
        raise EvaluationError(
            f"The runs have different expressions ({len(lone)} are in one of them only, {lone[0][1]} "
            f"{lone[0][2]} first). Was one of them run with --limit, or on other data?"
        )
    pairs = [(keyed[0][key], keyed[1][key]) for key in keyed[0]]
    if not pairs:
        raise EvaluationError("There is nothing to compare: these runs have no scores.")
    return [_compare(row, seed) for row in _rows(names[0], pairs)]


def _read(folder: str | os.PathLike) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Results and records of a run."""
    path = Path(folder).expanduser()
    if not (path / RESULTS_FILE).is_file():
        raise EvaluationError(f"{path} has no {RESULTS_FILE}: run virst evaluate or virst score first.")
    try:
        results = read_json(path / RESULTS_FILE)
        records = [json.loads(line) for line in read_text(path / RECORDS_FILE).split("\n") if line]
    except (DataError, ValueError, RecursionError) as error:
        raise EvaluationError(f"The results in {path} cannot be read: {error}") from error
    if not isinstance(results, dict) or not isinstance(results.get("protocol"), str):
        raise EvaluationError(f"{path / RESULTS_FILE} does not say of which protocol it is.")
    get_protocol(results["protocol"])
    if not all(
        isinstance(record, dict) and {"kind", "video", "expression_id", "type"} <= set(record) for record in records
    ):
        raise EvaluationError(f"{path / RECORDS_FILE} does not hold the scores of expressions.")
    return results, records


def _key(record: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """An expression; for Ref-DAVIS17's official protocol an object and an annotator."""
    place = f"{record['type']} object {record['object']}" if "object" in record else record["expression_id"]
    return record["kind"], str(record["video"]), str(place), str(record["expression_id"])


Pair = tuple[Mapping[str, Any], Mapping[str, Any]]


class _Row:
    """One line of the comparison: a mean of group means of ratios, each a sum over records by a sum over records.

    Args:
        name (`str`): What is compared.
        score (`str`): Name of the score.
        groups (`Sequence[Sequence[Pair]]`): Records of each group; usually one group.
        parts (`tuple[str, str | None]`): Field that is summed above, and below; `None` counts records.
    """

    def __init__(self, name: str, score: str, groups: Sequence[Sequence[Pair]], parts: tuple[str, str | None]) -> None:
        self.name, self.score, self.groups, self.parts = name, score, groups, parts


def _rows(protocol_name: str, pairs: Sequence[Pair]) -> list[_Row]:
    """What is compared under a protocol."""
    protocol = get_protocol(protocol_name)
    everything = [pair for pair in pairs if pair[0]["kind"] == MASKS]
    masks = [pair for pair in everything if not protocol.groups or pair[0]["type"] in protocol.groups]
    answers = [pair for pair in pairs if pair[0]["kind"] == ANSWERS]
    types = sorted({pair[0]["type"] for pair in masks})
    by_type = {kind: [pair for pair in masks if pair[0]["type"] == kind] for kind in types}
    if protocol.averaging == "image":
        scores: list[tuple[str, tuple[str, str | None]]] = [
            ("gIoU", ("IoU", None)),
            ("cIoU", ("intersection", "union")),
        ]
    else:
        scores = [("J&F", ("J&F", None)), ("J", ("J", None)), ("F", ("F", None))]
    rows = []
    for index, (score, parts) in enumerate(scores):
        if masks:
            groups = [by_type[kind] for kind in protocol.groups if kind in by_type] if protocol.groups else [masks]
            rows.append(_Row("overall" if protocol.groups else "all", score, groups, parts))
        if index == 0 or protocol.averaging == "image":
            rows += [_Row(kind, score, [members], parts) for kind, members in by_type.items()]
    no_target = [pair for pair in everything if pair[0].get("no_target")]
    if no_target:
        rows.append(_Row("no target", "accuracy", [no_target], ("empty_prediction", None)))
    if answers:
        rows.append(_Row("questions", "accuracy", [answers], ("right", None)))
    return rows


def _value(record: Mapping[str, Any], field: str | None) -> float:
    if field is None:
        return 1.0
    if field == "J&F":
        return (record["J"] + record["F"]) / 2
    if field == "IoU":
        return record["intersection"] / (record["union"] + 1e-5) if record["union"] else 1.0
    return float(record[field])


def _compare(row: _Row, seed: int) -> dict[str, Any]:
    """Numbers of one line."""
    videos = {video: i for i, video in enumerate(sorted({p[0]["video"] for group in row.groups for p in group}))}
    # For each run, group and video the two sums of the ratio.
    sums = np.zeros((2, len(row.groups), 2, len(videos)))
    for g, group in enumerate(row.groups):
        for pair in group:
            for run, record in enumerate(pair):
                for part, field in enumerate(row.parts):
                    sums[run, g, part, videos[record["video"]]] += _value(record, field)
    first, second = 100 * _ratio(sums.sum(-1))
    low, high = bootstrap_interval(sums, seed)
    return {
        "name": row.name,
        "score": row.score,
        "count": sum(map(len, row.groups)),
        "first": float(first),
        "second": float(second),
        "difference": float(second - first),
        "low": low,
        "high": high,
    }


def _ratio(sums: np.ndarray) -> np.ndarray:
    """Mean over groups of the ratio of two sums: `(..., groups, 2)` to `(...)`; groups that were not drawn are out."""
    present = sums[..., 1] > 0
    ratios = np.divide(sums[..., 0], sums[..., 1], out=np.zeros(sums.shape[:-1]), where=present)
    return ratios.sum(-1) / np.maximum(present.sum(-1), 1)


def bootstrap_interval(sums: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of the difference of two runs, from videos drawn with replacement, the same for both.

    Args:
        sums (`numpy.ndarray` of shape `(2, groups, 2, videos)`): For each run, group and video the sum of the score
            and the number of its expressions.
        seed (`int`, *optional*, defaults to 0): Seed of the drawing.

    Returns:
        `tuple[float, float]`: Ends of the interval of second minus first, from -100 to 100.
    """
    num_videos = sums.shape[-1]
    generator = np.random.default_rng(seed)
    differences = []
    for start in range(0, RESAMPLES, CHUNK):
        count = min(CHUNK, RESAMPLES - start)
        weights = generator.multinomial(num_videos, np.full(num_videos, 1 / num_videos), size=count)
        drawn = np.einsum("rgpv,bv->brgp", sums, weights.astype(np.float64))
        scores = _ratio(drawn)
        differences.append(100 * (scores[:, 1] - scores[:, 0]))
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(np.concatenate(differences), [tail, 100 - tail])
    return float(low), float(high)
