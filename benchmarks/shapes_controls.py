"""How far one gets on Shapes without reading: `python benchmarks/shapes_controls.py`.

Prints for each type of expression its share, and the J&F of two predictions that know every object of a clip but not
the sentence: the union of all objects, and one object at random. Makes a test split of 200 videos in a temporary
folder unless `--root` names one.
"""

import argparse
import json
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from virst_hf.data.shapes_maker import make_shapes
from virst_hf.metrics import boundary_accuracy, region_similarity
from virst_hf.rle import decode_rle

TYPES = ("attribute", "motion", "relation", "plural", "reasoning", "no_target")
CONTROLS = ("union of all objects", "one object at random")


def j_and_f(prediction: np.ndarray, target: np.ndarray) -> float:
    """J&F of one expression, 0 to 100."""
    return 50 * float(region_similarity(prediction, target).mean() + boundary_accuracy(prediction, target).mean())


def object_masks(folder: Path, videos: dict) -> Iterator[tuple[str, dict[int, np.ndarray]]]:
    """Video -> annotation id -> its masks `(frames, height, width)`, one video at a time."""
    tracks = json.loads((folder / "mask_dict.json").read_text())
    by_video = defaultdict(list)
    # Ten ids for each video, whether it has as many objects or not.
    for number in map(int, tracks):
        by_video[number // 10].append(number)
    for name, video in videos.items():
        size = (video["height"], video["width"])
        yield name, {n: np.stack([decode_rle(r, size) for r in tracks[str(n)]]) for n in by_video[video["vid_id"]]}


def measure(folder: Path, seed: int) -> dict:
    """Scores of the controls by type, and the smallest object as a share of the frame."""
    videos = json.loads((folder / "meta_expressions.json").read_text())["videos"]
    rng, scores, smallest = random.Random(seed), defaultdict(list), 1.0
    for name, masks in tqdm(object_masks(folder, videos), total=len(videos), unit="video"):
        smallest = min(smallest, *(mask.sum(axis=(1, 2)).max() / mask[0].size for mask in masks.values()))
        union = np.any(list(masks.values()), axis=0)
        for expression in videos[name]["expressions"].values():
            target = np.zeros_like(union)
            for number in expression["anno_id"]:
                target |= masks[number]
            predictions = (union, masks[rng.choice(sorted(masks))])
            for control, prediction in zip(CONTROLS, predictions, strict=True):
                score = j_and_f(prediction, target)
                scores[control, expression["type"]].append(score)
                scores[control, "all"].append(score)
    return {"scores": scores, "smallest": smallest}


def main() -> None:
    """Make or take the split, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, help="folder of a set that was made (default: makes one)")
    parser.add_argument("--split", default="test")
    parser.add_argument("--videos", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if args.root is None:
            start = time.perf_counter()
            folder = make_shapes(temporary, args.split, args.videos, args.seed)
            print(f"{args.videos} videos made in {time.perf_counter() - start:.1f} s by two processes")
        else:
            folder = args.root / args.split
        found = measure(folder, args.seed)
    scores = found["scores"]
    total = len(scores[CONTROLS[0], "all"])
    print(f"{'type':<12}{'share':>8}" + "".join(f"{control:>24}" for control in CONTROLS))
    for kind in (*TYPES, "all"):
        share = len(scores[CONTROLS[0], kind]) / total
        print(f"{kind:<12}{share:>8.1%}" + "".join(f"{np.mean(scores[control, kind]):>24.1f}" for control in CONTROLS))
    print(f"{total} expressions; the smallest object covers {found['smallest']:.2%} of the frame where it is largest")


if __name__ == "__main__":
    main()
