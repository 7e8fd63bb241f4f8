"""Entry point of the command `virst`."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from ..errors import VirstError
from ..version import __version__
from . import ask, compare, convert, data, evaluate, info, merge, pack, score, segment

__all__ = ["main", "make_parser"]

COMMANDS = {
    "segment": segment,
    "ask": ask,
    "data": data,
    "evaluate": evaluate,
    "score": score,
    "compare": compare,
    "pack": pack,
    "convert": convert,
    "merge": merge,
    "info": info,
}
FOUND, BAD_INPUT = 1, 2
INTERRUPTED = 130


class OneLineParser(argparse.ArgumentParser):
    """A parser that puts a usage error on one line and leaves the usage to `--help`."""

    def error(self, message: str) -> NoReturn:
        """Print the error and leave with exit code 2."""
        self.exit(BAD_INPUT, f"{self.prog}: {message} (see {self.prog} --help)\n")


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command with all its sub-commands; takes neither torch nor transformers."""
    parser = OneLineParser(prog="virst", description="Segment in a video what a sentence describes.")
    parser.add_argument("--version", action="version", version=f"virst_hf {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for command in COMMANDS.values():
        command.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv (`Sequence[str]`, *optional*): Arguments; by default those of the process.

    Returns:
        `int`: 0, or what the command found (1 where a check or a sample failed), or 2 after bad input, which was told
        in one line on stderr, or 130 when interrupted.
    """
    name = "virst"
    try:
        args = make_parser().parse_args(argv)
        name = f"virst {args.command}"
        return COMMANDS[args.command].run(args) or 0
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough. Else Python would complain again when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FOUND
    except (VirstError, OSError) as error:
        # Transformers and the Hub client raise OSError for a model that is not there, over several lines.
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
