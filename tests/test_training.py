"""Training: arguments, losses and their log, equal trajectories, evaluation, and what happens when all goes wrong."""

import json
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from training_fixtures import ROOT, Workspace, example, log_of, losses
from transformers import Trainer

from virst_hf import VirstForVideoSegmentation
from virst_hf.cli.main import main as virst
from virst_hf.errors import CheckpointError, ConfigError, VirstError
from virst_hf.evaluation import evaluate_model
from virst_hf.training import VirstTrainer, VirstTrainingArguments, get_stage, prepare_model
from virst_hf.training.arguments import TrainingArgumentParser, Validation
from virst_hf.training.data import training_mixture, validation_mixture
from virst_hf.training.trainer import LOSS_PARTS
from virst_hf.training.validation import SplitValidation
from virst_hf.untrained import untrained_model

pytestmark = pytest.mark.usefixtures("one_thread", "work_cache")

CONFIGS = sorted((ROOT / "examples" / "configs").glob("*.yaml"))
# Table 7 of the supplement.
TRAINING_SETS = {
    *("ref-davis17", "ref-youtube-vos", "mevis", "revos", "lv-vis", "refcoco", "refcoco+", "refcocog"),
    *("ade20k", "coco-stuff", "paco-lvis", "pascal-part", "reasonseg", "llava-video"),
}


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def make_trainer(work, output, processor, dtype=torch.float32, scorer=None, **changes):
    args = VirstTrainingArguments(**work.values(output, **{"save_strategy": "no", "disable_tqdm": True, **changes}))
    model = untrained_model()
    torch.manual_seed(0)
    prepare_model(model, args.training_stage)
    model.to(dtype)
    mixtures = training_mixture(args, processor), validation_mixture(args, processor)
    return VirstTrainer(without_dropout(model), args, processor, *mixtures, scorer)


# --- arguments -------------------------------------------------------------------------------------------------------
def parse(*argv):
    return TrainingArgumentParser().parse([*argv])


def test_the_stage_sets_what_is_not_given(work, tmp_path):
    values = work.values(tmp_path / "run", stage="propagation")
    for name in ("learning_rate", "warmup_steps", "gradient_accumulation_steps"):
        del values[name]
    args = VirstTrainingArguments(**values)
    assert (args.learning_rate, args.lr_scheduler_type, args.warmup_steps) == (1e-5, "linear", 100)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (1, 16)
    assert args.optim == "adamw_torch_fused" and args.eval_strategy == "no" and not args.load_best_model_at_end
    assert args.draws_per_step == 16 and args.path("shapes") == work.shapes and args.path("/abs") == Path("/abs")


