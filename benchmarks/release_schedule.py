"""The work of a segmentation in the order in which the released code does it, with the modules of this package.

Only the schedule is the release's: which frames are encoded how often, and what is shared. Each module is the one that
the package runs, so that masks are equal and the ratio of seconds is that of the schedules. For each expression anew:

- one pass of the vision tower;
- with the initial fusion (f = 1) the `T_seg` frames are encoded for it;
- the language model runs over the whole row;
- the `T_seg` frames are encoded for the prompt decoder;
- the first frame is encoded as the state of the tracker is made;
- each of the K anchors is encoded when it is decoded from its prompts, and again when its memory is made;
- each other frame is encoded when it is reached.

That is `T_seg * (1 + f) + 1 + 2 * K + (N - K)` encoded frames for N frames. While it tracks, frames go through the
encoder alone. The whole video is held as normalised floats, and every memory is kept to the end. The release also
keeps the graph of the language model: left out here, as it costs memory, not time.
"""

import torch
from torch import Tensor

from virst_hf import VirstForVideoSegmentation, VirstProcessor
from virst_hf.modules.segmenter import FrameFeatures
from virst_hf.modules.text import unpad_rows
from virst_hf.modules.tracker import AnchorMemory, MemoryEntry
from virst_hf.sampling import inference_anchors, seg_frame_positions, vlm_frame_indices

__all__ = ["KeptMemory", "anchors_of", "release_encoder_calls", "seg_frames_of", "segment_as_release"]


def seg_frames_of(num_frames: int, processor: VirstProcessor) -> list[int]:
    """Source frames of the `T_seg` frames of a video; in a padded one the last repeats."""
    views = processor.video_processor
    vlm = vlm_frame_indices(num_frames, views.max_vlm_frames, views.frames_per_clip, views.min_frames)
    return [vlm[position] for position in seg_frame_positions(len(vlm), views.max_seg_frames)]


def anchors_of(seg_frames: list[int], stride: int) -> dict[int, int]:
    """Anchor frames (Alg. 2), each with its position among the `T_seg` frames."""
    anchors: dict[int, int] = {}
    for position in inference_anchors(len(seg_frames), stride):
        anchors.setdefault(seg_frames[position], position)
    return anchors


def release_encoder_calls(num_frames: int, num_seg: int, num_anchors: int, initial_fusion: bool) -> int:
    """Frames that the release encodes for one expression.

    Args:
        num_frames (`int`): N, frames of the video.
        num_seg (`int`): `T_seg`, frames for a fusion.
        num_anchors (`int`): K, anchor frames.
        initial_fusion (`bool`): f, whether the initial fusion is on.

    Returns:
        `int`: `T_seg * (1 + f) + 1 + 2 * K + (N - K)`.
    """
    return num_seg * (1 + initial_fusion) + 1 + 2 * num_anchors + (num_frames - num_anchors)


class KeptMemory(AnchorMemory):
    """A memory that drops nothing."""

    def forget(self, index: int) -> None:
        """Keep all: `gather` looks up what is in reach."""


class ReleaseVideo:
    """
    A video that is encoded anew whenever it is looked at.

    Args:
        model ([`VirstForVideoSegmentation`]): The model.
        pixels (`torch.Tensor` of shape `(num_frames, 3, S, S)`): `uint8` frames of the SAM view; held normalised.
    """

    def __init__(self, model: VirstForVideoSegmentation, pixels: Tensor) -> None:
        self.segmenter = model.model.segmenter
        config, device = self.segmenter.config, self.segmenter.device
        mean, std = (
            torch.tensor(list(x), device=device)[:, None, None] for x in (config.image_mean, config.image_std)
        )
        self.frames = (pixels.to(device).float() / 255 - mean) / std

    def encode(self, index: int) -> FrameFeatures:
        """One frame, alone."""
        return self.segmenter.encode_frames(self.frames[index : index + 1])

    def maps(self, frames: list[int]) -> Tensor:
        """Stride-16 maps for a fusion; a frame that repeats is encoded as often.

        As many go through the encoder together as on the exact path.
        """
        parts = torch.tensor(frames).split(self.segmenter.frames_per_batch)
        return torch.cat([self.segmenter.encode_frames(self.frames[part]).top for part in parts])


