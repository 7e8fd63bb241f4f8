"""Ref-YouTube-VOS: palette PNGs and VISA's pickle give the same rows; rows written by hand, and every trap."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_fixtures import drawn, picture
from palette_fixtures import (
    TEST_VIDEO,
    VALID_VIDEO,
    change_json,
    labels_of,
    make_ref_youtube_vos,
    write_palette,
    youtube_packed,
    youtube_train,
)

from virst_hf.data.catalog import CATALOG, load
from virst_hf.data.files import read_label_map
from virst_hf.data.records import FIELDS, decode_masks
from virst_hf.data.ref_youtube_vos import RefYouTubeVOS, number_expressions
from virst_hf.data.ref_youtube_vos_valid import VALID_VIDEOS
from virst_hf.errors import DataError

PENGUIN, FERRY = "003234408d", "0043f083b5"
TRAIN_FILE = ("meta_expressions", "train", "meta_expressions.json")


def rows_of(root: Path, split: str = "train", **fields: Any) -> list[dict]:
    def fail(check: str, item: str, message: str) -> None:
        raise AssertionError((check, item, message))

    builder = RefYouTubeVOS(data_dir=root, **fields)
    return list(builder.rows(builder.root, split, builder.units(builder.root, split, fail), fail))


def findings(root: Path, split: str = "train", **fields: Any) -> tuple[list[tuple[str, str]], list[dict]]:
    """What the doctor is told, and the rows that are left."""
    found: list[tuple[str, str]] = []

    def report(check: str, item: str, message: str) -> None:
        found.append((check, item))

    builder = RefYouTubeVOS(data_dir=root, **fields)
    return found, list(builder.rows(builder.root, split, builder.units(builder.root, split, report), report))


def without_paths(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "frame_paths"} for row in rows]


def test_rows(tmp_path: Path):
    root = make_ref_youtube_vos(tmp_path)
    rows = rows_of(root)
    # The order of the file: the ferry first, then expressions 0 to 11 as they stand there.
    assert [(row["video_id"], row["expression_id"]) for row in rows] == [
        (FERRY, "0"),
        *((PENGUIN, str(number)) for number in range(12)),
    ]
    row, frames = rows[3], root / "train" / "JPEGImages" / PENGUIN
    masks = [drawn(mask) for mask in decode_masks(row)]
    assert row.pop("masks")[0] is None
    assert row == {
        "video_id": PENGUIN,
        "expression_id": "2",
        "expression": "penguin 2 of two",
        "answer": None,
        "frame_names": ["00000", "00005", "00010"],
        "frame_paths": [str(frames / name) for name in ("00000.jpg", "00005.jpg", "00010.jpg")],
        "video_path": None,
        "height": 4,
        "width": 6,
        "object_ids": [2],
        "annotation_ids": [],
        "ignore_masks": None,
        "category": "rvos",
        "expression_type": "referring",
        "source": "ref-youtube-vos",
        "split": "train",
    }
    assert masks == [
        ["......", "......", "......", "......"],
        ["......", "...#..", "..##..", "......"],
        ["......", "...##.", "...##.", "......"],
    ]
    assert [drawn(mask) for mask in decode_masks(rows[0])] == [["#....", "....."], [".#...", "....."]]
    # Sentences stay as they are written.
    assert rows[0]["expression"] == "a Ferry on the water" and rows[0]["object_ids"] == [1]


def test_an_object_that_never_appears_keeps_its_id(tmp_path: Path):
    row = rows_of(make_ref_youtube_vos(tmp_path))[10]
    assert row["expression_id"] == "9" and row["object_ids"] == [3] and row["masks"] == [None, None, None]
    assert row["expression_type"] == "referring"


@pytest.mark.parametrize("masks", ["png", "grey", "pkl"])
@pytest.mark.parametrize("inner", [".", "refytvos", "Ref-Youtube-VOS"])
def test_all_layouts_give_equal_rows(tmp_path: Path, masks: str, inner: str):
    root = make_ref_youtube_vos(tmp_path / "a", masks, inner)
    expected = rows_of(make_ref_youtube_vos(tmp_path / "b"))
    assert without_paths(rows_of(root)) == without_paths(expected)
    folder = root / inner / "train" / "JPEGImages" / FERRY
    assert rows_of(root)[0]["frame_paths"] == [str(folder / "00000.jpg"), str(folder / "00005.jpg")]


def test_the_pickle_is_counted_over_sorted_texts(tmp_path: Path):
    numbers = number_expressions(youtube_train()["videos"])
    order = ["0", "1", "10", "11", "2", "3", "4", "5", "6", "7", "8", "9"]
    assert [numbers[PENGUIN, key] for key in order] == list(range(12)) and numbers[FERRY, "0"] == 12
    # By the order of numbers, expression 10 (object 1) would have the masks of another expression.
    row = rows_of(make_ref_youtube_vos(tmp_path, "pkl"))[11]
    assert row["expression_id"] == "10" and drawn(decode_masks(row)[0]) == ["......", ".##...", ".##...", "......"]


def test_valid_is_filtered_and_has_no_masks(tmp_path: Path):
    root = make_ref_youtube_vos(tmp_path)
    listed = json.loads((root / "meta_expressions" / "valid" / "meta_expressions.json").read_text())["videos"]
    assert list(listed) == [TEST_VIDEO, VALID_VIDEO]
    rows = rows_of(root, "valid")
    assert [(row["video_id"], row["expression_id"], row["expression"]) for row in rows] == [
        (VALID_VIDEO, "0", "a dog"),
        (VALID_VIDEO, "1", "the dog on the left"),
    ]
    for row in rows:
        assert (row["masks"], row["ignore_masks"], row["object_ids"]) == (None, None, [])
        assert (row["expression_type"], row["split"]) == ("referring", "valid")
        with pytest.raises(DataError, match="server"):
            decode_masks(row)


def test_the_list_of_the_validation_videos():
    assert len(VALID_VIDEOS) == len(set(VALID_VIDEOS)) == 202
    assert all(len(name) == 10 and set(name) <= set("0123456789abcdef") for name in VALID_VIDEOS)
    assert (VALID_VIDEOS[0], VALID_VIDEOS[-1]) == (VALID_VIDEO, "fef7e84268") and TEST_VIDEO not in VALID_VIDEOS


@pytest.mark.parametrize("streaming", [False, True])
def test_load(tmp_path: Path, streaming: bool):
    root = make_ref_youtube_vos(tmp_path / "data", inner="refytvos")
    loaded = load("ref-youtube-vos", root, streaming=streaming, cache_dir=str(tmp_path / "cache"))
    assert set(loaded) == {"train", "valid"}
    assert list(loaded["train"]) == rows_of(root) and list(loaded["valid"]) == rows_of(root, "valid")


def test_the_cache_notices_changed_masks(tmp_path: Path):
    root = make_ref_youtube_vos(tmp_path / "data")

    def first() -> dict:
        return load("ref-youtube-vos", root, split="train", cache_dir=str(tmp_path / "cache"))[0]

    before = first()
    file = root / "train" / "Annotations" / FERRY / "00000.png"
    write_palette(file, labels_of([".....", "...1."]))
    os.utime(file, ns=(1, 1))
    assert first()["masks"] != before["masks"]


def test_another_set_or_an_empty_folder_is_not_taken(tmp_path: Path):
    for name in ("davis17", "empty"):
        (tmp_path / name).mkdir()
    make_ref_youtube_vos(tmp_path / "davis17")
    for name in ("davis17", "empty"):
        with pytest.raises(DataError, match="does not look like ref-youtube-vos"):
            RefYouTubeVOS(data_dir=tmp_path / name)


# --- defects ---------------------------------------------------------------------------------------------------------
def test_png_defects_leave_out_the_video(tmp_path: Path):
    def told(change: Any) -> list[tuple[str, str]]:
        root = make_ref_youtube_vos(Path(tmp_path, str(len(list(tmp_path.iterdir())))))
        change(root / "train" / "Annotations" / FERRY / "00005.png")
        found, rows = findings(root)
        assert {row["video_id"] for row in rows} == {PENGUIN}
        with pytest.raises(DataError):
            list(load("ref-youtube-vos", root, split="train", streaming=True))
        return found

    small = np.ones((2, 4), dtype=np.uint8)
    colours = np.ones((2, 5), dtype=np.uint8)
    assert told(lambda file: file.unlink()) == [("missing_file", FERRY)]
    assert told(lambda file: write_palette(file, small)) == [("mask_size", f"{FERRY}, 00005.png")]
    assert told(lambda file: write_palette(file, colours, "RGB")) == [("bad_mask", f"{FERRY}, 00005.png")]
    assert told(lambda file: file.write_bytes(file.read_bytes()[:200])) == [("bad_mask", f"{FERRY}, 00005.png")]
    # A video without a folder, and without the PNG of its last frame, are the same defect.
    assert told(lambda file: file.parent.rename(file.parent.with_name("other"))) == [("missing_file", FERRY)]


def test_each_png_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root, seen = make_ref_youtube_vos(tmp_path), []

    def counting(path: Path) -> np.ndarray:
        seen.append(path)
        return read_label_map(path)

    monkeypatch.setattr("virst_hf.data.palettes.read_label_map", counting)
    assert len(rows_of(root)) == 13 and len(seen) == len(set(seen)) == 5


def test_no_masks_at_all(tmp_path: Path):
    root = make_ref_youtube_vos(tmp_path)
    (root / "train" / "Annotations").rename(root / "elsewhere")
    assert findings(root) == ([("missing_file", "train")], [])


@pytest.mark.parametrize(
    "owner", [None, "", "one", "0", 0, -1, 256, 2**70, 1.0, True, [], ["1", "2"], {}, "1" * 5000, "\u0661"]
)
def test_object_ids_that_no_png_has(tmp_path: Path, owner: Any):
    root = make_ref_youtube_vos(tmp_path)
    change_json(root.joinpath(*TRAIN_FILE), lambda c: c["videos"][PENGUIN]["expressions"]["4"].update(obj_id=owner))
    found, rows = findings(root)
    assert found == [("bad_entry", f"{PENGUIN}/4")] and len(rows) == 12


@pytest.mark.parametrize(
    ("name", "check"), [("../003234408d", "unsafe_path"), ("/etc", "unsafe_path"), ("x", "missing_frame")]
)
def test_unsafe_names_of_videos(tmp_path: Path, name: str, check: str):
    root = make_ref_youtube_vos(tmp_path)

    def rename(content: Any) -> None:
        content["videos"][name] = content["videos"].pop(FERRY)

    change_json(root.joinpath(*TRAIN_FILE), rename)
    found, rows = findings(root)
    assert found == [(check, name)] and {row["video_id"] for row in rows} == {PENGUIN}


def test_unsafe_names_of_frames_and_unsorted_frames(tmp_path: Path):
    for index, (frames, check) in enumerate(
        [
            (["../0043f083b5/00000", "00005"], "unsafe_path"),
            (["00005", "00000"], "unsorted_frames"),
            (["00000", "00000"], "duplicate"),
            (["00000", "00007"], "missing_frame"),
            ([0, 5], "bad_entry"),
        ]
    ):
        root = make_ref_youtube_vos(tmp_path / str(index))
        change_json(root.joinpath(*TRAIN_FILE), lambda c, frames=frames: c["videos"][FERRY].update(frames=frames))
        assert findings(root)[0] == [(check, FERRY)]


def test_links_out_of_the_root(tmp_path: Path):
    root = make_ref_youtube_vos(tmp_path / "data")
    moved = tmp_path / "outside"
    folder = root / "train" / "Annotations" / FERRY
    folder.rename(moved)
    folder.symlink_to(moved)
    assert findings(root)[0] == [("unsafe_path", FERRY)]
    assert len(rows_of(root, follow_links=True)) == 13
    above = tmp_path / "above"
    above.mkdir()
    (above / "refytvos").symlink_to(root)
    with pytest.raises(DataError, match="link out of the data root"):
        RefYouTubeVOS(data_dir=above)
    assert len(rows_of(above, follow_links=True)) == 13


# --- the pickle ------------------------------------------------------------------------------------------------------
class Evil:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.trace),)


def test_a_pickle_that_calls_something_is_refused(tmp_path: Path):
    root = make_ref_youtube_vos(tmp_path, "pkl")
    (root / "train" / "mask_dict.pkl").write_bytes(
        pickle.dumps({**youtube_packed(), "0": [Evil(tmp_path / "trace")] * 3})
    )
    with pytest.raises(DataError, match="Nothing of it was executed"):
        findings(root)
    assert not (tmp_path / "trace").exists()


def test_a_pickle_of_another_release_is_refused(tmp_path: Path):
    root = make_ref_youtube_vos(tmp_path, "pkl")
    packed = youtube_packed()
    del packed["12"]
    (root / "train" / "mask_dict.pkl").write_bytes(pickle.dumps(packed))
    with pytest.raises(DataError, match="12 entries, but there are 13 expressions"):
        findings(root)


@pytest.mark.parametrize(
    ("track", "check", "item"),
    [
        ([None, None], "mask_count", ""),
        ("abc", "unknown_id", ""),
        ([None, None, {"size": [4, 6], "counts": b"\\0"}], "bad_mask", ", frame 2"),
        ([None, {"size": [4, 5], "counts": [20]}, None], "mask_size", ", frame 1"),
        ([None, 3, None], "bad_mask", ", frame 1"),
    ],
)
def test_damaged_entries_of_the_pickle(tmp_path: Path, track: Any, check: str, item: str):
    root = make_ref_youtube_vos(tmp_path, "pkl")
    (root / "train" / "mask_dict.pkl").write_bytes(pickle.dumps({**youtube_packed(), "2": track}))
    found, rows = findings(root)
    # The third in the order of texts is expression 10.
    assert found == [(check, f"{PENGUIN}, annotation 2{item}")]
    assert "10" not in [row["expression_id"] for row in rows] and len(rows) == 12


# --- anything --------------------------------------------------------------------------------------------------------
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | st.just("../x"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def places_of(node: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON tree."""
    keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    return [place for key in keys for place in ((node, key), *places_of(node[key]))]


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_ref_youtube_vos(tmp_path_factory.mktemp("fuzz"))
    make_ref_youtube_vos(tmp_path_factory.getbasetemp() / "packed", "pkl")
    return root


