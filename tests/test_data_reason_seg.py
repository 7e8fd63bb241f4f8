"""ReasonSeg: LISA's way to draw, its texts, its explanations; rows written by hand, and every trap."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_fixtures import box, drawn, make_reason_seg, picture, write_json

from virst_hf.data.catalog import load
from virst_hf.data.reason_seg import ReasonSeg, ReasonSegReader, paint_shapes
from virst_hf.data.records import decode_masks
from virst_hf.errors import DataError

# Of the fixture "three": the target, in it the region to ignore, in that a target again.
TARGET = [
    ".########.",
    ".#......#.",
    ".#..##..#.",
    ".#..##..#.",
    ".#......#.",
    ".#......#.",
    ".########.",
    "..........",
]
IGNORED = [
    "..........",
    "..######..",
    "..##..##..",
    "..##..##..",
    "..######..",
    "..######..",
    "..........",
    "..........",
]


def rows_of(builder: Any, split: str) -> list[dict]:
    def fail(check: str, item: str, message: str) -> None:
        raise AssertionError((check, item, message))

    return list(builder.rows(builder.root, split, builder.units(builder.root, split, fail), fail))


def findings(folder: Path, **options: Any) -> tuple[list[tuple[str, str]], list[dict]]:
    """What the reader tells of one folder as the doctor reads it, and the rows that are left."""
    found: list[tuple[str, str]] = []

    def report(check: str, item: str, message: str) -> None:
        found.append((check, item))

    common = {"category": "reasoning_image", "source": "reasonseg", "split": "train"}
    options = {"all_texts": True, **options}
    reader = ReasonSegReader(folder.parent, folder.name, report, common, **options)
    return found, list(reader.rows(reader.units()))


def test_rows(tmp_path: Path):
    root = make_reason_seg(tmp_path / "data")
    folder = root / "reason_seg" / "ReasonSeg"
    builder = ReasonSeg(data_dir=root, cache_dir=str(tmp_path / "cache"))
    assert builder.available_splits() == ["train", "val", "test"]
    first, second, third, windows = rows_of(builder, "train")
    masks, ignored = first.pop("masks"), first.pop("ignore_masks")
    assert first == {
        "video_id": "three",
        "expression_id": "0",
        "expression": "what holds water",
        "answer": None,
        "frame_names": ["three"],
        "frame_paths": [str(folder / "train" / "three.jpg")],
        "video_path": None,
        "height": 8,
        "width": 10,
        "object_ids": [1],
        "annotation_ids": [],
        "category": "reasoning_image",
        "expression_type": "short",
        "source": "reasonseg",
        "split": "train",
    }
    row = {**first, "masks": masks, "ignore_masks": ignored}
    assert drawn(decode_masks(row)[0]) == TARGET
    assert drawn(decode_masks(row, "ignore_masks")[0]) == IGNORED
    # Another wording of the same target; the explanation belongs to one of them.
    changed = {"expression_id": "1", "expression": "the thing to drink from", "answer": "A cup is made for drinking."}
    assert second == {**row, **changed}
    assert third == {**row, "expression_id": "2", "expression": "cup"}
    # A target in a region to ignore; the flag, which would cover all, is left out. The file is in cp1252.
    assert (windows["expression"], windows["expression_type"]) == ("Which thing is the chef\u2019s hat?", "long")
    assert drawn(decode_masks(windows)[0]) == [
        "..........",
        "...##.....",
        "...##.....",
        *[".........."] * 5,
    ]
    assert drawn(decode_masks(windows, "ignore_masks")[0]) == [
        "##########",
        "###..#####",
        "###..#####",
        *["##########"] * 2,
        *[".........."] * 3,
    ]


def test_validation_and_test(tmp_path: Path):
    root = make_reason_seg(tmp_path / "data")
    builder = ReasonSeg(data_dir=root, cache_dir=str(tmp_path / "cache"))
    (row,) = rows_of(builder, "val")
    assert (row["expression"], row["answer"], row["ignore_masks"]) == ("what holds water", None, None)
    (row,) = rows_of(builder, "test")
    # No polygon: nothing is right. It still counts as a long sentence.
    assert (row["masks"], row["object_ids"], row["expression_type"]) == ([None], [], "long")
    everything = ReasonSeg(data_dir=root, all_texts=True, cache_dir=str(tmp_path / "cache"))
    assert [row["expression_id"] for row in rows_of(everything, "val")] == ["0", "1", "2"]
    first = ReasonSeg(data_dir=root, all_texts=False, cache_dir=str(tmp_path / "cache"))
    assert [row["video_id"] for row in rows_of(first, "train")] == ["three", "windows"]


@pytest.mark.parametrize("inner", ["reason_seg/ReasonSeg", "reason_seg", "ReasonSeg", "."])
def test_layouts_give_equal_rows(tmp_path: Path, inner: str):
    root = make_reason_seg(tmp_path / "data", inner)
    builder = ReasonSeg(data_dir=root, cache_dir=str(tmp_path / "cache"))
    rows = rows_of(builder, "train")
    assert [row["answer"] for row in rows] == [None, "A cup is made for drinking.", None, None]
    assert rows[0]["frame_paths"] == [str(root / inner / "train" / "three.jpg")]


def test_loads_prepared_and_streaming(tmp_path: Path):
    root = make_reason_seg(tmp_path / "data")
    cache = str(tmp_path / "cache")
    prepared = load("reasonseg", root, split="train", cache_dir=cache)
    assert list(prepared) == list(load("reasonseg", root, split="train", cache_dir=cache, streaming=True))
    assert len(prepared) == 4
    # The explanations are part of the rows, so a change of them is noticed.
    write_json(root / "reason_seg" / "ReasonSeg" / "explanatory" / "train.json", [])
    assert load("reasonseg", root, split="train", cache_dir=cache)["answer"] == [None] * 4


def test_no_explanations_at_all(tmp_path: Path):
    root = make_reason_seg(tmp_path / "data")
    (root / "reason_seg" / "ReasonSeg" / "explanatory" / "train.json").unlink()
    rows = rows_of(ReasonSeg(data_dir=root, cache_dir=str(tmp_path / "cache")), "train")
    assert [row["answer"] for row in rows] == [None] * 4


def test_defects_of_explanations(tmp_path: Path):
    root = make_reason_seg(tmp_path / "data")
    path = root / "reason_seg" / "ReasonSeg" / "explanatory" / "train.json"
    good = json.loads(path.read_text())
    write_json(path, [7, {"image": "three.jpg"}, {**good[0], "outputs": 3}, *good, {**good[0], "outputs": "Later."}])
    builder = ReasonSeg(data_dir=root, cache_dir=str(tmp_path / "cache"))
    found: list[tuple[str, str]] = []
    units = builder.units(root, "train", lambda check, item, message: found.append((check, item)))
    assert found == [("bad_entry", f"train.json, entry {index}") for index in range(3)]
    rows = list(builder.rows(root, "train", units, lambda *problem: found.append(problem[:2])))
    assert rows[1]["answer"] == "A cup is made for drinking."
    write_json(path, {})
    with pytest.raises(DataError, match="must hold a list"):
        builder.units(root, "train", lambda *problem: None)
    assert len(rows_of(builder, "val")) == 1


def test_root_without_the_set(tmp_path: Path):
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="does not look like reasonseg"):
        ReasonSeg(data_dir=tmp_path, cache_dir=str(tmp_path / "cache"))


# --- drawing ---------------------------------------------------------------------------------------------------------
def test_corners_are_cut_and_the_outline_is_drawn():
    # (1.9, 0.9) to (3.9, 2.9) is the square of the corners (1, 0) and (3, 2), both drawn.
    assert paint_shapes([box("target", 1.9, 0.9, 3.9, 2.9)], (4, 5)).tolist() == [
        [0, 1, 1, 1, 0],
        [0, 1, 1, 1, 0],
        [0, 1, 1, 1, 0],
        [0, 0, 0, 0, 0],
    ]
    # Towards zero, not downwards: -0.9 is 0.
    assert paint_shapes([{"label": "x", "points": [[-0.9, -0.9]]}], (1, 2)).tolist() == [[1, 0]]


def test_the_smaller_one_shows_whatever_the_order():
    large, small = box("target", 0, 0, 4, 3), box("IGNORE this", 1, 1, 2, 2)
    one, other = paint_shapes([large, small], (4, 5)), paint_shapes([small, large], (4, 5))
    assert (one == other).all()
    assert one.tolist() == [[1] * 5, [1, 255, 255, 1, 1], [1, 255, 255, 1, 1], [1] * 5]
    turned = paint_shapes([box("ignore", 0, 0, 4, 3), box("target", 1, 1, 2, 2)], (4, 5))
    assert turned.tolist() == [[255] * 5, [255, 1, 1, 255, 255], [255, 1, 1, 255, 255], [255] * 5]


def test_area_is_that_inside_the_picture():
    """A polygon that is larger, but mostly outside, is the smaller one."""
    outside, inside = box("ignore", 3, 0, 900, 900), box("target", 0, 0, 3, 3)
    assert paint_shapes([outside, inside], (4, 5)).tolist() == [[1, 1, 1, 255, 255]] * 4


def test_of_equal_areas_the_first_shows():
    target, ignored = box("target", 0, 0, 1, 0), box("ignore", 1, 0, 2, 0)
    assert paint_shapes([target, ignored], (1, 3)).tolist() == [[1, 1, 255]]
    assert paint_shapes([ignored, target], (1, 3)).tolist() == [[1, 255, 255]]


def test_labels():
    shapes = [box("Flag", 0, 0, 1, 1), box("object", 0, 0, 0, 0)]
    assert paint_shapes(shapes, (2, 2)).tolist() == [[1, 0], [0, 0]]


def test_only_regions_to_ignore(tmp_path: Path):
    folder = tmp_path / "train"
    picture(folder / "a.jpg", 2, 2)
    write_json(folder / "a.json", {"text": ["x"], "is_sentence": False, "shapes": [box("ignore", 0, 0, 1, 0)]})
    found, (row,) = findings(folder)
    assert (found, row["object_ids"], row["masks"]) == ([], [], [None])
    assert drawn(decode_masks(row, "ignore_masks")[0]) == ["##", ".."]


# --- defects ---------------------------------------------------------------------------------------------------------
GOOD = {"text": ["one", "two"], "is_sentence": False, "shapes": [box("target", 0, 0, 1, 1)]}
BAD_SHAPES = [
    None,
    {},
    [7],
    [{}],
    [{"label": None, "points": [[0, 0]]}],
    [{"label": "target"}],
    [{"label": "target", "points": []}],
    [{"label": "target", "points": "0 0 1 1"}],
    [{"label": "target", "points": [0, 0, 1, 1]}],
    [{"label": "target", "points": [[0, 0, 0]]}],
    [{"label": "target", "points": [[0, "1"]]}],
    [{"label": "target", "points": [[True, 1]]}],
    [{"label": "target", "points": [[0, 1e300]]}],
    [{"label": "target", "points": [[10**400, 0]]}],
    [{"label": "target", "points": [[-(2**31), 0]]}],
    [{"label": "target", "shape_type": "circle", "points": [[0, 0], [1, 1]]}],
    [{"label": "flag"}] * 10_001,
]
BAD_CONTENT = [
    None,
    [],
    "text",
    {},
    {**GOOD, "text": "one"},
    {**GOOD, "text": []},
    {**GOOD, "is_sentence": 1},
    {"text": ["one"], "shapes": []},
    *[{**GOOD, "shapes": shapes} for shapes in BAD_SHAPES],
]


@pytest.mark.parametrize("index", range(len(BAD_CONTENT)))
def test_a_bad_file_is_told_and_the_next_is_read(tmp_path: Path, index: int):
    folder = tmp_path / "train"
    for name, content in (("a", BAD_CONTENT[index]), ("b", GOOD)):
        picture(folder / f"{name}.jpg", 3, 4)
        write_json(folder / f"{name}.json", content)
    found, rows = findings(folder)
    assert found == [("bad_entry", "a")]
    assert [(row["video_id"], row["expression"]) for row in rows] == [("b", "one"), ("b", "two")]
    with pytest.raises(DataError, match="bad_entry"):
        list(load("reasonseg", tmp_path, split="train", streaming=True, cache_dir=str(tmp_path / "cache")))


@pytest.mark.parametrize("raw", [b"", b"{", b'{"text": ["\x81"]}', b"[" * 500_000, b'{"shapes": NaN}'])
def test_files_that_are_no_json(tmp_path: Path, raw: bytes):
    folder = tmp_path / "train"
    picture(folder / "a.jpg", 3, 4)
    (folder / "a.json").write_bytes(raw)
    assert findings(folder) == ([("bad_entry", "a")], [])


def test_a_bad_wording_is_told_and_the_next_is_read(tmp_path: Path):
    folder = tmp_path / "train"
    picture(folder / "a.jpg", 3, 4)
    write_json(folder / "a.json", {**GOOD, "text": ["one", None, " ", "\ud800", "two"]})
    found, rows = findings(folder)
    assert found == [("bad_entry", "a/1"), ("bad_entry", "a/2"), ("bad_entry", "a/3")]
    assert [(row["expression_id"], row["expression"]) for row in rows] == [("0", "one"), ("4", "two")]


def test_files_that_do_not_go_together(tmp_path: Path):
    folder = tmp_path / "train"
    for name in ("alone.jpg", "pair.jpg", "twice.jpg", "twice.png", "broken.jpg", "._pair.jpg"):
        picture(folder / name, 3, 4)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    for name in ("pair", "twice", "broken", "text", "._pair"):
        write_json(folder / f"{name}.json", GOOD)
    found, rows = findings(folder)
    assert found == [
        ("missing_file", "alone"),
        ("missing_frame", "text"),
        ("duplicate", "twice"),
        ("missing_frame", "broken"),
    ]
    assert {row["video_id"] for row in rows} == {"pair"}


@pytest.mark.parametrize("name", ["b.jpg", "b.json"])
def test_links_out_of_the_root(tmp_path: Path, name: str):
    folder = tmp_path / "data" / "train"
    for stem in ("a", "b"):
        picture(folder / f"{stem}.jpg", 3, 4)
        write_json(folder / f"{stem}.json", GOOD)
    moved = (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(moved)
    assert findings(folder)[0] == [("unsafe_path", "train")]
    with pytest.raises(DataError, match="link out of the data root"):
        list(load("reasonseg", tmp_path / "data", split="train", streaming=True, cache_dir=str(tmp_path / "cache")))
    assert len(findings(folder, follow_links=True)[1]) == 4


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """Every place of a JSON value."""
    steps = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    return [place for key, inner in steps for place in [(*path, key), *places(inner, (*path, key))]]


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_mutated_files_end_in_rows_or_defects(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    folder = tmp_path_factory.getbasetemp() / "reason-fuzz" / "train"
    if not folder.exists():
        picture(folder / "a.jpg", 8, 10)
    content = copy.deepcopy({**GOOD, "shapes": [box("target", 0, 0, 5, 5), box("ignore", 1, 1, 2, 2)]})
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(places(content)))
        holder: Any = content
        for step in place[:-1]:
            holder = holder[step]
        holder[place[-1]] = copy.deepcopy(data.draw(json_values))
    write_json(folder / "a.json", content)
    for row in findings(folder)[1]:
        assert json.dumps(row)
        target, ignored = decode_masks(row), decode_masks(row, "ignore_masks")
        assert target.shape == (1, 8, 10)
        assert not (target & ignored).any()


numbers = st.floats(-20, 40, allow_nan=False)
polygon = st.builds(
    lambda label, points: {"label": label, "points": [list(point) for point in points]},
    st.sampled_from(["target", "ignore"]),
    st.lists(st.tuples(numbers, numbers), min_size=3, max_size=6),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(polygon, min_size=1, max_size=5))
def test_the_topmost_of_a_pixel_is_the_smallest(shapes: list[dict]):
    """Told another way: a pixel has the value of the smallest polygon that covers it."""
    size = (16, 20)
    alone = [paint_shapes([shape], size) > 0 for shape in shapes]
    expected = np.zeros(size, dtype=np.uint8)
    for row in range(size[0]):
        for column in range(size[1]):
            over = [index for index, mask in enumerate(alone) if mask[row, column]]
            if over:
                smallest = min(over, key=lambda index: (int(alone[index].sum()), index))
                expected[row, column] = 255 if shapes[smallest]["label"] == "ignore" else 1
    assert (paint_shapes(shapes, size) == expected).all()


def test_the_row_of_the_page(tmp_path: Path):
    page = (Path(__file__).parent.parent / "docs" / "data" / "reasonseg.md").read_text(encoding="utf-8")
    shown = json.loads(page.split("```json\n")[1].split("```")[0])
    root = make_reason_seg(tmp_path)
    row = rows_of(ReasonSeg(data_dir=root, cache_dir=str(tmp_path / "cache")), "train")[1]
    assert json.loads(json.dumps(row).replace(str(root), "/data")) == shown
