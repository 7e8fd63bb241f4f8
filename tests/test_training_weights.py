"""The weights of a run: what it started from is read once, and what it wrote is read back or refused."""

import errno
import json
import shutil
from dataclasses import replace

import pytest
import torch

from virst_hf.adapters import STAGE_FILE, adapter_info, find_adapter, find_file, save_adapter
from virst_hf.errors import CheckpointError
from virst_hf.training import VirstTrainingArguments, get_stage
from virst_hf.training.checkpoints import explain_failed_save, lacks_room
from virst_hf.training.stages import STAGES, prepare_model
from virst_hf.training.weights import load_training_model, read_weights, same_model, stages_of, write_weights
from virst_hf.untrained import untrained_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def aligned(work, tmp_path, processor):
    """What the first stage writes."""
    model = untrained_model()
    prepare_model(model, get_stage("alignment"))
    return save_adapter(model, tmp_path / "aligned", str(work.model), get_stage("alignment"), processor=processor)


# --- what a run started from -----------------------------------------------------------------------------------------
def test_what_a_run_started_from_is_read_once(work, tmp_path, processor, aligned):
    args = VirstTrainingArguments(**work.values(tmp_path / "run", stage="few_image", model=str(aligned)))
    model, _ = load_training_model(args)
    shutil.rmtree(aligned)  # before the first save
    write_weights(model, tmp_path / "saved", args, processor)
    info = adapter_info(tmp_path / "saved")
    assert (info.base, info.history) == (str(work.model), ("alignment", "few_image"))
    read_weights(model, tmp_path / "saved", str(work.model))


def test_stages_of_a_full_model_here_and_from_home(work, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "full").mkdir()
    assert stages_of("~/full") == ([], None)
    (tmp_path / "full" / STAGE_FILE).write_text(json.dumps({"history": ["alignment", "few_image"]}))
    assert stages_of("~/full") == stages_of(tmp_path / "full") == (["alignment", "few_image"], None)
    (tmp_path / "full" / STAGE_FILE).write_text("[]")
    with pytest.raises(CheckpointError, match="virst_stage.json is damaged"):
        stages_of("~/full")


def test_stages_of_a_full_model_on_the_hub(tmp_path, monkeypatch):
    (tmp_path / STAGE_FILE).write_text(json.dumps({"history": ["alignment"]}))

    def cached_file(name, file, **options):
        if name != "me/full":
            raise OSError("no such repository")
        return str(tmp_path / file) if (tmp_path / file).exists() else None

    monkeypatch.setattr("virst_hf.adapters.cached_file", cached_file)
    assert stages_of("me/full") == (["alignment"], None)
    assert stages_of("me/other") == ([], None) and find_adapter("me/full") is None
    assert find_file("./full", STAGE_FILE) is None  # no name of the Hub


def test_which_names_are_of_one_model(tmp_path):
    assert same_model("me/full", "me/full") and not same_model("me/full", "me/other")
    assert not same_model(str(tmp_path), "me/other")
    assert same_model(str(tmp_path / "gone"), str(tmp_path))  # moved


# --- reading back ----------------------------------------------------------------------------------------------------
def test_an_adapter_of_another_base_is_refused(work, tmp_path, aligned):
    model = untrained_model()
    with pytest.raises(CheckpointError, match=f"belongs to the model {work.model}, and this run stands on me/other"):
        read_weights(model, aligned, "me/other")
    assert not any(".lora_" in name for name in model.state_dict())
    read_weights(model, aligned, str(work.model))


def test_a_checkpoint_without_weights(tmp_path):
    with pytest.raises(CheckpointError, match="The weights of .* cannot be read"):
        read_weights(untrained_model(), tmp_path)


def test_a_stage_without_lora_writes_a_full_model(work, tmp_path, processor, monkeypatch):
    monkeypatch.setitem(STAGES, "alignment", replace(get_stage("alignment"), lora=None))
    args = VirstTrainingArguments(**work.values(tmp_path / "run"))
    model, _ = load_training_model(args)
    write_weights(model, tmp_path / "saved", args, processor)
    assert stages_of(tmp_path / "saved") == (["alignment"], None)
    expected = model.lm_head.weight.clone()
    torch.nn.init.zeros_(model.lm_head.weight)
    read_weights(model, tmp_path / "saved")
    assert torch.equal(model.lm_head.weight, expected)


# --- no room ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EIO])
def test_room_is_asked_for_where_there_is_none(tmp_path, number):
    advice = "Make room" if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "Mend that"
    with pytest.raises(CheckpointError, match=rf"checkpoint-1 could not be written.*\. {advice}, then give"):
        with explain_failed_save(tmp_path, "checkpoint-1"):
            try:
                raise OSError(number, "it says why")
            except OSError as error:
                raise CheckpointError(f"The adapter could not be written: {error}") from error


def test_the_writers_own_words():
    from safetensors import SafetensorError

    assert lacks_room(SafetensorError(f"Error while serializing: I/O error: File too large (os error {errno.EFBIG})"))
    assert not lacks_room(SafetensorError(f"I/O error: No such file or directory (os error {errno.ENOENT})"))
    assert lacks_room(RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"))
