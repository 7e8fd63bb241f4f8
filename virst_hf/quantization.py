"""A language model held in 8 or 4 bits, on a smaller GPU: for inference, and in 4 bits under LoRA (QLoRA)."""

import importlib.util

import torch
from transformers import BitsAndBytesConfig

from .errors import ConfigError

__all__ = ["eight_bit_config", "four_bit_config", "language_model_bits"]

# Matched from the start of a module's name. Everything but the language model keeps its weights: these modules train,
# or are convolutions mostly, and the masks come from them.
KEPT = (
    "model.vision_tower",
    "model.projector",
    "model.initial_fusion",
    "model.prompt_decoder",
    "model.segmenter",
    "lm_head",
)


def four_bit_config() -> BitsAndBytesConfig:
    """How bitsandbytes holds the linear layers of the language model: NF4 with double quantization, computed in
    bfloat16, as in QLoRA (arXiv 2305.14314). LM head, fusions, projector, vision tower and segmenter stay as they are.

    We had no GPU, so a run on one was never made. Tested is which layers are chosen; tried by hand, with bitsandbytes
    0.50 on a CPU and the small model, were three steps, saving, loading and `virst merge`.

    Returns:
        [`~transformers.BitsAndBytesConfig`]: For `from_pretrained(..., quantization_config=...)`.

    Raises:
        ConfigError: bitsandbytes is not installed, or there is no CUDA device.
    """
    _check_bitsandbytes(4)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=list(KEPT),
    )


def eight_bit_config() -> BitsAndBytesConfig:
    """How bitsandbytes holds the same layers in 8 bits (LLM.int8, arXiv 2208.07339), for inference.

    Tested is which layers are chosen; it was never run on a GPU.

    Returns:
        [`~transformers.BitsAndBytesConfig`]: For `from_pretrained(..., quantization_config=...)`.

    Raises:
        ConfigError: bitsandbytes is not installed, or there is no CUDA device.
    """
    _check_bitsandbytes(8)
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(KEPT))


def language_model_bits(bits: int) -> BitsAndBytesConfig:
    """The one of the two that a number of bits names.

    Args:
        bits (`int`): 8 or 4.

    Returns:
        [`~transformers.BitsAndBytesConfig`]: For `from_pretrained(..., quantization_config=...)`.

    Raises:
        ConfigError: It is another number, bitsandbytes is not installed, or there is no CUDA device.
    """
    makers = {4: four_bit_config, 8: eight_bit_config}
    if bits not in makers:
        raise ConfigError(f"The language model cannot be held in {bits!r} bits; expected 8 or 4, or nothing.")
    return makers[bits]()


def _check_bitsandbytes(bits: int) -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"A {bits}-bit language model needs bitsandbytes: `pip install bitsandbytes`, or leave it out."
        )
    if not torch.cuda.is_available():
        raise ConfigError(f"A {bits}-bit language model needs a CUDA device, and there is none here. Leave it out.")
