"""Pre-training of the vision tower: each patch tells which object it shows, how that looks, and where it lies.

Half of the steps look behind the token merging, so that what an object is survives it. The outline of the objects
inside each patch is asked for as well: without it the forms do not come for thousands of steps.
"""

from collections.abc import Mapping

import numpy as np
import torch
from clips import COLOR_NAMES, FORM_NAMES, MOST_OBJECTS, Clips
from model import FRAME_TOKENS, NUM_FRAMES, PATCH, VISION_SIDE
from torch import Tensor, nn
from torch.nn import functional as F

from virst_hf import VirstForVideoSegmentation
from virst_hf.modules.projector import merge_tokens
from virst_hf.modules.vision_tower import VirstVisionTower

__all__ = ["TowerTraining", "merged_shares", "object_shares"]

GRID = VISION_SIDE // PATCH
# Cells along a patch in which the outline is asked for.
CELLS = 8
# Share of a patch (or of a merged token) that an object must have for it to be the object's, or at most for it to be
# nobody's. What lies between is not asked.
MINE, NOBODYS = 0.12, 0.025
FRAMES_A_STEP = 32
# Until then, the merging would only mix up what the patches do not know yet.
MERGED_FROM = 400
SIZES = {"object": 1, "color": len(COLOR_NAMES), "form": len(FORM_NAMES), "place": 2, "side": 1, "angle": 2}


def object_shares(objects: Tensor) -> Tensor:
    """How much of each patch each object covers.

    Args:
        objects (`torch.Tensor` of shape `(frames, side, side)`): Which object each pixel belongs to, from 1.

    Returns:
        `torch.Tensor` of shape `(frames, patches, MOST_OBJECTS)`: 0 to 1.
    """
    planes = F.one_hot(objects[..., 1::3, 1::3].long(), MOST_OBJECTS + 1)[..., 1:].permute(0, 3, 1, 2).float()
    return F.adaptive_avg_pool2d(planes, GRID).flatten(2).transpose(1, 2)


def merged_shares(tokens: Tensor, shares: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    """Merge tokens as the projector does, and the shares of the objects with them.

    Args:
        tokens (`torch.Tensor` of shape `(frames, patches, width)`): The tower's tokens.
        shares (`torch.Tensor` of shape `(frames, patches, MOST_OBJECTS)`): What [`object_shares`] gave.
        num_heads (`int`): Heads of the tower.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: `FRAME_TOKENS` of both.
    """
    # The merging takes weighted means, of which the metric sees the mean over heads alone. Channels that come in
    # opposite pairs, one in each of two heads, are merged like all others and change nothing of that mean.
    width = tokens.shape[-1] // num_heads
    heads = tokens.unflatten(-1, (num_heads, width))
    hidden = torch.zeros_like(heads[..., :MOST_OBJECTS])
    hidden[..., 0, :], hidden[..., 1, :] = shares, -shares
    joined = merge_tokens(torch.cat((heads, hidden), dim=-1).flatten(2), FRAME_TOKENS, num_heads)
    joined = joined.unflatten(-1, (num_heads, width + MOST_OBJECTS))
    return joined[..., :width].flatten(2), joined[..., 0, width:]


class TowerTraining:
    """
    Heads on the tower, and what they are asked.

    Args:
        model ([`VirstForVideoSegmentation`]): Its tower is trained.
        train ([`Clips`]): Clips to learn from.
        held_out ([`Clips`]): Clips to be scored on.
    """

    def __init__(self, model: VirstForVideoSegmentation, train: Clips, held_out: Clips) -> None:
        tower: VirstVisionTower = model.model.vision_tower
        width = tower.config.hidden_size
        self.tower, self.train, self.held_out = tower, train, held_out
        self.heads = tower.config.num_attention_heads
        answers = sum(SIZES.values())
        token_head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, answers))
        self.parts = nn.ModuleDict(
            {"tower": tower, "patches": nn.Linear(width, answers + CELLS**2), "tokens": token_head}
        )

    def losses(self, step: int, rng: np.random.Generator) -> Mapping[str, Tensor]:
        """The loss terms of a step."""
        clips = rng.integers(0, len(self.train), FRAMES_A_STEP)
        frames = rng.integers(0, NUM_FRAMES, FRAMES_A_STEP)
        return self.ask(self.train, clips, frames, merged=step >= MERGED_FROM and step % 2 == 1)[0]

    def scores(self) -> Mapping[str, float]:
        """Share of patches with the right colour and form, and the error of the place; then of merged tokens."""
        clips = np.arange(min(100, len(self.held_out)))
        numbers = {}
        for merged in (False, True):
            found = self.ask(self.held_out, clips, clips % NUM_FRAMES, merged)[1]
            numbers.update({f"{'token' if merged else 'patch'} {name}": value for name, value in found.items()})
        return numbers

    def ask(
        self, source: Clips, clips: np.ndarray, frames: np.ndarray, merged: bool
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Loss terms and scores on one frame of each clip."""
        pixels, objects = source.frames("vision", clips, frames), source.objects(clips, frames)[:, 0]
        with torch.autocast("cpu", torch.bfloat16):
            tokens = self.tower(pixels)
        tokens, shares = tokens.float(), object_shares(objects)
        terms: dict[str, Tensor] = {}
        if merged:
            tokens, shares = merged_shares(tokens, shares, self.heads)
            answers = self.parts["tokens"](tokens)
        else:
            answers, outline = self.parts["patches"](tokens).split([sum(SIZES.values()), CELLS**2], -1)
            terms["outline"] = 5 * F.binary_cross_entropy_with_logits(outline, _outlines(objects))
        said = dict(zip(SIZES, answers.split(list(SIZES.values()), -1), strict=True))
        share, owner = shares.max(-1)
        mine = share > MINE
        asked = mine | (share <= NOBODYS)
        terms["object"] = F.binary_cross_entropy_with_logits(said["object"][asked][:, 0], mine[asked].float())
        row, place = torch.nonzero(mine, as_tuple=True)
        thing = (torch.from_numpy(clips)[row], owner[row, place])
        at = torch.from_numpy(frames)[row]
        index = torch.arange(len(at))
        look = source.look
        color, form = look.color[thing], look.form[thing]
        terms["color"] = F.cross_entropy(said["color"][mine], color)
        terms["form"] = 2 * F.cross_entropy(said["form"][mine], form)
        geometry = look.geometry[thing][index, :, at]
        error = (torch.cat((said["place"], said["side"]), -1)[mine] - geometry).abs()
        terms["place"], terms["side"] = 10 * error[:, :2].mean(), 10 * error[:, 2].mean()
        terms["angle"] = 0.5 * (said["angle"][mine] - look.angle[thing][index, :, at]).square().mean()
        right = {"color": said["color"][mine].argmax(-1) == color, "form": said["form"][mine].argmax(-1) == form}
        return terms, {
            **{name: float(values.float().mean()) for name, values in right.items()},
            "place": float(error[:, :2].detach().mean()),
        }


def _outlines(objects: Tensor) -> Tensor:
    """How much of each cell of each patch is object, `(frames, patches, CELLS ** 2)`."""
    covered = F.adaptive_avg_pool2d((objects > 0).float()[:, None], GRID * CELLS)[:, 0]
    cells = covered.unflatten(1, (GRID, CELLS)).unflatten(3, (GRID, CELLS))
    return cells.permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2)
