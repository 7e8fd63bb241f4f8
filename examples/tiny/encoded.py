"""Clips as the trained tower and SAM encoder see them, kept on disk: the steps after that encode nothing."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from clips import MOST_OBJECTS, Clips
from model import FRAME_TOKENS, NUM_FRAMES, SEGMENTER_SIDE
from torch import Tensor
from torch.nn import functional as F
from tower import merged_shares, object_shares
from tqdm import tqdm

from virst_hf import VirstForVideoSegmentation

__all__ = ["GRID", "PAST", "VIDEO_TOKENS", "EncodedClips", "encode_clips"]

VIDEO_TOKENS = NUM_FRAMES * FRAME_TOKENS
# Cells of SAM's stride-16 map along a side.
GRID = SEGMENTER_SIDE // 16
# Numbers about the past of an object: see `EncodedClips.past`.
PAST = 12


def encode_clips(folder: Path, name: str, model: VirstForVideoSegmentation, batch: int = 4) -> None:
    """Write the merged tokens of all clips, the objects' shares of them, and SAM's stride-16 maps.

    Does nothing where they are there.
    """
    if (folder / f"{name}.maps.npy").is_file():
        return
    clips, tower, segmenter = Clips(folder, name), model.model.vision_tower, model.model.segmenter
    count, channels = len(clips), segmenter.config.hidden_size
    shapes = {
        "tokens": (count, VIDEO_TOKENS, tower.config.hidden_size),
        "owners": (count, VIDEO_TOKENS, MOST_OBJECTS),
        "maps.partial": (count, NUM_FRAMES, channels, GRID, GRID),
    }
    arrays = {
        key: np.lib.format.open_memmap(folder / f"{name}.{key}.npy", "w+", np.float16, shape)
        for key, shape in shapes.items()
    }
    heads = tower.config.num_attention_heads
    with torch.no_grad():
        for start in tqdm(range(0, count, batch), desc=f"encoding, {name}", unit="batch"):
            chosen = list(range(start, min(start + batch, count)))
            seen = tower(clips.frames("vision", chosen).flatten(0, 1)[:, None])
            merged, shares = merged_shares(seen, object_shares(clips.objects(chosen).flatten(0, 1)), heads)
            with torch.autocast("cpu", torch.bfloat16):
                maps = segmenter.image_encoder(clips.frames("segmenter", chosen).flatten(0, 1))[-1]
            for key, values in zip(arrays, (merged, shares, maps), strict=True):
                arrays[key][chosen] = values.float().numpy().reshape(len(chosen), *shapes[key][1:])
    for array in arrays.values():
        array.flush()
    # Under its name only when all are whole.
    os.replace(folder / f"{name}.maps.partial.npy", folder / f"{name}.maps.npy")


class EncodedClips(Clips):
    """Clips with the tokens and maps of the trained encoders."""

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(folder, name)
        self.encoded = {
            key: np.load(folder / f"{name}.{key}.npy", mmap_mode="r") for key in ("tokens", "owners", "maps")
        }
        self._known: dict[int, Tensor] = {}

    def tokens(self, clips: Sequence[int]) -> Tensor:
        """Merged tokens of the tower, `(clips, VIDEO_TOKENS, width)`."""
        return torch.from_numpy(self.encoded["tokens"][list(clips)]).float()

    def owners(self, clip: int) -> Tensor:
        """Share of each object in each token, `(VIDEO_TOKENS, MOST_OBJECTS)`."""
        return torch.from_numpy(self.encoded["owners"][clip].copy()).float()

    def maps(self, clip: int) -> Tensor:
        """SAM's stride-16 maps, `(NUM_FRAMES, C, GRID, GRID)`."""
        return torch.from_numpy(self.encoded["maps"][clip].copy()).float()

    def cells(self, clip: int) -> Tensor:
        """Share of each object in each cell of those maps, `(MOST_OBJECTS, NUM_FRAMES, GRID * GRID)`."""
        numbers = self.objects([clip])[0][..., 1::2, 1::2].long()
        planes = F.one_hot(numbers, MOST_OBJECTS + 1)[..., 1:].permute(3, 0, 1, 2).float()
        return F.adaptive_avg_pool2d(planes, GRID).flatten(2)

    def middle(self, clip: int, targets: list[int]) -> tuple[Tensor, Tensor]:
        """Mean place of the visible targets `(NUM_FRAMES, 2)`, and the sum of their sides `(NUM_FRAMES,)`."""
        visible, geometry = self.look.visible[clip, targets], self.look.geometry[clip, targets]
        sums = (geometry * visible[:, None]).sum(0)
        return (sums[:2] / visible.sum(0).clamp(min=1)).T, sums[2]

    def past(self, clip: int) -> Tensor:
        """What the objects of a clip have done up to each frame, `(MOST_OBJECTS, NUM_FRAMES, PAST)`."""
        if clip not in self._known:
            self._known[clip] = self._past(clip)
        return self._known[clip]

    def _past(self, clip: int) -> Tensor:
        """Scaled so that each number is about 1: way since first seen (2), speed (2), growth, turn since last seen
        (sine, cosine), turn in all, frames seen, length of the way, seen from the start, never missed."""
        look, out = self.look, torch.zeros(MOST_OBJECTS, NUM_FRAMES, PAST)
        for thing in range(len(self.facts[clip]["objects"])):
            place, side = look.geometry[clip, thing, :2].T, look.geometry[clip, thing, 2]
            angle = self.facts[clip]["objects"][thing]["angle"]
            seen = [t for t in range(NUM_FRAMES) if look.visible[clip, thing, t]]
            turned = length = 0.0
            for count, now in enumerate(seen):
                first, last = seen[0], seen[max(count - 1, 0)]
                step, turn = place[now] - place[last], angle[now] - angle[last]
                turned, length = turned + abs(turn), length + float(step.norm())
                out[thing, now, :2] = 2 * (place[now] - place[first])
                out[thing, now, 2:4] = NUM_FRAMES * step / max(1, now - last)
                out[thing, now, 4] = 3 * torch.log(side[now] / side[first])
                out[thing, now, 5:8] = torch.tensor([np.sin(turn), np.cos(turn), min(turned, 3.0)])
                out[thing, now, 8] = 3 * count / NUM_FRAMES
                out[thing, now, 9] = 2 * length
                out[thing, now, 10:] = torch.tensor([1.0 - 2 * (first > 0), 1.0 - 2 * (count < now)])
        return out
