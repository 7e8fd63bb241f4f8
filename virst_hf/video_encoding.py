"""What a model does with videos before any text: views to features, each frame and each clip once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import VirstError
from .modeling_outputs import VirstVideoFeatures
from .modules.frame_store import FrameStore
from .modules.text import unpad_rows

__all__ = ["VideoEncodingMixin"]


class VideoEncodingMixin:
    """Gives [`VirstForVideoSegmentation`] its method `encode_video`, and what goes with it."""

    def encode_video(
        self,
        pixel_values_videos: Tensor,
        num_vlm_frames: Tensor,
        sam_pixel_values: Tensor | None = None,
        num_frames: Tensor | None = None,
        seg_frame_indices: Tensor | None = None,
        num_seg_frames: Tensor | None = None,
        keep_frames: bool = True,
        supervised: Sequence[Sequence[int]] | None = None,
        frames_per_batch: int | None = None,
        **_: object,
    ) -> list[VirstVideoFeatures]:
        """Everything about the videos of a batch that does not depend on an expression.

        Each video goes through the vision tower once, each frame through the SAM encoder once. The result may be
        given to [`~VirstForVideoSegmentation.segment`] and [`~VirstForVideoSegmentation.generate`] as `features`,
        any number of times.

        Args:
            pixel_values_videos (`torch.Tensor` of shape `(sum of T_vlm, 3, height, width)`):
                Normalised frames of the VLM view, one video after the other.
            num_vlm_frames (`torch.LongTensor` of shape `(num_videos,)`): `T_vlm` of each; 1 for a still image.
            sam_pixel_values (`torch.Tensor` of shape `(sum of T, 3, S, S)`): `uint8` frames of the SAM view.
            num_frames (`torch.LongTensor` of shape `(num_videos,)`): T of each video.
            seg_frame_indices (`torch.LongTensor` of shape `(sum of T_seg,)`): Source frame of each `T_seg` frame.
            num_seg_frames (`torch.LongTensor` of shape `(num_videos,)`): `T_seg` of each.
            keep_frames (`bool`, *optional*, defaults to `True`):
                Encode all frames now and hold their features, for reuse and so without a graph: about 17 MB a frame at
                full size in float32. `False` holds the `T_seg` frames and encodes the others as tracking reaches them.
            supervised (`Sequence[Sequence[int]]`, *optional*):
                For training: the source frames of each video that will be decoded. Only they keep their finer maps.
            frames_per_batch (`int`, *optional*):
                Frames that go through the SAM encoder together. When not given four; on a CPU as many as have
                512 x 512 pixels together, where more only cost memory and time.

        Returns:
            `list[VirstVideoFeatures]`: One a video.

        Raises:
            VirstError: The counts do not fit the tensors.
        """
        self._check_video_inputs(pixel_values_videos, num_vlm_frames, sam_pixel_values, num_frames)
        clips = pixel_values_videos.split(num_vlm_frames.tolist())
        graph = torch.is_grad_enabled() and not keep_frames
        with torch.set_grad_enabled(graph):
            embeds = [self.model.get_video_features(clip) for clip in clips]
        if sam_pixel_values is None:
            return [VirstVideoFeatures(tokens, len(clip) == 1) for tokens, clip in zip(embeds, clips, strict=True)]
        out = []
        seg_indices = self._split_seg_indices(seg_frame_indices, num_seg_frames, len(clips))
        for i, pixels in enumerate(sam_pixel_values.split(num_frames.tolist())):
            pinned = range(len(pixels)) if keep_frames else seg_indices[i]
            detailed = None if supervised is None else supervised[i]
            # A graph would hold the stride-4 maps that go into the mask decoder's convolutions: four times as much.
            with torch.set_grad_enabled(graph):
                store = FrameStore(self.model.segmenter, pixels, pinned, detailed, frames_per_batch)
            features = VirstVideoFeatures(
                video_embeds=embeds[i],
                is_image=len(clips[i]) == 1,
                seg_features=store.seg_features(seg_indices[i]),
                seg_frame_indices=seg_indices[i],
                num_frames=len(pixels),
                frames=store,
                prefixes={} if keep_frames else None,
            )
            out.append(features)
        return out

    def _check_video_inputs(
        self, clips: Tensor, num_vlm_frames: Tensor, pixels: Tensor | None, num_frames: Tensor | None
    ) -> None:
        """Raise a `VirstError` where counts, sizes and tensors do not fit together."""
        parts = [("pixel_values_videos", clips, num_vlm_frames, self.config.vision_config.image_size)]
        if pixels is not None:
            parts.append(("sam_pixel_values", pixels, num_frames, self.config.segmenter_config.image_size))
        for name, tensor, counts, side in parts:
            if counts is None or len(tensor) != int(counts.sum()):
                total = "are missing" if counts is None else f"add up to {int(counts.sum())}"
                raise VirstError(f"{name} has {len(tensor)} frames, but the counts of frames {total}.")
            if tuple(tensor.shape[1:]) != (3, side, side):
                raise VirstError(
                    f"{name} has shape {tuple(tensor.shape)}, but this model takes (frames, 3, {side}, {side}). Load "
                    "the processor that was saved with the model."
                )

    def group_texts(
        self, input_ids: Tensor, attention_mask: Tensor | None, video_indices: Tensor | None, num_videos: int
    ) -> tuple[list[Tensor], list[list[int]]]:
        """Texts without padding, and for each video the texts about it."""
        rows = unpad_rows(input_ids, attention_mask)
        if video_indices is None:
            if num_videos not in (1, len(rows)):
                raise VirstError(f"{len(rows)} texts about {num_videos} videos: say which with video_indices.")
            video_indices = torch.zeros(len(rows)) if num_videos == 1 else torch.arange(len(rows))
        owners = [int(i) for i in video_indices]
        if len(owners) != len(rows) or any(not 0 <= i < num_videos for i in owners):
            raise VirstError(
                f"video_indices {owners} does not name one of {num_videos} videos for each of {len(rows)} texts."
            )
        return rows, [[i for i, owner in enumerate(owners) if owner == video] for video in range(num_videos)]

    def _resolve_features(
        self, features: Sequence[VirstVideoFeatures] | VirstVideoFeatures | None, video_inputs: dict[str, Tensor]
    ) -> list[VirstVideoFeatures]:
        """Features that were given, or those of the given pixels, held no longer than needed."""
        if isinstance(features, VirstVideoFeatures):
            return [features]
        if features is not None:
            return list(features)
        if any(video_inputs.get(name) is None for name in ("sam_pixel_values", "pixel_values_videos")):
            raise VirstError("No video: give the processor's video tensors, or `features` from encode_video().")
        return self.encode_video(**video_inputs, keep_frames=False)

    def _split_seg_indices(
        self, seg_frame_indices: Tensor | None, num_seg_frames: Tensor | None, num_videos: int
    ) -> list[list[int]]:
        """Source frames of the `T_seg` frames of each video; empty for videos without a SAM view."""
        if seg_frame_indices is None:
            return [[] for _ in range(num_videos)]
        return [part.tolist() for part in seg_frame_indices.split(num_seg_frames.tolist())]
