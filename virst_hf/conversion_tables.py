"""Names of tensors in the checkpoints that VIRST is built from, and what they are called here.

No tensor and no file is touched in this module: it only knows names.
"""

import re

from .errors import CheckpointError

__all__ = [
    "INITIALISED_PREFIXES",
    "RELEASED_SHA256",
    "ROWS_CUT",
    "SAM2_PREFIX",
    "UNUSED_PREFIXES",
    "lora_part",
    "released_to_virst",
    "strip_wrappers",
    "virst_to_released",
]

# SHA-256 of the `.pt` that the authors of VIRST published.
RELEASED_SHA256 = "bd4a70841c1334e77669265b0a0dbd3e580a46e2f0b739e2f48cf8e6cd3ba8a4"

# Prefix in the released checkpoint -> prefix here. The first one that fits counts, so a narrower prefix stands before
# the wider one that holds it. VideoChat-Flash uses the same names for the parts that it has.
RELEASED_PREFIXES = (
    ("lm_head.", "lm_head."),
    ("model.embed_tokens.", "model.language_model.embed_tokens."),
    ("model.layers.", "model.language_model.layers."),
    ("model.norm.", "model.language_model.norm."),
    ("model.vision_tower.vision_tower.encoder.", "model.vision_tower."),
    ("model.mm_projector.", "model.projector."),
    ("model.initial_seg_fusion_module.spatial_down.", "model.initial_fusion.tokenizer.spatial_down."),
    ("model.initial_seg_fusion_module.spatial_norm.", "model.initial_fusion.tokenizer.norm."),
    ("model.initial_seg_fusion_module.", "model.initial_fusion."),
    ("model.seg_prompter.spatial_down.", "model.prompt_decoder.tokenizer.spatial_down."),
    ("model.seg_prompter.memory_norm.", "model.prompt_decoder.tokenizer.norm."),
    ("model.seg_prompter.decoder.", "model.prompt_decoder.layers."),
    ("model.seg_prompter.", "model.prompt_decoder."),
    ("model.seg_model.", "model.segmenter."),
)

# In the released checkpoint, but no code of the release ever calls it.
UNUSED_PREFIXES = ("model.occ_predictor.",)

# `sam2.1_hiera_large.pt` has the names that stand behind this prefix in the released checkpoint.
SAM2_PREFIX = "model.seg_model."

# What neither VideoChat-Flash nor SAM 2.1 has: the two Spatio-Temporal Fusions.
INITIALISED_PREFIXES = ("model.initial_fusion.", "model.prompt_decoder.")

# VideoChat-Flash pads these two to 152,064 rows; rows behind the vocabulary belong to no token and are cut.
ROWS_CUT = ("model.language_model.embed_tokens.weight", "lm_head.weight")

# A wrapper for distributed training may stand in front of PEFT's.
WRAPPERS = ("module.", "base_model.model.")

LORA_NAME = re.compile(r"(?P<layer>.+)\.lora_(?P<factor>[AB])\.default\.weight")


def strip_wrappers(name: str) -> str:
    """Remove what a training wrapper and PEFT put in front of a name, and PEFT's `base_layer` inside it.

    Args:
        name (`str`): Name of a tensor in a released checkpoint.

    Returns:
        `str`: The name that the unwrapped model gives to that tensor.
    """
    for wrapper in WRAPPERS:
        name = name.removeprefix(wrapper)
    # PEFT 0.4 puts LoRA beside the weight; since 0.6 the weight is in a module of its own.
    return re.sub(r"\.base_layer\.(weight|bias)$", r".\1", name)


def lora_part(name: str) -> tuple[str, str] | None:
    """Split the name of a LoRA factor.

    Args:
        name (`str`): Name of a tensor in a released checkpoint, wrappers removed.

    Returns:
        `tuple[str, str]` or `None`: The weight to add to and `"A"` or `"B"`; `None` where it is no LoRA factor.

    Example:

    ```python
    >>> from virst_hf.conversion_tables import lora_part
    >>> lora_part("model.layers.0.mlp.up_proj.lora_A.default.weight")
    ('model.layers.0.mlp.up_proj.weight', 'A')

    ```
    """
    match = LORA_NAME.fullmatch(name)
    return (match["layer"] + ".weight", match["factor"]) if match else None


def released_to_virst(name: str) -> str | None:
    """Our name of a tensor of the released checkpoint or of VideoChat-Flash.

    Args:
        name (`str`): Name in the checkpoint, with or without the prefixes of PEFT and of a training wrapper.

    Returns:
        `str` or `None`: Name in `VirstForVideoSegmentation.state_dict()`; for a LoRA factor that of the weight into
        which it is merged; `None` for a tensor that is known and that nothing uses.

    Raises:
        `CheckpointError`: If the name is not one of a VIRST checkpoint.

    Example:

    ```python
    >>> from virst_hf.conversion_tables import released_to_virst
    >>> released_to_virst("base_model.model.model.seg_prompter.decoder.0.norm1.weight")
    'model.prompt_decoder.layers.0.norm1.weight'

    ```
    """
    bare = strip_wrappers(name)
    part = lora_part(bare)
    if part is not None:
        bare = part[0]
    if bare.startswith(UNUSED_PREFIXES):
        return None
    for released, virst in RELEASED_PREFIXES:
        if bare.startswith(released):
            return virst + bare.removeprefix(released)
    raise CheckpointError(f"{name!r} is not the name of a tensor of VIRST, VideoChat-Flash or SAM 2.1.")


def virst_to_released(name: str) -> str:
    """The released name, without PEFT's prefix, of one of our parameters: the inverse of [`released_to_virst`].

    Args:
        name (`str`): Name in `VirstForVideoSegmentation.state_dict()`.

    Returns:
        `str`: Name in the released checkpoint.

    Raises:
        `CheckpointError`: If the model has no such part.
    """
    for released, virst in RELEASED_PREFIXES:
        if name.startswith(virst):
            return released + name.removeprefix(virst)
    raise CheckpointError(f"{name!r} is not the name of a parameter of VirstForVideoSegmentation.")
