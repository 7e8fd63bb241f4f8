"""Speed of the boundary metric F: virst_hf against plain numpy and OpenCV, in the same run, on one thread.

    python benchmarks/boundary_speed.py --json result.json

The plain version makes the boundary maps in numpy, dilates them with `cv2.dilate` and a disk that is built once, and
works on whole frames. Both get the same boolean masks, blobs of 0.5 to 35 % of the frame and a prediction that is a
few pixels off; the scores must be equal. The two take turns, and the best of the repeats counts.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from virst_hf.metrics.boundary import boundary_accuracy, tolerance_radius

SHARES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35)


def plain_boundary(mask: np.ndarray) -> np.ndarray:
    """Boundary map of a boolean mask `(height, width)` as DAVIS defines it."""
    right, below, diagonal = np.zeros_like(mask), np.zeros_like(mask), np.zeros_like(mask)
    right[:, :-1] = mask[:, 1:]
    below[:-1] = mask[1:]
    diagonal[:-1, :-1] = mask[1:, 1:]
    found = (mask ^ right) | (mask ^ below) | (mask ^ diagonal)
    found[-1] = mask[-1] ^ right[-1]
    found[:, -1] = mask[:, -1] ^ below[:, -1]
    found[-1, -1] = False
    return found


def plain_f(prediction: np.ndarray, target: np.ndarray, disk: np.ndarray) -> float:
    """F of one frame without any trick."""
    ours, theirs = plain_boundary(prediction), plain_boundary(target)
    near_ours, near_theirs = cv2.dilate(ours.view(np.uint8), disk), cv2.dilate(theirs.view(np.uint8), disk)
    num_ours, num_theirs = np.count_nonzero(ours), np.count_nonzero(theirs)
    if not num_ours or not num_theirs:
        return float(num_ours == num_theirs)
    precision = np.count_nonzero(ours & near_theirs.view(bool)) / num_ours
    recall = np.count_nonzero(theirs & near_ours.view(bool)) / num_theirs
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def disk_of(radius: int) -> np.ndarray:
    """The disk `x^2 + y^2 <= radius^2`."""
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return (x * x + y * y <= radius * radius).astype(np.uint8)


def blob(rng: np.random.Generator, size: tuple[int, int], share: float) -> np.ndarray:
    """A wavy ellipse of about `share` of the frame, centred where it fits in."""
    height, width = size
    shape = rng.uniform(0.6, 1.6)
    ry = min(math.sqrt(share * height * width / math.pi * shape), 0.45 * height)
    rx = share * height * width / math.pi / ry
    cy, cx = rng.uniform(ry, height - ry), rng.uniform(min(rx, width / 2), max(width - rx, width / 2))
    y, x = np.mgrid[:height, :width]
    angle = np.arctan2((y - cy) / ry, (x - cx) / rx)
    wave = 1 + 0.06 * np.sin(7 * angle + rng.uniform(0, 6)) + 0.03 * np.sin(19 * angle + rng.uniform(0, 6))
    return ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < wave**2


def clip(size: tuple[int, int], share: float, frames: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Targets and predictions a few pixels off, `(frames, height, width)`."""
    rng = np.random.default_rng(seed)
    target = np.stack([blob(rng, size, share) for _ in range(frames)])
    moves = rng.integers(-9, 10, (frames, 2))
    return np.stack([np.roll(m, tuple(move), (0, 1)) for m, move in zip(target, moves, strict=True)]), target


def best_of(repeats: int, *calls: Callable[[], object]) -> list[float]:
    """The shortest time of each call in seconds, the calls taking turns."""
    times = [math.inf] * len(calls)
    for _ in range(repeats):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call()
            times[i] = min(times[i], time.perf_counter() - start)
    return times


def measure(size: tuple[int, int], share: float, frames: int, repeats: int, seed: int) -> dict[str, float]:
    """Milliseconds a frame of both versions on masks of one share of the frame."""
    prediction, target = clip(size, share, frames, seed)
    disk = disk_of(tolerance_radius(size))

    def plain() -> list[float]:
        return [plain_f(p, g, disk) for p, g in zip(prediction, target, strict=True)]

    if not np.array_equal(plain(), boundary_accuracy(prediction, target)):
        raise SystemExit(f"The two versions disagree on masks of {share:.1%}.")
    slow, fast = best_of(repeats, plain, lambda: boundary_accuracy(prediction, target))
    return {
        "share": share,
        "mean_share": round(float(target.mean()), 4),
        "plain_ms": round(1000 * slow / frames, 4),
        "virst_ms": round(1000 * fast / frames, 4),
        "ratio": round(slow / fast, 2),
    }


def main() -> None:
    """Measure, print a table and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=[480, 854], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--frames", type=int, default=100, help="frames of each clip")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="OUT")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    rows = [measure(tuple(args.size), share, args.frames, args.repeats, args.seed) for share in SHARES]
    mean = math.exp(sum(math.log(row["ratio"]) for row in rows) / len(rows))
    print("mask of frame | plain, ms a frame | virst_hf, ms a frame | ratio")
    for row in rows:
        print(f"{row['share']:13.1%} | {row['plain_ms']:17.3f} | {row['virst_ms']:20.3f} | {row['ratio']:5.1f}")
    print(f"geometric mean of the ratios: {mean:.1f}")
    slowest = max(row["virst_ms"] for row in rows)
    print(f"100 frames of {args.size[0]} x {args.size[1]}: at most {slowest / 10:.3f} s")
    if args.json:
        result = {"size": args.size, "frames": args.frames, "threads": 1, "geometric_mean": round(mean, 2)}
        args.json.write_text(json.dumps({**result, "seconds_per_100_frames": round(slowest / 10, 4), "rows": rows}))


if __name__ == "__main__":
    main()
