"""Small trees of MeViS, ReVOS and LV-VIS in the exact layout of their releases, and what is needed to test them."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from virst_hf.data.builder import VirstDatasetBuilder
from virst_hf.rle import encode_rle

SIZE = (32, 48)
# Top, left, bottom, right; the last row and column are outside.
Box = tuple[int, int, int, int]
# Five frames. FIRST is out of sight for two of them; SECOND and THIRD overlap and move apart.
FIRST: list[Box | None] = [(2, 3, 8, 11), None, None, (2, 6, 8, 14), (2, 7, 8, 15)]
SECOND: list[Box | None] = [(10, 10, 20, 20), (10, 9, 20, 19), (10, 8, 20, 18), (10, 7, 20, 17), (10, 6, 20, 16)]
THIRD: list[Box | None] = [(15, 15, 25, 30), (15, 16, 25, 31), (15, 17, 25, 32), (15, 18, 25, 33), None]


def filled(*boxes: Box | None) -> np.ndarray:
    """The mask that these boxes cover together."""
    mask = np.zeros(SIZE, dtype=bool)
    for top, left, bottom, right in filter(None, boxes):
        mask[top:bottom, left:right] = True
    return mask


def covered(*tracks: list[Box | None]) -> np.ndarray:
    """The masks `(frames, height, width)` of objects together."""
    return np.stack([filled(*boxes) for boxes in zip(*tracks, strict=True)])


def rles(track: list[Box | None]) -> list[dict | None]:
    """As in mask_dict.json: null where the object is not seen."""
    return [None if box is None else encode_rle(filled(box)) for box in track]


def runs(box: Box) -> dict:
    """An RLE that is not compressed: its counts are a list."""
    mask = filled(box).ravel(order="F")
    changes = np.flatnonzero(np.diff(mask)) + 1
    counts = np.diff([0, *changes, mask.size]).tolist()
    return {"size": list(SIZE), "counts": [0, *counts] if mask[0] else counts}


def polygon(box: Box) -> list[list[float]]:
    """The polygon of a box: pycocotools fills the pixels between its corners."""
    top, left, bottom, right = box
    return [[left, top, right, top, right, bottom, left, bottom]]


def write_frames(folder: Path, names: list[str], size: tuple[int, int] = SIZE) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        Image.new("RGB", size[::-1], (20 * index, 90, 200)).save(folder / f"{name}.jpg")


def write_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def numbered(start: int, length: int) -> list[str]:
    return [f"{number:05d}" for number in range(start, start + length)]


# --- MeViS -----------------------------------------------------------------------------------------------------------
LIZARDS, BIRD = "377b1c5f365c", "0a1b2c3d4e5f"


def mevis_videos() -> dict:
    """Eleven expressions in the first video: one object, two, none, and eight more; one in the second."""
    some = {
        "0": {"exp": "Lizard that hides and returns", "obj_id": [0], "anno_id": [2]},
        "1": {"exp": "2 lizards moving apart", "obj_id": [1, 2], "anno_id": [3, 4]},
        "2": {"exp": "the dog that runs", "obj_id": [], "anno_id": []},
    }
    more = {str(i): {"exp": f"lizard, wording {i}", "obj_id": [1], "anno_id": [3]} for i in range(3, 11)}
    bird = {"0": {"exp": "bird standing still", "obj_id": [0], "anno_id": [5]}}
    return {
        LIZARDS: {"expressions": {**some, **more}, "vid_id": 7, "frames": numbered(0, 5)},
        BIRD: {"expressions": bird, "vid_id": 2, "frames": numbered(0, 4)},
    }


def mevis_masks() -> dict:
    """The bird is seen in one frame; where it is not, it is null once and empty once."""
    empty = encode_rle(filled())
    return {"2": rles(FIRST), "3": rles(SECOND), "4": rles(THIRD), "5": [*rles([None, (0, 0, 32, 2)]), empty, None]}


def make_mevis(root: Path, splits: tuple[str, ...] = ("train", "valid_u", "valid"), version: str = "") -> Path:
    """The split "valid" has sentences alone. `version` is "" or "_v2", at the end of the file's name."""
    for split in splits:
        videos = mevis_videos()
        for name, video in videos.items():
            write_frames(root / split / "JPEGImages" / name, video["frames"])
            if split == "valid":
                sentences = {key: {"exp": entry["exp"]} for key, entry in video["expressions"].items()}
                video["expressions"] = sentences
        write_json(root / split / f"meta_expressions{version}.json", {"videos": videos})
        if split != "valid":
            write_json(root / split / "mask_dict.json", mevis_masks())
    return root


