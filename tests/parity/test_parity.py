"""Our model against the numbers of the released code, stage by stage and end to end.

`VIRST_PARITY_CASE=DIR pytest tests/parity` runs the same on another case of that form. A case that lacks `case.json`
or a tensor that is not optional fails; nothing here skips for want of data, but the prompt test needs the Qwen2
tokenizer, which is not part of this repository.
"""

import copy
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from case_loader import ParityCase, case_directory

from virst_hf import TrackingOptions, VirstForVideoSegmentation, VirstProcessor, VirstVideoProcessor
from virst_hf.processing_virst import VirstProcessor as Processor

# A long clip takes minutes on a few cores; a test's time holds that of the fixtures it is the first to ask for.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

TOKENIZER = Path(os.environ.get("VIRST_SHARED", Path(__file__).parents[3] / "shared")) / "qwen2_tokenizer"
PART_NAMES = {
    "token_loss": "ce_loss",
    "bce_loss": "mask_bce_loss",
    "dice_loss": "mask_dice_loss",
    "iou_loss": "iou_loss",
    "occlusion_loss": "occ_loss",
}


def agree(got, want, tol=1e-4):
    got, want = torch.as_tensor(got).double(), torch.as_tensor(want).double()
    assert got.shape == want.shape
    assert (got - want).abs().max().item() <= tol * max(1.0, want.abs().max().item())


@pytest.fixture(scope="module")
def parity():
    case = ParityCase(case_directory())
    assert not case.missing
    return case


@pytest.fixture(scope="module")
def parity_model(parity):
    with torch.random.fork_rng():
        model = VirstForVideoSegmentation(parity.config()).eval()
    model.load_state_dict(parity.state_dict(), strict=True)
    # Token merging sorts scores: the release's numbers were computed in float64 up to there.
    model.model.vision_tower.double()
    model.model.projector.double()
    return model


@pytest.fixture(scope="module")
def views(parity):
    config = parity.config()
    processor = VirstVideoProcessor(
        image_size=config.vision_config.image_size,
        sam_image_size=config.segmenter_config.image_size,
        tokens_per_clip=config.vision_config.tokens_per_clip,
    )
    return processor(parity.clip, return_tensors="pt")


@pytest.fixture(scope="module")
def video(parity_model, views):
    with torch.no_grad():
        return parity_model.encode_video(**views)


@pytest.fixture(scope="module")
def ids(parity, parity_model, video):
    given, count = parity.expected["input_ids"], len(video[0].video_embeds)
    at = int((given == -200).nonzero())
    token = parity_model.config.video_token_id
    return torch.cat([given[:at], torch.full((count,), token), given[at + 1 :]])[None]


@pytest.fixture(scope="module")
def labels(parity, video):
    given, count = parity.expected["labels"], len(video[0].video_embeds)
    at = int((parity.expected["input_ids"] == -200).nonzero())
    return torch.cat([given[:at], torch.full((count,), -100), given[at + 1 :]])[None]


@pytest.fixture(scope="module")
def segmented(parity_model, ids, video):
    return parity_model.segment(ids, features=video)


def embeddings(model, ids, video):
    with torch.no_grad():
        return model.model.embed_text(list(ids), video[0].video_embeds, video[0].seg_features)[0]


def hidden_states(model, ids, video):
    with torch.no_grad():
        return model.model(inputs_embeds=embeddings(model, ids, video)[None]).last_hidden_state[0]


def prompts(model, ids, video):
    with torch.no_grad():
        return model._prompts(video[0], model._seg_states(video[0], list(ids)))


def test_case_is_complete():
    case = ParityCase(case_directory())
    assert not case.missing, f"{case.directory} lacks {', '.join(case.missing)}"


def test_views(parity, views):
    agree(views["pixel_values_videos"][:, :, ::32, ::32], parity.expected["clip_pixel_sample"])
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    want = parity.expected["sam_pixel_sample"]
    sam = views["sam_pixel_values"]
    sam = sam if len(sam) == len(want) else sam[views["seg_frame_indices"]]
    agree((sam[:, :, ::64, ::64] / 255 - mean) / std, want)


def test_vision_tower_and_projector(parity, parity_model, views, video):
    tower = parity_model.model.encode_clips(views["pixel_values_videos"])
    grid = parity_model.config.vision_config.grid_size**2
    agree(tower.unflatten(1, (-1, grid))[:, :, ::49], parity.expected["vision_tower"])
    want = parity.expected["projector"]
    agree(video[0].video_embeds.view(want.shape), want)


def test_sam_features(parity, video):
    agree(video[0].frames(0).top[0, :, ::4, ::4], parity.expected["sam_features_frame0"])


def test_initial_fusion(parity, parity_model, ids, video):
    fused = embeddings(parity_model, ids, video)[ids[0] == parity_model.config.seg_token_id]
    agree(fused, parity.expected["initial_fusion"].view(fused.shape))


def test_language_model(parity, parity_model, ids, video):
    hidden = hidden_states(parity_model, ids, video)
    agree(hidden, parity.expected["hidden_states"])
    with torch.no_grad():
        agree(parity_model.lm_head(hidden[-40:])[:, ::997], parity.expected["lm_logits_tail"])


def test_prompts_of_the_second_fusion(parity, parity_model, ids, video):
    agree(prompts(parity_model, ids, video), parity.expected["seg_prompts"])


