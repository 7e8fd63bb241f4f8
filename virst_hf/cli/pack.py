"""`virst pack PROTOCOL DIR`: the zip that the server of a benchmark takes, written and checked."""

import argparse

__all__ = ["add_parser", "run"]


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command to the parser of `virst`."""
    parser = subparsers.add_parser("pack", help="write a server's zip", description=__doc__)
    parser.add_argument("protocol", metavar="PROTOCOL", help="mevis-valid or ref-youtube-vos-valid")
    parser.add_argument("output", metavar="DIR", help="output folder of virst evaluate")
    parser.add_argument("--out", metavar="ZIP", help="the zip (default: DIR/PROTOCOL.zip)")
    parser.add_argument("--root", metavar="DIR", help="folder of the data set (default: where it was in the run)")


def run(args: argparse.Namespace) -> int:
    """Write the zip and say where it is.

    Returns:
        `int`: 0.

    Raises:
        VirstError: The run is of another protocol, not complete, or does not fit the data set.
    """
    from ..evaluation.submission import pack_submission

    path = pack_submission(args.protocol, args.output, args.out, root=args.root)
    print(f"Wrote and checked {path}")
    return 0
