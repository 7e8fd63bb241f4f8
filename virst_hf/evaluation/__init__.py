"""Evaluation: benchmark protocols by name, the runner, stored predictions, scores, reports and server zips.

The names below are imported when they are first used: `import virst_hf.evaluation` takes neither torch nor datasets.
"""

from .._lazy import lazy_exports

# Module -> the names that it gives to this package.
EXPORTS = {
    "comparison": ["compare_runs"],
    "pipeline": ["evaluate_model", "score_run"],
    "predictions": ["PredictionStore"],
    "protocols": ["PROTOCOLS", "Protocol", "get_protocol"],
    "submission": ["pack_submission"],
}

__getattr__, __dir__, __all__ = lazy_exports(__name__, EXPORTS)
