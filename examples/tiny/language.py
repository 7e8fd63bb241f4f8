"""Pre-training of projector, language model and both fusions, on what the frozen encoders gave.

What is asked, beside the answers to questions: of each video token, how its object has moved, turned and grown so far
(half-way up, so that the layers above can use it); of the [SEG] states of an expression, which video tokens show what
is meant, and where it is in each frame; of the prompts of each frame, in which cells of SAM's map it is. So sentences
are understood, and prompts know where to look, before there is any mask.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from clips import HEADINGS, MOTIONS
from encoded import PAST, VIDEO_TOKENS, EncodedClips
from halves import use_bfloat16
from model import FRAME_TOKENS, NUM_FRAMES, NUM_SEG_TOKENS
from torch import Tensor, nn
from torch.nn import functional as F
from wording import Wording

from virst_hf import VirstForVideoSegmentation, VirstProcessor
from virst_hf.modules.text import packed_states

__all__ = ["LanguageTraining"]

CLIPS_A_STEP = 8
# Layer whose output is asked how objects have moved.
HALF_WAY = 1
NOISE = 0.05
# Share of a token or cell that an object must have for it to be the object's, and at most for it to be nobody's.
MINE, NOBODYS = 0.25, 0.05
KEY_WIDTH = 64


class LanguageTraining:
    """
    Projector, language model, its head and both fusions, with the questions above.

    Args:
        model ([`VirstForVideoSegmentation`]): These parts of it are trained.
        processor ([`VirstProcessor`]): For the prompts.
        train ([`EncodedClips`]): Clips to learn from.
        held_out ([`EncodedClips`]): Clips to be scored on.
    """

    def __init__(
        self, model: VirstForVideoSegmentation, processor: VirstProcessor, train: EncodedClips, held_out: EncodedClips
    ) -> None:
        self.wording, self.train, self.held_out = Wording(processor), train, held_out
        self.text, self.projector, self.head = model.model.language_model, model.model.projector.mlp, model.lm_head
        self.fusion, self.prompter = model.model.initial_fusion, model.model.prompt_decoder
        use_bfloat16(self.text)
        self.seg_id, self.video_id = model.config.seg_token_id, model.config.video_token_id
        width, channels = model.config.text_config.hidden_size, model.config.segmenter_config.hidden_size
        heads = {
            "seg_key": nn.Linear(NUM_SEG_TOKENS * width, KEY_WIDTH),
            "token_key": nn.Linear(width, KEY_WIDTH),
            "where": _two_layers(NUM_SEG_TOKENS * width, NUM_FRAMES * 4),
            "prompt_key": nn.Linear(NUM_SEG_TOKENS * channels, KEY_WIDTH),
            "cell_key": nn.Linear(channels, KEY_WIDTH),
            "prompt_where": _two_layers(NUM_SEG_TOKENS * channels, 4),
            "past": _two_layers(width, PAST + len(MOTIONS) + len(HEADINGS)),
        }
        parts = {"text": self.text, "projector": self.projector, "head": self.head}
        parts |= {"fusion": self.fusion, "prompter": self.prompter}
        self.parts = nn.ModuleDict({**parts, **heads})
        for weight in self.text.parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=0.02)
        nn.init.normal_(self.text.embed_tokens.weight, std=0.3)
        self._half_way: list[Tensor] = []
        self.text.layers[HALF_WAY].register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._half_way.append((output[0] if isinstance(output, tuple) else output).float())

    def losses(self, step: int, rng: np.random.Generator) -> Mapping[str, Tensor]:
        """The loss terms of a step."""
        chosen = rng.choice(len(self.train), CLIPS_A_STEP, replace=False).tolist()
        return self.ask(self.train, chosen, random.Random(int(rng.integers(2**62))))[0]

    def scores(self) -> Mapping[str, float]:
        """Right answers, known motions, and by type the IoU of the tokens, and of the cells, that are pointed to."""
        found: dict[str, list[float]] = {}
        for start in range(0, min(128, len(self.held_out)), 16):
            clips = list(range(start, min(start + 16, len(self.held_out))))
            for name, values in self.ask(self.held_out, clips, None)[1].items():
                found.setdefault(name, []).extend(values)
        return {name: float(np.mean(values)) for name, values in sorted(found.items())}

    def ask(
        self, source: EncodedClips, clips: Sequence[int], choice: random.Random | None
    ) -> tuple[dict[str, Tensor], dict[str, list[float]]]:
        """Loss terms and scores on some clips; with `choice` tokens are noisy and templates drawn."""
        tokens = source.tokens(clips)
        if choice is not None:
            tokens = tokens + NOISE * torch.randn_like(tokens)
        video, maps = self.projector(tokens), [source.maps(clip) for clip in clips]
        facts = [source.facts[clip] for clip in clips]
        asked = [(clip, e) for clip, fact in zip(clips, facts, strict=True) for e in fact["expressions"]]
        groups = [[self.wording(e["text"], None, choice) for e in fact["expressions"]] for fact in facts]
        questions = [[self.wording(q, a, choice) for q, a in fact["questions"]] for fact in facts]
        self._half_way.clear()
        states, starts = self._run(video, groups, maps)
        prompts = [prompt for group in groups for prompt in group]
        terms, scores = self._past_terms(source, clips, starts)
        targets = _targets(source, asked)
        found, pointed = self._expression_terms(source, asked, targets, states, prompts)
        prompted, right = self._prompt_terms(source, clips, asked, targets, states, prompts, maps)
        logits, wanted = self._token_logits(self._run(video, questions)[0], [q for group in questions for q in group])
        answers = {"answers": 1.5 * F.cross_entropy(torch.cat(logits), torch.cat(wanted))}
        scores["answers"] = [float((said.argmax(-1) == word).all()) for said, word in zip(logits, wanted, strict=True)]
        for (_, expression), token_iou, cell_iou in zip(asked, pointed.tolist(), right.tolist(), strict=True):
            scores.setdefault(expression["type"], []).append(token_iou)
            scores.setdefault(f"prompt {expression['type']}", []).append(cell_iou)
        return {**terms, **found, **prompted, **answers}, scores

    def _run(
        self, video: Tensor, prompts: Sequence[Sequence[tuple[Tensor, Tensor]]], maps: Sequence[Tensor] | None = None
    ) -> tuple[list[Tensor], list[int]]:
        """Hidden states of all texts, and for each clip where its video tokens begin."""
        packs, starts = [], []
        for i, (tokens, group) in enumerate(zip(video, prompts, strict=True)):
            rows = []
            for ids, _ in group:
                place = ids == self.video_id
                rows.append(self.text.embed_tokens(ids.masked_fill(place, 0)).masked_scatter(place[:, None], tokens))
            if maps is not None:
                asking = [ids == self.seg_id for ids, _ in group]
                fused = self.fusion(torch.stack([row[seg] for row, seg in zip(rows, asking, strict=True)]), maps[i])
                rows = [r.masked_scatter(s[:, None], f) for r, s, f in zip(rows, asking, fused, strict=True)]
            first = int((group[0][0] == self.video_id).nonzero()[0])
            starts.append(first)
            packs.append((rows, first + VIDEO_TOKENS))
        return packed_states(self.text, packs), starts

    def _token_logits(
        self, states: Sequence[Tensor], prompts: Sequence[tuple[Tensor, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Logits and ids of the labelled tokens of each text, [SEG] left out."""
        logits, wanted = [], []
        for hidden, (_, labels) in zip(states, prompts, strict=True):
            kept = (labels[1:] != -100) & (labels[1:] != self.seg_id)
            logits.append(self.head(hidden[:-1][kept]))
            wanted.append(labels[1:][kept])
        return logits, wanted

    def _past_terms(
        self, source: EncodedClips, clips: Sequence[int], starts: Sequence[int]
    ) -> tuple[dict[str, Tensor], dict[str, list[float]]]:
        """What each video token says, half-way, of the past of its object; in the last frame of its motion as well."""
        states, wanted, classes, last = [], [], [], []
        for hidden, clip, first in zip(self._half_way[0], clips, starts, strict=True):
            share, owner = source.owners(clip).max(-1)
            places = torch.nonzero(share > MINE)[:, 0]
            frame, owner = places // FRAME_TOKENS, owner[places]
            states.append(hidden[first : first + VIDEO_TOKENS][places])
            wanted.append(source.past(clip)[owner, frame])
            classes.append(torch.stack((source.look.motion[clip][owner], source.look.heading[clip][owner])))
            last.append(frame == NUM_FRAMES - 1)
        said = self.parts["past"](torch.cat(states))
        motion, heading = said[torch.cat(last)][:, PAST:].split([len(MOTIONS), len(HEADINGS)], -1)
        motions, headings = torch.cat(classes, 1)[:, torch.cat(last)]
        terms = {
            "past": 6 * F.smooth_l1_loss(said[:, :PAST], torch.cat(wanted)),
            "motion": F.cross_entropy(motion, motions) + 0.5 * F.cross_entropy(heading, headings),
        }
        return terms, {"motions": (motion.argmax(-1) == motions).float().tolist()}

    def _expression_terms(
        self,
        source: EncodedClips,
        asked: Sequence[tuple[int, dict[str, Any]]],
        targets: tuple[Tensor, Tensor, Tensor],
        states: Sequence[Tensor],
        prompts: Sequence[tuple[Tensor, Tensor]],
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Which tokens show what is meant, where it is in each frame, and the fixed words of the answer."""
        seg = torch.stack([h[ids == self.seg_id].flatten() for h, (ids, _) in zip(states, prompts, strict=True)])
        tokens = torch.stack([h[ids == self.video_id] for h, (ids, _) in zip(states, prompts, strict=True)])
        keys = self.parts["seg_key"](seg)[:, None] * self.parts["token_key"](tokens)
        pointed = keys.sum(-1) / KEY_WIDTH**0.5 - 2
        share = torch.stack([source.owners(clip)[:, e["targets"]].sum(-1) for clip, e in asked])
        logits, wanted = self._token_logits(states, prompts)
        terms = {
            "pointer": 5 * _pointer_loss(pointed, share),
            **_where_terms("", self.parts["where"](seg).unflatten(-1, (NUM_FRAMES, 4)), targets),
            "words": 0.1 * F.cross_entropy(torch.cat(logits), torch.cat(wanted)),
        }
        return terms, _pointer_iou(pointed, share)

    def _prompt_terms(
        self,
        source: EncodedClips,
        clips: Sequence[int],
        asked: Sequence[tuple[int, dict[str, Any]]],
        targets: tuple[Tensor, Tensor, Tensor],
        states: Sequence[Tensor],
        prompts: Sequence[tuple[Tensor, Tensor]],
        maps: Sequence[Tensor],
    ) -> tuple[dict[str, Tensor], Tensor]:
        """In which cells of each frame the prompts of that frame find what is meant, and where."""
        seg = [h[ids == self.seg_id] for h, (ids, _) in zip(states, prompts, strict=True)]
        said, pointed, shares = [], [], []
        for clip, grid in zip(clips, maps, strict=True):
            mine = [i for i, (owner, _) in enumerate(asked) if owner == clip]
            made = self.prompter(torch.stack([seg[i] for i in mine]), grid).transpose(1, 2).flatten(2)
            cells = self.parts["cell_key"](grid.flatten(2).transpose(1, 2))
            pointed.append(torch.einsum("etc,tsc->ets", self.parts["prompt_key"](made), cells) / KEY_WIDTH**0.5 - 2)
            said.append(self.parts["prompt_where"](made))
            owned = source.cells(clip)
            shares.append(torch.stack([owned[asked[i][1]["targets"]].sum(0) for i in mine]))
        cell, share = torch.cat(pointed), torch.cat(shares)
        terms = {
            "prompt pointer": 5 * _pointer_loss(cell, share),
            **_where_terms("prompt ", torch.cat(said), targets),
        }
        return terms, _pointer_iou(cell, share).mean(-1)


def _targets(source: EncodedClips, asked: Sequence[tuple[int, dict[str, Any]]]) -> tuple[Tensor, Tensor, Tensor]:
    """Place `(expressions, NUM_FRAMES, 2)`, size and visibility `(expressions, NUM_FRAMES)` of what is meant."""
    places, sizes = zip(*(source.middle(clip, e["targets"]) for clip, e in asked), strict=True)
    visible = [source.look.visible[clip, e["targets"]].sum(0).clamp(max=1) for clip, e in asked]
    return torch.stack(places), torch.stack(sizes), torch.stack(visible)


def _where_terms(who: str, said: Tensor, targets: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
    """How far `said`, of shape `(expressions, NUM_FRAMES, 4)`, is from place, size and visibility."""
    middle, size, visible = targets
    count = visible.sum().clamp(min=1)
    return {
        f"{who}place": 3 * ((said[..., :2] - middle).abs().sum(-1) * visible).sum() / count,
        f"{who}size": 2 * ((said[..., 2] - size).abs() * visible).sum() / count,
        f"{who}visible": F.binary_cross_entropy_with_logits(said[..., 3], visible),
    }


def _two_layers(width: int, answers: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 256), nn.GELU(), nn.Linear(256, answers))


def _pointer_loss(logits: Tensor, share: Tensor) -> Tensor:
    """Binary cross entropy where it is clear whose a token or cell is."""
    mine = share > MINE
    known = mine | (share <= NOBODYS)
    return F.binary_cross_entropy_with_logits(logits[known], mine[known].float())


def _pointer_iou(logits: Tensor, share: Tensor) -> Tensor:
    """IoU over the last axis of what is pointed to; 1 where nothing should be and is."""
    mine = share > MINE
    chosen = (logits > 0) & (mine | (share <= NOBODYS))
    union = (chosen | mine).sum(-1)
    return torch.where(union > 0, (chosen & mine).sum(-1) / union.clamp(min=1), 1.0)
