"""Pre-training of the segmenter: SAM 2's own task, points and boxes to masks, on still frames and through clips.

Prompts stand on one to three frames of a clip, the others are propagated from memory. The map that the prompts of the
language model will look at is asked for colour and form as well.
"""

import random
from collections.abc import Mapping

import numpy as np
import torch
from clips import COLOR_NAMES, FORM_NAMES, MOST_OBJECTS, Clips
from model import NUM_FRAMES, SEGMENTER_SIDE
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from virst_hf import VirstForVideoSegmentation
from virst_hf.modules.losses import mask_iou
from virst_hf.modules.segmenter import FrameFeatures, FrameMasks, VirstSegmenter
from virst_hf.modules.tracker import AnchorMemory, track_supervised_frames

__all__ = ["SegmenterTraining"]

STILLS, STILL_OBJECTS = 12, 3
CLIPS, CLIP_OBJECTS, CLIP_FRAMES = 3, 2, 6
# The first steps are still frames only: without any idea of a mask there is nothing to remember.
CLIPS_FROM = 400
GRID = SEGMENTER_SIDE // 16
MINE, NOBODYS = 0.2, 0.03
# SAM's labels of points: not a point, foreground, upper left and lower right corner of a box.
PADDING, POINT, UPPER_LEFT, LOWER_RIGHT = -1, 1, 2, 3


