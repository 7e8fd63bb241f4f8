"""LV-VIS from VISA's files and from the original release; rows written by hand, and every trap of both."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_dict_fixtures import (
    FIRST,
    SECOND,
    SIZE,
    THIRD,
    covered,
    findings,
    lvvis_instances,
    lvvis_masks,
    lvvis_videos,
    make_lvvis,
    mutated,
    rles,
    rows_of,
    write_json,
)

from virst_hf.data.catalog import CATALOG, load
from virst_hf.data.lvvis import LVVIS, read_instances
from virst_hf.data.records import decode_masks
from virst_hf.errors import DataError

FORMS = ["visa", "original"]
FIVE = ["00000", "00001", "00002", "00003", "00004"]


def open_lvvis(root: Path, **fields: Any) -> LVVIS:
    return LVVIS(data_dir=root, cache_dir=str(root / "cache"), **fields)


@pytest.mark.parametrize("form", FORMS)
def test_rows(tmp_path: Path, form: str):
    root = make_lvvis(tmp_path / "lvvis", form)
    builder = open_lvvis(root)
    assert builder.available_splits() == ["train"]
    rows = rows_of(builder, "train")
    first, second, *_, last = rows
    masks = first.pop("masks")
    assert first == {
        "video_id": "00003",
        "expression_id": "0",
        # sports_car in the file.
        "expression": "sports car",
        "answer": None,
        "frame_names": FIVE,
        "frame_paths": [str(root / "train" / "JPEGImages" / "00003" / f"{name}.jpg") for name in FIVE],
        "video_path": None,
        "height": 32,
        "width": 48,
        # All instances of the category.
        "object_ids": [0, 1],
        "annotation_ids": [12, 13],
        "ignore_masks": None,
        "category": "rvos",
        "expression_type": "referring",
        "source": "lv-vis",
        "split": "train",
    }
    assert (decode_masks({**first, "masks": masks}) == covered(SECOND, THIRD)).all()
    assert (second["expression"], second["object_ids"], second["masks"]) == ("dog", [2], rles(FIRST))
    # In the order of the file, not of texts.
    assert [row["expression_id"] for row in rows[:-1]] == [str(number) for number in range(11)]
    # Of another video, so another target than the dog before.
    expected = ("00000", "0", "dog", [0], [40])
    keys = ("video_id", "expression_id", "expression", "object_ids", "annotation_ids")
    assert tuple(last[key] for key in keys) == expected
    assert (decode_masks(last) == covered(SECOND)).all()


def test_both_forms_give_equal_rows(tmp_path: Path):
    visa, original = (rows_of(open_lvvis(make_lvvis(tmp_path / form, form)), "train") for form in FORMS)
    assert len(visa) == 12
    told = json.dumps(visa).replace(str(tmp_path / "visa"), "ROOT")
    assert told == json.dumps(original).replace(str(tmp_path / "original"), "ROOT")


@pytest.mark.parametrize("folder", ["lvvis", "LVVIS", "LV-VIS"])
@pytest.mark.parametrize(("form", "place"), [("visa", "."), ("original", "."), ("original", "train")])
def test_the_folder_above(tmp_path: Path, folder: str, form: str, place: str):
    root = make_lvvis(tmp_path / folder, form, place)
    rows = rows_of(open_lvvis(tmp_path), "train")
    assert rows == rows_of(open_lvvis(root), "train") and len(rows) == 12


def test_a_folder_of_annotations(tmp_path: Path):
    assert len(rows_of(open_lvvis(make_lvvis(tmp_path, "original", "annotations")), "train")) == 12


def test_visas_files_come_first_if_both_are_there(tmp_path: Path):
    root = make_lvvis(tmp_path)
    make_lvvis(tmp_path, "original")
    videos = lvvis_videos()
    videos["00000"]["expressions"]["0"]["exp"] = "by_VISA"
    write_json(root / "train" / "meta_expressions.json", {"videos": videos})
    assert rows_of(open_lvvis(root), "train")[-1]["expression"] == "by VISA"
    # One of the two alone is of no use.
    (root / "train" / "mask_dict.json").unlink()
    assert rows_of(open_lvvis(root), "train")[-1]["expression"] == "dog"
    (root / "train_instances.json").unlink()
    with pytest.raises(DataError, match="There is no file .*mask_dict.json"):
        rows_of(open_lvvis(root), "train")


def test_folders_that_are_something_else(tmp_path: Path):
    (tmp_path / "train" / "JPEGImages").mkdir(parents=True)
    # Only training is told in this form.
    write_json(tmp_path / "val_instances.json", lvvis_instances())
    with pytest.raises(DataError, match="does not look like lv-vis"):
        open_lvvis(tmp_path)


@pytest.mark.parametrize("form", FORMS)
def test_loads_prepared_and_streaming(tmp_path: Path, form: str):
    root, cache = make_lvvis(tmp_path / "lvvis", form), str(tmp_path / "cache")
    prepared = list(load("lv-vis", root, split="train", cache_dir=cache))
    assert prepared == list(load("lv-vis", root, split="train", cache_dir=cache, streaming=True))
    assert prepared == rows_of(open_lvvis(root), "train")


def test_a_changed_release_is_noticed(tmp_path: Path):
    root, cache = make_lvvis(tmp_path / "lvvis", "original"), str(tmp_path / "cache")
    assert load("lv-vis", root, split="train", cache_dir=cache)[0]["expression"] == "sports car"
    content = lvvis_instances()
    content["categories"][0]["name"] = "racing_car"
    write_json(root / "train_instances.json", content)
    assert load("lv-vis", root, split="train", cache_dir=cache)[0]["expression"] == "racing car"


def test_videos_without_instances_are_left_out(tmp_path: Path):
    """The third video has none, and its frames were not written; VISA's files would not name it."""
    videos, problems = read_instances(make_lvvis(tmp_path, "original") / "train_instances.json")
    assert (list(videos), problems) == (["00003", "00000"], [])
    assert videos["00003"]["frames"] == FIVE


