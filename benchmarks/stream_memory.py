"""Whether what inference holds grows: with the length of a streamed video, and with the number of videos.

    python benchmarks/stream_memory.py --size tiny --json memory.json

`stream` runs over 200 and over 2000 frames, three times each, every time in a fresh process: the median of the peaks
(RSS) for the longer video may be 1.05 times that for the shorter one plus 50 MB. Then 20 videos are segmented in one
process: the mean RSS after each of the last ten may be 5 % above that of the first ten. Exit code 1 where one is more.
"""

import argparse
import json
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from inference import at_least, new_file, peak_resident, usable_device
from inference_sizes import SIZES, build, expression_texts, random_video

from virst_hf.rendering import write_json

__all__ = ["judge", "measure_all", "resident_after_videos", "stream_peak"]

FACTOR, SPARE_MB, GROWTH = 1.05, 50, 1.05


def stream_peak(size: str, device: str, threads: int, frames: int, expressions: int) -> float:
    """Peak RSS of this process, in MB, after a stream."""
    torch.set_num_threads(threads)
    model, processor = build(size)
    for _ in model.to(device).stream(random_video(frames), expression_texts(expressions), processor):
        pass
    return peak_resident() / 1e6


def resident() -> float:
    """RSS of this process now, in MB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) * 1024 / 1e6


def resident_after_videos(size: str, device: str, threads: int, frames: int, videos: int) -> list[float]:
    """RSS in MB after each of some videos of different lengths."""
    torch.set_num_threads(threads)
    model, processor = build(size)
    found = []
    for index in range(videos):
        inputs = processor(videos=random_video(frames - index % 3, seed=index), text=expression_texts(2))
        model.to(device).segment(**inputs)
        found.append(resident())
    return found


def alone(work: Any, *arguments: Any) -> Any:
    """What a function gives in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def measure_all(args: argparse.Namespace, run: Any = alone) -> dict[str, Any]:
    """All that is measured, as the JSON file has it."""
    common = args.size, args.device, args.threads
    peaks = {
        str(frames): [run(stream_peak, *common, frames, args.expressions) for _ in range(args.runs)]
        for frames in args.frames
    }
    after = run(resident_after_videos, *common, args.video_frames, args.videos)
    half = len(after) // 2
    content = {
        "size": args.size,
        "device": args.device,
        "threads": args.threads,
        "expressions": args.expressions,
        "stream_mb": peaks,
        "median_mb": {frames: median(found) for frames, found in peaks.items()},
        "videos": args.videos,
        "rss_mb": after,
        "mean_rss_mb": [mean(after[:half]), mean(after[half:])],
    }
    return {**content, "bounded": judge(content)}


def judge(content: dict[str, Any]) -> dict[str, bool]:
    """Whether the memory of a stream, and that of many videos, stays within its bounds."""
    shortest, *_, longest = [content["median_mb"][key] for key in sorted(content["median_mb"], key=int)]
    first, last = content["mean_rss_mb"]
    return {"stream": longest <= FACTOR * shortest + SPARE_MB, "videos": last <= GROWTH * first}


def make_parser() -> argparse.ArgumentParser:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="tiny")
    parser.add_argument("--device", type=usable_device, default="cpu")
    parser.add_argument("--threads", type=at_least(1), default=torch.get_num_threads())
    parser.add_argument("--frames", type=at_least(1), nargs=2, default=[200, 2000])
    parser.add_argument("--expressions", type=at_least(1), default=1)
    parser.add_argument("--runs", type=at_least(1), default=3)
    parser.add_argument("--videos", type=at_least(2), default=20)
    parser.add_argument("--video-frames", type=at_least(3), default=32)
    parser.add_argument("--json", type=new_file, metavar="OUT")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; 1 where memory grows."""
    args = make_parser().parse_args(arguments)
    content = measure_all(args)
    print(json.dumps({key: content[key] for key in ("median_mb", "mean_rss_mb", "bounded")}, indent=2))
    if args.json:
        write_json(args.json, content)
    return 0 if all(content["bounded"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
