"""The benchmark of inference: the schedule of the release, the counted calls, the rows and the command line."""

import importlib
import json
import sys
from argparse import ArgumentTypeError
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from virst_hf import VirstConfig
from virst_hf.untrained import untrained_model, untrained_processor

FOLDER = Path(__file__).parent.parent / "benchmarks"
NAMES = ("inference_sizes", "lower_bound", "release_schedule", "inference", "stream_memory", "speed_switches")
NAMES += ("inference_figures",)
# The script sets the number of threads of its process.
pytestmark = pytest.mark.usefixtures("one_thread")
KEYS = {"size", "device", "threads", "rows", "ratios", "lower_bound_ratio"}
ROW_KEYS = {"frames", "expressions", "mode", "seconds", "fps", "peak_rss_mb", "encoder_calls", "stages"}


@pytest.fixture(scope="module")
def modules():
    """The scripts, which import one another from their folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        for name in NAMES:
            patch.delitem(sys.modules, name, raising=False)
        yield {name: importlib.import_module(name) for name in NAMES}


@pytest.fixture(scope="module")
def benchmark(modules) -> ModuleType:
    return modules["inference"]


@pytest.fixture
def small(monkeypatch, modules) -> None:
    """`tiny` is the untrained model, whatever is installed."""
    monkeypatch.setattr(modules["inference_sizes"], "VIRST_TINY", "no folder")


def inputs_of(modules, processor, num_frames: int, num_texts: int) -> dict:
    video = modules["inference_sizes"].random_video(num_frames)
    return processor(videos=video, text=[f"text {i}, {'of any length ' * i}" for i in range(num_texts)])


# --- the schedule of the release -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("num_frames", "initial_fusion", "expected"),
    [
        # T_seg 8 (padded), anchors 0 and 2: 8 + 1 + 2 * 2 + 1.
        (3, False, 14),
        (3, True, 22),
        # T_seg 8, K = 2: 8 + 1 + 4 + 9.
        (11, False, 22),
        (11, True, 30),
        # T_seg 32, K = 8: 64 + 1 + 16 + 32.
        (40, True, 113),
    ],
)
def test_frames_that_the_release_encodes(modules, num_frames, initial_fusion, expected):
    """Counted by a hook, by the formula, and by hand; for each of two expressions."""
    schedule, processor = modules["release_schedule"], untrained_processor()
    model = untrained_model()
    model.config.st_fusion_config.use_initial_fusion = initial_fusion
    seg_frames = schedule.seg_frames_of(num_frames, processor)
    anchors = schedule.anchors_of(seg_frames, model.config.anchor_config.anchor_stride)
    assert schedule.release_encoder_calls(num_frames, len(seg_frames), len(anchors), initial_fusion) == expected
    inputs = inputs_of(modules, processor, num_frames, 2)
    assert seg_frames == inputs["seg_frame_indices"].tolist()
    with modules["lower_bound"].Observer(model) as observer:
        schedule.segment_as_release(model, **inputs)
    assert observer.frames_encoded == 2 * expected
    assert observer.count("vision_tower") == observer.count("language_model") == 2
    assert observer.count("segmenter.memory_encoder") == 2 * num_frames


@pytest.mark.parametrize(("num_frames", "initial_fusion"), [(3, True), (26, True), (26, False)])
def test_masks_of_the_release_are_the_exact_ones(modules, num_frames, initial_fusion):
    model, processor = untrained_model(), untrained_processor()
    model.config.st_fusion_config.use_initial_fusion = initial_fusion
    inputs = inputs_of(modules, processor, num_frames, 3)
    expected = model.segment(**inputs)
    found = modules["release_schedule"].segment_as_release(model, **inputs)
    assert max(float(logits.max()) for logits in expected.mask_logits) > 0.1  # there is something to compare
    for one, *other in zip(found, expected.mask_logits, expected.object_scores, strict=True):
        torch.testing.assert_close(list(one), other, atol=1e-3, rtol=0)


def test_another_count_is_an_error(benchmark, modules, monkeypatch, small):
    case = benchmark.Case("tiny", 9, 1, "release")
    encode = modules["release_schedule"].ReleaseVideo.encode
    monkeypatch.setattr(
        modules["release_schedule"].ReleaseVideo, "encode", lambda self, i: encode(self, i) and encode(self, i)
    )
    with pytest.raises(RuntimeError, match=r"encoded 40 frames for 1 expressions, expected 28"):
        benchmark.measure(case)


# --- the lower bound -------------------------------------------------------------------------------------------------
def test_calls_of_the_lower_bound(modules):
    """Of 11 frames 8 are looked at by the fusions, 2 are anchors; of any number of expressions."""
    model, processor = untrained_model(), untrained_processor()
    bound = modules["lower_bound"]
    with bound.Observer(model) as observer:
        model.segment(**inputs_of(modules, processor, 11, 3))
    assert observer.frames_encoded == 11
    bound.check_calls(observer, 11, 2)
    found = bound.lower_bound(model, observer)
    # The 8 frames in two batches of 4, the other 3 in one.
    assert {name: part["calls"] for name, part in found.items()} == {
        "segmenter.image_encoder": 3,
        "segmenter.sam_mask_decoder.conv_s0": 3,
        "segmenter.sam_mask_decoder.conv_s1": 3,
        "vision_tower": 1,
        "projector": 1,
        "language_model": 2,
        "initial_fusion": 1,
        "prompt_decoder": 1,
        "segmenter.memory_attention": 9,
        "segmenter.sam_mask_decoder": 11,
        "segmenter.memory_encoder": 10,
    }
    assert all(part["seconds"] > 0 for part in found.values())


def test_calls_alone_have_the_shapes_of_the_run(modules, monkeypatch):
    """Each distinct call is timed once, its inputs made anew; what it gives has the shape of what the run gave."""
    model, processor = untrained_model(), untrained_processor()
    bound = modules["lower_bound"]
    monkeypatch.setattr(bound, "MOST", 2)
    inputs = inputs_of(modules, processor, 11, 3)
    shapes = {"run": set(), "alone": set()}
    for when in ("run", "alone"):
        hooks = [
            model.model.get_submodule(name).register_forward_hook(
                lambda m, args, out, name=name, when=when: shapes[when].add((name, bound.shapes(first_tensor(out))))
            )
            for name in bound.PARTS
        ]
        if when == "run":
            with bound.Observer(model) as observer:
                model.segment(**inputs)
        else:
            bound.lower_bound(model, observer)
        for hook in hooks:
            hook.remove()
    assert shapes["run"] == shapes["alone"]
    # The two calls of the language model: the prefix of one, the suffixes of three behind it.
    batches = {shape[0][0] for name, shape in shapes["alone"] if name == "language_model"}
    assert batches == {1, 3}


def first_tensor(output: object) -> torch.Tensor:
    while not isinstance(output, torch.Tensor):
        output = next(iter(output.values() if isinstance(output, dict) else output))
    return output


def test_a_call_too_many_is_an_error(modules):
    model, processor = untrained_model(), untrained_processor()
    inputs = inputs_of(modules, processor, 9, 1)
    with modules["lower_bound"].Observer(model) as observer:
        model.segment(**inputs)
        modules["lower_bound"].check_calls(observer, 9, 2)
        model.model.encode_clips(inputs["pixel_values_videos"])
    with pytest.raises(RuntimeError, match=r"vision_tower 2, expected 1\.$"):
        modules["lower_bound"].check_calls(observer, 9, 2)


def test_a_call_is_made_of_what_it_looked_like(modules):
    """Floats at random in their layout, integers and masks as they were."""
    bound = modules["lower_bound"]
    mask, flat = torch.tensor([[1, 1, 0]]), torch.zeros(4, 1).expand(4, 3)
    args = bound.like((flat, {"mask": mask, "rows": [flat.T], "flag": True}))
    first, rest = bound.made(args)
    assert first.shape == (4, 3) and first.stride() == flat.stride() and first.std() > 0
    assert torch.equal(rest["mask"], mask) and rest["flag"] is True and rest["rows"][0].shape == (3, 4)


# --- rows and table --------------------------------------------------------------------------------------------------
def test_rows_and_ratios(benchmark, monkeypatch, small, tmp_path, capsys):
    """All modes, their rows measured in this process; the file after each of them holds all so far."""
    written = []
    monkeypatch.setattr(
        benchmark, "rows_of", lambda cases, rows_of=benchmark.rows_of: rows_of(cases, benchmark.measure)
    )
    monkeypatch.setattr(benchmark, "STREAM_FROM", 11)
    write = benchmark.write_json
    monkeypatch.setattr(benchmark, "write_json", lambda *args: (write(*args), written.append(len(args[1]["rows"]))))
    result = tmp_path / "result.json"
    arguments = ["--frames", "9", "11", "--expressions", "1", "2", "--threads", "1"]
    benchmark.main([*arguments, "--json", str(result)])
    content = json.loads(result.read_text())
    assert set(content) == KEYS and content["size"] == "tiny" and content["threads"] == 1
    details = json.loads((tmp_path / "result.details.json").read_text())
    assert details["initial_fusion"] and details["fast"]["dtype"] == "bfloat16"
    assert all(set(row) == ROW_KEYS for row in content["rows"])
    both = zip(content["rows"], details["rows"], strict=True)
    rows = {(row["frames"], row["expressions"], row["mode"]): {**row, **more} for row, more in both}
    assert len(rows) == 12 and written == [count for count in range(1, 13) for _ in range(2)]
    for (frames, expressions, mode), row in rows.items():
        assert row["fps"] == pytest.approx(frames / row["seconds"])
        assert row["seconds"] == pytest.approx(sum(row["stages"].values()))
        assert set(row["stages"]) == set(benchmark.STAGES) and min(row["stages"].values()) > 0
        # T_seg 8, K = 2: 16 + 1 + 4 + N - 2.
        expected = (frames + 19) * expressions if mode == "release" else frames
        # A frame that is skipped need not be encoded.
        assert row["encoder_calls"] == expected or (mode == "fast" and row["encoder_calls"] < expected)
        assert row.get("scaled", False) == (mode == "release" and expressions == 2)
    assert rows[9, 2, "release"]["seconds"] == 2 * rows[9, 1, "release"]["seconds"]
    exact, fast = rows[11, 2, "exact"], rows[11, 2, "fast"]
    bound = sum(part["seconds"] for part in exact["lower_bound"].values())
    assert content["ratios"]["11 x 2"] == {
        "exact/lower bound": pytest.approx(exact["seconds"] / bound),
        "release/exact": pytest.approx(rows[11, 2, "release"]["seconds"] / exact["seconds"]),
        "exact/fast": pytest.approx(exact["seconds"] / fast["seconds"]),
    }
    assert set(content["ratios"]) == {"9 x 1", "9 x 2", "11 x 1", "11 x 2"}
    assert content["lower_bound_ratio"] == max(found["exact/lower bound"] for found in content["ratios"].values())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 12 + 1 + 4
    assert sum("release (scaled)" in line for line in lines) == 2


def test_a_short_run_counts_by_its_middle(benchmark, monkeypatch):
    """A long run is made once."""
    model, run_observed, seconds = untrained_model(), benchmark.run_observed, iter([0.5, 1.9, 0.7, 2.5])
    monkeypatch.setattr(
        benchmark, "run_observed", lambda *args, **more: (run_observed(*args, **more)[0], next(seconds))
    )
    made = []
    assert benchmark.run_measured(model, lambda: made.append(0))[1] == 0.7 and len(made) == 3
    assert benchmark.run_measured(model, lambda: made.append(0))[1] == 2.5 and len(made) == 4


def test_the_fast_mode_is_the_preset(benchmark, small, monkeypatch):
    """Its types and its options reach the run; the exact mode has neither."""
    seen = {}
    prepare = benchmark.prepare

    def noted(model, processor, case):
        segment = model.segment

        def segmented(**inputs):
            seen[case.mode] = model.dtype, inputs["tracking"]
            return segment(**inputs)

        monkeypatch.setattr(model, "segment", segmented)
        return prepare(model, processor, case)

    monkeypatch.setattr(benchmark, "prepare", noted)
    for mode in ("exact", "fast"):
        benchmark.measure(benchmark.Case("tiny", 9, 1, mode))
    assert seen == {"exact": (torch.float32, benchmark.EXACT), "fast": (torch.bfloat16, benchmark.FAST.tracking)}


@pytest.mark.slow
def test_rows_are_processes_of_their_own(benchmark, small):
    row = benchmark.measure_alone(benchmark.Case("tiny", 4, 1, "exact"))
    assert row["seconds"] > 0 and row["peak_rss_mb"] > 10


def test_peak_memory_is_of_this_process(benchmark):
    block = np.ones(400_000_000, dtype=np.uint8)
    assert benchmark.peak_resident() >= block.nbytes


def test_default_rows(benchmark):
    """At `tiny` all lengths, the other modes up to 200 frames; larger sizes only clips."""
    parser = benchmark.make_parser()
    cases = benchmark.make_cases(parser.parse_args(["--size", "tiny"]))
    assert {case.frames for case in cases if case.mode == "exact"} == {32, 200, 2000}
    for mode in ("fast", "release"):
        assert {case.frames for case in cases if case.mode == mode} == {32, 200}
    assert {case.expressions for case in cases} == {1, 4, 16}
    for size, frames in (("mid", 32), ("full", 12), ("7b", 32)):
        cases = benchmark.make_cases(parser.parse_args(["--size", size, "--no-initial-fusion"]))
        assert {case.frames for case in cases} == {frames} and not any(case.initial_fusion for case in cases)
        assert {case.mode for case in cases} == {"exact", "fast", "release"}
    cases = benchmark.make_cases(parser.parse_args(["--size", "mid", "--frames", "5", "--expressions", "7"]))
    assert {(case.frames, case.expressions) for case in cases} == {(5, 7)}


def test_the_release_is_run_once(benchmark):
    """For one expression, though four are asked for: the row is multiplied, and only its memory stays."""
    measured = []

    def measure(case):
        measured.append(case)
        return {
            "frames": 9,
            "expressions": case.expressions,
            "mode": case.mode,
            "seconds": 2.0,
            "fps": 4.5,
            "peak_rss_mb": 100.0,
            "encoder_calls": 28,
            "stages": {"image_encoder": 1.5, "other": 0.5},
        }

    cases = [benchmark.Case("tiny", 9, count, "release") for count in (4, 16)]
    four, sixteen = benchmark.rows_of(cases, measure)
    assert [case.expressions for case in measured] == [1]
    assert (four["seconds"], four["encoder_calls"], four["fps"], four["scaled"]) == (8.0, 112, 1.125, True)
    assert sixteen["stages"] == {"image_encoder": 24.0, "other": 8.0} and sixteen["peak_rss_mb"] == 100.0


def test_sizes(modules):
    sizes = modules["inference_sizes"]
    mid, full, release = (sizes.config_of(name) for name in ("mid", "full", "7b"))
    for config, side in ((mid, 512), (full, 1024)):
        sam, text, tower = config.segmenter_config, config.text_config, config.vision_config
        assert (
            sam.image_size == side
            and {**sam.to_dict(), "image_size": 1024} == VirstConfig().segmenter_config.to_dict()
        )
        assert (text.hidden_size, text.num_hidden_layers, text.vocab_size) == (768, 12, 32000)
        assert (tower.hidden_size, tower.num_built_layers) == (256, 4)
        assert (config.anchor_config.num_anchors, config.st_fusion_config.num_seg_tokens) == (3, 10)
    for part in ("vision_config", "text_config", "segmenter_config"):
        assert getattr(release, part).to_dict() == getattr(VirstConfig(), part).to_dict()


# --- the command line ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "arguments",
    [
        ["--size", "huge"],
        ["--frames", "1"],
        ["--expressions", "0"],
        ["--threads", "many"],
        ["--device", "abacus"],
        ["--device", "meta"],
        ["--json", "no/such/folder/result.json"],
        ["--modes", "slow"],
        ["--modes", "release", "--frames", "201"],
    ],
)
def test_bad_arguments_are_one_line(benchmark, capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        benchmark.main(arguments)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1
    assert arguments[1] in err


def test_a_lost_process_is_one_line(benchmark, monkeypatch, capsys, tmp_path):
    """What was measured before it stays in the file."""
    row = {**dict.fromkeys(ROW_KEYS, 0), "frames": 9, "expressions": 1, "mode": "exact", "seconds": 1.0}

    def rows_of(cases):
        yield row
        raise BrokenProcessPool("a process")

    monkeypatch.setattr(benchmark, "rows_of", rows_of)
    with pytest.raises(SystemExit) as stop:
        benchmark.main(["--json", str(tmp_path / "result.json")])
    assert stop.value.code == 2 and "the process of row 2" in capsys.readouterr().err.splitlines()[-1]
    assert json.loads((tmp_path / "result.json").read_text())["rows"] == [row]


def test_a_device_that_is_not_there(benchmark, monkeypatch):
    def no_device(*_, **__):
        raise AssertionError("Torch not compiled with it enabled\nand more")

    monkeypatch.setattr(torch, "zeros", no_device)
    with pytest.raises(ArgumentTypeError, match=r"device cuda cannot be used: Torch not compiled with it enabled$"):
        benchmark.usable_device("cuda")


# --- memory and the page ---------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_memory_of_streams_and_of_many_videos(modules, small):
    """Fresh processes; a video ten times as long. The lengths are smaller than those of the benchmark."""
    memory = modules["stream_memory"]
    options = ["--frames", "60", "600", "--runs", "1", "--videos", "12", "--video-frames", "12", "--threads", "1"]
    content = memory.measure_all(memory.make_parser().parse_args(options))
    assert content["bounded"] == {"stream": True, "videos": True}, content


@pytest.mark.slow
def test_switches_are_measured_against_the_exact_path(modules, monkeypatch, small, tmp_path, capsys):
    """Speed of the small model, J&F of virst-tiny; all in this process. Compiling is left out: it takes a minute."""
    script = modules["speed_switches"]
    monkeypatch.setattr(
        script, "measure_all", lambda args, run=script.measure_all: run(args, lambda work, *rest: work(*rest))
    )
    result = tmp_path / "switches.json"
    options = ["--size", "tiny", "--frames", "9", "--videos", "1", "--threads", "1", "--json", str(result)]
    script.main([*options, "--switches", "fast", "chunk=1"])
    content = json.loads(result.read_text())
    exact, fast, chunk = content["switches"]
    assert [row["switch"] for row in (exact, fast, chunk)] == ["exact", "fast", "chunk=1"]
    assert exact["times_exact"] == 1 and exact["points"] == 0 and abs(chunk["points"]) < 0.01
    assert fast["points"] == pytest.approx(fast["J&F"] - exact["J&F"]) and 0 <= fast["J&F"] <= 100
    assert len(capsys.readouterr().out.splitlines()) == 4
    page = modules["inference_figures"].figures(content)
    assert page.count("\n| ") == 5 and "| chunk=1 |" in page and "virst-tiny on 1 videos" in page


def test_switches_have_what_the_page_names(modules):
    """Each is a field of a preset or of the options, set unlike the exact path; the page names it."""
    script, page = modules["speed_switches"], (FOLDER.parent / "docs" / "inference.md").read_text()
    exact = script.SWITCHES["exact"]
    for name, preset in script.SWITCHES.items():
        field, _, value = name.partition("=")
        if value:
            found = getattr(preset.tracking, field, None) or getattr(preset, field)
            assert str(found) == value and preset != exact
        assert field in page


def test_memory_that_grows_is_told(modules):
    judge = modules["stream_memory"].judge
    assert judge({"median_mb": {"200": 1000, "2000": 1099}, "mean_rss_mb": [100, 105]}) == {
        "stream": True,
        "videos": True,
    }
    assert judge({"median_mb": {"200": 1000, "2000": 1101}, "mean_rss_mb": [100, 106]}) == {
        "stream": False,
        "videos": False,
    }


def test_figures_go_into_the_page(modules, tmp_path):
    script = modules["inference_figures"]
    row = {"frames": 12, "expressions": 4, "seconds": 2.0, "fps": 6.0, "peak_rss_mb": 1000.4}
    content = {
        "size": "full",
        "device": "cpu",
        "threads": 1,
        "rows": [{**row, "mode": "exact"}, {**row, "mode": "release"}],
        "ratios": {"12 x 4": {"release/exact": 4.5, "exact/lower bound": 1.1}},
        "lower_bound_ratio": 1.1,
    }
    memory = {
        "size": "tiny",
        "device": "cpu",
        "threads": 2,
        "stream_mb": {"200": [900.0, 901.0], "2000": [905.0, 906.0]},
        "median_mb": {"200": 900.5, "2000": 905.5},
        "videos": 20,
        "mean_rss_mb": [500.0, 501.0],
    }
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\n{script.BEGIN}\n\nold\n\n{script.END}\n\nafter\n")
    for name, found in (("a.json", content), ("b.json", memory)):
        (tmp_path / name).write_text(json.dumps(found))
    more = {"initial_fusion": False, "rows": [{}, {"scaled": True}]}
    (tmp_path / "a.details.json").write_text(json.dumps(more))
    for _ in range(2):  # a second time nothing piles up
        script.main([str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--page", str(page)])
    text = page.read_text()
    assert text.startswith("# Page") and text.endswith("after\n") and "old" not in text
    assert text.count("| 12 | 4 | exact | 2.00 | 6.00 | 1000 |") == 1
    assert "release (of one, multiplied)" in text and "| 12 x 4 | 4.50 | - | 1.10 |" in text
    assert (
        "| 2000 | 905, 906 | 906 |" in text and "### Size `full`, cpu, 1 thread, without the initial fusion\n" in text
    )
    page.write_text("no marks")
    with pytest.raises(SystemExit, match="no place for figures"):
        script.main([str(tmp_path / "a.json"), "--page", str(page)])
    assert script.BEGIN in (FOLDER.parent / "docs" / "inference.md").read_text()
