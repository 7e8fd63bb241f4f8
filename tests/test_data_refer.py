"""RefCOCO, RefCOCO+ and RefCOCOg from pickles, JSON and parquet: rows written by hand, and every trap."""

import copy
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_fixtures import drawn, instances, make_refcoco, picture, refs, write_json, write_pictures, write_refs

from virst_hf.data.catalog import load, make_builder
from virst_hf.data.records import decode_masks
from virst_hf.data.refcoco import RefCOCO
from virst_hf.data.refcoco_plus import RefCOCOPlus
from virst_hf.data.refcocog import RefCOCOg
from virst_hf.data.refer import ReferReader, find_refer_files, in_split
from virst_hf.errors import DataError

KINDS = ("json", "p0", "p2", "p4", "parquet")
POLYGONS = ["......", ".###..", ".#####", "...###"]


def rows_of(builder: Any, split: str, report: Callable | None = None) -> list[dict]:
    def fail(check: str, item: str, message: str) -> None:
        raise AssertionError((check, item, message))

    report = report if report is not None else fail
    return list(builder.rows(builder.root, split, builder.units(builder.root, split, report), report))


def findings(files_root: Path, split: str | None = None) -> tuple[list[str], list[dict]]:
    """What the reader tells of a tree as the doctor reads it: checks, and the rows that are left."""
    found: list[str] = []

    def report(check: str, item: str, message: str) -> None:
        found.append(check)

    files = find_refer_files(files_root, ("refcoco",), "unc")
    reader = ReferReader(files, split, report, {"category": "referring_image", "source": "refcoco", "split": "train"})
    return found, list(reader.rows(reader.units()))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_every_form_of_references(tmp_path: Path, kind: str):
    root = make_refcoco(tmp_path, kind)
    folder = root / "refer_seg" / "images" / "mscoco" / "images" / "train2014"
    builder = RefCOCO(data_dir=root, cache_dir=str(tmp_path / "cache"))
    assert builder.available_splits() == ["train", "val", "testA", "testB"]
    first, second, third = rows_of(builder, "train")
    masks = first.pop("masks")
    assert first == {
        "video_id": "9",
        "expression_id": "0",
        "expression": "the left cup",
        "answer": None,
        "frame_names": ["COCO_train2014_000000000009"],
        "frame_paths": [str(folder / "COCO_train2014_000000000009.jpg")],
        "video_path": None,
        "height": 4,
        "width": 6,
        "object_ids": [100],
        "annotation_ids": [100],
        "ignore_masks": None,
        "category": "referring_image",
        "expression_type": "referring",
        "source": "refcoco",
        "split": "train",
    }
    assert drawn(decode_masks({**first, "masks": masks})[0]) == POLYGONS
    assert (second["expression_id"], second["expression"], second["masks"]) == ("1", "cup", masks)
    # A segmentation of no polygon is an object that cannot be seen, not an expression without a target.
    assert (third["expression"], third["object_ids"], third["masks"]) == ("the unseen one", [101], [None])
    assert third["expression_type"] == "referring"


@pytest.mark.parametrize("kind", KINDS)
def test_other_splits(tmp_path: Path, kind: str):
    builder = RefCOCO(data_dir=make_refcoco(tmp_path, kind), cache_dir=str(tmp_path / "cache"))
    (row,) = rows_of(builder, "val")
    assert (row["video_id"], row["expression_id"], row["expression"]) == ("25", "10", "café table")
    # Two RLE, of column 0, and from its lower half on as many pixels further.
    assert drawn(decode_masks(row)[0]) == ["##........"] * 4 + ["#........."] * 4
    (row,) = rows_of(builder, "testA")
    assert (row["expression"], row["masks"]) == ("man", [{"size": [8, 10], "counts": "_21"}])
    (row,) = rows_of(builder, "testB")
    assert (row["expression"], row["object_ids"]) == ("chair", [103])


def test_all_forms_give_equal_rows(tmp_path: Path):
    found = []
    for kind in KINDS:
        builder = RefCOCO(data_dir=make_refcoco(tmp_path / kind, kind), cache_dir=str(tmp_path / "cache"))
        rows = {split: rows_of(builder, split) for split in builder.available_splits()}
        found.append(json.loads(json.dumps(rows).replace(str(tmp_path / kind), "")))
    assert sum(map(len, found[0].values())) == 6
    assert all(rows == found[0] for rows in found)


