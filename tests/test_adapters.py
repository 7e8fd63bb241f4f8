"""Adapter folders: saved, loaded, gone on with, merged; read by peft."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from adapter_fixtures import answers, assert_same, train
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel
from transformers.quantizers.quantizers_utils import should_convert_module

from virst_hf import CheckpointError, VirstForVideoSegmentation, load_model, load_processor
from virst_hf.adapters import (
    AdapterInfo,
    LoraSettings,
    adapter_info,
    has_lora,
    is_adapter,
    load_adapter,
    merge_lora,
    save_adapter,
)
from virst_hf.cli.main import main
from virst_hf.errors import ConfigError
from virst_hf.loading import merge_adapter
from virst_hf.training import four_bit_config, get_stage, prepare_model
from virst_hf.untrained import untrained_config, untrained_model

FILES = {
    "adapter_config.json",
    "adapter_model.safetensors",
    "trained_modules.safetensors",
    "virst_adapter.json",
    "config.json",
}
PROCESSOR_FILES = {"processor_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}


@pytest.fixture(scope="module")
def half_base(tmp_path_factory):
    """The same model in bfloat16."""
    folder = tmp_path_factory.mktemp("half") / "model"
    untrained_model().to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def inputs(processor, clip):
    return processor(videos=clip, text=["the red square"])


# --- what is written -------------------------------------------------------------------------------------------------
def test_the_folder(adapter, base, trained):
    assert {path.name for path in adapter.iterdir()} == FILES | PROCESSOR_FILES
    assert is_adapter(adapter) and not is_adapter(base)
    patterns = get_stage("few_image").trains
    assert adapter_info(adapter) == AdapterInfo(str(base), "few_image", ("alignment", "few_image"), patterns)
    lora, modules = (
        load_file(adapter / "adapter_model.safetensors"),
        load_file(adapter / "trained_modules.safetensors"),
    )
    learning = {name: p for name, p in trained.named_parameters() if p.requires_grad}
    assert len(lora) == 28 and len(lora) + len(modules) == len(learning)
    assert all(torch.equal(tensor, learning[name]) for name, tensor in modules.items())
    key = "base_model.model.layers.1.mlp.up_proj.lora_B.weight"
    assert torch.equal(lora[key], trained.model.language_model.layers[1].mlp.up_proj.lora_B.default.weight)
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    # Small against the model: neither tower nor trunk nor language model is in it.
    assert not [n for n in modules if "vision_tower" in n or "image_encoder" in n or "language_model" in n]


def test_peft_reads_the_folder(adapter, base, trained):
    language_model = VirstForVideoSegmentation.from_pretrained(base).model.language_model
    ids = torch.arange(30)[None]
    with torch.no_grad():
        plain = language_model(ids).last_hidden_state
        wrapped = PeftModel.from_pretrained(language_model, str(adapter)).eval()
        found, expected = wrapped(ids).last_hidden_state, trained.model.language_model(ids).last_hidden_state
        assert torch.allclose(found, expected, atol=1e-5) and not torch.allclose(found, plain, atol=1e-2)
        assert torch.allclose(wrapped.merge_and_unload()(ids).last_hidden_state, expected, atol=1e-5)


def test_a_gathered_state_dict_is_what_is_written(trained, base, tmp_path):
    """Under ZeRO-3 the model's own tensors are pieces."""
    state = {name: tensor + 1 for name, tensor in trained.state_dict().items()}
    folder = save_adapter(trained, tmp_path / "a", str(base), get_stage("few_image"), state_dict=state)
    head = load_file(folder / "trained_modules.safetensors")["lm_head.weight"]
    assert torch.equal(head, trained.lm_head.weight + 1)
    state["lm_head.weight"] = torch.empty(0)
    with pytest.raises(CheckpointError, match=r"lack 1 trained tensors, among them lm_head\.weight.*gather"):
        save_adapter(trained, tmp_path / "b", str(base), get_stage("few_image"), state_dict=state)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


# --- the round trip --------------------------------------------------------------------------------------------------
def test_loading_into_the_base_gives_the_same(adapter, base, trained, inputs):
    model = VirstForVideoSegmentation.from_pretrained(base)
    load_adapter(model, adapter)
    assert has_lora(model) and not any(".lora_" in n and p.requires_grad for n, p in model.named_parameters())
    assert_same(model, trained, inputs)


@pytest.mark.parametrize("load", [VirstForVideoSegmentation.from_pretrained, AutoModel.from_pretrained, load_model])
def test_a_name_of_an_adapter_gives_base_overlay_and_lora(adapter, base, trained, inputs, load):
    model = load(adapter)
    assert type(model) is VirstForVideoSegmentation and not has_lora(model)
    assert all(p.requires_grad for p in model.parameters())  # as any model that is loaded
    assert_same(model, trained, inputs)
    untouched = load_model(base)
    assert not torch.allclose(answers(model, inputs)[2], answers(untouched, inputs)[2], atol=1e-2)


