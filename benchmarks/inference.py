"""How fast a video is segmented, and in how much memory: exact, fast, and on the schedule of the release.

    python benchmarks/inference.py --size tiny --device cpu --json result.json

Each row is a process of its own, so that its peak memory is its own: the model is built, warmed up on a few frames,
and run; a run of less than two seconds three times, of which the middle one counts. Sizes are `tiny` (virst-tiny where
it is installed, else the small model of the tests), `mid` and `full` (SAM 2.1 large at 512 and 1024 pixels, a small
language model and tower) and `7b` (the release's sizes). Modes:

- `exact`: `model.segment` with all expressions in one call, for long videos `model.stream`; float32.
- `fast`: the same with the preset of that name (`virst_hf.FAST`). Masks change a little.
- `release`: the same weights, float32, in the order of the released code (see `release_schedule.py`). It takes one
  expression at a time; so one is run, and rows of several are multiplied (`"scaled": true`).

Videos of more than 200 frames are run in the mode `exact` alone: they show memory, and the ratios are those of 200.

Of a clip the seconds are those of `segment`, with the views made before. From 100 frames on each mode also reads and
resizes the frames and draws the masks, as a stream does.
`stages` are the seconds by part, `encoder_calls` the frames that went through SAM's encoder, and `ratios` those of the
seconds: of modes, and of the exact seconds to the lower bound, which is what its work takes, each call timed alone in
the same process (see `lower_bound.py`). `lower_bound_ratio` is the largest of the latter. The table and the JSON file
hold the same rows; the file is written after each of them. Beside it `OUT.details.json` says under which conditions
they were found, which rows are multiplied, and what the lower bound is made of.
"""

import argparse
import multiprocessing
import resource
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from inference_sizes import SIZES, build, expression_texts, random_video
from lower_bound import STAGES, Observer, check_calls, clock, lower_bound
from release_schedule import anchors_of, release_encoder_calls, seg_frames_of, segment_as_release
from tqdm import tqdm

from virst_hf import VirstForVideoSegmentation, VirstProcessor
from virst_hf.cli.options import at_least
from virst_hf.errors import VirstError
from virst_hf.modules.tracker import EXACT
from virst_hf.presets import FAST
from virst_hf.processing_virst import iter_masks
from virst_hf.rendering import write_json
from virst_hf.video_io import VideoSource

MODES = ("exact", "fast", "release")
BOUND = "exact/lower bound"
# Videos from this length on are streamed; only the exact mode is run on longer ones than that.
STREAM_FROM, COMPARED_UP_TO = 100, 200
WARM_UP_FRAMES = 3  # two anchors and a frame that is propagated
# A run that is shorter than so many seconds is made three times.
SHORT, RUNS = 2.0, 3
# What the JSON file says of a row.
ROW = ("frames", "expressions", "mode", "seconds", "fps", "peak_rss_mb", "encoder_calls", "stages")


@dataclass(frozen=True)
class Case:
    """What is measured for one row."""

    size: str
    frames: int
    expressions: int
    mode: str
    device: str = "cpu"
    threads: int = 1
    initial_fusion: bool = True


def prepare(model: VirstForVideoSegmentation, processor: VirstProcessor, case: Case) -> Callable[[], Any]:
    """The run of a case, with all done that is not measured."""
    video, texts = random_video(case.frames), expression_texts(case.expressions)
    tracking = FAST.tracking if case.mode == "fast" else EXACT
    if case.frames >= STREAM_FROM:
        if case.mode == "release":
            return lambda: draw(segment_as_release(model, **processor(videos=video, text=texts)), video)
        return lambda: sum(1 for _ in model.stream(video, texts, processor, tracking=tracking))
    inputs = processor(videos=video, text=texts)
    if case.mode == "release":
        return lambda: segment_as_release(model, **inputs)
    return lambda: model.segment(**inputs, tracking=tracking)


def draw(found: list[tuple[torch.Tensor, torch.Tensor]], video: VideoSource) -> list[np.ndarray]:
    """Masks of the release at the size of the video, all held, as a stream gives them one by one."""
    size = video.height, video.width
    return [np.stack(list(iter_masks(logits, scores, size))) for logits, scores in found]


def run_observed(model: VirstForVideoSegmentation, run: Callable[[], Any], waits: bool) -> tuple[Observer, float]:
    """Run once: what was noted, and the seconds."""
    with Observer(model, waits) as observer:
        start = clock(model.device)
        run()
        seconds = clock(model.device) - start
    return observer, seconds


