"""The recipe of virst-tiny: each part makes a step on a few clips, and a run in two pieces is the run in one."""

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
NUM_CLIPS = 8


@pytest.fixture(scope="module", autouse=True)
def recipe_on_path():
    sys.path.insert(0, str(ROOT / "examples" / "tiny"))
    yield
    sys.path.remove(str(ROOT / "examples" / "tiny"))


@pytest.fixture(scope="module")
def folder(recipe_on_path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few clips, and what the untrained encoders make of them."""
    from clips import make_clips
    from encoded import write_maps, write_tokens
    from model import tiny_model, tiny_processor

    path = tmp_path_factory.mktemp("tiny")
    make_clips(path, "train", NUM_CLIPS, num_proc=1)
    torch.manual_seed(0)
    model = tiny_model(tiny_processor())
    write_tokens(path, "train", model.model.vision_tower)
    write_maps(path, "train", model.model.segmenter)
    return path


@pytest.fixture
def fresh(recipe_on_path):
    """An untrained virst-tiny and its processor."""
    from model import tiny_model, tiny_processor

    torch.manual_seed(0)
    processor = tiny_processor()
    return tiny_model(processor), processor


def steps(training, count: int) -> list[float]:
    """Losses of a few steps of plain gradient descent on the same draws."""
    losses = []
    for _ in range(count):
        torch.manual_seed(0)
        loss = sum(training.losses(1, np.random.default_rng(1)).values())
        training.parts.zero_grad()
        loss.backward()
        with torch.no_grad():
            moving = [p for p in training.parts.parameters() if p.grad is not None]
            norm = torch.stack([p.grad.norm() for p in moving]).norm()
            for parameter in moving:
                parameter -= 0.02 * parameter.grad / norm
        losses.append(float(loss))
    return losses


def test_it_fits_into_twelve_megabytes(fresh):
    model, _ = fresh
    assert 2 * sum(parameter.numel() for parameter in model.parameters()) < 11e6


def test_a_prompt_is_short_and_reads_back(fresh):
    _, processor = fresh
    for text in ("the red square that turns", "which shape has the fewest corners?"):
        ids = processor(text=[text], num_vlm_frames=[8])["input_ids"][0]
        said = ids[ids != processor.video_token_id]
        assert len(said) < 40
        assert text in processor.tokenizer.decode(said)


@pytest.mark.parametrize("part", ["tower", "segmenter", "tracking", "language", "joint", "relations"])
def test_each_part_learns_on_its_draws(part: str, folder: Path, fresh):
    from clips import Clips
    from encoded import EncodedClips
    from joint import JointTraining
    from language import LanguageTraining
    from segmenter import SegmenterTraining
    from tower import TowerTraining

    model, processor = fresh
    plain, encoded = Clips(folder, "train"), EncodedClips(folder, "train")
    if part == "tower":
        training = TowerTraining(model, plain, plain)
    elif part in ("segmenter", "tracking"):
        training = SegmenterTraining(model, plain, plain, tracking=part == "tracking")
    elif part == "language":
        training = LanguageTraining(model, processor, encoded, encoded)
    else:
        training = JointTraining(model, processor, encoded, encoded, false_relations=part == "relations")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses = steps(training, 4)
    assert losses[-1] < losses[0]
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    trains_encoders = {"tower": "model.vision_tower", "segmenter": "model.segmenter.image_encoder"}
    for where in ("model.vision_tower", "model.segmenter.image_encoder"):
        assert any(name.startswith(where) for name in changed) == (trains_encoders.get(part) == where)


def test_false_relations_hold_for_nothing(folder: Path, fresh):
    from encoded import EncodedClips
    from joint import JointTraining

    model, processor = fresh
    clips = EncodedClips(folder, "train")
    plain, more = (JointTraining(model, processor, clips, clips, flag) for flag in (False, True))
    chosen = list(range(NUM_CLIPS))
    offered = [clips.facts[clip]["false_relations"] for clip in chosen]
    assert any(offered)
    places = ("left of", "right of", "above", "below")
    assert all(any(place in text for place in places) for texts in offered for text in texts)
    # A true relation of a clip is never among its false ones.
    for clip, texts in zip(chosen, offered, strict=True):
        own = clips.facts[clip]["expressions"]
        assert not set(texts) & {e["text"] for e in own if e["targets"]}
    without, with_them = (training.batch(clips, chosen, random.Random(1), False) for training in (plain, more))
    assert "false_relation" not in without[1]
    assert with_them[1].count("false_relation") == sum(map(bool, offered))
    masks = [mask for mask in with_them[0]["mask_labels"] if mask is not None]
    for kind, mask in zip(with_them[1], masks, strict=True):
        if kind == "false_relation":
            assert not mask.any()


def test_false_relations_are_added_once(recipe_on_path, tmp_path: Path):
    from clips import add_false_relations

    from virst_hf.data.shapes_maker import make_shapes
    from virst_hf.data.shapes_maker.checking import objects_of
    from virst_hf.data.shapes_maker.drawing import visible_masks
    from virst_hf.data.shapes_maker.scene import Stream, make_scene

    file = make_shapes(tmp_path, "train", 4, seed=7, num_proc=1, progress=False) / "meta_expressions.json"
    before = json.loads(file.read_text())["videos"]
    add_false_relations(tmp_path, "train", 7)
    once = file.read_text()
    add_false_relations(tmp_path, "train", 7)
    assert file.read_text() == once
    added = 0
    for index, (name, video) in enumerate(json.loads(once)["videos"].items()):
        more = video["expressions"].pop("false_relation", None)
        assert video == before[name]
        if more:
            added += 1
            scene = make_scene(Stream("train", 7, index))
            # A second reading of the words, on the masks.
            assert objects_of(more["exp"], scene, visible_masks(scene)) == []
    assert added


def test_merged_shares_are_those_of_the_merged_tokens(fresh):
    from model import FRAME_TOKENS
    from tower import merged_shares

    from virst_hf.modules.projector import merge_tokens

    tokens = torch.randn(3, 100, 160)
    shares = torch.rand(3, 100, 6)
    merged, joined = merged_shares(tokens, shares, 5)
    torch.testing.assert_close(merged, merge_tokens(tokens, FRAME_TOKENS, 5), rtol=1e-4, atol=1e-5)
    # Means weighted by size, which here are the counts that a constant share makes visible.
    assert joined.shape == (3, FRAME_TOKENS, 6) and float(joined.min()) >= 0 and float(joined.max()) <= 1
    same = merged_shares(tokens, torch.full((3, 100, 6), 0.25), 5)[1]
    torch.testing.assert_close(same, torch.full_like(same, 0.25), rtol=1e-4, atol=1e-5)


def test_a_run_in_pieces_is_the_run_in_one(recipe_on_path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import loop

    monkeypatch.setattr(loop, "EVERY", 2)

    class Stop(Exception):
        pass

    def run(folder: Path, stop_at: int | None = None) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        parts = nn.ModuleDict({"blocks": nn.Linear(8, 8), "head": nn.Linear(8, 1)})

        def losses(step: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
            if step == stop_at:
                raise Stop
            inputs = torch.from_numpy(rng.normal(size=(4, 8))).float() + 0.1 * torch.randn(4, 8)
            return {"loss": parts["head"](parts["blocks"](inputs).relu()).square().mean()}

        folder.mkdir(exist_ok=True)
        loop.pretrain(folder, "part", parts, losses, lambda: {"score": 0.0}, 8, lambda name: "blocks" in name)
        return parts.state_dict()

    whole = run(tmp_path / "one")
    with pytest.raises(Stop):
        run(tmp_path / "two", stop_at=random.Random(3).randrange(2, 7))
    pieces = run(tmp_path / "two")
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)
    assert not (tmp_path / "two" / "part.checkpoint.pt").exists()
    # A part that is done is loaded, not trained again.
    again = run(tmp_path / "two", stop_at=0)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
