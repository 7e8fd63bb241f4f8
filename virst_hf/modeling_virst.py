"""VIRST as a Transformers model: a video and any number of expressions to the masks of every frame, or to text."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import GenerationMixin

from .compilation import CompilationMixin
from .configuration_virst import VirstConfig
from .errors import VirstError
from .modeling_base import VirstModel, VirstPreTrainedModel
from .modeling_outputs import VirstOutput, VirstSegmentationOutput, VirstVideoFeatures
from .modules.rotary import module_dtype
from .modules.text import packed_states, pad_rows, shared_prefix_length, states_after_prefix, unpad_rows
from .modules.tracker import EXACT, AnchorMemory, TrackingOptions, track_video
from .objective import (
    SupervisedFrames,
    TrainingText,
    mask_objective,
    select_target,
    supervised_frames,
    token_objective,
    track_texts,
)
from .sampling import inference_anchors
from .streaming import StreamingMixin
from .video_encoding import VideoEncodingMixin

__all__ = ["VirstForVideoSegmentation", "VirstModel", "VirstPreTrainedModel"]


class VirstForVideoSegmentation(
    VideoEncodingMixin, StreamingMixin, CompilationMixin, VirstPreTrainedModel, GenerationMixin
):
    """
    VIRST: reasoning video object segmentation.

    Args:
        config ([`VirstConfig`]): Its sizes.

    Example:

    ```python
    >>> import numpy as np
    >>> from virst_hf.untrained import untrained_model, untrained_processor
    >>> model, processor = untrained_model().eval(), untrained_processor()
    >>> video = np.zeros((10, 48, 64, 3), dtype=np.uint8)
    >>> inputs = processor(videos=video, text=["the red ball", "the dog that sits"])
    >>> outputs = model.segment(**inputs)
    >>> results = processor.post_process_video_segmentation(outputs)
    >>> len(results), results[0]["masks"].shape
    (2, torch.Size([10, 48, 64]))

    ```
    """

    # Our loss is a mean over samples: the Trainer must divide it by the accumulation steps itself.
    accepts_loss_kwargs = False

    def __init__(self, config: VirstConfig) -> None:
        super().__init__(config)
        self.model = VirstModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.model.set_input_embeddings(value)

    # --- segmentation ------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def segment(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        video_indices: Tensor | None = None,
        features: Sequence[VirstVideoFeatures] | VirstVideoFeatures | None = None,
        original_sizes: Tensor | None = None,
        tracking: TrackingOptions = EXACT,
        **video_inputs: Tensor,
    ) -> VirstSegmentationOutput:
        """Masks of every frame for each expression. All expressions on one video share its features and its prefix.

        Args:
            input_ids (`torch.LongTensor` of shape `(num_expressions, length)`): Prompts, [SEG] answer included.
            attention_mask (`torch.Tensor` of shape `(num_expressions, length)`, *optional*): 1 where a token is real.
            video_indices (`torch.LongTensor` of shape `(num_expressions,)`, *optional*): Video of each expression.
            features (`list[VirstVideoFeatures]`, *optional*): Features from `encode_video`, instead of pixels.
            original_sizes (`torch.LongTensor` of shape `(num_videos, 2)`, *optional*): Passed on to the output.
            tracking ([`TrackingOptions`], *optional*): Ways to be faster; as in the paper when not given.
            **video_inputs: The processor's video tensors, as `encode_video` takes them.

        Returns:
            [`VirstSegmentationOutput`]: Low-resolution logits and scores.
        """
        features = self._resolve_features(features, video_inputs)
        rows, groups = self.group_texts(input_ids, attention_mask, video_indices, len(features))
        results: dict[int, tuple[Tensor, Tensor, Tensor, list[int]]] = {}
        for video, group in zip(features, groups, strict=True):
            if group:
                self._check_seg_tokens([rows[i] for i in group])
                results.update(zip(group, self._segment_video(video, [rows[i] for i in group], tracking), strict=True))
        owners = [video for i in range(len(rows)) for video, group in enumerate(groups) if i in group]
        logits, scores, ious, anchors = zip(*(results[i] for i in range(len(rows))), strict=True)
        return VirstSegmentationOutput(
            mask_logits=logits,
            object_scores=scores,
            iou_scores=ious,
            anchor_indices=anchors,
            video_indices=torch.tensor(owners),
            original_sizes=original_sizes,
        )

    def _check_seg_tokens(self, rows: Sequence[Tensor]) -> None:
        wanted = self.config.st_fusion_config.num_seg_tokens
        for row in rows:
            found = int((row == self.config.seg_token_id).sum())
            if found != wanted:
                raise VirstError(
                    f"A prompt has {found} [SEG] tokens, expected {wanted}. Make it with the processor "
                    '(task="segment" or "explain").'
                )

    def _prefix_length(self, rows: Sequence[Tensor]) -> int:
        """Tokens that texts about one video have in common: up to the end of the video, without any [SEG]."""
        prefix = shared_prefix_length(rows, self.config.video_token_id)
        # The initial fusion makes the embedding of a [SEG] depend on the others of its text.
        return 0 if any(bool((row[:prefix] == self.config.seg_token_id).any()) for row in rows) else prefix

    def _seg_states(self, video: VirstVideoFeatures, rows: Sequence[Tensor]) -> Tensor:
        """Hidden states at the [SEG] positions, `(len(rows), num_seg_tokens, text_width)`; the prefix is shared."""
        embeds = self.model.embed_text(rows, video.video_embeds, video.seg_features)
        prefix = self._prefix_length(rows)
        known = None if not prefix else video.prefixes
        hidden = states_after_prefix(self.model.language_model, embeds, prefix, known, rows[0][:prefix])
        is_seg = [row[prefix:] == self.config.seg_token_id for row in rows]
        return torch.stack([hidden[i, : len(seg)][seg.to(hidden.device)] for i, seg in enumerate(is_seg)])

    def _prompts(self, video: VirstVideoFeatures, seg_states: Tensor) -> Tensor:
        """Prompts `(num_expressions, num_seg_tokens, T_seg, C)` on the segmenter's device."""
        maps = video.seg_features
        return self.model.prompt_decoder(seg_states.to(maps.device, module_dtype(self.model.prompt_decoder)), maps)

    def _segment_video(
        self, video: VirstVideoFeatures, rows: Sequence[Tensor], tracking: TrackingOptions
    ) -> list[tuple[Tensor, Tensor, Tensor, list[int]]]:
        """Logits, object scores, IoU scores and anchors of each expression on one video, tracked in lockstep."""
        anchors = self.anchor_prompts(video, rows)
        memory = self.empty_memory(video.num_frames, video.is_image, tracking)
        video.frames.wanted = tracking.tracked(range(video.num_frames), anchors)
        side = self.config.segmenter_config.low_res_size
        logits = torch.empty(len(rows), video.num_frames, side, side)
        scores, ious = torch.empty(2, len(rows), video.num_frames).unbind(0)
        for index, masks in track_video(memory, video.frames, video.num_frames, anchors):
            logits[:, index] = masks.gated_logits.cpu()
            scores[:, index], ious[:, index] = masks.object_scores.cpu(), masks.iou_scores.cpu()
        return [(logits[i], scores[i], ious[i], sorted(anchors)) for i in range(len(rows))]

    def anchor_prompts(self, video: VirstVideoFeatures, rows: Sequence[Tensor]) -> dict[int, Tensor]:
        """Prompts of the anchor frames of a video (Alg. 2).

        Args:
            video ([`VirstVideoFeatures`]): The video.
            rows (`Sequence[torch.LongTensor]`): Ids of each expression's prompt, without padding.

        Returns:
            `dict[int, torch.Tensor]`: For each anchor frame prompts `(num_expressions, num_seg_tokens, C)`.
        """
        prompts = self._prompts(video, self._seg_states(video, rows))
        anchors: dict[int, Tensor] = {}
        for position in inference_anchors(len(video.seg_frame_indices), self.config.anchor_config.anchor_stride):
            # In a padded video several positions are the same source frame: the first of them is the anchor.
            anchors.setdefault(video.seg_frame_indices[position], prompts[:, :, position])
        return anchors

    def empty_memory(self, num_frames: int, is_image: bool = False, tracking: TrackingOptions = EXACT) -> AnchorMemory:
        """A memory to track with, at inference.

        Args:
            num_frames (`int`): Frames of the video.
            is_image (`bool`, *optional*, defaults to `False`): Whether it is a still image.
            tracking ([`TrackingOptions`], *optional*): Ways to be faster.

        Returns:
            [`AnchorMemory`]: The memory.
        """
        length = num_frames if is_image else max(num_frames, self.config.anchor_config.min_frames)
        alpha, multimask = self.config.anchor_config.num_anchors, self.config.segmenter_config.multimask_output
        return AnchorMemory(self.model.segmenter, length, alpha, False, multimask, tracking)

    # --- text --------------------------------------------------------------------------------------------------------
    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        video_indices: Tensor | None = None,
        features: Sequence[VirstVideoFeatures] | VirstVideoFeatures | None = None,
        original_sizes: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        num_vlm_frames: Tensor | None = None,
        sam_pixel_values: Tensor | None = None,
        num_frames: Tensor | None = None,
        seg_frame_indices: Tensor | None = None,
        num_seg_frames: Tensor | None = None,
        **generate_kwargs,
    ) -> Tensor:
        """Answer in text. Questions go through the vision tower only; no frame is encoded for segmentation.

        Args:
            input_ids (`torch.LongTensor` of shape `(num_texts, length)`): Prompts of the processor's task `"ask"`.
            attention_mask (`torch.Tensor` of shape `(num_texts, length)`, *optional*): 1 where a token is real.
            video_indices (`torch.LongTensor` of shape `(num_texts,)`, *optional*): Video of each text.
            features (`list[VirstVideoFeatures]`, *optional*): Features from `encode_video`, instead of pixels.
            original_sizes (`torch.LongTensor`, *optional*): Not used; the processor gives it.
            pixel_values_videos (`torch.Tensor`, *optional*): VLM view, as for `encode_video`.
            num_vlm_frames (`torch.LongTensor`, *optional*): As for `encode_video`.
            sam_pixel_values (`torch.Tensor`, *optional*): Not used for questions.
            num_frames (`torch.LongTensor`, *optional*): Not used for questions.
            seg_frame_indices (`torch.LongTensor`, *optional*): Not used for questions.
            num_seg_frames (`torch.LongTensor`, *optional*): Not used for questions.
            **generate_kwargs: Arguments of [`~transformers.GenerationMixin.generate`], such as `max_new_tokens`.

        Returns:
            `torch.LongTensor` of shape `(num_texts, new_length)`: The new tokens only, where there is a video.
        """
        if input_ids is None or (features is None and pixel_values_videos is None):
            return super().generate(input_ids, attention_mask=attention_mask, **generate_kwargs)
        with torch.no_grad():
            if features is None:
                features = self.encode_video(pixel_values_videos, num_vlm_frames)
            features = [features] if isinstance(features, VirstVideoFeatures) else list(features)
            rows, groups = self.group_texts(input_ids, attention_mask, video_indices, len(features))
            if any(bool((row == self.config.seg_token_id).any()) for row in rows):
                raise VirstError("These prompts hold [SEG] tokens: use segment() or segment_and_explain() for them.")
            embeds = self._embed_texts(features, groups, rows)
        return self._continue(embeds, **generate_kwargs)

    def _continue(self, embeds: Sequence[Tensor], **generate_kwargs) -> Tensor:
        """Generate after the given embeddings; padding stands in front."""
        inputs_embeds, mask = pad_rows(embeds, left=True)
        return super().generate(inputs_embeds=inputs_embeds, attention_mask=mask, **generate_kwargs)

    @torch.no_grad()
    def segment_and_explain(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        video_indices: Tensor | None = None,
        features: Sequence[VirstVideoFeatures] | VirstVideoFeatures | None = None,
        original_sizes: Tensor | None = None,
        generate_kwargs: dict | None = None,
        max_new_tokens: int = 64,
        **video_inputs: Tensor,
    ) -> VirstSegmentationOutput:
        """Masks, and in `sequences` the ids of the explanation that follows the [SEG] answer.

        Args:
            input_ids (`torch.LongTensor` of shape `(num_expressions, length)`): Prompts of the task `"explain"`.
            attention_mask (`torch.Tensor` of shape `(num_expressions, length)`, *optional*): 1 where a token is real.
            video_indices (`torch.LongTensor` of shape `(num_expressions,)`, *optional*): Video of each expression.
            features (`list[VirstVideoFeatures]`, *optional*): Features from `encode_video`, instead of pixels.
            original_sizes (`torch.LongTensor` of shape `(num_videos, 2)`, *optional*): Passed on to the output.
            generate_kwargs (`dict`, *optional*): Further arguments of `generate`.
            max_new_tokens (`int`, *optional*, defaults to 64): Longest explanation, in tokens.
            **video_inputs: The processor's video tensors, as `encode_video` takes them.

        Returns:
            [`VirstSegmentationOutput`]: As `segment`, with `sequences`.
        """
        features = self._resolve_features(features, video_inputs)
        output = self.segment(input_ids, attention_mask, video_indices, features, original_sizes)
        rows, groups = self.group_texts(input_ids, attention_mask, video_indices, len(features))
        embeds = self._embed_texts(features, groups, rows)
        output.sequences = self._continue(embeds, max_new_tokens=max_new_tokens, **(generate_kwargs or {}))
        return output

    # --- training ----------------------------------------------------------------------------------------------------
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        video_indices: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        num_vlm_frames: Tensor | None = None,
        sam_pixel_values: Tensor | None = None,
        num_frames: Tensor | None = None,
        seg_frame_indices: Tensor | None = None,
        num_seg_frames: Tensor | None = None,
        original_sizes: Tensor | None = None,
        labels: Tensor | None = None,
        mask_labels: Sequence[Tensor | None] | None = None,
        anchor_indices: Sequence[Sequence[int] | None] | None = None,
        propagation_indices: Sequence[Sequence[int] | None] | None = None,
        features: Sequence[VirstVideoFeatures] | None = None,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: object | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
    ) -> VirstOutput | tuple:
        """The language model, and with `labels` or `mask_labels` the losses of Eq. 16.

        Args:
            input_ids (`torch.LongTensor` of shape `(num_texts, length)`, *optional*): Prompts.
            attention_mask (`torch.Tensor` of shape `(num_texts, length)`, *optional*): 1 where a token is real.
            video_indices (`torch.LongTensor` of shape `(num_texts,)`, *optional*): Video of each text.
            pixel_values_videos (`torch.Tensor`, *optional*): As for `encode_video`, and so the next five.
            num_vlm_frames (`torch.LongTensor`, *optional*): `T_vlm` of each video.
            sam_pixel_values (`torch.Tensor`, *optional*): SAM view; in training the `T_seg` frames are enough.
            num_frames (`torch.LongTensor`, *optional*): Frames of each video in `sam_pixel_values`.
            seg_frame_indices (`torch.LongTensor`, *optional*): Frame of each of the `T_seg` frames.
            num_seg_frames (`torch.LongTensor`, *optional*): `T_seg` of each video.
            original_sizes (`torch.LongTensor`, *optional*): Not used; the processor gives it.
            labels (`torch.LongTensor` of shape `(num_texts, length)`, *optional*):
                Ids of supervised tokens, -100 elsewhere. [SEG] is left out of the loss even where it is labelled.
            mask_labels (`Sequence[torch.Tensor]`, *optional*):
                For each text masks `(T_seg, S, S)`, or `(number of supervised frames, S, S)`, or `None`.
            anchor_indices (`Sequence[Sequence[int]]`, *optional*):
                For each text, positions among the `T_seg` frames that are anchors. Drawn by Alg. 1 in training mode
                and set by Alg. 2 (all other frames propagated) in evaluation mode when not given.
            propagation_indices (`Sequence[Sequence[int]]`, *optional*):
                For each text, further supervised positions; none where only `anchor_indices` are given.
            features (`Sequence[VirstVideoFeatures]`, *optional*):
                Features of the videos instead of their pixels, such as those of a feature cache.
            inputs_embeds (`torch.Tensor` of shape `(batch_size, length, text_width)`, *optional*):
                Embeddings instead of ids, for generation.
            position_ids (`torch.LongTensor`, *optional*): Positions, for generation.
            past_key_values (`Cache`, *optional*): Keys and values, for generation.
            use_cache (`bool`, *optional*): Whether to return keys and values.
            logits_to_keep (`int`, *optional*, defaults to 0): Only the last logits; 0 keeps all.
            return_dict (`bool`, *optional*): `False` returns a tuple.

        Returns:
            [`VirstOutput`] or `tuple`: Losses where asked for, logits otherwise.
        """
        which, weights = None, None
        has_video = features is not None or pixel_values_videos is not None
        if not has_video:
            if mask_labels is not None:
                raise VirstError("mask_labels need a video: give the processor's video tensors as well.")
            if inputs_embeds is None:
                inputs_embeds = self.get_input_embeddings()(input_ids)
        else:
            num_videos = len(num_vlm_frames if features is None else features)
            rows, groups = self.group_texts(input_ids, attention_mask, video_indices, num_videos)
            # A video with its texts is one sample: averaged inside it first, so that batches add up.
            shares = {i: 1 / (len(group) * sum(map(bool, groups))) for group in groups for i in group}
            weights = [shares[i] for i in range(len(rows))]
            if features is None:
                seg_indices = self._split_seg_indices(seg_frame_indices, num_seg_frames, num_videos)
            else:
                seg_indices = [video.seg_frame_indices for video in features]
            which = self._choose_frames(groups, seg_indices, mask_labels, anchor_indices, propagation_indices)
            if features is None:
                features = self.encode_video(
                    pixel_values_videos,
                    num_vlm_frames,
                    sam_pixel_values,
                    num_frames,
                    seg_frame_indices,
                    num_seg_frames,
                    keep_frames=False,
                    supervised=[
                        sorted({seg_indices[v][p] for i in group if which[i] for p in which[i].frames})
                        for v, group in enumerate(groups)
                    ],
                )
            labels = None if labels is None else pad_rows(unpad_rows(labels, attention_mask), fill=-100)[0]
            hidden = self._text_states(features, groups, rows)
        if not has_video:
            decoded = self.model(
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
            )
            hidden, past_key_values = decoded.last_hidden_state, decoded.past_key_values
        parts: dict[str, Tensor] = {}
        if labels is not None:
            weights = weights or [1 / len(labels)] * len(labels)
            parts["token_loss"] = token_objective(self.config, self.lm_head, hidden, list(labels), weights)
        tracked = {}
        if mask_labels is not None:
            terms, tracked = self._mask_losses(features, groups, rows, hidden, which, mask_labels, weights)
            parts.update(terms)
        output = VirstOutput(
            loss=sum(part.to(hidden.device) for part in parts.values()) if parts else None,
            **parts,
            logits=self.lm_head(hidden[:, -logits_to_keep:] if logits_to_keep else hidden) if labels is None else None,
            **tracked,
            past_key_values=past_key_values,
        )
        return output if return_dict is not False else output.to_tuple()

    def _embed_texts(
        self, features: Sequence[VirstVideoFeatures], groups: list[list[int]], rows: Sequence[Tensor]
    ) -> list[Tensor]:
        """Embeddings of all texts, in their order."""
        texts: dict[int, Tensor] = {}
        for video, group in zip(features, groups, strict=True):
            parts = self.model.embed_text([rows[i] for i in group], video.video_embeds, video.seg_features)
            texts.update(zip(group, parts, strict=True))
        return [texts[i] for i in range(len(rows))]

    def _text_states(
        self, features: Sequence[VirstVideoFeatures], groups: list[list[int]], rows: Sequence[Tensor]
    ) -> Tensor:
        """Hidden states of all texts, `(num_texts, length, text_width)`; texts about one video share their prefix."""
        embeds = self._embed_texts(features, groups, rows)
        # Other kinds of attention take no mask of two dimensions.
        packable = self.model.language_model.config._attn_implementation in ("sdpa", "eager")
        if not packable or all(len(group) <= 1 for group in groups):
            inputs_embeds, mask = pad_rows(embeds)
            return self.model(inputs_embeds=inputs_embeds, attention_mask=mask, use_cache=False).last_hidden_state
        asked = [group for group in groups if group]
        packs = [([embeds[i] for i in group], self._prefix_length([rows[i] for i in group])) for group in asked]
        states = packed_states(self.model.language_model, packs)
        order = [i for group in asked for i in group]
        return pad_rows([states[order.index(i)] for i in range(len(rows))])[0]

    def _choose_frames(
        self,
        groups: list[list[int]],
        seg_indices: list[list[int]],
        mask_labels: Sequence[Tensor | None] | None,
        anchors: Sequence[Sequence[int] | None] | None,
        propagation: Sequence[Sequence[int] | None] | None,
    ) -> dict[int, SupervisedFrames | None]:
        """Supervised positions of each text; `None` for a text without masks."""
        which: dict[int, SupervisedFrames | None] = {}
        for group, seg in zip(groups, seg_indices, strict=True):
            for i in group:
                given = mask_labels is not None and mask_labels[i] is not None
                which[i] = (
                    supervised_frames(
                        self.config,
                        len(seg),
                        self.training,
                        anchors[i] if anchors is not None else None,
                        propagation[i] if propagation is not None else None,
                    )
                    if given
                    else None
                )
        return which

    def _mask_losses(
        self,
        features: Sequence[VirstVideoFeatures],
        groups: list[list[int]],
        rows: Sequence[Tensor],
        hidden: Tensor,
        which: dict[int, SupervisedFrames | None],
        mask_labels: Sequence[Tensor | None],
        weights: Sequence[float],
    ) -> tuple[dict[str, Tensor], dict[str, tuple]]:
        """The mask terms, averaged over all texts (those without masks count as zero), and what was tracked."""
        segmenter, side = self.model.segmenter, self.config.segmenter_config.image_size
        texts: list[TrainingText] = []
        owners: list[int] = []
        for video, group in zip(features, groups, strict=True):
            masked = [i for i in group if which[i] is not None]
            if not masked:
                continue
            self._check_seg_tokens([rows[i] for i in masked])
            is_seg = [(rows[i] == self.config.seg_token_id).to(hidden.device) for i in masked]
            states = torch.stack([hidden[i, : len(seg)][seg] for i, seg in zip(masked, is_seg, strict=True)])
            prompts = self._prompts(video, states)
            texts += [TrainingText(video, part, which[i]) for i, part in zip(masked, prompts, strict=True)]
            owners += masked
        tracked = track_texts(self.config, segmenter, texts)
        totals = [hidden.sum() * 0.0] * 4
        for i, text, masks in zip(owners, texts, tracked, strict=True):
            target = select_target(mask_labels[i], text.which, len(text.video.seg_frame_indices), side)
            parts = mask_objective(self.config, segmenter, masks, target)
            totals = [a + weights[i] * b.to(a.device) for a, b in zip(totals, parts, strict=True)]
        names = ("bce_loss", "dice_loss", "occlusion_loss", "iou_loss")
        return dict(zip(names, totals, strict=True)), {
            "mask_logits": tuple(masks.logits for masks in tracked),
            "object_scores": tuple(masks.object_scores for masks in tracked),
            "supervised_frames": tuple(text.which.frames for text in texts),
        }
