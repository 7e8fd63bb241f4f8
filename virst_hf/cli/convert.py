"""`virst convert`: build a checkpoint from the released one, or one to start training from."""

import argparse

__all__ = ["add_parser", "run"]

DESCRIPTION = """\
Write a folder that from_pretrained loads, from one of
  --released FILE             the .pt that the authors of VIRST released (LoRA is merged)
  --videochat DIR --sam2 FILE VideoChat-Flash-Qwen2-7B-res448 and sam2.1_hiera_large.pt, to start training from
The SHA-256 of each source is printed. A tensor that is missing, unexpected or of a wrong shape ends the conversion.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Add the sub-command.

    Args:
        subparsers (`argparse._SubParsersAction`): What `ArgumentParser.add_subparsers` gave.

    Returns:
        `argparse.ArgumentParser`: The parser of `virst convert`; its `run` default is [`run`].
    """
    parser = subparsers.add_parser(
        "convert",
        help="build a checkpoint from the released weights, or from VideoChat-Flash and SAM 2.1",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--released", metavar="FILE", help="released checkpoint (.pt or safetensors)")
    source.add_argument("--videochat", metavar="DIR", help="folder with the shards of VideoChat-Flash")
    parser.add_argument("--sam2", metavar="FILE", help="SAM 2.1 checkpoint, together with --videochat")
    parser.add_argument("--output", metavar="DIR", required=True, help="folder to write; must be new or empty")
    parser.add_argument(
        "--tokenizer", metavar="T", help="Qwen2 tokenizer (folder or Hub id), to write the processor too"
    )
    parser.add_argument("--config", metavar="PATH", help="config.json of another size than the released 7B model")
    parser.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="auto: each tensor keeps its own"
    )
    parser.add_argument("--lora-alpha", type=float, default=16.0, help="alpha of LoRA (default: %(default)s)")
    parser.add_argument("--max-shard-size", default="2GB", help="size of a shard at most (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights that --videochat adds (default: 0)")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the sub-command.

    Args:
        args (`argparse.Namespace`): What the parser of [`add_parser`] gave.

    Returns:
        `int`: Exit code 0.

    Raises:
        `VirstError`: On bad input; the message is for the user.
    """
    from ..errors import CheckpointError

    if bool(args.videochat) != bool(args.sam2):
        raise CheckpointError("--videochat (the video LLM) and --sam2 (the segmenter) belong together: give both.")

    import torch

    from ..conversion import convert_released, convert_videochat
    from ..loading import load_config

    common = {
        "config": None if args.config is None else load_config(args.config),
        "tokenizer": args.tokenizer,
        "dtype": None if args.dtype == "auto" else getattr(torch, args.dtype),
        "max_shard_size": args.max_shard_size,
    }
    if args.released:
        convert_released(args.released, args.output, lora_alpha=args.lora_alpha, **common)
    else:
        convert_videochat(args.videochat, args.sam2, args.output, seed=args.seed, **common)
    return 0
