"""What each switch that makes inference faster gives in speed, and costs in J&F of virst-tiny on Shapes.

    python benchmarks/speed_switches.py --size full --frames 12 --json switches.json

For each switch: the seconds of `model.segment` at a size of `inference.py`, in a process of its own, and J&F, J and F
of the small trained model on a test split of Shapes (made for it; `--root` keeps it). The first
row is the exact path, and the others are told against it. `--videos 0` leaves J&F out, `--size none` the speed.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from inference import WARM_UP_FRAMES, Parser, at_least, new_file, run_measured, usable_device
from inference_sizes import SIZES, VIRST_TINY, build, expression_texts, random_video
from stream_memory import alone
from tqdm import tqdm

from virst_hf import FAST, InferencePreset, TrackingOptions, load_model, load_processor
from virst_hf.data.shapes_maker import make_shapes
from virst_hf.errors import VirstError
from virst_hf.evaluation import evaluate_model
from virst_hf.evaluation.runner import RunOptions
from virst_hf.rendering import write_json

__all__ = ["COMPILED", "SWITCHES", "measure_all", "quality_of", "speed_of"]

COMPILED = "compile_inference"
SWITCHES = {
    "exact": InferencePreset(),
    "fast": FAST,  # dtype=bfloat16
    "encoder_dtype=bfloat16": InferencePreset(encoder_dtype="bfloat16"),
    "recent=3": InferencePreset(TrackingOptions(recent=3)),
    "pool=2": InferencePreset(TrackingOptions(pool=2)),
    "stride=2": InferencePreset(TrackingOptions(stride=2)),
    "chunk=1": InferencePreset(TrackingOptions(chunk=1)),
    # Compiled code is made in a run before the one that counts.
    COMPILED: InferencePreset(),
}
PROTOCOL = "shapes-test"
SCORES = ("J&F", "J", "F")


def speed_of(name: str, size: str, device: str, threads: int, frames: int, expressions: int) -> dict[str, float]:
    """Seconds of a run with one switch, and the peak memory of this process in MB."""
    torch.set_num_threads(threads)
    preset = SWITCHES[name]
    model, processor = build(size)
    model = preset.prepare(model.to(device, torch.float32))
    inputs = processor(videos=random_video(frames), text=expression_texts(expressions))
    if name == COMPILED:
        model.compile_inference()
        model.segment(**inputs)
    else:
        warm = processor(videos=random_video(min(WARM_UP_FRAMES, frames)), text=expression_texts(1))
        model.segment(**warm, tracking=preset.tracking)
    seconds, peak = run_measured(model, lambda: model.segment(**inputs, tracking=preset.tracking))[1:3]
    return {"seconds": seconds, "peak_rss_mb": peak / 1e6}


def quality_of(name: str, device: str, threads: int, root: str) -> dict[str, float]:
    """J&F, J and F of virst-tiny with one switch, in points."""
    torch.set_num_threads(threads)
    preset = SWITCHES[name]
    processor, model = load_processor(VIRST_TINY), preset.prepare(load_model(VIRST_TINY, device=device))
    if name == COMPILED:
        model.compile_inference()
    with tempfile.TemporaryDirectory() as output:
        options = RunOptions(tracking=preset.tracking)
        found = evaluate_model(PROTOCOL, model, processor, root, output, model_name=name, options=options)
    return {score: found[score] for score in SCORES}


def measure_all(args: argparse.Namespace, run: Any = alone) -> dict[str, Any]:
    """All rows; the file, where one is asked for, is written after each."""
    rows: list[dict[str, Any]] = []
    content = {"switches": rows, **{name: getattr(args, name) for name in ("size", "device", "threads", "frames")}}
    content |= {"expressions": args.expressions, "videos": args.videos, "torch": torch.__version__}
    for name in tqdm(args.switches, disable=None):
        row: dict[str, Any] = {"switch": name}
        if args.size != "none":
            row |= run(speed_of, name, args.size, args.device, args.threads, args.frames, args.expressions)
        if args.videos:
            row |= run(quality_of, name, args.device, args.threads, str(args.root))
        rows.append(row)
        first = rows[0]
        if "seconds" in row:
            row["times_exact"] = first["seconds"] / row["seconds"]
        if "J&F" in row:
            row["points"] = row["J&F"] - first["J&F"]
        if args.json:
            write_json(args.json, content)
    return content


def print_table(content: dict[str, Any]) -> None:
    """A line for each switch."""
    names = ("seconds", "times_exact", "peak_rss_mb", "J&F", "points")
    print(" | ".join(("switch", *names)))
    for row in content["switches"]:
        print(" | ".join((row["switch"], *(f"{row[name]:.2f}" if name in row else "-" for name in names))))


def make_parser() -> argparse.ArgumentParser:
    """The arguments."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=[*SIZES, "none"], default="full")
    parser.add_argument("--device", type=usable_device, default="cpu")
    parser.add_argument("--threads", type=at_least(1), default=torch.get_num_threads())
    parser.add_argument("--frames", type=at_least(2), default=12)
    parser.add_argument("--expressions", type=at_least(1), default=1)
    parser.add_argument("--videos", type=at_least(0), default=100, help="of Shapes, for J&F")
    parser.add_argument("--seed", type=at_least(0), default=9001, help="of these videos")
    parser.add_argument("--root", type=Path, help="folder of Shapes; one that holds the test split is taken as it is")
    parser.add_argument("--switches", choices=list(SWITCHES), nargs="+", default=list(SWITCHES))
    parser.add_argument("--json", type=new_file, metavar="OUT")
    return parser


def with_exact(switches: list[str]) -> list[str]:
    """The switches, the exact path first."""
    return ["exact", *(name for name in switches if name != "exact")]


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and write."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    args.switches = with_exact(args.switches)
    with tempfile.TemporaryDirectory() as temporary:
        args.root = Path(temporary) if args.root is None else args.root
        try:
            if args.videos and not (args.root / "test").is_dir():
                make_shapes(args.root, "test", args.videos, args.seed)
            print_table(measure_all(args))
        except (VirstError, OSError, torch.OutOfMemoryError) as error:
            parser.error(str(error))


if __name__ == "__main__":
    main()
