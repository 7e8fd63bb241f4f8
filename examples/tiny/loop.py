"""The loop that the parts of the pre-training share: a schedule, a progress bar, a log, checkpoints to go on from."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, distributed, nn
from tqdm import tqdm

from virst_hf.rendering import replacing

__all__ = ["pretrain"]

WARMUP = 100
# Share of the steps, at the end, over which the learning rate falls to zero.
DECAY = 0.35
# Steps between two validations, which write a checkpoint as well.
EVERY = 200
MAX_NORM = 1.0

Losses = Callable[[int, np.random.Generator], Mapping[str, Tensor]]
Scores = Callable[[], Mapping[str, float]]


def pretrain(
    folder: Path,
    name: str,
    parts: nn.ModuleDict,
    losses: Losses,
    scores: Scores,
    steps: int,
    matrices: Callable[[str], bool],
    learning_rate: float = 1e-3,
    matrix_rate: float = 3e-3,
) -> None:
    """Train `parts` for a number of steps, or go on where an earlier call was stopped.

    Step `s` draws from a generator of its own, so that a run in pieces is the run in one piece. Processes of
    torchrun draw different clips and average their gradients. The weights end up in `folder/name.pt`; while that is
    there, a call does nothing but load it.

    Args:
        folder (`pathlib.Path`): Of the recipe.
        name (`str`): Of this part of it.
        parts (`torch.nn.ModuleDict`): What trains.
        losses (`Callable`): Number of a step and its generator to the terms of its loss.
        scores (`Callable`): Numbers on clips that are held out, for the bar and the log.
        steps (`int`): How many.
        matrices (`Callable`): Whether a parameter of that name and of two dimensions is trained by Muon, which takes
            far fewer steps than AdamW to get a small transformer going. AdamW has the others.
        learning_rate (`float`, *optional*, defaults to 1e-3): Of AdamW.
        matrix_rate (`float`, *optional*, defaults to 3e-3): Of Muon.
    """
    done = folder / f"{name}.pt"
    if done.is_file():
        parts.load_state_dict(torch.load(done, weights_only=True))
        return
    named = [(key, p) for key, p in parts.named_parameters() if p.requires_grad]
    turned = [p for key, p in named if p.ndim == 2 and matrices(key)]
    others = [p for key, p in named if not (p.ndim == 2 and matrices(key))]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=learning_rate, weight_decay=0.02, betas=(0.9, 0.98)),
        torch.optim.Muon(turned, lr=matrix_rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
    ]
    checkpoint = folder / f"{name}.checkpoint.pt"
    first = _resume(checkpoint, parts, optimizers)
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    bar = tqdm(range(first, steps), initial=first, total=steps, desc=name, unit="step", disable=rank > 0)
    start = time.monotonic()
    for step in bar:
        scale = min(1, (step + 1) / WARMUP) * min(1, (steps - step) / (DECAY * steps))
        for optimizer, rate in zip(optimizers, (learning_rate, matrix_rate), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * scale
        torch.manual_seed(step + rank * steps)
        terms = losses(step, np.random.default_rng([17, step, rank]))
        parts.zero_grad()
        sum(terms.values()).backward()
        _average_gradients(parts)
        nn.utils.clip_grad_norm_(parts.parameters(), MAX_NORM)
        for optimizer in optimizers:
            optimizer.step()
        if rank == 0 and ((step + 1) % EVERY == 0 or step + 1 == steps):
            with torch.no_grad():
                numbers = {key: round(float(value), 3) for key, value in scores().items()}
            bar.set_postfix(numbers)
            seconds = round(time.monotonic() - start)
            line = {
                "step": step + 1,
                "seconds": seconds,
                **numbers,
                **{f"loss {key}": round(term.item(), 4) for key, term in terms.items()},
            }
            with open(folder / f"{name}.jsonl", "a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
            states = [optimizer.state_dict() for optimizer in optimizers]
            _save(checkpoint, {"parts": parts.state_dict(), "optimizers": states, "step": step + 1})
    if rank == 0:
        _save(done, parts.state_dict())
        checkpoint.unlink(missing_ok=True)


def _average_gradients(parts: nn.ModuleDict) -> None:
    """Over all processes, in one message."""
    if not distributed.is_initialized():
        return
    parameters = [p for p in parts.parameters() if p.requires_grad]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    joined = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(joined)
    joined /= distributed.get_world_size()
    for parameter, mean in zip(parameters, joined.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = mean.view_as(parameter)


def _resume(checkpoint: Path, parts: nn.ModuleDict, optimizers: list[torch.optim.Optimizer]) -> int:
    """Load a checkpoint if there is one; gives the step to go on with."""
    if not checkpoint.is_file():
        return 0
    state = torch.load(checkpoint, weights_only=True)
    parts.load_state_dict(state["parts"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state["step"]


def _save(path: Path, state: object) -> None:
    """A file that is whole or not there."""
    with replacing(path) as partial:
        torch.save(state, partial)
