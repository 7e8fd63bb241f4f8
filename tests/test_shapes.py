"""Shapes: scenes, sentences and their targets, the second reading that checks them, and the layouts on disk."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from virst_hf.cli.main import main
from virst_hf.data import CATEGORIES, decode_masks, load
from virst_hf.data.doctor import diagnose
from virst_hf.data.files import read_image
from virst_hf.data.shapes_maker import make_shapes, writing
from virst_hf.data.shapes_maker.checking import answer_of, objects_of
from virst_hf.data.shapes_maker.drawing import visible_masks
from virst_hf.data.shapes_maker.expressions import EXPRESSION_TYPES, video_expressions
from virst_hf.data.shapes_maker.questions import scene_questions
from virst_hf.data.shapes_maker.scene import COLORS, Scene, Shape, Stream, make_scene
from virst_hf.errors import DataError
from virst_hf.rle import decode_rle

NUM_VIDEOS = 6


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Two splits of six videos."""
    folder = tmp_path_factory.mktemp("shapes")
    for split in ("valid", "test"):
        make_shapes(folder, split, NUM_VIDEOS, num_proc=1, progress=False)
    return folder


@pytest.fixture(scope="module")
def scenes() -> list[tuple[Scene, np.ndarray, Stream]]:
    """Sixty scenes with what is visible of their objects."""
    found = []
    for video in range(60):
        stream = Stream("train", 7, video)
        scene = make_scene(stream)
        found.append((scene, visible_masks(scene), stream))
    return found


