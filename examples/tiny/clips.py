"""Clips for the pre-training: eight frames of made-up scenes in both views, with all that is known of their objects.

They are made by the same code as the Shapes benchmark, from streams that no split of it uses, and kept as arrays that
are mapped into memory: a step then reads what it needs in a millisecond.
"""

import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from model import NUM_FRAMES, SEGMENTER_SIDE, VISION_SIDE
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from virst_hf.data.shapes_maker.drawing import draw_scene, draw_texture, visible_masks
from virst_hf.data.shapes_maker.expressions import MAKERS, video_expressions
from virst_hf.data.shapes_maker.questions import scene_questions
from virst_hf.data.shapes_maker.scene import COLORS, CORNERS, HEIGHT, WIDTH, Scene, Stream, make_scene
from virst_hf.rendering import write_json

__all__ = [
    "COLOR_NAMES",
    "FORM_NAMES",
    "HEADINGS",
    "MOST_OBJECTS",
    "MOTIONS",
    "Clips",
    "add_false_relations",
    "make_clips",
]

MOST_OBJECTS = 6
FALSE_RELATIONS = 4
COLOR_NAMES, FORM_NAMES = list(COLORS), list(CORNERS)
MOTIONS = ["left", "right", "up", "down", "turns", "grows", "shrinks", "still", "stops", "enters", "leaves"]
MOTIONS += ["behind", "hidden"]
HEADINGS = ["", "left", "right", "up", "down"]
# A turn by 1 / n of a circle brings the form to itself; 0 for the circle, which has no angle.
SYMMETRY = {"circle": 0, "moon": 1, "triangle": 3, "square": 4, "star": 5, "cross": 4}
MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
ARRAYS = {
    "vision": (NUM_FRAMES, 3, VISION_SIDE, VISION_SIDE),
    "segmenter": (NUM_FRAMES, 3, SEGMENTER_SIDE, SEGMENTER_SIDE),
    "objects": (NUM_FRAMES, SEGMENTER_SIDE, SEGMENTER_SIDE),
}


def some_frames(scene: Scene, frames: np.ndarray) -> Scene:
    """The scene with these of its frames only."""
    parts = ("x", "y", "side", "angle")
    shapes = (replace(shape, **{part: getattr(shape, part)[frames] for part in parts}) for shape in scene.shapes)
    return Scene(tuple(shapes), len(frames))


