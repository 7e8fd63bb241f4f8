"""Whether all processes of a run will run the same modules equally often, which ZeRO-3 needs.

It gathers the weights of a module when it runs, from all processes together. Where one of them runs a module once more
than the others do, all wait for ever.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..data import Mixture
from ..errors import ConfigError
from ..processing_virst import VirstProcessor
from ..sampling import seg_frame_positions, vlm_frame_indices

__all__ = ["check_same_modules", "frame_counts"]

INSTEAD = "Use examples/deepspeed/zero2.json for this run."
READ_BATCH = 10_000


def check_same_modules(what: str, mixture: Mixture, supervise: str, processor: VirstProcessor) -> None:
    """Check that all draws of a mixture run the same modules equally often.

    Args:
        what (`str`): Whose draws they are, for the message: `"training"`.
        mixture ([`Mixture`]): What is drawn.
        supervise (`str`): Frames with masks. Of propagation frames there are as many as the anchors leave room for.
        processor ([`VirstProcessor`]): For the number of frames of both views.

    Raises:
        ConfigError: They do not.
    """
    reason = f"With ZeRO-3 all processes must run the same modules, but the {what}"
    drawn = [i for i, probability in enumerate(mixture.probabilities) if probability > 0]
    categories = sorted({mixture.categories[i] for i in drawn})
    if supervise != "anchors":
        raise ConfigError(f"{reason} supervises propagation frames, whose number differs by draw. {INSTEAD}")
    if len(categories) > 1:
        raise ConfigError(f"{reason} has draws of the categories {', '.join(categories)}. {INSTEAD}")
    if mixture.expressions_per_clip > 1:
        raise ConfigError(
            f"{reason} has up to {mixture.expressions_per_clip} expressions in a draw, by how many its video has. Set "
            f"expressions_per_clip to 1, or: {INSTEAD}"
        )
    if categories == ["video_qa"]:
        return  # it has no masks, so no frames go through the SAM encoder
    seen: dict[int, str] = {}
    for i in drawn:
        for count in sorted(frame_counts(mixture.sources[i])):
            num_seg = _num_seg_frames(count, categories != ["rvos"], processor)
            if num_seg is None:
                raise ConfigError(
                    f"{reason} has videos of {count} frames ({mixture.names[i]}), which are padded: how many frames "
                    f"are encoded differs by draw. {INSTEAD}"
                )
            seen.setdefault(num_seg, mixture.names[i])
    if len(seen) > 1:
        listed = ", ".join(f"{frames} ({name})" for frames, name in sorted(seen.items()))
        raise ConfigError(
            f"{reason} has clips of unlike numbers of frames T_seg: {listed}; they go through the SAM encoder a few "
            f"at a time. Keep to videos of at least {processor.video_processor.max_seg_frames} frames, or: {INSTEAD}"
        )


def _num_seg_frames(count: int, may_be_still: bool, processor: VirstProcessor) -> int | None:
    """`T_seg` of a video or image; `None` for a video that is padded by its last frame, which is encoded once."""
    if count == 1 and may_be_still:
        return 1
    views = processor.video_processor
    if count < views.min_frames:
        return None
    num_vlm = len(vlm_frame_indices(count, views.max_vlm_frames, views.frames_per_clip, views.min_frames))
    return len(seg_frame_positions(num_vlm, views.max_seg_frames))


def frame_counts(rows: Sequence[Mapping[str, Any]]) -> set[int]:
    """The numbers of frames that the rows of a set have.

    Args:
        rows (`datasets.Dataset` or `Sequence[dict]`): Records.

    Returns:
        `set[int]`: Each number once.
    """
    return {len(names) for names in _frame_names(rows)}


def _frame_names(rows: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[str]]:
    """Of an Arrow data set nothing but this column is read, a part at a time."""
    if not hasattr(rows, "select_columns"):
        yield from (row["frame_names"] for row in rows)
        return
    for batch in rows.select_columns(["frame_names"]).iter(READ_BATCH):
        yield from batch["frame_names"]