def bytes_of(folder: Path, pattern: str = "*") -> dict[str, str]:
    files = sorted(path for path in folder.rglob(pattern) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# --- one stream for each video ---------------------------------------------------------------------------------------
def test_equal_arguments_give_equal_bytes(root, tmp_path):
    again = make_shapes(tmp_path, "test", NUM_VIDEOS, num_proc=2, progress=False)
    assert bytes_of(again) == bytes_of(root / "test")


def test_a_longer_split_begins_with_the_same_videos(root, tmp_path):
    shorter = bytes_of(make_shapes(tmp_path, "test", 2, num_proc=1, progress=False), "*.jpg")
    longer = bytes_of(root / "test", "*.jpg")
    assert shorter.items() <= longer.items() and len(shorter) < len(longer)


def test_splits_and_seeds_have_no_frame_in_common(root, tmp_path):
    other_seed = make_shapes(tmp_path, "test", 2, seed=1, num_proc=1, progress=False)
    frames = [set(bytes_of(folder, "*.jpg").values()) for folder in (root / "valid", root / "test", other_seed)]
    assert not frames[0] & frames[1] and not frames[1] & frames[2]


def test_refused_arguments(root):
    with pytest.raises(DataError, match="splits train, valid, test; found 'dev'"):
        make_shapes(root, "dev", 1)
    with pytest.raises(DataError, match="at least one video"):
        make_shapes(root, "train", 0)
    before = bytes_of(root)
    with pytest.raises(DataError, match="is there already"):
        make_shapes(root, "test", 1)
    assert bytes_of(root) == before


def test_nothing_is_left_of_a_run_that_breaks_off(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(writing, "write_json", full)
    with pytest.raises(OSError, match="No space left"):
        make_shapes(tmp_path, "train", 1, num_proc=1, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_target_stops_the_maker(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "objects_of", lambda *_: [99])
    with pytest.raises(DataError, match="this is a bug"):
        make_shapes(tmp_path, "train", 1, num_proc=1, progress=False)
    assert list(tmp_path.iterdir()) == []


# --- what is in it ---------------------------------------------------------------------------------------------------
def test_sizes_and_objects(scenes):
    smallest = 1.0
    for scene, masks, _ in scenes:
        assert 24 <= scene.num_frames <= 60 and 2 <= len(scene.shapes) <= 6
        assert masks.shape == (len(scene.shapes), scene.num_frames, 240, 320)
        assert masks.sum(axis=0).max() <= 1, "visible masks are disjoint"
        assert masks.any(axis=(1, 2, 3)).all(), "every object is visible at some time"
        smallest = min(smallest, masks.mean(axis=(2, 3)).max(axis=1).min())
    assert smallest <= 0.01


def test_shares_of_the_types_targets_and_vocabulary(scenes):
    counts, words = Counter(), set()
    for scene, masks, stream in scenes:
        for expression in video_expressions(scene, masks.any(axis=(2, 3)), stream):
            counts[expression.type] += 1
            words |= set(expression.text.removesuffix("?").split())
            assert objects_of(expression.text, scene, masks) == list(expression.targets), expression
            expected = {"no_target": 0, "plural": 2}.get(expression.type, 1)
            assert len(expression.targets) >= expected and len(expression.targets) < len(scene.shapes) + (
                expected == 1
            )
            assert expected == 2 or len(expression.targets) == expected
        for question, answer in scene_questions(scene, stream):
            assert answer_of(question, scene, masks) == answer
    assert set(counts) == set(EXPRESSION_TYPES) and len(words) < 120
    assert min(counts.values()) >= 0.12 * counts.total(), counts


# --- the checker, against answers by hand ----------------------------------------------------------------------------
Way = float | np.ndarray


def shape(color: str, form: str, x: Way, y: Way, side: Way = 40.0, angle: Way = 0.0, front: bool = False) -> Shape:
    """An object in ten frames; a number stays as it is."""
    arrays = [np.broadcast_to(np.asarray(value, dtype=float), 10) for value in (x, y, side, angle)]
    return Shape(color, form, "", "", *arrays, front=front)


GO = np.linspace(0, 1, 10)
# A red circle rests; a blue circle crosses the picture to the right above it; a small red square grows below; a green
# star turns at the right; a yellow cross comes in late from the left border.
BY_HAND = Scene(
    (
        shape("red", "circle", 160, 120, side=50),
        shape("blue", "circle", 60 + 180 * GO, 40),
        shape("red", "square", 100, 200, side=20 + 20 * GO),
        shape("green", "star", 270, 150, angle=4 * GO),
        shape("yellow", "cross", -60 + 120 * np.maximum(GO - 0.5, 0) * 2, 120),
    ),
    10,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the red circle", [0]),
        ("the red shape", [0, 2]),
        ("all circles", [0, 1]),
        ("the two red shapes", [0, 2]),
        ("the blue square", []),
        ("the circle that moves to the right", [1]),
        ("all shapes that go right", [1, 4]),
        ("the circle that goes left", []),
        ("the red shape that gets bigger", [2]),
        ("the red shape that shrinks", []),
        ("the shape that spins", [3]),
        ("the circle that does not move", [0]),
        ("the shape that comes in late", [4]),
        ("the shape that leaves the picture", []),
        ("the circle above the red circle", [1]),
        ("the red shape left of the green star", [0, 2]),
        ("the shape that starts left of the red square", [1]),
        ("the shape that ends below the red circle", [2, 3]),
        ("the shape with the most corners", [4]),
        ("which shape has the fewest corners?", [0, 1]),
        ("the largest shape", [0]),
        ("which shape moves the farthest?", [1]),
        ("the shape that is not there at first", [4]),
        ("the shape that ends up hidden", []),
    ],
)
def test_the_checker_by_hand(text, expected):
    assert objects_of(text, BY_HAND, visible_masks(BY_HAND)) == expected


def test_hiding_by_hand():
    """A small triangle moves behind a large square in front and stays there."""
    way = 60 + 100 * np.minimum(2 * GO, 1)
    front = shape("white", "square", 160, 120, side=90, front=True)
    scene = Scene((front, shape("cyan", "triangle", way, 120, side=20)), 10)
    masks = visible_masks(scene)
    assert not masks[1, -1].any() and masks[1, 0].any()
    assert objects_of("which shape ends up hidden?", scene, masks) == [1]
    assert objects_of("the shape that hides another", scene, masks) == [0]
    assert objects_of("the shape that is gone at the end", scene, masks) == [1]
    assert objects_of("the shape that leaves the picture", scene, masks) == []


def test_other_motions_by_hand():
    """One stops, one leaves upwards, one goes down and shrinks, one passes behind a large square and comes out."""
    scene = Scene(
        (
            shape("red", "circle", 40 + 120 * np.minimum(2 * GO, 1), 30, side=20),
            shape("blue", "moon", 290, 40 - 100 * GO, side=20),
            shape("green", "star", 40, 80 + 100 * GO, side=40 - 25 * GO),
            shape("white", "square", 170, 180, side=60, front=True),
            shape("cyan", "circle", 95 + 150 * GO, 180, side=16),
        ),
        10,
    )
    masks = visible_masks(scene)
    expected = {
        "the circle that moves and then stops": [0],
        "the shape that leaves the picture": [1],
        "all shapes that go up": [1],
        "the shape that moves down": [2],
        "the shape that gets smaller": [2],
        "the circle that passes behind another shape": [4],
        "the shape that ends up hidden": [],
        "the shape that stays still": [3],
        "the small circle": [4],
        "the large circle": [0],
    }
    assert {text: objects_of(text, scene, masks) for text in expected} == expected


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("how many shapes are there?", "five"),
        ("how many red shapes are there?", "two"),
        ("how many crosses are there?", "one"),
        ("how many moons are there?", "zero"),
        ("what color is the star?", "green"),
        ("what form is the yellow shape?", "cross"),
    ],
)
def test_answers_by_hand(question, answer):
    assert answer_of(question, BY_HAND, visible_masks(BY_HAND)) == answer


