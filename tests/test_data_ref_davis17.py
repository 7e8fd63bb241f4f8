"""Ref-DAVIS17: the tree of the release and the converted one give the same rows; rows by hand, and every trap."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_fixtures import drawn
from palette_fixtures import (
    DAVIS,
    LINES,
    TEXTS,
    change_json,
    labels_of,
    make_davis_converted,
    make_davis_raw,
    write_palette,
)

from virst_hf.data.catalog import CATALOG, load
from virst_hf.data.davis_text import TEXT_FILES, read_text_file
from virst_hf.data.records import FIELDS, decode_masks
from virst_hf.data.ref_davis17 import RefDAVIS17
from virst_hf.errors import DataError

MAKERS = {"raw": make_davis_raw, "converted": make_davis_converted}
# In the order of the annotators' files, object by object.
MOTORBIKE = [
    "a motorbike",
    "the motorbike, which turns",
    "a bike near a caf\u00e9",
    "bike leaving the caf\u00e9",
    "a man with a hat",
    "the man driving",
    "man",
    "man on the bike",
    "a woman in white",
    "a woman who comes later",
    'woman with "long" hair',
    "woman walking",
]


def rows_of(root: Path, split: str = "train", **fields: Any) -> list[dict]:
    def fail(check: str, item: str, message: str) -> None:
        raise AssertionError((check, item, message))

    builder = RefDAVIS17(data_dir=root, **fields)
    return list(builder.rows(builder.root, split, builder.units(builder.root, split, fail), fail))


def findings(root: Path, split: str = "train", **fields: Any) -> tuple[list[tuple[str, str]], list[dict]]:
    """What the doctor is told, and the rows that are left."""
    found: list[tuple[str, str]] = []

    def report(check: str, item: str, message: str) -> None:
        found.append((check, item))

    builder = RefDAVIS17(data_dir=root, **fields)
    return found, list(builder.rows(builder.root, split, builder.units(builder.root, split, report), report))


def without_paths(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "frame_paths"} for row in rows]


def text_file(root: Path, index: int) -> Path:
    return root / "davis_text_annotations" / f"{TEXTS[index]}.txt"


# --- rows ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("kind", "frames"), [("raw", "DAVIS/JPEGImages/480p/motorbike"), ("converted", "train/JPEGImages/motorbike")]
)
def test_rows(tmp_path: Path, kind: str, frames: str):
    root = MAKERS[kind](tmp_path)
    rows = rows_of(root)
    assert [row["expression_id"] for row in rows] == [str(number) for number in range(12)]
    assert [row["expression"] for row in rows] == MOTORBIKE
    assert [row["object_ids"] for row in rows] == [[1]] * 4 + [[2]] * 4 + [[3]] * 4
    # Object 3 is absent in the first frame, and the ring of void around it is in the second.
    row = rows[10]
    masks, ignored = row.pop("masks"), row.pop("ignore_masks")
    assert masks[0] is None and ignored[0] is None
    assert row == {
        "video_id": "motorbike",
        "expression_id": "10",
        "expression": 'woman with "long" hair',
        "answer": None,
        "frame_names": ["00000", "00001"],
        "frame_paths": [str(root / frames / "00000.jpg"), str(root / frames / "00001.jpg")],
        "video_path": None,
        "height": 3,
        "width": 6,
        "object_ids": [3],
        "annotation_ids": [],
        "category": "rvos",
        "expression_type": "referring",
        "source": "ref-davis17",
        "split": "train",
    }
    full = {**row, "masks": masks, "ignore_masks": ignored}
    assert drawn(decode_masks(full)[1]) == ["......", "....#.", "......"]
    assert drawn(decode_masks(full, "ignore_masks")[1]) == ["...###", "...#.#", "...###"]
    # The void is no object, and does not belong to one.
    assert [drawn(mask) for mask in decode_masks(rows[0])] == [
        ["##....", "##....", "......"],
        ["##....", "##....", "......"],
    ]


@pytest.mark.parametrize("inner", [".", "davis17", "ref-davis"])
@pytest.mark.parametrize("split", ["train", "valid"])
def test_the_raw_and_the_converted_tree_give_equal_rows(tmp_path: Path, inner: str, split: str):
    raw = rows_of(make_davis_raw(tmp_path / "raw", inner), split)
    converted = rows_of(make_davis_converted(tmp_path / "converted", inner), split)
    assert without_paths(raw) == without_paths(converted)
    assert len(raw) == {"train": 12, "valid": 8}[split]


def test_valid_is_sorted_has_masks_and_no_void(tmp_path: Path):
    rows = rows_of(make_davis_raw(tmp_path), "valid")
    assert [(row["video_id"], row["expression_id"]) for row in rows] == [
        *(("classic-car", str(k)) for k in range(4)),
        *(("dogs-jump", str(k)) for k in range(4)),
    ]
    assert [row["expression"] for row in rows[:4]] == ["an old car", "a car that drives on", "car", "silver car"]
    # No void in the whole video: nothing is ignored.
    assert {row["ignore_masks"] is None for row in rows} == {True} and {row["split"] for row in rows} == {"valid"}
    assert rows[0]["masks"][1] is None
    assert [drawn(mask) for mask in decode_masks(rows[0])] == [["....", "..#."], ["....", "...."], ["...#", "...."]]


@pytest.mark.parametrize("kind", ["raw", "converted"])
def test_an_object_that_never_appears_keeps_its_id(tmp_path: Path, kind: str):
    root = MAKERS[kind](tmp_path)
    for frame in DAVIS["train"]["motorbike"]:
        for file in root.rglob(f"motorbike/{frame}.png"):
            write_palette(file, np.zeros((3, 6), dtype=np.uint8))
    rows = rows_of(root)
    assert len(rows) == 12 and {str(row["masks"]) for row in rows} == {"[None, None]"}
    assert rows[11]["object_ids"] == [3] and rows[11]["expression_type"] == "referring"


def test_the_masks_can_be_chosen(tmp_path: Path):
    root = make_davis_raw(tmp_path / "raw")
    default = rows_of(root)
    assert without_paths(rows_of(root, annotation_root="Annotations_unsupervised")) == without_paths(default)
    other = rows_of(root, annotation_root="Annotations")
    assert drawn(decode_masks(other[0])[0]) == ["#.....", "......", "......"] and other[0]["ignore_masks"] is None
    converted = make_davis_converted(tmp_path / "converted")
    assert without_paths(rows_of(converted, annotation_root="Annotations")) == without_paths(default)
    assert findings(converted, annotation_root="Annotations_unsupervised") == ([("missing_file", "train")], [])
    for unsafe in ("../Annotations", "/etc", "", 5):
        with pytest.raises(DataError, match="refused|name of a file"):
            RefDAVIS17(data_dir=root, annotation_root=unsafe)


@pytest.mark.parametrize("kind", ["raw", "converted"])
@pytest.mark.parametrize("streaming", [False, True])
def test_load(tmp_path: Path, kind: str, streaming: bool):
    root = MAKERS[kind](tmp_path / "data", "davis17")
    loaded = load("ref-davis17", root, streaming=streaming, cache_dir=str(tmp_path / "cache"))
    assert set(loaded) == {"train", "valid"}
    assert list(loaded["train"]) == rows_of(root) and list(loaded["valid"]) == rows_of(root, "valid")


def test_the_cache_notices_changed_texts_and_masks(tmp_path: Path):
    root = make_davis_raw(tmp_path / "data")

    def first(**fields: Any) -> dict:
        return load("ref-davis17", root, split="train", cache_dir=str(tmp_path / "cache"), **fields)[0]

    before = first()
    assert first(annotation_root="Annotations")["masks"] != before["masks"]
    text_file(root, 0).write_text("\n".join(LINES[0]).replace("a motorbike", "a vehicle"))
    assert first()["expression"] == "a vehicle"
    file = root / "DAVIS" / "Annotations_unsupervised" / "480p" / "motorbike" / "00000.png"
    write_palette(file, labels_of(["......", "......", ".....1"]))
    os.utime(file, ns=(1, 1))
    assert first()["masks"] != before["masks"]


def test_another_set_or_an_empty_folder_is_not_taken(tmp_path: Path):
    for name, maker in (("refytvos", make_davis_converted), ("empty", None)):
        (tmp_path / name).mkdir()
        if maker is not None:
            maker(tmp_path / name)
        with pytest.raises(DataError, match="does not look like ref-davis17"):
            RefDAVIS17(data_dir=tmp_path / name)


# --- texts -----------------------------------------------------------------------------------------------------------
def test_text_files(tmp_path: Path):
    root = make_davis_raw(tmp_path)
    assert list(TEXT_FILES) == [f"{name}.txt" for name in TEXTS]
    assert text_file(root, 2).read_bytes().count(b"caf\xe9") == 1
    assert read_text_file(text_file(root, 2)).sentences == {
        "motorbike": [("1", "a bike near a caf\u00e9"), ("2", "man"), ("3", 'woman with "long" hair')],
        "dogs-jump": [("1", "brown dog")],
        "classic-car": [("1", "car")],
    }


def test_names_quotes_and_the_order_of_objects(tmp_path: Path):
    path = tmp_path / "Davis17_annot1.txt"
    lines = [f'dog-scale {number} "dog {number}"' for number in range(1, 12)]
    path.write_text("\r\n".join(["", *lines, 'x 1 a "b"', "y 1 'it's mine'", "  z   1 \u201cc\u201d ", 'w 1 "']))
    found = read_text_file(path)
    # Sorted as texts: the object of rank 1 is number 10.
    assert [owner for owner, _ in found.sentences["dogs-scale"]] == "1 10 11 2 3 4 5 6 7 8 9".split()
    assert found.sentences["x"] == [("1", 'a "b')] and found.sentences["y"] == [("1", "it's mine")]
    assert found.sentences["z"] == [("1", "c")]
    assert [(check, item) for check, item, _ in found.defects] == [("bad_entry", f"{path.name}, line 16")]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("motor-bike 1", [("bad_entry", "{file}, line 6")]),
        ('motor-bike one "a"', [("bad_entry", "{file}, line 6")]),
        ('motor-bike 1 "another"', [("duplicate", "{file}, line 6")]),
        # Only this annotator names object 0, so that the objects of one rank differ.
        ('motor-bike 0 "the road"', [("bad_entry", "motorbike")]),
        # A sequence that is in no list is nobody's.
        ('../../etc/passwd 1 "x"', []),
    ],
)
def test_damaged_lines(tmp_path: Path, line: str, expected: list[tuple[str, str]]):
    root = make_davis_raw(tmp_path)
    with text_file(root, 0).open("a") as stream:
        stream.write(line + "\n")
    found, rows = findings(root)
    assert found == [(check, item.format(file=f"{TEXTS[0]}.txt")) for check, item in expected]
    assert len(rows) == (0 if ("bad_entry", "motorbike") in found else 12)


def test_lines_that_are_missing(tmp_path: Path):
    root = make_davis_raw(tmp_path)
    # The last object without a line in one file: cut to the shortest list, as the converter does.
    text_file(root, 3).write_text("\n".join(line for line in LINES[3] if "bike 3" not in line), encoding="latin-1")
    assert [row["object_ids"] for row in rows_of(root)] == [[1]] * 4 + [[2]] * 4
    # The first object: what the converter makes of it would mix the objects.
    text_file(root, 3).write_text("\n".join(line for line in LINES[3] if "bike 1" not in line), encoding="latin-1")
    assert findings(root) == ([("bad_entry", "motorbike")], [])
    # No line at all, as after a misspelt name that is not known.
    text_file(root, 3).write_text("\n".join(LINES[3]).replace("motor-bike", "moto-bike"), encoding="latin-1")
    assert findings(root) == ([("bad_entry", "motorbike")], [])
    text_file(root, 3).unlink()
    with pytest.raises(DataError, match="Davis17_annot2_full_video"):
        findings(root)


def test_the_encodings(tmp_path: Path):
    root = make_davis_raw(tmp_path)
    # The first two files are UTF-8; Latin-1 in them is damage.
    text_file(root, 0).write_bytes("\n".join(LINES[0]).replace("hat", "b\u00e9ret").encode("latin-1"))
    with pytest.raises(DataError, match="not text in utf-8"):
        findings(root)


# --- defects ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ("../motorbike", [("unsafe_path", "train.txt, line 2")]),
        ("/etc", [("unsafe_path", "train.txt, line 2")]),
        ("motorbike", [("duplicate", "train.txt, line 2")]),
        ("..", [("unsafe_path", "..")]),
        ("a\\b", [("unsafe_path", "a\\b")]),
        ("swan", [("missing_frame", "swan")]),
    ],
)
def test_names_in_the_list_are_not_trusted(tmp_path: Path, listed: str, expected: list[tuple[str, str]]):
    root = make_davis_raw(tmp_path)
    (root / "DAVIS" / "ImageSets" / "2017" / "train.txt").write_text(f"motorbike\n{listed}\n\n")
    for index in range(4):
        with text_file(root, index).open("a") as stream:
            stream.write(f'{listed} 1 "it"\n' if listed != "motorbike" else "")
    found, rows = findings(root)
    assert found == expected and {row["video_id"] for row in rows} == {"motorbike"}


def test_frames_and_pngs_of_the_raw_tree(tmp_path: Path):
    frames, pngs = ("DAVIS/JPEGImages/480p/motorbike", "DAVIS/Annotations_unsupervised/480p/motorbike")

    def told(change: Any) -> list[tuple[str, str]]:
        root = make_davis_raw(tmp_path / str(len(list(tmp_path.iterdir()))))
        change(root)
        found, rows = findings(root)
        assert rows == []
        return found

    assert told(lambda root: (root / pngs / "00001.png").unlink()) == [("missing_file", "motorbike")]
    # The release lists its frames nowhere; one that is lost shows by its PNG.
    assert told(lambda root: (root / frames / "00001.jpg").unlink()) == [("missing_frame", "motorbike")]
    assert told(lambda root: (root / pngs).rename(root / "x")) == [("missing_file", "motorbike")]
    assert told(lambda root: (root / frames).rename(root / "x")) == [("missing_frame", "motorbike")]
    wide = np.ones((3, 7), dtype=np.uint8)
    size, bad = ("mask_size", "motorbike, 00001.png"), ("bad_mask", "motorbike, 00001.png")
    assert told(lambda root: write_palette(root / pngs / "00001.png", wide)) == [size]
    assert told(lambda root: write_palette(root / pngs / "00001.png", wide[:, :6], "RGB")) == [bad]
    assert told(lambda root: (root / pngs / "00001.png").write_bytes(b"no")) == [bad]


def test_files_of_macos_are_no_frames(tmp_path: Path):
    root = make_davis_raw(tmp_path)
    for folder in ("JPEGImages", "Annotations_unsupervised"):
        for file in (root / "DAVIS" / folder / "480p" / "motorbike").iterdir():
            file.with_name(f"._{file.name}").write_bytes(b"\0")
    assert len(rows_of(root)) == 12


def test_links_out_of_the_root(tmp_path: Path):
    root = make_davis_raw(tmp_path / "data")
    folder = root / "DAVIS" / "JPEGImages" / "480p" / "motorbike"
    folder.rename(tmp_path / "outside")
    folder.symlink_to(tmp_path / "outside")
    assert findings(root) == ([("unsafe_path", "motorbike")], [])
    assert len(rows_of(root, follow_links=True)) == 12


@pytest.mark.parametrize("key", ["a", "03", "-1", "", "1.0", "\u0663", "1" * 30])
def test_expression_ids_that_are_no_numbers(tmp_path: Path, key: str):
    root = make_davis_converted(tmp_path)

    def rename(content: Any) -> None:
        expressions = content["videos"]["motorbike"]["expressions"]
        expressions[key] = expressions.pop("3")

    change_json(root / "meta_expressions" / "train" / "meta_expressions.json", rename)
    found, rows = findings(root)
    assert found == [("bad_entry", f"motorbike/{key}")] and len(rows) == 11


@pytest.mark.parametrize("owner", [255, "255", "0", None, ["1", "2"], 1.5])
def test_the_void_and_the_background_are_no_objects(tmp_path: Path, owner: Any):
    root = make_davis_converted(tmp_path)
    path = root / "meta_expressions" / "train" / "meta_expressions.json"
    change_json(path, lambda content: content["videos"]["motorbike"]["expressions"]["3"].update(obj_id=owner))
    found, rows = findings(root)
    assert found == [("bad_entry", "motorbike/3")] and len(rows) == 11


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


def ends_well(root: Path, split: str, file: Path, content: bytes) -> None:
    """With this content of a file: rows, or our own error."""
    sound = file.read_bytes()
    try:
        file.write_bytes(content)
        assert all(list(row) == list(FIELDS) for row in findings(root, split)[1])
    except DataError:
        pass
    finally:
        file.write_bytes(sound)


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: maker(tmp_path_factory.mktemp(kind)) for kind, maker in MAKERS.items()}


@settings(max_examples=100, deadline=None)
@given(data=st.data(), split=st.sampled_from(["train", "valid"]))
def test_any_value_anywhere_in_the_json(trees: dict[str, Path], data: Any, split: str):
    file = trees["converted"] / "meta_expressions" / split / "meta_expressions.json"
    tree = [json.loads(file.read_text(encoding="utf-8"))]
    node, key = data.draw(st.sampled_from(places_of(tree)))
    node[key] = data.draw(JSON)
    ends_well(trees["converted"], split, file, json.dumps(tree[0]).encode())


PIECES = st.binary(max_size=6) | st.sampled_from([b"\n", b" ", b'"', b"../x", b"\xe9", b"\xff", b"motorbike 1", b"\0"])


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(
        [f"davis_text_annotations/{name}" for name in TEXT_FILES] + ["DAVIS/ImageSets/2017/train.txt"]
    ),
    changes=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 20), PIECES), min_size=1, max_size=4),
)
def test_any_bytes_in_the_texts(trees: dict[str, Path], name: str, changes: list[tuple[int, int, bytes]]):
    file = trees["raw"] / name
    content = bytearray(file.read_bytes())
    for place, length, piece in changes:
        content[place : place + length] = piece
    ends_well(trees["raw"], "train", file, bytes(content))


def test_the_page(tmp_path: Path):
    page = (Path(__file__).parent.parent / "docs" / "data" / "ref-davis17.md").read_text(encoding="utf-8")
    assert RefDAVIS17.TREE in page and CATALOG[RefDAVIS17.NAME].licence in page
    shown = json.loads(page.split("```json\n")[1].split("```")[0])
    row = rows_of(make_davis_raw(tmp_path))[10]
    assert json.loads(json.dumps(row).replace(str(tmp_path), "/data/davis17")) == shown
