"""Sizes and tokenizer of virst-tiny: every part of VIRST, five million parameters in all."""

from collections.abc import Iterable

from tokenizers import models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from virst_hf import VirstConfig, VirstForVideoSegmentation, VirstProcessor, VirstVideoProcessor
from virst_hf.data.shapes_maker.expressions import ACTIONS, MOMENTS, NUMBERS, PLACES, REASONING
from virst_hf.data.shapes_maker.scene import COLORS, CORNERS
from virst_hf.toy_tokenizer import byte_level, chat_tokenizer

__all__ = [
    "FRAME_TOKENS",
    "NUM_FRAMES",
    "PATCH",
    "SEGMENTER_SIDE",
    "VISION_SIDE",
    "tiny_config",
    "tiny_model",
    "tiny_processor",
]

NUM_FRAMES = 8
VISION_SIDE, PATCH = 160, 16
# The tower looks at one frame at a time, and the language model puts them together: on a CPU that is learned many
# times faster than joint attention over the patches of all frames. Sixteen tokens a frame in the paper.
FRAME_TOKENS = 24
SEGMENTER_SIDE = 192
NUM_SEG_TOKENS = 4
TEXT_WIDTH = 192
VOCABULARY = 640

# Fixed pieces of the prompts are one token each: most of a prompt is always the same.
PHRASES = (
    "system\nYou are a helpful assistant.",
    "user\nReference image: ",
    "user\nReference Video: ",
    "assistant\n",
    " \nWhat is ",
    " \nPlease find ",
    " in the Reference image? Please respond with segmentation mask in the Target Image.",
    " in the Reference image? Please output segmentation mask in the Target Image.",
    " in the Reference image and segment it in the Target Image.",
    " Please find it in the Reference image and respond with segmentation mask in the Target Image.",
    " Please find it in the Reference image and output segmentation mask in the Target Image.",
    "It is (0) ",
    "Sure, (0) ",
    "Sure, it is (0) ",
    "Sure, the segmentation result is (0) ",
    *(f", ({i}) " for i in range(1, NUM_SEG_TOKENS)),
)


def words() -> Iterable[str]:
    """Sentences in which every word of Shapes stands as it does in a prompt: first, or behind a space."""
    nouns = ["shape", *CORNERS]
    yield from [f"the {color} {noun}" for color in COLORS for noun in nouns]
    yield from [f"all {noun}s all {noun}es the small {noun} the large {noun}" for noun in nouns]
    for phrases in ACTIONS.values():
        yield from [f"the shape that {one} all shapes that {several}" for one, several in phrases]
    yield from [f"the shape {moment}{place} the shape" for moment in MOMENTS for place in PLACES]
    yield from [text for texts in REASONING.values() for text in texts]
    yield from [f"{number} the {number} shapes" for number in NUMBERS]
    yield from [*COLORS, *CORNERS]
    yield "how many shapes are there? what color is the shape? what form is the shape?"


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that knows the words of Shapes and the fixed pieces of the prompts as single tokens."""
    backend = byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=1,
        show_progress=False,
    )
    backend.train_from_iterator(words(), trainer)
    return chat_tokenizer(backend, 2048, PHRASES)


def tiny_processor() -> VirstProcessor:
    """The processor of virst-tiny."""
    views = VirstVideoProcessor(
        image_size=VISION_SIDE,
        sam_image_size=SEGMENTER_SIDE,
        tokens_per_clip=FRAME_TOKENS,
        frames_per_clip=1,
        max_vlm_frames=NUM_FRAMES,
        max_seg_frames=NUM_FRAMES,
        min_frames=NUM_FRAMES,
    )
    return VirstProcessor(views, tiny_tokenizer(), num_seg_tokens=NUM_SEG_TOKENS)


def tiny_config(processor: VirstProcessor) -> VirstConfig:
    """The configuration of virst-tiny.

    Args:
        processor ([`VirstProcessor`]): For the ids of its tokens.
    """
    tokenizer = processor.tokenizer
    seg_id = tokenizer.convert_tokens_to_ids("[SEG]")
    return VirstConfig(
        vision_config={
            "hidden_size": 160,
            "num_hidden_layers": 4,
            "select_layer": -1,
            "num_attention_heads": 5,
            "image_size": VISION_SIDE,
            "patch_size": PATCH,
            "pretrained_grid": VISION_SIDE // PATCH,
            "frames_per_clip": 1,
            "tokens_per_clip": FRAME_TOKENS,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": seg_id + 1,
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 480,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "num_key_value_heads": 6,
            "max_position_embeddings": 2048,
            "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
            "bos_token_id": None,
            "pad_token_id": tokenizer.pad_token_id,
        },
        segmenter_config={
            "image_size": SEGMENTER_SIDE,
            "hidden_size": 64,
            "trunk_embed_dim": 24,
            "trunk_num_heads": 1,
            "trunk_stages": [1, 2, 3, 1],
            "trunk_global_att_blocks": [4],
            "trunk_window_spec": [8, 4, 4, 3],
            "trunk_window_pos_embed_bkg_spatial_size": [6, 6],
            "memory_attention_layers": 2,
            "memory_attention_feedforward": 256,
            "memory_attention_dropout": 0.0,
            "memory_dim": 32,
            "mask_decoder_heads": 4,
            "mask_decoder_mlp_dim": 256,
            "mask_prompt_channels": 4,
            "iou_head_hidden_size": 64,
            # Only the single-mask output is trained; the release takes the best of three, as SAM 2 left them.
            "multimask_output": False,
            "dynamic_multimask_via_stability": False,
        },
        st_fusion_config={
            "num_seg_tokens": NUM_SEG_TOKENS,
            "num_heads": 4,
            "num_downsamples": 1,
            "prompter_feedforward": 256,
        },
        # Four anchors among eight frames.
        anchor_config={"anchor_stride": 2},
        seg_token_id=seg_id,
        video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
    )


def tiny_model(processor: VirstProcessor) -> VirstForVideoSegmentation:
    """virst-tiny before any training.

    Args:
        processor ([`VirstProcessor`]): Its processor.
    """
    return VirstForVideoSegmentation(tiny_config(processor))
