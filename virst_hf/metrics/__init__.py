"""The metrics as plain functions of numpy arrays, and as `evaluate.Metric` classes.

The names below are imported when they are first used, so `import virst_hf.metrics` takes neither `evaluate` nor torch.
"""

import importlib
from typing import Any

# Module -> the names that it gives to the package.
EXPORTS = {
    "boundary": ["boundary_accuracy", "tolerance_radius"],
    "davis": ["SequenceScores", "index_map", "match_objects"],
    "images": ["c_iou", "g_iou"],
    "no_target": ["is_empty", "no_target_accuracy", "target_accuracy"],
    "region": ["intersection_and_union", "region_similarity"],
    "revos": ["accuracy", "accuracy_as_published", "robustness", "robustness_as_published"],
    "shells": ["ImageIoU", "NoTargetAccuracy", "ReVOSAccuracyRobustness", "TemporalConsistency", "VideoJF"],
    "stability": ["temporal_consistency"],
}
MODULE_OF = {name: module for module, names in EXPORTS.items() for name in names}

__all__ = list(MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *MODULE_OF])