def test_a_file_and_what_overrides_it(work, tmp_path):
    path = work.config(tmp_path / "run", learning_rate="2e-4", bf16=True, save_total_limit=None, weights={"rvos": 1})
    assert "2e-4" in path.read_text()  # a string to YAML
    args = parse("--config", str(path), "--max_steps", "7", "--seed=5", "--weights", '{"rvos": 2.5}')
    assert (args.learning_rate, args.max_steps, args.seed, args.bf16) == (2e-4, 7, 5, True)
    assert args.save_total_limit is None and args.weights == {"rvos": 2.5} and args.data == work.sources()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"stage": "pretraining"}, "no stage 'pretraining'; the stages are alignment, few_image, propagation"),
        ({"lerning_rate": 1}, "unknown key 'lerning_rate' .did you mean learning_rate"),
        ({"learning_rate": "2e-4x"}, "invalid float value: '2e-4x'"),
        ({"max_steps": 4.5}, "invalid int value: '4.5'"),
        ({"max_steps": -1}, "max_steps must be at least 1, found -1"),
        ({"bf16": "perhaps"}, "perhaps"),
        ({"data": []}, "needs data"),
        ({"data": "shapes"}, "data must be JSON on the command line, found 'shapes'"),
        ({"data": ["shapes"]}, "data must be a list of sources"),
        ({"gradient_accumulation_steps": 0}, "at least 1, found 0"),
        ({"validation": {"videos": 3}}, "needs a protocol with its root, or data"),
        ({"validation": {"protocol": "shapes-valid"}}, "needs the root"),
        ({"validation": {"protocol": "a", "root": "b", "video": 3}}, "no 'video' .did you mean videos"),
        ({"validation": {"protocol": "a", "root": "b", "videos": 0}}, "videos must be a whole number"),
        ({"validation": {"protocol": "a", "root": "b"}, "eval_steps": 3}, "eval_steps is 3 and save_steps is 2: give"),
        ({"validation": {"protocol": "a", "root": "b"}, "eval_steps": 1}, "eval_steps is 1 and save_steps is 2: give"),
        ({"validation": {"protocol": "a", "root": 5}}, "validation: root must be a text, found 5"),
        ({"validation": {"protocol": ["a"], "root": "b"}}, "validation: protocol must be a text, found .'a'."),
        ({"validation": {"data": {"name": "own", "root": "b"}}}, "validation data must be a list of sources"),
        ({"validation": {"data": ["own"]}}, "validation data must be a list of sources"),
        ({"validation": ["own"]}, "validation data must be a list of sources"),
        ({"validation": [{"name": "own", "root": 5}]}, "Source 0 of validation data, own: root must be a text"),
        ({"validation": {3: 4}}, "validation has no 3; it has protocol"),
        ({"data": {"name": "own", "root": "b"}}, "data must be a list of sources"),
        ({"data": [{"root": "b"}]}, "Source 0 of data has no name, found"),
        ({"data": [{"name": ["own"], "root": "b"}]}, "Source 0 of data: name must be a text, found .'own'."),
        ({"data": [{"name": "own", "root": 5}]}, "Source 0 of data, own: root must be a text, found 5"),
        ({"data": [{"name": "own", "root": "b", "split": None}]}, "own: split must be a text, found None"),
        ({"data": [{"name": "own", "root": "b", "config": [1]}]}, "own: config must be a text, found .1."),
        ({"data": [{"name": "own", "root": "b", 7: 1}]}, "own: 7 must be a text"),
        ({"data": [{"name": "own", "root": "b", "streaming": True}]}, "own cannot be streamed"),
        ({"stage": ["alignment"]}, "stage takes one value, found the list"),
        ({"model": {"a": 1}}, "model takes one value, found the dict"),
        ({"max_steps": [4]}, "max_steps takes one value, found the list"),
        ({"load_in_4bit": True}, "needs a CUDA device"),
    ],
)
def test_bad_arguments(work, tmp_path, changes, message):
    if "load_in_4bit" in changes and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match=message) as error:
        parse("--config", str(work.config(tmp_path / "run", **changes)))
    assert "\n" not in str(error.value)


def test_values_of_another_type_from_python(work, tmp_path):
    for name, value in (("stage", ["alignment"]), ("model", 5), ("cache_features", True)):
        with pytest.raises(ConfigError, match=f"{name} must be a text, found"):
            VirstTrainingArguments(**work.values(tmp_path / "run", **{name: value}))


def test_weights_of_sources_are_for_all_or_none(work, tmp_path):
    data = [{**source, "weight": 2} for source in work.sources()]
    del data[1]["weight"], data[3]["weight"]
    message = r"Some sources of .*data have a weight, and source 1 \(shapes\), 3 \(shapes\) has none"
    for changes in ({"data": data}, {"validation": data}):
        with pytest.raises(ConfigError, match=message):
            VirstTrainingArguments(**work.values(tmp_path / "run", **changes))


def test_a_best_checkpoint_needs_one_of_each_evaluation(work, tmp_path):
    plan = {"validation": {"data": work.sources("rvos")}, "eval_steps": 1, "save_steps": 2}
    values = work.values(tmp_path / "run", **plan, load_best_model_at_end=False)
    assert VirstTrainingArguments(**values).eval_steps == 1
    values = work.values(tmp_path / "run", **plan, save_strategy="best")  # saved when it is the best
    assert VirstTrainingArguments(**values).load_best_model_at_end