def test_a_merged_model_is_an_ordinary_one(adapter, trained, inputs, tmp_path):
    folder = merge_adapter(adapter, tmp_path / "full")
    model, info = VirstForVideoSegmentation.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not is_adapter(folder) and not has_lora(model)
    assert json.loads((folder / "virst_stage.json").read_text()) == {"history": ["alignment", "few_image"]}
    assert load_processor(folder).num_seg_tokens == 4
    assert_same(model, trained, inputs)
    assert_same(model, load_model(adapter), inputs, tolerance=0)


def test_the_next_stage_goes_on_with_the_same_lora(adapter, base, trained, inputs, processor, tmp_path):
    model = VirstForVideoSegmentation.from_pretrained(base)
    load_adapter(model, adapter, trainable=True)
    counts = prepare_model(model, get_stage("propagation"))
    assert counts["lora"] == sum(p.numel() for n, p in trained.named_parameters() if ".lora_" in n)
    state, expected = model.state_dict(), trained.state_dict()
    assert state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in state)
    train(model, "propagation", seed=2)
    stage = get_stage("propagation")
    history = adapter_info(adapter).history
    folder = save_adapter(model, tmp_path / "third", str(base), stage, processor=processor, history=history)
    assert adapter_info(folder).history == ("alignment", "few_image", "propagation")
    assert_same(load_model(folder), model, inputs)


def test_what_an_earlier_stage_trained_goes_along(adapter, base, trained, tmp_path):
    """A stage that trains less must not lose what was trained before it."""
    model = VirstForVideoSegmentation.from_pretrained(base)
    load_adapter(model, adapter, trainable=True)
    prepare_model(model, get_stage("alignment"))
    folder = save_adapter(model, tmp_path / "again", str(base), get_stage("alignment"))
    for name in ("adapter_model.safetensors", "trained_modules.safetensors"):
        a, b = load_file(adapter / name), load_file(folder / name)
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_an_adapter_on_merged_lora_holds_what_was_merged(adapter, base, inputs, tmp_path):
    """`from_pretrained(adapter)` merges. Who trains that on, with the old base, must not lose it."""
    model = train(VirstForVideoSegmentation.from_pretrained(adapter), "alignment", seed=3)
    folder = save_adapter(model, tmp_path / "new", str(base), get_stage("alignment"))
    assert_same(load_model(folder), model, inputs)


def test_loading_twice_takes_the_second(adapter, base, trained, tmp_path):
    model = VirstForVideoSegmentation.from_pretrained(base)
    other = train(VirstForVideoSegmentation.from_pretrained(base), "alignment", seed=5)
    load_adapter(model, save_adapter(other, tmp_path / "other", str(base), get_stage("alignment")))
    load_adapter(model, adapter)
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in trained.state_dict().items())


def test_the_configuration_is_that_of_the_adapter(base, tmp_path):
    """What was trained without the initial fusion is used without it, whatever the base says."""
    config = untrained_config(st_fusion_config={"num_seg_tokens": 4, "num_heads": 4, "prompter_feedforward": 64,
                                                "use_initial_fusion": False})  # fmt: skip
    model = train(VirstForVideoSegmentation.from_pretrained(base, config=config), "alignment")
    folder = save_adapter(model, tmp_path / "a", str(base), get_stage("alignment"))
    for loaded in (
        load_model(folder),
        AutoModel.from_pretrained(folder),
        load_model(merge_adapter(folder, tmp_path / "m")),
    ):
        assert not loaded.config.st_fusion_config.use_initial_fusion
    assert load_model(base).config.st_fusion_config.use_initial_fusion


def test_a_processor_comes_from_the_base_where_the_adapter_has_none(trained, base, tmp_path):
    folder = save_adapter(trained, tmp_path / "a", str(base), get_stage("few_image"))
    assert {path.name for path in folder.iterdir()} == FILES
    assert load_processor(folder).num_seg_tokens == 4
    assert (merge_adapter(folder, tmp_path / "full") / "tokenizer.json").is_file()


# --- bfloat16 --------------------------------------------------------------------------------------------------------
def test_bfloat16_merges_in_float32_and_rounds_once(half_base, tmp_path):
    model = train(VirstForVideoSegmentation.from_pretrained(half_base), "alignment", scale=0.1)
    layer = model.model.language_model.layers[0].self_attn.q_proj
    assert layer.base_layer.weight.dtype == torch.bfloat16 and layer.lora_A.default.weight.dtype == torch.float32
    down, up = layer.lora_A.default.weight.double(), layer.lora_B.default.weight.double()
    expected = (layer.base_layer.weight.double() + 16 / 64 * (up @ down)).float()
    rounded_before = layer.base_layer.weight + (16 / 64 * (up @ down)).to(torch.bfloat16)
    folder = save_adapter(model, tmp_path / "a", str(half_base), get_stage("alignment"))
    merged = VirstForVideoSegmentation.from_pretrained(folder).model.language_model.layers[0].self_attn.q_proj.weight
    assert merged.dtype == torch.bfloat16
    assert torch.equal(merged, expected.to(torch.bfloat16))
    assert not torch.equal(merged, rounded_before)
    merge_lora(model)
    assert torch.equal(model.model.language_model.layers[0].self_attn.q_proj.weight, merged)


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16", "float16"])
def test_types_of_a_merged_model(adapter, trained, processor, dtype, tmp_path):
    folder = merge_adapter(adapter, tmp_path / "full", dtype=dtype)
    weights = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {getattr(torch, dtype or "float32")}
    name = "model.language_model.layers.1.mlp.down_proj"
    layer = trained.get_submodule(name)
    exact = layer.base_layer.weight.data + layer.scaling["default"] * (
        layer.lora_B.default.weight.data @ layer.lora_A.default.weight.data
    )
    assert torch.equal(weights[f"{name}.weight"], exact.to(weights[f"{name}.weight"].dtype))
    assert load_model(folder).dtype == getattr(torch, dtype or "float32")


