"""Conversion of small checkpoints, from file to `from_pretrained`. Names at full size: test_conversion_tables.py."""

import argparse
import copy
import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from virst_hf import CheckpointError, VirstConfig, VirstForVideoSegmentation, VirstProcessor, conversion
from virst_hf.cli import convert as convert_command
from virst_hf.conversion import (
    convert_released,
    convert_state_dict,
    convert_videochat,
    expected_shapes,
    init_fusions,
    merge_lora,
)
from virst_hf.conversion_tables import (
    INITIALISED_PREFIXES,
    strip_wrappers,
    virst_to_released,
)
from virst_hf.toy_tokenizer import toy_tokenizer
from virst_hf.untrained import untrained_config, untrained_model

DATA = Path(__file__).parent / "data"
VOCABULARY, PADDED_VOCABULARY, RANK = 40, 48, 4
PEFT = "base_model.model."
LORA_LAYERS = ("self_attn.q_proj", "mlp.down_proj")
UNUSED = "model.occ_predictor.weight"

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def config() -> VirstConfig:
    return VirstConfig(
        vision_config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 64,
            "tokens_per_clip": 16,
            "pretrained_grid": 2,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
        segmenter_config={
            "image_size": 128,
            "hidden_size": 64,
            "trunk_embed_dim": 8,
            "trunk_num_heads": 1,
            "trunk_stages": [1, 1, 1, 1],
            "trunk_global_att_blocks": [0],
            "trunk_window_spec": [8, 4, 4, 4],
            "memory_attention_layers": 1,
            "memory_attention_feedforward": 64,
            "memory_dim": 32,
            "memory_fuser_layers": 1,
            "mask_decoder_mlp_dim": 64,
        },
        st_fusion_config={"prompter_layers": 1, "prompter_feedforward": 64},
        seg_token_id=VOCABULARY - 1,
        video_token_id=VOCABULARY,
    )


@pytest.fixture(scope="module")
def weights(config: VirstConfig) -> State:
    """Weights of a small model, no two alike."""
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(shape, generator=generator) for name, shape in expected_shapes(config).items()}


@pytest.fixture(scope="module")
def released(weights: State) -> State:
    """The same weights under released names, with LoRA beside some of them."""
    generator = torch.Generator().manual_seed(4)
    state = {PEFT + virst_to_released(name): x for name, x in weights.items()}
    state[PEFT + UNUSED] = torch.randn(1, 64, generator=generator)
    for layer in LORA_LAYERS:
        name = f"{PEFT}model.layers.1.{layer}"
        rows, columns = state[name + ".weight"].shape
        state[name + ".lora_A.default.weight"] = torch.randn(RANK, columns, generator=generator)
        state[name + ".lora_B.default.weight"] = torch.randn(rows, RANK, generator=generator)
    return state


@pytest.fixture(scope="module")
def merged(weights: State, released: State) -> State:
    """What the converted model must hold, with alpha 16."""
    state = dict(weights)
    for layer in LORA_LAYERS:
        name = f"{PEFT}model.layers.1.{layer}"
        a, b = (released[f"{name}.lora_{x}.default.weight"].double() for x in "AB")
        ours = f"model.language_model.layers.1.{layer}.weight"
        state[ours] = (weights[ours].double() + 16 / RANK * (b @ a)).float()
    return state


@pytest.fixture(scope="module")
def videochat(weights: State) -> State:
    """What VideoChat-Flash has of the small model, its vocabulary padded."""
    state = {virst_to_released(name): x for name, x in weights.items()}
    parts = ("model.seg_", "model.initial_")
    state = {name: x for name, x in state.items() if not name.startswith(parts)}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = torch.cat([state[name], torch.ones(PADDED_VOCABULARY - VOCABULARY, 64)])
    return state


@pytest.fixture(scope="module")
def sam2(weights: State) -> State:
    prefix = "model.segmenter."
    return {name.removeprefix(prefix): x for name, x in weights.items() if name.startswith(prefix)}


