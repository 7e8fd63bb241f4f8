"""Models and videos of the benchmark of inference: four sizes, from the tests' small model to the release."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import virst_hf
from virst_hf import VirstConfig, VirstForVideoSegmentation, VirstProcessor, VirstVideoProcessor
from virst_hf.untrained import untrained_model, untrained_processor
from virst_hf.video_io import VideoSource

__all__ = ["SIZES", "Size", "build", "config_of", "expression_texts", "random_video"]

HEIGHT, WIDTH = 180, 320
# The small trained model, where the package holds it.
VIRST_TINY = str(Path(virst_hf.__file__).parent / "tiny")


@dataclass(frozen=True)
class Size:
    """
    What is run of a size when nothing else is asked for.

    Args:
        frames (`tuple[int, ...]`): Lengths of the videos.
        expressions (`tuple[int, ...]`): Numbers of expressions.
        fields (`dict`, *optional*): Parts of the configuration; the rest is as in the release.
    """

    frames: tuple[int, ...]
    expressions: tuple[int, ...]
    fields: dict[str, dict[str, Any]] = field(default_factory=dict)


def half_size(image_size: int) -> dict[str, dict[str, Any]]:
    """SAM 2.1 large as it is, its frames of the given side; a small language model and a small vision tower.

    The defaults of the segmenter, of both fusions and of the anchors are the release's: alpha 3, 10 [SEG] tokens.
    """
    return {
        "vision_config": {
            "hidden_size": 256,
            "num_hidden_layers": 4,
            "select_layer": -1,
            "num_attention_heads": 8,
            "image_size": 224,
        },
        "text_config": {
            "model_type": "qwen2",
            "vocab_size": 32000,
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "num_key_value_heads": 4,
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
        },
        "segmenter_config": {"image_size": image_size},
    }


SIZES = {
    "tiny": Size((32, 200, 2000), (1, 4, 16)),
    "mid": Size((32,), (1, 4, 16), half_size(512)),
    "full": Size((12,), (1, 4), half_size(1024)),
    "7b": Size((32,), (1, 4, 16)),
}


def build(size: str, initial_fusion: bool = True) -> tuple[VirstForVideoSegmentation, VirstProcessor]:
    """Model and processor of a size, float32, on the CPU. Random weights from a fixed seed, but for virst-tiny's.

    The tokenizer is the byte-level one, except where the model has its own.

    Args:
        size (`str`): One of `SIZES`.
        initial_fusion (`bool`, *optional*, defaults to `True`): Whether the initial fusion is on.

    Returns:
        `tuple`: Model, in evaluation mode, and processor.
    """
    if size == "tiny" and Path(VIRST_TINY).is_dir():
        model = VirstForVideoSegmentation.from_pretrained(VIRST_TINY, dtype=torch.float32).eval()
        processor = VirstProcessor.from_pretrained(VIRST_TINY)
    elif size == "tiny":
        model, processor = untrained_model(), untrained_processor()
    else:
        model, processor = build_random(config_of(size))
    model.config.st_fusion_config.use_initial_fusion = initial_fusion
    return model, processor


def config_of(size: str) -> VirstConfig:
    """The configuration of a size with random weights.

    Args:
        size (`str`): One of `SIZES`, but for `"tiny"`, which has a configuration elsewhere.

    Returns:
        [`VirstConfig`]: The configuration, its special tokens those of the byte-level tokenizer.
    """
    seg, video = untrained_processor().tokenizer.convert_tokens_to_ids(["[SEG]", "<video>"])
    return VirstConfig(seg_token_id=seg, video_token_id=video, **SIZES[size].fields)


def build_random(config: VirstConfig, seed: int = 0) -> tuple[VirstForVideoSegmentation, VirstProcessor]:
    """A model with random weights, and a processor with the byte-level tokenizer and views of the model's sizes."""
    views = VirstVideoProcessor(
        image_size=config.vision_config.image_size,
        sam_image_size=config.segmenter_config.image_size,
        tokens_per_clip=config.vision_config.tokens_per_clip,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VirstForVideoSegmentation(config).eval()
    num_seg = config.st_fusion_config.num_seg_tokens
    return model, VirstProcessor(views, untrained_processor().tokenizer, num_seg_tokens=num_seg)


def random_video(num_frames: int, seed: int = 0) -> VideoSource:
    """A video of noise that moves to the right. Frames are made as they are read, so that a long one takes no memory.

    Args:
        num_frames (`int`): Its length.
        seed (`int`, *optional*, defaults to 0): Seed of the noise.

    Returns:
        [`VideoSource`]: The video.
    """
    image = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)

    def read() -> Iterator[np.ndarray]:
        for index in range(num_frames):
            yield np.roll(image, index, axis=1)

    return VideoSource("noise", num_frames, HEIGHT, WIDTH, read)


def expression_texts(count: int) -> list[str]:
    """As many different expressions."""
    return [f"the square number {i} that moves to the right" for i in range(count)]