def run_measured(
    model: VirstForVideoSegmentation, run: Callable[[], Any]
) -> tuple[Observer, float, int, dict[str, float]]:
    """Run once, or a few times: what was noted of the middle run, its seconds, peak of memory, seconds by part."""
    # An accelerator that is waited for at the borders of each part is slower: its stages are those of a run more.
    on_cpu = model.device.type == "cpu"
    runs = [run_observed(model, run, waits=on_cpu)]
    peak = peak_resident()  # of one run: a second one finds other gaps in memory
    while len(runs) < RUNS and runs[0][1] < SHORT:
        runs.append(run_observed(model, run, waits=on_cpu))
    observer, seconds = sorted(runs, key=lambda found: found[1])[len(runs) // 2]
    timed, total = (observer, seconds) if on_cpu else run_observed(model, run, waits=True)
    return observer, seconds, peak, timed.stages(total)


def check_encoder_calls(case: Case, processor: VirstProcessor, stride: int, found: int) -> int:
    """Number of anchors of a case; an error where the release's schedule encoded other frames than it should."""
    seg_frames = seg_frames_of(case.frames, processor)
    num_anchors = len(anchors_of(seg_frames, stride))
    if case.mode == "release":
        once = release_encoder_calls(case.frames, len(seg_frames), num_anchors, case.initial_fusion)
        if found != case.expressions * once:
            raise RuntimeError(
                f"The schedule of the release encoded {found} frames for {case.expressions} expressions, expected "
                f"{once} for each."
            )
    return num_anchors


def measure(case: Case) -> dict[str, Any]:
    """One row."""
    torch.set_num_threads(case.threads)
    model, processor = build(case.size, case.initial_fusion)
    model = model.to(case.device, torch.float32)
    if case.mode == "fast":
        FAST.prepare(model)
    small = replace(case, frames=min(WARM_UP_FRAMES, case.frames), expressions=1)
    prepare(model, processor, replace(small, mode="fast" if case.mode == "fast" else "exact"))()
    run = prepare(model, processor, case)
    observer, seconds, peak, stages = run_measured(model, run)
    row = {
        "frames": case.frames,
        "expressions": case.expressions,
        "mode": case.mode,
        "seconds": seconds,
        "fps": case.frames / seconds,
        "peak_rss_mb": peak / 1e6,
        "encoder_calls": observer.frames_encoded,
        "stages": stages,
    }
    if model.device.type == "cuda":
        row["peak_device_mb"] = torch.cuda.max_memory_allocated(model.device) / 1e6
    stride = model.config.anchor_config.anchor_stride
    num_anchors = check_encoder_calls(case, processor, stride, observer.frames_encoded)
    if case.mode == "exact":
        check_calls(observer, case.frames, num_anchors)
        row["lower_bound"] = lower_bound(model, observer)
    return row


def peak_resident() -> int:
    """Peak of the resident memory of this process, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # ru_maxrss of a process begins at what its parent had; this does not.
        lines = [line.split() for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        if lines:
            return int(lines[0][1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# --- rows ------------------------------------------------------------------------------------------------------------
def measure_alone(case: Case) -> dict[str, Any]:
    """One row, in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, case).result()


def scaled(row: dict[str, Any], expressions: int) -> dict[str, Any]:
    """The row of several expressions, of that of one: the release does the same for each. Memory stays what it was."""
    return {
        **row,
        "expressions": expressions,
        "seconds": row["seconds"] * expressions,
        "fps": row["fps"] / expressions,
        "encoder_calls": row["encoder_calls"] * expressions,
        "stages": {name: seconds * expressions for name, seconds in row["stages"].items()},
        "scaled": True,
    }


def make_cases(args: argparse.Namespace) -> list[Case]:
    """All rows that are asked for."""
    common = {name: getattr(args, name) for name in ("size", "device", "threads", "initial_fusion")}
    size = SIZES[args.size]
    return [
        Case(frames=frames, expressions=expressions, mode=mode, **common)
        for frames in args.frames or size.frames
        for expressions in args.expressions or size.expressions
        for mode in MODES
        if mode in args.modes and (mode == "exact" or frames <= COMPARED_UP_TO)
    ]


def rows_of(cases: list[Case], measure: Callable[[Case], dict[str, Any]] = measure_alone) -> Iterator[dict[str, Any]]:
    """Measure one row after the other; the release once for all numbers of expressions."""
    of_one: dict[int, dict[str, Any]] = {}
    for case in cases:
        if case.mode != "release":
            yield measure(case)
            continue
        if case.frames not in of_one:
            of_one[case.frames] = measure(replace(case, expressions=1))
        row = of_one[case.frames]
        yield row if case.expressions == 1 else scaled(row, case.expressions)


def key_of(row: dict[str, Any]) -> str:
    """Name of a video's length and number of expressions."""
    return f"{row['frames']} x {row['expressions']}"