# --- ReVOS -----------------------------------------------------------------------------------------------------------
UVO, TAO, CHARADES, MOSE = "UVO/all/-a_b", "TAO/train/YFCC100M/v_1", "TAO/train/Charades/x", "MOSE/0a1b"
CHARADES_VALID = "TAO/val/Charades/y"


def revos_video(number: int, expressions: dict, start: int = 145) -> dict:
    height, width = SIZE
    common = {"vid_id": number, "height": height, "width": width}
    return {"expressions": expressions, **common, "frames": numbered(start, 5)}


def said(text: str, ids: list[int], type_id: int) -> dict:
    return {"exp": text, "obj_id": list(range(len(ids))), "anno_id": ids, "type_id": type_id}


def revos_videos(split: str) -> dict:
    if split == "valid":
        return {
            MOSE: revos_video(3, {"0": said("what swims?", [3003040], 1)}, 0),
            CHARADES_VALID: revos_video(4, {"0": said("the door.", [3003050], 0)}),
        }
    some = {
        "0": said("the person who is wearing a white shirt.", [3003019], 0),
        "1": said("Who could have thrown the ball?", [3003020, 3003021], 1),
        "2": said("the elephant", [], 2),
    }
    more = {str(i): said(f"the person, wording {i}", [3003020], 0) for i in range(3, 11)}
    return {
        UVO: revos_video(0, {**some, **more}),
        CHARADES: revos_video(1, {"0": said("the cup", [3003030], 0)}),
        TAO: revos_video(2, {"0": said("the boat", [3003031], 0)}, 0),
    }


def revos_masks() -> dict:
    """One file for both splits."""
    masks = {3003019: FIRST, 3003020: SECOND, 3003021: THIRD, 3003030: SECOND, 3003031: THIRD, 3003040: FIRST}
    return {str(number): rles(track) for number, track in {**masks, 3003050: SECOND}.items()}


def revos_foreground() -> dict:
    """As the authors derive it: every distinct object of a video, united; never null."""
    found = {}
    objects = {UVO: (FIRST, SECOND, THIRD), CHARADES: (SECOND,), TAO: (THIRD,), MOSE: (FIRST,)}
    for name, tracks in {**objects, CHARADES_VALID: (SECOND,)}.items():
        masks = covered(*tracks)
        ratios = [float(mask.mean()) for mask in masks]
        found[name] = {"masks_rle": [encode_rle(mask) for mask in masks], "foreground_ratio": ratios}
    return found


def make_revos(root: Path, frames: str = "JPEGImages") -> Path:
    """`frames` is the folder of the sources; "." puts them beside the JSON files, as some mirrors do."""
    for split in ("train", "valid"):
        videos = revos_videos(split)
        for name, video in videos.items():
            write_frames(root / frames / name, video["frames"])
        write_json(root / f"meta_expressions_{split}_.json", {"videos": videos})
    # Ships as well, and is not to be read.
    write_json(root / "meta_expressions_train_sub_.json", {"videos": {}})
    write_json(root / "mask_dict.json", revos_masks())
    write_json(root / "mask_dict_foreground.json", revos_foreground())
    return root


# --- LV-VIS ----------------------------------------------------------------------------------------------------------
def lvvis_videos() -> dict:
    """As VISA has it: for each video and category an expression, all its instances the target."""
    names = ["sports_car", "dog", *(f"thing_{number}" for number in range(2, 11))]
    found = [{"exp": name, "obj_id": [number + 1], "anno_id": [13 + number]} for number, name in enumerate(names)]
    found[0] = {"exp": "sports_car", "obj_id": [0, 1], "anno_id": [12, 13]}
    expressions = {str(number): entry for number, entry in enumerate(found)}
    return {
        "00003": {"expressions": expressions, "frames": numbered(0, 5), "vid_id": 0},
        "00000": {"expressions": {"0": {"exp": "dog", "obj_id": [0], "anno_id": [40]}}, "frames": numbered(0, 5)},
    }


