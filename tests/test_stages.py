"""What each stage trains, by name and by number, and what of it gets a gradient from the frames that it supervises."""

import random
import re
from dataclasses import replace

import pytest
import torch

from virst_hf import VirstConfig, VirstForVideoSegmentation
from virst_hf.adapters import LoraSettings, has_lora, merge_lora
from virst_hf.data.catalog import load
from virst_hf.data.clips import ClipTransform
from virst_hf.data.collator import VirstCollator
from virst_hf.data.shapes_maker import make_shapes
from virst_hf.errors import ConfigError
from virst_hf.training import STAGES, describe, get_stage, prepare_model
from virst_hf.untrained import untrained_model

# What trains, module by module. The supplement lists modules; this is what they are called here.
ALIGNMENT = ["model.initial_fusion.", "model.prompt_decoder.", "lm_head."]
SEGMENTATION = [
    "model.segmenter.sam_mask_decoder.",
    "model.segmenter.memory_attention.",
    "model.segmenter.memory_encoder.",
    "model.projector.",
]
MODULES = {
    "alignment": ALIGNMENT,
    "few_image": ALIGNMENT + SEGMENTATION,
    "propagation": ALIGNMENT + SEGMENTATION,
}

# Every trained parameter of the small model, {a,b} standing for both. `*` at the end is a weight and a bias.
NAMES = {
    "initial_fusion": """
        model.initial_fusion.gate
        model.initial_fusion.tokenizer.{spatial_down.{0,2,4},norm}.*
        model.initial_fusion.{vision_proj,norm_q,norm_kv,cross_attn.out_proj}.*
        model.initial_fusion.cross_attn.in_proj_{weight,bias}
    """,
    "prompt_decoder": """
        model.prompt_decoder.seg_proj.*
        model.prompt_decoder.tokenizer.{spatial_down.{0,2,4},norm}.*
        model.prompt_decoder.layers.{0,1}.{self_attn.out_proj,ff.0,ff.2,norm1,norm2,norm3}.*
        model.prompt_decoder.layers.{0,1}.self_attn.in_proj_{weight,bias}
        model.prompt_decoder.layers.{0,1}.cross_attn.{q,k,v,o}_proj.*
    """,
    "lm_head": "lm_head.weight",
    "lora": """
        model.language_model.layers.{0,1}.self_attn.{q,k,v,o}_proj.lora_{A,B}.default.weight
        model.language_model.layers.{0,1}.mlp.{gate,up,down}_proj.lora_{A,B}.default.weight
    """,
    "projector": "model.projector.mlp.{0,2}.*",
    "memory_attention": """
        model.segmenter.memory_attention.layers.0.{self_attn,cross_attn_image}.{q,k,v,out}_proj.*
        model.segmenter.memory_attention.layers.0.{linear1,linear2,norm1,norm2,norm3}.*
        model.segmenter.memory_attention.norm.*
    """,
    "memory_encoder": """
        model.segmenter.memory_encoder.mask_downsampler.encoder.{0,1,3,4,6,7,9,10,12}.*
        model.segmenter.memory_encoder.{pix_feat_proj,out_proj}.*
        model.segmenter.memory_encoder.fuser.layers.0.gamma
        model.segmenter.memory_encoder.fuser.layers.0.{dwconv,norm,pwconv1,pwconv2}.*
    """,
    "sam_mask_decoder": """
        model.segmenter.sam_mask_decoder.transformer.layers.{0,1}.{norm1,norm2,norm3,norm4,mlp.layers.{0,1}}.*
        model.segmenter.sam_mask_decoder.transformer.layers.{0,1}.self_attn.{q,k,v,out}_proj.*
        model.segmenter.sam_mask_decoder.transformer.layers.{0,1}.cross_attn_token_to_image.{q,k,v,out}_proj.*
        model.segmenter.sam_mask_decoder.transformer.layers.{0,1}.cross_attn_image_to_token.{q,k,v,out}_proj.*
        model.segmenter.sam_mask_decoder.transformer.final_attn_token_to_image.{q,k,v,out}_proj.*
        model.segmenter.sam_mask_decoder.transformer.norm_final_attn.*
        model.segmenter.sam_mask_decoder.{iou_token,mask_tokens,obj_score_token}.weight
        model.segmenter.sam_mask_decoder.{output_upscaling.{0,1,3},conv_s0,conv_s1}.*
        model.segmenter.sam_mask_decoder.output_hypernetworks_mlps.{0,1,2,3}.layers.{0,1,2}.*
        model.segmenter.sam_mask_decoder.{iou_prediction_head,pred_obj_score_head}.layers.{0,1,2}.*
    """,
}
PARTS = {
    "alignment": {"initial_fusion", "prompt_decoder", "lm_head", "lora"},
    "few_image": set(NAMES),
    "propagation": set(NAMES),
}


