"""Segmenter and tracker against the `sam2` package's own SAM2Base, with the same weights."""

import pytest
import torch
import torch.nn.functional as F
from sam2.modeling.backbones.hieradet import Hiera
from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
from sam2.modeling.memory_encoder import CXBlock, Fuser, MaskDownSampler, MemoryEncoder
from sam2.modeling.position_encoding import PositionEmbeddingSine
from sam2.modeling.sam.transformer import RoPEAttention
from sam2.modeling.sam2_base import SAM2Base

from virst_hf import VirstSegmenterConfig
from virst_hf.modules.frame_store import FrameStore
from virst_hf.modules.segmenter import FrameFeatures, VirstSegmenter
from virst_hf.modules.tracker import AnchorMemory, track_supervised_frames, track_video

# SAM2Base fixes the sizes of its decoder, so these keep the defaults.
CONFIG = VirstSegmenterConfig(
    image_size=128, hidden_size=32, trunk_embed_dim=8, trunk_num_heads=1, trunk_stages=[1, 1, 2, 1],
    trunk_global_att_blocks=[3], trunk_window_spec=[8, 4, 4, 4], memory_attention_layers=2,
    memory_attention_feedforward=64, memory_dim=16, memory_fuser_layers=1, mask_decoder_heads=8, num_maskmem=4,
    max_object_pointers=5,
)  # fmt: skip


