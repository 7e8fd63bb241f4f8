"""Adapter folders: what is said where something is wrong, and that nothing is left of one that cannot be written."""

import errno
import json
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from adapter_fixtures import assert_same
from safetensors.torch import load_file, save_file

from virst_hf import CheckpointError, VirstForVideoSegmentation, VirstModel, load_model
from virst_hf.adapters import (
    LoraSettings,
    adapter_info,
    add_lora,
    has_lora,
    load_adapter,
    save_adapter,
)
from virst_hf.cli.main import main
from virst_hf.errors import ConfigError
from virst_hf.loading import merge_adapter
from virst_hf.training import get_stage
from virst_hf.untrained import untrained_config, untrained_model


@pytest.fixture(scope="module")
def inputs(processor, clip):
    return processor(videos=clip, text=["the red square"])


# --- what may be wrong -----------------------------------------------------------------------------------------------
@pytest.fixture
def broken(adapter, tmp_path):
    """A copy that a test may damage."""
    return Path(shutil.copytree(adapter, tmp_path / "broken"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adapter_config.json", r"has no adapter_config\.json"),
        ("adapter_model.safetensors", r"adapter_model\.safetensors cannot be read"),
        ("trained_modules.safetensors", r"trained_modules\.safetensors cannot be read"),
    ],
)
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_missing_or_damaged_file_is_named(broken, base, name, message, damage):
    file = broken / name
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        message = message.replace("has no ", "")
    with pytest.raises(CheckpointError, match=message):
        load_model(broken)
    model = VirstForVideoSegmentation.from_pretrained(base)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError):
        load_adapter(model, broken)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"base": 1, "stage": "a", "history": [], "trained": []}'])
def test_a_damaged_description_is_an_error(broken, content):
    (broken / "virst_adapter.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"virst_adapter\.json is damaged"):
        load_model(broken)


def test_no_adapter_folder(base, tmp_path):
    with pytest.raises(CheckpointError, match="is no adapter folder"):
        adapter_info(tmp_path)
    with pytest.raises(CheckpointError, match="is no adapter folder"):
        load_adapter(untrained_model(), base)
    with pytest.raises(ConfigError, match="no adapter folder.*base="):
        VirstForVideoSegmentation.from_pretrained(base, base=base)


def test_a_base_that_is_gone(broken, base, tmp_path, inputs, trained):
    content = json.loads((broken / "virst_adapter.json").read_text())
    for gone in ("/nowhere/model", str(tmp_path / "gone"), "./gone"):
        (broken / "virst_adapter.json").write_text(json.dumps({**content, "base": gone}))
        with pytest.raises(CheckpointError, match="belongs to the model .*no such folder.*--base"):
            load_model(broken)
    assert_same(VirstForVideoSegmentation.from_pretrained(broken, base=base), trained, inputs)
    with pytest.raises(CheckpointError, match="is an adapter folder, expected the full model"):
        VirstForVideoSegmentation.from_pretrained(broken, base=broken)


def test_a_base_of_other_sizes(adapter, tmp_path):
    other = untrained_model(text_config={**untrained_config().text_config.to_dict(), "hidden_size": 32})
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match="other shapes"):
        VirstForVideoSegmentation.from_pretrained(adapter, base=tmp_path / "other")
    names = list(other.state_dict())
    with pytest.raises(CheckpointError, match=r"does not belong to this model.*It was trained from"):
        load_adapter(other, adapter)
    assert list(other.state_dict()) == names and not has_lora(other)


def test_lora_of_another_scale_is_not_taken_for_the_same(adapter, base):
    model = VirstForVideoSegmentation.from_pretrained(base)
    add_lora(model, LoraSettings(alpha=32))
    with pytest.raises(CheckpointError, match="lora_alpha 32.*has 16"):
        load_adapter(model, adapter)


