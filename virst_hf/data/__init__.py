"""Data sets of VIRST: one builder for each, one record for all, the mixture of training and its collator.

The names below are imported when they are first used, so `import virst_hf.data` takes neither torch nor datasets.
"""

import importlib
from typing import Any

# Module -> the names that it gives to this package.
EXPORTS = {
    "builder": ["VirstDataConfig", "VirstDatasetBuilder"],
    "catalog": ["CATALOG", "builder_class", "load", "make_builder"],
    "mevis": ["MeViS"],
    "records": ["CATEGORIES", "CATEGORY_WEIGHTS", "decode_masks", "make_row"],
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