def _make_clip(name: str, index: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays of a clip, and what is known of it."""
    stream = Stream("tiny", name, index)
    scene = make_scene(stream)
    masks = visible_masks(scene)
    # Half of the clips have the frames that inference takes, half any frame of each bin.
    places = [stream.uniform(0, 1) for _ in range(NUM_FRAMES)] if index % 2 else [0.5] * NUM_FRAMES
    frames = ((np.arange(NUM_FRAMES) + places) * scene.num_frames / NUM_FRAMES).astype(int)
    chosen = some_frames(scene, frames)
    pictures = [Image.fromarray(p) for p in draw_scene(chosen, draw_texture(stream), masks[:, frames])]
    numbers = np.zeros((NUM_FRAMES, HEIGHT, WIDTH), np.uint8)
    for i, mask in enumerate(masks[:, frames]):
        numbers[mask] = i + 1

    def view(side: int, resample: Image.Resampling) -> np.ndarray:
        resized = [np.asarray(picture.resize((side, side), resample)) for picture in pictures]
        return np.stack(resized).transpose(0, 3, 1, 2)

    size = (SEGMENTER_SIDE, SEGMENTER_SIDE)
    arrays = {
        "vision": view(VISION_SIDE, Image.Resampling.BICUBIC),
        "segmenter": view(SEGMENTER_SIDE, Image.Resampling.BILINEAR),
        "objects": np.stack([np.asarray(Image.fromarray(n).resize(size, Image.Resampling.NEAREST)) for n in numbers]),
    }
    objects = [
        {
            "look": [COLOR_NAMES.index(shape.color), FORM_NAMES.index(shape.form)],
            "motion": [MOTIONS.index(shape.motion), HEADINGS.index(shape.heading)],
            "place": [(shape.x / WIDTH).tolist(), (shape.y / HEIGHT).tolist()],
            "side": (shape.side / (HEIGHT * WIDTH) ** 0.5).tolist(),
            "angle": (shape.angle * SYMMETRY[shape.form]).tolist(),
            "visible": masks[i, frames].any(axis=(1, 2)).tolist(),
        }
        for i, shape in enumerate(chosen.shapes)
    ]
    present = masks.any(axis=(2, 3))
    expressions = [
        {"text": e.text, "type": e.type, "targets": list(e.targets)} for e in video_expressions(scene, present, stream)
    ]
    facts = {"objects": objects, "expressions": expressions, "questions": scene_questions(scene, stream)}
    return arrays, {**facts, "false_relations": false_relations(scene, Stream("tiny", name, index, "false"))}


def false_relations(scene: Scene, stream: Stream) -> list[str]:
    """Some sentences about where an object lies that fit nothing in the clip. Few clips have one of their own."""
    # Places do not depend on what is hidden when: a relation to what is ever out of sight is never made.
    present = np.ones((len(scene.shapes), scene.num_frames), dtype=bool)
    made = (e.text for e in MAKERS["no_target"](scene, present) if e.kind == "relation")
    return stream.shuffled(sorted(set(made)))[:FALSE_RELATIONS]


def add_false_relations(root: Path, split: str, seed: int) -> None:
    """Give each video of a split of Shapes one more sentence that fits nothing, where there is one to be had.

    Done twice it is as done once.
    """
    path = root / split / "meta_expressions.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for video in content["videos"].values():
        scene = make_scene(Stream(split, seed, video["vid_id"]))
        for text in false_relations(scene, Stream("tiny", split, seed, video["vid_id"], "false"))[:1]:
            more = {"exp": text, "obj_id": [], "anno_id": [], "type": "no_target"}
            video["expressions"]["false_relation"] = more
    write_json(path, content)


def make_clips(folder: Path, name: str, count: int, num_proc: int = 2) -> None:
    """Write `count` clips; does nothing where they are there."""
    if (folder / f"{name}.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        key: np.lib.format.open_memmap(folder / f"{name}.{key}.npy", "w+", np.uint8, (count, *shape))
        for key, shape in ARRAYS.items()
    }
    known = []
    with ProcessPoolExecutor(num_proc) as pool:
        made = pool.map(partial(_make_clip, name), range(count), chunksize=8)
        for i, (values, facts) in enumerate(tqdm(made, total=count, desc=f"clips, {name}", unit="clip")):
            for key, value in values.items():
                arrays[key][i] = value
            known.append(facts)
    for array in arrays.values():
        array.flush()
    # Last, and under its name only when it is whole: it says that the arrays are.
    write_json(folder / f"{name}.json", known)


@dataclass
class Look:
    """What is known of the objects of all clips; the second axis is the object."""

    color: Tensor
    form: Tensor
    motion: Tensor
    heading: Tensor
    # (clips, objects, 3, frames): column and row, 0 to 1, and the square root of the area.
    geometry: Tensor
    # (clips, objects, 2, frames): cosine and sine of the angle, by the symmetry of the form; 0 for circles.
    angle: Tensor
    visible: Tensor


class Clips:
    """Clips on disk."""

    def __init__(self, folder: Path, name: str) -> None:
        self.arrays = {key: np.load(folder / f"{name}.{key}.npy", mmap_mode="r") for key in ARRAYS}
        self.facts = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        self.look = _look(self.facts)

    def __len__(self) -> int:
        return len(self.facts)

    def frames(self, view: str, clips: Sequence[int], frames: Sequence[int] | None = None) -> Tensor:
        """Normalised frames `(clips, frames, 3, side, side)`: one of each clip, or all of them."""
        array = self.arrays[view]
        values = array[clips] if frames is None else array[clips, frames][:, None]
        return (torch.from_numpy(values).float() / 255 - MEAN) / STD

    def objects(self, clips: Sequence[int], frames: Sequence[int] | None = None) -> Tensor:
        """Which object (from 1) each pixel of the SAM view belongs to, `(clips, frames, side, side)`, `uint8`."""
        array = self.arrays["objects"]
        return torch.from_numpy(array[clips] if frames is None else array[clips, frames][:, None])


def _look(facts: list[dict[str, Any]]) -> Look:
    shape = (len(facts), MOST_OBJECTS)
    classes = torch.zeros(4, *shape, dtype=torch.long)
    geometry, angle = torch.zeros(*shape, 3, NUM_FRAMES), torch.zeros(*shape, 2, NUM_FRAMES)
    visible = torch.zeros(*shape, NUM_FRAMES)
    for i, clip in enumerate(facts):
        for j, thing in enumerate(clip["objects"]):
            classes[:, i, j] = torch.tensor([*thing["look"], *thing["motion"]])
            geometry[i, j] = torch.tensor([*thing["place"], thing["side"]])
            turned = torch.tensor(thing["angle"])
            if SYMMETRY[FORM_NAMES[thing["look"][1]]]:
                angle[i, j] = torch.stack([turned.cos(), turned.sin()])
            visible[i, j] = torch.tensor(thing["visible"]).float()
    return Look(*classes, geometry, angle, visible)
