"""`virst data ...`: list the data sets, check one, look at one, make Shapes, publish a prepared set."""

import argparse
import dataclasses
import json
import sys
import textwrap
from typing import TYPE_CHECKING, Any

from ..errors import DataError

if TYPE_CHECKING:
    from ..data.doctor import Diagnosis

__all__ = ["add_parser", "run"]

FINDINGS = 1
# Columns of the table of findings.
CHECK_WIDTH, ITEM_WIDTH = 16, 36
# Findings of one check that the table shows; --json gives all.
SHOWN = 20


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command and its sub-commands to the parser of `virst`."""
    parser = subparsers.add_parser("data", help="list, check, show, make and publish data sets", description=__doc__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="data_command", required=True)
    listing = commands.add_parser("list", help="show the data sets, or what one expects on disk")
    listing.add_argument("name", metavar="NAME", nargs="?", help="a data set")
    _add_doctor(commands)
    _add_preview(commands)
    _add_make_shapes(commands)
    _add_publish(commands)


def _add_set_options(parser: argparse.ArgumentParser, split_help: str) -> None:
    """NAME, `--root` and what chooses a part of a set."""
    parser.add_argument("name", metavar="NAME", help="a data set of `virst data list`")
    parser.add_argument("--root", required=True, metavar="DIR", help="its folder")
    parser.add_argument("--split", metavar="S", help=split_help)
    parser.add_argument("--config", metavar="C", help="one of its configurations (default: its first)")
    parser.add_argument("--follow-links", action="store_true", help="allow symbolic links that leave DIR")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the set, see `virst data list NAME`; may be given several times",
    )


def _add_doctor(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "doctor",
        help="check frames against annotations",
        description="Check a data set on disk: every defect at once. Exit code 0: clean; 1: there are findings; 2: "
        "nothing could be checked.",
    )
    _add_set_options(parser, "one split (default: all that are there)")
    parser.add_argument("--json", action="store_true", help='print a list of {"check", "item", "message"}')
    parser.add_argument("--limit", type=_count, metavar="N", help="check only the first N videos of each split")
    parser.add_argument("--quick", action="store_true", help="read the heads of frames, do not decode them")
    parser.add_argument(
        "--alignment",
        action=argparse.BooleanOptionalAction,
        help="score whether masks lie on the things in the frames (default: for revos only)",
    )


def _add_preview(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("preview", help="write a contact sheet with masks drawn")
    _add_set_options(parser, "its split (default: the first that is there)")
    parser.add_argument("--output", required=True, metavar="FILE", help="picture to write, .jpg or .png")
    parser.add_argument("--count", type=_count, default=6, metavar="N", help="number of expressions (default 6)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed shows others (default 0)")


def _add_make_shapes(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("make-shapes", help="make the synthetic benchmark Shapes")
    parser.add_argument("--root", required=True, metavar="DIR", help="folder; the split is written to DIR/NAME")
    parser.add_argument("--split", required=True, metavar="NAME", help="name of the split")
    parser.add_argument("--videos", required=True, type=_count, metavar="N", help="number of videos")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed (default 0)")


def _add_publish(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "publish",
        help="write a set as parquet with a card",
        description="Write a data set as parquet with a card, to a folder or to the Hub: texts, masks and relative "
        "paths, no pixels. Check the licence of the set before you make it public.",
    )
    _add_set_options(parser, "one split (default: all that are there)")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--output", metavar="FOLDER", help="folder to write, new or empty")
    target.add_argument("--repo", metavar="USER/NAME", help="data set on the Hub (log in first: hf auth login)")
    parser.add_argument("--private", action="store_true", help="make a new data set on the Hub private")


def _count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, found {text!r}")
    return int(text)


def run(args: argparse.Namespace) -> int | None:
    """Run the sub-command.

    Returns:
        `int` or `None`: The exit code of the doctor; the others have none of their own.

    Raises:
        DataError: The set, its folder or an option is unknown, or the data has a defect.
    """
    commands = {
        "list": _list,
        "doctor": _doctor,
        "preview": _preview,
        "make-shapes": _make_shapes,
        "publish": _publish,
    }
    return commands[args.data_command](args)


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of the set: values as JSON where they are, else as text."""
    options: dict[str, Any] = {"follow_links": True} if args.follow_links else {}
    for text in args.option:
        key, separator, value = text.partition("=")
        if not key or not separator:
            raise DataError(f"--option needs KEY=VALUE, found {text!r}.")
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            parsed = value
        options[key] = tuple(parsed) if isinstance(parsed, list) else parsed
    return options


