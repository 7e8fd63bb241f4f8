"""The segmenter: SAM 2.1 built from [`VirstSegmenterConfig`] (no Hydra), with calls that take a batch of expressions.

Memories, pointers and decoding of SAM 2 are the `sam2` package's modules; what is here is how VIRST calls them. Each
frame is encoded once and shared: image features have batch size 1, everything that depends on an expression has the
number of expressions.
"""

from dataclasses import dataclass

import torch
from sam2.modeling.backbones.hieradet import Hiera
from sam2.modeling.backbones.image_encoder import FpnNeck
from sam2.modeling.memory_encoder import CXBlock, Fuser, MaskDownSampler, MemoryEncoder
from sam2.modeling.position_encoding import PositionEmbeddingSine
from sam2.modeling.sam.mask_decoder import MaskDecoder
from sam2.modeling.sam.prompt_encoder import PromptEncoder
from sam2.modeling.sam.transformer import TwoWayTransformer
from sam2.modeling.sam2_base import NO_OBJ_SCORE, SAM2Base
from sam2.modeling.sam2_utils import MLP, get_1d_sine_pe
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.initialization import meta_device_safe_creation_ops

from ..configuration_virst import VirstSegmenterConfig
from .memory_attention import build_memory_attention
from .rotary import FourierPositionEmbedding, module_dtype

__all__ = ["FrameFeatures", "FrameMasks", "VirstImageEncoder", "VirstSegmenter"]

# Frames that go through the image encoder together: at most, and their pixels on a CPU, unless one frame has more.
FRAMES_PER_BATCH, PIXELS_ON_CPU = 4, 512 * 512


@dataclass
class FrameFeatures:
    """SAM features of one frame, or of several.

    Args:
        top (`torch.Tensor` of shape `(num_frames, C, S / 16, S / 16)`): The map that memory attention works on.
        stride8 (`torch.Tensor` of shape `(num_frames, C / 4, S / 8, S / 8)`): Finer map for the mask decoder.
        stride4 (`torch.Tensor` of shape `(num_frames, C / 8, S / 4, S / 4)`): Finest map for the mask decoder.
    """

    top: Tensor
    stride8: Tensor
    stride4: Tensor

    def __getitem__(self, index: int) -> "FrameFeatures":
        """One frame, its batch axis kept. Copied, so that it does not keep the others' memory alive."""
        return FrameFeatures(*(x[index : index + 1].clone() for x in (self.top, self.stride8, self.stride4)))


@dataclass
class FrameMasks:
    """What the mask decoder says of one frame, for a batch of expressions.

    Args:
        logits (`torch.Tensor` of shape `(num_expressions, S / 4, S / 4)`): Mask logits before the absent gate.
        iou_scores (`torch.Tensor` of shape `(num_expressions,)`): Predicted IoU, 0 to 1.
        object_scores (`torch.Tensor` of shape `(num_expressions,)`): Logit that the object is visible; <= 0 is absent.
        pointer (`torch.Tensor` of shape `(num_expressions, C)`): Object pointer.
    """

    logits: Tensor
    iou_scores: Tensor
    object_scores: Tensor
    pointer: Tensor

    @property
    def gated_logits(self) -> Tensor:
        """The logits, -1024 everywhere where the object is absent."""
        return torch.where(self.object_scores[:, None, None] > 0, self.logits, NO_OBJ_SCORE)


