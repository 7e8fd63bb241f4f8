"""The runner from end to end: one process and two, killed and resumed, failures, questions, and the commands."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from evaluation_fixtures import write_mevis
from image_fixtures import make_reason_seg, make_refcoco
from PIL import Image

from virst_hf import TrackingOptions
from virst_hf.cli.main import main
from virst_hf.data.shapes_maker import make_shapes
from virst_hf.data.shapes_maker.expressions import EXPRESSION_TYPES
from virst_hf.errors import DataError, EvaluationError
from virst_hf.evaluation.pipeline import evaluate_model, score_run
from virst_hf.evaluation.protocols import PROTOCOLS
from virst_hf.evaluation.runner import RunOptions, model_hash, shard_units
from virst_hf.evaluation.samples import MASKS, Unit, load_samples
from virst_hf.untrained import make_untrained_model, untrained_model

ROOT = Path(__file__).parent.parent
PROTOCOL = "mevis-v1-valid_u"
MAIN = "virst_hf.cli.main"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_mevis(tmp_path_factory.mktemp("mevis"))


@pytest.fixture
def run(shared_model, processor, root, cache):
    def call(output, root=root, protocol=PROTOCOL, model=shared_model, **options):
        return evaluate_model(protocol, model, processor, root, output, cache_dir=cache, workers=1, **options)

    return call


def count_calls(monkeypatch, model, name):
    calls = []
    original = getattr(type(model), name)

    def counted(self, *args, **kwargs):
        calls.append(kwargs)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(type(model), name, counted)
    return calls


def test_results_are_complete_and_each_video_is_encoded_once(run, shared_model, tmp_path, monkeypatch):
    encoded = count_calls(monkeypatch, shared_model, "encode_video")
    results = run(tmp_path / "out", model_name="small <model>", options=RunOptions(batch_expressions=3))
    assert len(encoded) == 3
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert stored == results
    assert stored["protocol"] == PROTOCOL and (stored["num_videos"], stored["num_expressions"]) == (3, 12)
    assert all(0 <= stored[name] <= 100 for name in ("J", "F", "J&F")) and stored["failures"] == []
    assert set(stored["per_type"]) == {"attribute", "plural", "motion", "no_target"}
    assert sum(scores["count"] for scores in stored["per_type"].values()) == 12
    assert set(stored["per_type"]["motion"]) == {"J", "F", "J&F", "count"}
    assert 0 <= stored["no_target_accuracy"] <= 1 and "qa_accuracy" not in stored
    assert len(stored["model_hash"]) == 32 and stored["versions"]["torch"]
    assert not stored["partial"] and "793" in stored["notes"][0]
    lines = (tmp_path / "out" / "expressions.jsonl").read_text().splitlines()
    assert len(lines) == 12 and json.loads(lines[0])["video"] == "00ab0"


def test_chunks_of_expressions_do_not_change_what_is_found(run, tmp_path):
    one = run(tmp_path / "one", options=RunOptions(batch_expressions=1))
    all_at_once = run(tmp_path / "all", options=RunOptions(batch_expressions=8))
    assert one["J&F"] == pytest.approx(all_at_once["J&F"], abs=0.5)


def test_tracking_options_reach_the_model_and_are_part_of_the_run(run, tmp_path, shared_model, monkeypatch):
    """Exact runs are told as they always were, so that older ones can go on."""
    seen = []
    segment = type(shared_model).segment

    def noted(self, *args, tracking, **inputs):
        seen.append(tracking)
        return segment(self, *args, tracking=tracking, **inputs)

    monkeypatch.setattr(type(shared_model), "segment", noted)
    fast = RunOptions(tracking=TrackingOptions(recent=2))
    results = run(tmp_path / "fast", limit=1, options=fast)
    assert set(seen) == {fast.tracking} and results["settings"]["tracking"]["recent"] == 2
    assert "tracking" not in run(tmp_path / "exact", limit=1)["settings"]
    with pytest.raises(EvaluationError, match="tracking"):
        run(tmp_path / "fast", limit=1)


def test_a_finished_run_is_not_run_again_and_can_be_scored_without_a_model(run, root, tmp_path, monkeypatch, cache):
    results = run(tmp_path / "out")
    monkeypatch.setattr("virst_hf.evaluation.runner.predict_unit", None)
    assert run(tmp_path / "out") == results
    monkeypatch.setattr("virst_hf.evaluation.runner.run_predictions", None)
    assert score_run(tmp_path / "out", cache_dir=cache, workers=1) == results
    moved = tmp_path / "moved"
    moved.symlink_to(root)
    assert score_run(tmp_path / "out", moved, cache_dir=cache, workers=1)["J&F"] == results["J&F"]


def test_only_half_written_and_missing_videos_are_computed_again(run, tmp_path):
    results = run(tmp_path / "out")
    files = sorted((tmp_path / "out" / "predictions").iterdir())
    times = [file.stat().st_mtime_ns for file in files]
    files[0].write_text(files[0].read_text()[:100])
    files[1].unlink()
    assert run(tmp_path / "out") == results
    assert files[2].stat().st_mtime_ns == times[2] and files[0].stat().st_mtime_ns != times[0]


def test_another_model_or_other_settings_need_another_folder(run, tmp_path):
    run(tmp_path / "out", limit=1)
    with pytest.raises(EvaluationError, match="another run: model_hash was"):
        run(tmp_path / "out", model=untrained_model(seed=1))
    with pytest.raises(EvaluationError, match="batch_expressions was 8 and is now 2"):
        run(tmp_path / "out", options=RunOptions(batch_expressions=2))


def test_a_limit_is_a_trial_that_can_be_continued(run, tmp_path):
    trial = run(tmp_path / "out", limit=2)
    assert trial["partial"] and trial["num_videos"] == 2 and "2 of 3 videos" in trial["notes"][0]
    file = tmp_path / "out" / "predictions" / "00ab0.json"
    before = file.stat().st_mtime_ns
    full = run(tmp_path / "out")
    assert full["num_videos"] == 3 and not full["partial"] and file.stat().st_mtime_ns == before
    # A smaller limit again: the third video's file is known, though it is not asked for.
    assert run(tmp_path / "out", limit=2) == trial


def test_failing_samples_are_named_and_tried_again(shared_model, run, tmp_path, monkeypatch):
    original = type(shared_model).segment

    def fail(self, *args, **kwargs):
        if len(kwargs["input_ids"]) > 1 or fail.left > 0:
            fail.left -= 1
            raise RuntimeError("out of\nmemory")
        return original(self, *args, **kwargs)

    # All expressions of a video together fail; of the twelve that are tried alone, the first fails.
    fail.left = 2
    monkeypatch.setattr(type(shared_model), "segment", fail)
    results = run(tmp_path / "out")
    assert results["failures"] == [
        {
            "video": "00ab0",
            "expression_id": "0",
            "expression": "the red square",
            "error": "RuntimeError: out of memory",
        }
    ]
    assert results["num_expressions"] == 12
    records = [json.loads(line) for line in (tmp_path / "out" / "expressions.jsonl").read_text().splitlines()]
    assert records[0]["J"] == records[0]["F"] == 0 and "error" not in records[1]
    text = (tmp_path / "out" / "results.md").read_text()
    assert "out of memory" in text and "1 samples failed" in text
    again = run(tmp_path / "out")
    assert again["failures"] == [] and again["num_expressions"] == 12


def test_a_damaged_frame_fails_its_video_only(run, tmp_path, cache, shared_model, processor):
    root = write_mevis(tmp_path / "data", num_videos=2)
    frame = root / "valid_u" / "JPEGImages" / "01ab1" / "00003.jpg"
    frame.write_bytes(frame.read_bytes()[:200])
    results = run(tmp_path / "out", root=root)
    assert [entry["video"] for entry in results["failures"]] == ["01ab1"] * 4
    assert "DataError" in results["failures"][0]["error"] and "00003.jpg" in results["failures"][0]["error"]
    assert results["num_expressions"] == 8


def test_frames_of_another_size_fail(run, tmp_path):
    root = write_mevis(tmp_path / "data", num_videos=1)
    Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8)).save(
        root / "valid_u" / "JPEGImages" / "00ab0" / "00002.jpg"
    )
    results = run(tmp_path / "out", root=root)
    assert len(results["failures"]) == 4 and "20 x 30, expected 36 x 48" in results["failures"][0]["error"]
    assert results["J&F"] == 0


def test_scores_that_are_no_numbers_are_failures(run, tmp_path, model):
    import torch

    with torch.no_grad():
        next(model.model.segmenter.parameters()).fill_(float("nan"))
    results = run(tmp_path / "out", model=model, limit=1)
    assert len(results["failures"]) == 4 and "no numbers" in results["failures"][0]["error"]


def test_own_data_without_masks_is_predicted_and_not_scored(run, tmp_path):
    root = write_mevis(tmp_path / "data", split="valid", num_videos=1)
    results = run(tmp_path / "out", root=root / "valid", protocol="own")
    assert "J&F" not in results and results["num_expressions"] == 4 and "no masks" in results["notes"][0]
    assert "No scores" in (tmp_path / "out" / "report.html").read_text()


def test_server_protocols_predict_and_print_no_number(run, tmp_path):
    root = write_mevis(tmp_path / "data", split="valid", num_videos=2)
    results = run(tmp_path / "out", root=root, protocol="mevis-valid")
    assert not {"J", "F", "J&F", "per_type"} & set(results) and results["num_videos"] == 2
    assert any("virst pack mevis-valid" in note for note in results["notes"])


@pytest.mark.parametrize(
    ("make", "protocol", "kind"),
    [(make_reason_seg, "reasonseg-val", "short"), (make_refcoco, "refcoco-val", "referring")],
)
def test_images(run, tmp_path, make, protocol, kind):
    root = tmp_path / "data"
    make(root)
    results = run(tmp_path / "out", root=root, protocol=protocol)
    assert results["failures"] == [] and results["num_expressions"] >= 1
    assert 0 <= results["gIoU"] <= 100 and 0 <= results["cIoU"] <= 100 and results["averaging"] == "image"
    assert {"gIoU", "cIoU", "J", "F", "J&F", "count"} == set(results["per_type"][kind])
    assert "gIoU" in (tmp_path / "out" / "report.html").read_text()


def test_questions_are_answered(run, tmp_path, shared_model, monkeypatch):
    root = write_mevis(tmp_path / "data", num_videos=2)
    videos = json.loads((root / "valid_u" / "meta_expressions.json").read_text())["videos"]
    protocol = PROTOCOLS["own"]
    samples = load_samples(protocol, root, cache_dir=str(tmp_path / "cache"))
    from datasets import Dataset, concatenate_datasets

    from virst_hf.data.records import record_features

    asked = []
    for name in videos:
        unit = next(unit for unit in samples.units if unit.video_id == name)
        for key, answer in (("0", "three"), ("1", "red")):
            fields = {"expression_id": key, "expression": f"question {key}?", "answer": answer, "masks": None}
            asked.append({**samples.rows(unit)[0], **fields, "category": "video_qa", "expression_type": "question"})
    both = concatenate_datasets([samples.dataset, Dataset.from_list(asked, features=record_features())])
    monkeypatch.setattr("virst_hf.data.load", lambda *args, **kwargs: both, raising=False)
    encoded = count_calls(monkeypatch, shared_model, "encode_video")
    monkeypatch.setattr(type(shared_model), "generate", lambda self, **kwargs: answers(self, kwargs))
    results = run(tmp_path / "out", root=root, protocol="own", split="valid_u")
    assert results["qa_accuracy"] == 0.5 and results["num_questions"] == 4
    assert results["num_videos"] == 2 and results["num_expressions"] == 8
    # Questions need the vision tower alone.
    assert len(encoded) == 4
    assert sorted(path.name for path in (tmp_path / "out" / "answers").iterdir()) == ["00ab0.json", "01ab1.json"]


def answers(model, kwargs):
    """Tokens of "Three " for every question, as greedy decoding would give."""
    import torch

    from virst_hf.untrained import untrained_processor

    assert kwargs["do_sample"] is False and kwargs["num_beams"] == 1
    ids = untrained_processor().tokenizer("Three ")["input_ids"]
    return torch.tensor([ids] * len(kwargs["input_ids"]))


def test_shards_hold_every_video_once_and_are_balanced():
    units = [Unit(MASKS, f"v{i}", ("0",), ("x",), (i,), length) for i, length in enumerate([90, 10, 40, 45, 5])]
    shards = shard_units(units, 2)
    assert sorted(unit.video_id for shard in shards for unit in shard) == [f"v{i}" for i in range(5)]
    assert [sum(unit.cost for unit in shard) for shard in shards] == [190, 190]
    assert shard_units(units, 2) == shards and shard_units([], 3) == [[], [], []]


def test_the_hash_of_a_model_is_of_its_weights_and_settings(shared_model, model, processor):
    import torch

    assert model_hash(model, processor) == model_hash(shared_model, processor)
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    assert model_hash(model, processor) != model_hash(shared_model, processor)


def test_bad_requests(run, tmp_path, root, cache):
    with pytest.raises(EvaluationError, match="no protocol 'mevis'"):
        run(tmp_path / "out", protocol="mevis")
    with pytest.raises(EvaluationError, match="defined on the split valid_u, not on train"):
        run(tmp_path / "out", split="train")
    with pytest.raises(DataError, match="There is no folder"):
        run(tmp_path / "out", root=tmp_path / "absent")
    with pytest.raises(EvaluationError, match="At least one expression"):
        RunOptions(batch_expressions=0)
    assert not (tmp_path / "out").exists()


# --- the commands, in processes of their own -------------------------------------------------------------------------
@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_untrained_model(tmp_path_factory.mktemp("checkpoint") / "model")


@pytest.fixture(scope="module")
def long_root(tmp_path_factory):
    """Shapes, with enough work for a process to be killed in the middle of it."""
    return make_shapes(tmp_path_factory.mktemp("long"), "test", 4, num_proc=1, progress=False).parent


def environment(cache):
    # One thread each: then a sum has one order, however many processes there are.
    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_DATASETS_CACHE": cache, "OMP_NUM_THREADS": "1"}


def evaluate_command(checkpoint, root, output, protocol=PROTOCOL):
    return ["evaluate", protocol, "--model", str(checkpoint), "--root", str(root), "--output", str(output)]


def launch(processes, arguments, cache):
    command = [sys.executable, "-m", MAIN, *arguments]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = ["--multi_gpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        options += ["--num_processes", str(processes), "--main_process_port", str(port)]
        command = [sys.executable, "-m", "accelerate.commands.launch", *options, "-m", MAIN, *arguments]
    return subprocess.Popen(
        command,
        env=environment(cache),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill_with_children(pid):
    """kill -9 for a launcher and its workers, which have sessions of their own."""
    launcher = psutil.Process(pid)
    for process in [*launcher.children(recursive=True), launcher]:
        process.send_signal(signal.SIGKILL)


def stored(output):
    """The files of predictions and answers of a run, without those that are being written."""
    return {path.relative_to(output): path for path in sorted(output.glob("*/[!.]*.json"))}


@pytest.mark.slow
def test_two_processes_killed_and_resumed_give_the_numbers_of_one(checkpoint, long_root, cache, tmp_path):
    alone = launch(1, evaluate_command(checkpoint, long_root, tmp_path / "one", "shapes-test"), cache)
    printed, _ = alone.communicate(timeout=300)
    assert alone.returncode == 0, printed
    results = json.loads((tmp_path / "one" / "results.json").read_text())
    assert results["num_videos"] == 4 and set(results["per_type"]) == set(EXPRESSION_TYPES)
    assert (
        f"| all | {results['num_expressions']} |" in printed
        and "control: " in printed
        and "Right answers to questions" in printed
    )

    arguments, output = evaluate_command(checkpoint, long_root, tmp_path / "two", "shapes-test"), tmp_path / "two"
    killed = launch(2, arguments, cache)
    deadline = time.monotonic() + 200
    while killed.poll() is None and len(stored(output)) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    kill_with_children(killed.pid)
    printed, _ = killed.communicate(timeout=60)
    done = {name: path.stat() for name, path in stored(output).items()}
    assert 2 <= len(done) < 8, printed
    assert not (output / "results.json").exists()

    resumed = launch(2, arguments, cache)
    printed, _ = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, printed
    for name, before in done.items():
        after = (output / name).stat()
        assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino), f"{name} was computed twice"
    assert json.loads((output / "run.json").read_text())["num_processes"] == 2
    assert len(stored(output)) == 8 and stored(output).keys() == stored(tmp_path / "one").keys()
    for name in ("results.json", "expressions.jsonl", *stored(output)):
        assert (tmp_path / "one" / name).read_bytes() == (output / name).read_bytes(), name


def test_commands(checkpoint, root, cache, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", cache)
    output = tmp_path / "out"
    command = [*evaluate_command(checkpoint, root, output), "--device", "cpu", "--limit", "1"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "# mevis-v1-valid_u (partial)" in printed and "| all | 4 |" in printed
    assert main(["score", str(output)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "# mevis-v1-valid_u (partial)"
    assert main(["compare", str(output), str(output), "--json", str(tmp_path / "c.json")]) == 0
    assert "| all | J&F | 4 |" in capsys.readouterr().out
    assert json.loads((tmp_path / "c.json").read_text())[0]["difference"] == 0

    (output / "predictions" / "00ab0.json").write_text("{")
    assert main(["score", str(output)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "virst score: 1 of 1 videos cannot be scored" in captured.err
    # No number of an earlier result stays behind, either.
    assert sorted(path.name for path in output.iterdir()) == ["predictions", "run.json"]
    assert main(["pack", "mevis-valid", str(output)]) == 2
    assert "holds predictions of mevis-v1-valid_u" in capsys.readouterr().err


def test_a_failure_makes_the_exit_code_1(checkpoint, cache, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", cache)
    root = write_mevis(tmp_path / "data", num_videos=1)
    (root / "valid_u" / "JPEGImages" / "00ab0" / "00001.jpg").write_bytes(b"no picture")
    assert main(evaluate_command(checkpoint, root, tmp_path / "out")) == 1
    assert "4 samples failed: 00ab0, expression 0 first (DataError" in capsys.readouterr().err
    assert main(["score", str(tmp_path / "out")]) == 1


def test_help_names_the_protocols_and_bad_input_is_code_2(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        main(["evaluate", "--list"])
    assert left.value.code == 0
    printed = capsys.readouterr().out
    assert "ref-davis17-official" in printed and "the server scores" in printed
    assert main(["evaluate", "none", "--model", "m", "--root", "r", "--output", str(tmp_path / "o")]) == 2
    assert "no protocol 'none'" in capsys.readouterr().err
    assert main(["score", str(tmp_path)]) == 2
    assert main(["compare", str(tmp_path), str(tmp_path)]) == 2
    capsys.readouterr()
