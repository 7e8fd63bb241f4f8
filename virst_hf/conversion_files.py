"""Checkpoint files, read and written a tensor at a time: a 7B model is never in memory as a whole."""

import hashlib
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

# Only the name of the error with which torch's restricted reader refuses a file; nothing is unpickled here.
from pickle import UnpicklingError

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .errors import CheckpointError

__all__ = [
    "LazyTensor",
    "checkpoint_files",
    "in_memory",
    "new_folder",
    "open_checkpoint",
    "sha256",
    "write_shards",
]

INDEX_NAME = "model.safetensors.index.json"
HASH_CHUNK = 1 << 22
# What torch.load may raise for a file that is cut off, damaged or no checkpoint at all.
LOAD_ERRORS = (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, TypeError)


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is known by shape and type and read when it is needed.

    Args:
        shape (`tuple[int, ...]`): Its shape.
        dtype (`torch.dtype`): Its type.
        load (`Callable[[], torch.Tensor]`): Reads it.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], torch.Tensor]


def in_memory(state: Mapping[str, torch.Tensor]) -> dict[str, LazyTensor]:
    """Present tensors that are there already as [`LazyTensor`]s.

    Args:
        state (`Mapping[str, torch.Tensor]`): Name and tensor.

    Returns:
        `dict[str, LazyTensor]`: The same names.
    """
    return {name: LazyTensor(tuple(x.shape), x.dtype, lambda x=x: x) for name, x in state.items()}


def checkpoint_files(path: str | os.PathLike) -> list[Path]:
    """The files that hold the tensors of a checkpoint.

    Args:
        path (`str` or `os.PathLike`):
            A `.pt`, `.pth`, `.bin` or `.safetensors` file, or a folder with safetensors shards.

    Returns:
        `list[Path]`: The file, or the shards that the folder's index names, or else every `.safetensors` file in it.

    Raises:
        `CheckpointError`: If there is no such file or folder, no shard in it, or a shard of the index is missing.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise CheckpointError(f"No checkpoint at {path}: expected a file, or a folder with safetensors shards.")
    if not (path / INDEX_NAME).is_file():
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise CheckpointError(f"{path} holds neither {INDEX_NAME} nor a .safetensors file.")
        return files
    names = sorted(set(read_index(path).values()))
    absent = [name for name in names if Path(name).name != name or not (path / name).is_file()]
    if absent:
        raise CheckpointError(
            f"{path / INDEX_NAME} names shards that are not beside it: {', '.join(absent)}. Download them again."
        )
    return [path / name for name in names]


def read_index(folder: Path) -> dict[str, str]:
    """Name of each tensor and the shard it is in, from the index of a folder of shards."""
    try:
        index = json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{folder / INDEX_NAME} is not JSON: {error}") from error
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise CheckpointError(f"{folder / INDEX_NAME} has no weight_map of tensor names and shard names.")
    return shards


def sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file, read in pieces.

    Args:
        path (`str` or `os.PathLike`): The file.

    Returns:
        `str`: 64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(HASH_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def open_checkpoint(path: str | os.PathLike, wrapped_in: str) -> Iterator[dict[str, LazyTensor]]:
    """Open a checkpoint for reading tensor by tensor; the files stay open inside the `with` block.

    Args:
        path (`str` or `os.PathLike`): As in [`checkpoint_files`].
        wrapped_in (`str`): Entry of a `.pt` file that holds the tensors; a file that is itself a dictionary of tensors
            is read as it is.

    Yields:
        `dict[str, LazyTensor]`: Every tensor by its name in the checkpoint.

    Raises:
        `CheckpointError`: If a file is damaged, holds something else than tensors, or a tensor is in two shards.
    """
    files = checkpoint_files(path)
    with ExitStack() as stack:
        tensors: dict[str, LazyTensor] = {}
        for file in files:
            found = open_safetensors(file, stack) if file.suffix == ".safetensors" else read_pt(file, wrapped_in)
            twice = sorted(tensors.keys() & found.keys())
            if twice:
                raise CheckpointError(f"{file} repeats tensors of another shard: {', '.join(twice)}.")
            tensors.update(found)
        folder = Path(path)
        if (folder / INDEX_NAME).is_file():
            check_index(folder, tensors)
        yield tensors


def check_index(folder: Path, tensors: Mapping[str, LazyTensor]) -> None:
    """Raise a `CheckpointError` unless the shards hold the tensors that the index of `folder` lists."""
    listed = read_index(folder).keys()
    absent, extra = sorted(listed - tensors.keys()), sorted(tensors.keys() - listed)
    if absent or extra:
        raise CheckpointError(
            f"The shards in {folder} do not agree with {INDEX_NAME}: not in a shard: {', '.join(absent) or 'none'}; "
            f"not in the index: {', '.join(extra) or 'none'}. Download the folder again."
        )


def open_safetensors(file: Path, stack: ExitStack) -> dict[str, LazyTensor]:
    """Tensors of one safetensors file, which `stack` keeps open."""
    try:
        reader = stack.enter_context(safe_open(file, framework="pt"))
        # `dtype` of a slice is a name of the format's own, so the type is taken from an empty piece of the tensor.
        return {name: lazy_slice(reader, name) for name in reader.keys()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is not a whole safetensors file: {error}. Download it again.") from error


def lazy_slice(reader: safe_open, name: str) -> LazyTensor:
    """One tensor of an open safetensors file."""
    piece = reader.get_slice(name)
    shape = tuple(piece.get_shape())
    dtype = piece[:0].dtype if shape else reader.get_tensor(name).dtype
    return LazyTensor(shape, dtype, lambda: reader.get_tensor(name))


def read_pt(file: Path, wrapped_in: str) -> dict[str, LazyTensor]:
    """Tensors of a file of `torch.save`. They are mapped, not read, so each comes into memory when it is used."""
    try:
        # weights_only builds tensors and plain containers; any other object in the file is refused, not executed.
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except UnpicklingError as error:
        # torch's own text advises to load the file all the same, so only the name that it stopped at is passed on.
        name = re.search(r"GLOBAL (\S+)", str(error))
        raise CheckpointError(
            f"{file} was refused, and nothing in it was executed: it holds something else than tensors and plain "
            f"containers{f' ({name[1]})' if name else ''}, or is damaged. Expected a file of torch.save with a "
            f"dictionary of tensors, best under {wrapped_in!r}; get it from a source that you trust."
        ) from error
    except LOAD_ERRORS as error:
        raise CheckpointError(f"{file} is not a whole file of torch.save ({error!r}). Download it again.") from error
    if isinstance(state, Mapping) and isinstance(state.get(wrapped_in), Mapping):
        state = state[wrapped_in]
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{file} holds a {type(state).__name__}; expected a dictionary of tensors.")
    other = [f"{name!r} ({type(x).__name__})" for name, x in state.items() if not is_named_tensor(name, x)]
    if other or not state:
        raise CheckpointError(
            f"{file} has no {wrapped_in!r} with a dictionary of tensors and is not one itself. "
            f"Found {', '.join(other) or 'an empty dictionary'}."
        )
    return in_memory(state)


def is_named_tensor(name: object, value: object) -> bool:
    """Whether an entry of a state dictionary is a dense tensor under a name."""
    return isinstance(name, str) and isinstance(value, torch.Tensor) and value.layout == torch.strided


@contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A folder that exists only when all that belongs into it has been written.

    Args:
        path (`str` or `os.PathLike`): The folder; it may exist, empty.

    Yields:
        `Path`: A folder beside it, renamed at the end, removed on an error.

    Raises:
        `CheckpointError`: If there is a file at `path`, or a folder that is not empty.
    """
    path = Path(os.path.abspath(path))  # takes out any `..`, which has no name to build beside
    check_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as beside:
        # One level further down: the outer folder is private to the user, the result should not be.
        building = Path(beside) / path.name
        building.mkdir()
        yield building
        check_free(path)
        if path.exists():
            path.rmdir()
        building.rename(path)


