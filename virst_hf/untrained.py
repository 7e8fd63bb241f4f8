"""A small VIRST with random weights: to try the plumbing and to test. Its masks mean nothing."""

import os
import shutil
import tempfile
from pathlib import Path

import torch

from .configuration_virst import VirstConfig
from .errors import VirstError
from .modeling_virst import VirstForVideoSegmentation
from .processing_virst import VirstProcessor
from .toy_tokenizer import toy_tokenizer
from .video_processing_virst import VirstVideoProcessor

__all__ = ["make_untrained_model", "untrained_config", "untrained_model", "untrained_processor"]


def untrained_processor() -> VirstProcessor:
    """The processor of the small model: a byte-level tokenizer, 64-pixel VLM view, 128-pixel SAM view, 4 [SEG].

    Returns:
        [`VirstProcessor`]: Its processor.
    """
    video_processor = VirstVideoProcessor(image_size=64, sam_image_size=128, tokens_per_clip=16)
    return VirstProcessor(video_processor, toy_tokenizer(), num_seg_tokens=4)


def untrained_config(**overrides: object) -> VirstConfig:
    """Sizes of the small model: every part is there, each a few thousand parameters.

    Args:
        **overrides: Fields of [`VirstConfig`] to be set otherwise.

    Returns:
        [`VirstConfig`]: Its configuration.
    """
    tokenizer = untrained_processor().tokenizer
    seg_id = tokenizer.convert_tokens_to_ids("[SEG]")
    fields = {
        "vision_config": {
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 64,
            "tokens_per_clip": 16,
            "pretrained_grid": 2,
        },
        "text_config": {
            "model_type": "qwen2",
            "vocab_size": seg_id + 1,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
            "bos_token_id": None,
            "pad_token_id": tokenizer.pad_token_id,
        },
        "segmenter_config": {
            "image_size": 128,
            "hidden_size": 64,
            "trunk_embed_dim": 8,
            "trunk_num_heads": 1,
            "trunk_stages": [1, 1, 2, 1],
            "trunk_global_att_blocks": [3],
            "trunk_window_spec": [8, 4, 4, 4],
            "memory_attention_layers": 1,
            "memory_attention_feedforward": 64,
            "memory_dim": 32,
            "memory_fuser_layers": 1,
            "mask_decoder_mlp_dim": 64,
            "iou_head_hidden_size": 32,
        },
        "st_fusion_config": {"num_seg_tokens": 4, "num_heads": 4, "prompter_feedforward": 64},
        # Wider than usual: with the usual 0.02 all logits of so small a model are nearly zero, and a test of masks
        # would compare nothing.
        "initializer_range": 0.15,
        "seg_token_id": seg_id,
        "video_token_id": tokenizer.convert_tokens_to_ids("<video>"),
    }
    return VirstConfig(**{**fields, **overrides})


def untrained_model(seed: int = 0, **overrides: object) -> VirstForVideoSegmentation:
    """The small model with random weights.

    Args:
        seed (`int`, *optional*, defaults to 0): Seed of the weights; torch's own generator is left as it was.
        **overrides: Fields of [`VirstConfig`] to be set otherwise.

    Returns:
        [`VirstForVideoSegmentation`]: In evaluation mode, float32, on the CPU.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VirstForVideoSegmentation(untrained_config(**overrides)).eval()


def make_untrained_model(directory: str | os.PathLike, seed: int = 0) -> Path:
    """Save the small model and its processor.

    Args:
        directory (`str` or `os.PathLike`): Where to; must not exist yet.
        seed (`int`, *optional*, defaults to 0): Seed of the weights.

    Returns:
        `pathlib.Path`: The directory.

    Raises:
        VirstError: The directory exists.
    """
    target = Path(directory)
    if target.exists():
        raise VirstError(f"{target} exists already; name a new directory for the model.")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        untrained_model(seed).save_pretrained(partial)
        untrained_processor().save_pretrained(partial)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target
