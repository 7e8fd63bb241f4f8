"""Pre-training of everything but the encoders together, by Eq. 16: prompts learn to be what the mask decoder takes.

Sentences are understood by now, and prompts know where to look. Each clip has two anchors, and half of the steps some
frames that are propagated from them.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from encoded import EncodedClips
from halves import use_bfloat16
from model import NUM_FRAMES
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from wording import Wording

from virst_hf import VirstForVideoSegmentation, VirstOutput, VirstProcessor, VirstVideoFeatures
from virst_hf.modules.frame_store import FrameStore
from virst_hf.modules.losses import mask_iou
from virst_hf.sampling import inference_anchors, sample_training_frames
from virst_hf.training.trainer import LOSS_PARTS

__all__ = ["JointTraining"]

CLIPS_A_STEP = 4
ANCHORS, BEFORE, AFTER = 2, 1, 1
# Heavier than in Eq. 16, where masks are good from the start.
BCE_WEIGHT = 5.0
FROZEN = ("model.vision_tower", "model.segmenter.image_encoder")
# Frames of a clip that are scored between the anchors of inference.
SCORED_BETWEEN = [1, 4]


class JointTraining:
    """
    The whole model on clips.

    Args:
        model ([`VirstForVideoSegmentation`]): All of it but the two encoders is trained.
        processor ([`VirstProcessor`]): For the prompts.
        train ([`EncodedClips`]): Clips to learn from.
        held_out ([`EncodedClips`]): Clips to be scored on.
        false_relations (`bool`, *optional*, defaults to `False`): Whether each clip has one relation more, which
            holds for nothing. One relation in twelve is false otherwise, and the model does not learn to doubt them.
    """

    def __init__(
        self,
        model: VirstForVideoSegmentation,
        processor: VirstProcessor,
        train: EncodedClips,
        held_out: EncodedClips,
        false_relations: bool = False,
    ) -> None:
        self.model, self.train, self.held_out = model, train, held_out
        self.false_relations = false_relations
        self.wording, self.pad = Wording(processor), processor.tokenizer.pad_token_id
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(FROZEN))
        use_bfloat16(model.model.language_model)
        self.anchors = inference_anchors(NUM_FRAMES, model.config.anchor_config.anchor_stride)
        self.parts = nn.ModuleDict({"model": model})

    def losses(self, step: int, rng: np.random.Generator) -> Mapping[str, Tensor]:
        """The loss terms of a step, weighted."""
        choice = random.Random(int(rng.integers(2**62)))
        clips = rng.choice(len(self.train), CLIPS_A_STEP, replace=False).tolist()
        self.model.train()
        outputs = self.model(**self.batch(self.train, clips, choice, step % 2 == 1)[0])
        terms = {name: outputs[name] for name in LOSS_PARTS}
        return {**terms, "bce_loss": BCE_WEIGHT * terms["bce_loss"]}

    def scores(self) -> Mapping[str, float]:
        """Mean IoU of the supervised frames by type of expression, 1 where nothing is to be found and nothing is."""
        self.model.eval()
        found: dict[str, list[float]] = {}
        for start in range(0, min(64, len(self.held_out)), 8):
            clips = list(range(start, min(start + 8, len(self.held_out))))
            batch, types = self.batch(self.held_out, clips, None, True)
            masks = [mask for mask in batch["mask_labels"] if mask is not None]
            for kind, value in zip(types, self._ious(self.model(**batch), masks), strict=True):
                found.setdefault(kind, []).append(value)
        return {name: float(np.mean(values)) for name, values in sorted(found.items())}

    def batch(
        self, source: EncodedClips, clips: Sequence[int], choice: random.Random | None, propagate: bool
    ) -> tuple[dict[str, Any], list[str]]:
        """Arguments of the model's forward for some clips, and the type of each expression."""
        tokens = source.tokens(clips)
        features, texts, owners, types = [], [], [], []
        frames: dict[str, list] = {"mask_labels": [], "anchor_indices": [], "propagation_indices": []}
        for clip, seen in zip(clips, tokens, strict=True):
            fact, video = source.facts[clip], self.model.model.projector.mlp(seen)
            if choice is None:
                anchors, between = self.anchors, SCORED_BETWEEN
            else:
                anchors, between = sample_training_frames(NUM_FRAMES, ANCHORS, BEFORE, AFTER, choice)
            supervised = sorted([*anchors, *between] if propagate else anchors)
            features.append(self._features(source, clip, video, supervised))
            objects = source.objects([clip])[0][supervised]
            for expression in [*fact["expressions"], *self._false_relation(fact, choice)]:
                texts.append(self.wording(expression["text"], None, choice))
                owners.append(len(features) - 1)
                types.append(expression["type"])
                numbers = torch.tensor([target + 1 for target in expression["targets"]], dtype=torch.uint8)
                frames["mask_labels"].append(torch.isin(objects, numbers))
                frames["anchor_indices"].append(anchors)
                frames["propagation_indices"].append(between if propagate else [])
            # Answers are known by now; some questions are enough to keep them.
            if choice is None or clip != clips[0]:
                continue
            features.append(VirstVideoFeatures(video_embeds=video, is_image=False))
            for question, answer in fact["questions"]:
                texts.append(self.wording(question, answer, choice))
                owners.append(len(features) - 1)
                for values in frames.values():
                    values.append(None)
        ids, labels = ([text[i] for text in texts] for i in (0, 1))
        inputs = {
            "input_ids": pad_sequence(ids, True, self.pad),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], True),
            "labels": pad_sequence(labels, True, -100),
            "video_indices": torch.tensor(owners),
            "features": features,
        }
        return {**inputs, **frames}, types

    def _false_relation(self, fact: Mapping[str, Any], choice: random.Random | None) -> list[dict[str, Any]]:
        """None or one more sentence, in the form of the clip's own."""
        if not (self.false_relations and fact["false_relations"]):
            return []
        text = choice.choice(fact["false_relations"]) if choice else fact["false_relations"][0]
        return [{"text": text, "type": "false_relation", "targets": []}]

    def _features(self, source: EncodedClips, clip: int, video: Tensor, supervised: list[int]) -> VirstVideoFeatures:
        """What the model knows of a clip: projected tokens, and SAM features of the supervised frames."""
        pixels = torch.from_numpy(source.arrays["segmenter"][clip].copy())
        every = list(range(NUM_FRAMES))
        store = FrameStore(self.model.model.segmenter, pixels, every, supervised, NUM_FRAMES)
        return VirstVideoFeatures(
            video_embeds=video,
            is_image=False,
            seg_features=store.seg_features(every),
            seg_frame_indices=every,
            num_frames=NUM_FRAMES,
            frames=store,
        )

    def _ious(self, outputs: VirstOutput, masks: Sequence[Tensor]) -> list[float]:
        """Mean IoU over its frames of each expression."""
        values = []
        for logits, scores, wanted in zip(outputs.mask_logits, outputs.object_scores, masks, strict=True):
            gated = self.model.model.segmenter.resize_logits(logits).where(scores[:, None, None] > 0, -1)
            nothing = ~((gated > 0) | wanted).flatten(1).any(1)
            values.append(float((mask_iou(gated, wanted.float()) + nothing).mean()))
        return values
