"""The command `virst`: outputs, bad input, and that nothing half-written is left behind."""

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco
from safetensors.torch import load_file, save_file

import virst_hf
from virst_hf import CheckpointError, VirstError
from virst_hf.checkpoint_check import check_loading_info
from virst_hf.cli import info, segment
from virst_hf.cli.main import main
from virst_hf.loading import check_model_name, load_model, pick_device
from virst_hf.rendering import VideoWriter

ROOT = Path(__file__).parent.parent
HEIGHT, WIDTH, FRAMES = 46, 61, 10


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return virst_hf.make_untrained_model(tmp_path_factory.mktemp("cli") / "model")


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    out = np.zeros((FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)
    for t in range(FRAMES):
        out[t, 10:30, 3 * t : 3 * t + 20] = (200, 30, 30)
    return out


@pytest.fixture(scope="module")
def clip(frames: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The frames as an mp4, cut to an even width."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with VideoWriter(path, HEIGHT, WIDTH - 1, fps=5) as writer:
        for frame in frames:
            writer.write(np.ascontiguousarray(frame[:, :-1]))
    return path


@pytest.fixture(scope="module")
def folder(frames: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The frames, of odd width, as a folder of images."""
    path = tmp_path_factory.mktemp("frames")
    for t, frame in enumerate(frames):
        Image.fromarray(frame).save(path / f"frame_{t}.png")
    return path


@pytest.fixture(autouse=True)
def transformers_verbosity() -> Iterator[None]:
    """The commands make Transformers quiet; a test should not do so for the next."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    yield
    logging.set_verbosity(before)
    logging.enable_progress_bar()


def read_masks(path: Path) -> np.ndarray:
    return np.stack([np.array(Image.open(file)) for file in sorted(path.glob("*.png"))])


def check_results(output: Path, texts: list[str], num_frames: int, height: int, width: int) -> dict:
    """The folder holds what the command promises; returns masks.json."""
    assert {path.name for path in output.iterdir()} == {"masks.json", "overlay.mp4", *map(str, range(len(texts)))}
    content = json.loads((output / "masks.json").read_text(encoding="utf-8"))
    assert (content["num_frames"], content["height"], content["width"]) == (num_frames, height, width)
    assert len(content["frame_times"]) == num_frames
    assert [entry["text"] for entry in content["expressions"]] == texts
    for index, entry in enumerate(content["expressions"]):
        names = [path.name for path in sorted((output / str(index)).iterdir())]
        assert names == [f"{t:05d}.png" for t in range(num_frames)]
        masks = read_masks(output / str(index))
        assert masks.shape == (num_frames, height, width) and set(np.unique(masks)) <= {0, 255}
        decoded = np.stack([coco.decode({**rle, "counts": rle["counts"].encode()}) for rle in entry["masks"]])
        assert (decoded * 255 == masks).all()
        assert len(entry["object_scores"]) == len(entry["iou_scores"]) == num_frames
        absent = np.array(entry["object_scores"]) <= 0
        assert not masks[absent].any()
    with av.open(str(output / "overlay.mp4")) as container:
        overlay = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(overlay) == num_frames
    assert overlay[0].shape == (height + height % 2, width + width % 2, 3)
    return content


def test_segment_writes_everything(model: Path, clip: Path, tmp_path: Path, capsys):
    output = tmp_path / "out" / "masks"
    texts = ["the red box", "What moves to the right?"]
    assert main(["segment", str(clip), *texts, "--model", str(model), "--output", str(output)]) == 0
    content = check_results(output, texts, FRAMES, HEIGHT, WIDTH - 1)
    assert content["frame_times"] == pytest.approx([t / 5 for t in range(FRAMES)], abs=1e-6)
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1].startswith("Wrote the masks of 2 expressions in 10 frames")
    assert str(output) in printed.out and "10/10" in printed.err
    assert [path.name for path in output.parent.iterdir()] == ["masks"]


def test_segment_agrees_with_the_model(model: Path, folder: Path, tmp_path: Path):
    output = tmp_path / "masks"
    assert main(["segment", str(folder), "the red box", "--model", str(model), "--output", str(output)]) == 0
    check_results(output, ["the red box"], FRAMES, HEIGHT, WIDTH)
    processor, network = virst_hf.load_processor(model), load_model(model, device="cpu")
    outputs = network.segment(**processor(videos=str(folder), text=["the red box"]))
    expected = processor.post_process_video_segmentation(outputs)[0]["masks"].numpy()
    assert (read_masks(output / "0") == expected * 255).all()


def test_start_end_and_stride_choose_frames(model: Path, clip: Path, tmp_path: Path):
    output = tmp_path / "masks"
    options = ["--start", "1", "--end", "8", "--stride", "3", "--dtype", "bfloat16", "--device", "cpu"]
    command = ["segment", str(clip), "it", "--model", str(model), "--output", str(output), *options]
    assert main(command) == 0
    content = check_results(output, ["it"], 3, HEIGHT, WIDTH - 1)
    assert content["frame_times"] == pytest.approx([0.2, 0.8, 1.4], abs=1e-6)


def test_speed_options_reach_the_stream(model: Path, folder: Path, tmp_path: Path, monkeypatch):
    """A preset, a switch set otherwise, and what `--dtype` says against it."""
    seen = []
    stream = virst_hf.VirstForVideoSegmentation.stream
    compiled = "virst_hf.VirstForVideoSegmentation.compile_inference"

    def noted(self, *args, tracking):
        encoder = next(self.model.segmenter.image_encoder.parameters())
        seen.append((self.dtype, encoder.dtype, tracking))
        return stream(self, *args, tracking=tracking)

    monkeypatch.setattr(virst_hf.VirstForVideoSegmentation, "stream", noted)
    monkeypatch.setattr(compiled, lambda self: seen.append("compiled"))
    for index, options in enumerate(
        (
            ["--preset", "fast"],
            ["--preset", "fast", "--recent", "1", "--track-every", "2", "--dtype", "float32"],
            ["--encoder-dtype", "bfloat16", "--pool", "4", "--chunk", "1", "--compile"],
        )
    ):
        command = ["segment", str(folder), "it", "--model", str(model), "--output", str(tmp_path / str(index))]
        assert main([*command, "--device", "cpu", *options]) == 0
        check_results(tmp_path / str(index), ["it"], FRAMES, HEIGHT, WIDTH)
    half, full = torch.bfloat16, torch.float32
    assert seen == [
        (half, half, virst_hf.FAST.tracking),
        (full, full, replace(virst_hf.FAST.tracking, recent=1, stride=2)),
        "compiled",
        (full, half, virst_hf.TrackingOptions(pool=4, chunk=1)),
    ]


def test_presets_of_the_command_are_those_of_the_package():
    from virst_hf import presets
    from virst_hf.cli import options

    assert list(presets.PRESETS) == list(options.PRESETS)


def test_segment_takes_a_still_image(model: Path, folder: Path, tmp_path: Path):
    output = tmp_path / "masks"
    image = folder / "frame_3.png"
    assert main(["segment", str(image), "it", "--model", str(model), "--output", str(output)]) == 0
    check_results(output, ["it"], 1, HEIGHT, WIDTH)


def test_overwrite_is_asked_for(model: Path, folder: Path, tmp_path: Path, capsys):
    output = tmp_path / "masks"
    command = ["segment", str(folder / "frame_0.png"), "--model", str(model), "--output", str(output)]
    assert main([*command[:2], "a", "b", *command[2:]]) == 0
    assert main([*command[:2], "c", *command[2:]]) == 2
    assert "--overwrite" in one_line(capsys)
    assert len(list(output.iterdir())) == 4
    assert main([*command[:2], "c", *command[2:], "--overwrite"]) == 0
    check_results(output, ["c"], 1, HEIGHT, WIDTH)
    (output / "notes.txt").write_text("mine")
    assert main([*command[:2], "c", *command[2:], "--overwrite"]) == 2
    assert "notes.txt" in one_line(capsys) and (output / "notes.txt").exists()


def test_ask_prints_an_answer(model: Path, clip: Path, capsys):
    command = ["ask", str(clip), "What is moving?", "--model", str(model), "--max-new-tokens", "3"]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert printed.out.endswith("\n") and "<|im_end|>" not in printed.out


def test_info_counts_parameters_without_loading(model: Path, capsys, monkeypatch):
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", None)
    assert main(["info", str(model)]) == 0
    printed = capsys.readouterr().out
    total = sum(tensor.numel() for tensor in load_file(model / "model.safetensors").values())
    assert f"{total:,}  F32" in printed.splitlines()[-1] and "vision tower" in printed


def test_info_reads_sharded_checkpoints(model: Path, tmp_path: Path):
    load_model(model, device="cpu").save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert info.read_tensor_headers(tmp_path / "sharded") == info.read_tensor_headers(model)


def one_line(capsys) -> str:
    """The last output on stderr, which must be one line that is no traceback."""
    lines = capsys.readouterr().err.strip().splitlines()
    lines = [line for line in lines if line.startswith("virst")]
    assert len(lines) == 1 and "Traceback" not in lines[0], lines
    return lines[0]


def damaged(model: Path, target: Path, change) -> Path:
    """A copy of the checkpoint whose tensors went through `change`."""
    shutil.copytree(model, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.fixture()
def bad_inputs(model: Path, clip: Path, folder: Path, tmp_path: Path) -> dict[str, tuple[list[str], str]]:
    """Name -> (VIDEO, TEXT and --model, what the message must name)."""
    text_file = tmp_path / "text.mp4"
    text_file.write_text("this is no video\n" * 50)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(clip.read_bytes()[: clip.stat().st_size * 2 // 3])
    empty = tmp_path / "empty"
    empty.mkdir()
    mixed = tmp_path / "mixed"
    shutil.copytree(folder, mixed)
    Image.new("RGB", (20, 20)).save(mixed / "frame_4.png")
    pickle = tmp_path / "weights.pt"
    pickle.write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    config_only = tmp_path / "config_only"
    config_only.mkdir()
    shutil.copy(model / "config.json", config_only)
    shutil.copytree(model, tmp_path / "garbled")
    (tmp_path / "garbled" / "model.safetensors").write_bytes(struct.pack("<Q", 10**15) + b"{}")
    shutil.copytree(model, tmp_path / "wordless", ignore=shutil.ignore_patterns("tokenizer*"))
    shutil.copytree(model, tmp_path / "mistyped")
    config = json.loads((model / "config.json").read_text())
    config["segmenter_config"]["image_size"] = "big"
    (tmp_path / "mistyped" / "config.json").write_text(json.dumps(config))
    key = "lm_head.weight"
    lacking = damaged(model, tmp_path / "lacking", lambda tensors: tensors.pop(key))
    extra = damaged(model, tmp_path / "extra", lambda tensors: tensors.update(stray=tensors[key][:1].clone()))
    other = damaged(model, tmp_path / "other", lambda tensors: tensors.update({key: tensors[key][:-1].clone()}))
    video, name = str(clip), str(model)
    return {
        "missing file": ([str(tmp_path / "no.mp4"), "it", "--model", name], "no.mp4"),
        "text file": ([str(text_file), "it", "--model", name], "text.mp4"),
        "truncated": ([str(cut), "it", "--model", name], "cut.mp4"),
        "no frames": ([str(empty), "it", "--model", name], "empty"),
        "sizes": ([str(mixed), "it", "--model", name], "frame_4.png"),
        "empty text": ([video, "it", "  ", "--model", name], "Expression 1 is empty"),
        "stride": ([video, "it", "--model", name, "--stride", "0"], "stride"),
        "beyond the end": ([video, "it", "--model", name, "--start", "99"], "99"),
        "no model": ([video, "it", "--model", str(tmp_path / "none")], "none"),
        "pickle as model": ([video, "it", "--model", str(pickle)], "virst convert"),
        "no config": ([video, "it", "--model", str(empty)], "config.json"),
        "no weights": ([video, "it", "--model", str(config_only)], "config_only"),
        "no tokenizer": ([video, "it", "--model", str(tmp_path / "wordless")], "processor"),
        "mistyped config": ([video, "it", "--model", str(tmp_path / "mistyped")], "image_size"),
        "garbled weights": ([video, "it", "--model", str(tmp_path / "garbled")], "cannot be read"),
        "missing tensor": ([video, "it", "--model", str(lacking)], "lacks 1 tensor: lm_head.weight"),
        "extra tensor": ([video, "it", "--model", str(extra)], "unknown 1 tensor: stray"),
        "other shape": ([video, "it", "--model", str(other)], "lm_head.weight"),
        "device": ([video, "it", "--model", name, "--device", "nowhere"], "nowhere"),
    }


def test_bad_input_gives_one_line_and_no_output(bad_inputs: dict[str, tuple[list[str], str]], tmp_path: Path, capsys):
    results = tmp_path / "results"
    results.mkdir()
    for name, (arguments, named) in bad_inputs.items():
        code = main(["segment", *arguments, "--output", str(results / "masks")])
        message = one_line(capsys)
        assert code == 2 and named in message, f"{name}: {message}"
        assert list(results.iterdir()) == [], name


def test_output_that_cannot_be_written_is_told_before_the_work(
    model: Path, folder: Path, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.setattr(virst_hf.VirstForVideoSegmentation, "stream", None)
    (tmp_path / "file").write_text("")
    command = ["segment", str(folder), "it", "--model", str(model), "--output", str(tmp_path / "file" / "masks")]
    assert main(command) == 2
    assert "cannot be written" in one_line(capsys)


def test_scores_that_are_no_numbers_are_an_error(model: Path, folder: Path, tmp_path: Path, monkeypatch, capsys):
    stream = virst_hf.VirstForVideoSegmentation.stream

    def overflow(self, *args, **options):
        for frame in stream(self, *args, **options):
            yield frame._replace(scores=frame.scores * float("nan")) if frame.index == 1 else frame

    monkeypatch.setattr(virst_hf.VirstForVideoSegmentation, "stream", overflow)
    assert main(["segment", str(folder), "it", "--model", str(model), "--output", str(tmp_path / "out")]) == 2
    assert "--dtype float32" in one_line(capsys)
    assert not (tmp_path / "out").exists()


def test_info_tells_of_a_broken_index(model: Path, tmp_path: Path, capsys):
    shutil.copytree(model, tmp_path / "m")
    (tmp_path / "m" / info.INDEX_FILE).write_text('{"weight_map":')
    assert main(["info", str(tmp_path / "m")]) == 2
    assert info.INDEX_FILE in one_line(capsys)


def test_an_error_while_writing_leaves_nothing(model: Path, folder: Path, tmp_path: Path, monkeypatch, capsys):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("virst_hf.rendering.write_json", full)
    output = tmp_path / "masks"
    command = ["segment", str(folder), "it", "--model", str(model), "--output", str(output)]
    assert main(command) == 2
    assert "No space left" in one_line(capsys) and list(tmp_path.iterdir()) == []


def test_interrupt_leaves_nothing(tmp_path: Path, monkeypatch, capsys):
    def stop(_: object) -> None:
        with segment.output_folder(tmp_path / "masks") as folder:
            (folder / "half").write_text("")
            raise KeyboardInterrupt

    monkeypatch.setattr(segment, "run", stop)
    command = ["segment", "a.mp4", "it", "--model", "m", "--output", str(tmp_path / "masks")]
    assert main(command) == 130
    assert "interrupted" in one_line(capsys) and list(tmp_path.iterdir()) == []


def test_output_folder_puts_the_old_one_back(tmp_path: Path, monkeypatch):
    output = tmp_path / "masks"
    output.mkdir()
    (output / "old").write_text("")
    rename = Path.rename

    def refuse_new(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError("refused")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_new)
    with pytest.raises(OSError, match="refused"):
        with segment.output_folder(output) as folder:
            (folder / "new").write_text("")
    assert [path.name for path in tmp_path.iterdir()] == ["masks"]
    assert [path.name for path in output.iterdir()] == ["old"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "COMMAND"),
        (["segment"], "VIDEO"),
        (["segment", "a.mp4", "it", "--model", "m", "--output", "o", "--stride", "x"], "--stride"),
        (["nothing"], "nothing"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], named: str, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and named in one_line(capsys)


def test_output_that_is_a_file_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(VirstError, match="is a file"):
        segment.check_output(str(tmp_path / "file"), overwrite=True)


def test_overwrite_spares_folders_of_the_user(tmp_path: Path):
    (tmp_path / "2024").mkdir()
    with pytest.raises(VirstError, match="2024"):
        segment.check_output(str(tmp_path), overwrite=True)


def test_model_names(model: Path, monkeypatch):
    assert check_model_name(model) == str(model)
    for name in ("./name", "~nobody/name", "a/b/c", "/absent/model", "name/"):
        with pytest.raises(CheckpointError, match="no folder"):
            check_model_name(name)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda name, file: str(model / file))
    assert check_model_name("owner/name") == "owner/name" and check_model_name("name") == "name"

    def unreachable(*_: object) -> None:
        raise OSError("not reachable")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    with pytest.raises(CheckpointError, match="Hub gives no model of that name: not reachable"):
        check_model_name("owner/name")


def test_other_models_are_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="'bert'"):
        check_model_name(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        check_model_name(tmp_path)


def test_loading_info_lists_every_kind():
    nothing = {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set()}
    check_loading_info("m", nothing)
    faults = {
        "missing_keys": {f"a{i}" for i in range(9)},
        "unexpected_keys": ["b"],
        "mismatched_keys": {("c", (1, 2), (3, 4))},
    }
    with pytest.raises(CheckpointError) as error:
        check_loading_info("m", faults)
    message = str(error.value)
    assert "lacks 9 tensors: a0, a1" in message and "4 more" in message
    assert "unknown 1 tensor: b" in message and "c (1, 2) instead of (3, 4)" in message


def test_devices():
    assert pick_device("cpu").type == "cpu" and pick_device(None).type in ("cpu", "cuda")
    with pytest.raises(VirstError, match="cuda:77"):
        pick_device("cuda:77")


@pytest.mark.slow
def test_the_command_as_a_process(model: Path, clip: Path, tmp_path: Path):
    command = [sys.executable, "-m", "virst_hf.cli.main", "segment", str(clip), "it", "--model"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    output = tmp_path / "masks"
    done = subprocess.run(
        [*command, str(model), "--output", str(output)], capture_output=True, text=True, env=env, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1 and "Warning" not in done.stderr
    check_results(output, ["it"], FRAMES, HEIGHT, WIDTH - 1)
    done = subprocess.run(
        [*command, "./absent", "--output", str(output / "x")], capture_output=True, text=True, env=env, cwd=tmp_path
    )
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("virst segment: There is no folder")
