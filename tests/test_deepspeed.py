"""DeepSpeed for real: two CPU processes train by ZeRO-2 and ZeRO-3 through examples/train.py, save, resume, reload."""

import json
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from virst_hf import VirstForVideoSegmentation
from virst_hf.data.shapes_maker import make_shapes
from virst_hf.modeling_outputs import VirstOutput
from virst_hf.training.ordered_gradients import order_gradients
from virst_hf.untrained import make_untrained_model

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "examples" / "deepspeed"
# ZeRO adds gradients up in another order. Adam divides a gradient by its own size, so where one is nearly zero the
# rounding decides on the step, and from the second step on the runs drift apart by a little.
LOSS_TOLERANCE, PART_TOLERANCE = 1e-5, 1e-3
KINDS = ("rvos", "video_qa", "referring_image")


def launch() -> None:
    """Run examples/train.py in this process, without the C++ that DeepSpeed would compile first."""
    import deepspeed.ops

    # On a CPU DeepSpeed compiles an all-reduce of its own, for inference, which takes a minute; no setting turns that
    # off. ZeRO uses gloo either way.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if "SEEN" in os.environ:
        tell_what_is_added_up(Path(os.environ["SEEN"]))
    sys.argv[0] = str(ROOT / "examples" / "train.py")
    runpy.run_path(sys.argv[0], run_name="__main__")


