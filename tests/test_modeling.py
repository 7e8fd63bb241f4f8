"""Conduct of the model as a Transformers model, on the small untrained one."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModel

from virst_hf import CheckpointError, VirstError, VirstForVideoSegmentation, VirstOutput, VirstSegmentationOutput
from virst_hf.untrained import untrained_config, untrained_model

EXPRESSIONS = ["the red square", "what moves to the right and then stops?"]


@pytest.fixture(scope="module")
def inputs(processor, clip):
    return processor(videos=clip, text=EXPRESSIONS)


@pytest.fixture(scope="module")
def expected(shared_model, inputs):
    return shared_model.segment(**inputs)


def close(a, b, atol=1e-4):
    return all(torch.allclose(x, y, atol=atol) for x, y in zip(a.mask_logits, b.mask_logits, strict=True))


# --- segmentation ----------------------------------------------------------------------------------------------------
def test_masks_of_every_frame_for_every_expression(expected, clip):
    assert isinstance(expected, VirstSegmentationOutput)
    assert len(expected.mask_logits) == len(EXPRESSIONS)
    for logits, scores, ious in zip(expected.mask_logits, expected.object_scores, expected.iou_scores, strict=True):
        assert logits.shape == (len(clip), 32, 32) and scores.shape == ious.shape == (len(clip),)
        assert bool(((ious >= 0) & (ious <= 1)).all())
        assert logits.std() > 0.1  # the comparisons of this file compare something
    assert expected.anchor_indices == ([0, 6, 11], [0, 6, 11])
    assert not torch.allclose(expected.mask_logits[0], expected.mask_logits[1], atol=1e-3)


def test_a_batch_equals_its_parts(shared_model, processor, clip, clip_maker):
    other = clip_maker(num_frames=21, height=40, width=30, seed=5)
    texts = [["the red square", "a thing"], ["the other video, which has a much longer expression"]]
    batch = shared_model.segment(**processor(videos=[clip, other], text=texts))
    assert batch.video_indices.tolist() == [0, 0, 1]
    row = 0
    for video, group in zip((clip, other), texts, strict=True):
        for text in group:
            alone = shared_model.segment(**processor(videos=video, text=[text]))
            assert torch.allclose(alone.mask_logits[0], batch.mask_logits[row], atol=1e-4)
            assert torch.allclose(alone.object_scores[0], batch.object_scores[row], atol=1e-4)
            row += 1


def count_calls(module, monkeypatch):
    sizes = []
    forward = module.forward
    monkeypatch.setattr(module, "forward", lambda x: sizes.append(len(x)) or forward(x))
    return sizes


@pytest.mark.parametrize("num_expressions", [1, 5])
def test_each_frame_and_each_video_is_encoded_once(model, processor, clip_maker, monkeypatch, num_expressions):
    video = clip_maker(num_frames=80)
    frames = count_calls(model.model.segmenter.image_encoder, monkeypatch)
    clips = count_calls(model.model.vision_tower, monkeypatch)
    model.segment(**processor(videos=video, text=["the thing"] * num_expressions))
    assert sum(frames) == 80  # 32 of them for the fusions, the rest while tracking
    assert clips == [16]  # 64 frames in clips of four, one call


def test_features_are_reused(model, processor, clip, inputs, expected, monkeypatch):
    frames = count_calls(model.model.segmenter.image_encoder, monkeypatch)
    features = model.encode_video(**{k: v for k, v in inputs.items() if "input_ids" != k})
    assert sum(frames) == len(clip)
    text = {k: inputs[k] for k in ("input_ids", "attention_mask", "video_indices")}
    first, second = (model.segment(**text, features=features) for _ in range(2))
    assert sum(frames) == len(clip)
    assert close(first, expected) and close(second, expected)


def test_shared_prefix_equals_running_each_prompt_whole(shared_model, inputs, monkeypatch):
    shared = shared_model.segment(**inputs)
    monkeypatch.setattr("virst_hf.modeling_virst.shared_prefix_length", lambda rows, token: 0)
    assert close(shared_model.segment(**inputs), shared)


def test_segment_makes_no_graph_and_leaves_the_mode(model, inputs):
    model.train()
    out = model.segment(**inputs)
    assert model.training and not any(x.requires_grad for x in out.mask_logits + out.object_scores)


@pytest.mark.parametrize("num_frames", [1, 2, 7, 9])
def test_short_videos(shared_model, processor, clip_maker, num_frames):
    out = shared_model.segment(**processor(videos=clip_maker(num_frames=num_frames), text=["it"]))
    assert len(out.mask_logits[0]) == num_frames
    assert out.anchor_indices[0] == {1: [0], 2: [0, 1], 7: [0, 6], 9: [0, 8]}[num_frames]


def test_a_still_image(shared_model, processor, clip):
    inputs = processor(videos=clip[0], text=["it"])
    assert inputs["num_vlm_frames"].tolist() == [1]
    out = shared_model.segment(**inputs)
    assert out.mask_logits[0].shape == (1, 32, 32) and out.anchor_indices[0] == [0]


def test_initial_fusion_and_single_mask_are_switches(model, inputs, expected):
    model.config.st_fusion_config.use_initial_fusion = False
    assert not close(model.segment(**inputs), expected)
    model.config.st_fusion_config.use_initial_fusion = True
    model.config.segmenter_config.multimask_output = False
    assert not close(model.segment(**inputs), expected)


def test_absent_object_gives_empty_logits(model, inputs):
    head = model.model.segmenter.sam_mask_decoder.pred_obj_score_head.layers[-1]
    nn.init.zeros_(head.weight)
    nn.init.constant_(head.bias, -3.0)
    out = model.segment(**inputs)
    assert all(bool((x == -1024).all()) for x in out.mask_logits)


# --- text ------------------------------------------------------------------------------------------------------------
def test_generate_answers_and_encodes_no_frame_for_sam(model, processor, clip, monkeypatch):
    frames = count_calls(model.model.segmenter.image_encoder, monkeypatch)
    inputs = processor(videos=clip, text=["what is it?", "how many red squares are there in this video?"], task="ask")
    ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    assert ids.shape[0] == 2 and 1 <= ids.shape[1] <= 6 and frames == []
    assert all(isinstance(text, str) for text in processor.batch_decode(ids, skip_special_tokens=True))
    for i, question in enumerate(["what is it?", "how many red squares are there in this video?"]):
        alone = model.generate(
            **processor(videos=clip, text=[question], task="ask"), max_new_tokens=6, do_sample=False
        )
        assert alone[0].tolist() == ids[i, : alone.shape[1]].tolist()


def test_generate_is_greedy_decoding_of_forward(model, processor, clip):
    inputs = processor(videos=clip, text=["what is it?"], task="ask")
    ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0].tolist()
    want, row = [], inputs
    for _ in range(len(ids)):
        with torch.no_grad():
            token = model(**row).logits[0, -1].argmax().item()
        want.append(token)
        row = {**row, "input_ids": torch.cat([row["input_ids"], torch.tensor([[token]])], 1)}
        row["attention_mask"] = torch.ones_like(row["input_ids"])
    assert ids == want


def test_explain_gives_masks_and_text(shared_model, processor, clip):
    inputs = processor(videos=clip, text=EXPRESSIONS, task="explain")
    out = shared_model.segment_and_explain(**inputs, max_new_tokens=5)
    assert out.sequences.shape[0] == 2 and len(out.mask_logits) == 2
    assert close(shared_model.segment(**inputs), out)


# --- training --------------------------------------------------------------------------------------------------------
@pytest.fixture
def batch(processor, clip):
    inputs = processor(videos=clip, text=EXPRESSIONS, return_labels=True)
    masks = torch.zeros(12, 128, 128)
    masks[:6, 30:70, 20:60] = 1
    return {**inputs, "mask_labels": [masks, None]}


def test_losses_and_their_parts(model, batch):
    out = model(**batch)
    assert isinstance(out, VirstOutput) and out.logits is None
    parts = [out.token_loss, out.bce_loss, out.dice_loss, out.occlusion_loss, out.iou_loss]
    assert torch.allclose(out.loss, sum(parts)) and all(p > 0 for p in parts)
    assert out.supervised_frames == (list(range(12)),)  # evaluation mode: anchors of Alg. 2 and all other frames


def test_a_text_without_masks_counts_as_zero(model, batch):
    with torch.no_grad():
        both = model(**batch)
        alone = model(**{**batch, "mask_labels": [batch["mask_labels"][0]] * 2})
        none = model(**{**batch, "mask_labels": [None, None]})
    assert none.bce_loss == none.dice_loss == 0
    assert 0 < both.bce_loss < alone.bce_loss


def test_token_loss_is_a_mean_over_samples(model, batch):
    with torch.no_grad():
        whole = model(**{k: v for k, v in batch.items() if k != "mask_labels"})
        logits = model(**{k: v for k, v in batch.items() if k not in ("mask_labels", "labels")}).logits
    means = []
    for row, target in zip(logits, batch["labels"], strict=True):
        kept = target[1:] != -100
        means.append(nn.functional.cross_entropy(row[:-1][kept], target[1:][kept]))
    assert torch.allclose(whole.loss, sum(means) / 2, atol=1e-5)


def test_masks_of_supervised_frames_or_of_all(model, batch):
    frames = {"anchor_indices": [[2, 8], None], "propagation_indices": [[3, 4, 9], None]}
    masks = batch["mask_labels"][0]
    with torch.no_grad():
        full = model(**batch, **frames)
        some = model(**{**batch, "mask_labels": [masks[[2, 3, 4, 8, 9]], None]}, **frames)
    assert full.supervised_frames == ([2, 3, 4, 8, 9],)
    assert torch.allclose(full.loss, some.loss)


def test_training_draws_frames_from_the_seed(model, batch):
    model.train()
    torch.manual_seed(1)
    first = model(**batch).supervised_frames
    torch.manual_seed(1)
    assert model(**batch).supervised_frames == first
    torch.manual_seed(4)
    assert model(**batch).supervised_frames != first


def test_wrong_absent_keeps_the_gradient_of_the_mask(model, batch):
    head = model.model.segmenter.sam_mask_decoder.pred_obj_score_head.layers[-1]
    nn.init.zeros_(head.weight)
    nn.init.constant_(head.bias, -3.0)
    out = model(**batch)
    assert out.bce_loss < 20  # -1024 logits would give hundreds
    out.bce_loss.backward()
    assert model.model.segmenter.sam_mask_decoder.mask_tokens.weight.grad.abs().sum() > 0


FROZEN = ("model.vision_tower.", "model.segmenter.image_encoder.")
UNUSED = (
    "model.segmenter.no_mem_pos_enc",
    "model.segmenter.mask_downsample.",
    "model.segmenter.sam_prompt_encoder.point_embeddings.",
    "model.segmenter.sam_prompt_encoder.mask_downscaling.",
)


def test_every_trainable_parameter_gets_a_gradient(model, batch):
    model.train()
    torch.manual_seed(0)
    model(**batch).loss.backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert without == {name for name, _ in model.named_parameters() if name.startswith(FROZEN + UNUSED)}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_gradient_checkpointing_gives_the_same_gradients(model, batch):
    model.train()
    gradients = []
    for on in (False, True):
        (model.activation_checkpointing_enable if on else model.activation_checkpointing_disable)()
        model.zero_grad()
        torch.manual_seed(3)
        model(**batch).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*gradients, strict=True))


def test_two_steps_of_training_lower_the_loss(model, batch):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


# --- conduct ---------------------------------------------------------------------------------------------------------
def test_all_tensors_are_parameters_or_buffers(shared_model):
    def tensors(value, depth=0):
        if isinstance(value, torch.Tensor):
            return True
        if isinstance(value, dict | list | tuple) and depth < 3:
            return any(tensors(v, depth + 1) for v in (value.values() if isinstance(value, dict) else value))
        return False

    fresh = untrained_model()  # before any forward has filled SAM 2's cache of position codes
    for name, module in fresh.named_modules():
        own = {k: v for k, v in vars(module).items() if k not in ("_parameters", "_buffers", "_modules")}
        assert not [k for k, v in own.items() if tensors(v)], name


def test_save_and_load_equality(model, inputs, expected, tmp_path):
    model.save_pretrained(tmp_path)
    loaded, info = VirstForVideoSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert close(loaded.segment(**inputs), expected)
    assert (tmp_path / "README.md").read_text().startswith("---\nlibrary_name: virst_hf")


def test_a_checkpoint_that_does_not_fit_is_refused(model, tmp_path):
    from safetensors.torch import load_file, save_file

    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    good = load_file(path)
    name = "model.segmenter.no_obj_ptr"
    cases = {
        "lacks 1 tensor: model.segmenter.no_obj_ptr": {k: v for k, v in good.items() if k != name},
        "has unknown 1 tensor: model.extra": {**good, "model.extra": torch.zeros(2)},
        r"has other shapes in 1 tensor: model.segmenter.no_obj_ptr \(1, 3\)": {**good, name: torch.zeros(1, 3)},
    }
    for message, state in cases.items():
        save_file(state, path, metadata={"format": "pt"})
        for loader in (VirstForVideoSegmentation, AutoModel):
            with pytest.raises(CheckpointError, match=message):
                loader.from_pretrained(tmp_path)
    save_file(cases["has unknown 1 tensor: model.extra"], path, metadata={"format": "pt"})
    VirstForVideoSegmentation.from_pretrained(tmp_path, strict=False)


def test_model_card_of_the_owner_is_kept(model, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_sharded_save(model, inputs, expected, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="1MB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert close(VirstForVideoSegmentation.from_pretrained(tmp_path).segment(**inputs), expected)


def test_nothing_stays_on_meta_and_nothing_is_uninitialised(model, tmp_path):
    """An almost empty checkpoint: every other weight must get a sensible first value, buffers included."""
    state = {"lm_head.weight": model.lm_head.weight}
    torch.manual_seed(0)
    loaded = VirstForVideoSegmentation.from_pretrained(None, config=untrained_config(), state_dict=state, strict=False)
    for name, tensor in [*loaded.named_parameters(), *loaded.named_buffers()]:
        assert not tensor.is_meta, name
        assert bool(tensor.isfinite().all()) and tensor.abs().max() < 10, name
        if name.endswith(("tpos_enc", "no_mem_embed", "pos_embed", "no_obj_ptr", "gaussian_matrix")):
            assert tensor.std() > 0, name
    assert loaded.model.initial_fusion.gate.item() == pytest.approx(0.1)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


def test_building_under_the_meta_device():
    with torch.device("meta"):
        model = VirstForVideoSegmentation(untrained_config())
    assert all(p.is_meta for p in model.parameters())


def test_bfloat16_load_and_forward(model, batch, inputs, expected, tmp_path):
    model.save_pretrained(tmp_path)
    half = VirstForVideoSegmentation.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert all(p.dtype == torch.bfloat16 for p in half.parameters())
    for candidate in (half, copy.deepcopy(model).to(torch.bfloat16)):
        out = candidate.segment(**inputs)
        agreement = ((out.mask_logits[0] > 0) == (expected.mask_logits[0] > 0)).float().mean()
        assert agreement > 0.9 and all(bool(x.isfinite().all()) for x in out.mask_logits)
    loss = half.train()(**batch).loss
    loss.backward()
    assert bool(loss.isfinite())


def test_device_map(model, inputs, expected, tmp_path):
    model.save_pretrained(tmp_path)
    for device_map in ("auto", {"": "cpu"}):
        loaded = VirstForVideoSegmentation.from_pretrained(tmp_path, device_map=device_map)
        assert close(loaded.segment(**inputs), expected)


def test_tuple_and_dict_outputs(model, batch):
    with torch.no_grad():
        named, plain = model(**batch), model(**batch, return_dict=False)
    assert isinstance(plain, tuple) and len(plain) == len(named.to_tuple())
    assert torch.equal(plain[0], named.loss)


def test_deepcopy_and_pickle(model, inputs, expected):
    assert close(copy.deepcopy(model).segment(**inputs), expected)
    assert close(pickle.loads(pickle.dumps(model)).segment(**inputs), expected)


def test_peft_wrap_save_and_merge(model, inputs, expected, batch, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    lora = LoraConfig(r=4, lora_alpha=8, target_modules=r".*language_model.*\.(q|k|v|o|gate|up|down)_proj")
    wrapped = get_peft_model(copy.deepcopy(model), lora)
    trained = [name for name, p in wrapped.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 7 * 2 and all("language_model" in name for name in trained)
    with torch.no_grad():
        for name, p in wrapped.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.1)
    changed = wrapped.get_base_model().segment(**inputs)
    assert not close(changed, expected)
    wrapped(**batch).loss.backward()
    wrapped.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path)
    assert close(again.get_base_model().segment(**inputs), changed)
    assert close(again.merge_and_unload().segment(**inputs), changed, atol=1e-3)


@pytest.mark.slow
def test_compiling_the_sam_encoder_gives_the_same_masks(model, inputs, expected):
    model.model.segmenter.image_encoder.compile()
    names = set(model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        compiled = model.segment(**inputs)
    assert close(compiled, expected, atol=1e-3)
    assert set(model.state_dict()) == names


def test_auto_model(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path)) is VirstForVideoSegmentation


def test_resizing_the_vocabulary(model):
    rows = model.config.text_config.vocab_size
    model.resize_token_embeddings(rows + 5)
    assert model.lm_head.out_features == rows + 5 == model.config.text_config.vocab_size


@pytest.mark.parametrize(
    "segmenter", [{"image_size": 192}, {"hidden_size": 96, "memory_dim": 48}, {"num_maskmem": 3}, {"memory_dim": 64}]
)
def test_other_consistent_sizes(processor, clip, segmenter):
    from virst_hf import VirstProcessor, VirstVideoProcessor

    base = untrained_config().segmenter_config.to_dict()
    model = untrained_model(segmenter_config={**base, **segmenter})
    size = model.config.segmenter_config.image_size
    video_processor = VirstVideoProcessor(image_size=64, sam_image_size=size, tokens_per_clip=16)
    other = VirstProcessor(video_processor, processor.tokenizer, num_seg_tokens=4)
    out = model.segment(**other(videos=clip, text=["it"]))
    assert out.mask_logits[0].shape == (12, size // 4, size // 4)


# --- bad input -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: {**x, "sam_pixel_values": x["sam_pixel_values"][:5]}, "5 frames"),
        (lambda x: {**x, "sam_pixel_values": x["sam_pixel_values"][..., :64, :64]}, "processor"),
        (lambda x: {**x, "pixel_values_videos": x["pixel_values_videos"][..., :32, :32]}, "processor"),
        (lambda x: {**x, "video_indices": torch.tensor([0, 3])}, "video_indices"),
        (lambda x: {k: v for k, v in x.items() if k != "sam_pixel_values"}, "No video"),
        (lambda x: {**x, "input_ids": x["input_ids"] * 0}, "SEG"),
        (lambda x: {**x, "input_ids": x["input_ids"][:, -70:], "attention_mask": None}, "placeholders"),
    ],
)
def test_bad_input_is_named(shared_model, inputs, change, message):
    with pytest.raises(VirstError, match=message):
        shared_model.segment(**change(dict(inputs)))


def test_bad_masks_and_frames_are_named(model, batch):
    with pytest.raises(VirstError, match="resize_masks"):
        model(**{**batch, "mask_labels": [torch.zeros(12, 64, 64), None]})
    with pytest.raises(VirstError, match="resize_masks"):
        model(**{**batch, "mask_labels": [torch.zeros(5, 128, 128), None]})
    with pytest.raises(VirstError, match="positions run from 0 to 11"):
        model(**batch, anchor_indices=[[12], None])
    with pytest.raises(VirstError, match="video"):
        model(input_ids=batch["input_ids"], mask_labels=batch["mask_labels"])
    with pytest.raises(VirstError, match="segment"):
        model.generate(**{k: v for k, v in batch.items() if k not in ("labels", "mask_labels")})


def test_many_frames_of_noise_do_not_break_the_loss(model, processor):
    video = np.random.default_rng(0).integers(0, 256, (40, 33, 47, 3), dtype=np.uint8)
    inputs = processor(videos=video, text=["it"], return_labels=True)
    seg = int(inputs["num_seg_frames"])
    model.train()
    out = model(**inputs, mask_labels=[torch.zeros(seg, 128, 128)])
    assert bool(out.loss.isfinite())


def test_features_that_are_kept_hold_no_graph(shared_model, inputs):
    features = shared_model.encode_video(**inputs)[0]
    kept = features.frames.pinned
    assert not features.video_embeds.requires_grad
    assert not any(frame.stride4.requires_grad or frame.stride8.requires_grad for frame in kept.values())