def reference_sam2(alpha):
    width, memory = CONFIG.hidden_size, CONFIG.memory_dim

    def attention(**kwargs):
        return RoPEAttention(feat_sizes=(8, 8), embedding_dim=width, num_heads=1, dropout=0.0, **kwargs)

    layer = MemoryAttentionLayer(
        activation="relu", dim_feedforward=64, dropout=0.0, pos_enc_at_attn=False, self_attention=attention(),
        d_model=width, pos_enc_at_cross_attn_keys=True, pos_enc_at_cross_attn_queries=False,
        cross_attention=attention(rope_k_repeat=True, kv_in_dim=memory),
    )  # fmt: skip
    trunk = Hiera(
        embed_dim=8, num_heads=1, stages=(1, 1, 2, 1), global_att_blocks=(3,), window_spec=(8, 4, 4, 4),
        window_pos_embed_bkg_spatial_size=(7, 7),
    )  # fmt: skip
    neck = FpnNeck(
        PositionEmbeddingSine(width), width, trunk.channel_list, fpn_top_down_levels=[2, 3], fpn_interp_model="nearest"
    )
    encoder = MemoryEncoder(
        out_dim=memory, in_dim=width, position_encoding=PositionEmbeddingSine(memory),
        mask_downsampler=MaskDownSampler(embed_dim=width, kernel_size=3, stride=2, padding=1),
        fuser=Fuser(CXBlock(width), num_layers=1),
    )  # fmt: skip
    return SAM2Base(
        ImageEncoder(trunk, neck, scalp=1), MemoryAttention(width, True, layer, 2), encoder, num_maskmem=4,
        image_size=128, sigmoid_scale_for_mem_enc=20.0, sigmoid_bias_for_mem_enc=-10.0, directly_add_no_mem_embed=True,
        max_cond_frames_in_attn=alpha, no_obj_embed_spatial=True, use_high_res_features_in_sam=True,
        multimask_output_in_sam=True, iou_prediction_use_sigmoid=True, use_obj_ptrs_in_encoder=True,
        max_obj_ptrs_in_encoder=5, proj_tpos_enc_in_obj_ptrs=True, use_signed_tpos_enc_to_obj_ptrs=True,
        only_obj_ptrs_in_the_past_for_eval=True, pred_obj_scores=True, pred_obj_scores_mlp=True, fixed_no_obj_ptr=True,
        multimask_output_for_tracking=True, use_multimask_token_for_obj_ptr=True, use_mlp_for_obj_ptr_proj=True,
        sam_mask_decoder_extra_args={
            "dynamic_multimask_via_stability": True, "dynamic_multimask_stability_delta": 0.05,
            "dynamic_multimask_stability_thresh": 0.98,
        },
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(3)
    ours = VirstSegmenter(CONFIG).eval()
    with torch.no_grad():
        for name, p in ours.named_parameters():
            if p.dim() > 1 and "norm" not in name:
                p.normal_(std=p[0].numel() ** -0.5 if p.dim() > 1 else 1)
            if name.endswith("gamma"):
                p.fill_(0.5)
    theirs = reference_sam2(alpha=3)
    theirs.load_state_dict(ours.state_dict())
    frames = torch.randint(0, 256, (14, 3, 128, 128), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    prompts = torch.randn(14, 2, 3, 32, generator=torch.Generator().manual_seed(2))
    return ours, theirs, frames, prompts


def normalised(frames):
    mean, std = (torch.tensor(list(x))[:, None, None] for x in (CONFIG.image_mean, CONFIG.image_std))
    return (frames.float() / 255 - mean) / std


class Sam2Steps:
    """SAM 2's own memory selection and heads, stepped by hand, with prompts in place of the sparse embeddings."""

    def __init__(self, sam, frames, num_frames, multimask):
        with torch.no_grad():
            _, self.feats, self.pos, self.sizes = sam._prepare_backbone_features(sam.forward_image(normalised(frames)))
        self.sam, self.num_frames, self.multimask = sam, num_frames, multimask
        self.memory = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}

    @torch.no_grad()
    def step(self, index, frame, prompt, batch):
        sam = self.sam
        feats = [x[:, frame : frame + 1].expand(-1, batch, -1) for x in self.feats]
        pos = [x[:, frame : frame + 1].expand(-1, batch, -1) for x in self.pos]
        high = [x.permute(1, 2, 0).unflatten(-1, s) for x, s in zip(feats[:-1], self.sizes[:-1], strict=True)]
        fused = sam._prepare_memory_conditioned_features(
            index, prompt is not None, feats[-1:], pos[-1:], self.sizes[-1:], self.memory, self.num_frames
        )
        empty = (torch.zeros(batch, 1, 2), -torch.ones(batch, 1, dtype=torch.int32))
        sparse, dense = sam.sam_prompt_encoder(empty, None, None)
        masks, ious, tokens, score = sam.sam_mask_decoder(
            image_embeddings=fused, image_pe=sam.sam_prompt_encoder.get_dense_pe(), repeat_image=False,
            sparse_prompt_embeddings=sparse if prompt is None else prompt, dense_prompt_embeddings=dense,
            multimask_output=self.multimask, high_res_features=high,
        )  # fmt: skip
        best, rows = ious.argmax(-1), torch.arange(batch)
        seen = (score > 0).float()
        low = torch.where(score[..., None, None] > 0, masks[rows, best][:, None], torch.tensor(-1024.0))
        pointer = seen * sam.obj_ptr_proj(tokens[rows, best]) + (1 - seen) * sam.no_obj_ptr
        full = F.interpolate(low, size=(128, 128), mode="bilinear", align_corners=False)
        feature, code = sam._encode_new_memory(feats, self.sizes, full, score, False)
        kind = "non_cond_frame_outputs" if prompt is None else "cond_frame_outputs"
        self.memory[kind][index] = {"maskmem_features": feature, "maskmem_pos_enc": code, "obj_ptr": pointer}
        return low[:, 0], score[:, 0]


def test_image_encoder_is_that_of_sam2(pair):
    ours, theirs, frames, _ = pair
    with torch.no_grad():
        got, want = ours.encode_frames(frames[:3]), theirs.forward_image(normalised(frames[:3]))
    for a, b in zip((got.stride4, got.stride8, got.top), want["backbone_fpn"], strict=True):
        assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize(("anchors", "alpha"), [([0, 4, 9, 13], 3), ([2, 3, 7, 8, 12], 3), ([5], 3), ([0, 13], 2)])
def test_inference_tracking_is_that_of_sam2(pair, anchors, alpha):
    ours, theirs, frames, prompts = pair
    theirs.max_cond_frames_in_attn = alpha
    steps = Sam2Steps(theirs, frames, len(frames), multimask=True)
    want = {t: steps.step(t, t, prompts[t], 2) for t in anchors}
    want.update({t: steps.step(t, t, None, 2) for t in range(len(frames)) if t not in anchors})
    memory = AnchorMemory(ours, len(frames), alpha, future_pointers=False, multimask=True)
    with torch.no_grad():
        store = FrameStore(ours, frames, pinned=anchors, batch_size=3)
        got = dict(track_video(memory, store, len(frames), {t: prompts[t] for t in anchors}))
    assert list(got) == list(range(len(frames)))
    for t, masks in got.items():
        low, score = want[t]
        assert torch.allclose(masks.object_scores, score, atol=1e-3)
        assert torch.allclose(masks.gated_logits, low, atol=1e-3 * max(1, low.abs().max().item()))
    assert any((s > 0).any() for _, s in want.values())


def test_training_tracking_is_that_of_sam2(pair):
    ours, theirs, frames, prompts = pair
    theirs.max_cond_frames_in_attn = 3
    supervised, anchors = [1, 2, 4, 5, 6, 9, 10, 13], [4, 9, 13]
    steps = Sam2Steps(theirs, frames, len(supervised), multimask=False)
    theirs.training = True  # anchors of the future give pointers too; the parts stay in evaluation mode
    order = [2, *(i for i in range(len(supervised)) if i != 2)]
    want = {}
    for i in order:
        frame = supervised[i]
        want[i] = steps.step(i, frame, prompts[frame] if frame in anchors else None, 2)
    theirs.training = False
    memory = AnchorMemory(ours, len(supervised), 3, future_pointers=True, multimask=False)
    with torch.no_grad():
        store = FrameStore(ours, frames, pinned=supervised)
        got = track_supervised_frames(memory, store, supervised, {t: prompts[t] for t in anchors})
    for i, masks in enumerate(got):
        assert torch.allclose(masks.object_scores, want[i][1], atol=1e-3)
        assert torch.allclose(masks.gated_logits, want[i][0], atol=1e-3 * max(1, want[i][0].abs().max().item()))


def test_memory_does_not_grow_with_the_video(pair):
    ours, _, frames, prompts = pair
    memory = AnchorMemory(ours, 1000, 3, future_pointers=False, multimask=True)
    frame = None
    with torch.no_grad():
        frame = ours.encode_frames(frames[:1])
        memory.decode_anchor(0, frame, prompts[0])
        sizes = []
        for t in range(1, 40):
            memory.propagate(t, frame)
            sizes.append((len(memory.recent), sum(e.tokens is not None for e in memory.recent.values())))
    assert sizes[-1] == sizes[10] == (4, 3)  # pointers of 4 frames back, memories of 3


def test_frame_store_encodes_each_frame_once(pair, monkeypatch):
    ours, _, frames, _ = pair
    seen = []
    encode = ours.image_encoder.forward
    monkeypatch.setattr(ours.image_encoder, "forward", lambda x: seen.append(len(x)) or encode(x))
    with torch.no_grad():
        store = FrameStore(ours, frames, pinned=[3, 7, 7, 11], batch_size=4)
        for t in range(len(frames)):
            assert torch.allclose(store(t).top, ours.encode_frames(frames[t : t + 1]).top, atol=1e-4)
    assert sum(seen) == 2 * len(frames)  # once by the store, once by this test
    assert len(store.window) <= 4


@pytest.mark.parametrize(
    ("side", "device", "wanted"),
    [(64, "cpu", 4), (256, "cpu", 4), (512, "cpu", 1), (1024, "cpu", 1), (1024, "meta", 4)],
)
def test_large_frames_are_encoded_one_by_one_on_a_cpu(pair, monkeypatch, side, device, wanted):
    ours, _, frames, _ = pair
    monkeypatch.setattr(ours, "image_size", side)
    monkeypatch.setattr(type(ours), "device", torch.device(device))
    assert ours.frames_per_batch == wanted
    maps = FrameFeatures(*torch.zeros(3, len(frames), 1, 1, 1))
    monkeypatch.setattr(ours, "encode_frames", lambda pixels: maps)
    store = FrameStore(ours, frames, pinned=[])
    store(0)
    assert len(store.window) == wanted