def test_loads_prepared_and_streaming(tmp_path: Path):
    root = make_refcoco(tmp_path / "data")
    cache = str(tmp_path / "cache")
    prepared = load("refcoco", root, split="train", cache_dir=cache)
    streamed = load("refcoco", root, split="train", cache_dir=cache, streaming=True)
    expected = rows_of(make_builder("refcoco", root, cache_dir=cache), "train")
    assert list(prepared) == list(streamed) == expected
    # A sentence that was put right is noticed.
    content = refs()
    content[0]["sentences"][0]["sent"] = "the cup on the left"
    write_refs(root / "refer_seg" / "refcoco", "json", content, instances())
    assert load("refcoco", root, split="train", cache_dir=cache)[0]["expression"] == "the cup on the left"


def test_the_three_sets_and_who_split_them(tmp_path: Path):
    root = make_refcoco(tmp_path / "data", "p2")
    make_refcoco(root, "p2", "refcoco+")
    make_refcoco(root, "p2", "refcocog", "umd")
    folder = root / "refer_seg" / "refcocog"
    write_refs(folder, "p2", refs(("train", "val", "test"))[:3], instances(), "google")
    cache = {"cache_dir": str(tmp_path / "cache")}
    plus = RefCOCOPlus(data_dir=root, **cache)
    assert rows_of(plus, "testA")[0]["source"] == "refcoco+"
    umd, google = RefCOCOg(data_dir=root, **cache), RefCOCOg(data_dir=root, config_name="google", **cache)
    assert umd.available_splits() == ["train", "val", "test"]
    assert google.available_splits() == ["train", "val"]
    assert [row["expression"] for row in rows_of(umd, "test")] == ["man"]
    assert RefCOCOg(data_dir=root, split_by="google", **cache).available_splits() == ["train", "val"]
    with pytest.raises(DataError, match="does not look like refcoco"):
        RefCOCO(data_dir=root, config_name="google", **cache)
    with pytest.raises(DataError, match="no split_by 'umd'"):
        RefCOCO(data_dir=root, split_by="umd", **cache)


def test_parquet_holds_no_splits_of_google(tmp_path: Path):
    root = make_refcoco(tmp_path / "data", "parquet")
    with pytest.raises(DataError, match="does not look like refcoco"):
        RefCOCO(data_dir=root, config_name="google", cache_dir=str(tmp_path / "cache"))


def test_parquet_that_says_test_for_test_a(tmp_path: Path):
    content = refs(("train", "validation", "test", "testB"))
    write_refs(tmp_path / "refcoco", "parquet", content, instances())
    write_pictures(tmp_path / "refcoco" / "train2014")
    builder = RefCOCO(data_dir=tmp_path / "refcoco", cache_dir=str(tmp_path / "cache"))
    assert builder.available_splits() == ["train", "val", "testA", "testB"]
    assert [row["expression"] for row in rows_of(builder, "testA")] == ["man"]


@pytest.mark.parametrize("depth", ["", "refer_seg", "refer_seg/refcoco"])
def test_roots(tmp_path: Path, depth: str):
    root = make_refcoco(tmp_path) / depth
    row = rows_of(RefCOCO(data_dir=root, cache_dir=str(tmp_path / "cache")), "val")[0]
    assert Path(row["frame_paths"][0]).is_file()


def test_folder_of_another_set_is_not_taken(tmp_path: Path):
    root = make_refcoco(tmp_path)
    with pytest.raises(DataError, match="does not look like refcoco+"):
        RefCOCOPlus(data_dir=root / "refer_seg" / "refcoco", cache_dir=str(tmp_path / "cache"))


def test_pictures_elsewhere(tmp_path: Path):
    write_refs_at = tmp_path / "data" / "refcoco"
    write_refs_at.mkdir(parents=True)
    write_refs(write_refs_at, "json", refs(), instances())
    write_pictures(tmp_path / "coco" / "train2014")
    for image_root in (tmp_path / "coco", tmp_path / "coco" / "train2014"):
        builder = RefCOCO(data_dir=tmp_path / "data", image_root=str(image_root), cache_dir=str(tmp_path / "cache"))
        assert rows_of(builder, "val")[0]["frame_paths"][0].startswith(str(tmp_path / "coco" / "train2014"))
    with pytest.raises(DataError, match="image_root"):
        RefCOCO(data_dir=tmp_path / "data", image_root=str(tmp_path / "no"), cache_dir=str(tmp_path / "cache"))