# --- defects of VISA's files -----------------------------------------------------------------------------------------
VISA_DEFECTS = [
    (lambda videos, masks: masks.pop("40"), "unknown_id", "00000, annotation 40"),
    (lambda videos, masks: masks.__setitem__("40", [None]), "mask_count", "00000, annotation 40"),
    (lambda videos, masks: videos["00000"].__setitem__("frames", ["00009"]), "missing_frame", "00000"),
    (lambda videos, masks: videos["00000"]["expressions"]["0"].__setitem__("exp", "___"), "bad_entry", "00000/0"),
    (lambda videos, masks: videos.__setitem__("../00000", videos.pop("00000")), "unsafe_path", "../00000"),
]


@pytest.mark.parametrize("index", range(len(VISA_DEFECTS)))
def test_a_defect_of_visas_files(tmp_path: Path, index: int):
    edit, check, item = VISA_DEFECTS[index]
    root, videos, masks = make_lvvis(tmp_path), lvvis_videos(), lvvis_masks()
    edit(videos, masks)
    write_json(root / "train" / "meta_expressions.json", {"videos": videos})
    write_json(root / "train" / "mask_dict.json", masks)
    found, rows = findings(open_lvvis(root), "train")
    assert found == [(check, item)] and [row["video_id"] for row in rows] == ["00003"] * 11


# --- defects of the original release ---------------------------------------------------------------------------------
def put(*steps: Any, value: Any) -> Callable[[dict], None]:
    def edit(content: dict) -> None:
        holder: Any = content
        for step in steps[:-1]:
            holder = holder[step]
        holder[steps[-1]] = value

    return edit


def files(*names: str) -> Callable[[dict], None]:
    return put("videos", 1, "file_names", value=list(names))


