"""How long a large MeViS takes to be listed, and how much memory: `python benchmarks/data_listing.py`.

Makes a synthetic MeViS (2,000 videos, 30,000 expressions, 60 frames each by default; every frame the same small
picture) in a temporary folder, then reads all its records once as a stream and once into an Arrow copy.
"""

import argparse
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from virst_hf.data import load
from virst_hf.rle import encode_rle

FRAMES, OBJECTS, SIZE = 60, 4, (120, 160)


def make_mevis(root: Path, num_videos: int, num_expressions: int) -> None:
    """Write the split "train"; masks are boxes that move, an expression names one to three of four objects."""
    split = root / "train"
    split.mkdir(parents=True)
    buffer = io.BytesIO()
    Image.new("RGB", SIZE[::-1]).save(buffer, "JPEG")
    rng = np.random.default_rng(0)
    names = [f"{frame:05d}" for frame in range(FRAMES)]
    videos, masks = {}, {}
    for index in range(num_videos):
        folder = split / "JPEGImages" / f"{index:012x}"
        folder.mkdir(parents=True)
        for name in names:
            (folder / f"{name}.jpg").write_bytes(buffer.getvalue())
        ids = range(index * OBJECTS, (index + 1) * OBJECTS)
        for number in ids:
            masks[str(number)] = [moving_box(number, frame) for frame in range(FRAMES)]
        expressions = {}
        for key in range(num_expressions // num_videos):
            chosen = sorted(int(i) for i in rng.choice(OBJECTS, rng.integers(1, 4), replace=False))
            targets = [ids[i] for i in chosen]
            expressions[str(key)] = {"exp": f"the things number {key}", "obj_id": chosen, "anno_id": targets}
        videos[folder.name] = {"expressions": expressions, "frames": names, "vid_id": index}
    (split / "meta_expressions.json").write_text(json.dumps({"videos": videos}))
    (split / "mask_dict.json").write_text(json.dumps(masks))


def moving_box(number: int, frame: int) -> dict:
    """An RLE that differs from frame to frame."""
    mask = np.zeros(SIZE, dtype=bool)
    top, left = (number * 7 + frame) % (SIZE[0] - 40), (number * 13 + 2 * frame) % (SIZE[1] - 40)
    mask[top : top + 40, left : left + 30 + number % 10] = True
    return encode_rle(mask)


def list_rows(root: str, streaming: bool) -> dict:
    """Read every record of the set in this process."""
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        rows = load("mevis", root, "train", streaming=streaming, cache_dir=cache)
        count = sum(1 for _ in rows) if streaming else len(rows)
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return {"mode": "stream" if streaming else "Arrow", "rows": count, "seconds": seconds, "peak_mb": peak}


def main() -> None:
    """Make the set, list it in a fresh process each, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=2000)
    parser.add_argument("--expressions", type=int, default=30000)
    parser.add_argument("--list", nargs=2, metavar=("ROOT", "MODE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.list:
        print(json.dumps(list_rows(args.list[0], args.list[1] == "stream")))
        return
    with tempfile.TemporaryDirectory() as root:
        make_mevis(Path(root), args.videos, args.expressions)
        print(f"{args.videos} videos, {args.expressions} expressions, {FRAMES} frames each")
        for mode in ("stream", "Arrow"):
            command = [sys.executable, __file__, "--list", root, mode]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            result = json.loads(output.splitlines()[-1])
            print(
                f"{result['mode']:<8}{result['rows']:>8} rows {result['seconds']:>7.1f} s {result['peak_mb']:>8.0f} MB"
            )


if __name__ == "__main__":
    main()
