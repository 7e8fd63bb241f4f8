"""`virst evaluate PROTOCOL`: the numbers of a benchmark, by a protocol that has a name."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from .options import add_model_options, add_speed_options, model_name, preset_of, quiet

__all__ = ["add_parser", "run"]

FAILED = 1


class ListProtocols(argparse.Action):
    """`--list`: print the protocols and leave, as `--help` does."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> NoReturn:
        """Print a line for each protocol."""
        from ..evaluation.protocols import PROTOCOLS

        width = max(map(len, PROTOCOLS))
        for name, protocol in PROTOCOLS.items():
            split = f"split {protocol.split}" if protocol.split else "the split that --split names"
            config = f", {protocol.config}" if protocol.config else ""
            server = "; predicts only, the server scores" if protocol.server else ""
            print(f"{name:{width}}  {protocol.dataset}{config}, {split}{server}")
        parser.exit()


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command to the parser of `virst`."""
    parser = subparsers.add_parser(
        "evaluate",
        help="evaluate a model on a benchmark",
        description=__doc__,
        epilog="Several processes: accelerate launch --num_processes N -m virst_hf.cli.main evaluate ... An "
        "interrupted run goes on when the same command is given again. Exit code: 0, 1 when samples failed, 2 for bad "
        "input.",
    )
    parser.add_argument("protocol", metavar="PROTOCOL", help="a benchmark's protocol; --list names them")
    parser.add_argument("--list", action=ListProtocols, nargs=0, help="list the protocols and leave")
    add_model_options(parser)
    add_speed_options(parser)
    parser.add_argument("--root", required=True, metavar="DIR", help="folder of the data set")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for predictions and results")
    parser.add_argument("--split", metavar="NAME", help="split of your own data (protocol own)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N videos, for a trial")
    parser.add_argument(
        "--batch-expressions", type=int, default=8, metavar="N", help="expressions tracked together (default 8)"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=64, metavar="N", help="longest answer to a question (default 64)"
    )


def run(args: argparse.Namespace) -> int:
    """Evaluate, write the results and print their table.

    Returns:
        `int`: 0, or 1 where samples failed.

    Raises:
        VirstError: The model, the data set or the output folder is of no use.
    """
    from ..evaluation.pipeline import evaluate_model, processes
    from ..evaluation.protocols import get_protocol
    from ..evaluation.report import results_text
    from ..evaluation.runner import RunOptions
    from ..loading import load_model, load_processor, pick_device

    get_protocol(args.protocol)
    preset = preset_of(args)
    options = RunOptions(args.batch_expressions, args.max_new_tokens, preset.tracking)
    name = model_name(args)
    quiet()
    place = None if args.device is None else pick_device(args.device)
    state = processes(cpu=place is not None and place.type == "cpu")
    device = args.device
    if device is None or (state.num_processes > 1 and device == "cuda"):
        device = str(state.device)
    processor = load_processor(name)
    model = preset.prepare(load_model(name, device=device, dtype=preset.dtype, bits=args.llm_bits))
    if args.compile:
        model.compile_inference()
    results = evaluate_model(
        args.protocol,
        model,
        processor,
        args.root,
        args.output,
        model_name=name,
        split=args.split,
        limit=args.limit,
        options=options,
        state=state,
    )
    state.destroy_process_group()
    return 0 if results is None else report(results, results_text(results), args.output)


def report(results: dict[str, Any], text: str, output: str) -> int:
    """Print a result; the exit code is 1 where samples failed.

    Args:
        results (`dict`): The content of results.json.
        text (`str`): The result as Markdown.
        output (`str`): Folder of the results.

    Returns:
        `int`: 0 or 1.
    """
    print(text)
    print(f"Results: {output}/results.json, results.md, report.html, expressions.jsonl")
    if results["failures"]:
        first = results["failures"][0]
        print(
            f"{len(results['failures'])} samples failed: {first['video']}, expression {first['expression_id']} first "
            f"({first['error']}).",
            file=sys.stderr,
        )
        return FAILED
    return 0
