"""Clips as the trained tower and SAM encoder see them, kept on disk: the steps after that encode nothing."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from clips import MOST_OBJECTS, Clips
from model import FRAME_TOKENS, NUM_FRAMES, SEGMENTER_SIDE
from torch import Tensor
from torch.nn import functional as F
from tower import merged_shares, object_shares
from tqdm import tqdm

from virst_hf.modules.segmenter import VirstSegmenter
from virst_hf.modules.vision_tower import VirstVisionTower

__all__ = ["GRID", "PAST", "VIDEO_TOKENS", "EncodedClips", "write_maps", "write_tokens"]

VIDEO_TOKENS = NUM_FRAMES * FRAME_TOKENS
# Cells of SAM's stride-16 map along a side.
GRID = SEGMENTER_SIDE // 16
# Numbers about the past of an object: see `EncodedClips.past`.
PAST = 12
# Clips that are encoded together.
BATCH = 4


def write_tokens(folder: Path, name: str, tower: VirstVisionTower) -> None:
    """Write the merged tokens of all clips, and the objects' shares of them; nothing where they are there."""
    clips, heads = Clips(folder, name), tower.config.num_attention_heads

    def encode(chosen: list[int]) -> tuple[Tensor, ...]:
        seen = tower(clips.frames("vision", chosen).flatten(0, 1)[:, None])
        return merged_shares(seen, object_shares(clips.objects(chosen).flatten(0, 1)), heads)

    shapes = {"owners": (VIDEO_TOKENS, MOST_OBJECTS), "tokens": (VIDEO_TOKENS, tower.config.hidden_size)}
    _write(folder, name, len(clips), shapes, lambda chosen: reversed(encode(chosen)))


def write_maps(folder: Path, name: str, segmenter: VirstSegmenter) -> None:
    """Write SAM's stride-16 maps of all clips; nothing where they are there."""
    clips = Clips(folder, name)

    def encode(chosen: list[int]) -> tuple[Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16):
            return (segmenter.image_encoder(clips.frames("segmenter", chosen).flatten(0, 1))[-1],)

    _write(folder, name, len(clips), {"maps": (NUM_FRAMES, segmenter.config.hidden_size, GRID, GRID)}, encode)


def _write(
    folder: Path,
    name: str,
    count: int,
    shapes: dict[str, tuple[int, ...]],
    encode: Callable[[list[int]], Iterable[Tensor]],
) -> None:
    """Write what `encode` gives for a few clips at a time, one array for each of `shapes`."""
    paths = {key: folder / f"{name}.{key}.npy" for key in shapes}
    if all(path.is_file() for path in paths.values()):
        return
    partial = {key: path.with_name(f"{path.name}.partial") for key, path in paths.items()}
    arrays = {
        key: np.lib.format.open_memmap(partial[key], "w+", np.float16, (count, *shape))
        for key, shape in shapes.items()
    }
    with torch.no_grad():
        for start in tqdm(range(0, count, BATCH), desc=f"{', '.join(shapes)} of {name}", unit="batch"):
            chosen = list(range(start, min(start + BATCH, count)))
            for (key, shape), values in zip(shapes.items(), encode(chosen), strict=True):
                arrays[key][chosen] = values.float().numpy().reshape(len(chosen), *shape)
    for key, array in arrays.items():
        array.flush()
        os.replace(partial[key], paths[key])


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