@pytest.mark.filterwarnings("ignore:Unexpected keyword arguments")
@pytest.mark.parametrize("change", [{"use_dora": True}, {"bias": "all"}, {"peft_type": "IA3"}, {"r": "x"}])
def test_other_kinds_of_adapters_are_refused(broken, change):
    content = json.loads((broken / "adapter_config.json").read_text())
    (broken / "adapter_config.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        load_model(broken)


@pytest.mark.parametrize(
    ("which", "change"),
    [
        ("adapter_model.safetensors", "missing"),  # of the other tensors a stage may train fewer
        ("adapter_model.safetensors", "unknown"),
        ("adapter_model.safetensors", "shape"),
        ("trained_modules.safetensors", "unknown"),
        ("trained_modules.safetensors", "shape"),
    ],
)
def test_tensors_that_do_not_fit(broken, base, which, change):
    tensors = load_file(broken / which)
    name = sorted(tensors)[0]
    if change == "unknown":
        tensors[name.replace(".weight", ".wait")] = tensors[name].clone()
    elif change == "shape":
        tensors[name] = torch.zeros(3, 3)
    else:
        del tensors[name]
    save_file(tensors, broken / which)
    with pytest.raises(CheckpointError, match="does not belong to this model: 1 tensors"):
        load_adapter(VirstForVideoSegmentation.from_pretrained(base), broken)


def test_an_adapter_is_for_the_whole_model(adapter):
    with pytest.raises(CheckpointError, match="not for VirstModel"):
        load_adapter(VirstModel(untrained_config()), adapter)


def test_weights_that_are_not_in_memory(adapter):
    with torch.device("meta"):
        model = VirstForVideoSegmentation(untrained_config())
    with pytest.raises(CheckpointError, match="not in memory.*virst merge"):
        load_adapter(model, adapter)


def test_no_second_lora_and_no_adapter_without(model, base, tmp_path):
    with pytest.raises(CheckpointError, match="no LoRA"):
        save_adapter(model, tmp_path / "a", str(base), get_stage("alignment"))
    add_lora(model, LoraSettings(rank=2))
    with pytest.raises(ConfigError, match="LoRA already"):
        add_lora(model, LoraSettings(rank=2))
    with pytest.raises(ConfigError, match="LoRA cannot be added"):
        add_lora(untrained_model(), LoraSettings(rank=0))


# --- writing ---------------------------------------------------------------------------------------------------------
def test_nothing_is_written_over(trained, adapter, base, tmp_path):
    folder = tmp_path / "there"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="exists already"):
        save_adapter(trained, folder, str(base), get_stage("few_image"))
    with pytest.raises(CheckpointError, match="exists already"):
        merge_adapter(adapter, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert (folder / "mine.txt").read_text() == "mine"


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("what", ["virst_hf.adapters.save_file", "virst_hf.adapters.write_json"])
def test_a_full_disk_leaves_nothing_of_an_adapter(trained, base, tmp_path, monkeypatch, what):
    monkeypatch.setattr(what, no_space)
    with pytest.raises(CheckpointError, match=r"adapter could not be written.*No space left.*Nothing is left"):
        save_adapter(trained, tmp_path / "out" / "a", str(base), get_stage("few_image"))
    assert not list((tmp_path / "out").iterdir())


@pytest.fixture
def quota():
    """No file may grow beyond 64 kB: a real failure of the writers, not a made-up one."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_writer_that_really_fails_leaves_nothing(trained, adapter, base, tmp_path, quota):
    with pytest.raises(CheckpointError, match="adapter could not be written"):
        save_adapter(trained, tmp_path / "a", str(base), get_stage("few_image"))
    with pytest.raises(CheckpointError, match="model could not be written"):
        merge_adapter(adapter, tmp_path / "full")
    assert not list(tmp_path.iterdir())


# --- the command -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{base}", "{new}"], "is no adapter folder"),
        (["{new}", "{other}"], "is no adapter folder"),
        (["{adapter}", "{base}"], "exists already"),
        (["{adapter}", "{new}", "--base", "{other}"], "there is no such folder"),
        (["{adapter}", "{new}", "--base", "{adapter}"], "expected the full model"),
        (["{adapter}", "{new}", "--dtype", "int8"], "invalid choice"),
        (["{adapter}"], "OUTPUT"),
    ],
)
def test_bad_input_of_merge_is_one_line(adapter, base, tmp_path, capsys, arguments, message):
    places = {"adapter": adapter, "base": base, "new": tmp_path / "new", "other": tmp_path / "other"}
    try:
        code = main(["merge", *(argument.format(**places) for argument in arguments)])
    except SystemExit as stop:  # of argparse
        code = stop.code
    err = capsys.readouterr().err
    assert code == 2 and err.count("\n") == 1 and message in err
    assert not list(tmp_path.iterdir())
