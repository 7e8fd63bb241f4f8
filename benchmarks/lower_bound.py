"""What the parts of a run take: in the run, by hooks, and each call alone, which is the least that the run can take.

The lower bound of a run is the sum over its calls of these modules. Each distinct call (module, shapes, types) is
timed alone, after a warm-up, and counts as often as the run made it. Numbers of calls are checked against what there
is to do: each frame goes through the trunk once, the video through the tower once, the language model runs once over
the prefix and once over the rest of all texts, and every frame is decoded, attends to memory, and is remembered once,
where it does so at all. So it is a bound on the work, not on what the run happened to call.

Beside SAM's encoder, tower, language model, prompt decoder, memory attention, mask decoder and memory encoder it holds
what belongs to their outputs: the two convolutions that make a frame's finer maps, the projector, the initial fusion.
"""

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from statistics import median
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from virst_hf import VirstForVideoSegmentation

__all__ = ["PARTS", "STAGES", "Observer", "check_calls", "clock", "expected_calls", "lower_bound"]

# Part of each module. None of them runs inside another.
PARTS = {
    "segmenter.image_encoder": "image_encoder",
    # They belong to the mask decoder, and run where a frame is encoded.
    "segmenter.sam_mask_decoder.conv_s0": "image_encoder",
    "segmenter.sam_mask_decoder.conv_s1": "image_encoder",
    "vision_tower": "vision_tower",
    "projector": "vision_tower",
    "language_model": "language_model",
    "initial_fusion": "fusions",
    "prompt_decoder": "fusions",
    "segmenter.memory_attention": "memory_attention",
    "segmenter.sam_mask_decoder": "mask_decoder",
    "segmenter.memory_encoder": "memory_encoder",
}
STAGES = (*dict.fromkeys(PARTS.values()), "other")
# Calls of a kind that are timed alone: at most, and the seconds after which it stays at what there are.
MOST, BUDGET = 9, 1.0


def clock(device: torch.device | str = "cpu") -> float:
    """The time in seconds, with all that an accelerator was given done."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


@dataclass(frozen=True)
class Likeness:
    """What a tensor of floats looks like: to make another one, of random values."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def make(self) -> Tensor:
        """Random values in the same shape, laid out alike."""
        size = 1 + sum((length - 1) * step for length, step in zip(self.shape, self.stride, strict=True))
        values = torch.randn(max(size, 1), dtype=self.dtype, device=self.device)
        return values.as_strided(self.shape, self.stride)


@dataclass(frozen=True)
class CacheLikeness:
    """Keys and values of each layer of a cache."""

    layers: tuple[tuple[Likeness, Likeness], ...]

    def make(self) -> DynamicCache:
        """A new cache, which the language model may write into."""
        return DynamicCache([(keys.make(), values.make()) for keys, values in self.layers])


def like(value: Any) -> Any:
    """What describes an argument. Integers are kept as they are: masks and positions decide on the work."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return Likeness(tuple(value.shape), value.stride(), value.dtype, value.device)
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, Cache):
        return CacheLikeness(tuple((like(layer.keys), like(layer.values)) for layer in value.layers))
    if isinstance(value, list | tuple):
        return type(value)(like(part) for part in value)
    return {name: like(part) for name, part in value.items()} if isinstance(value, dict) else value


def made(value: Any) -> Any:
    """An argument of its description."""
    if isinstance(value, Likeness | CacheLikeness):
        return value.make()
    if isinstance(value, list | tuple):
        return type(value)(made(part) for part in value)
    return {name: made(part) for name, part in value.items()} if isinstance(value, dict) else value


def shapes(value: Any) -> Hashable:
    """What two calls of the same work have in common."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, Cache):
        return tuple(tuple(layer.keys.shape) for layer in value.layers)
    if isinstance(value, list | tuple):
        return tuple(shapes(part) for part in value)
    return tuple((name, shapes(value[name])) for name in sorted(value)) if isinstance(value, dict) else value


@dataclass
class Call:
    """Calls of a module with inputs of the same shapes."""

    name: str
    args: tuple
    kwargs: dict[str, Any]
    count: int = 0
    # Items of all inputs along their first axis: for the encoder, frames.
    items: int = 0


