"""Small trees of Ref-YouTube-VOS and Ref-DAVIS17 in the exact layouts of their releases and of VISA."""

import json
import pickle
from pathlib import Path

import numpy as np
from image_fixtures import picture, write_json
from PIL import Image
from pycocotools import mask as coco

# Label maps as text: "." is 0, a digit an object, "v" void (255).
Drawing = list[str]
PALETTE = [(37 * index) % 256 for index in range(768)]


def labels_of(drawing: Drawing) -> np.ndarray:
    return np.array([[int({".": 0, "v": 255}.get(sign, sign)) for sign in row] for row in drawing], dtype=np.uint8)


def write_palette(path: Path, labels: np.ndarray, mode: str = "P") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels)
    if mode == "P":
        image.putpalette(PALETTE)
    elif mode != "L":
        image = image.convert(mode)
    image.save(path)
    return path


def packed_rle(mask: np.ndarray) -> dict | None:
    """As VISA's converter writes it: counts are bytes, an absent object is None."""
    return coco.encode(np.asfortranarray(mask, dtype=np.uint8)) if mask.any() else None


# --- Ref-YouTube-VOS -------------------------------------------------------------------------------------------------
# Object 2 enters in the second frame; object 3, which one expression names, never does.
PENGUIN = {
    "00000": ["......", ".11...", ".11...", "......"],
    "00005": ["......", ".112..", ".122..", "......"],
    "00010": ["......", "...22.", "...22.", "......"],
}
FERRY = {"00000": ["1....", "....."], "00005": [".1...", "....."]}
TRAIN = {"003234408d": PENGUIN, "0043f083b5": FERRY}
# The first is of the 202; the second is of the test split.
VALID_VIDEO, TEST_VIDEO = "0062f687f1", "00917dcfc4"


def youtube_train() -> dict:
    """Twelve expressions in the first video, so that sorted texts ("10" before "2") are not the order of numbers. The
    videos are not in the order of their names."""
    objects = ["1", "1", "2", "2", "1", "2", "1", "2", "1", "3", "1", "2"]
    expressions = {
        str(number): {"exp": f"penguin {number} of two", "obj_id": owner} for number, owner in enumerate(objects)
    }
    ferry = {"0": {"exp": "a Ferry on the water", "obj_id": "1"}}
    return {
        "videos": {
            "0043f083b5": {"expressions": ferry, "frames": ["00000", "00005"]},
            "003234408d": {"expressions": expressions, "frames": ["00000", "00005", "00010"]},
        }
    }


def youtube_valid() -> dict:
    entry = {"expressions": {"0": {"exp": "a dog"}, "1": {"exp": "the dog on the left"}}, "frames": ["00000", "00005"]}
    return {"videos": {TEST_VIDEO: entry, VALID_VIDEO: entry}}


def make_ref_youtube_vos(root: Path, masks: str = "png", inner: str = ".") -> Path:
    """`masks`: "png", "grey" (PNGs without a palette) or "pkl" (VISA's file alone)."""
    base = root / inner
    write_json(base / "meta_expressions" / "train" / "meta_expressions.json", youtube_train())
    write_json(base / "meta_expressions" / "valid" / "meta_expressions.json", youtube_valid())
    for name, frames in TRAIN.items():
        for frame, drawing in frames.items():
            labels = labels_of(drawing)
            picture(base / "train" / "JPEGImages" / name / f"{frame}.jpg", *labels.shape)
            if masks != "pkl":
                mode = "L" if masks == "grey" else "P"
                write_palette(base / "train" / "Annotations" / name / f"{frame}.png", labels, mode)
    if masks == "pkl":
        (base / "train" / "mask_dict.pkl").write_bytes(pickle.dumps(youtube_packed()))
    # The frames of the test split are in another archive.
    for frame in ("00000", "00005"):
        picture(base / "valid" / "JPEGImages" / VALID_VIDEO / f"{frame}.jpg", 4, 6)
    return root


def youtube_packed() -> dict:
    """One entry for each expression, counted over sorted videos and sorted expression ids."""
    packed: dict[str, list] = {}
    videos = youtube_train()["videos"]
    for name in sorted(videos):
        for key in sorted(videos[name]["expressions"]):
            number = int(videos[name]["expressions"][key]["obj_id"])
            packed[str(len(packed))] = [packed_rle(labels_of(drawing) == number) for drawing in TRAIN[name].values()]
    return packed


