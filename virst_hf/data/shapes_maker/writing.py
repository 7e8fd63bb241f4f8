"""Shapes on disk: videos in the layout of MeViS, still images and questions in those of the other sets."""

import contextlib
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from ...errors import DataError
from ...rendering import write_json
from ...rle import encode_rle
from .checking import answer_of, objects_of
from .drawing import draw_scene, draw_texture, outline_in_frame, visible_masks
from .expressions import REASONING, image_expressions, reasoning_about, video_expressions
from .questions import scene_questions
from .scene import COLORS, CORNERS, HEIGHT, WIDTH, Scene, Stream, make_scene, make_still

__all__ = ["SPLITS", "make_shapes"]

# Our splits -> what the layouts of the still images call them.
SPLITS = {"train": "train", "valid": "val", "test": "test"}
REFER_SPLITS = {"train": "train", "valid": "val", "test": "testA"}
VERSION = 1
QUALITY = 92
# Ids of a video's objects and images begin at its index times this.
IDS = 10
CATEGORIES = [*CORNERS, *(f"{color} shape" for color in COLORS)]
Parts = dict[str, Any]


def make_shapes(
    root: str | os.PathLike,
    split: str,
    num_videos: int,
    seed: int = 0,
    num_proc: int = 2,
    progress: bool = True,
) -> Path:
    """Make one split of Shapes.

    A video depends on the split's name, the seed and its own number alone: a larger split begins with the same videos,
    and equal arguments give equal bytes with the same version of Pillow. Every target and answer is checked by a
    second reading of its words (`checking`).

    Args:
        root (`str` or `os.PathLike`): Folder of the data set; the split becomes `root/<split>`.
        split (`str`): `"train"`, `"valid"` or `"test"`. Two splits never have a video in common.
        num_videos (`int`): Videos, at least 1. There are two still images for each.
        seed (`int`, *optional*, defaults to 0): Another seed gives other videos.
        num_proc (`int`, *optional*, defaults to 2): Processes.
        progress (`bool`, *optional*, defaults to `True`): Whether to show a bar.

    Returns:
        `pathlib.Path`: The folder of the split.

    Raises:
        DataError: The split has another name or is there already, or a number is too small.

    Example:

    ```python
    >>> import tempfile
    >>> from virst_hf.data.shapes_maker import make_shapes
    >>> folder = make_shapes(tempfile.mkdtemp(), "valid", num_videos=1, num_proc=1, progress=False)
    >>> sorted(path.name for path in folder.iterdir())[:3]
    ['JPEGImages', 'llava_video', 'mask_dict.json']

    ```
    """
    if split not in SPLITS:
        raise DataError(f"Shapes has the splits {', '.join(SPLITS)}; found {split!r}.")
    if num_videos < 1 or num_proc < 1:
        raise DataError(f"There must be at least one video and one process; found {num_videos} and {num_proc}.")
    target = Path(root).expanduser() / split
    if target.exists():
        raise DataError(f"{target} is there already; remove it, or name another --root.")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial_folder = Path(tempfile.mkdtemp(prefix=f".{split}.", dir=target.parent))
    try:
        make = partial(_make_video, partial_folder, split, seed)
        parts = []
        with _pool(min(num_proc, num_videos)) as run:
            for part in _with_bar(run(make, range(num_videos)), num_videos, progress, split):
                parts.append(part)
        _write_annotations(partial_folder, split, parts)
        manifest = {"version": VERSION, "split": split, "seed": seed, "videos": num_videos, "pillow": PIL.__version__}
        write_json(partial_folder / "shapes.json", manifest)
        partial_folder.chmod(0o755)
        partial_folder.rename(target)
    finally:
        shutil.rmtree(partial_folder, ignore_errors=True)
    return target


@contextlib.contextmanager
def _pool(num_proc: int) -> Iterator[Any]:
    """A `map` in order, over processes where there are several."""
    if num_proc == 1:
        yield map
        return
    # "spawn" keeps threads of the parent (torch, OpenCV) out of the children.
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(num_proc, mp_context=context) as pool:
            yield pool.map
    except BrokenProcessPool as error:
        raise DataError(
            "A process that makes videos ended early. In a script of your own put the call below "
            'if __name__ == "__main__":, or pass num_proc=1.'
        ) from error


