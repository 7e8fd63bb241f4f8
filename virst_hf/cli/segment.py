"""`virst segment VIDEO TEXT [TEXT ...]`: masks of what each sentence describes, in every frame of a video."""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import VirstError
from .options import add_model_options, add_speed_options, add_video_options, load, open_selected_frames, preset_of

if TYPE_CHECKING:
    from ..streaming import StreamedFrame
    from ..video_io import VideoSource

__all__ = ["add_parser", "check_output", "output_folder", "run"]

JSON_NAME = "masks.json"
OVERLAY_NAME = "overlay.mp4"


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command to the parser of `virst`."""
    parser = subparsers.add_parser(
        "segment",
        help="segment what sentences describe",
        description=__doc__,
        epilog="DIR/N/FRAME.png: mask (0 or 255, at the video's size) of expression N from 0 in frame FRAME from 0, "
        "counted after --start and --stride; DIR/masks.json: the same as COCO RLE, with scores and frame times; "
        "DIR/overlay.mp4: the masks drawn over the video.",
    )
    add_video_options(parser)
    parser.add_argument("texts", metavar="TEXT", nargs="+", help="what to segment, a sentence or a question")
    add_model_options(parser)
    add_speed_options(parser)
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the results that DIR holds")


def run(args: argparse.Namespace) -> None:
    """Segment, write the folder and say what was written.

    Raises:
        VirstError: An expression is empty, DIR is in use, or the model gives scores that are no numbers.
    """
    for index, text in enumerate(args.texts):
        if not text.strip():
            raise VirstError(f"Expression {index} is empty: say what is to be segmented.")
    output = check_output(args.output, args.overwrite)
    video = open_selected_frames(args)
    preset = preset_of(args)
    processor, model = load(args, preset)
    # Opened before the work begins: a place that cannot be written is told at once.
    with output_folder(output) as folder:
        stream = model.stream(video, args.texts, processor, tracking=preset.tracking)
        write_results(folder, video, args.texts, stream)
    expressions = "1 expression" if len(args.texts) == 1 else f"{len(args.texts)} expressions"
    frames = "1 frame" if video.num_frames == 1 else f"{video.num_frames} frames"
    print(f"Wrote the masks of {expressions} in {frames}, {JSON_NAME} and {OVERLAY_NAME} to {output}")


def check_scores(frame: "StreamedFrame") -> None:
    """Raise a `VirstError` where the model gave no numbers: its masks would be empty, as if nothing were there."""
    if not bool(frame.scores.isfinite().all()):
        raise VirstError(
            "The model gave scores that are no numbers. Half precision may overflow: try --dtype float32 and no "
            "--encoder-dtype."
        )


def check_output(output: str, overwrite: bool) -> Path:
    """Check, before any work is done, that the results can go to `output`.

    Args:
        output (`str`): The folder; it may be absent or empty.
        overwrite (`bool`): Whether results in it may be replaced.

    Returns:
        `pathlib.Path`: The folder.

    Raises:
        VirstError: It is a file, it is not empty and `overwrite` is off, or it holds something else than results.
    """
    path = Path(output).expanduser()
    if not path.exists():
        return path
    if not path.is_dir():
        raise VirstError(f"--output {path} is a file, expected a folder.")
    names = sorted(entry.name for entry in path.iterdir())
    if names and not overwrite:
        raise VirstError(f"--output {path} is not empty (it holds {names[0]}): choose another, or add --overwrite.")
    # The folder is replaced as a whole, so nothing of the user's may be in it.
    foreign = [name for name in names if name not in (JSON_NAME, OVERLAY_NAME) and not name.isdigit()]
    if names and JSON_NAME not in names:
        foreign = foreign or names
    if foreign:
        raise VirstError(f"--output {path} holds {foreign[0]}, which is no result of virst: choose another folder.")
    return path


@contextmanager
def output_folder(output: Path) -> Iterator[Path]:
    """Give a temporary folder beside `output`, and move it to `output` once the block has ended well.

    Args:
        output (`pathlib.Path`): The folder that is to be written; one that is there is replaced.

    Yields:
        `pathlib.Path`: The temporary folder. It is removed when the block raises, and `output` is as it was.

    Raises:
        VirstError: Nothing can be written beside `output`.
    """
    output = output.absolute()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent)
    except OSError as error:
        raise VirstError(f"--output {output} cannot be written: {error}") from error
    with temporary as holder:
        folder, former = Path(holder) / "new", Path(holder) / "former"
        folder.mkdir()
        yield folder
        if output.exists():
            output.rename(former)
        try:
            folder.rename(output)
        except OSError:
            if former.exists():
                former.rename(output)
            raise


def write_results(folder: Path, video: "VideoSource", texts: list[str], stream: Iterator["StreamedFrame"]) -> None:
    """Write mask PNGs, masks.json and overlay.mp4 as the masks come; one frame of the video is in memory at a time."""
    from tqdm import tqdm

    from ..rendering import VideoWriter, draw_overlay, write_json, write_mask
    from ..rle import encode_rle

    expressions = [
        {"index": i, "text": text, "object_scores": [], "iou_scores": [], "anchor_frames": [], "masks": []}
        for i, text in enumerate(texts)
    ]
    for expression in expressions:
        (folder / str(expression["index"])).mkdir()
    both = tqdm(zip(stream, video, strict=True), desc="segmenting", unit="frame", total=video.num_frames)
    with VideoWriter(folder / OVERLAY_NAME, video.height, video.width, fps=video.fps) as writer:
        for found, frame in both:
            check_scores(found)
            masks = list(found.masks.numpy())
            for i, (expression, mask) in enumerate(zip(expressions, masks, strict=True)):
                write_mask(folder / str(i) / f"{found.index:05d}.png", mask)
                expression["masks"].append(encode_rle(mask))
                expression["object_scores"].append(float(found.scores[i]))
                expression["iou_scores"].append(float(found.iou_scores[i]))
                if found.is_anchor:
                    expression["anchor_frames"].append(found.index)
            writer.write(draw_overlay(frame, masks, texts))
    write_json(folder / JSON_NAME, {**describe(video), "expressions": expressions})


def describe(video: "VideoSource") -> dict[str, Any]:
    """What masks.json says of the video."""
    return {
        "video": video.name,
        "height": video.height,
        "width": video.width,
        "fps": video.fps,
        "num_frames": video.num_frames,
        "frame_times": list(video.frame_times),
    }
