"""Samples to a batch: frames of all videos stand one behind the other, texts are padded, masks stay a list."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import BatchFeature

from ..errors import DataError
from ..processing_virst import IGNORED_LABEL, VirstProcessor

__all__ = ["VirstCollator"]


class VirstCollator:
    """
    Joins samples of [`ClipTransform`] into what the model's `forward` takes. Videos of any length, still images and
    questions without masks go together; each sample is one video with one or more texts.

    Where no text of a batch has masks, the batch has no SAM view at all, and the encoder does not run. Where only some
    do, the videos of the others get one black SAM frame, because the model expects a frame of each; nothing looks at
    it, as their texts have no [SEG].

    Args:
        processor ([`VirstProcessor`]): For the padding token and the sizes.

    Example:

    ```python
    >>> import random, tempfile
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> from virst_hf.data.clips import ClipTransform
    >>> from virst_hf.data.collator import VirstCollator
    >>> from virst_hf.data.records import make_row
    >>> from virst_hf.untrained import untrained_model, untrained_processor
    >>> path, processor = Path(tempfile.mkdtemp(), "0.png"), untrained_processor()
    >>> Image.new("RGB", (64, 48)).save(path)
    >>> row = make_row(video_id="0", expression_id="0", expression="the ball", category="referring_image",
    ...                source="refcoco", split="train", frame_names=["0"], frame_paths=[str(path)], masks=[None],
    ...                height=48, width=64)
    >>> sample = ClipTransform(processor)([row], random.Random(0))
    >>> batch = VirstCollator(processor)([sample, sample])
    >>> batch["video_indices"].tolist(), len(batch["mask_labels"]), untrained_model()(**batch).loss.ndim
    ([0, 1], 2, 0)

    ```
    """

    def __init__(self, processor: VirstProcessor) -> None:
        pad = processor.tokenizer.pad_token_id
        self.pad_token_id = 0 if pad is None else int(pad)
        self.sam_image_size = processor.video_processor.sam_image_size

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> BatchFeature:
        """A batch.

        Args:
            samples (`Sequence[dict]`): Of [`ClipTransform`], at least one.

        Returns:
            `BatchFeature`: Arguments of `forward`: `input_ids`, `attention_mask`, `labels` `(num_texts, length)`,
            padded on the right; `video_indices` `(num_texts,)`; `pixel_values_videos`, `num_vlm_frames`,
            `original_sizes`; and with masks `sam_pixel_values`, `num_frames`, `seg_frame_indices`, `num_seg_frames`,
            and the lists, one entry a text, `mask_labels`, `anchor_indices`, `propagation_indices`.

        Raises:
            DataError: There is no sample, or the views differ in size.
        """
        if not samples:
            raise DataError("A batch needs at least one sample, found none.")
        sides = {tuple(sample["pixel_values_videos"].shape[1:]) for sample in samples}
        if len(sides) != 1:
            raise DataError(f"Samples of one batch have views of sizes {sorted(sides)}; make all with one processor.")
        texts = {key: [text for sample in samples for text in sample[key]] for key in ("input_ids", "labels")}
        length = max(map(len, texts["input_ids"]))
        data: dict[str, Any] = {
            "input_ids": _pad(texts["input_ids"], length, self.pad_token_id),
            "attention_mask": _pad([[1] * len(ids) for ids in texts["input_ids"]], length, 0),
            "labels": _pad(texts["labels"], length, IGNORED_LABEL),
            "video_indices": torch.tensor([i for i, sample in enumerate(samples) for _ in sample["input_ids"]]),
            "pixel_values_videos": torch.cat([sample["pixel_values_videos"] for sample in samples]),
            "num_vlm_frames": torch.tensor([len(sample["pixel_values_videos"]) for sample in samples]),
            "original_sizes": torch.tensor([sample["original_size"] for sample in samples]),
        }
        if any(sample["sam_pixel_values"] is not None for sample in samples):
            data.update(self._masks(samples))
        return BatchFeature(data)

    def _masks(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """SAM view, and what is supervised in it."""
        black = torch.zeros(1, 3, self.sam_image_size, self.sam_image_size, dtype=torch.uint8)
        views, indices = [], []
        for sample in samples:
            without = sample["sam_pixel_values"] is None
            views.append(black if without else sample["sam_pixel_values"])
            indices.append([0] if without else sample["seg_frame_indices"])
        ragged = ("mask_labels", "anchor_indices", "propagation_indices")
        return {
            "sam_pixel_values": torch.cat(views),
            "num_frames": torch.tensor([len(view) for view in views]),
            "seg_frame_indices": torch.tensor([index for part in indices for index in part]),
            "num_seg_frames": torch.tensor([len(part) for part in indices]),
            **{key: [text for sample in samples for text in sample[key]] for key in ragged},
        }


def _pad(rows: Sequence[Sequence[int]], length: int, value: int) -> torch.Tensor:
    return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows])