@torch.no_grad()
def segment_as_release(
    model: VirstForVideoSegmentation,
    input_ids: Tensor,
    attention_mask: Tensor,
    pixel_values_videos: Tensor,
    sam_pixel_values: Tensor,
    seg_frame_indices: Tensor,
    **_: object,
) -> list[tuple[Tensor, Tensor]]:
    """Segment one video on the release's schedule, one expression after the other.

    Args:
        model ([`VirstForVideoSegmentation`]): The model.
        input_ids (`torch.LongTensor` of shape `(num_expressions, length)`): Prompts of the processor.
        attention_mask (`torch.Tensor` of shape `(num_expressions, length)`): 1 where a token is real.
        pixel_values_videos (`torch.Tensor` of shape `(T_vlm, 3, height, width)`): VLM view of the video.
        sam_pixel_values (`torch.Tensor` of shape `(num_frames, 3, S, S)`): SAM view of all frames, `uint8`.
        seg_frame_indices (`torch.LongTensor` of shape `(T_seg,)`): Frames that the fusions look at.

    Returns:
        `list[tuple[torch.Tensor, torch.Tensor]]`: For each expression the logits of `segment`,
        `(num_frames, S / 4, S / 4)`, and its object scores, `(num_frames,)`.
    """
    seg_frames = seg_frame_indices.tolist()
    out = []
    for row in unpad_rows(input_ids, attention_mask):
        video = ReleaseVideo(model, sam_pixel_values)
        prompts = release_prompts(model, video, row, pixel_values_videos, seg_frames)
        out.append(track_as_release(model, video, prompts))
    return out


def release_prompts(
    model: VirstForVideoSegmentation, video: ReleaseVideo, row: Tensor, clip: Tensor, seg_frames: list[int]
) -> dict[int, Tensor]:
    """Prompts `(1, num_seg_tokens, C)` of each anchor, for one expression."""
    parts, config = model.model, model.config
    video_embeds = parts.get_video_features(clip)
    maps = video.maps(seg_frames) if config.st_fusion_config.use_initial_fusion else None
    embeds = parts.embed_text([row], video_embeds, maps)[0]
    hidden = parts(inputs_embeds=embeds[None], use_cache=False).last_hidden_state
    states = hidden[:, (row == config.seg_token_id).to(hidden.device)]
    prompts = parts.prompt_decoder(states, video.maps(seg_frames))
    anchors = anchors_of(seg_frames, config.anchor_config.anchor_stride)
    return {frame: prompts[:, :, position] for frame, position in anchors.items()}


def track_as_release(
    model: VirstForVideoSegmentation, video: ReleaseVideo, prompts: dict[int, Tensor]
) -> tuple[Tensor, Tensor]:
    """Logits `(num_frames, S / 4, S / 4)` and object scores `(num_frames,)` of one expression."""
    segmenter, config, num_frames = model.model.segmenter, model.config, len(video.frames)
    length = max(num_frames, config.anchor_config.min_frames)
    multimask = config.segmenter_config.multimask_output
    memory = KeptMemory(segmenter, length, config.anchor_config.num_anchors, False, multimask)
    video.encode(0)  # the state of the tracker warms up on the first frame
    masks = {}
    for index in sorted(prompts):
        frame = video.encode(index)
        masks[index] = segmenter.decode(segmenter.without_memory(frame), prompts[index], frame, multimask)
        # The preflight that makes the memory looks at the frame again.
        tokens = segmenter.encode_memory(video.encode(index), masks[index])
        memory.anchors[index] = MemoryEntry(tokens, masks[index].pointer)
    for index in range(num_frames):
        if index not in prompts:
            masks[index] = memory.propagate(index, video.encode(index))
    ordered = [masks[index] for index in range(num_frames)]
    logits = torch.cat([found.gated_logits.cpu() for found in ordered])
    return logits, torch.cat([found.object_scores.cpu() for found in ordered])