def save_shards(state: State, folder: Path) -> Path:
    """A folder of two shards with an index."""
    folder.mkdir()
    names = list(state)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: state[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def assert_loads(folder: Path, expected: State) -> VirstForVideoSegmentation:
    """`from_pretrained` finds every tensor, and each is what it should be."""
    model, info = VirstForVideoSegmentation.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    state = model.state_dict()
    assert state.keys() == expected.keys()
    for name, x in expected.items():
        torch.testing.assert_close(state[name], x, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    return model


# --- LoRA ------------------------------------------------------------------------------------------------------------
@given(sizes=st.tuples(*[st.integers(1, 5)] * 3), alpha=st.floats(0, 64), seed=st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_merge_is_the_layer_with_lora(sizes: tuple[int, int, int], alpha: float, seed: int) -> None:
    rank, rows, columns = sizes
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rows, columns), (rank, columns), (rows, rank), (3, columns))
    weight, a, b, x = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    with_adapter = x @ weight.T + (x @ a.T) @ b.T * (alpha / rank)
    torch.testing.assert_close(x @ merge_lora(weight, a, b, alpha).T, with_adapter)


def test_merge_rounds_once() -> None:
    # B A = 1 + 2^-8 has no bfloat16: rounded before the sum, the result would be 0.
    weight, b = torch.tensor([[-1.0]]), torch.tensor([[1.0, 1.0]])
    a = torch.tensor([[1.0], [2.0**-8]])
    out = merge_lora(*(x.bfloat16() for x in (weight, a, b)), alpha=2.0)
    assert out.dtype == torch.bfloat16
    assert out.item() == 2.0**-8


def test_lora_alpha_is_an_argument(config: VirstConfig, weights: State, released: State) -> None:
    name = "model.language_model.layers.1.self_attn.q_proj.weight"
    deltas = [convert_state_dict(released, config, alpha)[name] - weights[name] for alpha in (8.0, 16.0)]
    torch.testing.assert_close(2 * deltas[0], deltas[1], rtol=1e-3, atol=1e-4)
    with pytest.raises(CheckpointError, match="lora_alpha must be a finite number, found nan"):
        convert_state_dict(released, config, float("nan"))


# --- from files to from_pretrained -----------------------------------------------------------------------------------
def bare(state: State) -> State:
    return {strip_wrappers(name): x for name, x in state.items()}


def newer_peft(state: State) -> State:
    """PEFT since 0.6 puts the weight into `base_layer`, inside a wrapper of data-parallel training."""
    out = {}
    for name, x in state.items():
        layer, _, last = name.rpartition(".")
        wrapped = layer.endswith(LORA_LAYERS) and layer.startswith(PEFT + "model.layers.1.")
        out["module." + (f"{layer}.base_layer.{last}" if wrapped else name)] = x
    return out


SAVERS: dict[str, Callable[[State, Path], Path]] = {}


def saver(function: Callable[[State, Path], None]) -> Callable[[State, Path], None]:
    SAVERS[function.__name__] = function
    return function


@saver
def wrapped_pt(state: State, folder: Path) -> Path:
    torch.save({"model_state_dict": state, "epoch": 3}, folder / "virst.pt")
    return folder / "virst.pt"


@saver
def bare_pt(state: State, folder: Path) -> Path:
    torch.save(bare(state), folder / "virst.pt")
    return folder / "virst.pt"


@saver
def legacy_pt(state: State, folder: Path) -> Path:
    torch.save({"model_state_dict": state}, folder / "virst.pt", _use_new_zipfile_serialization=False)
    return folder / "virst.pt"


@saver
def newer_peft_shards(state: State, folder: Path) -> Path:
    return save_shards(newer_peft(state), folder / "shards")


@saver
def one_safetensors(state: State, folder: Path) -> Path:
    save_file(state, folder / "virst.safetensors")
    return folder / "virst.safetensors"


@pytest.mark.parametrize("save", SAVERS.values(), ids=SAVERS.keys())
def test_released_converts_and_loads(
    save: Callable, tmp_path: Path, config: VirstConfig, released: State, merged: State
) -> None:
    before = copy.deepcopy(config.to_dict())
    lines: list[str] = []
    source = save(released, tmp_path)
    plan = convert_released(source, tmp_path / "out", config, max_shard_size="500KB", progress=lines.append)
    model = assert_loads(tmp_path / "out", merged)
    assert model.config.to_dict()["segmenter_config"] == before["segmenter_config"] | {"dtype": "float32"}
    assert config.to_dict() == before
    assert [strip_wrappers(name) for name in plan.unused] == [UNUSED]
    assert any(line.startswith("Known and unused") and UNUSED in line for line in lines)
    files = sorted(source.glob("*.safetensors")) if source.is_dir() else [source]
    for file, line in zip(files, lines, strict=False):
        assert line.startswith(f"SHA-256 of {file.name}: {hashlib.sha256(file.read_bytes()).hexdigest()}")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == merged.keys()
    assert len(set(index["weight_map"].values())) > 1
    assert sorted(x.name for x in tmp_path.iterdir()) == sorted(["out", source.name])


def test_converted_model_saves_the_same_again(
    tmp_path: Path, config: VirstConfig, released: State, merged: State
) -> None:
    convert_released(wrapped_pt(released, tmp_path), tmp_path / "out", config)
    assert_loads(tmp_path / "out", merged).save_pretrained(tmp_path / "again")
    assert_loads(tmp_path / "again", merged)
    kept = {x.name for x in (tmp_path / "again").iterdir()}
    assert {x.name for x in (tmp_path / "out").iterdir()} == kept


def test_the_published_hash_is_recognised(
    tmp_path: Path, config: VirstConfig, released: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, lines = wrapped_pt(released, tmp_path), []
    convert_released(file, tmp_path / "other", config, progress=lines.append)
    assert f"(the published one has {conversion.RELEASED_SHA256})" in lines[0]
    monkeypatch.setattr(conversion, "RELEASED_SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    convert_released(file, tmp_path / "out", config, progress=lines.append)
    assert any(line.endswith("(the published checkpoint)") for line in lines)


def test_dtype_is_that_of_the_source_or_as_asked(tmp_path: Path, config: VirstConfig, released: State) -> None:
    file = wrapped_pt({name: x.bfloat16() for name, x in released.items()}, tmp_path)
    for folder, asked, expected in (("own", None, torch.bfloat16), ("asked", torch.float32, torch.float32)):
        convert_released(file, tmp_path / folder, config, dtype=asked)
        with safe_open(tmp_path / folder / "model.safetensors", framework="pt") as reader:
            assert {reader.get_tensor(name).dtype for name in reader.keys()} == {expected}
        assert VirstForVideoSegmentation.from_pretrained(tmp_path / folder).dtype == expected


def test_tensors_that_share_memory_are_written_apart(tmp_path: Path, config: VirstConfig, released: State) -> None:
    tied = {**released, PEFT + "lm_head.weight": released[PEFT + "model.embed_tokens.weight"]}
    convert_released(wrapped_pt(tied, tmp_path), tmp_path / "out", config)
    model = VirstForVideoSegmentation.from_pretrained(tmp_path / "out")
    assert torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)
    assert model.lm_head.weight.data_ptr() != model.get_input_embeddings().weight.data_ptr()


def test_processor_is_written_with_a_tokenizer(tmp_path: Path, config: VirstConfig, released: State) -> None:
    model = untrained_model()
    state = {virst_to_released(name): x for name, x in model.state_dict().items()}
    save_file(state, tmp_path / "in.safetensors")
    convert_released(tmp_path / "in.safetensors", tmp_path / "out", untrained_config(), tokenizer=toy_tokenizer())
    processor = VirstProcessor.from_pretrained(tmp_path / "out")
    assert processor.tokenizer.convert_tokens_to_ids("[SEG]") == model.config.seg_token_id
    assert processor.num_seg_tokens == model.config.st_fusion_config.num_seg_tokens
    assert processor.video_processor.sam_image_size == model.config.segmenter_config.image_size
    # The vocabulary of the small model of this file is not the tokenizer's.
    with pytest.raises(CheckpointError, match=r"gives \[SEG\] the id \d+, the model expects 39"):
        convert_released(wrapped_pt(released, tmp_path), tmp_path / "no", config, tokenizer=toy_tokenizer())
    with pytest.raises(CheckpointError, match="No tokenizer could be loaded from .*nowhere"):
        convert_released(tmp_path / "virst.pt", tmp_path / "no", config, tokenizer=tmp_path / "nowhere")
    assert not (tmp_path / "no").exists()


# --- VideoChat-Flash and SAM 2.1 -------------------------------------------------------------------------------------
def test_videochat_and_sam2_convert_and_load(
    tmp_path: Path, config: VirstConfig, weights: State, videochat: State, sam2: State
) -> None:
    folder = save_shards(videochat, tmp_path / "videochat")
    torch.save({"model": sam2}, tmp_path / "sam2.pt")
    lines: list[str] = []
    plan = convert_videochat(folder, tmp_path / "sam2.pt", tmp_path / "out", config, seed=5, progress=lines.append)
    new = init_fusions(config, seed=5)
    assert_loads(tmp_path / "out", {name: new.get(name, x) for name, x in weights.items()})
    assert plan.initialised == list(new)
    assert {name for name in weights if name.startswith(INITIALISED_PREFIXES)} == new.keys()
    assert any(line.startswith("In no source") and "model.initial_fusion.gate" in line for line in lines)
    assert any(line.startswith("Rows behind the vocabulary cut (2)") for line in lines)
    assert sum(line.startswith("SHA-256 of ") for line in lines) == 3


def test_new_fusions_follow_the_rules_of_the_model(config: VirstConfig) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    state = init_fusions(config, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    again, other = init_fusions(config, seed=1), init_fusions(config, seed=2)
    assert all(torch.equal(x, again[name]) for name, x in state.items())
    name = "model.initial_fusion.vision_proj.weight"
    assert not torch.equal(state[name], other[name])
    assert state[name].std().item() == pytest.approx(config.initializer_range, rel=0.1)
    assert state["model.initial_fusion.gate"].item() == pytest.approx(config.st_fusion_config.gate_init)
    assert torch.equal(state["model.prompt_decoder.tokenizer.norm.weight"], torch.ones(64))
    assert not state["model.prompt_decoder.layers.0.ff.0.bias"].any()


def test_rows_are_only_cut_from_the_vocabulary(
    tmp_path: Path, config: VirstConfig, videochat: State, sam2: State
) -> None:
    name = "model.norm.weight"
    save_shards({**videochat, name: torch.ones(65)}, tmp_path / "long")
    save_shards({**videochat, "lm_head.weight": torch.ones(VOCABULARY - 1, 64)}, tmp_path / "short")
    factor = "model.layers.0.mlp.up_proj.lora_A.default.weight"
    save_shards({**videochat, factor: torch.ones(2, 64)}, tmp_path / "lora")
    save_file(sam2, tmp_path / "sam2.safetensors")
    for folder, text in (("long", name), ("short", "lm_head.weight is"), ("lora", f"1 unexpected: {factor}")):
        with pytest.raises(CheckpointError, match=text):
            convert_videochat(tmp_path / folder, tmp_path / "sam2.safetensors", tmp_path / "out", config)
    assert not (tmp_path / "out").exists()


# --- what is refused -------------------------------------------------------------------------------------------------
def without(state: State, name: str) -> State:
    return {key: x for key, x in state.items() if key != name}


NORM, FACTOR = PEFT + "model.norm.weight", f"{PEFT}model.layers.1.{LORA_LAYERS[0]}.lora_B.default.weight"
FAULTS = {
    "missing": (lambda s: without(s, NORM), "1 missing: model.norm.weight"),
    "extra": (lambda s: {**s, "model.seg_model.new": torch.ones(1)}, "1 unexpected: model.seg_model.new"),
    "unknown": (lambda s: {**s, "step": torch.ones(1)}, "1 unexpected: step"),
    "shape": (lambda s: {**s, NORM: torch.ones(63)}, r"1 not as expected: .*norm.weight is .*\[63\], .* \[64\]"),
    "integer": (lambda s: {**s, NORM: torch.ones(64, dtype=torch.int8)}, "norm.weight is torch.int8"),
    "twice": (lambda s: {**s, "module." + NORM: torch.ones(64)}, "1 there twice: module.base_model.model.model.norm"),
    "half a LoRA": (lambda s: without(s, FACTOR), "1 missing: model.layers.1.self_attn.q_proj.lora_B.default.weight"),
    "ranks": (lambda s: {**s, FACTOR: torch.ones(64, 3)}, r"lora_B.default.weight is .*\[64, 3\], .*\[64, 4\]"),
    "LoRA of nothing": (
        lambda s: {**s, "model.layers.9.mlp.up_proj.lora_A.default.weight": torch.ones(4, 64)},
        "1 unexpected: model.layers.9",
    ),
    "other adapter": (
        lambda s: {**s, PEFT + "model.layers.0.mlp.up_proj.lora_A.mine.weight": torch.ones(4, 64)},
        "1 unexpected: .*lora_A.mine",
    ),
    "padded": (
        lambda s: {**s, PEFT + "lm_head.weight": torch.ones(PADDED_VOCABULARY, 64)},
        r"lm_head.weight is .*\[48, 64\], expected .*\[40, 64\]",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_checkpoints_fail_with_a_list(fault: str, tmp_path: Path, config: VirstConfig, released: State) -> None:
    change, message = FAULTS[fault]
    file = wrapped_pt(change(released), tmp_path)
    with pytest.raises(CheckpointError, match=message):
        convert_released(file, tmp_path / "out", config)
    with pytest.raises(CheckpointError, match=message):
        convert_state_dict(change(released), config)
    assert [x.name for x in tmp_path.iterdir()] == ["virst.pt"]


def test_all_faults_are_listed_at_once(config: VirstConfig, released: State) -> None:
    state = {**without(released, NORM), "step": torch.ones(1), PEFT + "lm_head.weight": torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"1 unexpected: step; 1 missing: model.norm.weight; 1 not as expected"):
        convert_state_dict(state, config)


class Bomb:
    """Makes a file when it is unpickled without care."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("form", ["zip", "legacy", "plain"])
def test_a_pickle_bomb_is_refused(form: str, tmp_path: Path, config: VirstConfig, released: State) -> None:
    file, target = tmp_path / "bomb.pt", tmp_path / "exploded"
    content = {"model_state_dict": released, "extra": Bomb(target)}
    if form == "plain":
        file.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(CheckpointError, match=r"bomb\.pt was refused, and nothing in it was executed") as caught:
        convert_released(file, tmp_path / "out", config)
    # torch's own message tells how to execute the file; that advice must not reach the user.
    assert "weights_only" not in str(caught.value)
    assert [x.name for x in tmp_path.iterdir()] == ["bomb.pt"]
    # The bomb is live: this is what a careless reader would have done.
    torch.load(file, weights_only=False) if form != "plain" else pickle.loads(file.read_bytes())
    assert target.exists()


def test_output_must_be_free(tmp_path: Path, config: VirstConfig, released: State, merged: State) -> None:
    file, out = wrapped_pt(released, tmp_path), tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(CheckpointError, match="out exists and is not an empty folder"):
        convert_released(file, out, config)
    with pytest.raises(CheckpointError, match="virst.pt exists and is not an empty folder"):
        convert_released(file, file, config)
    assert [x.name for x in out.iterdir()] == ["mine.txt"]
    (out / "mine.txt").unlink()
    convert_released(file, out, config)
    assert_loads(out, merged)


def test_a_write_that_fails_leaves_nothing(
    tmp_path: Path, config: VirstConfig, released: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    file = wrapped_pt(released, tmp_path)
    monkeypatch.setattr(VirstConfig, "save_pretrained", full)  # the last thing, after all shards
    with pytest.raises(OSError, match="No space left"):
        convert_released(file, tmp_path / "out", config)
    assert [x.name for x in tmp_path.iterdir()] == ["virst.pt"]


def test_shard_size_must_be_a_size(tmp_path: Path, config: VirstConfig, released: State) -> None:
    with pytest.raises(CheckpointError, match="max_shard_size is 'much'"):
        convert_released(wrapped_pt(released, tmp_path), tmp_path / "out", config, max_shard_size="much")
    assert not (tmp_path / "out").exists()


# --- command ---------------------------------------------------------------------------------------------------------
def run_command(*arguments: str | Path) -> int:
    parser = argparse.ArgumentParser(prog="virst")
    convert_command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["convert", *map(str, arguments)])
    return args.run(args)


def test_command_converts_both_kinds(
    tmp_path: Path,
    config: VirstConfig,
    released: State,
    weights: State,
    videochat: State,
    sam2: State,
    capsys: pytest.CaptureFixture,
) -> None:
    config.save_pretrained(tmp_path / "config")
    common = ("--config", tmp_path / "config", "--lora-alpha", "0", "--max-shard-size", "400KB")
    assert run_command("--released", wrapped_pt(released, tmp_path), "--output", tmp_path / "a", *common) == 0
    assert_loads(tmp_path / "a", weights)
    printed = capsys.readouterr().out
    assert "SHA-256 of virst.pt: " in printed and UNUSED in printed and "LoRA merged into 2 weights" in printed
    save_shards(videochat, tmp_path / "videochat")
    torch.save({"model": sam2}, tmp_path / "sam2.pt")
    sources = ("--videochat", tmp_path / "videochat", "--sam2", tmp_path / "sam2.pt")
    assert run_command(*sources, "--output", tmp_path / "b", "--dtype", "bfloat16", *common) == 0
    assert VirstForVideoSegmentation.from_pretrained(tmp_path / "b").dtype == torch.bfloat16


def test_command_refuses_half_of_the_sources(tmp_path: Path) -> None:
    for arguments in (("--videochat", tmp_path), ("--released", "x.pt", "--sam2", "y.pt")):
        with pytest.raises(CheckpointError, match="belong together"):
            run_command(*arguments, "--output", tmp_path / "out")
    with pytest.raises(SystemExit):
        run_command("--output", tmp_path / "out")