def test_paths_from_home(work, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    names = ("model", "cache_features", "data_root", "resume_from_checkpoint")
    args = VirstTrainingArguments(**work.values("~/run", **{name: f"~/{name}" for name in names}))
    assert [getattr(args, name) for name in names] == [str(tmp_path / name) for name in names]
    assert args.output_dir == str(tmp_path / "run")
    (tmp_path / "run.yaml").write_text("stage: nosuch")
    with pytest.raises(ConfigError, match="needs model"):
        parse("--config", "~/run.yaml")


@pytest.mark.parametrize("text, message", [("a: [", "is not YAML"), ("- 1", "found a list"), (None, "cannot be read")])
def test_bad_files(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        parse("--config", str(path))
    with pytest.raises(ConfigError, match="Unknown option --max_stepz .did you mean max_steps"):
        parse("--max_stepz", "3")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_configurations(path):
    content = yaml.safe_load(path.read_text(encoding="utf-8"))

    def scalars(value):
        if isinstance(value, dict | list):
            for item in value.values() if isinstance(value, dict) else value:
                yield from scalars(item)
        else:
            yield value

    # YAML takes 2e-4 for a text: a number that is none would be found by nobody but the one who copies it.
    for value in scalars(content):
        if isinstance(value, str):
            with pytest.raises(ValueError):
                float(value)
    args = parse("--config", str(path))
    for name, value in content.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            found = getattr(args, name)
            assert type(found) in (int, float) and found == value, name
    weights = [args.weights[name] for name in ("semantic_segmentation", "referring_image", "reasoning_image")]
    assert [*weights, args.weights["rvos"], args.weights["video_qa"]] == [4, 3, 1, 12, 1]
    if path.stem != "shapes":
        stage = get_stage(path.stem)
        assert {source["name"] for source in args.data} == TRAINING_SETS and len(args.data) == 14
        assert args.stage == path.stem and args.learning_rate == stage.learning_rate
        assert args.lr_scheduler_type == stage.lr_scheduler_type and args.warmup_steps == 100
        assert (args.per_device_train_batch_size, args.gradient_accumulation_steps, args.bf16) == (1, 16, True)


def test_each_stage_starts_from_the_output_of_the_last():
    runs = {name: parse("--config", str(ROOT / "examples" / "configs" / f"{name}.yaml")) for name in STAGE_ORDER}
    for before, after in zip(STAGE_ORDER, STAGE_ORDER[1:], strict=False):
        assert runs[after].model == f"{runs[before].output_dir}/final"
        assert get_stage(after).follows == before


STAGE_ORDER = ("alignment", "few_image", "propagation")


# --- losses ----------------------------------------------------------------------------------------------------------
def run_losses(trainer):
    start = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    moved = {name: p.detach() - start[name] for name, p in trainer.model.named_parameters() if p.requires_grad}
    return [entry for entry in trainer.state.log_history if "loss" in entry], moved


def distance(moved, other):
    """Length of the difference of two updates, relative to the update."""
    difference = sum(float(((moved[name] - other[name]) ** 2).sum()) for name in moved)
    return (difference / sum(float((value**2).sum()) for value in moved.values())) ** 0.5


def test_batch_1_x_accumulation_4_is_batch_4_x_1(work, tmp_path, processor):
    # In float64: some gradients (biases of keys) are zero but for rounding, and Adam makes whole steps of rounding
    # noise. In float32 these weights differ by 4e-4 of the update, though the loss does not depend on them.
    common = {"stage": "few_image", "expressions_per_clip": 2, "dtype": torch.float64, "max_steps": 3}
    one, moved = run_losses(make_trainer(work, tmp_path / "a", processor, gradient_accumulation_steps=4, **common))
    four, other = run_losses(make_trainer(work, tmp_path / "b", processor, per_device_train_batch_size=4, **common))
    assert np.allclose(losses(one), losses(four), rtol=1e-6)  # the log is float32
    assert distance(moved, other) < 1e-9
    for a, b in zip(one, four, strict=True):
        assert all(np.isclose(a[name], b[name], rtol=1e-5, atol=1e-7) for name in LOSS_PARTS)


def test_each_part_of_the_loss_is_logged_and_their_sum_is_the_loss(work, tmp_path, processor):
    trainer = make_trainer(work, tmp_path / "a", processor, gradient_accumulation_steps=3, logging_steps=2)
    log, _ = run_losses(trainer)
    assert len(log) == 2 and all(set(LOSS_PARTS) <= set(entry) for entry in log)
    for entry in log:
        assert all(entry[name] > 0 for name in LOSS_PARTS)
        assert np.isclose(sum(entry[name] for name in LOSS_PARTS), entry["loss"], rtol=1e-6)


def test_a_batch_without_masks_counts_as_zero_in_the_mask_terms(work, tmp_path, processor):
    trainer = make_trainer(work, tmp_path / "a", processor, data=work.sources("video_qa"), max_steps=1)
    (entry,), _ = run_losses(trainer)
    assert entry["token_loss"] == pytest.approx(entry["loss"]) and entry["bce_loss"] == entry["iou_loss"] == 0


def test_the_batches_of_a_step_are_not_in_memory_at_once(work, tmp_path, processor, monkeypatch):
    trainer = make_trainer(work, tmp_path / "a", processor, gradient_accumulation_steps=6, max_steps=2)
    collate, compute, events = trainer.data_collator, trainer.compute_loss, []
    trainer.data_collator = lambda samples: events.append("read") or collate(samples)
    trainer.compute_loss = lambda *args, **kwargs: events.append("used") or compute(*args, **kwargs)
    log, _ = run_losses(trainer)
    assert len(log) == 2 and events.count("read") == events.count("used") == 12
    waiting = [events[:i].count("read") - events[:i].count("used") for i in range(len(events))]
    assert max(waiting) == 2  # the next one, and the one that the loader of accelerate looks ahead
    # The Trainer's own way gives the same losses.
    monkeypatch.setattr(VirstTrainer, "get_batch_samples", Trainer.get_batch_samples)
    eager = make_trainer(work, tmp_path / "b", processor, gradient_accumulation_steps=6, max_steps=2)
    assert losses(run_losses(eager)[0]) == losses(log)


def test_norms_biases_and_vectors_do_not_decay(work, tmp_path, processor):
    trainer = make_trainer(work, tmp_path / "a", processor, stage="few_image", weight_decay=0.1)
    decayed, free = trainer.create_optimizer().param_groups
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    assert decayed["weight_decay"] == 0.1 and free["weight_decay"] == 0
    assert all(p.ndim > 1 for p in decayed["params"])
    found = {names[id(p)] for p in free["params"]}
    assert {"model.initial_fusion.gate", "model.initial_fusion.norm_kv.weight"} <= found
    assert "lm_head.weight" in {names[id(p)] for p in decayed["params"]}
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    assert len(decayed["params"]) + len(free["params"]) == len(trained)


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_accumulation(work, tmp_path):
    # A larger epsilon keeps Adam from making steps of rounding noise, see above: this runs in float32, as users do.
    common = {"stage": "few_image", "allow_missing_stage": True, "adam_epsilon": 1e-3, "expressions_per_clip": 2}
    model = tmp_path / "model"
    one = work.config(tmp_path / "one", gradient_accumulation_steps=4, **common)
    two = work.config(tmp_path / "two", gradient_accumulation_steps=2, **common)
    driver = tmp_path / "driver.py"
    driver.write_text(
        "import runpy, sys, torch\n"
        "torch.nn.Dropout.forward = lambda self, x: x\n"
        f"sys.argv[0] = {str(ROOT / 'examples' / 'train.py')!r}\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
    for before, path in (([], one), (launcher, two)):
        command = [sys.executable, *before, str(driver), "--config", str(path)]
        done = subprocess.run(command, env=work.environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    assert np.allclose(losses(log_of(tmp_path / "one")), losses(log_of(tmp_path / "two")), rtol=1e-5)
    start = load_file(work.model / "model.safetensors")
    a, b = (load_file(tmp_path / name / "final" / "trained_modules.safetensors") for name in ("one", "two"))
    assert not model.exists() and set(a) == set(b) and len(a) > 100
    moved, other = ({name: value[name] - start[name] for name in value} for value in (a, b))
    assert distance(moved, other) < 1e-5
    assert sorted(path.name for path in (tmp_path / "two" / "checkpoint-4").glob("rng*")) == [
        "rng_state_0.pth",
        "rng_state_1.pth",
    ]


def free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


# --- evaluation ------------------------------------------------------------------------------------------------------
def test_validation_gives_the_numbers_of_the_evaluation(work, tmp_path, processor, model):
    plan = {"protocol": "shapes-valid", "root": "shapes", "videos": 1}
    args = VirstTrainingArguments(**work.values(tmp_path / "run", validation=plan, disable_tqdm=True))
    found = SplitValidation(args, processor)(model, step=7)
    expected = evaluate_model(
        "shapes-valid", model, processor, work.shapes, tmp_path / "evaluation", limit=1, workers=1
    )
    for name in ("J", "F", "J&F", "no_target_accuracy", "qa_accuracy"):
        assert (name in found) == (name in expected)
        assert found.get(name) == pytest.approx(expected.get(name))
    written = json.loads((tmp_path / "run" / "validation" / "step-000007.json").read_text())
    assert written["per_type"].keys() == expected["per_type"].keys() and found["failures"] == 0
    for kind, scores in expected["per_type"].items():
        assert written["per_type"][kind] == pytest.approx(scores)


def test_the_best_checkpoint_is_kept_and_becomes_the_result(work, tmp_path, processor):
    scores = {1: 10.0, 2: 30.0, 3: 20.0, 4: 5.0}
    plan = {"data": work.sources("rvos"), "samples": 1}
    changes = {"validation": plan, "save_strategy": "steps", "save_steps": 1, "metric_for_best_model": "J&F"}
    trainer = make_trainer(
        work, tmp_path / "run", processor, scorer=lambda model, step: {"J&F": scores[step]}, **changes
    )
    trainer.train()
    assert trainer.save_final() == tmp_path / "run" / "final"
    assert trainer.state.best_metric == 30 and trainer.state.best_model_checkpoint.endswith("run/checkpoint-2")
    kept = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert kept == ["checkpoint-2", "checkpoint-4", "final"]
    state = json.loads((tmp_path / "run" / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(tmp_path / "run" / "checkpoint-2")
    best, last, final = (
        load_file(tmp_path / "run" / name / "trained_modules.safetensors")["lm_head.weight"]
        for name in ("checkpoint-2", "checkpoint-4", "final")
    )
    assert torch.equal(best, final) and not torch.equal(last, final)
    shown = [entry for entry in trainer.state.log_history if "eval_J&F" in entry]
    assert [entry["eval_J&F"] for entry in shown] == list(scores.values())
    assert all("eval_loss" in entry for entry in shown)


def test_plans():
    assert Validation(data=[{"name": "own", "root": "."}]).metric == "loss"
    assert Validation(protocol="shapes-valid", root=".").metric == "J&F"


# --- what may go wrong -----------------------------------------------------------------------------------------------
def fails(capsys, *argv) -> str:
    """The one line of a run that ends with exit code 2."""
    capsys.readouterr()
    assert example().main([*map(str, argv)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train.py: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"stage": "nosuch"}, "the stages are alignment, few_image, propagation"),
        ({"stage": "few_image"}, "follows alignment, but"),
        ({"data": [{"name": "nosuch", "root": "shapes"}]}, "has the name 'nosuch'; expected one of mevis"),
        ({"data": [{"name": "shapes", "root": "empty"}]}, "Source 0 of data, shapes: There is no folder"),
        ({"data": [{"name": "mevis", "root": "model"}]}, "does not look like mevis"),
        ({"data": [{"name": "shapes"}]}, "has no root"),
        ({"data": [{"name": "shapes", "root": "shapes", "split": "test"}]}, "has no split test"),
        ({"data": [{"name": "shapes", "root": "shapes", "colour": 1}]}, "has no option colour"),
        ({"model": "/nosuch/model"}, "There is no folder /nosuch/model"),
        ({"weights": {"rvos": 1}}, "has rows but no weight"),
        ({"validation": {"protocol": "nosuch", "root": "shapes"}}, "nosuch"),
        ({"validation": {"protocol": "mevis-valid", "root": "shapes"}}, "only its server has the masks"),
    ],
)
def test_bad_input_is_one_line(work, tmp_path, capsys, changes, message):
    assert message in fails(capsys, "--config", work.config(tmp_path / "run", **changes))
    assert not (tmp_path / "run" / "final").exists()


def loads(folder: Path, work: Workspace) -> bool:
    """Whether a checkpoint loads, and holds numbers only."""
    loaded = VirstForVideoSegmentation.from_pretrained(folder)
    return all(bool(value.isfinite().all()) for value in loaded.state_dict().values())


def test_a_model_without_numbers_ends_the_run_at_once(work, tmp_path, capsys):
    poisoned = tmp_path / "poisoned"
    poisoned.mkdir()
    for path in work.model.iterdir():
        (poisoned / path.name).write_bytes(path.read_bytes())
    weights = load_file(work.model / "model.safetensors")
    weights["lm_head.weight"][0, 0] = float("nan")
    save_file(weights, poisoned / "model.safetensors", metadata={"format": "pt"})
    line = fails(capsys, "--config", work.config(tmp_path / "run", model=str(poisoned)))
    assert "The loss is nan (token_loss nan" in line and "in step 1 (draws 0 to 0)" in line
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_nan_in_the_validation_is_not_blamed_on_training_draws(work, tmp_path, processor):
    plan = {"data": work.sources("rvos"), "samples": 1}
    trainer = make_trainer(work, tmp_path / "run", processor, validation=plan, load_best_model_at_end=False)
    trainer.model.lm_head.weight.data[0] = float("nan")
    with pytest.raises(VirstError, match=r"The loss is nan .* in the validation after step 0\. ") as error:
        trainer.evaluate()
    assert "draws" not in str(error.value) and "validation data" in str(error.value)


class Poison:
    """Spoils a weight or the gradients of a step, behind the Trainer's back."""

    def __init__(self, step: int, gradient: bool = False) -> None:
        self.step, self.gradient, self.inner = step, gradient, VirstTrainer.training_step

    def __call__(self, trainer, model, *args):
        weight = trainer.model.lm_head.weight
        if trainer.state.global_step == self.step and not self.gradient:
            weight.data[3] = float("nan")
        loss = self.inner(trainer, model, *args)
        if trainer.state.global_step == self.step and self.gradient:
            weight.grad[3] = float("inf")
        return loss


@pytest.mark.parametrize("gradient", [False, True])
def test_nan_in_the_middle_leaves_the_last_checkpoint(work, tmp_path, capsys, monkeypatch, gradient):
    poison = Poison(2, gradient)
    monkeypatch.setattr(VirstTrainer, "training_step", lambda self, *args: poison(self, *args))
    line = fails(capsys, "--config", work.config(tmp_path / "run"))
    what = "The norm of the gradients is" if gradient else "The loss is nan"
    assert what in line and "in step 3 (draws 2 to 2)" in line
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint-2"]
    assert loads(tmp_path / "run" / "checkpoint-2", work)
    # The cause is gone: the run goes on from there.
    monkeypatch.setattr(VirstTrainer, "training_step", poison.inner)
    assert example().main(["--config", str(work.config(tmp_path / "run"))]) == 0


@pytest.mark.parametrize("what", ["weights", "optimizer", "json"])
def test_a_full_disk_leaves_the_last_checkpoint(work, tmp_path, capsys, monkeypatch, what):
    """No file may grow beyond a size, once there is a checkpoint: what a quota does, and much like a full disk."""
    config = work.config(tmp_path / "run")
    inner = VirstTrainer._save_checkpoint
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def save(self, *args):
        if self.state.global_step == 4 and what == "weights":
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
        inner(self, *args)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    def fill(self, *args):
        if self.state.global_step == 4:
            name = {"optimizer": "_save_optimizer_and_scheduler", "json": "_save_rng_state"}[what]
            monkeypatch.setattr(VirstTrainer, name, full)
        inner(self, *args)

    monkeypatch.setattr(VirstTrainer, "_save_checkpoint", save if what == "weights" else fill)
    try:
        line = fails(capsys, "--config", config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "checkpoint-4 could not be written to" in line and f"{tmp_path / 'run' / 'checkpoint-2'} is whole" in line
    assert "Make room, then give the same command again" in line
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint-2"]
    assert loads(tmp_path / "run" / "checkpoint-2", work)


@pytest.mark.parametrize("gathered", [True, False])
def test_a_full_disk_under_deepspeed_is_not_taken_for_weights_that_are_not_gathered(
    work, tmp_path, processor, monkeypatch, gathered
):
    """`Trainer.save_model` as it is, with an engine that has nothing but the weights."""

    def get_state_dict(engine):
        if not gathered:
            raise ValueError("Cannot get 16bit model weights")  # accelerate's, by which the Trainer knows the case
        return trainer.model.state_dict()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    trainer = make_trainer(work, tmp_path / "run", processor)
    trainer.is_deepspeed_enabled, trainer.deepspeed = True, SimpleNamespace(config={})
    trainer.model_wrapped = SimpleNamespace(save_checkpoint=lambda folder: None)
    monkeypatch.setattr(trainer.accelerator, "get_state_dict", get_state_dict)
    monkeypatch.setattr("virst_hf.adapters.write_json", full)
    with pytest.raises(CheckpointError) as error:
        trainer.save_final()
    line = str(error.value)
    found, advice = ("No space left on device", "Make room") if gathered else ("must be gathered first", "Mend that")
    assert "The final model could not be written to" in line and found in line and f"{advice}, then" in line
    assert ("gathered" in line) != gathered and not list((tmp_path / "run").iterdir())


def test_torch_tells_of_a_full_disk_in_its_own_way(tmp_path):
    """The words by which `explain_failed_save` knows its error are those of this version of torch."""
    from virst_hf.training.checkpoints import explain_failed_save

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(CheckpointError, match="checkpoint-1 could not be written"):
            with explain_failed_save(tmp_path, "checkpoint-1"):
                torch.save({"x": torch.zeros(100_000)}, tmp_path / "optimizer.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with pytest.raises(RuntimeError, match="something else"):
        with explain_failed_save(tmp_path, "checkpoint-1"):
            raise RuntimeError("something else")


# --- as a user runs it -----------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_train_resume_load_evaluate(work, tmp_path, capsys):
    plan = {"protocol": "shapes-valid", "root": "shapes", "videos": 1, "samples": 2}
    config = work.config(tmp_path / "run", validation=plan, gradient_accumulation_steps=2, dataloader_num_workers=1)
    for steps, expected in ((4, "Starting in"), (6, "Going on from")):
        running = work.start("--config", str(config), "--max_steps", str(steps))
        out, err = running.communicate()
        assert running.returncode == 0, err[-3000:]
        assert expected in out and "Stage alignment trains" in out and "best J&F" in out
        # One sees whether it learns: in the log and behind the bar.
        assert "'eval_J&F'" in out and "J&F" in err.rsplit("it/s", 1)[1]
    assert [entry["step"] for entry in log_of(tmp_path / "run") if "loss" in entry] == [1, 2, 3, 4, 5, 6]
    loaded = VirstForVideoSegmentation.from_pretrained(tmp_path / "run" / "final")
    base = VirstForVideoSegmentation.from_pretrained(work.model)
    assert not torch.equal(loaded.lm_head.weight, base.lm_head.weight)
    arguments = ["--root", str(work.shapes), "--output", str(tmp_path / "evaluation"), "--limit", "1"]
    assert virst(["evaluate", "shapes-valid", "--model", str(tmp_path / "run" / "final"), *arguments]) == 0
    results = json.loads((tmp_path / "evaluation" / "results.json").read_text())
    written = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "run" / "validation").iterdir()}
    best = max(written.values(), key=lambda content: content["J&F"])
    assert results["J&F"] == pytest.approx(best["J&F"], abs=0.05)
    # The next stage starts from there.
    second = work.config(tmp_path / "second", stage="few_image", model=str(tmp_path / "run" / "final"), max_steps=1)
    assert example().main(["--config", str(second)]) == 0
    content = json.loads((tmp_path / "second" / "final" / "virst_adapter.json").read_text())
    assert content["history"] == ["alignment", "few_image"] and content["base"] == str(work.model)


def test_the_trainer_is_short():
    assert len((ROOT / "virst_hf" / "training" / "trainer.py").read_text().splitlines()) < 200
    assert len((ROOT / "examples" / "train.py").read_text().splitlines()) < 80