def check_free(path: str | os.PathLike) -> None:
    """Raise a `CheckpointError` if something is at `path` already.

    Args:
        path (`str` or `os.PathLike`): Folder to be written.
    """
    path = Path(path)
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists():
        raise CheckpointError(f"{path} exists and is not an empty folder. Remove it or choose another output folder.")


def write_shards(
    tensors: Mapping[str, LazyTensor],
    folder: Path,
    max_shard_size: int | str,
    progress: Callable[[str], None],
) -> None:
    """Write tensors as safetensors, holding one shard in memory at a time.

    Args:
        tensors (`Mapping[str, LazyTensor]`): What to write.
        folder (`Path`): Where to.
        max_shard_size (`int` or `str`): Size of a shard at most, in bytes or as `"5GB"`; a single shard gets no index,
            as with `save_pretrained`.
        progress (`Callable[[str], None]`): Called with one line for each shard.

    Raises:
        `CheckpointError`: If `max_shard_size` is not a size.
    """
    # Tensors without memory stand in for the real ones while the shards are laid out.
    sizes = {name: torch.empty(x.shape, dtype=x.dtype, device="meta") for name, x in tensors.items()}
    try:
        layout = split_torch_state_dict_into_shards(sizes, max_shard_size=max_shard_size)
    except ValueError as error:
        raise CheckpointError(f"max_shard_size is {max_shard_size!r}; expected bytes or a size as '5GB'.") from error
    for file_name, names in layout.filename_to_tensors.items():
        # Nothing holds the shard by a name, so that it is gone before the next one is read. Each tensor is a copy:
        # those of a `.pt` may share memory, which safetensors refuses.
        save_file({name: own_copy(tensors[name]) for name in names}, folder / file_name, metadata={"format": "pt"})
        progress(f"Wrote {file_name} ({len(names)} tensors)")
    if layout.is_sharded:
        index = {"metadata": layout.metadata, "weight_map": layout.tensor_to_filename}
        (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def own_copy(tensor: LazyTensor) -> torch.Tensor:
    """The tensor in memory of its own."""
    return tensor.load().detach().clone(memory_format=torch.contiguous_format)
