"""Data sets of VIRST: one builder for each, one record for all, the mixture of training and its collator.

The names below are imported when they are first used, so `import virst_hf.data` takes neither torch nor datasets.
"""

from .._lazy import lazy_exports

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

__getattr__, __dir__, __all__ = lazy_exports(__name__, EXPORTS)
