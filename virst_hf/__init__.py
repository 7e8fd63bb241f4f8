"""VIRST as a Transformers model: segment what a sentence describes, in every frame of a video.

The names below are imported when they are first used, so `import virst_hf` takes no torch. It does make
`AutoConfig`, `AutoModel`, `AutoProcessor` and `AutoVideoProcessor` of Transformers know the model.
"""

from ._auto import install
from ._lazy import lazy_exports
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
    "loading": ["VIRST_TINY", "load_model", "load_processor"],
    "modeling_outputs": ["VirstOutput", "VirstSegmentationOutput", "VirstVideoFeatures"],
    "modeling_virst": ["VirstForVideoSegmentation", "VirstModel", "VirstPreTrainedModel"],
    "modules.tracker": ["TrackingOptions"],
    "presets": ["FAST", "InferencePreset"],
    "processing_virst": ["VirstProcessor"],
    "rendering": ["VideoWriter", "draw_overlay"],
    "session": ["VirstSession"],
    "streaming": ["StreamedFrame", "WindowTracker", "windows_of"],
    "untrained": ["make_untrained_model"],
    "video_io": ["VideoSource", "open_video"],
    "video_processing_virst": ["VirstVideoProcessor"],
}

__getattr__, __dir__, lazy_names = lazy_exports(__name__, EXPORTS)
__all__ = ["__version__", *lazy_names]

install()
