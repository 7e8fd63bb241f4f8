"""ADE20K, COCO-Stuff, PACO-LVIS and PASCAL-Part: the traps of each layout, against rows written by hand."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from semantic_fixtures import (
    HEIGHT,
    WIDTH,
    ade20k_labels,
    box,
    make_ade20k,
    make_coco_stuff,
    make_paco,
    make_pascal,
    paco_content,
    pascal_content,
    runs,
    text_rle,
    write_image,
    write_json,
    write_labels,
)

from virst_hf.data.ade20k import ADE20K
from virst_hf.data.builder import VirstDatasetBuilder, raise_problem
from virst_hf.data.class_names import ADE20K_NAMES, COCO_STUFF_NAMES
from virst_hf.data.coco_parts import part_text, split_part_name
from virst_hf.data.coco_stuff import COCOStuff
from virst_hf.data.paco_lvis import PACOLVIS
from virst_hf.data.pascal_part import PASCALPart
from virst_hf.data.records import FIELDS, decode_masks
from virst_hf.data.refer import segmentation_to_rle
from virst_hf.errors import DataError
from virst_hf.rle import decode_rle


def rows_of(builder: VirstDatasetBuilder, split: str) -> list[dict]:
    units = builder.units(builder.root, split, raise_problem)
    return list(builder.rows(builder.root, split, units, raise_problem))


def findings_of(builder: VirstDatasetBuilder, split: str) -> tuple[list[dict], list[tuple[str, str]]]:
    """Rows and findings as the doctor gathers them: nothing is raised."""
    found: list[tuple[str, str]] = []

    def report(check: str, item: str, message: str) -> None:
        assert message
        found.append((check, item))

    units = builder.units(builder.root, split, report)
    return list(builder.rows(builder.root, split, units, report)), found


def brief(rows: list[dict]) -> list[tuple]:
    return [(row["video_id"], row["expression_id"], row["expression"], row["object_ids"]) for row in rows]


def same_mask(row: dict, expected: np.ndarray, field: str = "masks") -> bool:
    return np.array_equal(decode_masks(row, field)[0], expected)


# --- names of classes ------------------------------------------------------------------------------------------------
def test_names_of_classes():
    assert len(ADE20K_NAMES) == len(set(ADE20K_NAMES)) == 150
    assert len(COCO_STUFF_NAMES) == len(set(COCO_STUFF_NAMES)) == 182
    assert (ADE20K_NAMES[0], ADE20K_NAMES[12], ADE20K_NAMES[89], ADE20K_NAMES[149]) == (
        "wall",
        "person",
        "television receiver",
        "flag",
    )
    # The value of a class is its id in COCO minus 1: 1 person, 18 dog, 90 toothbrush, 171 wall-brick, 182 wood.
    ids = {"person": 1, "dog": 18, "toothbrush": 90, "banner": 92, "wall-brick": 171, "wood": 182}
    assert {name: COCO_STUFF_NAMES.index(name) + 1 for name in ids} == ids


# --- ADE20K ----------------------------------------------------------------------------------------------------------
def test_ade20k_row_by_hand(tmp_path: Path):
    rows = rows_of(ADE20K(data_dir=make_ade20k(tmp_path / "ade20k")), "training")
    # By columns: 2 pixels, then 4 of the wall, 4 others, and so on; after the fourth wall 2 and the other 8 columns.
    wall = text_rle(box(2, 0, 6, 4))
    assert runs(box(2, 0, 6, 4)) == [2, 4, 4, 4, 4, 4, 4, 4, 66]
    assert rows[0] == {
        "video_id": "ADE_train_00000001",
        "expression_id": "0",
        "expression": "wall",
        "answer": None,
        "frame_names": ["ADE_train_00000001"],
        "frame_paths": [str(tmp_path / "ade20k/images/training/ADE_train_00000001.jpg")],
        "video_path": None,
        "height": 8,
        "width": 12,
        "object_ids": [0],
        "annotation_ids": [],
        "masks": [wall],
        "ignore_masks": [text_rle(np.isin(ade20k_labels()["ADE_train_00000001"], (0, 255)))],
        "category": "semantic_segmentation",
        "expression_type": "category",
        "source": "ade20k",
        "split": "training",
    }
    assert list(rows[0]) == list(FIELDS)
    assert brief(rows) == [
        ("ADE_train_00000001", "0", "wall", [0]),
        ("ADE_train_00000001", "149", "flag", [149]),
        ("ADE_train_00000002", "1", "building", [1]),
    ]
    assert same_mask(rows[0], box(2, 0, 6, 4)) and same_mask(rows[1], box(2, 4, 6, 8))
    # 0 and 255 are both unlabelled; neither becomes class 254 or 149 by overflow.
    unlabelled = np.isin(ade20k_labels()["ADE_train_00000001"], (0, 255))
    assert same_mask(rows[0], unlabelled, "ignore_masks") and same_mask(rows[1], unlabelled, "ignore_masks")
    assert rows[2]["ignore_masks"] is None and same_mask(rows[2], box(0, 0, 8, 12))


@pytest.mark.parametrize(
    "inner", [".", "ade20k", "ADEChallengeData2016", "sem_seg/ade20k", "sem_seg/ade20k/ADEChallengeData2016"]
)
def test_ade20k_layouts(tmp_path: Path, inner: str):
    make_ade20k(tmp_path / inner)
    builder = ADE20K(data_dir=tmp_path)
    assert builder.find_splits(tmp_path) == ["training", "validation"]
    assert brief(rows_of(builder, "validation")) == [("ADE_val_00000001", "12", "person", [12])]
    assert builder.annotation_paths(tmp_path, "training") == [tmp_path / inner / "annotations/training"]


def test_ade20k_defects_are_reported_and_left_out(tmp_path: Path):
    make_ade20k(tmp_path)
    images, maps = tmp_path / "images/training", tmp_path / "annotations/training"
    for name in ("no_map", "wrong_size", "full_ade", "colours", "broken_map"):
        write_image(images / f"{name}.jpg")
    write_labels(maps / "no_image.png", box(0, 0, 1, 1))
    write_labels(maps / "wrong_size.png", np.ones((HEIGHT, WIDTH + 1)))
    write_labels(maps / "full_ade.png", np.full((HEIGHT, WIDTH), 151))
    write_image(maps / "colours.png")
    (maps / "broken_map.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    (images / "broken_image.jpg").write_bytes(b"\xff\xd8broken")
    write_labels(maps / "broken_image.png", box(0, 0, 1, 1))
    write_image(images / "twice.jpg")
    write_image(images / "twice.jpeg")
    write_labels(maps / "twice.png", box(0, 0, 8, 12))
    (maps / "._ADE_train_00000001.png").write_bytes(b"macOS leaves these")
    rows, found = findings_of(ADE20K(data_dir=tmp_path), "training")
    assert sorted(found) == [
        ("bad_entry", "full_ade"),
        ("bad_mask", "broken_map"),
        ("bad_mask", "colours"),
        ("duplicate", "twice"),
        ("mask_size", "wrong_size"),
        ("missing_file", "no_image.jpg"),
        ("missing_file", "no_map"),
        ("undecodable", "broken_image.jpg"),
    ]
    assert [row["video_id"] for row in rows] == ["ADE_train_00000001"] * 2 + ["ADE_train_00000002", "twice"]
    with pytest.raises(DataError, match="twice"):
        rows_of(ADE20K(data_dir=tmp_path), "training")


def test_ade20k_units_decode_nothing(tmp_path: Path):
    make_ade20k(tmp_path)
    for path in (tmp_path / "annotations/training").iterdir():
        path.write_bytes(b"")
    builder = ADE20K(data_dir=tmp_path)
    assert builder.units(tmp_path, "training", raise_problem) == ["ADE_train_00000001", "ADE_train_00000002"]
    with pytest.raises(DataError, match="not an image that can be read"):
        rows_of(builder, "training")


def test_without_the_folder_of_pictures(tmp_path: Path):
    make_ade20k(tmp_path)
    shutil.rmtree(tmp_path / "images")
    rows, found = findings_of(ADE20K(data_dir=tmp_path), "validation")
    assert rows == [] and found == [("missing_file", "images/validation"), ("missing_file", "ADE_val_00000001.jpg")]


def test_a_linked_label_map_must_be_allowed(tmp_path: Path):
    make_ade20k(tmp_path / "root")
    path = tmp_path / "root/annotations/training/ADE_train_00000001.png"
    path.rename(tmp_path / "outside.png")
    path.symlink_to(tmp_path / "outside.png")
    rows, found = findings_of(ADE20K(data_dir=tmp_path / "root"), "training")
    assert ("unsafe_path", "annotations/training") in found
    assert [row["video_id"] for row in rows] == ["ADE_train_00000002"]
    assert len(rows_of(ADE20K(data_dir=tmp_path / "root", follow_links=True), "training")) == 3


# --- COCO-Stuff ------------------------------------------------------------------------------------------------------
def test_coco_stuff_keeps_person_and_leaves_out_names_with_a_dash(tmp_path: Path):
    rows = rows_of(COCOStuff(data_dir=make_coco_stuff(tmp_path)), "train2017")
    assert brief(rows) == [("000000000009", "0", "person", [0]), ("000000000009", "181", "wood", [181])]
    assert same_mask(rows[0], box(0, 0, 4, 6)) and same_mask(rows[1], box(0, 6, 4, 12))
    assert all(same_mask(row, box(4, 0, 8, 12), "ignore_masks") for row in rows)
    assert rows[0]["frame_paths"] == [str(tmp_path / "coco/train2017/000000000009.jpg")]
    assert (rows[0]["category"], rows[0]["expression_type"], rows[0]["source"], rows[0]["split"]) == (
        "semantic_segmentation",
        "category",
        "coco-stuff",
        "train2017",
    )


@pytest.mark.parametrize(
    ("maps", "images", "root"),
    [
        ("cocostuff", "coco", "."),
        ("sem_seg/cocostuff", "sem_seg/coco", "."),
        ("stuffthingmaps_trainval2017", "images", "."),
        ("stuffthingmaps_trainval2017", "", "."),
        ("cocostuff", "coco", "cocostuff"),
    ],
)
def test_coco_stuff_layouts_below_a_root_named_cocostuff(tmp_path: Path, maps: str, images: str, root: str):
    """LISA replaces "cocostuff" by "coco" in the whole path, which breaks under such a root."""
    top = make_coco_stuff(tmp_path / "my-cocostuff-copy", maps, images)
    builder = COCOStuff(data_dir=top / root)
    assert builder.find_splits(builder.root) == ["train2017", "val2017"]
    (row,) = rows_of(builder, "val2017")
    assert Path(row["frame_paths"][0]).samefile(top / images / "val2017/000000000139.jpg")
    assert row["expression"] == "cat"


def test_coco_stuff_with_pictures_elsewhere(tmp_path: Path):
    make_coco_stuff(tmp_path, images="../elsewhere")
    with pytest.raises(DataError, match="image_root"):
        rows_of(COCOStuff(data_dir=tmp_path), "train2017")
    builder = COCOStuff(data_dir=tmp_path, image_root=str(tmp_path.parent / "elsewhere"))
    assert len(rows_of(builder, "train2017")) == 2
    shutil.rmtree(tmp_path.parent / "elsewhere")


def test_coco_stuff_skips_the_maps_of_mmsegmentation_and_refuses_unknown_values(tmp_path: Path):
    make_coco_stuff(tmp_path)
    write_labels(tmp_path / "cocostuff/train2017/000000000009_labelTrainIds.png", box(0, 0, 1, 1))
    assert len(rows_of(COCOStuff(data_dir=tmp_path), "train2017")) == 2
    write_labels(tmp_path / "cocostuff/train2017/000000000009.png", np.full((HEIGHT, WIDTH), 182))
    with pytest.raises(DataError, match="has the values 182; classes go up to 181"):
        rows_of(COCOStuff(data_dir=tmp_path), "train2017")


def test_coco_pictures_alone_are_not_coco_stuff(tmp_path: Path):
    write_image(tmp_path / "train2017/000000000009.jpg")
    with pytest.raises(DataError, match="cocostuff/train2017"):
        COCOStuff(data_dir=tmp_path)


# --- texts and masks of parts ----------------------------------------------------------------------------------------
def test_names_of_parts():
    assert split_part_name("car_(automobile):antenna") == ("car", "antenna")
    assert split_part_name("a_(b):c_(d)") == ("a", "c")
    assert split_part_name("bus:license plate") == ("bus", "license plate")
    assert split_part_name("trash_can") == ("trash_can", "")
    assert [split_part_name(name) for name in ("a:b:c", "a:", ":b", "_(x)", "")] == [None] * 5


def test_both_wordings_of_a_part_occur_and_stay():
    texts = [part_text(str(image), 3, ("dog", "left ear")) for image in range(1000)]
    assert set(texts) == {"dog left ear", "the left ear of the dog"}
    assert 400 < texts.count("dog left ear") < 600
    assert texts == [part_text(str(image), 3, ("dog", "left ear")) for image in range(1000)]
    assert part_text("1", 3, ("dog", "")) == "dog"


def test_every_form_of_a_segmentation():
    target = box(2, 2, 6, 6)
    forms = [
        text_rle(target),
        {"size": [HEIGHT, WIDTH], "counts": runs(target)},
        [[2, 2, 6, 2, 6, 6, 2, 6]],
        [text_rle(box(2, 2, 4, 6)), {"size": [HEIGHT, WIDTH], "counts": runs(box(3, 2, 6, 6))}],
    ]
    for form in forms:
        assert np.array_equal(decode_rle(segmentation_to_rle(form, (HEIGHT, WIDTH))), target)
    assert segmentation_to_rle([], (HEIGHT, WIDTH)) is None
    for bad in (
        None,
        3,
        "h0",
        {},
        [3],
        [[1, 2]],
        [{}],
        [[0, 0, 1, 1, 2, "2"]],
        [text_rle(target), [1, 2, 3, 4, 5, 6]],
    ):
        with pytest.raises(DataError):
            segmentation_to_rle(bad, (HEIGHT, WIDTH))


# --- PACO-LVIS -------------------------------------------------------------------------------------------------------
def test_paco_unites_all_annotations_of_a_category(tmp_path: Path):
    rows = rows_of(PACOLVIS(data_dir=make_paco(tmp_path)), "train")
    antenna = part_text("9", 2455, ("car", "antenna"))
    assert antenna in ("car antenna", "the antenna of the car")
    assert brief(rows) == [
        ("9", "207", "car", [207]),
        ("9", "2455", antenna, [2455]),
        ("25", "1093", "trash_can", [1093]),
    ]
    assert [row["annotation_ids"] for row in rows] == [[0, 7], [1, 8], [9]]
    assert same_mask(rows[0], box(1, 1, 4, 5) | box(3, 4, 8, 9))
    assert same_mask(rows[1], box(1, 1, 2, 2) | box(3, 4, 4, 5))
    assert same_mask(rows[2], box(2, 2, 6, 6) | box(4, 4, 8, 8))
    assert rows[0]["frame_paths"] == [str(tmp_path / "coco/train2017/000000000009.jpg")]
    assert rows[0]["frame_names"] == ["000000000009"] and rows[0]["expression_type"] == "category"


@pytest.mark.parametrize(
    ("paco", "images", "root"),
    [
        ("vlpart/paco/annotations", "coco", "."),
        ("sem_seg/vlpart/paco/annotations", "sem_seg/coco", "."),
        ("paco/annotations", "paco/coco", "."),
        ("paco", "coco", "."),
        ("vlpart/paco/annotations", "coco", "vlpart/paco"),
        ("vlpart/paco/annotations", "vlpart/paco/coco", "vlpart/paco"),
    ],
)
def test_paco_layouts(tmp_path: Path, paco: str, images: str, root: str):
    make_paco(tmp_path, paco, images)
    builder = PACOLVIS(data_dir=tmp_path / root)
    assert builder.find_splits(builder.root) == ["train"]
    rows = rows_of(builder, "train")
    assert len(rows) == 3
    assert Path(rows[2]["frame_paths"][0]).samefile(tmp_path / images / "train2017/000000000025.jpg")


def test_paco_categories_that_differ_in_brackets_only_are_one_target(tmp_path: Path):
    make_paco(tmp_path)
    content = paco_content()
    content["categories"][2]["name"] = "car_(railway)"
    content["annotations"][4]["image_id"] = 9
    write_json(tmp_path / "vlpart/paco/annotations/paco_lvis_v1_train.json", content)
    rows = rows_of(PACOLVIS(data_dir=tmp_path), "train")
    assert [(row["expression"], row["object_ids"], row["annotation_ids"]) for row in rows[:1]] == [
        ("car", [207, 1093], [0, 7, 9])
    ]
    expected = box(1, 1, 4, 5) | box(3, 4, 8, 9) | box(2, 2, 6, 6) | box(4, 4, 8, 8)
    assert len(rows) == 2 and same_mask(rows[0], expected)


DEFECTS = {
    "image id": (lambda c: c["images"][0].update(id="9"), "bad_entry"),
    "image twice": (lambda c: c["images"].append(dict(c["images"][0])), "duplicate"),
    "no image": (lambda c: c["images"].__setitem__(0, None), "bad_entry"),
    "category twice": (lambda c: c["categories"].append({"id": 207, "name": "cart"}), "duplicate"),
    "category id": (lambda c: c["categories"][0].update(id=True), "bad_entry"),
    "category name": (lambda c: c["categories"][0].update(name="a:b:c"), "bad_entry"),
    "unknown category": (lambda c: c["annotations"][0].update(category_id=5), "unknown_id"),
    "unknown image": (lambda c: c["annotations"][0].update(image_id=5), "unknown_id"),
    "annotation": (lambda c: c["annotations"].append([]), "bad_entry"),
    "annotation twice": (lambda c: c["annotations"].append(dict(c["annotations"][0])), "duplicate"),
    "unsafe path": (lambda c: c["images"][0].update(file_name="../../etc/passwd"), "unsafe_path"),
    "absolute path": (lambda c: c["images"][0].update(file_name="/etc/passwd"), "unsafe_path"),
    "long path": (lambda c: c["images"][0].update(file_name="a" * 5000), "unsafe_path"),
    "missing file": (lambda c: c["images"][0].update(file_name="train2017/x.jpg"), "missing_file"),
    "a folder": (lambda c: c["images"][0].update(file_name="train2017"), "missing_file"),
    "size": (lambda c: c["images"][0].update(height=9), "size_mismatch"),
    "mask size": (lambda c: c["annotations"][0]["segmentation"].update(size=[9, 12]), "mask_size"),
    "mask": (lambda c: c["annotations"][0]["segmentation"].update(counts="zz"), "bad_mask"),
    "no mask": (lambda c: c["annotations"][0].pop("segmentation"), "bad_mask"),
    "far polygon": (lambda c: c["annotations"][4].update(segmentation=[[0, 0, 1e9, 0, 0, 1]]), "bad_mask"),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_paco_defects(tmp_path: Path, name: str):
    make_paco(tmp_path)
    content = paco_content()
    damage, check = DEFECTS[name]
    damage(content)
    write_json(tmp_path / "vlpart/paco/annotations/paco_lvis_v1_train.json", content)
    builder = PACOLVIS(data_dir=tmp_path)
    rows, found = findings_of(builder, "train")
    assert check in {kind for kind, _ in found}
    assert rows and all(len(row["masks"]) == 1 for row in rows)
    with pytest.raises(DataError, match=rf"\[{found[0][0]}\]"):
        rows_of(builder, "train")


@pytest.mark.parametrize("content", [[], {}, {"images": []}, {"images": {}, "annotations": [], "categories": []}, 3])
def test_paco_other_files(tmp_path: Path, content: object):
    make_paco(tmp_path)
    write_json(tmp_path / "vlpart/paco/annotations/paco_lvis_v1_train.json", content)
    with pytest.raises(DataError, match="must hold the lists"):
        rows_of(PACOLVIS(data_dir=tmp_path), "train")


def test_linked_folder_of_pictures_must_be_allowed(tmp_path: Path):
    root = make_paco(tmp_path / "root", images="../outside/coco")
    (root / "coco").symlink_to(tmp_path / "outside/coco")
    with pytest.raises(DataError, match="follow_links"):
        rows_of(PACOLVIS(data_dir=root), "train")
    assert len(rows_of(PACOLVIS(data_dir=root, follow_links=True), "train")) == 3


# --- PASCAL-Part -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("inner", [".", "pascal_part", "vlpart/pascal_part", "sem_seg/vlpart/pascal_part"])
def test_pascal_part(tmp_path: Path, inner: str):
    make_pascal(tmp_path / inner)
    rows = rows_of(PASCALPart(data_dir=tmp_path), "train")
    pot, plate = (
        part_text("2008000002", i, n) for i, n in ((60, ("potted plant", "pot")), (61, ("bus", "license plate")))
    )
    assert brief(rows) == [("2008000002", "60", pot, [60]), ("2008000002", "61", plate, [61])]
    # Annotation ids start at 0: the first one is there.
    assert [row["annotation_ids"] for row in rows] == [[0, 1], [2]]
    assert same_mask(rows[0], box(0, 0, 2, 2) | box(5, 5, 8, 8)) and same_mask(rows[1], box(2, 2, 4, 4))
    images = tmp_path / inner / "VOCdevkit/VOC2010/JPEGImages/2008_000002.jpg"
    assert rows[0]["frame_paths"] == [str(images)] and rows[0]["frame_names"] == ["2008_000002"]
    assert rows[0]["source"] == "pascal-part"


def test_pascal_pictures_elsewhere(tmp_path: Path):
    write_json(tmp_path / "train.json", pascal_content())
    write_image(tmp_path / "voc/2008_000002.jpg")
    with pytest.raises(DataError, match="no picture .*VOCdevkit"):
        rows_of(PASCALPart(data_dir=tmp_path), "train")
    assert len(rows_of(PASCALPart(data_dir=tmp_path, image_root=str(tmp_path / "voc")), "train")) == 2


# --- through datasets ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("builder", "make", "split", "count"),
    [
        (ADE20K, make_ade20k, "training", 3),
        (COCOStuff, make_coco_stuff, "train2017", 2),
        (PACOLVIS, make_paco, "train", 3),
        (PASCALPart, make_pascal, "train", 2),
    ],
)
def test_prepared_and_streaming_rows_are_equal(tmp_path: Path, builder: type, make, split: str, count: int):
    make(tmp_path / "data")
    direct = rows_of(builder(data_dir=tmp_path / "data"), split)
    made = builder(data_dir=tmp_path / "data", cache_dir=str(tmp_path / "cache"))
    made.download_and_prepare()
    assert list(made.as_dataset(split=split)) == direct and len(direct) == count
    assert list(builder(data_dir=tmp_path / "data").as_streaming_dataset(split=split)) == direct
    assert json.loads(json.dumps(direct)) == direct


def test_a_changed_label_map_is_noticed(tmp_path: Path):
    make_ade20k(tmp_path / "data")
    made = ADE20K(data_dir=tmp_path / "data", cache_dir=str(tmp_path / "cache"), splits=("validation",))
    made.download_and_prepare()
    assert len(made.as_dataset(split="validation")) == 1
    path = tmp_path / "data/annotations/validation/ADE_val_00000001.png"
    Image.fromarray(np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH) // 10).save(path)
    again = ADE20K(data_dir=tmp_path / "data", cache_dir=str(tmp_path / "cache"), splits=("validation",))
    again.download_and_prepare()
    assert len(again.as_dataset(split="validation")) == 9


@pytest.mark.parametrize(
    ("builder", "make", "split", "index"),
    [
        (ADE20K, lambda root: make_ade20k(root / "ade20k"), "training", 0),
        (COCOStuff, make_coco_stuff, "train2017", 0),
        (PACOLVIS, make_paco, "train", 1),
        (PASCALPart, lambda root: make_pascal(root / "vlpart/pascal_part"), "train", 0),
    ],
)
def test_the_page_shows_a_row_that_the_loader_gives(tmp_path: Path, builder: type, make, split: str, index: int):
    make(tmp_path)
    page = (Path(__file__).parent.parent / "docs" / "data" / f"{builder.NAME}.md").read_text(encoding="utf-8")
    shown = json.loads(page.split("```json\n")[1].split("```")[0])
    row = rows_of(builder(data_dir=tmp_path), split)[index]
    assert json.loads(json.dumps(row).replace(str(tmp_path), "/data")) == shown
    assert "**Licence:**" in page and "## The tree" in page
