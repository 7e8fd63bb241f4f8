"""Every loss against a loop over pixels in plain Python."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from virst_hf.modules.losses import dice_loss, iou_loss, mask_bce_loss, mask_iou, occlusion_loss, token_loss

frames = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5))
cases = frames.flatmap(
    lambda shape: st.tuples(
        hnp.arrays(np.float32, shape, elements=st.floats(-8, 8, width=32)), hnp.arrays(np.bool_, shape)
    )
)


def sigmoid(x):
    return 1 / (1 + math.exp(-float(x)))


def bce(x, y):
    return -math.log(sigmoid(x)) if y else -math.log(sigmoid(-float(x)))


@settings(deadline=None)
@given(cases)
def test_mask_losses_against_loops(case):
    logits, target = case
    want_bce, want_dice, want_iou = [], [], []
    for x, y in zip(logits, target, strict=True):
        pixels = list(zip(x.ravel(), y.ravel(), strict=True))
        want_bce.append(sum(bce(a, b) for a, b in pixels) / len(pixels))
        overlap = sum(sigmoid(a) * b for a, b in pixels) / 1000
        total = sum(sigmoid(a) + b for a, b in pixels) / 1000
        want_dice.append(1 - (2 * overlap + 1e-6) / (total + 1e-6))
        both = sum(a > 0 and b for a, b in pixels)
        either = sum(a > 0 or b for a, b in pixels)
        want_iou.append(both / (either + 1e-6))
    got, gt = torch.from_numpy(logits), torch.from_numpy(target)
    assert mask_bce_loss(got, gt).item() == pytest.approx(np.mean(want_bce), rel=1e-4, abs=1e-6)
    assert dice_loss(got, gt).item() == pytest.approx(np.mean(want_dice), rel=1e-3, abs=1e-4)
    assert mask_iou(got, gt).tolist() == pytest.approx(want_iou, abs=1e-5)


def test_iou_loss_is_l1_and_gives_the_mask_no_gradient():
    logits = torch.tensor([[[3.0, -3.0], [3.0, -3.0]]], requires_grad=True)
    target = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    score = torch.tensor([0.9], requires_grad=True)
    loss = iou_loss(score, logits, target)
    assert loss.item() == pytest.approx(0.9 - 1 / 3, abs=1e-5)
    loss.backward()
    assert score.grad.item() == 1.0 and logits.grad is None


def test_occlusion_loss():
    target = torch.zeros(2, 3, 3)
    target[0, 1, 1] = 1
    want = (bce(0.7, True) + bce(0.7, False)) / 2
    assert occlusion_loss(torch.tensor([0.7, 0.7]), target).item() == pytest.approx(want, rel=1e-5)


def test_token_loss():
    logits = torch.tensor([[0.0, 1.0, 2.0], [1.0, 1.0, 1.0]])
    want = [math.log(sum(math.exp(v) for v in row)) - row[i] for row, i in ((logits[0].tolist(), 2), ([1.0] * 3, 0))]
    assert token_loss(logits, torch.tensor([2, 0])).item() == pytest.approx(sum(want) / 2, rel=1e-5)