@settings(max_examples=120, deadline=None)
@given(data=st.data(), packed=st.booleans(), split=st.sampled_from(["train", "valid"]))
def test_any_value_anywhere_ends_in_rows_or_in_our_error(fuzzed: Path, data: Any, packed: bool, split: str):
    root = fuzzed.parent / "packed" if packed else fuzzed
    file = root / "meta_expressions" / split / "meta_expressions.json"
    sound = file.read_text(encoding="utf-8")
    tree = [json.loads(sound)]
    node, key = data.draw(st.sampled_from(places_of(tree)))
    node[key] = data.draw(JSON)
    try:
        file.write_text(json.dumps(tree[0]), encoding="utf-8")
        found, rows = findings(root, split)
        assert all(list(row) == list(FIELDS) for row in rows)
    except DataError:
        pass
    finally:
        file.write_text(sound, encoding="utf-8")


@settings(max_examples=120, deadline=None)
@given(
    changes=st.lists(
        st.tuples(st.integers(0, 2000), st.integers(0, 20), st.binary(max_size=6)), min_size=1, max_size=3
    )
)
def test_any_bytes_in_the_pickle(fuzzed: Path, changes: list[tuple[int, int, bytes]]):
    root = fuzzed.parent / "packed"
    file = root / "train" / "mask_dict.pkl"
    sound = file.read_bytes()
    content = bytearray(sound)
    for place, length, piece in changes:
        content[place % len(sound) : place % len(sound) + length] = piece
    try:
        file.write_bytes(content)
        assert all(list(row) == list(FIELDS) for row in findings(root)[1])
    except DataError:
        pass
    finally:
        file.write_bytes(sound)


def test_masks_are_compared_with_the_frames(tmp_path: Path):
    root = make_ref_youtube_vos(tmp_path)
    picture(root / "train" / "JPEGImages" / FERRY / "00000.jpg", 3, 5)
    assert findings(root)[0] == [("mask_size", f"{FERRY}, 00000.png")]


def test_the_page(tmp_path: Path):
    page = (Path(__file__).parent.parent / "docs" / "data" / "ref-youtube-vos.md").read_text(encoding="utf-8")
    assert RefYouTubeVOS.TREE in page and CATALOG[RefYouTubeVOS.NAME].licence in page
    shown = json.loads(page.split("```json\n")[1].split("```")[0])
    row = rows_of(make_ref_youtube_vos(tmp_path))[3]
    assert json.loads(json.dumps(row).replace(str(tmp_path), "/data/refytvos")) == shown
