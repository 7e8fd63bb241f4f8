"""ReVOS: names with slashes, types of expressions, clips left out of training, foreground; rows written by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_dict_fixtures import (
    CHARADES,
    CHARADES_VALID,
    FIRST,
    MOSE,
    SECOND,
    SIZE,
    TAO,
    THIRD,
    UVO,
    covered,
    findings,
    make_revos,
    mutated,
    revos_masks,
    revos_videos,
    rles,
    rows_of,
    said,
    write_json,
)

from virst_hf.data.builder import raise_problem
from virst_hf.data.catalog import CATALOG, load
from virst_hf.data.records import decode_masks
from virst_hf.data.revos import ReVOS, is_misaligned
from virst_hf.errors import DataError
from virst_hf.rle import decode_rle

NAMES = ["00145", "00146", "00147", "00148", "00149"]


def open_revos(root: Path, **fields: Any) -> ReVOS:
    return ReVOS(data_dir=root, cache_dir=str(root / "cache"), **fields)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_revos(tmp_path / "ReVOS")


def test_rows(root: Path):
    builder = open_revos(root)
    assert builder.available_splits() == ["train", "valid"]
    rows = rows_of(builder, "train")
    one, two, none, *_, boat = rows
    folder = root / "JPEGImages" / "UVO" / "all" / "-a_b"
    masks = two.pop("masks")
    assert two == {
        "video_id": "UVO/all/-a_b",
        "expression_id": "1",
        "expression": "Who could have thrown the ball?",
        "answer": None,
        # The first frame is not number 0.
        "frame_names": NAMES,
        "frame_paths": [str(folder / f"{name}.jpg") for name in NAMES],
        "video_path": None,
        "height": 32,
        "width": 48,
        "object_ids": [0, 1],
        "annotation_ids": [3003020, 3003021],
        "ignore_masks": None,
        "category": "rvos",
        "expression_type": "reasoning",
        "source": "revos",
        "split": "train",
    }
    assert (decode_masks({**two, "masks": masks}) == covered(SECOND, THIRD)).all()
    assert (one["expression_type"], one["masks"]) == ("referring", rles(FIRST))
    assert (none["expression_type"], none["object_ids"], none["masks"]) == ("no_target", [], [None] * 5)
    assert [row["expression_id"] for row in rows[:-1]] == [str(number) for number in range(11)]
    # Of the clips of TAO only those of Charades are left out.
    assert (boat["video_id"], boat["frame_names"][0]) == ("TAO/train/YFCC100M/v_1", "00000")
    assert (decode_masks(boat) == covered(THIRD)).all()


def test_validation_is_read_as_provided(root: Path):
    for exclude in (True, False):
        builder = open_revos(root, exclude_misaligned=exclude)
        first, second = rows_of(builder, "valid")
        assert (first["video_id"], first["expression_type"]) == ("MOSE/0a1b", "reasoning")
        assert (second["video_id"], second["split"]) == ("TAO/val/Charades/y", "valid")
        assert (decode_masks(second) == covered(SECOND)).all()
        assert builder.excluded_units(root, "valid") == []


def test_misaligned_clips_are_left_out_of_training_and_listed(root: Path, tmp_path: Path):
    builder, everything = open_revos(root), open_revos(root, exclude_misaligned=False)
    assert builder.excluded_units(root, "train") == ["TAO/train/Charades/x"]
    assert builder.units(root, "train", raise_problem) == [UVO, TAO]
    assert everything.excluded_units(root, "train") == []
    assert everything.units(root, "train", raise_problem) == [UVO, CHARADES, TAO]
    cache = str(tmp_path / "cache")
    some = load("revos", root, split="train", cache_dir=cache)
    more = load("revos", root, split="train", cache_dir=cache, exclude_misaligned=False)
    assert (len(some), len(more)) == (12, 13)
    assert CHARADES in more["video_id"] and CHARADES not in some["video_id"]


@pytest.mark.parametrize(
    ("name", "misaligned"),
    [("TAO/train/Charades/x", True), ("TAO/frames/val/Charades/a b", True), ("TAO/LaSOT/x", False)],
)
def test_which_clips_are_misaligned(name: str, misaligned: bool):
    assert is_misaligned(name) == misaligned
    assert not is_misaligned(name.replace("TAO", "UVO"))


@pytest.mark.parametrize("frames", ["JPEGImages", "."])
@pytest.mark.parametrize(("above", "folder"), [(False, "data"), (True, "ReVOS"), (True, "revos")])
def test_layouts_give_equal_rows(tmp_path: Path, frames: str, above: bool, folder: str):
    base = make_revos(tmp_path / folder, frames)
    builder = open_revos(tmp_path if above else base)
    expected = rows_of(open_revos(make_revos(tmp_path / "other")), "train")
    plain = {"frame_paths": None}
    rows = rows_of(builder, "train")
    assert [{**row, **plain} for row in rows] == [{**row, **plain} for row in expected]
    assert rows[0]["frame_paths"][0] == str(base / frames / "UVO" / "all" / "-a_b" / "00145.jpg")
    assert len(rows_of(builder, "valid")) == 2


def test_folders_that_are_something_else(tmp_path: Path):
    # The part of the training set ships beside it; alone it is not read, nor are names without the underscore.
    for name in ("meta_expressions_train_sub_.json", "meta_expressions_train.json"):
        write_json(tmp_path / name, {"videos": revos_videos("train")})
    with pytest.raises(DataError, match="does not look like revos"):
        open_revos(tmp_path)


def test_loads_prepared_and_streaming(root: Path, tmp_path: Path):
    cache = str(tmp_path / "cache")
    for split in ("train", "valid"):
        prepared = list(load("revos", root, split=split, cache_dir=cache))
        assert prepared == list(load("revos", root, split=split, cache_dir=cache, streaming=True))
        assert prepared == rows_of(open_revos(root), split)


# --- foreground and single objects -----------------------------------------------------------------------------------
@pytest.mark.parametrize("frames", ["JPEGImages", "."])
def test_foreground_is_that_of_the_release(tmp_path: Path, frames: str):
    root = make_revos(tmp_path / "ReVOS", frames)
    builder = open_revos(root)
    published = json.loads((root / "mask_dict_foreground.json").read_text())
    found = dict(builder.foreground_tracks(root, "train", [UVO, CHARADES, TAO]))
    found |= dict(builder.foreground_tracks(root, "valid", [MOSE, CHARADES_VALID]))
    assert list(found) == list(published)
    for name, track in found.items():
        masks = [decode_rle(rle, SIZE) for rle in track]
        expected = published[name]
        assert all((mask == decode_rle(rle)).all() for mask, rle in zip(masks, expected["masks_rle"], strict=True))
        assert [mask.mean() for mask in masks] == pytest.approx(expected["foreground_ratio"])
    # Nothing there: None, where the release has an empty mask.
    assert found[MOSE][1] is None


def test_objects_one_by_one(root: Path):
    builder = open_revos(root)
    tracks = builder.object_tracks(root, "train", [3003021, 3003019, 3003021], UVO)
    assert tracks == [rles(THIRD), rles(FIRST), rles(THIRD)]
    assert builder.object_tracks(root, "train", [], UVO) == []
    with pytest.raises(DataError, match="unknown_id"):
        builder.object_tracks(root, "train", [3003019, 9], UVO)
    with pytest.raises(DataError, match="has no video 'MOSE/0a1b'"):
        builder.object_tracks(root, "train", [3003040], MOSE)


# --- defects ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("type_id", [None, 3, -1, "0", 1.0, True, [0], {}])
def test_types_that_do_not_exist(root: Path, type_id: Any):
    videos = revos_videos("train")
    videos[TAO]["expressions"] = {"0": {**said("a", [3003031], 0), "type_id": type_id}, "1": said("b", [3003031], 1)}
    write_json(root / "meta_expressions_train_.json", {"videos": videos})
    found, rows = findings(open_revos(root), "train")
    assert found == [("bad_entry", f"{TAO}/0")]
    assert (len(rows), rows[-1]["expression_id"], rows[-1]["expression_type"]) == (12, "1", "reasoning")
    with pytest.raises(DataError, match=r"\"type_id\" must be 0 .*\[bad_entry\]"):
        rows_of_loaded(root)


def rows_of_loaded(root: Path) -> list[dict]:
    return list(load("revos", root, split="train", streaming=True, cache_dir=str(root / "cache")))


def test_no_type_at_all(root: Path):
    videos = revos_videos("train")
    del videos[TAO]["expressions"]["0"]["type_id"]
    write_json(root / "meta_expressions_train_.json", {"videos": videos})
    assert findings(open_revos(root), "train")[0] == [("bad_entry", f"{TAO}/0")]


def rename(name: str) -> Callable[[dict, dict], None]:
    return lambda videos, masks: videos.__setitem__(name, videos.pop(TAO))


def put(key: str, value: Any) -> Callable[[dict, dict], None]:
    return lambda videos, masks: videos[TAO].__setitem__(key, value)


OUTSIDE = "../other/JPEGImages/UVO/all/-a_b"
DEFECTS = [
    (rename(OUTSIDE), "unsafe_path", OUTSIDE),
    (rename("/etc"), "unsafe_path", "/etc"),
    (rename("UVO\\all"), "unsafe_path", "UVO\\all"),
    (rename("UVO/all/nowhere"), "missing_frame", "UVO/all/nowhere"),
    (put("frames", ["../../../../MOSE/0a1b/00000"]), "unsafe_path", TAO),
    (put("frames", ["00001", "00000", "00002", "00003", "00004"]), "unsorted_frames", TAO),
    (put("frames", ["00000", "00001", "00002", "00003", "00005"]), "missing_frame", TAO),
    (put("height", 48), "size_mismatch", TAO),
    (put("expressions", None), "json_version", TAO),
    (lambda videos, masks: masks.__setitem__("3003031", [None] * 4), "mask_count", f"{TAO}, annotation 3003031"),
    (lambda videos, masks: masks.pop("3003031"), "unknown_id", f"{TAO}, annotation 3003031"),
]


@pytest.mark.parametrize("frames", ["JPEGImages", "."])
@pytest.mark.parametrize("index", range(len(DEFECTS)))
def test_a_defect_is_told_and_the_rest_is_read(tmp_path: Path, index: int, frames: str):
    make_revos(tmp_path / "other")
    root = make_revos(tmp_path / "ReVOS", frames)
    edit, check, item = DEFECTS[index]
    videos, masks = revos_videos("train"), revos_masks()
    edit(videos, masks)
    write_json(root / "meta_expressions_train_.json", {"videos": videos})
    write_json(root / "mask_dict.json", masks)
    found, rows = findings(open_revos(root), "train")
    assert found == [(check, item)]
    assert [row["video_id"] for row in rows] == [UVO] * 11
    with pytest.raises(DataError, match=rf"\[{check}\]"):
        rows_of_loaded(root)


@pytest.mark.parametrize("frames", ["JPEGImages", "."])
@pytest.mark.parametrize("whole", [False, True])
def test_links_out_of_the_root(tmp_path: Path, frames: str, whole: bool):
    """The link leads beside the root, where a reader that takes the folder above for the root would follow it."""
    root = make_revos(tmp_path / "ReVOS", frames)
    folder = root / frames / TAO
    target = folder if whole else folder / "00002.jpg"
    moved = target.rename(tmp_path / "beside")
    target.symlink_to(moved)
    found, rows = findings(open_revos(root), "train")
    assert found == [("unsafe_path", TAO)] and {row["video_id"] for row in rows} == {UVO}
    assert len(rows_of(open_revos(root, follow_links=True), "train")) == 12


@pytest.mark.parametrize("frames", ["JPEGImages", "."])
def test_the_root_may_be_a_link(tmp_path: Path, frames: str):
    root = make_revos(tmp_path / "disk" / "ReVOS", frames)
    link = tmp_path / "here" / "revos"
    link.parent.mkdir()
    link.symlink_to(root)
    assert [row["masks"] for row in rows_of(open_revos(link), "train")] == [
        row["masks"] for row in rows_of(open_revos(root), "train")
    ]


@pytest.mark.parametrize("name", ["mask_dict.json", "meta_expressions_valid_.json"])
def test_annotations_that_are_links_out_of_the_root(root: Path, tmp_path: Path, name: str):
    moved = (root / name).rename(tmp_path / name)
    (root / name).symlink_to(moved)
    with pytest.raises(DataError, match="link out of the data root"):
        open_revos(root)
    assert len(rows_of(open_revos(root, follow_links=True), "valid")) == 2


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_mutated_files_end_in_rows_or_defects(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    root = tmp_path_factory.getbasetemp() / "revos-fuzz"
    if not root.exists():
        make_revos(root)
    videos, masks = {"videos": revos_videos("train")}, revos_masks()
    which = data.draw(st.booleans())
    write_json(root / "meta_expressions_train_.json", mutated(videos, data.draw) if which else videos)
    write_json(root / "mask_dict.json", masks if which else mutated(masks, data.draw))
    try:
        builder = open_revos(root)
        rows = findings(builder, "train")[1]
        builder.excluded_units(root, "train")
    except DataError:
        return
    for row in rows:
        assert json.dumps(row) and row["expression_type"] in ("referring", "reasoning", "no_target")
        assert decode_masks(row).shape == (len(row["frame_paths"]), *SIZE)
        assert all(Path(path).is_file() for path in row["frame_paths"])
    try:
        assert builder.object_tracks(root, "train", [3003019], UVO) == [rles(FIRST)] or not which
        assert all(len(track) for _, track in builder.foreground_tracks(root, "train", [UVO, TAO]))
    except DataError:
        pass


def test_the_page(tmp_path: Path):
    page = (Path(__file__).parent.parent / "docs" / "data" / "revos.md").read_text(encoding="utf-8")
    shown = json.loads(page.split("```json\n")[1].split("```")[0])
    root = make_revos(tmp_path / "ReVOS")
    row = rows_of(open_revos(root), "train")[1]
    assert json.loads(json.dumps(row).replace(str(root), "/data/ReVOS")) == shown
    assert f"**Licence:** {CATALOG['revos'].licence}" in page