def lvvis_masks() -> dict:
    masks = {12: SECOND, 13: THIRD, **dict.fromkeys(range(14, 24), FIRST), 40: SECOND}
    return {str(number): rles(track) for number, track in masks.items()}


def lvvis_instances() -> dict:
    """The same content as the original release tells it: in the style of YouTube-VIS, with names of Windows, masks
    as compressed RLE, as lists of runs and as polygons; the categories of one video are not in order."""
    height, width = SIZE
    common = {"width": width, "height": height, "length": 5}
    files = [f"{frame}.jpg" for frame in numbered(0, 5)]
    videos = [
        {"id": 101, **common, "file_names": [f"train\\JPEGImages\\00003\\{file}" for file in files]},
        {"id": 7, **common, "file_names": [f"00000/{file}" for file in files]},
        {"id": 8, **common, "file_names": [f"00009/{file}" for file in files]},
    ]
    tracks = {
        12: [None if box is None else runs(box) for box in SECOND],
        13: [[] if box is None else polygon(box) for box in THIRD],
        **{number: rles(FIRST) for number in range(14, 24)},
    }
    categories = {12: 900, 13: 900, 14: 3, **{number: 1000 + number for number in range(15, 24)}}
    annotations = [
        {"id": number, "video_id": 101, "category_id": categories[number], "iscrowd": 0, "segmentations": track}
        for number, track in tracks.items()
    ]
    dog = {"id": 40, "video_id": 7, "category_id": 3, "iscrowd": 0, "segmentations": rles(SECOND)}
    named = {900: "sports_car", 3: "dog", **{1000 + number: f"thing_{number - 13}" for number in range(15, 24)}}
    return {
        "info": {},
        "videos": videos,
        # That of the second video stands among those of the first.
        "annotations": [*annotations[:2], dog, *annotations[2:]],
        "categories": [{"id": number, "name": name} for number, name in named.items()],
    }


def make_lvvis(root: Path, form: str = "visa", place: str = ".") -> Path:
    """`form` is "visa" or "original"; `place` is the folder of train_instances.json."""
    for name, video in lvvis_videos().items():
        write_frames(root / "train" / "JPEGImages" / name, video["frames"])
    if form == "visa":
        write_json(root / "train" / "meta_expressions.json", {"videos": lvvis_videos()})
        write_json(root / "train" / "mask_dict.json", lvvis_masks())
    else:
        write_json(root / place / "train_instances.json", lvvis_instances())
    return root


# --- reading ---------------------------------------------------------------------------------------------------------
def rows_of(builder: VirstDatasetBuilder, split: str) -> list[dict]:
    """All rows of a split that has no defect."""

    def fail(check: str, item: str, message: str) -> None:
        raise AssertionError((check, item, message))

    return list(builder.rows(builder.root, split, builder.units(builder.root, split, fail), fail))


def findings(builder: VirstDatasetBuilder, split: str) -> tuple[list[tuple[str, str]], list[dict]]:
    """What a reader tells as the doctor reads it, and the rows that are left."""
    found: list[tuple[str, str]] = []

    def report(check: str, item: str, message: str) -> None:
        assert message
        found.append((check, item))

    units = builder.units(builder.root, split, report)
    return found, list(builder.rows(builder.root, split, units, report))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """Every place of a JSON value."""
    if not isinstance(value, dict | list):
        return []
    steps = value.items() if isinstance(value, dict) else enumerate(value)
    return [place for key, inner in steps for place in [(*path, key), *places(inner, (*path, key))]]


def mutated(content: Any, draw: Callable[[st.SearchStrategy], Any]) -> Any:
    """A copy in which one to three nodes are any JSON value."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        there = places(content)
        if not there:
            return content
        place = draw(st.sampled_from(there))
        holder = content
        for step in place[:-1]:
            holder = holder[step]
        holder[place[-1]] = copy.deepcopy(draw(json_values))
    return content
