"""`virst merge ADAPTER OUTPUT`: an adapter folder and its base model as one full model."""

import argparse

from .options import DTYPES

__all__ = ["add_parser", "run"]

DESCRIPTION = """\
Write a folder that from_pretrained loads without the base model. A stage of training with LoRA leaves an adapter
folder: the updates of LoRA, and the other tensors that were trained. Every command takes such a folder as it is; merge
it to publish it, or to do without its base. Sums are made in float32 and rounded once.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command to the parser of `virst`."""
    parser = subparsers.add_parser(
        "merge",
        help="write what a training stage left as a full model",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("adapter", metavar="ADAPTER", help="folder that a training stage has written")
    parser.add_argument("output", metavar="OUTPUT", help="folder to write; must not exist yet")
    parser.add_argument("--base", metavar="MODEL", help="its base model, if it is not where it was in training")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights (default: that of the base)")


def run(args: argparse.Namespace) -> None:
    """Merge, and say what was written.

    Raises:
        VirstError: ADAPTER is no adapter folder, its base is not there, or OUTPUT exists or cannot be written.
    """
    from ..adapters import adapter_info, base_of
    from ..loading import merge_adapter
    from .options import quiet

    quiet()
    info, base = adapter_info(args.adapter), base_of(args.adapter, args.base)
    output = merge_adapter(args.adapter, args.output, base, args.dtype)
    print(f"Wrote {base} with {args.adapter} (stages: {', '.join(info.history)}) to {output}")
