"""Configuration of VIRST.

The defaults are the released 7B model: VideoChat-Flash-Qwen2-7B-res448 with SAM 2.1 large.
"""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .errors import ConfigError

__all__ = ["VirstAnchorConfig", "VirstConfig", "VirstFusionConfig", "VirstSegmenterConfig", "VirstVisionConfig"]

# The text model of the release: Qwen2-7B, its embedding cut to the tokenizer's 151,646 tokens plus [SEG].
RELEASE_TEXT_CONFIG = {
    "vocab_size": 151647,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    "bos_token_id": 151643,
    "eos_token_id": [151645, 151643],
    "pad_token_id": 151643,
}


def require(condition: bool, message: str) -> None:
    """Raise a `ConfigError` with `message` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def require_positive(config: PreTrainedConfig, *names: str) -> None:
    """Raise a `ConfigError` unless each of the named fields of `config` is at least 1."""
    for name in names:
        value = getattr(config, name)
        require(value >= 1, f"{type(config).__name__}.{name} must be at least 1, found {value}.")


class VirstBaseConfig(PreTrainedConfig):
    """Base of the configurations: checks the sizes once the fields are set, with an error that is a `ValueError`."""

    # Not a `validate_...` method: the strict data class would wrap the error in one that is no ValueError.
    def __post_init__(self, **kwargs) -> None:
        super().__post_init__(**kwargs)
        self.check_sizes()

    def check_sizes(self) -> None:
        """Raise a `ConfigError` where the sizes do not fit together."""


@strict
class VirstVisionConfig(VirstBaseConfig):
    r"""
    Configuration of the vision tower (UMT-L, "umt-hd-large") and of the token merging after it.

    Args:
        hidden_size (`int`, *optional*, defaults to 1024): Width of the tower.
        num_hidden_layers (`int`, *optional*, defaults to 24): Layers that the tower was trained with.
        select_layer (`int`, *optional*, defaults to -2):
            Layer whose output is used, counted from the end; layers behind it are not built.
        num_attention_heads (`int`, *optional*, defaults to 16): Attention heads.
        mlp_ratio (`float`, *optional*, defaults to 4.0): Width of the feed-forward layers over `hidden_size`.
        image_size (`int`, *optional*, defaults to 448): Height and width of the frames, in pixels.
        patch_size (`int`, *optional*, defaults to 16): Height and width of a patch, in pixels.
        frames_per_clip (`int`, *optional*, defaults to 4): Frames that attend to one another.
        pretrained_grid (`int`, *optional*, defaults to 14):
            Side of the sin-cos position table before it is interpolated to `image_size // patch_size`.
        tokens_per_clip (`int`, *optional*, defaults to 64): Tokens that are left of a clip (or of a still image).
        layer_norm_eps (`float`, *optional*, defaults to 1e-6): Epsilon inside the blocks.
        final_layer_norm_eps (`float`, *optional*, defaults to 1e-12): Epsilon of the last LayerNorm.

    Example:

    ```python
    >>> from virst_hf import VirstVisionConfig
    >>> VirstVisionConfig(hidden_size=64, num_attention_heads=4).grid_size
    28

    ```
    """

    model_type = "virst_vision"
    base_config_key = "vision_config"

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    select_layer: int = -2
    num_attention_heads: int = 16
    mlp_ratio: float = 4.0
    image_size: int = 448
    patch_size: int = 16
    frames_per_clip: int = 4
    pretrained_grid: int = 14
    tokens_per_clip: int = 64
    layer_norm_eps: float = 1e-6
    final_layer_norm_eps: float = 1e-12

    @property
    def grid_size(self) -> int:
        """Patches along one side of a frame."""
        return self.image_size // self.patch_size

    @property
    def num_built_layers(self) -> int:
        """Layers up to and including the selected one."""
        depth = self.num_hidden_layers
        return depth + self.select_layer + 1 if self.select_layer < 0 else self.select_layer

    def check_sizes(self) -> None:
        """Raise a `ConfigError` where the sizes do not fit together."""
        require_positive(self, "hidden_size", "image_size", "patch_size", "frames_per_clip", "tokens_per_clip")
        require_positive(self, "num_attention_heads", "pretrained_grid")
        require(
            self.hidden_size % self.num_attention_heads == 0 and self.hidden_size % 2 == 0,
            f"The vision tower's hidden_size ({self.hidden_size}) must be even and a multiple of its "
            f"num_attention_heads ({self.num_attention_heads}).",
        )
        require(
            self.image_size % self.patch_size == 0,
            f"The vision tower's image_size ({self.image_size}) must be a multiple of patch_size ({self.patch_size}).",
        )
        require(
            1 <= self.num_built_layers <= self.num_hidden_layers,
            f"select_layer {self.select_layer} is not a layer of a tower of {self.num_hidden_layers} layers.",
        )
        require(
            self.tokens_per_clip % self.frames_per_clip == 0 and self.tokens_per_clip <= self.grid_size**2,
            f"tokens_per_clip ({self.tokens_per_clip}) must be a multiple of frames_per_clip ({self.frames_per_clip}) "
            f"and at most the {self.grid_size**2} patches of one frame.",
        )


@strict
class VirstSegmenterConfig(VirstBaseConfig):
    r"""
    Every size of the SAM 2.1 segmenter. The defaults are `sam2.1_hiera_large`.

    Args:
        image_size (`int`, *optional*, defaults to 1024): Side of the SAM view, in pixels, a multiple of 32.
        hidden_size (`int`, *optional*, defaults to 256): Width C of neck, memory attention and mask decoder.
        trunk_embed_dim (`int`, *optional*, defaults to 144): Width of the first stage of the Hiera trunk.
        trunk_num_heads (`int`, *optional*, defaults to 2): Heads of the first stage.
        trunk_stages (`list[int]`, *optional*, defaults to `[2, 6, 36, 4]`): Blocks in each of the four stages.
        trunk_global_att_blocks (`list[int]`, *optional*, defaults to `[23, 33, 43]`): Blocks with global attention.
        trunk_window_pos_embed_bkg_spatial_size (`list[int]`, *optional*, defaults to `[7, 7]`):
            Size of the position table that is interpolated over the image.
        trunk_window_spec (`list[int]`, *optional*, defaults to `[8, 4, 16, 8]`): Window of each stage.
        fpn_top_down_levels (`list[int]`, *optional*, defaults to `[2, 3]`): Neck levels with a top-down path.
        memory_attention_layers (`int`, *optional*, defaults to 4): Layers of the memory attention.
        memory_attention_feedforward (`int`, *optional*, defaults to 2048): Its feed-forward width.
        memory_attention_heads (`int`, *optional*, defaults to 1): Its heads.
        memory_attention_dropout (`float`, *optional*, defaults to 0.1): Its dropout, in training.
        rope_theta (`float`, *optional*, defaults to 10000.0): Base of its rotary embedding.
        memory_dim (`int`, *optional*, defaults to 64): Width of a memory token; divides `hidden_size`.
        memory_fuser_layers (`int`, *optional*, defaults to 2): Blocks of the memory encoder's fuser.
        num_maskmem (`int`, *optional*, defaults to 7): Rows of the temporal code: anchors and the last P = 6 frames.
        max_object_pointers (`int`, *optional*, defaults to 16): Most frames with an object pointer.
        mask_decoder_depth (`int`, *optional*, defaults to 2): Layers of the mask decoder.
        mask_decoder_heads (`int`, *optional*, defaults to 8): Its heads.
        mask_decoder_mlp_dim (`int`, *optional*, defaults to 2048): Its feed-forward width.
        mask_prompt_channels (`int`, *optional*, defaults to 16): Channels of the (unused) mask prompt encoder.
        iou_head_depth (`int`, *optional*, defaults to 3): Layers of the IoU head.
        iou_head_hidden_size (`int`, *optional*, defaults to 256): Width of the IoU head.
        num_multimask_outputs (`int`, *optional*, defaults to 3): Masks of the multi-mask output.
        multimask_output (`bool`, *optional*, defaults to `True`):
            At inference take the best of the multi-mask outputs by predicted IoU (as the released weights are used).
            `False`: the single-mask output, the one that training supervises.
        dynamic_multimask_via_stability (`bool`, *optional*, defaults to `True`):
            With the single-mask output at inference, fall back to the best multi-mask output when it is unstable.
        dynamic_multimask_stability_delta (`float`, *optional*, defaults to 0.05): Logit margin of that test.
        dynamic_multimask_stability_thresh (`float`, *optional*, defaults to 0.98):
            Stability below which it falls back.
        sigmoid_scale_for_mem_enc (`float`, *optional*, defaults to 20.0): Scale of a mask going into memory.
        sigmoid_bias_for_mem_enc (`float`, *optional*, defaults to -10.0): Its bias.
        image_mean (`list[float]`, *optional*, defaults to ImageNet's): Mean of the SAM view (0 to 1), per channel.
        image_std (`list[float]`, *optional*, defaults to ImageNet's): Standard deviation of the SAM view.

    Example:

    ```python
    >>> from virst_hf import VirstSegmenterConfig
    >>> VirstSegmenterConfig(image_size=512).low_res_size
    128

    ```
    """

    model_type = "virst_segmenter"
    base_config_key = "segmenter_config"

    image_size: int = 1024
    hidden_size: int = 256
    trunk_embed_dim: int = 144
    trunk_num_heads: int = 2
    trunk_stages: list[int] | tuple[int, ...] = (2, 6, 36, 4)
    trunk_global_att_blocks: list[int] | tuple[int, ...] = (23, 33, 43)
    trunk_window_pos_embed_bkg_spatial_size: list[int] | tuple[int, ...] = (7, 7)
    trunk_window_spec: list[int] | tuple[int, ...] = (8, 4, 16, 8)
    fpn_top_down_levels: list[int] | tuple[int, ...] = (2, 3)
    memory_attention_layers: int = 4
    memory_attention_feedforward: int = 2048
    memory_attention_heads: int = 1
    memory_attention_dropout: float = 0.1
    rope_theta: float = 10000.0
    memory_dim: int = 64
    memory_fuser_layers: int = 2
    num_maskmem: int = 7
    max_object_pointers: int = 16
    mask_decoder_depth: int = 2
    mask_decoder_heads: int = 8
    mask_decoder_mlp_dim: int = 2048
    mask_prompt_channels: int = 16
    iou_head_depth: int = 3
    iou_head_hidden_size: int = 256
    num_multimask_outputs: int = 3
    multimask_output: bool = True
    dynamic_multimask_via_stability: bool = True
    dynamic_multimask_stability_delta: float = 0.05
    dynamic_multimask_stability_thresh: float = 0.98
    sigmoid_scale_for_mem_enc: float = 20.0
    sigmoid_bias_for_mem_enc: float = -10.0
    image_mean: list[float] | tuple[float, ...] = (0.485, 0.456, 0.406)
    image_std: list[float] | tuple[float, ...] = (0.229, 0.224, 0.225)

    @property
    def grid_size(self) -> int:
        """Side of the stride-16 feature map."""
        return self.image_size // 16

    @property
    def low_res_size(self) -> int:
        """Side of the mask decoder's logits (stride 4)."""
        return self.image_size // 4

    def check_sizes(self) -> None:
        """Raise a `ConfigError` where the sizes do not fit together."""
        require_positive(self, "image_size", "hidden_size", "trunk_embed_dim", "trunk_num_heads", "memory_dim")
        require_positive(self, "memory_attention_heads", "mask_decoder_heads", "num_multimask_outputs")
        width, side = self.hidden_size, self.image_size
        require(side % 32 == 0, f"The segmenter's image_size must be a multiple of 32, found {side}.")
        # The finest map is side / 4; its position code is tiled from the first window.
        require(
            (side // 4) % self.trunk_window_spec[0] == 0,
            f"image_size / 4 ({side // 4}) must be a multiple of the first window ({self.trunk_window_spec[0]}).",
        )
        require(
            len(self.trunk_stages) == len(self.trunk_window_spec) == 4,
            f"trunk_stages and trunk_window_spec need four entries, found {list(self.trunk_stages)} and "
            f"{list(self.trunk_window_spec)}.",
        )
        starts = [sum(self.trunk_stages[:stage]) for stage in (1, 2, 3)]
        require(
            not set(starts) & set(self.trunk_global_att_blocks)
            and all(0 <= block < sum(self.trunk_stages) for block in self.trunk_global_att_blocks),
            f"trunk_global_att_blocks {list(self.trunk_global_att_blocks)} must be blocks 0 to "
            f"{sum(self.trunk_stages) - 1} without the first of a later stage ({starts}), where the map shrinks.",
        )
        require(
            min(self.trunk_window_spec) >= 2,
            f"trunk_window_spec {list(self.trunk_window_spec)} needs windows of 2 or more.",
        )
        require(
            len(self.trunk_window_pos_embed_bkg_spatial_size) == 2,
            "trunk_window_pos_embed_bkg_spatial_size needs a height and a width.",
        )
        require(
            self.trunk_embed_dim % self.trunk_num_heads == 0,
            f"trunk_embed_dim ({self.trunk_embed_dim}) must be a multiple of trunk_num_heads "
            f"({self.trunk_num_heads}).",
        )
        require(
            width % 8 == 0 and width % (2 * self.mask_decoder_heads) == 0,
            f"The segmenter's hidden_size ({width}) must be a multiple of 8 and of twice mask_decoder_heads "
            f"({self.mask_decoder_heads}).",
        )
        require(
            width % (4 * self.memory_attention_heads) == 0,
            f"hidden_size ({width}) must be a multiple of 4 * memory_attention_heads ({self.memory_attention_heads}).",
        )
        require(
            width % self.memory_dim == 0 and self.memory_dim % 4 == 0,
            f"memory_dim ({self.memory_dim}) must be a multiple of 4 that divides hidden_size ({width}): an object "
            "pointer is split into tokens of that width.",
        )
        require(self.num_maskmem >= 2, f"num_maskmem must be at least 2, found {self.num_maskmem}.")
        require(
            self.max_object_pointers >= 2, f"max_object_pointers must be at least 2, found {self.max_object_pointers}."
        )


@strict
class VirstFusionConfig(VirstBaseConfig):
    r"""
    Configuration of the two Spatio-Temporal Fusions.

    Args:
        num_seg_tokens (`int`, *optional*, defaults to 10): N, the [SEG] tokens of an answer.
        num_heads (`int`, *optional*, defaults to 8): Attention heads of both fusions.
        num_downsamples (`int`, *optional*, defaults to 3): Stride-2 convolutions of the frame-aware video tokenizer.
        prompter_layers (`int`, *optional*, defaults to 2): Decoder layers of the second fusion.
        prompter_feedforward (`int`, *optional*, defaults to 1024): Their feed-forward width.
        rope_theta (`float`, *optional*, defaults to 10000.0): Base of the rotary embedding in their cross-attention.
        gate_init (`float`, *optional*, defaults to 0.1): First value of the initial fusion's learned gate.
        use_initial_fusion (`bool`, *optional*, defaults to `True`):
            Whether the [SEG] embeddings ask the video before the language model. `True` is the paper's method; the
            command with which the release was evaluated leaves it off.

    Example:

    ```python
    >>> from virst_hf import VirstConfig
    >>> VirstConfig(st_fusion_config={"use_initial_fusion": False}).st_fusion_config.num_seg_tokens
    10

    ```
    """

    model_type = "virst_fusion"
    base_config_key = "st_fusion_config"

    num_seg_tokens: int = 10
    num_heads: int = 8
    num_downsamples: int = 3
    prompter_layers: int = 2
    prompter_feedforward: int = 1024
    rope_theta: float = 10000.0
    gate_init: float = 0.1
    use_initial_fusion: bool = True

    def check_sizes(self) -> None:
        """Raise a `ConfigError` where a size is below 1."""
        require_positive(self, "num_seg_tokens", "num_heads", "num_downsamples", "prompter_layers")


@strict
class VirstAnchorConfig(VirstBaseConfig):
    r"""
    Configuration of the Temporal Dynamic Anchor Updater (supplement Alg. 1 and Alg. 2).

    Args:
        num_anchors (`int`, *optional*, defaults to 3): Alpha, the anchors that a frame attends to.
        anchor_stride (`int`, *optional*, defaults to 4): At inference there is one anchor for this many of the `T_seg`
            frames.
        num_before (`int`, *optional*, defaults to 2): Propagation frames before each anchor, in training.
        num_propagation (`int`, *optional*, defaults to 5): Propagation frames after each anchor, in training.
        min_frames (`int`, *optional*, defaults to 8): A shorter video counts as this long while it is tracked.

    Example:

    ```python
    >>> from virst_hf import VirstAnchorConfig
    >>> VirstAnchorConfig(num_anchors=2).anchor_stride
    4

    ```
    """

    model_type = "virst_anchor"
    base_config_key = "anchor_config"

    num_anchors: int = 3
    anchor_stride: int = 4
    num_before: int = 2
    num_propagation: int = 5
    min_frames: int = 8

    def check_sizes(self) -> None:
        """Raise a `ConfigError` where a size is out of range."""
        require_positive(self, "num_anchors", "anchor_stride", "min_frames")
        require(
            self.num_before >= 0 and self.num_propagation >= 0,
            f"num_before and num_propagation must not be negative, found {self.num_before}, {self.num_propagation}.",
        )


@strict
class VirstConfig(VirstBaseConfig):
    r"""
    Configuration of [`VirstForVideoSegmentation`]. `VirstConfig()` is the released 7B model.

    Args:
        vision_config (`VirstVisionConfig` or `dict`, *optional*): The vision tower.
        text_config (`Qwen2Config` or `dict`, *optional*): The language model.
        segmenter_config (`VirstSegmenterConfig` or `dict`, *optional*): SAM 2.1.
        st_fusion_config (`VirstFusionConfig` or `dict`, *optional*): Both Spatio-Temporal Fusions.
        anchor_config (`VirstAnchorConfig` or `dict`, *optional*): Anchors and propagation frames.
        seg_token_id (`int`, *optional*, defaults to 151646): Id of `[SEG]`, a row of the embedding.
        video_token_id (`int`, *optional*, defaults to 151647):
            Id of the video placeholder. It has no row in the embedding: the model replaces it before the lookup.
        bce_loss_weight (`float`, *optional*, defaults to 1.0): Weight of the mask BCE in Eq. 16.
        dice_loss_weight (`float`, *optional*, defaults to 1.0): Weight of the Dice loss.
        token_loss_weight (`float`, *optional*, defaults to 1.0): Weight of the token cross entropy.
        occlusion_loss_weight (`float`, *optional*, defaults to 0.05): Weight of the occlusion loss.
        iou_loss_weight (`float`, *optional*, defaults to 0.05):
            Weight of the IoU loss (the paper's; the release adds that term twice).
        initializer_range (`float`, *optional*, defaults to 0.02): Standard deviation of new weights.

    Example:

    ```python
    >>> from virst_hf import VirstConfig
    >>> config = VirstConfig()
    >>> config.text_config.hidden_size, config.segmenter_config.image_size
    (3584, 1024)

    ```
    """

    model_type = "virst"
    sub_configs_defaults = {
        "vision_config": VirstVisionConfig,
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="qwen2", init_kwargs=RELEASE_TEXT_CONFIG),
        "segmenter_config": VirstSegmenterConfig,
        "st_fusion_config": VirstFusionConfig,
        "anchor_config": VirstAnchorConfig,
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    segmenter_config: dict | PreTrainedConfig | None = None
    st_fusion_config: dict | PreTrainedConfig | None = None
    anchor_config: dict | PreTrainedConfig | None = None
    seg_token_id: int = 151646
    video_token_id: int = 151647
    bce_loss_weight: float = 1.0
    dice_loss_weight: float = 1.0
    token_loss_weight: float = 1.0
    occlusion_loss_weight: float = 0.05
    iou_loss_weight: float = 0.05
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False

    def check_sizes(self) -> None:
        """Raise a `ConfigError` where the parts do not fit together."""
        segmenter, fusion, text = self.segmenter_config, self.st_fusion_config, self.text_config
        width = segmenter.hidden_size
        require(
            width % fusion.num_heads == 0 and width // fusion.num_heads >= 6,
            f"The segmenter's hidden_size ({width}) must be a multiple of the fusion's num_heads ({fusion.num_heads}) "
            "with at least 6 channels a head: the rotary code needs a pair each for time, height and width.",
        )
        require(
            text.hidden_size % fusion.num_heads == 0,
            f"The text model's hidden_size ({text.hidden_size}) must be a multiple of the fusion's num_heads "
            f"({fusion.num_heads}).",
        )
        require(
            0 <= self.seg_token_id < text.vocab_size,
            f"seg_token_id {self.seg_token_id} has no row in an embedding of {text.vocab_size} rows.",
        )
        require(
            self.video_token_id != self.seg_token_id,
            f"video_token_id and seg_token_id are both {self.seg_token_id}; they must differ.",
        )
        frames = self.vision_config.frames_per_clip
        require(
            self.anchor_config.min_frames >= frames,
            f"min_frames ({self.anchor_config.min_frames}) must hold one clip of {frames} frames.",
        )
