"""`virst compare A B`: two runs of one protocol side by side, with intervals from resampled videos."""

import argparse

__all__ = ["add_parser", "run"]


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command to the parser of `virst`."""
    parser = subparsers.add_parser(
        "compare",
        help="compare two results",
        description=__doc__,
        epilog="The difference is B minus A. Its 95 %% interval comes from 2000 drawings of the videos with "
        "replacement, the same for both runs; an interval without 0 is unlikely to be chance.",
    )
    parser.add_argument("first", metavar="A", help="output folder of virst evaluate")
    parser.add_argument("second", metavar="B", help="another one")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the drawing (default 0)")
    parser.add_argument("--json", metavar="FILE", help="write the comparison to FILE as well")


def run(args: argparse.Namespace) -> int:
    """Print the table.

    Returns:
        `int`: 0.

    Raises:
        VirstError: A folder has no results, or protocols or expressions differ.
    """
    from ..evaluation.comparison import compare_runs
    from ..evaluation.tables import markdown_table
    from ..rendering import write_json

    rows = compare_runs(args.first, args.second, args.seed)
    header = ["", "score", "expressions", "A", "B", "B - A", "95 % interval"]
    cells = [
        [
            row["name"],
            row["score"],
            str(row["count"]),
            f"{row['first']:.2f}",
            f"{row['second']:.2f}",
            f"{row['difference']:+.2f}",
            f"{row['low']:+.2f} to {row['high']:+.2f}",
        ]
        for row in rows
    ]
    print(markdown_table(header, cells), end="")
    if args.json:
        write_json(args.json, rows)
    return 0
