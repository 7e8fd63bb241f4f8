"""Options that several commands share, and the loading that goes with them."""

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..loading import TINY_NAME

if TYPE_CHECKING:
    from ..modeling_virst import VirstForVideoSegmentation
    from ..presets import InferencePreset
    from ..processing_virst import VirstProcessor
    from ..video_io import VideoSource

__all__ = [
    "add_model_options",
    "add_speed_options",
    "add_video_options",
    "at_least",
    "load",
    "model_name",
    "open_selected_frames",
    "preset_of",
    "quiet",
]

DTYPES = ("float32", "bfloat16", "float16")
PRESETS = ("exact", "fast")
BITS = (8, 4)


def add_video_options(parser: argparse.ArgumentParser) -> None:
    """Add VIDEO, `--start`, `--end` and `--stride`."""
    parser.add_argument("video", metavar="VIDEO", help="video file, folder of frames, or image")
    parser.add_argument("--start", type=int, default=0, metavar="N", help="first frame (default 0)")
    parser.add_argument("--end", type=int, metavar="N", help="frame to stop before (default: the end)")
    parser.add_argument("--stride", type=int, default=1, metavar="N", help="take every N-th frame (default 1)")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add `--model`, `--device` and `--dtype`."""
    parser.add_argument(
        "--model",
        metavar="M",
        help=f"folder of a checkpoint, or its name on the Hub (default {TINY_NAME}, which is part of this package "
        "and knows coloured shapes only)",
    )
    parser.add_argument("--device", help="such as cpu or cuda:0 (default: CUDA where there is one)")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights (default: as saved)")


def add_speed_options(parser: argparse.ArgumentParser) -> None:
    """Add `--preset`, the switches that it is made of, and `--compile`."""
    group = parser.add_argument_group("speed", "A preset, and switches that are set otherwise than in it.")
    group.add_argument("--preset", choices=PRESETS, default="exact", help="exact: as in the paper (default)")
    group.add_argument("--encoder-dtype", choices=DTYPES, help="of SAM's image encoder alone")
    group.add_argument("--llm-bits", type=int, choices=BITS, help="of the language model (CUDA, bitsandbytes)")
    group.add_argument("--recent", type=at_least(0), metavar="N", help="attend to N of the last frames, 0 to 6")
    group.add_argument(
        "--track-every", type=at_least(1), metavar="N", help="track every N-th frame, interpolate between"
    )
    group.add_argument("--pool", type=at_least(1), metavar="N", help="memories are means of N x N tokens")
    group.add_argument("--chunk", type=at_least(1), metavar="N", help="expressions that attend at a time; same masks")
    group.add_argument("--compile", action="store_true", help="compile encoder and tracker; same masks")


def at_least(least: int) -> Callable[[str], int]:
    """A whole number of the command line, not smaller than `least`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, found {text}")
        return int(text)

    return parse


def preset_of(args: argparse.Namespace) -> "InferencePreset":
    """What the options of `add_speed_options`, and `--dtype`, come to."""
    from dataclasses import replace

    from ..presets import get_preset

    preset = get_preset(args.preset)
    numbers = {"recent": args.recent, "stride": args.track_every, "pool": args.pool, "chunk": args.chunk}
    given = {name: value for name, value in numbers.items() if value is not None}
    return replace(
        preset,
        tracking=replace(preset.tracking, **given),
        dtype=args.dtype or preset.dtype,
        encoder_dtype=args.encoder_dtype or preset.encoder_dtype,
    )


def quiet() -> None:
    """Keep tables, bars and retry notes of Transformers and the Hub client out; what they tell is an error here."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    hub_logging.set_verbosity_error()


def open_selected_frames(args: argparse.Namespace) -> "VideoSource":
    """Open VIDEO with the frames that `--start`, `--end` and `--stride` choose."""
    from ..video_io import open_video

    return open_video(args.video, start=args.start, end=args.end, stride=args.stride)


def model_name(args: argparse.Namespace) -> str:
    """What `--model` names; where it is not given the small model, and a line that says what that knows."""
    if args.model is not None:
        return args.model
    print(
        f"Model: {TINY_NAME}, which is part of virst_hf and knows drawn, coloured shapes only. "
        "Another one: --model FOLDER, or --model OWNER/NAME of the Hub.",
        file=sys.stderr,
    )
    return TINY_NAME


def load(
    args: argparse.Namespace, preset: "InferencePreset | None" = None
) -> tuple["VirstProcessor", "VirstForVideoSegmentation"]:
    """Load the processor and the model that `--model`, `--device` and `--dtype`, or a preset, name."""
    from ..loading import load_model, load_processor

    name = model_name(args)
    quiet()
    processor = load_processor(name)
    if preset is None:
        return processor, load_model(name, device=args.device, dtype=args.dtype)
    model = preset.prepare(load_model(name, device=args.device, dtype=preset.dtype, bits=args.llm_bits))
    if args.compile:
        model.compile_inference()
    return processor, model
