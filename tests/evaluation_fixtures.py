"""Small data sets on disk, in the exact layouts of the releases, for the tests of evaluation."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from virst_hf.rle import check_rle, encode_rle

SIZE = (36, 48)


def box(top: int, left: int, bottom: int, right: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def moving_box(num_frames: int, top: int, left: int, side: int, step: int, absent: tuple[int, ...] = ()) -> list:
    """Masks of a square that moves to the right; None where it is absent."""
    track = []
    for t in range(num_frames):
        mask = box(top, left + step * t, top + side, left + step * t + side)
        track.append(None if t in absent or not mask.any() else mask)
    return track


def rle_track(track: list) -> list:
    return [None if mask is None else check_rle(encode_rle(mask)) for mask in track]


def write_frames(folder: Path, names: list[str], tracks: list[list], seed: int) -> None:
    """Frames with noise behind, and every object in a colour of its own."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    ground = rng.integers(0, 90, (*SIZE, 3), dtype=np.uint8)
    for t, name in enumerate(names):
        frame = ground.copy()
        for number, track in enumerate(tracks):
            if track[t] is not None:
                frame[track[t]] = ((210, 40, 30), (40, 90, 220), (50, 200, 80))[number % 3]
        Image.fromarray(frame).save(folder / f"{name}.jpg", quality=92)


def write_mevis(
    root: Path, split: str = "valid_u", num_videos: int = 3, expressions: int = 4, num_frames: int = 6
) -> Path:
    """The layout of MeViS: three objects a video, of which the second leaves for two frames."""
    base = root / split
    videos: dict[str, Any] = {}
    masks: dict[str, Any] = {}
    kinds = [
        ("the red square", [0], "attribute"),
        ("the two squares that move", [0, 1], "plural"),
        ("the one that goes | away <b>", [1], "motion"),
        ("the elephant", [], "no_target"),
        ("the green one", [2], "attribute"),
    ]
    for v in range(num_videos):
        name = f"{v:02d}ab{v}"
        frames = [f"{t:05d}" for t in range(num_frames + v % 2)]
        tracks = [
            moving_box(len(frames), 3, 2, 12, 2),
            moving_box(len(frames), 20, 30, 9, -2, absent=(2, 3)),
            moving_box(len(frames), 22, 4, 10, 1),
        ]
        for number, track in enumerate(tracks):
            masks[str(3 * v + number + 2)] = rle_track(track)
        asked = {}
        for e in range(expressions):
            text, objects, kind = kinds[(e + v) % len(kinds)]
            entry: dict[str, Any] = {"exp": text}
            if split != "valid":
                numbers = [3 * v + number + 2 for number in objects]
                entry |= {"obj_id": objects, "anno_id": numbers, "type": kind}
            asked[str(e)] = entry
        videos[name] = {"expressions": asked, "vid_id": v, "frames": frames}
        write_frames(base / "JPEGImages" / name, frames, tracks, seed=v)
    (base / "meta_expressions.json").write_text(json.dumps({"videos": videos}))
    if split != "valid":
        (base / "mask_dict.json").write_text(json.dumps(masks))
    return root


def perfect_entries(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Predictions that are the targets."""
    return {row["expression_id"]: {"expression": row["expression"], "masks": row["masks"]} for row in rows}


def write_shapes(root: Path, split: str = "test", num_videos: int = 3, num_frames: int = 6) -> Path:
    """The layout of Shapes, as far as evaluation reads it: that of MeViS, and questions about its videos."""
    write_mevis(root, split, num_videos, num_frames=num_frames)
    base = root / split
    (base / "shapes.json").write_text(json.dumps({"split": split}))
    questions = [
        {
            "id": f"{name}-{i}",
            "video": name,
            "conversations": [{"from": "human", "value": f"<image>\n{asked}"}, {"from": "gpt", "value": answer}],
        }
        for name in sorted(path.name for path in (base / "JPEGImages").iterdir())
        for i, (asked, answer) in enumerate([("How many squares are there?", "three"), ("Which colour?", "red")])
    ]
    (base / "llava_video").mkdir()
    (base / "llava_video" / "questions.json").write_text(json.dumps(questions))
    return root


def write_revos(root: Path) -> Path:
    """The layout of ReVOS: names with slashes and a leading dash, frames that do not start at 0, three types."""
    names, frames = ("UVO/all/-a_b", "TAO/train/Charades/x"), ["00145", "00146", "00147"]
    videos: dict[str, Any] = {}
    masks: dict[str, Any] = {}
    for v, name in enumerate(names):
        tracks = [moving_box(3, 3, 2, 12, 2), moving_box(3, 20, 30, 9, -2, absent=(1,))]
        for number, track in enumerate(tracks):
            masks[str(3003019 + 2 * v + number)] = rle_track(track)
        asked = [([0], 0), ([0, 1], 1), ([1], 0), ([], 2)]
        expressions = {
            str(e): {
                "exp": f"sentence {e}",
                "obj_id": objects,
                "anno_id": [3003019 + 2 * v + number for number in objects],
                "type_id": kind,
            }
            for e, (objects, kind) in enumerate(asked)
        }
        videos[name] = {"expressions": expressions, "vid_id": v, "height": 36, "width": 48, "frames": frames}
        write_frames(root / "JPEGImages" / name, frames, tracks, seed=v)
    (root / "meta_expressions_valid_.json").write_text(json.dumps({"videos": videos}))
    (root / "meta_expressions_train_.json").write_text(json.dumps({"videos": {}}))
    (root / "mask_dict.json").write_text(json.dumps(masks))
    return root


def write_ref_davis(root: Path) -> Path:
    """Ref-DAVIS17 as converted: two objects with four sentences each, a third one without, and a strip of void."""
    frames = ["00000", "00001"]
    base = root / "valid"
    tracks = [moving_box(2, 3, 2, 12, 2), moving_box(2, 20, 24, 9, 2), moving_box(2, 3, 30, 6, 1)]
    write_frames(base / "JPEGImages" / "dogs", frames, tracks, seed=1)
    (base / "Annotations" / "dogs").mkdir(parents=True)
    for t, name in enumerate(frames):
        labels = np.zeros(SIZE, dtype=np.uint8)
        labels[32:] = 255
        for number, track in enumerate(tracks):
            labels[track[t]] = number + 1
        image = Image.fromarray(labels)
        image.putpalette([value for number in range(256) for value in (number, 7 * number % 256, 9)])
        image.save(base / "Annotations" / "dogs" / f"{name}.png")
    asked = {
        str(4 * rank + k): {"exp": f"dog {rank} {k}", "obj_id": str(rank + 1)} for rank in range(2) for k in range(4)
    }
    folder = root / "meta_expressions" / "valid"
    folder.mkdir(parents=True)
    (folder / "meta_expressions.json").write_text(
        json.dumps({"videos": {"dogs": {"expressions": asked, "frames": frames}}})
    )
    return root


def write_ref_youtube_vos(root: Path) -> Path:
    """Ref-YouTube-VOS valid: one of the 202 videos, and one of the 305 that are not scored."""
    frames = ["00000", "00005"]
    videos = {}
    for v, name in enumerate(("0062f687f1", "00f88c4f0a")):
        write_frames(root / "valid" / "JPEGImages" / name, frames, [moving_box(2, 3, 2, 12, 2)], seed=v)
        videos[name] = {"expressions": {str(e): {"exp": f"sentence {e}"} for e in range(11)}, "frames": frames}
    folder = root / "meta_expressions" / "valid"
    folder.mkdir(parents=True)
    (folder / "meta_expressions.json").write_text(json.dumps({"videos": videos}))
    return root
