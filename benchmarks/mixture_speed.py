"""How many clips a second the mixture makes ready for the model: `python benchmarks/mixture_speed.py`.

Draws textured clips as JPEG files in a temporary folder (100 videos of 60 frames, 240 x 320, with 20 expressions each
by default) and feeds them, as Arrow rows, through the mixture, the transform and the collator at the tiny size
(64-pixel VLM view, 128-pixel SAM view), by one worker with one thread. For each draw, its frames are read, both views
are made, masks and texts prepared. Numbers of a machine that does something else meanwhile say little.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars
from PIL import Image
from torch.utils.data import DataLoader

from virst_hf.data.clips import ClipTransform
from virst_hf.data.collator import VirstCollator
from virst_hf.data.mixture import Mixture
from virst_hf.data.records import make_row, record_features
from virst_hf.rle import encode_rle
from virst_hf.untrained import untrained_processor

HEIGHT, WIDTH, FRAMES = 240, 320, 60
KINDS = ("rvos", "referring_image", "video_qa")
# Still images stand for the three image categories: 12 : 8 : 1 of [4, 3, 1, 12, 1].
MIXED = {"rvos": 12, "referring_image": 8, "video_qa": 1}
CASES = {
    "mixture": {"weights": MIXED},
    "RVOS only": {"weights": {"rvos": 1}},
    "RVOS, 4 expressions a clip": {"weights": {"rvos": 1}, "expressions": 4},
    "mixture, fast_resize": {"weights": MIXED, "fast": True},
    "RVOS only, fast_resize": {"weights": {"rvos": 1}, "fast": True},
}


def make_clip(folder: Path, rng: np.random.Generator) -> tuple[list[str], list[dict | None]]:
    """Write the frames of one clip; their files, and a mask of each frame."""
    folder.mkdir(parents=True)
    coarse = Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8))
    ground = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)).copy()
    files, masks = [], []
    top, left, side = rng.integers(0, HEIGHT - 60), rng.integers(0, WIDTH // 2), rng.integers(20, 60)
    for frame in range(FRAMES):
        mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
        mask[top : top + side, left + 2 * frame : left + 2 * frame + side] = True
        files.append(str(folder / f"{frame:05d}.jpg"))
        Image.fromarray(np.where(mask[..., None], np.uint8(230), ground)).save(files[-1], quality=90)
        masks.append(encode_rle(mask))
    return files, masks


def make_sets(root: Path, num_videos: int, num_expressions: int) -> dict[str, Dataset]:
    """Rows of three categories about the same clips, kept as Arrow files."""
    rng = np.random.default_rng(0)
    rows: dict[str, list[dict]] = {category: [] for category in KINDS}
    for video in range(num_videos):
        files, masks = make_clip(root / "frames" / f"{video:04d}", rng)
        for number in range(num_expressions):
            for category in KINDS:
                count = 1 if category == "referring_image" else FRAMES
                row = make_row(
                    video_id=f"{video:04d}",
                    expression_id=str(number),
                    expression=f"the bright square number {number} that moves to the right",
                    answer="It moves to the right." if category == "video_qa" else None,
                    frame_names=[Path(file).stem for file in files[:count]],
                    frame_paths=files[:count],
                    height=HEIGHT,
                    width=WIDTH,
                    object_ids=[] if category == "video_qa" else [1],
                    masks=None if category == "video_qa" else masks[:count],
                    category=category,
                    source=category,
                    split="train",
                )
                rows[category].append(row)
    sets = {}
    for category, found in rows.items():
        Dataset.from_list(found, features=record_features()).save_to_disk(str(root / category))
        sets[category] = Dataset.load_from_disk(str(root / category))
    return sets


def clips_per_second(
    sets: dict[str, Dataset], case: dict[str, Any], frames: int, workers: int, seconds: float
) -> float:
    """Draws a second for each worker, after a start that is not counted."""
    processor = untrained_processor()
    processor.video_processor.max_vlm_frames = frames
    mixture = Mixture(
        {name: rows for name, rows in sets.items() if name in case["weights"]},
        10**6,
        weights=case["weights"],
        expressions_per_clip=case.get("expressions", 1),
        transform=ClipTransform(processor, fast_resize=case.get("fast", False)),
    )
    batch = 4
    loader = iter(DataLoader(mixture, batch, num_workers=workers, collate_fn=VirstCollator(processor)))
    for _ in range(5):
        next(loader)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        next(loader)
        count += batch
    return count / (time.perf_counter() - start) / max(1, workers)


def main() -> None:
    """Make the clips, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=100)
    parser.add_argument("--expressions", type=int, default=20, help="for each video")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 16, 32], help="VLM frames (T_vlm)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1], help="0: in the main process")
    parser.add_argument("--json", type=Path, help="write the table to this file as well")
    args = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bars()
    results = []
    with tempfile.TemporaryDirectory() as root:
        sets = make_sets(Path(root), args.videos, args.expressions)
        print(
            f"{args.videos} videos of {FRAMES} frames, {HEIGHT} x {WIDTH}; {len(sets['rvos'])} rows of each category"
        )
        print(f"{'':<32}{'T_vlm':>6}{'workers':>9}{'clips/s per worker':>20}")
        for title, case in CASES.items():
            for frames in args.frames:
                for workers in args.workers:
                    speed = clips_per_second(sets, case, frames, workers, args.seconds)
                    row = {"case": title, "frames": frames, "workers": workers, "clips_per_second": round(speed, 1)}
                    results.append(row)
                    print(f"{title:<32}{frames:>6}{workers:>9}{speed:>20.1f}", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"rows": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
