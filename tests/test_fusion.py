import math

import pytest
import torch

from virst_hf import VirstFusionConfig
from virst_hf.modules import rotary
from virst_hf.modules.fusion import FrameAwareTokenizer, RotaryCrossAttention, VirstInitialFusion, VirstPromptDecoder
from virst_hf.modules.rotary import AxialRotaryAttention, axial_rotary_table, rotary_table, rotate_pairs

CONFIG = VirstFusionConfig(num_seg_tokens=3, num_heads=2, prompter_feedforward=32)


def test_rotation_turns_each_pair_by_its_angle():
    x = torch.randn(5, 6, dtype=torch.float64)
    positions = torch.tensor([0, 1, 2, 7, 3])
    got = rotate_pairs(x, *(table.double() for table in rotary_table(positions, 6, 100.0)))
    for row, position in enumerate(positions.tolist()):
        for pair in range(3):
            angle = position * 100.0 ** (-pair / 3)
            turned = complex(*x[row, 2 * pair : 2 * pair + 2].tolist()) * complex(math.cos(angle), math.sin(angle))
            assert got[row, 2 * pair].item() == pytest.approx(turned.real, abs=1e-6)
            assert got[row, 2 * pair + 1].item() == pytest.approx(turned.imag, abs=1e-6)


def test_axial_table_is_that_of_sam2():
    from sam2.modeling.position_encoding import compute_axial_cis

    cos, sin = axial_rotary_table(6, 16, 10000.0, torch.device("cpu"))
    want = compute_axial_cis(dim=16, end_x=6, end_y=6)
    assert torch.allclose(cos[:, 0::2], want.real, atol=1e-6) and torch.allclose(sin[:, 0::2], want.imag, atol=1e-6)


def test_rotary_attention_is_that_of_sam2():
    from sam2.modeling.sam.transformer import RoPEAttention

    sizes = {"embedding_dim": 16, "num_heads": 1, "kv_in_dim": 8, "rope_k_repeat": True}
    theirs = RoPEAttention(feat_sizes=(4, 4), **sizes).eval()
    ours = AxialRotaryAttention(**sizes).eval()
    ours.load_state_dict(theirs.state_dict())
    q, memory = torch.randn(2, 16, 16), torch.randn(2, 16 * 3 + 5, 8)
    want = theirs(q, memory, memory, num_k_exclude_rope=5)
    assert torch.allclose(ours(q, memory, memory, num_k_exclude_rope=5), want, atol=1e-5)


def test_tables_do_not_come_from_inference_mode():
    axial_rotary_table.cache_clear()
    with torch.inference_mode():
        axial_rotary_table(3, 8, 10000.0, torch.device("cpu"))
    attention = AxialRotaryAttention(embedding_dim=8, num_heads=1)
    x = torch.randn(1, 9, 8, requires_grad=True)
    attention(x, x, x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("scores", [1, 150, 1 << 20])
def test_attention_in_parts_is_attention(monkeypatch, scores):
    monkeypatch.setattr(rotary, "SCORES_AT_A_TIME", scores)
    q, k, v = (torch.randn(3, 2, n, 8, dtype=torch.float64) for n in (7, 10, 10))
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert torch.allclose(rotary.attend_in_parts(q, k, v), want)


def test_bfloat16_on_a_cpu_attends_in_parts_at_inference_only(monkeypatch):
    torch.manual_seed(0)
    exact = AxialRotaryAttention(embedding_dim=16, num_heads=1, rope_k_repeat=True).eval()
    q, memory = torch.randn(2, 16, 16), torch.randn(2, 16 * 3 + 5, 16)
    want = exact(q, memory, memory, num_k_exclude_rope=5)
    half, parts = exact.to(torch.bfloat16), []
    attend = rotary.attend_in_parts
    monkeypatch.setattr(rotary, "attend_in_parts", lambda *args: parts.append(1) or attend(*args))
    inputs = [x.to(torch.bfloat16) for x in (q, memory, memory)]
    trained = half(*inputs, num_k_exclude_rope=5)
    assert not parts
    with torch.no_grad():
        got = half(*inputs, num_k_exclude_rope=5)
    assert parts and got.dtype == torch.bfloat16
    for found in (got, trained):
        assert torch.allclose(found.float(), want, atol=0.03)


def test_tokenizer_sizes_follow_the_map():
    tokens, grid = FrameAwareTokenizer(8, 3)(torch.randn(2, 8, 20, 20))
    assert grid == (3, 3) and tokens.shape == (2, 9, 8)


def test_initial_fusion_adds_gated_attention_and_batches_expressions():
    torch.manual_seed(0)
    fusion = VirstInitialFusion(CONFIG, 8, 16).eval()
    seg, maps = torch.randn(4, 3, 16), torch.randn(5, 8, 16, 16)
    out = fusion(seg, maps)
    for i in range(4):
        assert torch.allclose(fusion(seg[i : i + 1], maps)[0], out[i], atol=1e-6)
    fusion.gate.data.zero_()
    assert torch.equal(fusion(seg, maps), seg)


def test_cross_attention_rotates_queries_by_time_and_keys_by_place():
    torch.manual_seed(0)
    attention = RotaryCrossAttention(48, 2, 10000.0)
    assert attention.axis_width == 8
    x = torch.randn(1, 2, 4, 24)
    t = torch.arange(4)
    turned = attention.rotate(x, t)
    assert torch.equal(turned[..., 8:], x[..., 8:]) and not torch.allclose(turned[..., :8], x[..., :8])
    placed = attention.rotate(x, t * 0, t * 0, t)
    assert torch.allclose(placed[..., :16], x[..., :16]) and not torch.allclose(placed[..., 16:24], x[..., 16:24])


def test_prompt_decoder_shapes_and_batching():
    torch.manual_seed(0)
    decoder = VirstPromptDecoder(CONFIG, 16, 24).eval()
    states, maps = torch.randn(3, 3, 24), torch.randn(6, 16, 8, 8)
    prompts = decoder(states, maps)
    assert prompts.shape == (3, 3, 6, 16)
    for i in range(3):
        assert torch.allclose(decoder(states[i : i + 1], maps)[0], prompts[i], atol=1e-5)
