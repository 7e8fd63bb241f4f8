import math

import numpy as np
import torch

from virst_hf import VirstVisionConfig
from virst_hf.modules.projector import VirstProjector, merge_tokens
from virst_hf.modules.vision_tower import VirstVisionTower, position_table

CONFIG = VirstVisionConfig(
    hidden_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=64, tokens_per_clip=8, pretrained_grid=4
)


def test_position_table_without_interpolation():
    table = position_table(4, 16, 3, 3)
    assert table.shape == (36, 16) and table.dtype == torch.float32
    for position in (0, 5, 35):
        for channel in range(16):
            angle = position / 10000 ** (2 * (channel // 2) / 16)
            want = math.sin(angle) if channel % 2 == 0 else math.cos(angle)
            assert abs(table[position, channel].item() - want) < 1e-5


def test_tower_keeps_the_layers_up_to_the_selected_one():
    tower = VirstVisionTower(CONFIG)
    assert len(tower.blocks) == 2
    assert tower(torch.randn(2, 4, 3, 64, 64)).shape == (2, 4 * 16, 16)
    assert tower(torch.randn(2, 1, 3, 64, 64)).shape == (2, 16, 16)


def test_frames_of_a_clip_attend_to_one_another_and_clips_do_not():
    torch.manual_seed(0)
    tower = VirstVisionTower(CONFIG).eval()
    clips = torch.randn(2, 4, 3, 64, 64)
    changed = clips.clone()
    changed[0, 3] += 1
    with torch.no_grad():
        before, after = tower(clips), tower(changed)
    assert (before[0, :16] - after[0, :16]).abs().max() > 1e-4  # another frame of the same clip
    assert torch.equal(before[1], after[1])


def merge_by_loops(tokens, target, heads):
    """Bipartite soft matching in plain Python lists, one row of tokens."""
    tokens = [(np.asarray(t, dtype=np.float64), 1.0) for t in tokens]
    while len(tokens) > target:
        merges = min(len(tokens) - target, len(tokens) // 2)
        even, odd = tokens[0::2], tokens[1::2]

        def metric(t):
            m = t[0].reshape(heads, -1).mean(0)
            return m / np.linalg.norm(m)

        scores = []
        for i, e in enumerate(even):
            similar = [float(metric(e) @ metric(o)) for o in odd]
            best = int(np.argmax(similar))
            scores.append((similar[best], i, best))
        scores.sort(key=lambda s: -s[0])
        sums = [(o[0] * o[1], o[1]) for o in odd]
        for _, i, partner in scores[:merges]:
            value, size = even[i]
            sums[partner] = (sums[partner][0] + value * size, sums[partner][1] + size)
        tokens = [even[i] for _, i, _ in scores[merges:]] + [(value / size, size) for value, size in sums]
    return np.stack([value for value, _ in tokens])


def test_token_merging_against_loops():
    torch.manual_seed(0)
    for length, target in ((32, 16), (33, 7), (20, 20), (9, 1)):
        tokens = torch.randn(2, length, 8, dtype=torch.float64)
        got = merge_tokens(tokens, target, num_heads=2)
        for row in range(2):
            assert np.allclose(got[row].numpy(), merge_by_loops(tokens[row].numpy(), target, 2), atol=1e-10)


def test_merging_keeps_the_size_weighted_sum():
    tokens = torch.randn(1, 64, 8, dtype=torch.float64)
    merged = merge_tokens(tokens, 32, 2)
    # One round: each odd token stands for 1 + its merges, so the sum is kept only when it is weighted.
    assert merged.shape == (1, 32, 8)
    ones = merge_tokens(torch.ones(1, 64, 8), 5, 2)
    assert torch.allclose(ones, torch.ones(1, 5, 8))


def test_projector_projects_to_the_width_of_the_language_model():
    assert VirstProjector(16, 24, 8, 2)(torch.randn(3, 64, 16)).shape == (3, 8, 24)
