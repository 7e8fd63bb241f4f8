"""Prompts of expressions and questions as token ids, each made once."""

import random

import torch
from model import NUM_FRAMES
from torch import Tensor

from virst_hf import VirstProcessor
from virst_hf.prompts import ANSWER_TEMPLATES, segmentation_templates

__all__ = ["Wording"]


class Wording:
    """
    Ids and labels of texts about a clip.

    Args:
        processor ([`VirstProcessor`]): Of the model.
    """

    def __init__(self, processor: VirstProcessor) -> None:
        self.processor = processor
        self._known: dict[tuple, tuple[Tensor, Tensor]] = {}

    def __call__(self, text: str, answer: str | None = None, choice: random.Random | None = None) -> tuple:
        """Ids and labels `(length,)` of an expression, or of a question with its answer; `choice` draws templates."""
        template = choice.randrange(len(segmentation_templates(text))) if choice and answer is None else 0
        said = choice.randrange(len(ANSWER_TEMPLATES)) if choice and answer is None else 0
        key = (text, answer, template, said)
        if key not in self._known:
            inputs = self.processor(
                text=[text],
                task="segment" if answer is None else "ask",
                answers=None if answer is None else [answer],
                template=template,
                answer_template=said,
                num_vlm_frames=[NUM_FRAMES],
                return_labels=True,
                return_tensors=None,
            )
            self._known[key] = (torch.tensor(inputs["input_ids"][0]), torch.tensor(inputs["labels"][0]))
        return self._known[key]
