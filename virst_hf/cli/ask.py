"""`virst ask VIDEO QUESTION`: answers a question about a video in text."""

import argparse

from ..errors import VirstError
from .options import add_model_options, add_video_options, load, open_selected_frames

__all__ = ["add_parser", "run"]


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command to the parser of `virst`."""
    parser = subparsers.add_parser("ask", help="answer a question about a video", description=__doc__)
    add_video_options(parser)
    parser.add_argument("question", metavar="QUESTION", help="the question")
    add_model_options(parser)
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N", help="longest answer (default 128)")


def run(args: argparse.Namespace) -> None:
    """Print the answer.

    Raises:
        VirstError: The question is empty, or another argument is of no use.
    """
    if not args.question.strip():
        raise VirstError("The question is empty.")
    if args.max_new_tokens < 1:
        raise VirstError(f"--max-new-tokens must be at least 1, found {args.max_new_tokens}.")
    video = open_selected_frames(args)
    processor, model = load(args)
    inputs = processor(videos=video, text=args.question, task="ask")
    tokens = model.generate(**inputs, max_new_tokens=args.max_new_tokens, do_sample=False)
    print(processor.batch_decode(tokens, skip_special_tokens=True)[0].strip())