def test_split_rule():
    assert [name for name in ("testA", "testB", "testAB", "train", "val") if in_split(name, "testA")] == [
        "testA",
        "testAB",
    ]
    assert [name for name in ("testA", "test", "train") if in_split(name, "test")] == ["testA", "test"]
    assert not in_split("trainval", "train")


def test_reference_of_two_splits(tmp_path: Path):
    content = refs(("train", "val", "testAB", "testB"))
    write_refs_tree(tmp_path, content, instances())
    builder = RefCOCO(data_dir=tmp_path, cache_dir=str(tmp_path / "cache"))
    assert [row["expression_id"] for row in rows_of(builder, "testA")] == ["11"]
    assert sorted(row["expression_id"] for row in rows_of(builder, "testB")) == ["11", "12"]


def test_several_objects_and_none(tmp_path: Path):
    """As in gRefCOCO: a list of annotations, and -1 where nothing fits."""
    content = refs()
    content[0]["ann_id"] = [100, 101, 105]
    content[1]["ann_id"] = [-1]
    content[2]["ann_id"] = -1
    records = instances()
    records["annotations"].append({"id": 105, "image_id": 9, "segmentation": [[0, 0, 1, 0, 1, 1, 0, 1]]})
    write_refs_tree(tmp_path, content, records)
    builder = RefCOCO(data_dir=tmp_path, cache_dir=str(tmp_path / "cache"))
    first, _, nothing = rows_of(builder, "train")
    assert (first["object_ids"], first["annotation_ids"]) == ([100, 101, 105], [100, 101, 105])
    assert drawn(decode_masks(first)[0]) == ["#.....", *POLYGONS[1:]]
    assert (nothing["object_ids"], nothing["masks"], nothing["expression_type"]) == ([], [None], "no_target")
    assert rows_of(builder, "val")[0]["expression_type"] == "no_target"


def test_all_references_whatever_their_split(tmp_path: Path):
    """As Shapes reads its folder, whose sentences state a type of their own."""
    content = refs(("valid", "valid", "valid", "valid"))
    content[0]["sentences"][0]["type"] = "attribute"
    write_refs_tree(tmp_path, content, instances())
    checks, rows = findings(tmp_path)
    assert checks == []
    assert [row["expression_id"] for row in rows] == ["0", "1", "2", "10", "11", "12"]
    assert [row["expression_type"] for row in rows[:2]] == ["attribute", "referring"]


def test_sentence_of_which_cleaning_left_nothing(tmp_path: Path):
    content = refs()
    content[0]["sentences"][0].update(sent="", raw="?")
    write_refs_tree(tmp_path, content, instances())
    assert findings(tmp_path, "train")[1][0]["expression"] == "?"


def write_refs_tree(root: Path, content: Any, records: Any) -> None:
    folder = root / "refcoco"
    write_json(folder / "instances.json", records)
    write_json(folder / "refs(unc).json", content)
    write_pictures(root / "images" / "train2014")


def change(*path: str | int, value: Any) -> Callable[[list, dict], None]:
    """A change of the references ("refs") or of the instances."""

    def apply(content: list, records: dict) -> None:
        place: Any = content if path[0] == "refs" else records[path[0]]
        for step in path[1:-1]:
            place = place[step]
        place[path[-1]] = value

    return apply