class Observer:
    """
    Notes the calls of a model's parts while it is entered, and the seconds of each part.

    Args:
        model ([`VirstForVideoSegmentation`]): The model.
        waits (`bool`, *optional*, defaults to `True`): Whether an accelerator's work is waited for at the borders of
            each part: the seconds mean nothing without, and the run is slower with it.
    """

    def __init__(self, model: VirstForVideoSegmentation, waits: bool = True) -> None:
        self.parts = model.model
        self.device = model.device if waits else "cpu"
        self.calls: dict[Hashable, Call] = {}
        self.seconds = dict.fromkeys(STAGES[:-1], 0.0)
        self.hooks: list[torch.utils.hooks.RemovableHandle] = []
        self.started = 0.0

    def __enter__(self) -> Self:
        for name, part in PARTS.items():
            module = self.parts.get_submodule(name)
            self.hooks.append(module.register_forward_pre_hook(self._before(name), with_kwargs=True))
            self.hooks.append(module.register_forward_hook(self._after(part)))
        return self

    def __exit__(self, *_: object) -> None:
        while self.hooks:
            self.hooks.pop().remove()

    def _before(self, name: str) -> Callable:
        def note(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            key = name, shapes(args), shapes(kwargs)
            if key not in self.calls:
                self.calls[key] = Call(name, like(args), like(kwargs))
            self.calls[key].count += 1
            self.calls[key].items += len(args[0]) if args else 0
            self.started = clock(self.device)

        return note

    def _after(self, part: str) -> Callable:
        def note(module: nn.Module, args: tuple, output: object) -> None:
            self.seconds[part] += clock(self.device) - self.started

        return note

    def count(self, name: str) -> int:
        """Calls of a module."""
        return sum(call.count for call in self.calls.values() if call.name == name)

    @property
    def frames_encoded(self) -> int:
        """Frames that went through SAM's encoder."""
        return sum(call.items for call in self.calls.values() if call.name == "segmenter.image_encoder")

    def stages(self, total: float) -> dict[str, float]:
        """Seconds of each part, and of all the rest, of `total` seconds."""
        return {**self.seconds, "other": max(0.0, total - sum(self.seconds.values()))}


def expected_calls(num_frames: int, num_anchors: int) -> dict[str, int]:
    """Calls that the exact path has to make, for any number of expressions on one video.

    Args:
        num_frames (`int`): Frames of the video.
        num_anchors (`int`): Anchors among them, fewer than all: else nothing has to be remembered.

    Returns:
        `dict[str, int]`: Calls of each module; SAM's encoder takes several frames a call, and is not among them.
    """
    propagated = num_frames - num_anchors
    return {
        "vision_tower": 1,
        "language_model": 2,  # prefix; what follows it, of all texts
        "prompt_decoder": 1,
        "segmenter.sam_mask_decoder": num_frames,
        "segmenter.memory_attention": propagated,
        # Nothing looks at the memory of the frame that is propagated last.
        "segmenter.memory_encoder": num_anchors + propagated - 1 if propagated else 0,
    }


def check_calls(observer: Observer, num_frames: int, num_anchors: int) -> None:
    """Raise an error unless an exact run did all that there is to do, and nothing twice.

    Args:
        observer ([`Observer`]): What was noted of the run.
        num_frames (`int`): Frames of the video.
        num_anchors (`int`): Anchors among them.

    Raises:
        RuntimeError: A number of calls, or of encoded frames, is another one.
    """
    found = {name: observer.count(name) for name in expected_calls(num_frames, num_anchors)}
    found["frames encoded"] = observer.frames_encoded
    expected = {**expected_calls(num_frames, num_anchors), "frames encoded": num_frames}
    wrong = [f"{name} {found[name]}, expected {expected[name]}" for name in expected if found[name] != expected[name]]
    if wrong:
        raise RuntimeError(f"The exact run made other calls than there is work: {'; '.join(wrong)}.")


@torch.no_grad()
def seconds_alone(module: nn.Module, call: Call, device: torch.device | str) -> float:
    """Seconds of one call with random inputs: the median of a few, after one that is not counted.

    A call of more than `BUDGET` seconds is made twice, and the first counts, too: the run has warmed up all it needs.
    """
    times: list[float] = []
    while len(times) < 2 or (times[0] <= BUDGET and len(times) <= MOST and sum(times[1:]) < BUDGET):
        args, kwargs = made(call.args), made(call.kwargs)
        start = clock(device)
        module(*args, **kwargs)
        times.append(clock(device) - start)
    return median(times if times[0] > BUDGET else times[1:])


def lower_bound(model: VirstForVideoSegmentation, observer: Observer) -> dict[str, dict[str, float]]:
    """Calls of a run, and the seconds that they take alone.

    Args:
        model ([`VirstForVideoSegmentation`]): The model of the run.
        observer ([`Observer`]): What was noted of the run; it must not be entered any more.

    Returns:
        `dict[str, dict[str, float]]`: For each module `calls` and `seconds`; the bound is the sum of the seconds.
    """
    out = {name: {"calls": 0, "seconds": 0.0} for name in PARTS}
    for call in observer.calls.values():
        alone = seconds_alone(model.model.get_submodule(call.name), call, model.device)
        out[call.name]["calls"] += call.count
        out[call.name]["seconds"] += call.count * alone
    return out
