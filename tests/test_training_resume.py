"""A run that is killed, at any time, and given again ends with the weights of one that was not, bit for bit."""

import hashlib
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from training_fixtures import ROOT, Workspace, example, log_of, losses

from virst_hf.errors import CheckpointError, ConfigError
from virst_hf.training import VirstTrainer
from virst_hf.training.checkpoints import STAGING, check_run, find_checkpoint, move_into_place, note_run, sweep

pytestmark = pytest.mark.usefixtures("one_thread", "work_cache")

STEPS, ACCUMULATION = 6, 2
# Runs `examples/train.py` as it is. Before that it may arrange to be killed in the middle of a micro-batch, or to be
# slow between two files of the second checkpoint, so that whoever watches has the time to kill it there.
DRIVER = """
import os, runpy, signal, sys, time, torch
from transformers import Trainer

script, moment, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
calls = []
def counted(inner, act):
    def call(*args, **kwargs):
        result = inner(*args, **kwargs)
        calls.append(1)
        if len(calls) == number:
            act()
        return result
    return call
if moment == "batch":
    Trainer.compute_loss = counted(Trainer.compute_loss, lambda: os.kill(os.getpid(), signal.SIGKILL))
elif moment == "save":
    torch.save = counted(torch.save, lambda: time.sleep(600))
sys.argv = [script, *sys.argv[4:]]
runpy.run_path(script, run_name="__main__")
"""


def config(work: Workspace, output: Path) -> Path:
    """The stage as it is, with the dropout of its LoRA; a decay, so that the schedule matters; and a validation."""
    return work.config(
        output,
        stage="propagation",
        allow_missing_stage=True,
        max_steps=STEPS,
        gradient_accumulation_steps=ACCUMULATION,
        learning_rate=1e-3,
        warmup_steps=2,
        validation={"data": work.sources("rvos"), "samples": 1},
        load_best_model_at_end=False,  # what is compared has been through all steps
        save_total_limit=None,
    )


def start(work: Workspace, tmp_path: Path, output: Path, moment: str = "never", number: int = 0):
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    script = str(ROOT / "examples" / "train.py")
    return work.start(script, moment, str(number), "--config", str(config(work, output)), script=str(driver))


def finish(process) -> str:
    out, err = process.communicate()
    assert process.returncode == 0, err[-3000:]
    return out


def weights(output: Path) -> dict[str, str]:
    """A hash of each file of the result that holds tensors."""
    files = sorted((output / "final").glob("*.safetensors"))
    assert len(files) == 2
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def uninterrupted(work, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert "Starting in" in finish(start(work, folder, folder / "run"))
    return folder / "run"


def is_whole(checkpoint: Path) -> bool:
    return {"trainer_state.json", "optimizer.pt", "rng_state.pth", "run.json"} <= {
        p.name for p in checkpoint.iterdir()
    }


@pytest.mark.slow
def test_the_run_does_what_the_test_is_for(uninterrupted):
    log = log_of(uninterrupted)
    assert len(losses(log)) == STEPS and len({entry["learning_rate"] for entry in log if "loss" in entry}) > 3
    states = [uninterrupted / f"checkpoint-{step}" / "rng_state.pth" for step in (2, 4)]
    first, second = (torch.load(path, weights_only=False)["cpu"] for path in states)
    assert not torch.equal(first, second)  # dropout has drawn


@pytest.mark.slow
def test_killed_at_a_random_micro_batch(work, uninterrupted, tmp_path):
    # Of steps 3 to 6: there is a checkpoint, and there is something left to do. Each counts a validation too.
    number = random.Random(os.urandom(8)).randrange(2 * ACCUMULATION + 2, STEPS * ACCUMULATION + 2)
    killed = start(work, tmp_path, tmp_path / "run", "batch", number)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL, number
    assert not (tmp_path / "run" / "final").exists()
    assert "Going on from" in finish(start(work, tmp_path, tmp_path / "run"))
    assert weights(tmp_path / "run") == weights(uninterrupted), number
    assert losses(log_of(tmp_path / "run")) == losses(log_of(uninterrupted)), number


@pytest.mark.slow
def test_killed_during_a_save(work, uninterrupted, tmp_path):
    # Three files a checkpoint go through torch.save; it stops after the optimiser of the second one.
    killed = start(work, tmp_path, tmp_path / "run", "save", 4)
    staged = tmp_path / "run" / STAGING / "checkpoint-4"
    deadline = time.monotonic() + 120
    while not (staged / "optimizer.pt").exists() and time.monotonic() < deadline and killed.poll() is None:
        time.sleep(0.01)
    time.sleep(0.2)
    killed.kill()
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert staged.exists() and not is_whole(staged)
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]
    assert is_whole(tmp_path / "run" / "checkpoint-2")
    out = finish(start(work, tmp_path, tmp_path / "run"))
    assert f"Going on from {tmp_path / 'run' / 'checkpoint-2'}" in out
    assert not (tmp_path / "run" / STAGING).exists()
    assert weights(tmp_path / "run") == weights(uninterrupted)