def ratios(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Ratios of seconds: of the modes, and exact to lower bound; of each length and number of expressions."""
    out: dict[str, dict[str, float]] = {}
    for row in rows:
        if "lower_bound" in row:
            bound = sum(part["seconds"] for part in row["lower_bound"].values())
            out.setdefault(key_of(row), {})[BOUND] = row["seconds"] / bound
    seconds = {(key_of(row), row["mode"]): row["seconds"] for row in rows}
    for slower, faster in (("release", "exact"), ("exact", "fast")):
        for key, mode in seconds:
            if mode == slower and (key, faster) in seconds:
                out.setdefault(key, {})[f"{slower}/{faster}"] = seconds[key, slower] / seconds[key, faster]
    return out


def report(args: argparse.Namespace, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of the JSON file."""
    found = ratios(rows)
    return {
        "size": args.size,
        "device": args.device,
        "threads": args.threads,
        "rows": [{name: row[name] for name in ROW} for row in rows],
        "ratios": found,
        "lower_bound_ratio": max((of_key[BOUND] for of_key in found.values() if BOUND in of_key), default=None),
    }


def details(args: argparse.Namespace, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of the file beside it: conditions, and what is known of a row besides its figures."""
    return {
        "initial_fusion": args.initial_fusion,
        "fast": asdict(FAST),
        "torch": torch.__version__,
        "rows": [{name: value for name, value in row.items() if name not in ROW} for row in rows],
    }


def details_file(path: Path) -> Path:
    """Where the details of a result are."""
    return path.with_name(f"{path.stem}.details.json")


def print_table(content: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """The rows, then the ratios."""
    header = ("frames", "expr.", "mode", "seconds", "fps", "peak MB", "encoded", *STAGES)
    print(" | ".join(header))
    for row in rows:
        cells = [row["frames"], row["expressions"], row["mode"] + (" (scaled)" if "scaled" in row else "")]
        cells += [f"{row['seconds']:.2f}", f"{row['fps']:.2f}", f"{row['peak_rss_mb']:.0f}", row["encoder_calls"]]
        cells += [f"{row['stages'][stage]:.2f}" for stage in STAGES]
        print(" | ".join(map(str, cells)))
    names = ("release/exact", "exact/fast", BOUND)
    print(" | ".join(("frames x expr.", *names)))
    for key in dict.fromkeys(map(key_of, rows)):
        found = [content["ratios"].get(key, {}).get(name) for name in names]
        print(" | ".join((key, *("-" if value is None else f"{value:.2f}" for value in found))))


# --- command line ----------------------------------------------------------------------------------------------------
class Parser(argparse.ArgumentParser):
    """Bad input is one line on stderr and exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())}\n")


def usable_device(text: str) -> str:
    """A device of the command line that is there."""
    try:
        torch.zeros(1, device=text).item()
    # Torch asserts that it was built for the device.
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"the device {text} cannot be used: {reason}") from error
    return text


def new_file(text: str) -> Path:
    """A file of the command line that can be written."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is no file in a folder that exists")
    return path


def make_parser() -> argparse.ArgumentParser:
    """The arguments."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="tiny")
    parser.add_argument("--device", type=usable_device, default="cpu")
    parser.add_argument("--json", type=new_file, metavar="OUT", help="write the rows there")
    parser.add_argument("--frames", type=at_least(2), nargs="+", help="lengths of the videos; of the size by default")
    parser.add_argument("--expressions", type=at_least(1), nargs="+", help="numbers of them; of the size by default")
    parser.add_argument("--modes", choices=MODES, nargs="+", default=list(MODES))
    parser.add_argument("--threads", type=at_least(1), default=torch.get_num_threads())
    parser.add_argument(
        "--no-initial-fusion", dest="initial_fusion", action="store_false", help="as in the release's evaluation"
    )
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Measure, print a table and write the rows."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    cases = make_cases(args)
    if not cases:
        modes = " and ".join(args.modes)
        parser.error(f"there is no row: {modes} are not run on more than {COMPARED_UP_TO} frames, only exact is")
    rows: list[dict[str, Any]] = []
    try:
        for row in tqdm(rows_of(cases), total=len(cases), disable=None):
            rows.append(row)
            if args.json:
                write_json(args.json, report(args, rows))
                write_json(details_file(args.json), details(args, rows))
    except BrokenProcessPool:
        parser.error(f"the process of row {len(rows) + 1} was ended from outside, maybe for want of memory")
    except (VirstError, OSError, torch.OutOfMemoryError) as error:
        parser.error(str(error))
    print_table(report(args, rows), rows)


if __name__ == "__main__":
    main()