DEFECTS = {
    "a reference is no object": (change("refs", 0, value=7), "bad_entry", 4),
    "a reference without a split": (change("refs", 0, "split", value=None), "bad_entry", 4),
    "a reference of a picture that is no number": (change("refs", 0, "image_id", value="9"), "bad_entry", 4),
    "an annotation id is a text": (change("refs", 0, "ann_id", value="one"), "bad_entry", 4),
    "an annotation id is a truth": (change("refs", 0, "ann_id", value=True), "bad_entry", 4),
    "a huge annotation id": (change("refs", 0, "ann_id", value=2**70), "bad_entry", 4),
    "sentences are no list": (change("refs", 0, "sentences", value="cup"), "bad_entry", 4),
    "a sentence is no object": (change("refs", 0, "sentences", 0, value="cup"), "bad_entry", 5),
    "a sentence without a text": (change("refs", 0, "sentences", 0, value={"sent_id": 5}), "bad_entry", 5),
    "a sentence with half a sign": (change("refs", 2, "sentences", 0, value={"sent_id": 5, "sent": "\ud800"}),)
    + ("bad_entry", 5),
    "a sentence id is a text": (change("refs", 0, "sentences", 0, "sent_id", value="0"), "bad_entry", 5),
    "a sentence id stands twice": (change("refs", 0, "sentences", 1, "sent_id", value=0), "duplicate", 5),
    "an unknown picture": (change("refs", 2, "image_id", value=26), "unknown_id", 5),
    "an unknown annotation": (change("refs", 0, "ann_id", value=99), "unknown_id", 4),
    "an annotation of another picture": (change("refs", 0, "ann_id", value=102), "unknown_id", 4),
    "an image record without an id": (change("images", 0, value={}), "bad_entry", 3),
    "an image record without a name": (change("images", 0, "file_name", value=None), "bad_entry", 3),
    "a height of zero": (change("images", 0, "height", value=0), "bad_entry", 3),
    "another width than the picture": (change("images", 0, "width", value=7), "size_mismatch", 3),
    "a picture that is missing": (change("images", 0, "file_name", value="a.jpg"), "missing_frame", 3),
    "a path above": (change("images", 0, "file_name", value="../../secret.jpg"), "unsafe_path", 3),
    "an absolute path": (change("images", 0, "file_name", value="/etc/passwd"), "unsafe_path", 3),
    "half a corner": (change("annotations", 0, "segmentation", value=[[1, 1, 2, 2, 3, 3, 4]]), "bad_mask", 4),
    "a far corner": (change("annotations", 0, "segmentation", value=[[0, 0, 1e300, 0, 1, 1]]), "bad_mask", 4),
    "a segmentation of a text": (change("annotations", 0, "segmentation", value="polygon"), "bad_mask", 4),
    "polygons and an RLE": (change("annotations", 0, "segmentation", value=[[1, 1, 2, 2, 3, 3], {}]), "bad_mask", 4),
    "an RLE of another size": (change("annotations", 3, "segmentation", "size", value=[8, 11]), "mask_size", 4),
    "an RLE that is too long": (change("annotations", 3, "segmentation", "counts", value=[80, 9]), "bad_mask", 4),
    "an annotation id twice": (change("annotations", 4, "id", value=100), "duplicate", 6),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_defects_are_told_and_the_rest_is_read(tmp_path: Path, name: str):
    apply, check, left = DEFECTS[name]
    content, records = refs(), instances()
    apply(content, records)
    write_refs_tree(tmp_path, content, records)
    checks, rows = findings(tmp_path)
    # One defect may be told at more than one place: a record that is gone is missed as well.
    assert set(checks) - {"unknown_id"} <= {check}
    assert check in checks
    assert len(rows) == left
    with pytest.raises(DataError, match=f"\\[{check}\\]|\\[unknown_id\\]"):
        builder = RefCOCO(data_dir=tmp_path, cache_dir=str(tmp_path / "cache"))
        for split in builder.available_splits():
            list(load("refcoco", tmp_path, split=split, streaming=True, cache_dir=str(tmp_path / "cache")))


def test_a_defect_of_one_split_does_not_stop_another(tmp_path: Path):
    content = refs()
    content[4]["ann_id"] = None
    content[3]["split"] = "testB"
    write_refs_tree(tmp_path, content, instances())
    assert findings(tmp_path, "train")[0] == []
    assert findings(tmp_path, "testB")[0] == ["bad_entry"]


@pytest.mark.parametrize("content", [{}, "text", 3, None])
def test_files_of_another_kind(tmp_path: Path, content: Any):
    write_refs_tree(tmp_path, content, instances())
    with pytest.raises(DataError, match="list of references"):
        RefCOCO(data_dir=tmp_path, cache_dir=str(tmp_path / "cache"))
    write_refs_tree(tmp_path, refs(), content)
    with pytest.raises(DataError, match="images"):
        RefCOCO(data_dir=tmp_path, cache_dir=str(tmp_path / "cache"))


def test_missing_instances(tmp_path: Path):
    write_refs_tree(tmp_path, refs(), instances())
    (tmp_path / "refcoco" / "instances.json").unlink()
    with pytest.raises(DataError, match="There is no file .*instances.json"):
        RefCOCO(data_dir=tmp_path, cache_dir=str(tmp_path / "cache"))


def test_links_out_of_the_root(tmp_path: Path):
    secret = picture(tmp_path / "elsewhere" / "secret.jpg", 8, 10)
    root = tmp_path / "data"
    write_refs_tree(root, refs(), instances())
    target = root / "images" / "train2014" / "COCO_train2014_000000000025.jpg"
    target.unlink()
    target.symlink_to(secret)
    checks, rows = findings(root)
    assert (checks, len(rows)) == (["unsafe_path"], 3)
    builder = RefCOCO(data_dir=root, follow_links=True, cache_dir=str(tmp_path / "cache"))
    assert len(rows_of(builder, "val")) == 1
    # The annotations as well.
    moved = (root / "refcoco" / "refs(unc).json").rename(tmp_path / "elsewhere" / "refs.json")
    (root / "refcoco" / "refs(unc).json").symlink_to(moved)
    with pytest.raises(DataError, match="link out of the data root"):
        RefCOCO(data_dir=root, cache_dir=str(tmp_path / "cache"))


def test_malicious_pickle(tmp_path: Path):
    class Attack:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {tmp_path / 'executed'}",)

    root = make_refcoco(tmp_path / "data")
    folder = root / "refer_seg" / "refcoco"
    (folder / "refs(unc).json").unlink()
    content: list[Any] = refs()
    content[0]["sentences"] = Attack()
    (folder / "refs(unc).p").write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match="Nothing of it was executed"):
        RefCOCO(data_dir=root, cache_dir=str(tmp_path / "cache"))
    assert not (tmp_path / "executed").exists()


