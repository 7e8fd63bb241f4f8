"""The metrics as plain functions of numpy arrays, and as `evaluate.Metric` classes.

The names below are imported when they are first used, so `import virst_hf.metrics` takes neither `evaluate` nor torch.
"""

from .._lazy import lazy_exports

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

__getattr__, __dir__, __all__ = lazy_exports(__name__, EXPORTS)