class VirstImageEncoder(nn.Module):
    """
    Hiera trunk and feature pyramid, without the position codes that the `sam2` package makes for every map and frame.

    Args:
        config ([`VirstSegmenterConfig`]): Sizes of trunk and neck.
    """

    def __init__(self, config: VirstSegmenterConfig) -> None:
        super().__init__()
        with meta_device_safe_creation_ops():  # the trunk reads numbers out of a tensor while it is built
            self.trunk = Hiera(
                embed_dim=config.trunk_embed_dim,
                num_heads=config.trunk_num_heads,
                stages=tuple(config.trunk_stages),
                global_att_blocks=tuple(config.trunk_global_att_blocks),
                window_pos_embed_bkg_spatial_size=tuple(config.trunk_window_pos_embed_bkg_spatial_size),
                window_spec=tuple(config.trunk_window_spec),
            )
        self.neck = FpnNeck(
            position_encoding=sine_positions(config.hidden_size),
            d_model=config.hidden_size,
            backbone_channel_list=self.trunk.channel_list,
            fpn_top_down_levels=list(config.fpn_top_down_levels),
            fpn_interp_model="nearest",
        )

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(num_frames, 3, S, S)`): Normalised frames.

        Returns:
            `list[torch.Tensor]`: Maps of stride 4, 8 and 16, each with C channels.
        """
        levels = self.trunk(pixel_values)
        maps: list[Tensor] = []
        above = None
        for level in range(len(levels) - 1, -1, -1):
            lateral = self.neck.convs[len(levels) - 1 - level](levels[level])
            if above is not None and level in self.neck.fpn_top_down_levels:
                lateral = lateral + F.interpolate(above, scale_factor=2.0, mode="nearest")
            above = lateral
            maps.insert(0, above)
        return maps[:-1]  # the coarsest map only feeds the one below it


def sine_positions(width: int) -> PositionEmbeddingSine:
    """SAM 2's sine position code of a map of `width` channels; makes no tensor before its first call."""
    return PositionEmbeddingSine(width, normalize=True, warmup_cache=False)


def build_memory_encoder(config: VirstSegmenterConfig) -> MemoryEncoder:
    """Frame features and mask to a memory of `memory_dim` channels at stride 16."""
    width = config.hidden_size
    return MemoryEncoder(
        out_dim=config.memory_dim,
        in_dim=width,
        position_encoding=sine_positions(config.memory_dim),
        mask_downsampler=MaskDownSampler(embed_dim=width, kernel_size=3, stride=2, padding=1),
        fuser=Fuser(CXBlock(width, kernel_size=7, padding=3), num_layers=config.memory_fuser_layers),
    )


class VirstSegmenter(SAM2Base):
    """
    SAM 2.1 for prompts that come from the language model. Its parameters carry the names of SAM 2.1 checkpoints.

    Args:
        config ([`VirstSegmenterConfig`]): Every size.

    Example:

    ```python
    >>> from virst_hf import VirstSegmenterConfig
    >>> from virst_hf.modules.segmenter import VirstSegmenter
    >>> config = VirstSegmenterConfig(
    ...     image_size=128, hidden_size=32, memory_dim=16, trunk_embed_dim=8, trunk_num_heads=1,
    ...     trunk_stages=[1, 1, 2, 1], trunk_global_att_blocks=[3], trunk_window_spec=[8, 4, 4, 2],
    ... )
    >>> import torch
    >>> frame = VirstSegmenter(config).encode_frames(torch.zeros(1, 3, 128, 128, dtype=torch.uint8))
    >>> frame.top.shape
    torch.Size([1, 32, 8, 8])

    ```
    """

    def __init__(self, config: VirstSegmenterConfig) -> None:
        self.config = config  # not a module: may be set before the constructor of the base, which needs it
        super().__init__(
            image_encoder=VirstImageEncoder(config),
            memory_attention=build_memory_attention(config),
            memory_encoder=build_memory_encoder(config),
            num_maskmem=config.num_maskmem,
            image_size=config.image_size,
            sigmoid_scale_for_mem_enc=config.sigmoid_scale_for_mem_enc,
            sigmoid_bias_for_mem_enc=config.sigmoid_bias_for_mem_enc,
            directly_add_no_mem_embed=True,
            use_high_res_features_in_sam=True,
            multimask_output_in_sam=True,
            multimask_output_for_tracking=True,
            use_multimask_token_for_obj_ptr=True,
            iou_prediction_use_sigmoid=True,
            use_obj_ptrs_in_encoder=True,
            max_obj_ptrs_in_encoder=config.max_object_pointers,
            proj_tpos_enc_in_obj_ptrs=True,
            use_signed_tpos_enc_to_obj_ptrs=True,
            pred_obj_scores=True,
            pred_obj_scores_mlp=True,
            fixed_no_obj_ptr=True,
            use_mlp_for_obj_ptr_proj=True,
            no_obj_embed_spatial=True,
        )

    # Set for pre-training from scratch only.
    train_encoder = False

    def _build_sam_heads(self) -> None:
        """Prompt encoder, mask decoder and pointer projections, their sizes from the configuration."""
        config, width, grid = self.config, self.hidden_dim, self.config.grid_size
        self.sam_prompt_embed_dim = width
        self.sam_image_embedding_size = grid
        self.sam_prompt_encoder = PromptEncoder(
            embed_dim=width,
            image_embedding_size=(grid, grid),
            input_image_size=(config.image_size, config.image_size),
            mask_in_chans=config.mask_prompt_channels,
        )
        self.sam_prompt_encoder.pe_layer = FourierPositionEmbedding(width // 2)
        self.sam_mask_decoder = MaskDecoder(
            num_multimask_outputs=config.num_multimask_outputs,
            transformer=TwoWayTransformer(
                depth=config.mask_decoder_depth,
                embedding_dim=width,
                mlp_dim=config.mask_decoder_mlp_dim,
                num_heads=config.mask_decoder_heads,
            ),
            transformer_dim=width,
            iou_head_depth=config.iou_head_depth,
            iou_head_hidden_dim=config.iou_head_hidden_size,
            use_high_res_features=True,
            iou_prediction_use_sigmoid=True,
            dynamic_multimask_via_stability=config.dynamic_multimask_via_stability,
            dynamic_multimask_stability_delta=config.dynamic_multimask_stability_delta,
            dynamic_multimask_stability_thresh=config.dynamic_multimask_stability_thresh,
            pred_obj_scores=True,
            pred_obj_scores_mlp=True,
            use_multimask_token_for_obj_ptr=True,
        )
        self.obj_ptr_proj = MLP(width, width, width, 3)
        self.obj_ptr_tpos_proj = nn.Linear(width, self.mem_dim)

    @property
    def frames_per_batch(self) -> int:
        """Frames that are best encoded together: four, and on a CPU as many as have 512 x 512 pixels.

        There large tensors are given back after each layer and their pages are made anew, which costs a batch of four
        frames of 1024 pixels an eighth of its time, and two cores have enough to do with one frame.
        """
        if self.device.type != "cpu":
            return FRAMES_PER_BATCH
        return min(FRAMES_PER_BATCH, max(1, PIXELS_ON_CPU // self.image_size**2))

    def encode_frames(self, pixel_values: Tensor) -> FrameFeatures:
        """Encode frames. All that depends on the frame alone is done here, once.

        Trunk and neck are frozen in all stages (supplement A.3), so they make no graph unless `train_encoder` is set,
        for pre-training from scratch; the two convolutions that belong to the mask decoder do.

        Args:
            pixel_values (`torch.Tensor` of shape `(num_frames, 3, S, S)`):
                `uint8` RGB frames, normalised here; a tensor of floats is taken as already normalised.

        Returns:
            [`FrameFeatures`]: Features of all of them.
        """
        dtype = module_dtype(self.image_encoder)
        pixels = pixel_values.to(self.device)
        if not pixels.is_floating_point():
            mean, std = (
                torch.tensor(list(x), device=pixels.device)[:, None, None]
                for x in (self.config.image_mean, self.config.image_std)
            )
            pixels = (pixels.float() / 255 - mean) / std
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.train_encoder):
            stride4, stride8, top = self.image_encoder(pixels.to(dtype))
        decoder = self.sam_mask_decoder
        # The encoder alone may be of half precision: most of the work, and the part that suffers least from it.
        wanted = module_dtype(decoder)
        stride4, stride8, top = stride4.to(wanted), stride8.to(wanted), top.to(wanted)
        return FrameFeatures(top=top, stride8=decoder.conv_s1(stride8), stride4=decoder.conv_s0(stride4))

    def top_positions(self, features: FrameFeatures) -> Tensor:
        """The sine position code of the stride-16 map as tokens, `(S / 16 * S / 16, 1, C)`."""
        code = self.image_encoder.neck.position_encoding(features.top[:1])
        return code.to(features.top.dtype).flatten(2).permute(2, 0, 1)

    def without_memory(self, features: FrameFeatures) -> Tensor:
        """The stride-16 map of an anchor: no memory, the learned no-memory embedding added."""
        return features.top + self.no_mem_embed.reshape(1, -1, 1, 1)

    def attend_to_memory(
        self, features: FrameFeatures, memory: Tensor, positions: Tensor, num_pointers: int, pool: int = 1
    ) -> Tensor:
        """Anchor-frame memory attention (Eq. 19).

        Args:
            features ([`FrameFeatures`]): One frame.
            memory (`torch.Tensor` of shape `(num_tokens, num_expressions, memory_dim)`):
                Memories of the frames attended to, then the tokens of the object pointers.
            positions (`torch.Tensor` of shape `(num_tokens, 1, memory_dim)`): Their position and temporal codes.
            num_pointers (`int`): How many of the tokens, at the end, belong to object pointers.
            pool (`int`, *optional*, defaults to 1): What the memories were pooled by.

        Returns:
            `torch.Tensor` of shape `(num_expressions, C, S / 16, S / 16)`: Memory-conditioned features.
        """
        batch, side = memory.shape[1], features.top.shape[-1]
        current = features.top.flatten(2).permute(2, 0, 1).expand(-1, batch, -1)
        out = self.memory_attention(
            curr=current,
            curr_pos=self.top_positions(features),
            memory=memory,
            memory_pos=positions,
            num_obj_ptr_tokens=num_pointers,
            pool=pool,
        )
        return out.permute(1, 2, 0).unflatten(-1, (side, side))

    def decode(
        self, embedding: Tensor, prompts: Tensor | None, features: FrameFeatures, multimask: bool
    ) -> FrameMasks:
        """Decode one frame for a batch of expressions.

        Args:
            embedding (`torch.Tensor` of shape `(num_expressions or 1, C, S / 16, S / 16)`):
                Stride-16 map, with or without memory.
            prompts (`torch.Tensor` of shape `(num_expressions, num_seg_tokens, C)`, *optional*):
                Prompts of an anchor. They replace the sparse embeddings; without them the empty prompt is used.
            features ([`FrameFeatures`]): The frame, for the finer maps.
            multimask (`bool`): Take the best of the multi-mask outputs by predicted IoU, or the single mask.

        Returns:
            [`FrameMasks`]: Logits, scores and pointers.
        """
        encoder = self.sam_prompt_encoder
        batch = len(embedding) if prompts is None else len(prompts)
        if prompts is None:
            # SAM pads an absent point by a second one: two tokens, both "not a point".
            prompts = encoder.not_a_point_embed.weight.expand(batch, 2, -1)
        dense = encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        masks, ious, tokens, scores = self.sam_mask_decoder(
            image_embeddings=embedding.expand(batch, -1, -1, -1),
            image_pe=encoder.get_dense_pe().to(embedding.dtype),
            sparse_prompt_embeddings=prompts.to(embedding.dtype),
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
            repeat_image=False,
            high_res_features=[features.stride4, features.stride8],
        )
        rows, best = torch.arange(batch, device=masks.device), ious.argmax(-1)
        visible = (scores > 0).to(masks.dtype)
        token = tokens[rows, best] if multimask else tokens[:, 0]
        pointer = visible * self.obj_ptr_proj(token) + (1 - visible) * self.no_obj_ptr
        return FrameMasks(masks[rows, best].float(), ious[rows, best].float(), scores[:, 0].float(), pointer)

    def encode_memory(self, features: FrameFeatures, masks: FrameMasks, pool: int = 1) -> Tensor:
        """The memory of a decoded frame.

        Args:
            features ([`FrameFeatures`]): The frame.
            masks ([`FrameMasks`]): Its masks; the memory sees them through the absent gate.
            pool (`int`, *optional*, defaults to 1): Take the mean of each `pool * pool` tokens.

        Returns:
            `torch.Tensor` of shape `((S / 16 / pool) ** 2, num_expressions, memory_dim)`: Memory tokens.
        """
        config = self.config
        high_res = self.resize_logits(masks.gated_logits)
        scaled = high_res.sigmoid() * config.sigmoid_scale_for_mem_enc + config.sigmoid_bias_for_mem_enc
        out = self.memory_encoder(features.top, scaled[:, None].to(features.top.dtype), skip_mask_sigmoid=True)
        absent = (masks.object_scores <= 0).to(features.top.dtype)[:, None, None, None]
        memory = out["vision_features"] + absent * self.no_obj_embed_spatial[..., None, None]
        if pool > 1:
            memory = F.avg_pool2d(memory, pool)
        return memory.flatten(2).permute(2, 0, 1)

    def memory_positions(self, tau: int, like: Tensor) -> Tensor:
        """Position code of a memory, its temporal code included (Eq. 17 and 18).

        Args:
            tau (`int`): 0 for an anchor; `P` for the frame just before, down to 1 for the one `P` frames before.
            like (`torch.Tensor` of shape `(num_tokens, num_expressions, memory_dim)`): The memory.

        Returns:
            `torch.Tensor` of shape `(num_tokens, 1, memory_dim)`: The code.
        """
        side = self.config.grid_size
        code = self.memory_encoder.position_encoding(like.new_empty(1, like.shape[-1], side, side))
        if len(like) < side * side:
            code = F.avg_pool2d(code, round((side * side / len(like)) ** 0.5))
        # The rows run from the frame before (row 0) to the oldest; the anchors' row is the last.
        row = self.maskmem_tpos_enc[self.num_maskmem - 1 - tau]
        return code.to(like.dtype).flatten(2).permute(2, 0, 1) + row

    def pointer_tokens(self, pointers: list[Tensor], distances: list[int], scale: int) -> tuple[Tensor, Tensor]:
        """Split object pointers into memory tokens and give them a code of their distance.

        Args:
            pointers (`list[torch.Tensor]`): Pointers of shape `(num_expressions, C)`.
            distances (`list[int]`): Frames from each pointer to the current frame; negative for a later frame.
            scale (`int`): Number by which the distances are divided.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: Tokens `(num_pointers * C / memory_dim, num_expressions, memory_dim)`
            and their codes, with one expression.
        """
        pieces = self.hidden_dim // self.mem_dim
        tokens = torch.stack(pointers).unflatten(-1, (pieces, self.mem_dim)).transpose(1, 2).flatten(0, 1)
        steps = torch.tensor(distances, device=tokens.device) / scale
        code = self.obj_ptr_tpos_proj(get_1d_sine_pe(steps, dim=self.hidden_dim).to(tokens.dtype))
        return tokens, code.repeat_interleave(pieces, dim=0)[:, None]

    def resize_logits(self, logits: Tensor) -> Tensor:
        """Logits `(batch_size, S / 4, S / 4)` to `(batch_size, S, S)`, bilinear."""
        size = (self.image_size, self.image_size)
        return F.interpolate(logits[:, None].float(), size=size, mode="bilinear", align_corners=False)[:, 0]
