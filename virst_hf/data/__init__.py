"""Data sets of VIRST: one builder for each, one record for all, the mixture of training and its collator.

The names below are imported when they are first used, so `import virst_hf.data` takes neither torch nor datasets.
"""

import importlib
from typing import Any

# Module -> the names that it gives to this package.
EXPORTS = {
    "ade20k": ["ADE20K"],
    "builder": ["VirstDataConfig", "VirstDatasetBuilder"],
    "catalog": ["CATALOG", "builder_class", "load", "make_builder"],
    "clips": ["ClipTransform"],
    "coco_stuff": ["COCOStuff"],
    "collator": ["VirstCollator"],
    "doctor": ["Diagnosis", "Finding", "diagnose"],
    "llava_video": ["LLaVAVideo"],
    "lvvis": ["LVVIS"],
    "mevis": ["MeViS"],
    "mixture": ["Mixture", "MixtureStream"],
    "own_data": ["OwnData"],
    "paco_lvis": ["PACOLVIS"],
    "pascal_part": ["PASCALPart"],
    "publish": ["load_published", "publish"],
    "reason_seg": ["ReasonSeg"],
    "records": ["CATEGORIES", "CATEGORY_WEIGHTS", "decode_masks", "make_row"],
    "ref_davis17": ["RefDAVIS17"],
    "ref_youtube_vos": ["RefYouTubeVOS"],
    "refcoco": ["RefCOCO"],
    "refcoco_plus": ["RefCOCOPlus"],
    "refcocog": ["RefCOCOg"],
    "revos": ["ReVOS"],
    "shapes": ["Shapes"],
    "shapes_maker": ["make_shapes"],
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
