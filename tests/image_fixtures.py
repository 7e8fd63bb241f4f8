"""Small trees of RefCOCO, ReasonSeg and LLaVA-Video in the exact layout of their releases."""

import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

# The masks of the 4 x 6 and 8 x 10 pictures below, as rows of pixels.
Rows = list[str]


def picture(path: Path, height: int, width: int, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def drawn(mask: np.ndarray) -> Rows:
    """A mask as text, to be compared with what was written by hand."""
    return ["".join("#" if pixel else "." for pixel in row) for row in mask]


# --- RefCOCO ---------------------------------------------------------------------------------------------------------
def sentence(number: int, text: str) -> dict:
    return {"tokens": text.split(), "raw": text.title(), "sent_id": number, "sent": text}


def refs(splits: tuple[str, ...] = ("train", "val", "testA", "testB")) -> list[dict]:
    """Four references of two pictures; the file names have the suffix of the release, which no file has."""
    return [
        {
            "sent_ids": [0, 1],
            "file_name": "COCO_train2014_000000000009_0.jpg",
            "ann_id": 100,
            "ref_id": 1,
            "image_id": 9,
            "split": splits[0],
            "category_id": 1,
            "sentences": [sentence(0, "the left cup"), sentence(1, "cup")],
        },
        {
            "sent_ids": [2],
            "file_name": "COCO_train2014_000000000009_1.jpg",
            "ann_id": 101,
            "ref_id": 2,
            "image_id": 9,
            "split": splits[0],
            "category_id": 1,
            "sentences": [sentence(2, "the unseen one")],
        },
        {
            "sent_ids": [10],
            "file_name": "COCO_train2014_000000000025_2.jpg",
            "ann_id": 102,
            "ref_id": 3,
            "image_id": 25,
            "split": splits[1],
            "category_id": 2,
            "sentences": [sentence(10, "café table")],
        },
        {
            "sent_ids": [11],
            "file_name": "COCO_train2014_000000000025_3.jpg",
            "ann_id": 103,
            "ref_id": 4,
            "image_id": 25,
            "split": splits[-2] if len(splits) > 3 else splits[-1],
            "category_id": 2,
            "sentences": [sentence(11, "man")],
        },
        *(
            [
                {
                    "sent_ids": [12],
                    "file_name": "COCO_train2014_000000000025_4.jpg",
                    "ann_id": 103,
                    "ref_id": 5,
                    "image_id": 25,
                    "split": splits[3],
                    "category_id": 2,
                    "sentences": [sentence(12, "chair")],
                }
            ]
            if len(splits) > 3
            else []
        ),
    ]


def instances() -> dict:
    """Two polygons that overlap, an empty list, a list of RLE, and one RLE with runs as a list; one not named."""
    common = {"iscrowd": 0, "bbox": [0, 0, 1, 1], "area": 1.0, "category_id": 1}
    polygons = [[1, 1, 4, 1, 4, 3, 1, 3], [3, 2, 6, 2, 6, 4, 3, 4]]
    rles = [{"size": [8, 10], "counts": [0, 8, 72]}, {"size": [8, 10], "counts": [4, 8, 68]}]
    return {
        "info": {},
        "images": [
            {"id": 9, "file_name": "COCO_train2014_000000000009.jpg", "height": 4, "width": 6},
            {"id": 25, "file_name": "COCO_train2014_000000000025.jpg", "height": 8, "width": 10},
        ],
        "annotations": [
            {"id": 100, "image_id": 9, "segmentation": polygons, **common},
            {"id": 101, "image_id": 9, "segmentation": [], **common},
            {"id": 102, "image_id": 25, "segmentation": rles, **common},
            {"id": 103, "image_id": 25, "segmentation": {"size": [8, 10], "counts": [79, 1]}, **common},
            {"id": 104, "image_id": 25, "segmentation": "not used", **common},
        ],
        "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "table"}],
    }


def write_pictures(folder: Path) -> None:
    picture(folder / "COCO_train2014_000000000009.jpg", 4, 6)
    picture(folder / "COCO_train2014_000000000025.jpg", 8, 10)


def write_refs(folder: Path, kind: str, content: list[dict], records: dict, split_by: str = "unc") -> None:
    """`kind` is json, parquet, or p with the protocol of the pickle, as in `p0`."""
    if kind == "parquet":
        write_parquet(folder / "data", content, records)
        return
    write_json(folder / "instances.json", records)
    if kind == "json":
        write_json(folder / f"refs({split_by}).json", content)
    else:
        (folder / f"refs({split_by}).p").write_bytes(pickle.dumps(content, protocol=int(kind[1])))


def write_parquet(folder: Path, content: list[dict], records: dict) -> None:
    """The columns and the files of jxu124/refcoco: one file for each split, COCO records as JSON texts."""
    folder.mkdir(parents=True)
    images = {record["id"]: record for record in records["images"]}
    annotations = {record["id"]: record for record in records["annotations"]}
    names = {"val": "validation", "testA": "test"}
    tables: dict[str, list[dict]] = {}
    for ref in content:
        row = {
            **ref,
            "raw_anns": json.dumps(annotations[ref["ann_id"]]),
            "raw_image_info": json.dumps(images[ref["image_id"]]),
            "bbox": [0.0, 0.0, 1.0, 1.0],
            "image_path": "coco/train2014/" + images[ref["image_id"]]["file_name"],
        }
        tables.setdefault(names.get(ref["split"], ref["split"]), []).append(row)
    for name, rows in tables.items():
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist(rows), folder / f"{name}-00000-of-00001-0123456789abcdef.parquet"
        )