# --- list ------------------------------------------------------------------------------------------------------------
def _list(args: argparse.Namespace) -> None:
    from ..data.catalog import CATALOG, builder_class

    names = list(CATALOG) if args.name is None else [args.name]
    for index, name in enumerate(names):
        builder = builder_class(name)
        entry = CATALOG[name]
        print("\n" * bool(index) + name)
        print(f"  {entry.title}")
        print(f"  category  {entry.category}")
        print(f"  splits    {', '.join(builder.SPLITS)}")
        if len(builder.BUILDER_CONFIGS) > 1:
            print(f"  configs   {', '.join(config.name for config in builder.BUILDER_CONFIGS)}")
        print(f"  licence   {entry.licence}")
        print(f"  where     {entry.where}")
    if args.name is not None:
        _list_details(builder)


def _list_details(builder: Any) -> None:
    """Tree and options of one set."""
    print("\nExpected below --root:\n")
    print(textwrap.indent(builder.TREE, "  "))
    print("\nOptions (--option KEY=VALUE; in Python keywords of virst_hf.data.load):\n")
    # What datasets itself puts into every configuration is no choice of ours.
    theirs = {"name", "version", "data_dir", "data_files", "description", "splits"}
    for field in dataclasses.fields(builder.BUILDER_CONFIGS[0]):
        if field.name not in theirs:
            print(f"  {field.name} = {getattr(builder.BUILDER_CONFIGS[0], field.name)!r}")


# --- doctor ----------------------------------------------------------------------------------------------------------
def _doctor(args: argparse.Namespace) -> int:
    from ..data.doctor import diagnose

    diagnosis = diagnose(
        args.name,
        args.root,
        args.split,
        args.config,
        quick=args.quick,
        limit=args.limit,
        alignment=args.alignment,
        progress=True,
        **_options(args),
    )
    for note in diagnosis.notes:
        print(f"note: {note}", file=sys.stderr)
    if args.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in diagnosis.findings], indent=2))
    else:
        _print_findings(args.name, diagnosis)
    return 0 if diagnosis.clean else FINDINGS


def printable(text: str) -> str:
    """Text from a file without what a terminal would take for a command or cannot show.

    Args:
        text (`str`): Such as the name of a video.

    Returns:
        `str`: The text, signs that cannot be printed as their escapes.
    """
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def _print_findings(name: str, diagnosis: "Diagnosis") -> None:
    """A table of what was found, and what to do about each kind."""
    from ..data.doctor import ADVICE

    splits = ", ".join(diagnosis.splits) or "no split"
    extent = f"{name} ({splits}): {diagnosis.num_videos:,} videos or images, {diagnosis.num_expressions:,} expressions"
    if diagnosis.clean:
        print(f"{extent}: nothing to complain about.")
        return
    by_check: dict[str, list[Any]] = {}
    for finding in diagnosis.findings:
        by_check.setdefault(finding.check, []).append(finding)
    print(f"{'CHECK':<{CHECK_WIDTH}} {'ITEM':<{ITEM_WIDTH}} FOUND")
    for check, findings in by_check.items():
        for finding in findings[:SHOWN]:
            message = printable(" ".join(finding.message.split()))
            print(f"{check:<{CHECK_WIDTH}} {printable(finding.item):<{ITEM_WIDTH}} {message}")
        if len(findings) > SHOWN:
            print(f"{check:<{CHECK_WIDTH}} {'...':<{ITEM_WIDTH}} {len(findings) - SHOWN:,} more (--json lists all)")
    print("\nWHAT TO DO")
    for check, findings in by_check.items():
        print(f"{check:<{CHECK_WIDTH}} ({len(findings):,}) {ADVICE.get(check, 'See the message.')}")
    print(f"\n{extent}: {len(diagnosis.findings):,} findings.")


# --- the others ------------------------------------------------------------------------------------------------------
def _preview(args: argparse.Namespace) -> None:
    from ..data.preview import write_preview

    path = write_preview(
        args.name,
        args.root,
        args.output,
        args.split,
        args.config,
        count=args.count,
        seed=args.seed,
        **_options(args),
    )
    print(f"Wrote {path}")


def _make_shapes(args: argparse.Namespace) -> None:
    from ..data.shapes_maker import make_shapes

    make_shapes(args.root, args.split, args.videos, args.seed)
    print(f"Made {args.videos} videos of Shapes, split {args.split}, in {args.root}")


def _publish(args: argparse.Namespace) -> None:
    from ..data.catalog import CATALOG
    from ..data.publish import publish

    written = publish(
        args.name,
        args.root,
        args.output,
        repo_id=args.repo,
        split=args.split,
        config=args.config,
        private=args.private,
        **_options(args),
    )
    print(f"Published {args.name} as {written}; licence of the set: {CATALOG[args.name].licence}")