def test_masks_end_to_end(parity, segmented):
    expected = parity.expected
    assert segmented.anchor_indices[0] == sorted(set(expected["cond_idx"].flatten().tolist()))
    agree(segmented.object_scores[0], expected["object_scores"].view(-1))
    agree(segmented.mask_logits[0], expected["low_res_logits"], tol=1e-3)
    size = parity.clip.shape[1:3]
    masks = torch.stack([torch.from_numpy(m) for m in Processor.iter_masks(*one(segmented), size)]).numpy()
    want = np.unpackbits(expected["masks"].numpy().reshape(-1), count=masks.size).reshape(masks.shape).astype(bool)
    for got, true in zip(masks, want, strict=True):
        union = (got | true).sum()
        assert union == 0 or (got & true).sum() / union >= 0.999


def streamed_logits(model, parity, rows, monkeypatch, policy):
    """Logits of a stream of the clip, `(texts, frames, side, side)`; the prompts are the case's own."""
    config = model.config
    processor = VirstVideoProcessor(
        image_size=config.vision_config.image_size,
        sam_image_size=config.segmenter_config.image_size,
        tokens_per_clip=config.vision_config.tokens_per_clip,
    )
    monkeypatch.setattr("virst_hf.streaming._rows", lambda *_: list(rows))
    monkeypatch.setattr("virst_hf.streaming._streamed", lambda index, masks, *_: masks.gated_logits.clone())
    holder = SimpleNamespace(video_processor=processor)
    return torch.stack(list(model.stream(parity.clip, ["it"] * len(rows), holder, anchor_policy=policy)), dim=1)


@pytest.mark.parametrize("way", ["uniform", "windowed", "chunks", "compiled"])
def test_masks_of_every_way(parity, parity_model, views, ids, video, segmented, monkeypatch, way):
    """As a stream, in chunks beside another text, and compiled."""
    expected, model = segmented.mask_logits[0], parity_model
    if way in ("uniform", "windowed"):
        got = streamed_logits(model, parity, ids, monkeypatch, way)[0]
    elif way == "chunks":
        other = ids[0].clone()
        other[-60] = (other[-60] + 7) % 1000  # another word behind the video
        rows = torch.stack((other, ids[0]))
        got = model.segment(rows, tracking=TrackingOptions(chunk=1), features=video).mask_logits[1]
    else:
        model = copy.deepcopy(model)
        torch._dynamo.reset()
        model.compile_inference(backend="aot_eager")
        try:
            got = model.segment(ids, **views).mask_logits[0]
        finally:
            torch._dynamo.reset()
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=0)
    agree(got, parity.expected["low_res_logits"], tol=1e-3)


def one(outputs):
    return outputs.mask_logits[0], outputs.object_scores[0]


def test_without_initial_fusion(parity, parity_model, ids, video):
    if not parity.has_no_fusion:
        return  # optional by the case's form
    fusion = parity_model.config.st_fusion_config
    fusion.use_initial_fusion = False
    try:
        parts = {
            "hidden_states_without_initial_fusion": lambda: hidden_states(parity_model, ids, video),
            "seg_prompts_without_initial_fusion": lambda: prompts(parity_model, ids, video),
            "object_scores_without_initial_fusion": lambda: parity_model.segment(ids, features=video).object_scores[0],
        }
        for name, compute in parts.items():
            if name in parity.expected:
                got = compute()
                agree(got, parity.expected[name].view(got.shape))
    finally:
        fusion.use_initial_fusion = True


@pytest.mark.parametrize("run", ["anchors", "propagation"])
def test_training_losses(parity, parity_model, views, ids, labels, run):
    if not parity.has_losses:
        return  # optional by the case's form
    case = parity.case
    propagation = case["propagation_frames_train"] if run == "propagation" else []
    truth = parity.ground_truth[views["seg_frame_indices"]]
    with torch.no_grad():
        out = parity_model(
            input_ids=ids,
            labels=labels,
            mask_labels=[truth],
            anchor_indices=[case["anchor_frames_train"]],
            propagation_indices=[propagation],
            **views,
        )
    supervised = sorted(case["anchor_frames_train"] + propagation)
    assert out.supervised_frames == (supervised,)
    for ours, theirs in PART_NAMES.items():
        agree(out[ours], case["losses"][run][theirs])
    agree(out.loss, sum(case["losses"][run].values()))


@pytest.mark.skipif(not TOKENIZER.is_dir(), reason="the Qwen2 tokenizer is not part of this repository")
def test_prompt_ids(parity, views):
    from transformers import AutoTokenizer

    case = parity.case
    video_processor = VirstVideoProcessor()
    processor = VirstProcessor(
        video_processor,
        AutoTokenizer.from_pretrained(TOKENIZER),
        num_seg_tokens=case["fusion"]["num_seg_tokens"],
        supervise_turn_tokens=True,
    )
    out = processor(
        text=case["expression"],
        num_vlm_frames=views["num_vlm_frames"],
        template=case["template"],
        answer_template=case["answer"],
        lowercase=parity.lowercase,
        return_labels=True,
    )
    got, target = out["input_ids"][0], out["labels"][0]
    is_video = got == processor.video_token_id
    first = int(is_video.nonzero()[0])
    keep = ~is_video
    keep[first] = True
    got = got.masked_fill(is_video, -200)[keep]
    assert torch.equal(got, parity.expected["input_ids"])
    is_seg = got == case["seg_token_id"]
    want = parity.expected["labels"].masked_fill(is_seg, -100)
    assert torch.equal(target[keep], want)