def expand(pattern: str) -> set[str]:
    """All names that a pattern with {a,b} stands for, the innermost braces first."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        return {pattern[:-1] + end for end in ("weight", "bias")} if pattern.endswith(".*") else {pattern}
    head, tail = pattern[: found.start()], pattern[found.end() :]
    return set().union(*(expand(head + choice + tail) for choice in found[1].split(",")))


def names_of(part: str) -> set[str]:
    return set().union(*(expand(line) for line in NAMES[part].split()))


def trained(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


# --- the recipe of supplement A.3 ------------------------------------------------------------------------------------
def test_the_recipe_is_that_of_the_supplement():
    found = [
        (s.name, s.follows, s.learning_rate, s.lr_scheduler_type, s.warmup_steps, s.supervise) for s in STAGES.values()
    ]
    assert found == [
        ("alignment", None, 2e-4, "constant_with_warmup", 100, "anchors"),
        ("few_image", "alignment", 2e-4, "linear", 100, "anchors"),
        ("propagation", "few_image", 1e-5, "linear", 100, "anchors+propagation"),
    ]
    layers = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert {stage.lora for stage in STAGES.values()} == {LoraSettings(64, 16, 0.05, layers)}
    assert not any(stage.trains_encoders for stage in STAGES.values())


def test_an_unknown_stage_is_an_error_that_lists_them():
    with pytest.raises(ConfigError, match=r"'tuning'.*alignment, few_image, propagation"):
        get_stage("tuning")


# --- names at the size of the small model ----------------------------------------------------------------------------
@pytest.mark.parametrize("name", STAGES)
def test_exactly_these_parameters_train(model, name, capsys):
    counts = prepare_model(model, get_stage(name))
    assert {part: names_of(part) for part in counts} == {part: names_of(part) for part in PARTS[name]}
    assert trained(model) == set().union(*map(names_of, PARTS[name]))
    sizes = {n: p.numel() for n, p in model.named_parameters()}
    assert counts == {part: sum(sizes[n] for n in names_of(part)) for part in PARTS[name]}
    print(describe(get_stage(name), counts))
    assert f"Stage {name} trains {sum(counts.values()):,} parameters" in capsys.readouterr().out


@pytest.mark.parametrize("name", STAGES)
def test_modules_train_as_a_whole_and_nothing_else_does(model, name):
    prepare_model(model, get_stage(name))
    for parameter, p in model.named_parameters():
        inside = parameter.startswith(tuple(MODULES[name])) or ".lora_" in parameter
        assert p.requires_grad == inside, parameter


@pytest.mark.parametrize("name", STAGES)
def test_encoders_and_bare_parameters_of_the_segmenter_stay_frozen(model, name):
    prepare_model(model, get_stage(name))
    segmenter = model.model.segmenter
    bare = {n for n, _ in segmenter.named_parameters(recurse=False)}
    assert bare == {"maskmem_tpos_enc", "no_mem_embed", "no_mem_pos_enc", "no_obj_ptr", "no_obj_embed_spatial"}
    frozen = [
        *model.model.vision_tower.parameters(),
        *segmenter.image_encoder.trunk.parameters(),
        *segmenter.image_encoder.neck.parameters(),
        *segmenter.sam_prompt_encoder.parameters(),
        *segmenter.obj_ptr_proj.parameters(),
        *segmenter.obj_ptr_tpos_proj.parameters(),
        *segmenter.mask_downsample.parameters(),
        *segmenter.parameters(recurse=False),
        model.get_input_embeddings().weight,
    ]
    assert len(frozen) > 100 and not any(p.requires_grad for p in frozen)
    assert not model.model.train_encoders


# --- numbers at 7B ---------------------------------------------------------------------------------------------------
def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def conv(inputs: int, outputs: int, side: int) -> int:
    return inputs * outputs * side**2 + outputs


def counts_at_7b() -> dict[str, int]:
    """From the sizes of Qwen2-7B, UMT-L and SAM 2.1 hiera-large alone."""
    text, middle, keys, layers, vocabulary = 3584, 18944, 4 * 128, 28, 151647
    vision, width, memory = 1024, 256, 64
    norm = 2 * width
    attention = 4 * linear(width, width)
    tokenizer = 3 * conv(width, width, 3) + norm
    forward = linear(width, 2048) + linear(2048, width)
    lora = 64 * ((text + text) * 2 + (text + keys) * 2 + (text + middle) * 3)
    # Two-way transformer: attention between tokens and image works at half the width.
    narrow = 3 * linear(width, width // 2) + linear(width // 2, width)
    two_way = attention + 2 * narrow + forward + 4 * norm
    hyper = 4 * (2 * linear(width, width) + linear(width, width // 8))
    scores = (2 * linear(width, 256) + linear(256, 4)) + (2 * linear(width, width) + linear(width, 1))
    upscaling = width * 64 * 4 + 64 + 2 * 64 + 64 * 32 * 4 + 32
    return {
        "initial_fusion": 1 + tokenizer + linear(width, text) + 2 * 2 * text + 4 * linear(text, text),
        "prompt_decoder": linear(text, width)
        + tokenizer
        + 2 * (2 * attention + linear(width, 1024) + linear(1024, width) + 3 * norm),
        "lm_head": text * vocabulary,
        "lora": layers * lora,
        "projector": linear(vision, text) + linear(text, text),
        "memory_attention": 4 * (attention + 2 * linear(width, width) + 2 * linear(memory, width) + forward + 3 * norm)
        + norm,
        "memory_encoder": sum(conv(a, b, 3) + 2 * b for a, b in ((1, 4), (4, 16), (16, 64), (64, 256)))
        + 2 * linear(width, width)
        + 2 * (width + conv(1, width, 7) + norm + linear(width, 4 * width) + linear(4 * width, width))
        + linear(width, memory),
        "sam_mask_decoder": 2 * two_way
        + narrow
        + norm
        + (1 + 4 + 1) * width
        + upscaling
        + linear(width, 32)
        + linear(width, 64)
        + hyper
        + scores,
    }


# The numbers themselves, so that a change of a default does not move both sides unseen.
AT_7B = {
    "initial_fusion": 54_100_737,
    "prompt_decoder": 4_795_392,
    "lm_head": 543_502_848,
    "lora": 161_480_704,
    "projector": 16_522_240,
    "memory_attention": 5_922_304,
    "memory_encoder": 1_384_608,
    "sam_mask_decoder": 4_215_109,
}


@pytest.fixture(scope="module")
def full_size_model():
    """`VirstConfig()`: names and sizes without any values."""
    with torch.device("meta"):
        return VirstForVideoSegmentation(VirstConfig())


@pytest.mark.parametrize("name", STAGES)
def test_counts_at_7b(full_size_model, name, capsys):
    counts = prepare_model(full_size_model, get_stage(name))
    assert counts == {part: count for part, count in counts_at_7b().items() if part in PARTS[name]}
    assert counts == {part: count for part, count in AT_7B.items() if part in PARTS[name]}
    print(describe(get_stage(name), counts))
    table = capsys.readouterr().out
    assert all(f"{count:,}" in table for count in [*counts.values(), sum(counts.values())])


# --- gradients -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    make_shapes(folder, "train", 1, num_proc=1, progress=False)
    data = load("shapes", folder, split="train")
    return [next(row for row in data if row["masks"] and any(mask is not None for mask in row["masks"][:1]))]


@pytest.mark.parametrize(
    ("name", "without"),
    [
        # In the first two stages every supervised frame is an anchor, decoded without memory.
        ("alignment", set()),
        ("few_image", {"memory_attention", "memory_encoder"}),
        ("propagation", set()),
    ],
)
def test_parts_that_get_a_gradient(model, processor, rows, name, without):
    torch.manual_seed(0)
    stage = get_stage(name)
    prepare_model(model, stage)
    with torch.no_grad():  # of zeros, as LoRA begins, half of it gets none
        for parameter, p in model.named_parameters():
            if ".lora_B." in parameter:
                p.normal_(std=0.02)
    sample = ClipTransform(processor, stage.supervise)(rows, random.Random(0))
    anchors, others = sample["anchor_indices"][0], sample["propagation_indices"][0]
    assert len(anchors) == 3 and bool(others) == (name == "propagation")
    model.train()(**VirstCollator(processor)([sample])).loss.backward()

    moved = {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert moved <= trained(model)
    idle = trained(model) - moved
    # The single mask is supervised, so those of the multi-mask output learn nothing.
    multimask = "model.segmenter.sam_mask_decoder.output_hypernetworks_mlps."
    idle -= {n for n in idle if n.startswith((f"{multimask}1", f"{multimask}2", f"{multimask}3"))}
    assert idle == set().union(*map(names_of, without))


@pytest.mark.parametrize("name", STAGES)
def test_the_table_says_where_memory_learns_nothing(model, name):
    table = describe(get_stage(name), prepare_model(model, get_stage(name)))
    assert ("the memory modules get no gradient" in table) == (name == "few_image")


def test_the_table():
    stage = replace(get_stage("few_image"), name="mine")
    assert describe(stage, {"lora": 1234567, "memory_encoder": 20}) == (
        "Stage mine trains 1,234,587 parameters:\n"
        "  lora                      1,234,567\n"
        "  memory_encoder                   20\n"
        "  (every supervised frame is an anchor: the memory modules get no gradient in this stage)"
    )


# --- switching -------------------------------------------------------------------------------------------------------
def test_stages_follow_one_another_on_the_same_lora(model):
    prepare_model(model, get_stage("alignment"))
    lora = {n: p for n, p in model.named_parameters() if ".lora_" in n}
    for name in ("few_image", "propagation", "alignment"):
        counts = prepare_model(model, get_stage(name))
        assert {n: p for n, p in model.named_parameters() if ".lora_" in n}.keys() == lora.keys()
        assert all(dict(model.named_parameters())[n] is p for n, p in lora.items())
        assert set(counts) == PARTS[name]


def test_a_new_model_says_the_same_with_lora(shared_model, model):
    prepare_model(model, get_stage("propagation"))
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(model.eval()(input_ids=ids).logits, shared_model(input_ids=ids).logits)


def test_lora_is_the_same_for_the_same_seed(shared_model):
    def weights(seed):
        torch.manual_seed(seed)
        model = untrained_model()
        prepare_model(model, get_stage("alignment"))
        return model.model.language_model.layers[0].mlp.up_proj.lora_A.default.weight

    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))


def test_a_stage_without_lora_merges_it(model):
    prepare_model(model, get_stage("alignment"))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".lora_B." in name:
                p.normal_(std=0.1)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        before = model.eval()(input_ids=ids).logits
    stage = replace(get_stage("alignment"), name="head", lora=None, trains=("lm_head.*",))
    assert prepare_model(model, stage) == {"lm_head": model.lm_head.weight.numel()}
    assert not has_lora(model) and trained(model) == {"lm_head.weight"}
    with torch.no_grad():
        assert torch.allclose(model(input_ids=ids).logits, before, atol=1e-5)


def test_encoders_train_in_a_stage_from_scratch_only(model):
    stage = replace(get_stage("alignment"), name="scratch", lora=None, trains=("*",))
    assert not {"vision_tower", "image_encoder"} & set(prepare_model(model, stage))
    assert not model.model.train_encoders
    counts = prepare_model(model, replace(stage, trains_encoders=True))
    assert {"vision_tower", "image_encoder", "language_model"} <= set(counts)
    assert sum(counts.values()) == sum(p.numel() for p in model.parameters())
    assert model.model.train_encoders and all(p.requires_grad for p in model.parameters())


def test_a_pattern_that_fits_nothing_is_an_error_and_changes_nothing(model):
    stage = replace(get_stage("alignment"), trains=("model.initial_fusion.*", "model.initial_fuson.*"))
    with pytest.raises(ConfigError, match=r"'model.initial_fuson.\*'"):
        prepare_model(model, stage)
    assert not has_lora(model) and all(p.requires_grad for p in model.parameters())


def test_lora_of_other_settings_is_an_error(model):
    prepare_model(model, get_stage("alignment"))
    for lora in (LoraSettings(rank=8), LoraSettings(alpha=32), LoraSettings(target_modules=("q_proj",))):
        with pytest.raises(ConfigError, match="rank 64 and alpha 16"):
            prepare_model(model, replace(get_stage("few_image"), lora=lora))
    merge_lora(model)
    prepare_model(model, replace(get_stage("few_image"), lora=LoraSettings(rank=8)))


def test_lora_on_layers_that_are_not_there_is_an_error(model):
    with pytest.raises(ConfigError, match="LoRA cannot be added"):
        prepare_model(model, replace(get_stage("alignment"), lora=LoraSettings(target_modules=("absent",))))
    assert not has_lora(model)
