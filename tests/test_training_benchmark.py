"""The benchmark of a training step runs, and its parts are those of the step."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from virst_hf.training.stages import get_stage, prepare_model

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "training_step.py"
# The script sets the number of threads of its process.
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("training_step", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_cached_features_leave_the_encoders_out(benchmark):
    args = benchmark.make_parser().parse_args(["--cache", "--frames", "8", "--steps", "1", "--threads", "1"])
    row = benchmark.measure("tiny", "alignment", 1, args)
    assert row["parts"]["encoder"] == row["parts"]["vision_tower"] == 0 < row["parts"]["tracker"]


@pytest.mark.parametrize("arguments", [["--steps", "0"], ["--frames", "-1"], ["--steps", "many"], ["--stage", "x"]])
def test_bad_input_is_one_line(benchmark, capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        benchmark.make_parser().parse_args(arguments)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1 and arguments[1] in err


def test_memory_on_a_gpu_is_that_of_the_gpu(benchmark, monkeypatch):
    """Both numbers, so that they may be compared."""
    monkeypatch.setattr("torch.cuda.memory_allocated", lambda device: 5 if device == "cuda:1" else 0)
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda device: 7 if device == "cuda:1" else 0)
    assert benchmark.memory_in_use("cuda:1") == ("device", 5) and benchmark.peak_memory("cuda:1") == 7
    kind, used = benchmark.memory_in_use("cpu")
    assert kind == "resident" and 10e6 < used <= benchmark.peak_memory("cpu")


@pytest.mark.slow
def test_script_writes_its_table(tmp_path):
    result = tmp_path / "result.json"
    arguments = ["--size", "tiny", "--stage", "alignment", "propagation", "--expressions", "2"]
    command = [
        sys.executable,
        str(SCRIPT),
        *arguments,
        "--frames",
        "8",
        "--steps",
        "1",
        "--threads",
        "1",
        "--json",
        str(result),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    header, first, *_ = done.stdout.splitlines()
    assert header.endswith(" | model resident MB | peak resident MB")
    assert first.startswith("tiny | alignment | 2 | 3 | ")
    rows = json.loads(result.read_text())["rows"]
    # Of 8 frames 3 are anchors; those around them (here all but one) are supervised in stage 3 alone.
    assert [row["supervised_frames"] for row in rows] == [3, 7]
    assert rows[0]["trained"] < rows[1]["trained"] < rows[1]["parameters"]
    for row in rows:
        assert row["seconds"] == pytest.approx(sum(row["parts"].values()))
        assert all(row["parts"][part] > 0 for part in row["parts"])
        assert row["memory"] == "resident" and 10e6 < row["memory_model"] < row["memory_peak"]
    # Each process has its own peak, and each counts the whole of its forward pass.
    assert rows[0]["parts"]["tracker"] < rows[1]["parts"]["tracker"]


def test_every_second_counts_for_the_innermost_part(benchmark, monkeypatch):
    clock = benchmark.Clock()
    times = iter([0.0, 1.0, 3.0, 7.0, 8.0, 10.0])
    monkeypatch.setattr(clock, "now", lambda: next(times))
    with clock.part("other"):  # 0 to 10
        with clock.part("loss"):  # 1 to 8
            with clock.part("llm"):  # 3 to 7
                pass
    assert clock.seconds == {**dict.fromkeys(benchmark.PARTS, 0.0), "other": 3.0, "loss": 3.0, "llm": 4.0}


def test_encoder_with_a_graph_is_an_error(benchmark):
    model, processor = benchmark.build("tiny")
    prepare_model(model.train(), get_stage("alignment"))
    batch = benchmark.make_batch(processor, 8, 1, "anchors")
    assert len(benchmark.train_steps(model, batch, 1, bf16=False)) == 1
    model.model.train_encoders = True
    model.model.segmenter.image_encoder.requires_grad_(True)
    with pytest.raises(RuntimeError, match="encoder is frozen"):
        benchmark.train_steps(model, batch, 1, bf16=False)


def test_measuring_changes_nothing(benchmark):
    """Neither the loss, nor the model: no hook and no wrapped function is left."""
    model, processor = benchmark.build("tiny")
    prepare_model(model.eval(), get_stage("propagation"))
    batch = benchmark.make_batch(processor, 8, 2, "anchors+propagation")
    expected = model(**batch).loss
    with benchmark.measured(model) as clock, clock.part("other"):
        assert torch.equal(model(**batch).loss, expected)
    seconds = dict(clock.seconds)
    assert min(seconds[part] for part in benchmark.FORWARD) > 0
    model(**batch)
    assert clock.seconds == seconds