def test_damaged_parquet(tmp_path: Path):
    root = make_refcoco(tmp_path / "data", "parquet")
    path = next((root / "refer_seg" / "refcoco" / "data").glob("train*"))
    whole = path.read_bytes()
    half = len(whole) // 2
    for damaged in (b"", b"PAR1", whole[:-20], whole[:half], whole[:4] + b"\xff" * half + whole[4 + half :]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="parquet"):
            RefCOCO(data_dir=root, cache_dir=str(tmp_path / "cache"))


def test_parquet_with_other_columns(tmp_path: Path):
    import pyarrow
    import pyarrow.parquet

    root = make_refcoco(tmp_path / "data", "parquet")
    path = next((root / "refer_seg" / "refcoco" / "data").glob("train*"))
    pyarrow.parquet.write_table(pyarrow.table({"image_id": [9], "split": ["train"]}), path)
    with pytest.raises(DataError, match="no column ann_id, sentences, raw_anns, raw_image_info"):
        RefCOCO(data_dir=root, cache_dir=str(tmp_path / "cache"))


@pytest.mark.parametrize("text", ["", "[", "null", "[" * 100_000, '{"id": "100"}'])
def test_parquet_with_records_that_are_no_json(tmp_path: Path, text: str):
    import pyarrow.parquet

    root = make_refcoco(tmp_path / "data", "parquet")
    path = next((root / "refer_seg" / "refcoco" / "data").glob("validation*"))
    table = pyarrow.parquet.read_table(path)
    column = table.schema.get_field_index("raw_anns")
    pyarrow.parquet.write_table(table.set_column(column, "raw_anns", [[text]]), path)
    checks: list[str] = []
    builder = RefCOCO(data_dir=root, cache_dir=str(tmp_path / "cache"))
    assert rows_of(builder, "val", lambda *problem: checks.append(problem[0])) == []
    assert checks == ["bad_entry", "unknown_id"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """Every place of a JSON value."""
    steps = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    return [place for key, inner in steps for place in [(*path, key), *places(inner, (*path, key))]]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutated_files_end_in_rows_or_defects(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    root = tmp_path_factory.getbasetemp() / "refer-fuzz"
    files = {"refs": refs(), "instances": instances()}
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(places(files)[2:]))
        holder = files
        for step in place[:-1]:
            holder = holder[step]
        holder[place[-1]] = copy.deepcopy(data.draw(json_values))
    write_refs_tree(root, files["refs"], files["instances"])
    try:
        _, rows = findings(root)
    except DataError:
        return
    for row in rows:
        assert json.dumps(row)
        assert decode_masks(row).shape == (1, row["height"], row["width"])


def test_the_row_of_the_page(tmp_path: Path):
    page = (Path(__file__).parent.parent / "docs" / "data" / "refcoco.md").read_text(encoding="utf-8")
    shown = json.loads(page.split("```json\n")[1].split("```")[0])
    root = make_refcoco(tmp_path)
    row = rows_of(RefCOCO(data_dir=root, cache_dir=str(tmp_path / "cache")), "train")[0]
    assert json.loads(json.dumps(row).replace(str(root), "/data")) == shown