# --- the pieces ------------------------------------------------------------------------------------------------------
def test_resume_refuses_other_data(work, tmp_path, capsys):
    def run(**changes) -> int:
        path = work.config(tmp_path / "run", data=work.sources("rvos"), max_steps=2, save_steps=1, **changes)
        return example().main(["--config", str(path)])

    assert run() == 0
    other = shutil.copytree(work.model, tmp_path / "other")
    for changes, message in (
        ({"seed": 4}, "was written with mixture"),
        ({"seed": 4, "data_seed": 3}, "was written with seed 3, and this run has 4"),
        ({"fast_resize": True}, "was written with fast_resize False, and this run has True"),
        ({"model": str(other)}, f"was written with model '{work.model}', and this run has '{other}'"),
        ({"gradient_accumulation_steps": 2}, "was written with draws_per_step 1, and this run has 2"),
        ({"stage": "few_image", "allow_missing_stage": True}, "was written with stage 'alignment'"),
    ):
        assert run(**changes) == 2
        assert message in capsys.readouterr().err
    assert run() == 0  # nothing is left to do
    assert [path.name for path in sorted((tmp_path / "run").iterdir())] == ["checkpoint-1", "checkpoint-2", "final"]


def test_what_is_found_to_go_on_from(tmp_path):
    assert find_checkpoint(tmp_path / "new") is None
    for name in ("checkpoint-2", "checkpoint-10", f"{STAGING}/checkpoint-12", "checkpoint-x"):
        (tmp_path / name).mkdir(parents=True)
    assert find_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    for content in (None, "{}", "{"):
        if content is not None:
            (tmp_path / "checkpoint-10" / "trainer_state.json").write_text(content)
        with pytest.raises(CheckpointError, match="is no checkpoint of a run"):
            find_checkpoint(tmp_path, str(tmp_path / "checkpoint-10"))
    write_state(tmp_path / "checkpoint-10")
    assert find_checkpoint(tmp_path, str(tmp_path / "checkpoint-10")) == str(tmp_path / "checkpoint-10")
    sweep(tmp_path)
    assert not (tmp_path / STAGING).exists() and (tmp_path / "checkpoint-10").exists()


def write_state(checkpoint: Path) -> None:
    checkpoint.mkdir(parents=True, exist_ok=True)
    step = int(checkpoint.name.split("-")[1])
    # As after a step in float16 without a number: Python reads what it has written.
    state = {"global_step": step, "log_history": [{"grad_norm": float("inf")}]}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))


def test_an_earlier_checkpoint_is_refused_while_there_are_later_ones(tmp_path):
    run = tmp_path / "run"
    for step in (10, 20, 100):
        write_state(run / f"checkpoint-{step}")
    message = r"has later checkpoints than .*checkpoint-10: checkpoint-20, checkpoint-100\. Move them elsewhere"
    with pytest.raises(ConfigError, match=message):
        find_checkpoint(run, str(run / "checkpoint-10"))
    with pytest.raises(ConfigError, match=message):
        find_checkpoint(run, os.path.relpath(run / "checkpoint-10"))
    assert find_checkpoint(tmp_path / "new", str(run / "checkpoint-10")) == str(run / "checkpoint-10")
    write_state(tmp_path / "new" / "checkpoint-5")
    with pytest.raises(ConfigError, match="has other checkpoints than .*checkpoint-10: checkpoint-5"):
        find_checkpoint(tmp_path / "new", str(run / "checkpoint-10"))
    for step in (20, 100):
        (run / f"checkpoint-{step}").rename(tmp_path / f"checkpoint-{step}")
    assert find_checkpoint(run, str(run / "checkpoint-10")) == str(run / "checkpoint-10")