# --- Ref-DAVIS17 -----------------------------------------------------------------------------------------------------
# A ring of void around object 3, which enters late; the first sequence has 3 objects and 12 expressions.
DAVIS = {
    "train": {
        "motorbike": {
            "00000": ["11....", "11..2.", "......"],
            "00001": ["11.vvv", "11.v3v", "2..vvv"],
        },
    },
    "valid": {
        "dogs-jump": {"00000": ["1...", "...."], "00001": [".1..", "...."]},
        "classic-car": {"00000": ["....", "..1."], "00001": ["....", "...."], "00002": ["...1", "...."]},
    },
}
# Those of the semi-supervised task: object 1 is smaller.
OTHER_MASKS = {"motorbike": {"00000": ["1.....", "......", "......"], "00001": ["1.....", "......", "......"]}}
TEXTS = ("Davis17_annot1", "Davis17_annot1_full_video", "Davis17_annot2", "Davis17_annot2_full_video")
# Of each file the lines as they stand there: not sorted, with misspelt sequences; annot2 is in Latin-1.
LINES = (
    [
        'motor-bike 2 "a man with a  hat"',
        'dogs-jump 1 "a dog jumping"',
        'motor-bike 1 "a motorbike"',
        'motor-bike 3 "a woman in white"',
        'clasic-car 1 "an old car"',
    ],
    [
        'clasic-car 1 "a car that drives on"',
        'motor-bike 1 "the motorbike, which turns"',
        'motor-bike 2 "the man driving"',
        'motor-bike 3 "a woman who comes later"',
        'dogs-jump 1 "the dog that jumps"',
    ],
    [
        'motor-bike 1 "a bike near a caf\u00e9"',
        'motor-bike 2 "man"',
        'motor-bike 3 "woman with "long" hair"',
        'dogs-jump 1 "brown dog"',
        'clasic-car 1 "car"',
    ],
    [
        'motor-bike 1 "bike leaving the caf\u00e9"',
        'motor-bike 2 "man on the bike"',
        'motor-bike 3 "woman walking"',
        'dogs-jump 1 "brown dog in the air"',
        'clasic-car 1 "silver car"',
    ],
)


def expression(text: str, owner: str) -> dict:
    return {"exp": text, "obj_id": owner}


def davis_expressions() -> dict[str, dict[str, dict]]:
    """What the converter makes of `LINES`, written by hand; "10" and "11" stand before "2", as texts are sorted."""
    motorbike = {
        "0": expression("a motorbike", "1"),
        "1": expression("the motorbike, which turns", "1"),
        "10": expression('woman with "long" hair', "3"),
        "11": expression("woman walking", "3"),
        "2": expression("a bike near a caf\u00e9", "1"),
        "3": expression("bike leaving the caf\u00e9", "1"),
        "4": expression("a man with a hat", "2"),
        "5": expression("the man driving", "2"),
        "6": expression("man", "2"),
        "7": expression("man on the bike", "2"),
        "8": expression("a woman in white", "3"),
        "9": expression("a woman who comes later", "3"),
    }
    dogs = ["a dog jumping", "the dog that jumps", "brown dog", "brown dog in the air"]
    car = ["an old car", "a car that drives on", "car", "silver car"]
    return {
        "train": {"motorbike": motorbike},
        "valid": {
            "dogs-jump": {str(k): expression(text, "1") for k, text in enumerate(dogs)},
            "classic-car": {str(k): expression(text, "1") for k, text in enumerate(car)},
        },
    }


def make_davis_raw(root: Path, inner: str = ".") -> Path:
    """The tree of DAVIS with the texts beside it."""
    base = root / inner
    davis = base / "DAVIS"
    for split, list_name in (("train", "train"), ("valid", "val")):
        names = davis / "ImageSets" / "2017" / f"{list_name}.txt"
        names.parent.mkdir(parents=True, exist_ok=True)
        names.write_text("".join(f"{name}\n" for name in DAVIS[split]))
        for name, frames in DAVIS[split].items():
            write_sequence(davis, name, frames)
    for name, frames in OTHER_MASKS.items():
        for frame, drawing in frames.items():
            write_palette(davis / "Annotations" / "480p" / name / f"{frame}.png", labels_of(drawing))
    folder = base / "davis_text_annotations"
    folder.mkdir()
    for name, lines, encoding in zip(TEXTS, LINES, ("utf-8", "utf-8", "latin-1", "latin-1"), strict=True):
        (folder / f"{name}.txt").write_bytes("".join(f"{line}\n" for line in lines).encode(encoding))
    return root


def write_sequence(davis: Path, name: str, frames: dict[str, Drawing]) -> None:
    for frame, drawing in frames.items():
        labels = labels_of(drawing)
        picture(davis / "JPEGImages" / "480p" / name / f"{frame}.jpg", *labels.shape)
        write_palette(davis / "Annotations_unsupervised" / "480p" / name / f"{frame}.png", labels)


def make_davis_converted(root: Path, inner: str = ".") -> Path:
    """The tree that VISA and VIRST expect."""
    base = root / inner
    for split, expressions in davis_expressions().items():
        videos = {
            name: {"expressions": expressions[name], "frames": list(frames)} for name, frames in DAVIS[split].items()
        }
        write_json(base / "meta_expressions" / split / "meta_expressions.json", {"videos": videos})
        for name, frames in DAVIS[split].items():
            for frame, drawing in frames.items():
                labels = labels_of(drawing)
                picture(base / split / "JPEGImages" / name / f"{frame}.jpg", *labels.shape)
                write_palette(base / split / "Annotations" / name / f"{frame}.png", labels)
    return root


def change_json(path: Path, change: object) -> None:
    """Apply a function to the content of a JSON file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
