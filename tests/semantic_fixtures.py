"""Small trees of ADE20K, COCO-Stuff, PACO-LVIS and PASCAL-Part in the layout of the releases."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco

HEIGHT, WIDTH = 8, 12


def write_image(path: Path, height: int = HEIGHT, width: int = WIDTH) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.arange(height * width * 3, dtype=np.uint32).reshape(height, width, 3) % 251
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def write_labels(path: Path, labels: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels.astype(np.uint8))
    if palette:
        image.putpalette([(7 * i) % 256 for i in range(768)])
    image.save(path)


def box(top: int, left: int, bottom: int, right: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def runs(mask: np.ndarray) -> list[int]:
    """Uncompressed COCO counts, written without pycocotools."""
    flat = mask.flatten(order="F").astype(int)
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges.tolist(), len(flat)]).tolist()
    return ([0] if flat[0] else []) + counts


def text_rle(mask: np.ndarray) -> dict:
    counts = coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode()
    return {"size": list(mask.shape), "counts": counts}


def ade20k_labels() -> dict[str, np.ndarray]:
    """0 = other, 1 = wall, 150 = flag, 255 = what LISA writes for other."""
    first = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    first[2:6, 0:4], first[2:6, 4:8], first[0, 0] = 1, 150, 255
    second = np.full((HEIGHT, WIDTH), 2, dtype=np.uint8)
    return {"ADE_train_00000001": first, "ADE_train_00000002": second}


def make_ade20k(folder: Path) -> Path:
    for name, labels in ade20k_labels().items():
        write_image(folder / "images" / "training" / f"{name}.jpg")
        write_labels(folder / "annotations" / "training" / f"{name}.png", labels)
    write_image(folder / "images" / "validation" / "ADE_val_00000001.jpg")
    write_labels(folder / "annotations" / "validation" / "ADE_val_00000001.png", box(0, 0, 4, 12) * np.uint8(13))
    return folder


def coco_stuff_labels() -> np.ndarray:
    """0 = person, 181 = wood, 171 = wall-brick (left out), 255 = unlabelled."""
    labels = np.full((HEIGHT, WIDTH), 255, dtype=np.uint8)
    labels[0:4, 0:6], labels[0:4, 6:12], labels[4:6] = 0, 181, 171
    return labels


def make_coco_stuff(folder: Path, maps: str = "cocostuff", images: str = "coco") -> Path:
    write_labels(folder / maps / "train2017" / "000000000009.png", coco_stuff_labels(), palette=True)
    write_image(folder / images / "train2017" / "000000000009.jpg")
    write_labels(folder / maps / "val2017" / "000000000139.png", np.full((HEIGHT, WIDTH), 16))
    write_image(folder / images / "val2017" / "000000000139.jpg")
    return folder


def paco_content() -> dict:
    """Two cars (RLE as text and as a list of runs), their part, a can as a polygon; ids sparse, one of them 0."""
    size = {"height": HEIGHT, "width": WIDTH, "neg_category_ids": [], "not_exhaustive_category_ids": []}
    parts = {"bbox": [0, 0, 1, 1], "area": 1.0, "attribute_ids": []}
    return {
        "images": [
            {"id": 9, "file_name": "train2017/000000000009.jpg", **size},
            {"id": 25, "file_name": "train2017/000000000025.jpg", **size},
        ],
        "categories": [
            {"id": 2455, "name": "car_(automobile):antenna", "supercategory": "PART"},
            {"id": 207, "name": "car_(automobile)", "supercategory": "OBJECT"},
            {"id": 1093, "name": "trash_can", "supercategory": "OBJECT"},
        ],
        "part_categories": [{"id": 1, "name": "antenna"}],
        "attributes": [],
        "annotations": [
            {
                "id": 0,
                "obj_ann_id": 0,
                "image_id": 9,
                "category_id": 207,
                "segmentation": text_rle(box(1, 1, 4, 5)),
                **parts,
            },
            {
                "id": 1,
                "obj_ann_id": 0,
                "image_id": 9,
                "category_id": 2455,
                "segmentation": text_rle(box(1, 1, 2, 2)),
                **parts,
            },
            {
                "id": 7,
                "obj_ann_id": 7,
                "image_id": 9,
                "category_id": 207,
                "segmentation": {"size": [HEIGHT, WIDTH], "counts": runs(box(3, 4, 8, 9))},
                **parts,
            },
            {
                "id": 8,
                "obj_ann_id": 7,
                "image_id": 9,
                "category_id": 2455,
                "segmentation": {"size": [HEIGHT, WIDTH], "counts": runs(box(3, 4, 4, 5))},
                **parts,
            },
            {
                "id": 9,
                "obj_ann_id": 9,
                "image_id": 25,
                "category_id": 1093,
                "segmentation": [[2, 2, 6, 2, 6, 6, 2, 6], [4, 4, 8, 4, 8, 8, 4, 8]],
                **parts,
            },
        ],
    }


def make_paco(folder: Path, paco: str = "vlpart/paco/annotations", images: str = "coco") -> Path:
    content = paco_content()
    write_json(folder / paco / "paco_lvis_v1_train.json", content)
    for image in content["images"]:
        write_image(folder / images / image["file_name"])
    return folder


def pascal_content() -> dict:
    return {
        "categories": [
            {"id": 1, "name": "aeroplane:body"},
            {"id": 60, "name": "potted plant:pot", "abbr": "pot"},
            {"id": 61, "name": "bus:license plate"},
        ],
        "images": [{"id": 2008000002, "file_name": "2008_000002.jpg", "height": HEIGHT, "width": WIDTH}],
        "annotations": [
            {
                "id": number,
                "segmentation": text_rle(mask),
                "bbox": [0, 0, 1, 1],
                "category_id": category,
                "image_id": 2008000002,
                "iscrowd": 0,
                "area": 1,
            }
            for number, (category, mask) in enumerate(
                [(60, box(0, 0, 2, 2)), (60, box(5, 5, 8, 8)), (61, box(2, 2, 4, 4))]
            )
        ],
    }


def make_pascal(folder: Path, images: str = "VOCdevkit/VOC2010/JPEGImages") -> Path:
    content = pascal_content()
    write_json(folder / "train.json", content)
    write_image(folder / images / "2008_000002.jpg")
    return folder


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