def make_refcoco(root: Path, kind: str = "json", name: str = "refcoco", split_by: str = "unc") -> Path:
    """A tree as LISA has it."""
    splits = ("train", "val", "testA", "testB") if split_by == "unc" else ("train", "val", "test")
    write_refs(root / "refer_seg" / name, kind, refs(splits), instances(), split_by)
    write_pictures(root / "refer_seg" / "images" / "mscoco" / "images" / "train2014")
    return root


# --- ReasonSeg -------------------------------------------------------------------------------------------------------
def box(label: str, left: float, top: float, right: float, bottom: float) -> dict:
    points = [[left, top], [right, top], [right, bottom], [left, bottom]]
    return {"label": label, "shape_type": "polygon", "image_name": "a.jpg", "points": points}


def make_reason_seg(root: Path, inner: str = "reason_seg/ReasonSeg") -> Path:
    base = root / inner
    train, val, test = base / "train", base / "val", base / "test"
    # An ignored box in the target, in which there is a target again; the list is not in the order of area.
    nested = [box("Ignore", 2, 1, 7, 5), box("target", 4.9, 2.9, 5.9, 3.9), box("target", 1, 0, 8, 6)]
    three = {"text": ["what holds water", "the thing to drink from", "cup"], "is_sentence": False, "shapes": nested}
    write_json(train / "three.json", three)
    # A target in a region to ignore, and a flag, which would cover all.
    shapes = [box("ignore", 0, 0, 9, 4), box("target", 3, 1, 4, 2), box("FLAG", 0, 0, 9, 7)]
    windows = {"text": ["Which thing is the chef\u2019s hat?"], "is_sentence": True, "shapes": shapes}
    (train / "windows.json").write_bytes(json.dumps(windows, ensure_ascii=False).encode("cp1252"))
    write_json(val / "several.json", {**three, "shapes": [box("target", 0, 0, 1, 1)]})
    write_json(test / "nothing.json", {"text": ["the unicorn"], "is_sentence": True, "shapes": []})
    for folder, name in ((train, "three"), (train, "windows"), (val, "several"), (test, "nothing")):
        picture(folder / f"{name}.jpg", 8, 10)
    explanation = {"image": "three.jpg", "query": "the thing to  drink from", "outputs": "A cup is made for drinking."}
    write_json(base / "explanatory" / "train.json", [explanation])
    return root


# --- LLaVA-Video -----------------------------------------------------------------------------------------------------
def turns(*texts: str) -> list[dict]:
    return [{"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(texts)]


def llava_items() -> list[dict]:
    """One caption, a talk of two questions, and a second item about the first video with the same id."""
    source = {"data_source": "0_30_s_academic_v0_1"}
    first, second = "academic_source/Charades/RW587.mp4", "academic_source/NextQA/1/2.mp4"
    return [
        {"id": "RW587", **source, "video": first, "conversations": turns("<image>\nDescribe the video.", "A man.")},
        {
            "id": "2",
            **source,
            "video": second,
            "conversations": turns("<video>\nWho runs?", "A dog.", "Where?\n", "On grass."),
        },
        {"id": "RW587", **source, "video": first, "conversations": turns("What is red?\n<image>", "The door.")},
    ]


def make_llava_video(root: Path, above: str = "0_30_s_academic_v0_1", frames: str = "academic_source/") -> Path:
    """The first video is a folder of frames, written in shuffled order; the second is a file."""
    base = root / above
    write_json(base / "0_30_s_academic_v0_1_cap_processed.json", llava_items())
    for number in np.random.default_rng(0).permutation(12) + 1:
        picture(base / "JPEGImages" / f"{frames}Charades/RW587" / f"{number:06d}.jpg", 8, 10, int(number))
    video = base / "academic_source" / "NextQA" / "1" / "2.mp4"
    video.parent.mkdir(parents=True)
    video.write_bytes(b"not decoded by the reader")
    return root
