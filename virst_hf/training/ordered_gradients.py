"""Gradients that reach every trained parameter, in one order, whatever a batch holds: what DeepSpeed's ZeRO-2 needs.

ZeRO-2 (DeepSpeed 0.19) puts gradients into buckets as they arrive, and adds up the buckets of all processes by
position. So all processes must have the same gradients in the same order. Ours do not: a question has no masks, and a
still image no memory. Then one process waits for ever, or the gradient of one weight is added to that of another.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.utils import ModelOutput

__all__ = ["order_gradients"]


class HandOut(torch.autograd.Function):
    """The loss as a function of parameters whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: Sequence[Tensor | None], *parameters: Tensor) -> Tensor:
        """The value of the loss."""
        ctx.gradients = gradients
        ctx.save_for_backward(*parameters)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple:
        """The gradients, zeros where there is none."""
        gradients, ctx.gradients = ctx.gradients, None
        pairs = zip(gradients, ctx.saved_tensors, strict=True)
        return None, None, *(torch.zeros_like(p) if g is None else g * scale.to(g.dtype) for g, p in pairs)


def hand_out(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """The same loss, with its gradients computed: going back from it only hands them out.

    Args:
        loss (`torch.Tensor`): A scalar with a graph, which is used up.
        parameters (`Sequence[torch.nn.Parameter]`): All that train, in the same order in each process.

    Returns:
        `torch.Tensor`: The loss. Its backward pass gives each parameter its gradient, zeros where the loss does not
        depend on it. It may be scaled, as any loss.
    """
    # Going back is no part of the forward pass that this is called in.
    with torch.autocast(loss.device.type, enabled=False):
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return HandOut.apply(loss.detach(), gradients, *parameters)


def order_gradients(model: nn.Module) -> RemovableHandle:
    """Make the loss that a model returns in training one whose gradients come all, and in the order of its parameters.

    They are computed inside the forward pass, and come at once: until they are reduced, as much memory is in use as
    the trained parameters take, which ZeRO-2 would else give back bucket by bucket. Not for ZeRO-3, nor for reentrant
    activation checkpointing (Transformers' default is the other one).

    Args:
        model (`torch.nn.Module`): Its forward pass returns a `ModelOutput` with a `loss`; other tensors of the output
            lose their graph.

    Returns:
        `torch.utils.hooks.RemovableHandle`: Undoes it.
    """

    def replace_loss(module: nn.Module, args: tuple, output: ModelOutput) -> ModelOutput:
        loss = output.get("loss")
        if not module.training or loss is None or not loss.requires_grad:
            return output
        parts = {name: _detached(value) for name, value in output.items()}
        parts["loss"] = hand_out(loss, [p for p in module.parameters() if p.requires_grad])
        return type(output)(**parts)

    return model.register_forward_hook(replace_loss)


def _detached(value: object) -> object:
    if isinstance(value, tuple):
        return tuple(_detached(part) for part in value)
    return value.detach() if isinstance(value, Tensor) else value