# The second video, the third annotation and its category, alone in it.
VIDEO, DOG = "videos, entry 1", "annotations, entry 2"
LOST = ("unknown_id", DOG)
GOOD = [f"00000/{name}.jpg" for name in FIVE]
RELEASE_DEFECTS = [
    (put("videos", 1, value=7), [("bad_entry", VIDEO), LOST]),
    (put("videos", 1, "id", value="7"), [("bad_entry", VIDEO), LOST]),
    (put("videos", 1, "id", value=True), [("bad_entry", VIDEO), LOST]),
    (put("videos", 1, "height", value=None), [("bad_entry", VIDEO), LOST]),
    (put("videos", 1, "width", value=0), [("bad_entry", VIDEO), LOST]),
    (put("videos", 1, "file_names", value="00000"), [("bad_entry", VIDEO), LOST]),
    (files(), [("bad_entry", VIDEO), LOST]),
    (files("00000.jpg"), [("bad_entry", VIDEO), LOST]),
    (files("00000/00000"), [("bad_entry", VIDEO), LOST]),
    (files("00000/00000.exe"), [("bad_entry", VIDEO), LOST]),
    (files("00000/.jpg"), [("bad_entry", VIDEO), LOST]),
    (files("\\00000.jpg"), [("bad_entry", VIDEO), LOST]),
    (files(*GOOD[:4], "00001/00004.jpg"), [("bad_entry", VIDEO), LOST]),
    (put("videos", 1, "id", value=101), [("duplicate", "00000"), LOST]),
    (files(*(f"x/00003/{name}.jpg" for name in FIVE)), [("duplicate", "00003"), LOST]),
    # Names that lead out are refused where the files are looked for.
    (files(*(f"..\\..\\..\\{name}.jpg" for name in FIVE)), [("unsafe_path", "..")]),
    (files(*reversed(GOOD)), [("unsorted_frames", "00000")]),
    (files(*GOOD[:4], "00000/00009.jpg"), [("missing_frame", "00000")]),
    (files(*GOOD[:4]), [("mask_count", "00000, annotation 40")]),
    (files(*GOOD[:4], GOOD[3]), [("duplicate", "00000")]),
    (put("videos", 1, "height", value=33), [("size_mismatch", "00000")]),
    (put("annotations", 2, value=None), [("bad_entry", DOG)]),
    (put("annotations", 2, "id", value=4.0), [("bad_entry", DOG)]),
    (put("annotations", 2, "id", value=2**70), [("bad_entry", DOG)]),
    (put("annotations", 2, "id", value=12), [("duplicate", DOG)]),
    (put("annotations", 2, "video_id", value=9), [("unknown_id", DOG)]),
    (put("annotations", 2, "category_id", value=4), [("unknown_id", DOG)]),
    (put("annotations", 2, "category_id", value=[3]), [("bad_entry", DOG)]),
    (put("annotations", 2, "segmentations", value=None), [("unknown_id", "00000, annotation 40")]),
    (put("annotations", 2, "segmentations", value=[None]), [("mask_count", "00000, annotation 40")]),
    (put("annotations", 2, "segmentations", 1, value=[[1, 2, 3]]), [("bad_mask", "00000, annotation 40")]),
    (put("annotations", 2, "segmentations", 1, value=[7]), [("bad_mask", "00000, annotation 40")]),
    (put("annotations", 2, "segmentations", 1, value="h0"), [("bad_mask", "00000, annotation 40, frame 1")]),
    (
        put("annotations", 2, "segmentations", 1, value={"size": [4, 6], "counts": [24]}),
        [("mask_size", "00000, annotation 40, frame 1")],
    ),
]


@pytest.mark.parametrize("index", range(len(RELEASE_DEFECTS)))
def test_a_defect_of_the_release(tmp_path: Path, index: int):
    edit, expected = RELEASE_DEFECTS[index]
    root, content = make_lvvis(tmp_path, "original"), lvvis_instances()
    edit(content)
    write_json(root / "train_instances.json", content)
    found, rows = findings(open_lvvis(root), "train")
    assert found == expected
    assert [(row["video_id"], row["annotation_ids"]) for row in rows] == [
        ("00003", ids) for ids in ([12, 13], *([number] for number in range(14, 24)))
    ]
    with pytest.raises(DataError, match=rf"\[{expected[0][0]}\]"):
        list(load("lv-vis", root, split="train", streaming=True, cache_dir=str(tmp_path / "cache")))


@pytest.mark.parametrize(
    ("entry", "check"),
    [
        ({"id": 900, "name": "other"}, "duplicate"),
        ({"id": "900", "name": "other"}, "bad_entry"),
        ({"id": 5, "name": " "}, "bad_entry"),
        (None, "bad_entry"),
    ],
)
def test_defects_of_categories(tmp_path: Path, entry: Any, check: str):
    root, content = make_lvvis(tmp_path, "original"), lvvis_instances()
    content["categories"].append(entry)
    write_json(root / "train_instances.json", content)
    found, rows = findings(open_lvvis(root), "train")
    assert found == [(check, "categories, entry 11")]
    assert (len(rows), rows[0]["expression"]) == (12, "sports car")


