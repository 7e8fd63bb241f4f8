"""Base of the model: loading, saving, first values; and [`VirstModel`], all parts but the language model's head."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sam2.modeling.backbones.hieradet import Hiera
from sam2.modeling.memory_encoder import CXBlock
from sam2.modeling.position_encoding import PositionEmbeddingRandom
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .adapters import base_of, find_adapter, load_adapter, merge_lora
from .checkpoint_check import check_loading_info
from .configuration_virst import VirstConfig
from .errors import ConfigError, VirstError
from .model_card import write_model_card
from .modules.fusion import VirstInitialFusion, VirstPromptDecoder
from .modules.projector import VirstProjector
from .modules.rotary import module_dtype
from .modules.segmenter import VirstSegmenter
from .modules.vision_tower import VirstVisionAttention, VirstVisionTower

__all__ = ["VirstModel", "VirstPreTrainedModel"]

HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")


class VirstPreTrainedModel(PreTrainedModel):
    """
    Loading, saving, and the first values of all weights.

    Example:

    ```python
    >>> from virst_hf.untrained import untrained_model
    >>> model = untrained_model(seed=1)
    >>> round(model.model.initial_fusion.gate.item(), 3)
    0.1

    ```
    """

    config: VirstConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("video", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["Qwen2DecoderLayer", "VirstVisionBlock", "VirstInitialFusion", "VirstSegmenter"]
    _supports_sdpa = True
    _supports_flash_attn = True
    # Names of the tensors that came from an adapter folder: the next one holds them too.
    overlaid_tensors: frozenset[str] = frozenset()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, VirstVisionAttention):
            init.zeros_(module.q_bias)
            init.zeros_(module.v_bias)
        elif isinstance(module, VirstInitialFusion):
            init.constant_(module.gate, module.gate_init)
        elif isinstance(module, Hiera):
            init.normal_(module.pos_embed, std=std)
            init.normal_(module.pos_embed_window, std=std)
        elif isinstance(module, CXBlock):
            init.constant_(module.gamma, 1e-6)
        elif isinstance(module, PositionEmbeddingRandom):
            init.normal_(module.positional_encoding_gaussian_matrix, std=1.0)
        elif isinstance(module, VirstSegmenter):
            for name in ("maskmem_tpos_enc", "no_mem_embed", "no_mem_pos_enc", "no_obj_ptr", "no_obj_embed_spatial"):
                init.normal_(getattr(module, name), std=std)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path | None,
        *args,
        strict: bool = True,
        output_loading_info: bool = False,
        base: str | Path | None = None,
        **kwargs,
    ) -> "VirstPreTrainedModel | tuple[VirstPreTrainedModel, dict]":
        """Load weights and configuration; refuse a checkpoint that does not fit.

        An adapter folder, which a training stage with LoRA writes, gives its base model with what was trained laid
        over it and LoRA merged (into a quantized base nothing can be merged, so there LoRA stays beside it).

        Args:
            name (`str` or `os.PathLike`): Directory, or name on the Hub; of a full model or of an adapter.
            *args: Positional arguments of [`~transformers.PreTrainedModel.from_pretrained`].
            strict (`bool`, *optional*, defaults to `True`):
                Raise where a tensor is missing, unknown or of another shape. `False` follows Transformers: a warning,
                and new weights for what is missing.
            output_loading_info (`bool`, *optional*, defaults to `False`): Also return the names that did not fit.
            base (`str` or `os.PathLike`, *optional*):
                For an adapter: where its base model is now, if not where it was in training.
            **kwargs: Further arguments, such as `dtype` or `device_map`.

        Returns:
            The model, in evaluation mode; with `output_loading_info` a tuple of model and `dict`.

        Raises:
            CheckpointError: The checkpoint and its configuration do not fit together; the message lists the tensors.
        """
        if strict:
            kwargs["ignore_mismatched_sizes"] = True  # so that all of them are listed, not only the first
        name, adapter = redirect_to_base(name, base, kwargs)
        model, info = super().from_pretrained(name, *args, output_loading_info=True, **kwargs)
        if strict:
            check_loading_info(str(name), info)
        if adapter is not None:
            load_adapter(model, adapter)
            if not getattr(model, "is_quantized", False):
                merge_lora(model)
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory: str | Path, **kwargs) -> None:
        """Save weights and configuration, and a model card (`README.md`) unless the directory has one.

        Args:
            save_directory (`str` or `os.PathLike`): Where to.
            **kwargs: Arguments of [`~transformers.PreTrainedModel.save_pretrained`].
        """
        if kwargs.get("is_main_process", True):
            write_model_card(save_directory, self.config)
        super().save_pretrained(save_directory, **kwargs)


def redirect_to_base(
    name: str | os.PathLike | None, base: str | os.PathLike | None, options: dict[str, Any]
) -> tuple[str | os.PathLike | None, Path | None]:
    """For `from_pretrained`: what is to be loaded where the name is that of an adapter.

    Args:
        name (`str` or `os.PathLike`, *optional*): What `from_pretrained` was called with.
        base (`str` or `os.PathLike`, *optional*): Where the base model is now.
        options (`dict[str, Any]`): Further arguments of `from_pretrained`; changed in place so that they load the base
            with the adapter's configuration, in the base's type.

    Returns:
        `tuple`: Name of the full model, and the adapter folder or `None`.

    Raises:
        CheckpointError: The base is not there.
        ConfigError: A base was named, and there is no adapter.
    """
    # The Auto classes have found an adapter's file by themselves, and may have put the base in place of the name.
    auto = dict(options.get("adapter_kwargs") or {})
    asked = auto.pop("_adapter_model_path", None) or name
    hub_options = {key: options[key] for key in HUB_OPTIONS if options.get(key) is not None}
    adapter = find_adapter(asked, **hub_options)
    if adapter is None:
        if base is not None:
            raise ConfigError(f"{name} is no adapter folder, so it has no base model to be named with base=.")
        return name, None
    options.pop("adapter_kwargs", None)
    options.pop("revision", None)  # of the adapter, not of its base
    if asked != name or options.get("config") is None:
        options["config"] = str(adapter)
    base = base_of(adapter, base)
    if all(options.get(key) in (None, "auto") for key in ("dtype", "torch_dtype")):
        options.pop("torch_dtype", None)
        options["dtype"] = VirstConfig.from_pretrained(base).dtype or "auto"
    return base, adapter


class VirstModel(VirstPreTrainedModel):
    """
    All parts of VIRST but the language model's head. `forward` is the language model on embeddings.

    Args:
        config ([`VirstConfig`]): Its sizes.

    Example:

    ```python
    >>> import torch
    >>> from virst_hf.untrained import untrained_model
    >>> model = untrained_model().model
    >>> model(inputs_embeds=torch.zeros(1, 5, 64)).last_hidden_state.shape
    torch.Size([1, 5, 64])

    ```
    """

    def __init__(self, config: VirstConfig) -> None:
        super().__init__(config)
        vision, text, fusion = config.vision_config, config.text_config, config.st_fusion_config
        width = config.segmenter_config.hidden_size
        self.vision_tower = VirstVisionTower(vision)
        self.projector = VirstProjector(
            vision.hidden_size, text.hidden_size, vision.tokens_per_clip, vision.num_attention_heads
        )
        self.language_model = AutoModel.from_config(text)
        self.initial_fusion = VirstInitialFusion(fusion, width, text.hidden_size)
        self.prompt_decoder = VirstPromptDecoder(fusion, width, text.hidden_size)
        self.segmenter = VirstSegmenter(config.segmenter_config)
        self.post_init()

    @property
    def train_encoders(self) -> bool:
        """Whether vision tower and SAM encoder make a graph: set it for pre-training from scratch only."""
        return self.segmenter.train_encoder

    @train_encoders.setter
    def train_encoders(self, value: bool) -> None:
        """Make both encoders part of the graph, or not."""
        self.segmenter.train_encoder = value

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.language_model.set_input_embeddings(value)

    def encode_clips(self, pixel_values_videos: Tensor) -> Tensor:
        """The vision tower on one video; it is frozen, so it makes no graph (unless `train_encoders` is set).

        Args:
            pixel_values_videos (`torch.Tensor` of shape `(T_vlm, 3, height, width)`): Frames of the VLM view.

        Returns:
            `torch.Tensor` of shape `(num_clips, num_patches, vision_width)`: The tower's tokens.
        """
        frames = self.config.vision_config.frames_per_clip
        if len(pixel_values_videos) == 1:
            frames = 1  # a still image
        elif len(pixel_values_videos) % frames:
            raise VirstError(
                f"A video has {len(pixel_values_videos)} frames for the language model; expected 1 (a still image) or "
                f"a multiple of {frames}. Use the processor to choose them."
            )
        clips = pixel_values_videos.to(next(self.vision_tower.parameters()).device).unflatten(0, (-1, frames))
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.train_encoders):
            return self.vision_tower(clips)

    def get_video_features(self, pixel_values_videos: Tensor) -> Tensor:
        """Tokens of one video for the language model.

        Args:
            pixel_values_videos (`torch.Tensor` of shape `(T_vlm, 3, height, width)`): Frames of the VLM view.

        Returns:
            `torch.Tensor` of shape `(num_video_tokens, text_width)`: 64 tokens for each clip of 4 frames.
        """
        tokens = self.encode_clips(pixel_values_videos).to(module_dtype(self.projector))
        return self.projector(tokens).flatten(0, 1)

    def get_placeholder_mask(self, input_ids: Tensor, num_tokens: int) -> Tensor:
        """Where the video tokens of one text stand.

        Args:
            input_ids (`torch.LongTensor` of shape `(length,)`): Ids of one text, without padding.
            num_tokens (`int`): Tokens of its video.

        Returns:
            `torch.BoolTensor` of shape `(length,)`: `True` at the placeholders.

        Raises:
            VirstError: The number of placeholders is not `num_tokens`.
        """
        mask = input_ids == self.config.video_token_id
        found = int(mask.sum())
        if found != num_tokens:
            raise VirstError(
                f"A text has {found} video placeholders, but its video has {num_tokens} tokens. Make text and video "
                "with one call of the processor."
            )
        return mask

    def embed_text(self, rows: Sequence[Tensor], video_embeds: Tensor, seg_features: Tensor | None) -> list[Tensor]:
        """Embeddings of texts about one video: video tokens in place, [SEG] embeddings after the initial fusion.

        Args:
            rows (`Sequence[torch.LongTensor]`): Ids of each text, without padding.
            video_embeds (`torch.Tensor` of shape `(num_video_tokens, text_width)`): Tokens of the video.
            seg_features (`torch.Tensor` of shape `(T_seg, C, S / 16, S / 16)`, *optional*):
                Maps for the initial fusion; not needed for texts without [SEG].

        Returns:
            `list[torch.Tensor]`: Embeddings `(length_i, text_width)`.
        """
        table = self.get_input_embeddings()
        fused = self.config.st_fusion_config.use_initial_fusion and seg_features is not None
        embeds = []
        for row in rows:
            row = row.to(table.weight.device)
            place = self.get_placeholder_mask(row, len(video_embeds))
            # The placeholder's id has no row in the embedding: any other id stands in for the lookup.
            values = table(row.masked_fill(place, 0))
            values = values.masked_scatter(place[:, None], video_embeds.to(values))
            embeds.append(values)
        is_seg = [row.to(table.weight.device) == self.config.seg_token_id for row in rows]
        asking = [i for i, seg in enumerate(is_seg) if bool(seg.any())]
        if fused and asking:
            seg = torch.stack([embeds[i][is_seg[i]] for i in asking])
            answers = self.initial_fusion(seg.to(seg_features.device), seg_features).to(seg)
            for i, answer in zip(asking, answers, strict=True):
                embeds[i] = embeds[i].masked_scatter(is_seg[i][:, None], answer)
        return embeds

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor | None = None, **kwargs) -> ModelOutput:
        """The language model.

        Args:
            inputs_embeds (`torch.Tensor` of shape `(batch_size, length, text_width)`): Embeddings.
            attention_mask (`torch.Tensor` of shape `(batch_size, length)`, *optional*): 1 where a token is real.
            **kwargs: Further arguments of the language model.

        Returns:
            `BaseModelOutputWithPast`: Hidden states, final norm included.
        """
        return self.language_model(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **kwargs)
