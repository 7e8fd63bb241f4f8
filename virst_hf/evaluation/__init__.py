"""Evaluation: benchmark protocols by name, the runner, stored predictions, scores, reports and server zips.

The names below are imported when they are first used: `import virst_hf.evaluation` takes neither torch nor datasets.
"""

import importlib
from typing import Any

# Module -> the names that it gives to this package.
EXPORTS = {
    "comparison": ["compare_runs"],
    "pipeline": ["evaluate_model", "score_run"],
    "predictions": ["PredictionStore"],
    "protocols": ["PROTOCOLS", "Protocol", "get_protocol"],
    "submission": ["pack_submission"],
}
MODULE_OF = {name: module for module, names in EXPORTS.items() for name in names}

__all__ = sorted(MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *MODULE_OF])
