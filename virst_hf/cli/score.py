"""`virst score DIR`: scores the stored predictions of a run again, without its model."""

import argparse

__all__ = ["add_parser", "run"]


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command to the parser of `virst`."""
    parser = subparsers.add_parser(
        "score",
        help="score stored predictions again",
        description=__doc__,
        epilog="Exit code: 0, 1 when samples failed in the run, 2 for bad input; then no number is printed.",
    )
    parser.add_argument("output", metavar="DIR", help="output folder of virst evaluate")
    parser.add_argument("--root", metavar="DIR", help="folder of the data set (default: where it was in the run)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one for each core)")


def run(args: argparse.Namespace) -> int:
    """Score, write the results and print their table.

    Returns:
        `int`: 0, or 1 where samples failed.

    Raises:
        VirstError: The folder holds no run, or its predictions do not fit the data set.
    """
    from ..evaluation.pipeline import score_run
    from ..evaluation.report import results_text
    from .evaluate import report

    results = score_run(args.output, args.root, workers=args.workers)
    return report(results, results_text(results), args.output)