def _with_bar(items: Any, total: int, progress: bool, split: str) -> Any:
    """The items, with a bar where asked for."""
    if not progress:
        return items
    from tqdm import tqdm

    return tqdm(items, total=total, desc=f"Shapes, {split}", unit="video")


# --- one video -------------------------------------------------------------------------------------------------------
def _make_video(folder: Path, split: str, seed: int, index: int) -> Parts:
    """Write the pictures of one video and its still images; give their annotations."""
    stream = Stream(split, seed, index)
    scene = make_scene(stream)
    masks = visible_masks(scene)
    name = f"{split}_{index:06d}"
    frames = [f"{frame:05d}" for frame in range(scene.num_frames)]
    for frame, picture in zip(frames, draw_scene(scene, draw_texture(stream), masks), strict=True):
        _save(picture, folder / "JPEGImages" / name / f"{frame}.jpg")
    expressions = {}
    for key, expression in enumerate(video_expressions(scene, masks.any(axis=(2, 3)), stream)):
        if objects_of(expression.text, scene, masks) != list(expression.targets):
            raise DataError(f"{name}: {expression.text!r} does not mean {expression.targets}; this is a bug.")
        expressions[str(key)] = {
            "exp": expression.text,
            "obj_id": list(expression.targets),
            "anno_id": [IDS * index + i for i in expression.targets],
            "type": expression.type,
        }
    video = {"expressions": expressions, "frames": frames, "vid_id": index, "height": HEIGHT, "width": WIDTH}
    tracks = {str(IDS * index + i): [_rle(mask) for mask in track] for i, track in enumerate(masks)}
    pairs = scene_questions(scene, stream)
    for question, answer in pairs:
        if answer_of(question, scene, masks) != answer:
            raise DataError(f"{name}: the answer to {question!r} is not {answer!r}; this is a bug.")
    return {
        "videos": {name: video},
        "masks": tracks,
        "questions": [_conversation(name, pairs)],
        **_refer_image(folder, split, index, stream),
        **_reason_image(folder, split, index, stream),
    }


def _save(picture: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, quality=QUALITY)


def _rle(mask: np.ndarray) -> dict[str, Any] | None:
    return encode_rle(mask) if mask.any() else None


def _conversation(name: str, pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """An item of LLaVA-Video; the first question carries the placeholder of the video."""
    turns = []
    for question, answer in pairs:
        turns.append({"from": "human", "value": question if turns else f"<image>\n{question}"})
        turns.append({"from": "gpt", "value": answer})
    return {"id": name, "data_source": "shapes", "video": name, "conversations": turns}


# --- still images ----------------------------------------------------------------------------------------------------
def _draw_still(scene: Scene, stream: Stream, path: Path) -> np.ndarray:
    """Draw a scene of one frame; gives its masks `(num_shapes, height, width)`."""
    masks = visible_masks(scene)
    _save(draw_scene(scene, draw_texture(stream), masks)[0], path)
    return masks[:, 0]


def _polygon(scene: Scene, index: int) -> list[list[float]]:
    """Outline of an object in the first frame, to a hundredth of a pixel."""
    return [[round(float(x), 2), round(float(y), 2)] for x, y in outline_in_frame(scene.shapes[index], 0)]


def _refer_image(folder: Path, split: str, index: int, stream: Stream) -> Parts:
    """A still image with sentences as RefCOCO has them, and with the classes of its objects as PACO-LVIS has them."""
    scene = make_still(stream)
    image = IDS * index
    file_name = f"COCO_train2014_{image:012d}.jpg"
    path = folder / "refer_seg" / "images" / "mscoco" / "images" / "train2014" / file_name
    masks = _draw_still(scene, stream, path)
    record = {"id": image, "file_name": file_name, "height": HEIGHT, "width": WIDTH}
    annotations, refs = [], []
    for i, shape in enumerate(scene.shapes):
        outline = [value for corner in _polygon(scene, i) for value in corner]
        area = float(masks[i].sum())
        common = {"image_id": image, "bbox": _box(masks[i]), "area": area, "iscrowd": 0}
        category = CATEGORIES.index(shape.form) + 1
        annotations.append({"id": image + i, "category_id": category, "segmentation": [outline], **common})
    for i, texts in image_expressions(scene, stream).items():
        numbers = [3 * (image + i) + k for k in range(len(texts))]
        sentences = [
            {"tokens": text.split(), "raw": text, "sent_id": number, "sent": text}
            for number, text in zip(numbers, texts, strict=True)
        ]
        refs.append(
            {
                "sent_ids": numbers,
                "file_name": file_name.replace(".jpg", f"_{i}.jpg"),
                "ann_id": image + i,
                "ref_id": image + i,
                "image_id": image,
                "split": REFER_SPLITS[split],
                "category_id": annotations[i]["category_id"],
                "sentences": sentences,
            }
        )
    paco_name = f"{split}2017/{image:012d}.jpg"
    paco_path = folder / "paco" / "coco" / paco_name
    paco_path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, paco_path)
    return {
        "refer_images": [record],
        "refer_annotations": annotations,
        "refs": refs,
        "paco_images": [{**record, "file_name": paco_name}],
        "paco_annotations": _class_annotations(scene, masks, image),
    }