@pytest.mark.parametrize("text", ["the dog", "the red circle that sings", "the tall red circle"])
def test_words_that_shapes_does_not_use(text):
    with pytest.raises(DataError, match="Unknown words"):
        objects_of(text, BY_HAND, visible_masks(BY_HAND))


# --- on disk ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("category", CATEGORIES)
def test_every_category_loads_and_the_doctor_is_content(root, category):
    rows = list(load("shapes", root, "test", config=category, streaming=True))
    assert len(rows) >= NUM_VIDEOS
    assert {(row["category"], row["source"], row["split"]) for row in rows} == {(category, "shapes", "test")}
    assert all((row["masks"] is None) == (category == "video_qa") for row in rows)
    assert all((row["answer"] is None) == (category != "video_qa") for row in rows)
    assert diagnose("shapes", root, "test", category, progress=False).findings == []


@pytest.mark.parametrize("category", ["rvos", "referring_image", "reasoning_image", "semantic_segmentation"])
def test_masks_fit_the_pictures(root, category):
    """The pixels of a mask have the colour that the sentence names, or where it names none, one of the colours."""
    checked = 0
    for row in load("shapes", root, "valid", config=category, streaming=True):
        words = row["expression"].split()[:2]
        named = [color for color in COLORS if color in words] or [color for color in COLORS if color != "white"]
        masks = decode_masks(row)
        if not masks.any() or row["expression_type"] in ("no_target", "plural"):
            continue
        frame = int(masks.sum(axis=(1, 2)).argmax())
        picture = read_image(row["frame_paths"][frame]).astype(float)
        # Shades of the colour differ in brightness; its direction is the same.
        pixels = picture[masks[frame]]
        directions = [np.array(COLORS[color]) / np.linalg.norm(COLORS[color]) for color in named]
        fits = np.max([pixels @ d / (np.linalg.norm(pixels, axis=1) + 1e-6) for d in directions], axis=0)
        # The ground is grey, too, but never as bright as a white shape.
        white = "white" not in named and pixels.min(axis=1) > 170
        assert np.mean((fits > 0.97) | white) > 0.8, (row["video_id"], row["expression"])
        checked += 1
    assert checked


def test_polygons_agree_with_the_visible_pixels(root):
    """The same objects as polygons (RefCOCO) and as masks (PACO-LVIS)."""
    base = root / "test"
    polygons = list(load("shapes", root, "test", config="referring_image", streaming=True))
    classes = json.loads((base / "paco" / "annotations" / "paco_lvis_v1_test.json").read_text())["annotations"]
    drawn = {number["id"] // 2: decode_rle(number["segmentation"]) for number in classes}
    for row in polygons:
        mask, exact = decode_masks(row)[0], drawn[row["annotation_ids"][0]]
        assert (mask & exact).sum() / (mask | exact).sum() > 0.9


def test_the_command(tmp_path, capsys):
    arguments = [
        "data",
        "make-shapes",
        "--root",
        str(tmp_path / "s"),
        "--split",
        "valid",
        "--videos",
        "1",
        "--seed",
        "3",
    ]
    assert main(arguments) == 0
    manifest = json.loads((tmp_path / "s" / "valid" / "shapes.json").read_text())
    assert (manifest["split"], manifest["seed"], manifest["videos"]) == ("valid", 3, 1)
    capsys.readouterr()
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("virst data: ") and "is there already" in line
