"""MeViS in both versions: rows written by hand, layouts, and every trap of the layout that it shares with others."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_dict_fixtures import (
    BIRD,
    FIRST,
    LIZARDS,
    SECOND,
    SIZE,
    THIRD,
    covered,
    filled,
    findings,
    make_mevis,
    mevis_masks,
    mevis_videos,
    mutated,
    rles,
    rows_of,
    runs,
    write_frames,
    write_json,
)

from virst_hf.data.catalog import CATALOG, load
from virst_hf.data.mevis import MeViS
from virst_hf.data.records import decode_masks
from virst_hf.errors import DataError

FIVE = ["00000", "00001", "00002", "00003", "00004"]


def open_mevis(root: Path, **fields: Any) -> MeViS:
    return MeViS(data_dir=root, cache_dir=str(root / "cache"), **fields)


def change(root: Path, edit: Callable[[dict, dict], None], split: str = "train") -> MeViS:
    """The tree after a change of its expressions and masks."""
    videos, masks = mevis_videos(), mevis_masks()
    edit(videos, masks)
    write_json(root / split / "meta_expressions.json", {"videos": videos})
    write_json(root / split / "mask_dict.json", masks)
    return open_mevis(root)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_mevis(tmp_path / "mevis", ("train",))


@pytest.mark.parametrize("split", ["train", "valid_u"])
def test_rows(tmp_path: Path, split: str):
    root = make_mevis(tmp_path / "mevis")
    builder = open_mevis(root)
    assert builder.available_splits() == ["train", "valid_u", "valid"]
    rows = rows_of(builder, split)
    one, two, none, *_, bird = rows
    masks = one.pop("masks")
    assert one == {
        "video_id": "377b1c5f365c",
        "expression_id": "0",
        # As written: lower case is for evaluation.
        "expression": "Lizard that hides and returns",
        "answer": None,
        "frame_names": FIVE,
        "frame_paths": [str(root / split / "JPEGImages" / "377b1c5f365c" / f"{name}.jpg") for name in FIVE],
        "video_path": None,
        "height": 32,
        "width": 48,
        "object_ids": [0],
        "annotation_ids": [2],
        "ignore_masks": None,
        "category": "rvos",
        "expression_type": "referring",
        "source": "mevis",
        "split": split,
    }
    assert masks[1] is None and masks[2] is None
    assert (decode_masks({**one, "masks": masks}) == covered(FIRST)).all()
    # Two objects that overlap are one target; in the last frame one of them is gone.
    assert (two["object_ids"], two["annotation_ids"]) == ([1, 2], [3, 4])
    assert (decode_masks(two) == covered(SECOND, THIRD)).all()
    assert decode_masks(two)[0].sum() == 100 + 150 - 25
    # Nothing in the video fits: the row is kept.
    assert (none["object_ids"], none["annotation_ids"], none["masks"]) == ([], [], [None] * 5)
    assert none["expression_type"] == "no_target"
    # The order is that of the file, not of texts, by which "10" comes before "2".
    assert [row["expression_id"] for row in rows[:-1]] == [str(number) for number in range(11)]
    # Not seen: null in one frame, an empty mask in another. Both are None.
    assert (bird["video_id"], bird["annotation_ids"]) == (BIRD, [5])
    assert [rle is None for rle in bird["masks"]] == [True, False, True, True]
    assert (decode_masks(bird)[1] == filled((0, 0, 32, 2))).all()


def test_validation_without_masks(tmp_path: Path):
    root = make_mevis(tmp_path / "mevis")
    rows = rows_of(open_mevis(root), "valid")
    assert len(rows) == 12
    assert {
        key: rows[1][key] for key in ("expression", "masks", "object_ids", "annotation_ids", "expression_type")
    } == {
        "expression": "2 lizards moving apart",
        "masks": None,
        "object_ids": [],
        "annotation_ids": [],
        # Whether there is a target is not known.
        "expression_type": "referring",
    }
    assert len(rows[1]["frame_paths"]) == 5
    with pytest.raises(DataError, match="with the server"):
        decode_masks(rows[1])


def test_masks_are_needed_where_the_release_has_them(root: Path):
    (root / "train" / "mask_dict.json").unlink()
    with pytest.raises(DataError, match="There is no file .*mask_dict.json"):
        rows_of(open_mevis(root), "train")


def test_versions_are_not_mixed(tmp_path: Path):
    root = make_mevis(tmp_path / "mevis", ("train",))
    make_mevis(root, ("valid_u",), "_v2")
    path = root / "train" / "meta_expressions_v2.json"
    video = mevis_videos()[BIRD]
    video["expressions"] = {"0": {"exp": "a bird of version 2", "obj_id": [], "anno_id": []}}
    write_json(path, {"videos": {BIRD: video}})
    first, second = open_mevis(root), open_mevis(root, config_name="v2")
    assert (first.available_splits(), second.available_splits()) == (["train"], ["train", "valid_u"])
    assert first.config.name == "v1" and len(rows_of(first, "train")) == 12
    (row,) = rows_of(second, "train")
    assert (row["expression"], row["expression_type"]) == ("a bird of version 2", "no_target")
    assert first.hash != second.hash
    loaded = load("mevis", root, split="train", config="v2", cache_dir=str(tmp_path / "cache"))
    assert loaded["expression"] == ["a bird of version 2"]


def test_the_folder_above(tmp_path: Path):
    root = make_mevis(tmp_path / "data" / "mevis", ("train", "valid"))
    above = open_mevis(tmp_path / "data")
    assert above.available_splits() == ["train", "valid"]
    assert rows_of(above, "train") == rows_of(open_mevis(root), "train")


def test_folders_that_are_something_else(tmp_path: Path):
    # A file of this name circulates; it has no expressions.
    write_json(tmp_path / "valid" / "meta_valid.json", {"videos": {}})
    with pytest.raises(DataError, match="does not look like mevis"):
        open_mevis(tmp_path)


def test_loads_prepared_and_streaming(tmp_path: Path):
    root = make_mevis(tmp_path / "mevis")
    cache = str(tmp_path / "cache")
    for split in ("train", "valid_u", "valid"):
        prepared = list(load("mevis", root, split=split, cache_dir=cache))
        assert prepared == list(load("mevis", root, split=split, cache_dir=cache, streaming=True))
        assert prepared == rows_of(open_mevis(root), split)


def test_a_video_of_one_frame_is_kept(root: Path):
    """The mixture of training decides what to do with it."""

    def edit(videos: dict, masks: dict) -> None:
        videos[BIRD]["frames"] = ["00001"]
        masks["5"] = rles([(0, 0, 32, 2)])

    row = rows_of(change(root, edit), "train")[-1]
    assert (row["frame_names"], decode_masks(row).sum()) == (["00001"], 64)


def test_runs_that_are_not_compressed(root: Path):
    def edit(videos: dict, masks: dict) -> None:
        masks["2"] = [None if box is None else runs(box) for box in FIRST]
        # Ids as texts, and one without its list.
        videos[LIZARDS]["expressions"]["0"] = {"exp": "lizard", "obj_id": "0", "anno_id": ["2"]}

    row = rows_of(change(root, edit), "train")[0]
    assert (row["annotation_ids"], row["object_ids"]) == ([2], [0])
    assert row["masks"] == rles(FIRST)


# --- defects ---------------------------------------------------------------------------------------------------------
def set_video(key: str, value: Any) -> Callable[[dict, dict], None]:
    return lambda videos, masks: videos[BIRD].__setitem__(key, value)


def set_expression(value: Any) -> Callable[[dict, dict], None]:
    return lambda videos, masks: videos[BIRD]["expressions"].__setitem__("0", value)


def set_masks(value: Any) -> Callable[[dict, dict], None]:
    return lambda videos, masks: masks.__setitem__("5", value)


def rename(name: str) -> Callable[[dict, dict], None]:
    return lambda videos, masks: videos.__setitem__(name, videos.pop(BIRD))


GOOD = {"exp": "bird", "obj_id": [0], "anno_id": [5]}
SMALL = {"size": [2, 2], "counts": "4"}
DEFECTS = [
    (lambda videos, masks: videos[BIRD].pop("expressions"), "json_version", BIRD),
    (lambda videos, masks: videos.__setitem__(BIRD, []), "json_version", BIRD),
    (set_video("frames", []), "bad_entry", BIRD),
    (set_video("frames", [0, 1, 2, 3]), "bad_entry", BIRD),
    (set_video("frames", "00000"), "bad_entry", BIRD),
    (set_video("frames", ["00001", "00000", "00002", "00003"]), "unsorted_frames", BIRD),
    (set_video("frames", ["00000", "00000", "00001", "00002"]), "duplicate", BIRD),
    (set_video("frames", ["00000", "00001", "00002", "00009"]), "missing_frame", BIRD),
    (set_video("frames", ["../0a1b2c3d4e5f/00000", "00001", "00002", "00003"]), "unsafe_path", BIRD),
    (set_video("height", 99), "size_mismatch", BIRD),
    (set_video("width", "48"), "size_mismatch", BIRD),
    (rename("../train/JPEGImages/0a1b2c3d4e5f"), "unsafe_path", "../train/JPEGImages/0a1b2c3d4e5f"),
    (rename("/etc"), "unsafe_path", "/etc"),
    (rename("nowhere"), "missing_frame", "nowhere"),
    (set_expression("bird"), "bad_entry", f"{BIRD}/0"),
    (set_expression({**GOOD, "exp": " "}), "bad_entry", f"{BIRD}/0"),
    (set_expression({**GOOD, "exp": 3}), "bad_entry", f"{BIRD}/0"),
    (set_expression({**GOOD, "obj_id": [0, 1]}), "bad_entry", f"{BIRD}/0"),
    (set_expression({**GOOD, "anno_id": [5.5]}), "bad_entry", f"{BIRD}/0"),
    (set_expression({**GOOD, "anno_id": [True]}), "bad_entry", f"{BIRD}/0"),
    (set_expression({**GOOD, "anno_id": [77]}), "unknown_id", f"{BIRD}, annotation 77"),
    (set_masks(None), "unknown_id", f"{BIRD}, annotation 5"),
    (set_masks([None] * 3), "mask_count", f"{BIRD}, annotation 5"),
    (set_masks([None, SMALL, None, None]), "mask_size", f"{BIRD}, annotation 5, frame 1"),
    (set_masks([None, {"size": list(SIZE), "counts": "Z"}, None, None]), "bad_mask", f"{BIRD}, annotation 5, frame 1"),
    (set_masks([None, {"size": list(SIZE), "counts": [9]}, None, None]), "bad_mask", f"{BIRD}, annotation 5, frame 1"),
    (set_masks([None, None, None, "h0"]), "bad_mask", f"{BIRD}, annotation 5, frame 3"),
]


@pytest.mark.parametrize("index", range(len(DEFECTS)))
def test_a_defect_is_told_and_the_rest_is_read(root: Path, index: int):
    edit, check, item = DEFECTS[index]
    builder = change(root, edit)
    found, rows = findings(builder, "train")
    assert found == [(check, item)]
    assert [row["video_id"] for row in rows] == [LIZARDS] * 11
    with pytest.raises(DataError, match=rf"\[{check}\]"):
        list(load("mevis", root, split="train", streaming=True, cache_dir=str(root / "cache")))


def test_no_object_with_a_defect_gets_into_a_union(root: Path):
    builder = change(root, lambda videos, masks: masks.__setitem__("4", [None]))
    found, rows = findings(builder, "train")
    assert found == [("mask_count", f"{LIZARDS}, annotation 4")]
    assert "1" not in [row["expression_id"] for row in rows if row["video_id"] == LIZARDS] and len(rows) == 11


@pytest.mark.parametrize("raw", ["", "[]", '{"videos": []}', '{"videos": {"a": {}, "a": {}}}', "[" * 500_000, "NaN"])
@pytest.mark.parametrize("name", ["meta_expressions.json", "mask_dict.json"])
def test_files_that_are_something_else(root: Path, name: str, raw: str):
    (root / "train" / name).write_text(raw, encoding="utf-8")
    report: list = []
    try:
        builder = open_mevis(root)
        units = builder.units(root, "train", lambda *problem: report.append(problem))
        rows = list(builder.rows(root, "train", units, lambda *problem: report.append(problem)))
    except DataError as error:
        assert name in str(error)
    else:
        # A JSON object that has no masks: each object is unknown, only the expression without one is left.
        assert name == "mask_dict.json" and {problem[0] for problem in report} == {"unknown_id"}
        assert [row["object_ids"] for row in rows] == [[]]


def test_links_out_of_the_root(root: Path, tmp_path: Path):
    frame = root / "train" / "JPEGImages" / BIRD / "00001.jpg"
    frame.rename(tmp_path / "elsewhere.jpg")
    frame.symlink_to(tmp_path / "elsewhere.jpg")
    assert findings(open_mevis(root), "train")[0] == [("unsafe_path", BIRD)]
    assert len(rows_of(open_mevis(root, follow_links=True), "train")) == 12


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_mutated_files_end_in_rows_or_defects(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    root = tmp_path_factory.getbasetemp() / "mevis-fuzz"
    if not root.exists():
        for name, video in mevis_videos().items():
            write_frames(root / "train" / "JPEGImages" / name, video["frames"])
    videos, masks = {"videos": mevis_videos()}, mevis_masks()
    which = data.draw(st.booleans())
    write_json(root / "train" / "meta_expressions.json", mutated(videos, data.draw) if which else videos)
    write_json(root / "train" / "mask_dict.json", masks if which else mutated(masks, data.draw))
    try:
        rows = findings(open_mevis(root), "train")[1]
    except DataError:
        return
    for row in rows:
        assert json.dumps(row)
        masks = decode_masks(row)
        assert masks.shape == (len(row["frame_paths"]), *SIZE) and masks.dtype == np.bool_
        assert all(Path(path).is_file() for path in row["frame_paths"])


def test_the_page(tmp_path: Path):
    page = (Path(__file__).parent.parent / "docs" / "data" / "mevis.md").read_text(encoding="utf-8")
    shown = json.loads(page.split("```json\n")[1].split("```")[0])
    root = make_mevis(tmp_path / "mevis", ("train",))
    row = rows_of(open_mevis(root), "train")[1]
    assert json.loads(json.dumps(row).replace(str(root), "/data/mevis")) == shown
    assert f"**Licence:** {CATALOG['mevis'].licence}" in page
