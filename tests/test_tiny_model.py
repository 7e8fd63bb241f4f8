"""virst-tiny, the model in the package: it segments what is asked, knows when there is nothing, and answers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

import virst_hf
from virst_hf.cli.main import main
from virst_hf.data.shapes_maker import make_shapes
from virst_hf.evaluation import evaluate_model
from virst_hf.metrics import region_similarity
from virst_hf.rle import decode_rle

FOLDER = Path(virst_hf.VIRST_TINY)
# No training and no published figure was made with it.
SEED, VIDEOS = 271828, 16
TYPES = {"attribute", "motion", "relation", "plural", "reasoning", "no_target"}


def test_the_files():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 12e6
    assert {path.suffix for path in FOLDER.iterdir()} <= {".json", ".safetensors", ".jinja", ".md"}
    with safe_open(FOLDER / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}
    assert json.loads((FOLDER / "virst_stage.json").read_text())["history"] == [
        "alignment",
        "few_image",
        "propagation",
    ]
    # Small files, but a CPU is faster in float32.
    assert virst_hf.load_model("virst-tiny").dtype == torch.float32


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from virst_hf.loading import check_model_name

    monkeypatch.chdir(tmp_path)
    assert check_model_name("virst-tiny") == virst_hf.VIRST_TINY
    shutil.copytree(FOLDER, "virst-tiny")
    assert check_model_name("virst-tiny") == "virst-tiny"


@pytest.mark.slow
def test_its_numbers_on_videos_that_nobody_has_seen(tmp_path: Path):
    make_shapes(tmp_path / "shapes", "test", VIDEOS, SEED, num_proc=1)
    model, processor = virst_hf.load_model("virst-tiny"), virst_hf.load_processor("virst-tiny")
    results = evaluate_model("shapes-test", model, processor, tmp_path / "shapes", tmp_path / "results")
    # Below what it has on 200 videos (docs/tiny.md): these are few.
    assert results["J&F"] > 80
    assert set(results["per_type"]) == TYPES
    assert all(scores["J&F"] > 55 for scores in results["per_type"].values()), results["per_type"]
    assert results["no_target_accuracy"] > 0.8
    assert results["qa_accuracy"] > 0.7
    # Given another sentence about the same video it must be wrong: it reads.
    assert results["controls"]["other_expression"]["J&F"] < 50


def test_the_commands_take_it_when_no_model_is_named(
    demo_clip: tuple[Path, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    clip, target = demo_clip
    output = tmp_path / "masks"
    assert (
        main(["segment", str(clip), "the red square", "the shape with the most corners", "--output", str(output)]) == 0
    )
    said = capsys.readouterr().err
    assert "virst-tiny" in said and "coloured shapes only" in said and "--model" in said
    found = json.loads((output / "masks.json").read_text())
    masks = np.stack([decode_rle(rle, target.shape[1:]) for rle in found["expressions"][0]["masks"]])
    assert region_similarity(masks, target).mean() > 0.8

    assert main(["ask", str(clip), "what color is the square?"]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == "red"
    assert "virst-tiny" in printed.err

    assert main(["info", "virst-tiny"]) == 0
    assert "5,140,610" in capsys.readouterr().out


def test_a_model_that_is_named_says_nothing_of_it(
    demo_clip: tuple[Path, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    options = ["--model", virst_hf.VIRST_TINY, "--end", "2", "--output", str(tmp_path / "masks")]
    assert main(["segment", str(demo_clip[0]), "the red square", *options]) == 0
    assert "coloured shapes" not in capsys.readouterr().err


@pytest.fixture(scope="module")
def demo_clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """The clip of `make demo`, and where its red square is."""
    from virst_hf.data.shapes_maker.drawing import draw_scene, draw_texture, visible_masks
    from virst_hf.data.shapes_maker.scene import Stream, make_scene
    from virst_hf.rendering import VideoWriter

    stream = Stream("demo", 0, 78)
    scene = make_scene(stream)
    masks = visible_masks(scene)
    path = tmp_path_factory.mktemp("clip") / "shapes.mp4"
    frames = draw_scene(scene, draw_texture(stream), masks)
    with VideoWriter(path, *masks.shape[-2:], fps=12) as writer:
        for frame in frames:
            writer.write(frame)
    (square,) = [n for n, thing in enumerate(scene.shapes) if (thing.color, thing.form) == ("red", "square")]
    return path, masks[square]
