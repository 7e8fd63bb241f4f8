"""VIRST as a Transformers model: segment what a sentence describes, in every frame of a video.

The names below are imported when they are first used, so `import virst_hf` takes no torch. It does make
`AutoConfig`, `AutoModel`, `AutoProcessor` and `AutoVideoProcessor` of Transformers know the model.
"""

import importlib
from typing import Any

from ._auto import install
from .version import __version__

# Module -> the names that it gives to the package.
EXPORTS = {
    "configuration_virst": [
        "VirstAnchorConfig",
        "VirstConfig",
        "VirstFusionConfig",
        "VirstSegmenterConfig",
        "VirstVisionConfig",
    ],
    "errors": ["CheckpointError", "ConfigError", "DataError", "EvaluationError", "VideoError", "VirstError"],
    "loading": ["load_model", "load_processor"],
    "modeling_outputs": ["VirstOutput", "VirstSegmentationOutput", "VirstVideoFeatures"],
    "modeling_virst": ["VirstForVideoSegmentation", "VirstModel", "VirstPreTrainedModel"],
    "processing_virst": ["VirstProcessor"],
    "rendering": ["VideoWriter", "draw_overlay"],
    "untrained": ["make_untrained_model"],
    "video_io": ["VideoSource", "open_video"],
    "video_processing_virst": ["VirstVideoProcessor"],
}
MODULE_OF = {name: module for module, names in EXPORTS.items() for name in names}

__all__ = ["__version__", *MODULE_OF]


def __getattr__(name: str) -> Any:
    if name not in MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *MODULE_OF])


install()
