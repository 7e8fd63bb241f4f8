"""Pictures for the report: what was right, missed and too much in the best and the worst clips."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..data.records import decode_masks
from ..errors import VirstError
from ..rendering import draw_overlay
from ..rle import decode_rle
from .predictions import PredictionStore
from .samples import MASKS, SampleSet, Unit, open_frames

__all__ = ["ClipPicture", "clip_pictures"]

CLIPS = 6
FRAMES = 3
WIDTH = 300
QUALITY = 80


@dataclass(frozen=True)
class ClipPicture:
    """
    One expression in pictures.

    Args:
        group (`str`): `"best"` or `"worst"`.
        record (`Mapping[str, Any]`): Its scores.
        frames (`list[tuple[str, str]]`): Name of the frame, and the picture as a `data:` address.
    """

    group: str
    record: Mapping[str, Any]
    frames: list[tuple[str, str]]


def clip_pictures(
    store: PredictionStore, samples: SampleSet, records: Sequence[Mapping[str, Any]], run_hash: str
) -> list[ClipPicture]:
    """Pictures of the best and the worst expressions, one of each video at most.

    Args:
        store ([`PredictionStore`]): The predictions.
        samples ([`SampleSet`]): The data set.
        records (`Sequence[dict]`): Scores.
        run_hash (`str`): Identity of the run.

    Returns:
        `list[ClipPicture]`: The worst first. Clips whose frames cannot be read are left out.
    """
    scored = [record for record in records if record["kind"] == MASKS and "error" not in record]
    # An expression without a target is right or wrong as a whole: its pictures show next to nothing. And in the
    # official Ref-DAVIS17 protocol an object may have no sentence.
    scored = [record for record in scored if record["expression_id"] and not record.get("no_target")]
    ranked = sorted(scored, key=lambda record: (record["J"] + record["F"], record["video"], record["expression_id"]))
    # Half of a small set at most: then there are both, and no video is among the best and the worst.
    count = min(CLIPS, -(-len({record["video"] for record in ranked}) // 2))
    worst = _one_per_video(ranked, count, set())
    best = _one_per_video(ranked[::-1], count, {record["video"] for record in worst})
    units = {unit.video_id: unit for unit in samples.of_kind(MASKS)}
    pictures = []
    for group, chosen in (("worst", worst), ("best", best)):
        for record in chosen:
            try:
                frames = _draw(store, samples, units[record["video"]], record["expression_id"], run_hash)
            except (VirstError, OSError):
                continue  # the frames are gone since: the numbers stand without the picture
            pictures.append(ClipPicture(group, record, frames))
    return pictures


def _one_per_video(ranked: Sequence[Mapping[str, Any]], count: int, taken: set[str]) -> list[Mapping[str, Any]]:
    """The first records of different videos."""
    chosen: list[Mapping[str, Any]] = []
    for record in ranked:
        if record["video"] not in taken and len(chosen) < count:
            taken = taken | {record["video"]}
            chosen.append(record)
    return chosen


def _draw(
    store: PredictionStore, samples: SampleSet, unit: Unit, expression_id: str, run_hash: str
) -> list[tuple[str, str]]:
    """Some frames of a clip with the three kinds of pixels in colour."""
    position = unit.expression_ids.index(expression_id)
    row = samples.row(unit, position)
    entry = store.read(unit, run_hash)["expressions"][expression_id]
    size = (row["height"], row["width"])
    target = decode_masks(row)
    shown = [t for t in range(len(target)) if target[t].any() or entry["masks"][t] is not None]
    shown = shown or list(range(len(target)))
    # The middles of equal parts of what there is to see.
    indices = sorted({shown[(2 * i + 1) * len(shown) // (2 * FRAMES)] for i in range(FRAMES)})
    pictures = []
    for t, frame in zip(indices, open_frames(row).frames(indices), strict=True):
        prediction = decode_rle(entry["masks"][t], size)
        kinds = [target[t] & ~prediction, prediction & ~target[t], target[t] & prediction]
        pictures.append((row["frame_names"][t], _data_address(draw_overlay(frame, kinds))))
    return pictures


def _data_address(frame: np.ndarray) -> str:
    """A small JPEG inside of an address, so that the page needs no other file."""
    image = Image.fromarray(frame)
    if image.width > WIDTH:
        image = image.resize((WIDTH, max(1, round(image.height * WIDTH / image.width))), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