def test_the_trainer_refuses_an_earlier_checkpoint(work, tmp_path, capsys):
    config = str(work.config(tmp_path / "run", data=work.sources("rvos"), max_steps=2, save_steps=1))
    assert example().main(["--config", config]) == 0
    earlier = str(tmp_path / "run" / "checkpoint-1")
    assert example().main(["--config", config, "--resume_from_checkpoint", earlier]) == 2
    assert "has later checkpoints than" in capsys.readouterr().err
    shutil.move(tmp_path / "run" / "checkpoint-2", tmp_path / "kept")
    assert example().main(["--config", config, "--resume_from_checkpoint", earlier]) == 0
    names = ("adapter_model.safetensors", "trained_modules.safetensors")
    files = [[(tmp_path / f / name).read_bytes() for name in names] for f in ("kept", "run/checkpoint-2")]
    assert files[0] == files[1]


def test_the_best_checkpoint_is_found_where_the_run_is_now(work, tmp_path, monkeypatch):
    """Its folder is moved, and then named by a relative path."""
    plan = {"validation": {"data": work.sources("rvos"), "samples": 1}, "save_steps": 1}
    path = work.config(tmp_path / "run", data=work.sources("rvos"), max_steps=2, **plan)
    scores = iter([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    inner = VirstTrainer.evaluation_loop

    def scored(self, *args, **kwargs):
        output = inner(self, *args, **kwargs)
        output.metrics["eval_loss"] = next(scores)
        return output

    monkeypatch.setattr(VirstTrainer, "evaluation_loop", scored)
    assert example().main(["--config", str(path)]) == 0
    (tmp_path / "run").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    assert example().main(["--config", str(path), "--output_dir", "./moved", "--max_steps", "4"]) == 0
    kept = sorted(folder.name for folder in (tmp_path / "moved").glob("checkpoint-*"))
    assert kept == ["checkpoint-1", "checkpoint-4"]
    state = json.loads((tmp_path / "moved" / "checkpoint-4" / "trainer_state.json").read_text())
    assert (state["best_global_step"], state["best_model_checkpoint"]) == (1, "moved/checkpoint-1")
    best, final = (
        (tmp_path / "moved" / name / "trained_modules.safetensors").read_bytes() for name in kept[:1] + ["final"]
    )
    assert best == final
    # A new folder for what comes after it: the best one stays where it is.
    later = ["--config", str(path), "--output_dir", "later", "--max_steps"]
    assert example().main([*later, "5", "--resume_from_checkpoint", "moved/checkpoint-4"]) == 0
    assert example().main([*later, "6"]) == 0
    state = json.loads((tmp_path / "later" / "checkpoint-6" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(tmp_path / "moved" / "checkpoint-1")
    assert (tmp_path / "later" / "final" / "trained_modules.safetensors").read_bytes() == best


def test_a_folder_replaces_one_of_its_name(tmp_path):
    for folder, text in (("final", "old"), (f"{STAGING}/final", "new")):
        (tmp_path / folder / "inner").mkdir(parents=True)
        (tmp_path / folder / "inner" / "file").write_text(text)
    move_into_place(tmp_path / STAGING / "final", tmp_path / "final")
    assert (tmp_path / "final" / "inner" / "file").read_text() == "new"
    assert list((tmp_path / STAGING).iterdir()) == []


def test_facts_of_a_run(tmp_path):
    note_run(tmp_path, {"stage": "alignment", "draws_per_step": 16})
    check_run(tmp_path, {"stage": "alignment", "draws_per_step": 16})
    with pytest.raises(CheckpointError, match="draws_per_step 16, and this run has 8"):
        check_run(tmp_path, {"draws_per_step": 8})
    check_run(tmp_path, {"stage": "alignment", "seed": 3, "model": "mine"})  # it is of a version without these
    note_run(tmp_path, {"model": str(tmp_path), "cached_features": False})
    check_run(tmp_path, {"model": str(tmp_path)})
    with pytest.raises(CheckpointError, match="with model .* and this run has 'mine'"):
        check_run(tmp_path, {"model": "mine"})
    with pytest.raises(CheckpointError, match="with cached_features False"):
        check_run(tmp_path, {"cached_features": True})
    note_run(tmp_path, {"model": str(tmp_path / "gone")})
    check_run(tmp_path, {"model": str(tmp_path)})  # it has been moved
    (tmp_path / "run.json").write_text(json.dumps([1]))
    with pytest.raises(CheckpointError, match="stage None"):
        check_run(tmp_path, {"stage": "alignment"})
    with pytest.raises(CheckpointError, match="is no checkpoint of VirstTrainer"):
        check_run(tmp_path / "other", {"stage": "alignment"})
