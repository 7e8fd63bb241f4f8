"""Rows to a training sample: frames are chosen and read, both views made, prompts and answers drawn, masks resized."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from torchvision.transforms.functional import pil_to_tensor, resize

from ..errors import DataError, VirstError
from ..processing_virst import VirstProcessor
from ..prompts import ANSWER_TEMPLATES, Task, segmentation_templates
from ..rle import decode_rle
from ..sampling import sample_training_frames, seg_frame_positions, vlm_frame_indices
from ..video_io import VideoSource, open_video
from .files import read_image

__all__ = ["ClipTransform", "Supervise"]

# Stages 1 and 2 supervise anchors, stage 3 the frames around them as well.
Supervise = Literal["anchors", "anchors+propagation"]
IMAGE_CATEGORIES = ("semantic_segmentation", "referring_image", "reasoning_image")


class ClipTransform:
    """
    Makes a training sample of one row, or of several about the same video, which then share its frames.

    Only the frames of the VLM view are read; the SAM view holds those `T_seg` among them that the fusions look at. All
    expressions of a sample share anchors and propagation frames, so that only these keep fine feature maps.

    - A row of `video_qa` becomes the task "ask": its answer is supervised, and there is no SAM view.
    - Any other becomes "segment", with the target's masks; or "explain" (masks, then the explanation), drawn with
      `explain_probability` where the row has an `answer`.
    - Pixels of `ignore_masks` count as background: the losses of Eq. 16 have none that they leave out.
    - A row of an image category with one frame is a still image. Other rows are videos, padded if they are short.

    A row that cannot become a sample is an error that names it. It is never replaced by another in silence.

    Args:
        processor ([`VirstProcessor`]): For sizes, both views and prompts.
        supervise (`str`, *optional*, defaults to `"anchors+propagation"`): Frames that get masks: `"anchors"` in
            stages 1 and 2, `"anchors+propagation"` in stage 3.
        jitter (`bool`, *optional*, defaults to `True`): Draw VLM frames inside their bins, templates and answers. Off:
            as at inference, for a validation loss; anchors are drawn even so.
        frame_jitter (`bool`, *optional*, defaults to `True`): Off: templates and answers are drawn, but the frames are
            always those of inference, so that features of frozen encoders can be kept.
        explain_probability (`float`, *optional*, defaults to 0.5): How often a row with an explanation is asked for
            it. The paper does not say; LISA's data, where ReasonSeg comes from, takes about half.
        fast_resize (`bool`, *optional*, defaults to `False`): Make both views by torch's resizing of bytes instead of
            Pillow's, of all frames at once: several times as fast, but about one value in a hundred is off by 1 of 255
            from what inference sees.
        num_anchors (`int`, *optional*, defaults to 3): Alpha of Alg. 1.
        num_before (`int`, *optional*, defaults to 2): Propagation frames before an anchor.
        num_propagation (`int`, *optional*, defaults to 5): Propagation frames after an anchor.

    Raises:
        DataError: An argument makes no sense; when called, a row cannot become a sample.

    Example:

    ```python
    >>> import random, tempfile
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> from virst_hf.data.clips import ClipTransform
    >>> from virst_hf.data.records import make_row
    >>> from virst_hf.untrained import untrained_processor
    >>> path = Path(tempfile.mkdtemp(), "0.png")
    >>> Image.new("RGB", (64, 48)).save(path)
    >>> row = make_row(video_id="0", expression_id="0", expression="the Red ball", category="referring_image",
    ...                source="refcoco", split="train", frame_names=["0"], frame_paths=[str(path)], masks=[None],
    ...                height=48, width=64)
    >>> sample = ClipTransform(untrained_processor())([row], random.Random(0))
    >>> sample["pixel_values_videos"].shape, sample["sam_pixel_values"].shape, sample["mask_labels"][0].shape
    (torch.Size([1, 3, 64, 64]), torch.Size([1, 3, 128, 128]), torch.Size([1, 128, 128]))

    ```
    """

    def __init__(
        self,
        processor: VirstProcessor,
        supervise: Supervise = "anchors+propagation",
        jitter: bool = True,
        frame_jitter: bool = True,
        explain_probability: float = 0.5,
        fast_resize: bool = False,
        num_anchors: int = 3,
        num_before: int = 2,
        num_propagation: int = 5,
    ) -> None:
        if supervise not in get_args(Supervise):
            raise DataError(f"supervise must be one of {', '.join(get_args(Supervise))}, found {supervise!r}.")
        if not 0 <= explain_probability <= 1:
            raise DataError(f"explain_probability must be in 0 .. 1, found {explain_probability!r}.")
        if num_anchors < 1 or num_before < 0 or num_propagation < 0:
            raise DataError(
                "There must be at least one anchor, and not fewer than no frames around it, found num_anchors "
                f"{num_anchors}, num_before {num_before}, num_propagation {num_propagation}."
            )
        self.processor = processor
        self.supervise = supervise
        self.jitter = jitter
        self.frame_jitter = frame_jitter
        self.explain_probability = explain_probability
        self.fast_resize = fast_resize
        self.anchor_sizes = (num_anchors, num_before, num_propagation)

    def __call__(self, rows: Sequence[Mapping[str, Any]], rng: random.Random) -> dict[str, Any]:
        """The sample of rows about one video.

        Args:
            rows (`Sequence[dict]`): Records with the same frames, at least one.
            rng (`random.Random`): All that is drawn comes from it.

        Returns:
            `dict`: What [`VirstCollator`] joins. Of the video: `pixel_values_videos` `(T_vlm, 3, size, size)`,
            `sam_pixel_values` `(frames, 3, S, S)`, `uint8`, or `None` where no text has masks, `seg_frame_indices`
            (`list[int]`, the SAM frame of each of the `T_seg`), `original_size`, `frame_indices` (`list[int]`, the
            source frame of each VLM frame). Of each text, as lists: `input_ids`, `labels`, `mask_labels`
            (`torch.BoolTensor` `(supervised frames, S, S)` or `None`), `anchor_indices`, `propagation_indices` (or
            `None`), `tasks`, `categories`, `names`.

        Raises:
            DataError: A row cannot become a sample; the message names its set, video and expression.
        """
        if not rows:
            raise DataError("A sample needs at least one row, found none.")
        try:
            return self._sample(rows, rng)
        except DataError as error:
            raise DataError(f"{name_of(rows[0])}: {error}") from error
        except (VirstError, OSError) as error:
            raise DataError(f"{name_of(rows[0])} cannot become a sample: {error}") from error

    def _sample(self, rows: Sequence[Mapping[str, Any]], rng: random.Random) -> dict[str, Any]:
        video = _open(rows[0])
        for row in rows[1:]:
            if any(row[field] != rows[0][field] for field in ("frame_names", "frame_paths", "video_path")):
                raise DataError(f"expression {row['expression_id']} has other frames; one sample is about one video.")
        vlm = self._vlm_frames(rows[0], video, rng)
        positions = seg_frame_positions(len(vlm), self.processor.video_processor.max_seg_frames)
        seg = [vlm[position] for position in positions]
        anchors, around = sample_training_frames(len(seg), *self.anchor_sizes, rng)
        if self.supervise == "anchors":
            around = []
        tasks = [self._task(row, rng) for row in rows]
        masked = any(task != "ask" for task in tasks)
        # A padded video repeats its last frame, which need not be encoded twice.
        frames = sorted(set(seg)) if masked else []
        views = self._views(rows[0], video, vlm, frames)
        sample: dict[str, Any] = {
            **views,
            "seg_frame_indices": [frames.index(frame) for frame in seg] if masked else [],
            "frame_indices": vlm,
        }
        texts = []
        for row, task in zip(rows, tasks, strict=True):
            text = self._text(row, task, len(vlm), rng)
            if task != "ask":
                supervised = [seg[position] for position in sorted({*anchors, *around})]
                text["mask_labels"] = self._masks(row, video, supervised)
                text["anchor_indices"], text["propagation_indices"] = list(anchors), list(around)
            texts.append(text)
        for key in texts[0]:
            sample[key] = [text[key] for text in texts]
        return sample

    # --- frames ------------------------------------------------------------------------------------------------------
    def _vlm_frames(self, row: Mapping[str, Any], video: VideoSource | list[str], rng: random.Random) -> list[int]:
        if len(video) == 1 and row["category"] in IMAGE_CATEGORIES:
            return [0]
        sizes = self.processor.video_processor
        return vlm_frame_indices(
            len(video),
            sizes.max_vlm_frames,
            sizes.frames_per_clip,
            sizes.min_frames,
            rng if self.jitter and self.frame_jitter else None,
        )

    def _views(
        self, row: Mapping[str, Any], video: VideoSource | list[str], vlm: Sequence[int], seg: Sequence[int]
    ) -> dict[str, Any]:
        """Both views; each frame is read once, as [`VirstVideoProcessor`] makes them at inference."""
        frames: dict[int, np.ndarray] = {}
        wanted = sorted(set(vlm))
        for index, frame in zip(wanted, _read(video, wanted), strict=True):
            height, width = (row[name] or side for name, side in zip(("height", "width"), frame.shape, strict=False))
            if frame.shape[:2] != (height, width):
                raise DataError(
                    f"frame {_frame_name(video, index)} is {frame.shape[1]} x {frame.shape[0]} pixels (width x "
                    f"height), expected {width} x {height}, the size of the video's record."
                )
            frames[index] = frame
        resized = self._resize_fast if self.fast_resize else self._resize
        small, large = resized(frames, seg)
        order = [wanted.index(index) for index in vlm]
        return {
            "pixel_values_videos": small if order == list(range(len(small))) else small[order],
            "sam_pixel_values": large,
            "original_size": list(frames[wanted[0]].shape[:2]),
        }

    def _resize(
        self, frames: Mapping[int, np.ndarray], seg: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """VLM view of all frames, SAM view of some: the very pixels of inference."""
        views = self.processor.video_processor
        images = {index: Image.fromarray(frame) for index, frame in frames.items()}
        side = [views.sam_image_size, views.sam_image_size]
        large = torch.stack([pil_to_tensor(resize(images[index], side)) for index in seg]) if seg else None
        return torch.stack([views.vlm_view(image) for image in images.values()]), large

    def _resize_fast(
        self, frames: Mapping[int, np.ndarray], seg: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The same by torch."""
        views = self.processor.video_processor

        def bytes_of(indices: Sequence[int], side: int, mode: str) -> torch.Tensor:
            # One at a time: channels stand last in memory, as torch's fast way needs them.
            resized = [
                functional.interpolate(
                    torch.tensor(frames[index]).permute(2, 0, 1)[None],
                    size=(side, side),
                    mode=mode,
                    antialias=True,
                )
                for index in indices
            ]
            return torch.cat(resized).contiguous()

        small = bytes_of(list(frames), views.image_size, "bicubic").float() / 255
        mean, std = (torch.tensor(list(x))[:, None, None] for x in (views.image_mean, views.image_std))
        return (small - mean) / std, bytes_of(seg, views.sam_image_size, "bilinear") if seg else None

    # --- texts -------------------------------------------------------------------------------------------------------
    def _task(self, row: Mapping[str, Any], rng: random.Random) -> Task:
        if row["category"] == "video_qa":
            if row["answer"] is None:
                raise DataError(f"expression {row['expression_id']} is a question without an answer to train on.")
            return "ask"
        explained = row["answer"] is not None and rng.random() < self.explain_probability
        return "explain" if explained else "segment"

    def _text(self, row: Mapping[str, Any], task: Task, num_vlm: int, rng: random.Random) -> dict[str, Any]:
        """Ids and labels of one text, with templates drawn at random."""
        template = answer_template = 0
        if self.jitter and task == "segment":
            template = rng.randrange(len(segmentation_templates(row["expression"])))
        if self.jitter and task != "ask":
            answer_template = rng.randrange(len(ANSWER_TEMPLATES))
        inputs = self.processor(
            text=[row["expression"]],
            task=task,
            answers=None if task == "segment" else [row["answer"]],
            template=template,
            answer_template=answer_template,
            lowercase=False,
            return_labels=True,
            num_vlm_frames=[num_vlm],
            return_tensors=None,
        )
        return {
            "input_ids": inputs["input_ids"][0],
            "labels": inputs["labels"][0],
            "mask_labels": None,
            "anchor_indices": None,
            "propagation_indices": None,
            "tasks": task,
            "categories": row["category"],
            "names": name_of(row),
        }

    def _masks(
        self, row: Mapping[str, Any], video: VideoSource | list[str], supervised: Sequence[int]
    ) -> torch.BoolTensor:
        """Masks of the supervised frames at the size of the SAM view."""
        masks, size = row["masks"], (row["height"], row["width"])
        if masks is None or None in size:
            raise DataError(
                f"expression {row['expression_id']} has no masks to train on"
                + (": they are with the server of the benchmark." if masks is None else ": its size is not known.")
            )
        if len(masks) != len(video):
            raise DataError(f"expression {row['expression_id']} has {len(masks)} masks for {len(video)} frames.")
        decoded = {index: decode_rle(masks[index], size) for index in set(supervised)}
        return self.processor.video_processor.resize_masks(np.stack([decoded[index] for index in supervised]))


def name_of(row: Mapping[str, Any]) -> str:
    """Set, split, video and expression of a row, for messages."""
    return f"{row['source']} {row['split']}, video {row['video_id']}, expression {row['expression_id']}"


def _open(row: Mapping[str, Any]) -> VideoSource | list[str]:
    """The files of the frames, or the video file."""
    if row["video_path"] is not None:
        return open_video(row["video_path"])
    if not row["frame_paths"]:
        raise DataError("the record has neither frames nor a video file.")
    return row["frame_paths"]


def _read(video: VideoSource | list[str], indices: Sequence[int]) -> Any:
    """The frames asked for, in this order; of a list of files one at a time."""
    if isinstance(video, VideoSource):
        return video.frames(indices)
    return (read_image(video[index]) for index in indices)


def _frame_name(video: VideoSource | list[str], index: int) -> str:
    return f"{index} of {video.name}" if isinstance(video, VideoSource) else Path(video[index]).name