def _class_annotations(scene: Scene, masks: np.ndarray, image: int) -> list[dict[str, Any]]:
    """Two annotations of each object: one of its form, one of its colour."""
    found = []
    for i, shape in enumerate(scene.shapes):
        for offset, name in enumerate((shape.form, f"{shape.color} shape")):
            number = 2 * (image + i) + offset
            found.append(
                {
                    "id": number,
                    "obj_ann_id": number,
                    "image_id": image,
                    "category_id": CATEGORIES.index(name) + 1,
                    "segmentation": encode_rle(masks[i]),
                    "bbox": _box(masks[i]),
                    "area": float(masks[i].sum()),
                }
            )
    return found


def _box(mask: np.ndarray) -> list[float]:
    """Box of a mask as COCO has it: left, top, width, height."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [float(columns[0]), float(rows[0]), float(np.ptp(columns)) + 1, float(np.ptp(rows)) + 1]


def _reason_image(folder: Path, split: str, index: int, stream: Stream) -> Parts:
    """A still image with one question, as ReasonSeg has it."""
    facts: dict[str, int] = {}
    while not facts:
        scene = make_still(stream)
        facts = reasoning_about(scene, np.ones((len(scene.shapes), 1), dtype=bool))
    fact = stream.choice(sorted(facts))
    name = f"{split}_{index:06d}"
    base = folder / "reason_seg" / SPLITS[split]
    masks = _draw_still(scene, stream, base / f"{name}.jpg")
    texts = stream.shuffled(REASONING[fact])
    for text in texts:
        if objects_of(text, scene, masks[:, None]) != [facts[fact]]:
            raise DataError(f"{name}: {text!r} does not mean {facts[fact]}; this is a bug.")
    shape = {
        "label": "target",
        "shape_type": "polygon",
        "image_name": f"{name}.jpg",
        "points": _polygon(scene, facts[fact]),
    }
    write_json(base / f"{name}.json", {"text": texts, "is_sentence": True, "shapes": [shape]})
    return {}


# --- annotations of the whole split ----------------------------------------------------------------------------------
def _write_annotations(folder: Path, split: str, parts: list[Parts]) -> None:
    """The files that hold the annotations of all videos."""

    def joined(key: str) -> list[Any]:
        return [item for part in parts for item in part[key]]

    videos = {name: video for part in parts for name, video in part["videos"].items()}
    write_json(folder / "meta_expressions.json", {"videos": videos})
    write_json(folder / "mask_dict.json", {key: track for part in parts for key, track in part["masks"].items()})
    write_json(folder / "llava_video" / "questions.json", joined("questions"))
    categories = [{"id": number, "name": name} for number, name in enumerate(CATEGORIES, start=1)]
    refcoco = folder / "refer_seg" / "refcoco"
    instances = {
        "images": joined("refer_images"),
        "annotations": joined("refer_annotations"),
        "categories": categories,
    }
    write_json(refcoco / "instances.json", instances)
    write_json(refcoco / "refs(unc).json", joined("refs"))
    classes = {
        "images": joined("paco_images"),
        "annotations": joined("paco_annotations"),
        "categories": categories,
    }
    write_json(folder / "paco" / "annotations" / f"paco_lvis_v1_{SPLITS[split]}.json", classes)
