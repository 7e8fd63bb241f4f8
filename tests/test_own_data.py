"""Own data: the layout of MeViS and the flat JSON, with frames, video files, RLE and folders of masks."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from virst_hf.data import decode_masks, load
from virst_hf.data.own_data import OwnData
from virst_hf.errors import DataError
from virst_hf.rendering import VideoWriter
from virst_hf.rle import encode_rle

SIZE = (32, 48)
LENGTH = 4


def boxes(label: int = 1) -> np.ndarray:
    """A box of value `label` that moves right, absent in frame 2."""
    masks = np.zeros((LENGTH, *SIZE), dtype=np.uint8)
    for frame in (0, 1, 3):
        masks[frame, 10:20, 5 + 6 * frame : 15 + 6 * frame] = label
    return masks


def rles(masks: np.ndarray) -> list[dict | None]:
    return [encode_rle(mask) if mask.any() else None for mask in masks > 0]


def write_frames(folder: Path) -> None:
    folder.mkdir(parents=True)
    for frame in range(LENGTH):
        Image.new("RGB", SIZE[::-1], (20 * frame, 90, 200)).save(folder / f"{frame:05d}.jpg")


@pytest.fixture
def flat(tmp_path) -> Path:
    """Two videos, one of frames and one mp4, with every form of masks."""
    write_frames(tmp_path / "frames" / "b")
    folder = tmp_path / "masks" / "b"
    folder.mkdir(parents=True)
    for frame, labels in enumerate(boxes(7) + np.roll(boxes(2), 13, axis=1)):
        Image.fromarray(labels).save(folder / f"{frame:05d}.png")
    (tmp_path / "clips").mkdir()
    with VideoWriter(tmp_path / "clips" / "a.mp4", *SIZE) as writer:
        for frame in range(LENGTH):
            writer.write(np.full((*SIZE, 3), 40 * frame, dtype=np.uint8))
    items = [
        {"video": "frames/b", "expression": "the box", "mask_folder": "masks/b", "object_ids": [7]},
        {"video": "frames/b", "expression": "both boxes", "mask_folder": "masks/b", "type": "plural"},
        {"video": "frames/b", "expression": "a cat", "masks": [None] * LENGTH, "expression_id": "cat"},
        {"video": "clips/a.mp4", "expression": "the box", "masks": rles(boxes())},
        {"video": "clips/a.mp4", "expression": "what moves?"},
    ]
    (tmp_path / "valid.json").write_text(json.dumps(items))
    return tmp_path


@pytest.mark.parametrize("as_file", [False, True])
def test_flat_json(flat, tmp_path, as_file):
    rows = list(load("own", flat / "valid.json" if as_file else flat, "valid", streaming=True))
    assert [(row["video_id"], row["expression_id"], row["expression_type"]) for row in rows] == [
        ("frames/b", "0", "referring"),
        ("frames/b", "1", "plural"),
        ("frames/b", "cat", "no_target"),
        ("clips/a.mp4", "0", "referring"),
        ("clips/a.mp4", "1", "referring"),
    ]
    assert (decode_masks(rows[0]) == (boxes() > 0)).all()
    assert decode_masks(rows[1]).sum() == 2 * boxes().sum()
    assert rows[0]["masks"][2] is None and rows[0]["object_ids"] == [7]
    assert rows[2]["masks"] == [None] * LENGTH and rows[2]["object_ids"] == []
    assert rows[3]["masks"] == rles(boxes()) and rows[3]["object_ids"] == [1]
    assert rows[3]["frame_paths"] == [] and rows[3]["video_path"] == str(flat / "clips" / "a.mp4")
    assert rows[3]["frame_names"] == ["00000", "00001", "00002", "00003"]
    assert rows[4]["masks"] is None
    assert rows[0]["frame_paths"] == [str(flat / "frames" / "b" / f"0000{frame}.jpg") for frame in range(LENGTH)]
    assert all((row["height"], row["width"]) == SIZE and row["source"] == "own" for row in rows)


@pytest.mark.parametrize("split", [None, "holdout"])
def test_mevis_layout(tmp_path, split):
    base = tmp_path if split is None else tmp_path / split
    write_frames(base / "JPEGImages" / "v")
    entry = {"exp": "the box", "obj_id": [0], "anno_id": [5], "type": "motion"}
    frames = [f"{frame:05d}" for frame in range(LENGTH)]
    videos = {"v": {"expressions": {"0": entry}, "frames": frames, "vid_id": 0}}
    (base / "meta_expressions.json").write_text(json.dumps({"videos": videos}))
    (base / "mask_dict.json").write_text(json.dumps({"5": rles(boxes())}))
    (row,) = load("own", tmp_path, split or "train", streaming=True)
    assert (row["masks"], row["expression_type"], row["annotation_ids"]) == (rles(boxes()), "motion", [5])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masks": [None]}, "4 frames, but 1 masks"),
        ({"masks": 3}, "must be a list with an RLE or null"),
        ({"masks": [{"size": [9, 9], "counts": "h0"}] * LENGTH}, "9 x 9"),
        ({"mask_folder": "../elsewhere"}, "could point outside"),
        ({"mask_folder": "frames/b"}, "0 PNG files"),
        ({"video": "/etc"}, "could point outside"),
        ({"video": "frames/none"}, "no file or folder"),
        ({"expression": " "}, 'needs "video" and "expression"'),
        ({"object_ids": "x"}, "object_ids must be"),
        ({"expression_id": 0.5}, "expression_id must be"),
    ],
)
def test_defects_are_named(flat, change, message):
    item = {"video": "frames/b", "expression": "the box", "masks": [None] * LENGTH}
    (flat / "valid.json").write_text(json.dumps([{**item, **change}]))
    with pytest.raises(DataError, match=message):
        list(load("own", flat, "valid", streaming=True))


def test_ids_that_occur_twice(flat):
    item = {"video": "frames/b", "expression": "the box", "masks": [None] * LENGTH, "expression_id": "a"}
    (flat / "valid.json").write_text(json.dumps([item, item]))
    with pytest.raises(DataError, match="occurs once"):
        list(load("own", flat, "valid", streaming=True))


def test_changed_mask_folder_is_noticed(flat):
    before = OwnData(data_dir=flat).hash
    Image.new("L", SIZE[::-1], 1).save(flat / "masks" / "b" / "00000.png")
    assert OwnData(data_dir=flat).hash != before
