import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from virst_hf.errors import VirstError
from virst_hf.sampling import (
    bin_centres,
    closest_anchors,
    inference_anchors,
    jittered_bins,
    sample_training_frames,
    seg_frame_positions,
    vlm_frame_indices,
)


@given(st.integers(1, 5000), st.integers(1, 64))
def test_bin_centres_match_the_formula(length, bins):
    assert bin_centres(length, bins) == [int(np.floor((i + 0.5) * length / bins)) for i in range(bins)]


@given(st.integers(1, 5000))
def test_vlm_frames(num_frames):
    indices = vlm_frame_indices(num_frames)
    assert len(indices) == min(64, max(num_frames, 8)) // 4 * 4
    assert indices == sorted(indices) and indices[0] >= 0 and indices[-1] <= num_frames - 1
    if num_frames >= 8:
        assert len(set(indices)) == len(indices)
    else:
        assert indices == [min(i, num_frames - 1) for i in range(8)]


@given(st.integers(1, 300), st.integers(1, 64), st.integers(0, 99))
def test_jitter_stays_in_its_bin(length, bins, seed):
    length = max(length, bins)
    drawn = jittered_bins(length, bins, random.Random(seed))
    assert len(drawn) == bins and sorted(set(drawn)) == drawn
    width = length / bins
    for i, frame in enumerate(drawn):
        # A frame t fills [t, t + 1): it overlaps its bin, up to the one frame by which a border may move.
        assert i * width - 1 < frame < (i + 1) * width + 1
    assert drawn == jittered_bins(length, bins, random.Random(seed))


@pytest.mark.parametrize(("length", "bins"), [(8, 8), (10, 8), (12, 8), (19, 8), (60, 8), (70, 64)])
def test_jitter_reaches_every_frame_and_the_centres(length, bins):
    rng = random.Random(0)
    drawn = np.array([jittered_bins(length, bins, rng) for _ in range(600)])
    assert set(drawn.ravel()) == set(range(length))
    for i, centre in enumerate(bin_centres(length, bins)):
        assert centre in drawn[:, i]


@given(st.integers(1, 300), st.integers(0, 99))
def test_jittered_vlm_frames(num_frames, seed):
    centres = vlm_frame_indices(num_frames)
    drawn = vlm_frame_indices(num_frames, rng=random.Random(seed))
    assert len(drawn) == len(centres) and drawn == sorted(drawn) and 0 <= drawn[0] and drawn[-1] < num_frames
    if num_frames <= 8:
        assert drawn == centres


def test_examples_worked_out_by_hand():
    assert vlm_frame_indices(10) == [0, 1, 3, 4, 5, 6, 8, 9]
    assert vlm_frame_indices(128)[:3] == [1, 3, 5]
    assert seg_frame_positions(64)[:3] == [1, 3, 5] and len(seg_frame_positions(64)) == 32
    assert seg_frame_positions(16) == list(range(16))
    assert inference_anchors(16) == [0, 5, 10, 15]
    assert inference_anchors(12) == [0, 6, 11]  # 5.5 rounds to the even 6
    assert inference_anchors(20) == [0, 5, 10, 14, 19]  # 4.75, 9.5 (to the even 10), 14.25
    assert inference_anchors(3) == [0]


@given(st.integers(1, 64), st.integers(1, 8))
def test_inference_anchors_are_exact_and_round_half_to_even(num_seg, stride):
    count = max(1, num_seg // stride)
    want = [round(Fraction(i * (num_seg - 1), max(1, count - 1))) for i in range(count)]
    assert inference_anchors(num_seg, stride) == want


@pytest.mark.parametrize("num_seg", [1, *range(8, 33, 4)])
def test_inference_anchors_match_linspace(num_seg):
    # For every T_seg there is. Elsewhere a float may miss the exact half (62 frames: 30.5 becomes 30.500000000000004).
    want = torch.linspace(0, num_seg - 1, max(1, num_seg // 4)).round().long().tolist()
    assert inference_anchors(num_seg) == want


@given(st.integers(-5, 70), st.sets(st.integers(0, 64), min_size=1), st.integers(1, 10))
def test_closest_anchors_are_the_nearest(frame, anchors, alpha):
    chosen = closest_anchors(frame, list(anchors), alpha)
    assert chosen == sorted(chosen) and len(chosen) == min(alpha, len(anchors))
    rest = set(anchors) - set(chosen)
    worst = max((abs(k - frame), k) for k in chosen)
    assert all((abs(k - frame), k) > worst for k in rest)


def brute_force_propagation(anchors, num_seg, before, after):
    out = set()
    for t in range(num_seg):
        if t not in anchors and any(-before <= t - k <= after for k in anchors):
            out.add(t)
    return sorted(out)


@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 3), st.integers(0, 6), st.integers(0, 999))
def test_training_frames_follow_algorithm_1(num_seg, alpha, before, after, seed):
    anchors, propagation = sample_training_frames(num_seg, alpha, before, after, random.Random(seed))
    assert len(anchors) == len(set(anchors)) == min(alpha, num_seg)
    assert propagation == brute_force_propagation(anchors, num_seg, before, after)
    assert sample_training_frames(num_seg, alpha, before, after, random.Random(seed)) == (anchors, propagation)


def test_training_anchors_are_uniform():
    rng = random.Random(0)
    counts = np.zeros(8)
    for _ in range(4000):
        counts[sample_training_frames(8, 2, rng=rng)[0]] += 1
    assert abs(counts - 1000).max() < 150


@pytest.mark.parametrize(
    "call",
    [
        lambda: vlm_frame_indices(0),
        lambda: vlm_frame_indices(5, max_frames=2),
        lambda: bin_centres(4, 0),
        lambda: jittered_bins(4, 5, random.Random(0)),
        lambda: jittered_bins(4, 0, random.Random(0)),
        lambda: inference_anchors(0),
        lambda: sample_training_frames(0),
    ],
)
def test_bad_sizes_are_refused(call):
    with pytest.raises(VirstError, match="found|has 0|are 4|must"):
        call()
