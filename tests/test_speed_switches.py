"""Switches that make inference faster: bits, attention, pinned memory; wrong ones on the command line."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from test_streaming import video
from torch import nn
from transformers.quantizers.quantizers_utils import should_convert_module

from virst_hf import VirstForVideoSegmentation, VirstProcessor, load_model, make_untrained_model
from virst_hf.cli.main import main
from virst_hf.errors import ConfigError, VirstError
from virst_hf.frame_reader import pinned_copies
from virst_hf.quantization import eight_bit_config, four_bit_config, language_model_bits
from virst_hf.untrained import untrained_model


# --- the language model in fewer bits --------------------------------------------------------------------------------
@pytest.fixture
def with_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)


def test_bits_take_the_linear_layers_of_the_language_model_only(
    shared_model: VirstForVideoSegmentation, with_bitsandbytes: None
):
    eight, four = language_model_bits(8), language_model_bits(4)
    assert eight.load_in_8bit and not eight.load_in_4bit and four.load_in_4bit
    assert eight.llm_int8_skip_modules == four.llm_int8_skip_modules
    linear = [name for name, module in shared_model.named_modules() if isinstance(module, nn.Linear)]
    chosen = [name for name in linear if should_convert_module(name, eight.llm_int8_skip_modules)]
    assert len(chosen) == 14 and all(name.startswith("model.language_model.layers.") for name in chosen)


def test_other_bits_are_refused():
    with pytest.raises(ConfigError, match="cannot be held in 3 bits; expected 8 or 4"):
        language_model_bits(3)


@pytest.mark.parametrize("make", [eight_bit_config, four_bit_config])
@pytest.mark.parametrize(("installed", "message"), [(False, "needs bitsandbytes"), (True, "needs a CUDA device")])
def test_bits_say_what_is_missing(monkeypatch: pytest.MonkeyPatch, make, installed: bool, message: str):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if installed else None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=message):
        make()


def test_bits_reach_the_loading_of_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """And a model that is held in fewer bits is not moved, which it would refuse."""
    seen, model = {}, untrained_model()
    config = object()
    monkeypatch.setattr("virst_hf.quantization.language_model_bits", lambda bits: config if bits == 8 else None)
    monkeypatch.setattr(
        VirstForVideoSegmentation, "from_pretrained", lambda name, **options: seen.update(options) or model
    )
    monkeypatch.setattr(model, "to", lambda *_: pytest.fail("moved"))
    folder = make_untrained_model(tmp_path / "model")
    assert load_model(folder, device="cpu", dtype="bfloat16", bits=8) is model
    assert seen == {"dtype": "bfloat16", "quantization_config": config, "device_map": {"": torch.device("cpu")}}


# --- attention of the language model ---------------------------------------------------------------------------------
def test_eager_attention_gives_the_same_masks(processor: VirstProcessor):
    """Also behind a prefix that was kept, where the mask is another one."""
    logits = []
    for attention in ("sdpa", "eager"):
        torch.manual_seed(0)
        model = untrained_model(attn_implementation=attention)
        assert model.model.language_model.config._attn_implementation == attention
        inputs = processor(videos=video(10), text=["the cat", "the dog that runs to the left"])
        features = model.encode_video(**inputs)
        for _ in range(2):
            outputs = model.segment(inputs["input_ids"], inputs["attention_mask"], features=features)
            logits.append(torch.stack(outputs.mask_logits))
    for other in logits[1:]:
        torch.testing.assert_close(other, logits[0], atol=1e-3, rtol=0)


# --- pinned memory ---------------------------------------------------------------------------------------------------
def test_pinned_memory_is_for_cuda(shared_model: VirstForVideoSegmentation, processor: VirstProcessor):
    with pytest.raises(VirstError, match="this one is on cpu"):
        shared_model.stream(video(4), "the cat", processor, pinned=True)


def test_a_view_is_pinned_and_copied_without_waiting(monkeypatch: pytest.MonkeyPatch):
    """There is no CUDA here: what is called, and in which order."""
    calls = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: calls.append("pinned") or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *args, **more: calls.append((*args, more)) or self)
    device = torch.device("cuda:1")
    assert torch.equal(pinned_copies(lambda frame: frame + 1, device)(torch.zeros(3)), torch.ones(3))
    assert calls == ["pinned", (device, {"non_blocking": True})]


@pytest.mark.parametrize("policy", ["uniform", "windowed"])
def test_all_frames_of_a_pinned_stream_are_copied_by_the_view(
    shared_model: VirstForVideoSegmentation, processor: VirstProcessor, policy: str, monkeypatch: pytest.MonkeyPatch
):
    copied = []

    def copies(view, device):
        return lambda frame: copied.append(1) or view(frame)

    expected = list(shared_model.stream(video(11), "the cat", processor, anchor_policy=policy, window=8))
    monkeypatch.setattr("virst_hf.streaming.pinned_copies", copies)
    found = list(shared_model.stream(video(11), "the cat", processor, policy, window=8, pinned=True))
    assert len(copied) == 11
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.scores, other.scores) and torch.equal(one.masks, other.masks)


# --- the command line ------------------------------------------------------------------------------------------------
BAD_OPTIONS = [
    ("--recent", "-1", "--recent: expected a whole number of at least 0"),
    ("--track-every", "0", "--track-every: expected"),
    ("--pool", "0", "--pool: expected"),
    ("--chunk", "0", "--chunk: expected"),
    ("--llm-bits", "3", "--llm-bits"),
    ("--llm-bits", "8", "8-bit language model needs"),
    ("--encoder-dtype", "int8", "int8"),
    ("--chunk", "many", "many"),
    ("--preset", "quick", "quick"),
]
# That a grid cannot be pooled so is seen at the first frame, and `evaluate` looks for its data before that.
ONLY_SEGMENT = ("segment", "--pool", "3", "pooled by 3")


@pytest.mark.parametrize(
    ("command", "option", "value", "named"),
    [(command, *bad) for command in ("segment", "evaluate") for bad in BAD_OPTIONS] + [ONLY_SEGMENT],
)
def test_bad_speed_options_are_one_line(tmp_path: Path, capsys, monkeypatch, command, option, value, named):
    frames = tmp_path / "frames"
    frames.mkdir()
    for index, frame in enumerate(video(3)):
        Image.fromarray(frame).save(frames / f"{index}.png")
    # virst-tiny has a grid of 12; the untrained model one of 8.
    model = str(make_untrained_model(tmp_path / "model"))
    what = [str(frames), "it"] if command == "segment" else ["mevis-v1-valid_u", "--root", str(tmp_path)]
    arguments = [command, *what, "--model", model, "--output", str(tmp_path / "out"), "--device", "cpu"]
    try:
        code = main([*arguments, option, value])
    except SystemExit as stop:
        code = stop.code
    err = capsys.readouterr().err
    last = err.splitlines()[-1]
    assert code == 2 and named in last and "Traceback" not in err
    assert not (tmp_path / "out").exists()