def tell_what_is_added_up(path: Path) -> None:
    """Write down the types of weights and gradients that a step of ZeRO-2 finds."""
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    step = DeepSpeedZeroOptimizer.step

    def seen(self, *args, **kwargs):
        if os.environ["RANK"] == "0":
            gradients = {str(grad.dtype) for group in self.averaged_gradients.values() for grad in group}
            weights = {str(weight.dtype) for group in self.bit16_groups for weight in group}
            path.write_text(json.dumps([*sorted(weights), *sorted(gradients), self.check_grad_overflow]))
        return step(self, *args, **kwargs)

    DeepSpeedZeroOptimizer.step = seen


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def train(config: Path, output: Path, *options: str) -> list[dict]:
    """Train on two processes, and return the log: a line for each step."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_port", str(free_port()), __file__, "--config", str(config), "--output_dir", str(output)]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": paths, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *options], capture_output=True, text=True, env=env, timeout=400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    assert "op built successfully" not in done.stdout, "DeepSpeed compiled something"
    steps = max(int(path.name.split("-")[1]) for path in output.glob("checkpoint-*"))
    state = json.loads((output / f"checkpoint-{steps}" / "trainer_state.json").read_text())
    return [line for line in state["log_history"] if "loss" in line]


def values(log: list[dict], *names: str) -> torch.Tensor:
    return torch.tensor([[float(line[name]) for name in names] for line in log], dtype=torch.float64)


def assert_same_trajectory(found: list[dict], expected: list[dict]) -> None:
    """The loss of each step, its parts, and the norm of the gradients before they are clipped."""
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    loss = values(expected, "loss")
    assert torch.allclose(values(found, "loss"), loss, rtol=LOSS_TOLERANCE, atol=0)
    assert len(loss.unique()) == len(loss)
    names = ("token_loss", "bce_loss", "dice_loss", "occlusion_loss", "iou_loss", "grad_norm")
    assert torch.allclose(values(found, *names), values(expected, *names), rtol=PART_TOLERANCE, atol=0)
    # Before the first update there is nothing to drift.
    assert torch.allclose(values(found[:1], *names), values(expected[:1], *names), rtol=LOSS_TOLERANCE, atol=0)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The last stage, where all that ever trains does, on draws of three kinds: two processes with a draw each have
    gradients for different parameters most of the time (a question has none for masks, an image none for memory)."""
    folder = tmp_path_factory.mktemp("deepspeed")
    make_untrained_model(folder / "base")
    make_shapes(folder / "shapes", "train", num_videos=3, seed=0, num_proc=1, progress=False)
    run = {
        "stage": "propagation",
        "allow_missing_stage": True,
        "model": str(folder / "base"),
        "data": [{"name": "shapes", "root": str(folder / "shapes"), "config": kind} for kind in KINDS],
        "weights": dict.fromkeys(KINDS, 1),
        "max_steps": 4,
        "save_steps": 4,
        "logging_steps": 1,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 2,
        "fast_resize": True,
        "dataloader_num_workers": 0,
        "disable_tqdm": True,
        "bf16": False,
        "seed": 3,
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    return path


@pytest.fixture(scope="module")
def plain(config, tmp_path_factory):
    """Two processes without DeepSpeed, six steps at a stretch."""
    output = tmp_path_factory.mktemp("plain")
    return output, train(config, output, "--max_steps", "6", "--save_steps", "6")


@pytest.fixture(scope="module")
def zero2(config, tmp_path_factory):
    """Four steps by ZeRO-2, then a resume for two more."""
    output = tmp_path_factory.mktemp("zero2")
    options = ["--deepspeed", str(CONFIGS / "zero2.json")]
    first = train(config, output, *options)
    assert len(first) == 4
    return output, train(config, output, *options, "--max_steps", "6", "--save_steps", "6")


@pytest.mark.slow
def test_zero2_with_a_resume_equals_plain_training(plain, zero2):
    assert len(zero2[1]) == 6
    assert_same_trajectory(zero2[1], plain[1])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """What a folder of a stage with LoRA holds."""
    return {name: x for path in sorted(folder.glob("*.safetensors")) for name, x in load_file(path).items()}


@pytest.mark.slow
def test_zero2_writes_weights_that_load(plain, zero2, processor, clip):
    expected, found = weights(plain[0] / "final"), weights(zero2[0] / "final")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # Where no process used a module in a step, plain Adam leaves it alone; ZeRO takes a gradient of zero, and Adam
        # goes on with its momentum, by no more than the learning rate.
        tolerance = 3e-3 if ".memory_" in name else 1e-3
        assert torch.allclose(found[name].float(), value.float(), rtol=0, atol=tolerance), name
    model = VirstForVideoSegmentation.from_pretrained(zero2[0] / "final").eval()
    assert not [name for name in model.state_dict() if "lora" in name]
    for name, value in load_file(zero2[0] / "final" / "trained_modules.safetensors").items():
        assert torch.equal(model.state_dict()[name].float(), value.float()), name
    assert model.segment(**processor(videos=clip, text=["the red square"])).mask_logits[0].isfinite().all()


@pytest.mark.slow
def test_zero2_in_bfloat16_adds_gradients_up_in_float32(config, tmp_path, monkeypatch):
    monkeypatch.setenv("SEEN", str(tmp_path / "seen.json"))
    options = ["--bf16", "true", "--use_cpu", "true", "--max_steps", "1", "--save_steps", "1"]
    options += ["--deepspeed", str(CONFIGS / "zero2.json")]
    (step,) = train(config, tmp_path / "run", *options)
    assert values([step], "loss", "grad_norm").isfinite().all()
    assert json.loads((tmp_path / "seen.json").read_text()) == ["torch.bfloat16", "torch.float32", True]


@pytest.mark.slow
def test_zero3_writes_whole_weights_that_load(config, tmp_path, processor, clip):
    """ZeRO-3 gathers the weights of each module when it runs, so all processes must run the same ones: one kind of
    draws, and a stage that supervises anchors alone."""
    source = {"name": "shapes", "root": str(config.parent / "shapes"), "config": "rvos"}
    options = ["--stage", "few_image", "--data", json.dumps([source]), "--weights", json.dumps({"rvos": 1})]
    expected = train(config, tmp_path / "plain", *options)
    found = train(config, tmp_path / "zero3", *options, "--deepspeed", str(CONFIGS / "zero3.json"))
    assert_same_trajectory(found, expected)
    whole = weights(tmp_path / "zero3" / "final")
    for name, value in weights(tmp_path / "plain" / "final").items():
        assert torch.allclose(whole.pop(name).float(), value.float(), rtol=1e-3, atol=1e-3), name
    assert not whole
    model = VirstForVideoSegmentation.from_pretrained(tmp_path / "zero3" / "final").eval()
    assert model.segment(**processor(videos=clip, text=["the red square"])).mask_logits[0].isfinite().all()


@pytest.fixture
def toy():
    """Two weights, of which a batch uses one or both, in either order."""

    class Toy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = (torch.nn.Parameter(torch.tensor([x])) for x in (2.0, 3.0))

        def forward(self, order):
            x = torch.ones(1)
            for name in order:
                x = x * getattr(self, name) ** 2
            return VirstOutput(loss=x.sum(), token_loss=x.sum(), mask_logits=(x,))

    return Toy()


@pytest.mark.parametrize(("order", "a", "b"), [("ab", 4 * 9, 6 * 4), ("ba", 4 * 9, 6 * 4), ("a", 4, 0), ("b", 0, 6)])
def test_ordered_gradients_reach_all_in_one_order(toy, order, a, b):
    order_gradients(toy)
    arrived = []
    for name, p in toy.named_parameters():
        p.register_post_accumulate_grad_hook(lambda p, name=name: arrived.append(name))
    out = toy.train()(order)
    assert not arrived  # DeepSpeed must not hear of gradients before it is asked to go back
    (out.loss / 4).backward()
    assert toy.a.grad.item() == a / 4 and toy.b.grad.item() == b / 4
    assert arrived == ["a", "b"]
    assert not out.token_loss.requires_grad and not out.mask_logits[0].requires_grad


def test_ordered_gradients_leave_evaluation_alone(toy):
    handle = order_gradients(toy)
    assert toy.eval()("a").loss.grad_fn.name() == toy("b").loss.grad_fn.name() != "HandOutBackward"
    with torch.no_grad():
        assert not toy.train()("a").loss.requires_grad
    handle.remove()
    toy("a").loss.backward()
    assert toy.b.grad is None


def test_configs_leave_to_the_run_what_is_the_runs():
    for stage in (2, 3):
        content = json.loads((CONFIGS / f"zero{stage}.json").read_text())
        assert content["zero_optimization"]["stage"] == stage
        for key in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
            assert content[key] == "auto"
        assert content["bf16"]["enabled"] == content["gradient_clipping"] == "auto"
        # Else those of 16 micro-batches would be added up in bfloat16.
        assert content["data_types"] == {"grad_accum_dtype": "fp32"}
        # Optimiser and schedule are the Trainer's: DeepSpeed's own would need other settings, and compiled ones.
        assert not {"optimizer", "scheduler"} & content.keys()
    assert content["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is True


if __name__ == "__main__":
    launch()