def test_a_bfloat16_base_merged_in_float32_keeps_what_was_learned(half_base, tmp_path, processor):
    model = train(VirstForVideoSegmentation.from_pretrained(half_base), "alignment", scale=1e-4)
    model.lm_head.float()  # as in mixed training: what learns is float32
    with torch.no_grad():
        model.lm_head.weight.add_(1e-4)
    folder = save_adapter(model, tmp_path / "a", str(half_base), get_stage("alignment"), processor=processor)
    exact = load_file(merge_adapter(folder, tmp_path / "f", dtype="float32") / "model.safetensors")
    own = load_file(merge_adapter(folder, tmp_path / "h") / "model.safetensors")
    assert torch.equal(exact["lm_head.weight"], model.lm_head.weight)
    assert own["lm_head.weight"].dtype == torch.bfloat16
    assert torch.equal(own["lm_head.weight"], model.lm_head.weight.to(torch.bfloat16))


# --- the command -----------------------------------------------------------------------------------------------------
def test_merge_as_a_user_runs_it(adapter, base, trained, inputs, tmp_path, capsys):
    assert main(["merge", str(adapter), str(tmp_path / "full")]) == 0
    out = capsys.readouterr().out
    assert out == f"Wrote {base} with {adapter} (stages: alignment, few_image) to {tmp_path / 'full'}\n"
    assert_same(load_model(tmp_path / "full"), trained, inputs)


def test_merge_with_another_place_of_the_base_and_type(adapter, base, tmp_path, capsys):
    moved = shutil.copytree(base, tmp_path / "moved")
    assert main(["merge", str(adapter), str(tmp_path / "full"), "--base", str(moved), "--dtype", "bfloat16"]) == 0
    assert f"Wrote {moved} with" in capsys.readouterr().out
    assert load_model(tmp_path / "full").dtype == torch.bfloat16


def test_info_counts_what_an_adapter_holds(adapter, trained, capsys):
    assert main(["info", str(adapter)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{adapter}: virst, ")
    learning = sum(p.numel() for p in trained.parameters() if p.requires_grad)
    assert next(line.split()[1] for line in lines if line.startswith("all ")) == f"{learning:,}"
    lora = sum(p.numel() for name, p in trained.named_parameters() if ".lora_" in name)
    assert next(line.split()[1] for line in lines if line.startswith("LoRA ")) == f"{lora:,}"


def test_segment_takes_an_adapter(adapter, trained, processor, clip, tmp_path):
    from PIL import Image

    frames = tmp_path / "frames"
    frames.mkdir()
    for t, frame in enumerate(clip):
        Image.fromarray(frame).save(frames / f"{t:02d}.png")
    command = ["segment", str(frames), "the red square", "--model", str(adapter), "--device", "cpu"]
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "masks.json").read_text())["expressions"][0]["object_scores"]
    expected = trained.segment(**processor(videos=str(frames), text=["the red square"])).object_scores[0]
    assert found == pytest.approx(expected.tolist(), abs=1e-4)


# --- 4 bits ----------------------------------------------------------------------------------------------------------
def test_four_bits_take_the_linear_layers_of_the_language_model_only(shared_model, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    config = four_bit_config()
    assert config.load_in_4bit and config.bnb_4bit_quant_type == "nf4"
    linear = [name for name, module in shared_model.named_modules() if isinstance(module, nn.Linear)]
    chosen = {name for name in linear if should_convert_module(name, config.llm_int8_skip_modules)}
    kinds = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    kinds += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    assert chosen == {f"model.language_model.layers.{i}.{kind}" for i in (0, 1) for kind in kinds}


@pytest.mark.parametrize(("installed", "cuda", "message"), [(False, True, "bitsandbytes"), (True, False, "CUDA")])
def test_four_bits_say_what_is_missing(monkeypatch, installed, cuda, message):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if installed else None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    with pytest.raises(ConfigError, match=message):
        four_bit_config()


def test_lora_is_not_merged_into_fewer_bits(model):
    prepare_model(model, replace(get_stage("alignment"), lora=LoraSettings(rank=2)))
    layer = model.model.language_model.layers[1].mlp.down_proj.base_layer
    layer.weight = nn.Parameter(torch.zeros(4, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ConfigError, match=r"layers\.1\.mlp\.down_proj cannot be merged.*uint8"):
        merge_lora(model)
    assert has_lora(model)
