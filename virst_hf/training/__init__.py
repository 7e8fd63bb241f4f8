"""Training: the three stages, their arguments and the Trainer. The names are imported when they are first used."""

from .._lazy import lazy_exports

# Module -> the names that it gives to this package.
EXPORTS = {
    ".quantization": ["four_bit_config"],  # of virst_hf: inference has it, too
    "arguments": ["VirstTrainingArguments"],
    "stages": ["STAGES", "TrainingStage", "describe", "get_stage", "prepare_model"],
    "trainer": ["VirstTrainer"],
    "validation": ["SplitValidation"],
}

__getattr__, __dir__, __all__ = lazy_exports(__name__, EXPORTS)
