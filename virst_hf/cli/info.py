"""`virst info M`: sizes, parameter counts and data types of a checkpoint, read without loading its weights."""

import argparse
import json
import math
import struct
from collections import Counter
from pathlib import Path

from ..errors import CheckpointError

__all__ = ["add_parser", "read_tensor_headers", "run"]

# Prefix of the tensor names -> what it is called in the list; the first that fits counts.
PARTS = {
    "lm_head.": "language model head",
    "model.language_model.": "language model",
    "model.vision_tower.": "vision tower",
    "model.projector.": "projector",
    "model.initial_fusion.": "initial fusion",
    "model.prompt_decoder.": "prompt decoder",
    "model.segmenter.image_encoder.": "segmenter, image encoder",
    "model.segmenter.memory": "segmenter, memory",
    "model.segmenter.": "segmenter, other",
    "base_model.": "LoRA",
    "": "other",
}
INDEX_FILE = "model.safetensors.index.json"
# No header of a real checkpoint comes near this; a larger number is a damaged file.
MAX_HEADER_BYTES = 100_000_000


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command to the parser of `virst`."""
    parser = subparsers.add_parser("info", help="show the sizes of a checkpoint", description=__doc__)
    parser.add_argument("model", metavar="M", help="folder of a checkpoint, or virst-tiny")


def run(args: argparse.Namespace) -> None:
    """Print what config.json and the headers of the weight files say.

    Raises:
        CheckpointError: The folder holds no VIRST checkpoint, or a file of it cannot be read.
    """
    from ..loading import TINY_NAME, VIRST_TINY, check_model_name, load_config

    folder = Path(args.model).expanduser()
    if args.model == TINY_NAME and not folder.exists():
        folder = Path(VIRST_TINY)
    if not folder.exists():
        raise CheckpointError(f"There is no folder {folder}. A model of the Hub is fetched with `hf download`.")
    check_model_name(folder)
    headers = read_tensor_headers(folder)
    config = load_config(folder)
    vision, text, segmenter = config.vision_config, config.text_config, config.segmenter_config
    print(f"{folder}: {config.model_type}, {len(headers)} tensors")
    print(f"vision tower    {vision.num_hidden_layers} layers, width {vision.hidden_size}, {vision.image_size} pixels")
    print(f"language model  {text.num_hidden_layers} layers, width {text.hidden_size}, {text.vocab_size} tokens")
    print(f"segmenter       width {segmenter.hidden_size}, {segmenter.image_size} pixels, blocks", end=" ")
    print("-".join(str(blocks) for blocks in segmenter.trunk_stages))
    print()
    _print_table(headers)


def _print_table(headers: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    """Parameters of each part with their data types."""
    sizes: Counter[str] = Counter()
    dtypes: dict[str, set[str]] = {}
    for name, (dtype, shape) in headers.items():
        part = next(label for prefix, label in PARTS.items() if name.startswith(prefix))
        sizes[part] += math.prod(shape)
        dtypes.setdefault(part, set()).add(dtype)
    for part in PARTS.values():
        if part in sizes:
            print(f"{part:<26}{sizes[part]:>15,}  {', '.join(sorted(dtypes[part]))}")
    print(f"{'all':<26}{sizes.total():>15,}  {', '.join(sorted(set().union(*dtypes.values())))}")


def read_tensor_headers(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Data type and shape of each tensor in the safetensors files of a checkpoint.

    Args:
        folder (`pathlib.Path`): Folder of the checkpoint, sharded or not.

    Returns:
        `dict[str, tuple[str, tuple[int, ...]]]`: Tensor name -> (data type, shape).

    Raises:
        CheckpointError: There is no weight file, a shard of the index is missing, or a file is damaged.
    """
    index = folder / INDEX_FILE
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index} is not the index of a sharded checkpoint ({error}).") from error
        files = [folder / name for name in names]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"The folder {folder} has no *.safetensors file: the weights are missing.")
    headers = {}
    for file in files:
        headers.update(_read_header(file))
    return headers


def _read_header(file: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The JSON at the head of a safetensors file, behind its length in 8 bytes."""
    with file.open("rb") as stream:
        length_bytes = stream.read(8)
        length = struct.unpack("<Q", length_bytes)[0] if len(length_bytes) == 8 else 0
        content = stream.read(length) if 0 < length <= MAX_HEADER_BYTES else b""
    try:
        header = json.loads(content)
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        tensors = {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} is not a safetensors file, or its head is damaged.") from error
    expected, found = 8 + length + end, file.stat().st_size
    if found != expected:
        raise CheckpointError(f"{file} has {found:,} bytes, but its head says {expected:,}: fetch it again.")
    return tensors