def test_one_bad_instance_leaves_out_the_whole_category(tmp_path: Path):
    """A target without one of its instances would be wrong. The ids of the others stay as they were."""
    root, content = make_lvvis(tmp_path, "original"), lvvis_instances()
    content["annotations"][1]["segmentations"][0] = [[0, 0]]
    write_json(root / "train_instances.json", content)
    found, rows = findings(open_lvvis(root), "train")
    assert found == [("bad_mask", "00003, annotation 13")]
    assert [(row["expression_id"], row["object_ids"]) for row in rows[:2]] == [("1", [2]), ("2", [3])]


@pytest.mark.parametrize(
    "raw", ["", "[]", '{"videos": []}', '{"videos": {}, "annotations": [], "categories": []}', "NaN"]
)
def test_files_that_are_something_else(tmp_path: Path, raw: str):
    root = make_lvvis(tmp_path, "original")
    (root / "train_instances.json").write_text(raw, encoding="utf-8")
    with pytest.raises(DataError, match="train_instances.json"):
        rows_of(open_lvvis(root), "train")


@pytest.mark.parametrize("form", FORMS)
def test_links_out_of_the_root(tmp_path: Path, form: str):
    root = make_lvvis(tmp_path / "lvvis", form)
    frame = root / "train" / "JPEGImages" / "00000" / "00001.jpg"
    frame.rename(tmp_path / "elsewhere.jpg")
    frame.symlink_to(tmp_path / "elsewhere.jpg")
    found, rows = findings(open_lvvis(root), "train")
    assert (found, len(rows)) == ([("unsafe_path", "00000")], 11)
    assert len(rows_of(open_lvvis(root, follow_links=True), "train")) == 12


@pytest.mark.parametrize(
    ("form", "name"),
    [("visa", "train/mask_dict.json"), ("visa", "train/meta_expressions.json"), ("original", "train_instances.json")],
)
def test_annotations_that_are_links_out_of_the_root(tmp_path: Path, form: str, name: str):
    root = make_lvvis(tmp_path / "lvvis", form)
    moved = (root / name).rename(tmp_path / "elsewhere.json")
    (root / name).symlink_to(moved)
    with pytest.raises(DataError, match="link out of the data root"):
        open_lvvis(root)
    assert len(rows_of(open_lvvis(root, follow_links=True), "train")) == 12


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_mutated_files_end_in_rows_or_defects(
    tmp_path_factory: pytest.TempPathFactory, form: str, data: st.DataObject
):
    root = tmp_path_factory.getbasetemp() / f"lvvis-fuzz-{form}"
    if not root.exists():
        make_lvvis(root, form)
    if form == "original":
        write_json(root / "train_instances.json", mutated(lvvis_instances(), data.draw))
    else:
        which = data.draw(st.booleans())
        videos, masks = {"videos": lvvis_videos()}, lvvis_masks()
        write_json(root / "train" / "meta_expressions.json", mutated(videos, data.draw) if which else videos)
        write_json(root / "train" / "mask_dict.json", masks if which else mutated(masks, data.draw))
    try:
        rows = findings(open_lvvis(root), "train")[1]
    except DataError:
        return
    assert len({(row["video_id"], row["expression_id"]) for row in rows}) == len(rows)
    for row in rows:
        assert json.dumps(row) and "_" not in row["expression"]
        assert decode_masks(row).shape == (len(row["frame_paths"]), *SIZE)
        assert all(Path(path).is_file() for path in row["frame_paths"])


def test_the_page(tmp_path: Path):
    page = (Path(__file__).parent.parent / "docs" / "data" / "lv-vis.md").read_text(encoding="utf-8")
    shown = json.loads(page.split("```json\n")[1].split("```")[0])
    root = make_lvvis(tmp_path / "lvvis")
    row = rows_of(open_lvvis(root), "train")[0]
    assert json.loads(json.dumps(row).replace(str(root), "/data/lvvis")) == shown
    assert f"**Licence:** {CATALOG['lv-vis'].licence}" in page