class SegmenterTraining:
    """
    The segmenter with point and box prompts.

    Args:
        model ([`VirstForVideoSegmentation`]): Its segmenter is trained.
        train ([`Clips`]): Clips to learn from.
        held_out ([`Clips`]): Clips to be scored on.
        tracking (`bool`): Whether to train on clips alone, with the image encoder as it is: a step then takes half
            the time, and what is left to be learned is what memory does.
    """

    def __init__(self, model: VirstForVideoSegmentation, train: Clips, held_out: Clips, tracking: bool) -> None:
        self.segmenter: VirstSegmenter = model.model.segmenter
        self.tracking = tracking
        self.segmenter.train_encoder = not tracking
        self.segmenter.image_encoder.requires_grad_(not tracking)
        self.train, self.held_out = train, held_out
        width = self.segmenter.config.hidden_size
        look = nn.Linear(width, 1 + len(COLOR_NAMES) + len(FORM_NAMES))
        self.parts = nn.ModuleDict({"segmenter": self.segmenter, "look": look})

    def losses(self, step: int, rng: np.random.Generator) -> Mapping[str, Tensor]:
        """The loss terms of a step: still frames and clips in turn, or clips alone."""
        choice = random.Random(int(rng.integers(2**62)))
        if not self.tracking and (step % 2 == 0 or step < CLIPS_FROM):
            clips, frames = rng.integers(0, len(self.train), STILLS), rng.integers(0, NUM_FRAMES, STILLS)
            return self.stills(self.train, clips, frames, choice)[0]
        return self.clips(self.train, rng.integers(0, len(self.train), CLIPS), choice)[0]

    def scores(self) -> Mapping[str, float]:
        """Mean IoU on still frames, and of the propagated frames of clips."""
        choice, found = random.Random(1), {"still": [], "propagated": []}
        for start in range(0, min(64, len(self.held_out)), 8):
            clips = np.arange(start, min(start + 8, len(self.held_out)))
            found["still"].append(self.stills(self.held_out, clips, clips % NUM_FRAMES, choice)[1])
            found["propagated"].append(self.clips(self.held_out, clips, choice)[1])
        return {f"IoU {name}": float(np.mean(values)) for name, values in found.items()}

    def encode(self, pixels: Tensor) -> FrameFeatures:
        """Features of normalised frames `(frames, 3, side, side)`."""
        # On CPUs the way back through fused attention in bfloat16 takes longer than all else.
        grad = torch.set_grad_enabled(torch.is_grad_enabled() and not self.tracking)
        with grad, torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            stride4, stride8, top = (level.float() for level in self.segmenter.image_encoder(pixels))
        decoder = self.segmenter.sam_mask_decoder
        return FrameFeatures(top, decoder.conv_s1(stride8), decoder.conv_s0(stride4))

    def stills(
        self, source: Clips, clips: np.ndarray, frames: np.ndarray, choice: random.Random
    ) -> tuple[dict[str, Tensor], float]:
        """Loss terms and mean IoU on one frame of each clip, up to `STILL_OBJECTS` objects of each."""
        objects = source.objects(clips, frames)[:, 0]
        features = self.encode(source.frames("segmenter", clips, frames)[:, 0])
        terms = self._look_terms(source, clips, objects, features.top)
        rows, targets = [], []
        for row, numbers in enumerate(objects):
            present = [number for number in numbers.unique().tolist() if number]
            for number in choice.sample(present, min(STILL_OBJECTS, len(present))):
                rows.append(row)
                targets.append(numbers == number)
        target = torch.stack(targets)
        chosen = _rows(features, torch.tensor(rows))
        prompts = self._prompts(target, choice)
        masks = self.segmenter.decode(self.segmenter.without_memory(chosen), prompts, chosen, False)
        found, iou = self._mask_terms(masks, target)
        return {**terms, **found}, float(iou.mean())

    def clips(self, source: Clips, clips: np.ndarray, choice: random.Random) -> tuple[dict[str, Tensor], float]:
        """Loss terms on some frames of each clip, and mean IoU of those without a prompt."""
        frames = sorted(choice.sample(range(NUM_FRAMES), CLIP_FRAMES))
        objects = source.objects(clips)[:, frames]
        features = self.encode(source.frames("segmenter", clips)[:, frames].flatten(0, 1))
        anchors = sorted(choice.sample(range(CLIP_FRAMES), choice.choice([1, 1, 2, 3])))
        rows, targets = [], []
        for row, numbers in enumerate(objects):
            seen = [n for n in numbers[anchors].unique().tolist() if n]
            for number in choice.sample(seen, min(CLIP_OBJECTS, len(seen))):
                rows.append(row)
                targets.append(numbers == number)
        target, first = torch.stack(targets), torch.tensor(rows) * CLIP_FRAMES
        memory = AnchorMemory(self.segmenter, CLIP_FRAMES, num_anchors=3, future_pointers=True, multimask=False)
        prompts = {frame: self._prompts(target[:, frame], choice) for frame in anchors}
        every = range(CLIP_FRAMES)
        masks = track_supervised_frames(memory, lambda frame: _rows(features, first + frame), every, prompts)
        parts = ("logits", "iou_scores", "object_scores", "pointer")
        joined = FrameMasks(*(torch.cat([getattr(m, part) for m in masks]) for part in parts))
        terms, iou = self._mask_terms(joined, target.transpose(0, 1).flatten(0, 1))
        propagated = [frame for frame in every if frame not in anchors]
        return terms, float(iou.view(CLIP_FRAMES, -1)[propagated].mean())

    def _prompts(self, masks: Tensor, choice: random.Random) -> Tensor:
        """SAM's embedding of a point inside each mask, or of its box; nothing where the mask is empty."""
        points, labels = torch.zeros(len(masks), 2, 2), torch.full((len(masks), 2), PADDING)
        for i, mask in enumerate(masks):
            rows, columns = torch.nonzero(mask, as_tuple=True)
            if not len(rows):
                continue
            if choice.random() < 0.5:
                some = choice.randrange(len(rows))
                points[i, 0] = torch.tensor([columns[some], rows[some]])
                labels[i, 0] = POINT
            else:
                points[i, 0] = torch.tensor([columns.min(), rows.min()])
                points[i, 1] = torch.tensor([columns.max() + 1, rows.max() + 1])
                labels[i] = torch.tensor([UPPER_LEFT, LOWER_RIGHT])
        return self.segmenter.sam_prompt_encoder._embed_points(points, labels, pad=False)

    def _mask_terms(self, masks: FrameMasks, target: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Loss terms, and the IoU of each mask (1 where an absent object was told so)."""
        logits, wanted = self.segmenter.resize_logits(masks.logits), target.float()
        visible = target.flatten(1).any(1).float()
        count = visible.sum().clamp(min=1)
        cross = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean((1, 2))
        soft = logits.sigmoid()
        dice = 1 - (2 * (soft * wanted).sum((1, 2)) + 1e-3) / (soft.sum((1, 2)) + wanted.sum((1, 2)) + 1e-3)
        with torch.no_grad():
            iou = mask_iou(logits, wanted)
            absent = (masks.object_scores <= 0).float()
            score = torch.where(visible > 0, iou * (1 - absent), absent)
        return {
            "bce": 10 * (cross * visible).sum() / count,
            "dice": (dice * visible).sum() / count,
            "occlusion": 0.2 * F.binary_cross_entropy_with_logits(masks.object_scores, visible),
            "iou": 0.1 * ((masks.iou_scores - iou).abs() * visible).mean(),
        }, score

    def _look_terms(self, source: Clips, clips: np.ndarray, objects: Tensor, top: Tensor) -> dict[str, Tensor]:
        """What each cell of the stride-16 map says of the object in it."""
        said = self.parts["look"](top.permute(0, 2, 3, 1))
        planes = F.one_hot(objects.long(), MOST_OBJECTS + 1)[..., 1:].permute(0, 3, 1, 2).float()
        share, owner = F.adaptive_avg_pool2d(planes, GRID).max(1)
        mine = share > MINE
        asked = mine | (share <= NOBODYS)
        thing = (torch.from_numpy(clips)[torch.nonzero(mine, as_tuple=True)[0]], owner[mine])
        color, form = said[mine][:, 1:].split([len(COLOR_NAMES), len(FORM_NAMES)], -1)
        return {
            "object": F.binary_cross_entropy_with_logits(said[..., 0][asked], mine[asked].float()),
            "color": 0.3 * F.cross_entropy(color, source.look.color[thing]),
            "form": 0.3 * F.cross_entropy(form, source.look.form[thing]),
        }


def _rows(features: FrameFeatures, rows: Tensor) -> FrameFeatures:
    """Features of some frames; a frame may come several times."""
    return FrameFeatures(features.top[rows], features.stride8[rows], features.stride4[rows])
