"""From one record for each expression to the numbers of a benchmark."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..metrics.images import c_iou, g_iou
from .controls import CONTROLS
from .protocols import Protocol
from .samples import ANSWERS, MASKS

__all__ = ["summarise"]

Records = Sequence[Mapping[str, Any]]
REVOS_NAMES = ("J", "F", "A", "R", "A_published", "R_published")


def summarise(protocol: Protocol, records: Records) -> dict[str, Any]:
    """The numbers of a run.

    Args:
        protocol ([`Protocol`]): Says how records are averaged.
        records (`Sequence[dict]`): What `score_samples` gave; not empty.

    Returns:
        `dict`: `num_videos`, `num_expressions`, `J`, `F`, `J&F` (0 to 100) and `per_type`; `no_target_accuracy` and
        `qa_accuracy` (shares, 0 to 1) where there is something to count; `groups` for ReVOS, `gIoU` and `cIoU` (0 to
        100) for images, `controls` where the protocol has them; `temporal_consistency` of predictions and targets of
        videos (0 to 1); and `failures`.
    """
    masks = [record for record in records if record["kind"] == MASKS]
    answers = [record for record in records if record["kind"] == ANSWERS]
    averaged = [record for record in masks if not protocol.groups or record["type"] in protocol.groups]
    score: Callable[[Records], dict[str, Any]] = image_scores if protocol.averaging == "image" else mean_scores
    types = list(dict.fromkeys(record["type"] for record in averaged))
    summary: dict[str, Any] = {
        "num_videos": len({record["video"] for record in masks}),
        "num_expressions": sum(record.get("num_expressions", 1) for record in masks),
    }
    if protocol.averaging == "group_mean":
        summary["groups"] = group_scores(protocol, averaged)
        overall = {name: summary["groups"]["overall"][name] for name in ("J", "F", "J&F")}
    elif averaged:
        overall = {name: value for name, value in score(averaged).items() if name != "count"}
    else:
        overall = {}
    summary |= overall
    summary["per_type"] = {
        kind: score([record for record in averaged if record["type"] == kind]) for kind in sorted(types)
    }
    summary |= _shares(masks, answers)
    if protocol.control_predictions:
        summary["controls"] = _controls(averaged)
    for name in ("temporal_consistency", "temporal_consistency_target"):
        values = [record[name] for record in averaged if name in record]
        if values:
            summary[name] = _mean(values)
    summary["failures"] = [
        {name: record[name] for name in ("video", "expression_id", "expression", "error")}
        for record in records
        if "error" in record
    ]
    return summary


def _shares(masks: Records, answers: Records) -> dict[str, float]:
    """Shares from 0 to 1 of what is right or wrong as a whole."""
    shares = {}
    no_target = [record for record in masks if record.get("no_target")]
    if no_target:
        shares["no_target_accuracy"] = _mean([float(record["empty_prediction"]) for record in no_target])
    if answers:
        shares["qa_accuracy"] = _mean([float(record["right"]) for record in answers])
        shares["num_questions"] = len(answers)
    return shares


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def mean_scores(records: Records) -> dict[str, Any]:
    """Plain means over records, times 100.

    Args:
        records (`Sequence[dict]`): With `J` and `F`; not empty.

    Returns:
        `dict`: `J`, `F`, `J&F` and `count`.
    """
    region, boundary = (100 * _mean([record[name] for record in records]) for name in ("J", "F"))
    return {"J": region, "F": boundary, "J&F": (region + boundary) / 2, "count": len(records)}


def image_scores(records: Records) -> dict[str, Any]:
    """gIoU and cIoU of images, times 100, with the plain means of J and F.

    Args:
        records (`Sequence[dict]`): With `intersection` and `union` in pixels; not empty.

    Returns:
        `dict`: `J`, `F`, `J&F`, `gIoU`, `cIoU` and `count`.
    """
    areas = [record["intersection"] for record in records], [record["union"] for record in records]
    return mean_scores(records) | {"gIoU": 100 * g_iou(*areas), "cIoU": 100 * c_iou(*areas)}


def group_scores(protocol: Protocol, records: Records) -> dict[str, dict[str, Any]]:
    """Means of each group, and the unweighted mean of the groups: a pooled mean would be another number.

    Args:
        protocol ([`Protocol`]): Names the groups.
        records (`Sequence[dict]`): Their records.

    Returns:
        `dict`: For each group and for `"overall"`: `J`, `F`, `J&F`, `A`, `R`, `A_published` and `R_published` from 0
        to 100, `count`, and in `rounded` the same with every expression rounded to two digits first, as the published
        script does. A group without an expression is left out.
    """
    groups: dict[str, dict[str, Any]] = {}
    for name in protocol.groups:
        members = [record for record in records if record["type"] == name]
        if members:
            groups[name] = _group(members, float) | {"rounded": _group(members, lambda x: round(x, 2))}
    present = list(groups.values())
    if not present:
        return {"overall": dict.fromkeys(("J", "F", "J&F"), None)}
    overall = {key: _mean([group[key] for group in present]) for key in present[0] if key not in ("count", "rounded")}
    overall["rounded"] = {key: _mean([group["rounded"][key] for group in present]) for key in present[0]["rounded"]}
    return groups | {"overall": overall | {"count": sum(group["count"] for group in present)}}


def _group(members: Records, rounded: Callable[[float], float]) -> dict[str, Any]:
    """Means of one group."""
    means = {name: _mean([rounded(100 * record[name]) for record in members]) for name in REVOS_NAMES}
    scores = {"J": means["J"], "F": means["F"], "J&F": (means["J"] + means["F"]) / 2}
    return scores | {name: means[name] for name in REVOS_NAMES[2:]} | {"count": len(members)}


def _controls(records: Records) -> dict[str, dict[str, Any]]:
    """Means of the controls, over the expressions that have them."""
    found = {}
    for name, meaning in CONTROLS.items():
        scores = [record["controls"][name] for record in records if name in record.get("controls", {})]
        if scores:
            found[name] = mean_scores(scores) | {"meaning": meaning}
    return found
