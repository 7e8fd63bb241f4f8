"""A prepared data set as parquet for the Hub: texts and masks with paths relative to the root, and no pixels."""

import functools
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from .catalog import CATALOG, make_builder
from .files import data_path, frame_paths
from .records import FIELDS

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from huggingface_hub import DatasetCard

    from .builder import VirstDatasetBuilder

__all__ = ["load_published", "publish"]

# Shards of about this size, as the Hub advises.
SHARD_BYTES = 500_000_000
# Beginning of a licence in the catalogue -> its identifier on the Hub.
LICENCES = {"CC BY-NC-SA 4.0": "cc-by-nc-sa-4.0", "CC0 1.0": "cc0-1.0"}
TASKS = {"video_qa": "video-text-to-text"}
DEFAULT_TASK = "image-segmentation"
CARD_TEXT = """
# {title}

Expressions and masks of {name}, one row for each expression, prepared by `virst_hf`. **It holds no pixels**: frames
come from the original release, and their paths are relative to its root.

- Licence: {licence}
- Original: {where}

## The original's tree

```
{tree}
```

## How to load

```python
from virst_hf.data.publish import load_published

rows = load_published("{source}", root="{name}", split="{split}"{config})
rows[0]["expression"], rows[0]["frame_paths"]
```

`root` is the folder of the tree above; each frame is looked for there. `datasets.load_dataset` gives the same rows
with relative paths.

## Splits

| split | expressions | videos or images |
|---|---|---|
{splits}

## Fields

| field | meaning |
|---|---|
{fields}

A mask is a COCO run-length encoding, `{{"size": [height, width], "counts": ...}}`, for `pycocotools.mask.decode`.
"""


def publish(
    name: str,
    root: str | os.PathLike,
    output: str | os.PathLike | None = None,
    *,
    repo_id: str | None = None,
    split: str | None = None,
    config: str | None = None,
    private: bool = False,
    num_proc: int | None = None,
    cache_dir: str | None = None,
    **fields: Any,
) -> str:
    """Write a data set as parquet with a card, to a folder or to the Hub.

    Args:
        name (`str`): Its name in the catalogue.
        root (`str` or `os.PathLike`): Its folder.
        output (`str` or `os.PathLike`, *optional*): Folder to write; it must be new or empty.
        repo_id (`str`, *optional*): Or the data set on the Hub, `"user/name"`; one of the two is needed. You must be
            logged in (`hf auth login`). Configurations and splits that are there already stay.
        split (`str`, *optional*): One split; all that are there when not given.
        config (`str`, *optional*): One of the set's configurations.
        private (`bool`, *optional*, defaults to `False`): Whether a new data set on the Hub is private.
        num_proc (`int`, *optional*): Processes that prepare the rows.
        cache_dir (`str`, *optional*): Where Arrow files go; the cache of `datasets` when not given.
        **fields: Options of the set.

    Returns:
        `str`: The folder, or the name on the Hub.

    Raises:
        DataError: Both or none of `output` and `repo_id` are given, `output` is in use, the data has a defect, or a
            frame is not below `root`.
    """
    if (output is None) == (repo_id is None):
        raise DataError("Say where to publish: either a folder or a repository of the Hub.")
    folder = _check_repository(repo_id) if output is None else _new_folder(output)
    builder = make_builder(name, root, split, config, cache_dir=cache_dir, **fields)
    builder.download_and_prepare(num_proc=num_proc, verification_mode="no_checks")
    prepared = _with_relative_paths(builder)
    if folder is None:
        _push(prepared, builder, repo_id, private)
        return repo_id
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as holder:
        written = Path(holder) / "new"
        _write(prepared, builder, written, folder.name)
        if folder.exists():
            # Only an empty folder gives way; should it have been filled meanwhile, this raises.
            folder.rmdir()
        written.replace(folder)
    return str(folder)


def _check_repository(repo_id: str) -> None:
    """A wrong name is told before the work begins."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise DataError(f"{repo_id!r} is no name of a repository on the Hub, user/name: {error}") from error


def _new_folder(output: str | os.PathLike) -> Path:
    folder = Path(output).expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} is in use; choose a folder that is new or empty.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder


def _base(root: Path) -> Path:
    """The folder that paths are relative to; own data may have a file as its root."""
    return root.parent if root.is_file() else root


def _with_relative_paths(builder: "VirstDatasetBuilder") -> "DatasetDict":
    """The prepared splits, with paths relative to the root."""
    from datasets import DatasetDict

    base = _base(builder.root)
    prepared = {}
    for split in builder.available_splits():
        rows = builder.as_dataset(split=split)
        change = functools.partial(_relative, base=str(base))
        prepared[split] = rows.map(change, features=rows.features, desc=f"relative paths of {split}")
    return DatasetDict(prepared)


def _relative(row: Mapping[str, Any], base: str) -> dict[str, Any]:
    """The fields of a row that hold paths, relative to `base`."""

    def cut(path: str) -> str:
        if not PurePosixPath(path).is_relative_to(base):
            raise DataError(f"{path} is not below {base}, so others could not find it.")
        return PurePosixPath(path).relative_to(base).as_posix()

    video = row["video_path"]
    return {
        "frame_paths": [cut(path) for path in row["frame_paths"]],
        "video_path": None if video is None else cut(video),
    }


# --- writing ---------------------------------------------------------------------------------------------------------
def _data_folder(config: str) -> str:
    """Folder of the parquet files, as `push_to_hub` names it."""
    return "data" if config == "default" else config


def _write(prepared: "DatasetDict", builder: "VirstDatasetBuilder", folder: Path, source: str) -> None:
    """Parquet files and card, in the layout of the Hub."""
    data = folder / _data_folder(builder.config.name)
    data.mkdir(parents=True)
    for split, rows in prepared.items():
        count = max(1, -(-rows.data.nbytes // SHARD_BYTES))
        for index in range(count):
            shard = rows.shard(count, index, contiguous=True)
            shard.to_parquet(data / f"{split}-{index:05d}-of-{count:05d}.parquet")
    _card(prepared, builder, source).save(folder / "README.md")


def _push(prepared: "DatasetDict", builder: "VirstDatasetBuilder", repo_id: str, private: bool) -> None:
    """Upload parquet files and card. `push_to_hub` keeps the metadata of what is in the repository, so the card is
    built around what it has written."""
    from huggingface_hub import DatasetCard

    prepared.push_to_hub(repo_id, builder.config.name, private=private)
    card = _card(prepared, builder, repo_id)
    there = DatasetCard.load(repo_id)
    for key, value in card.data.to_dict().items():
        if key not in ("configs", "dataset_info") or there.data.get(key) is None:
            setattr(there.data, key, value)
    # An owner's own text is never replaced.
    if not there.text.strip():
        there.text = card.text
    there.push_to_hub(repo_id)


def _card(prepared: "DatasetDict", builder: "VirstDatasetBuilder", source: str) -> "DatasetCard":
    """The card: metadata for the Hub, and how to use the files."""
    from huggingface_hub import DatasetCard, DatasetCardData

    entry = CATALOG[builder.NAME]
    config, splits = builder.config.name, list(prepared)
    counts = [f"| {split} | {len(rows):,} | {_count(rows):,} |" for split, rows in prepared.items()]
    categories = {category for rows in prepared.values() for category in rows.unique("category")}
    data = DatasetCardData(
        **_licence(entry.licence),
        task_categories=sorted({TASKS.get(category, DEFAULT_TASK) for category in categories}),
        pretty_name=entry.title.split(":")[0],
        tags=["virst_hf", *sorted(category.replace("_", "-") for category in categories)],
        configs=[_data_files(config, splits)],
        dataset_info=_dataset_info(config, prepared),
    )
    text = CARD_TEXT.format(
        title=entry.title,
        name=builder.NAME,
        licence=entry.licence,
        where=entry.where,
        tree=builder.TREE,
        source=source,
        split=splits[0],
        config="" if config == "default" else f', config="{config}"',
        splits="\n".join(counts),
        fields="\n".join(f"| {name} | {meaning} |" for name, meaning in FIELDS.items()),
    )
    return DatasetCard(f"---\n{data.to_yaml()}\n---\n{text}")


def _count(rows: "Dataset") -> int:
    return len(set(zip(rows["source"], rows["video_id"], strict=True)))


def _licence(licence: str) -> dict[str, Any]:
    """What the Hub is told of a licence: its identifier, or that it is another one."""
    # Only a licence that covers all may be named as the licence of the whole.
    known = next((name for start, name in LICENCES.items() if licence.startswith(start) and ";" not in licence), None)
    if known is not None:
        return {"license": known}
    return {"license": "other", "license_name": "see-the-card"}


def _data_files(config: str, splits: Sequence[str]) -> dict[str, Any]:
    """Which files belong to which split; a configuration of its own is the default one for want of another."""
    folder = _data_folder(config)
    return {
        "config_name": config,
        "data_files": [{"split": split, "path": f"{folder}/{split}-*"} for split in splits],
    }


def _dataset_info(config: str, prepared: "DatasetDict") -> Any:
    """Columns and sizes, as `datasets` writes them into a card."""
    from datasets.info import DatasetInfosDict
    from huggingface_hub import DatasetCardData

    first = next(iter(prepared.values()))
    info = first.info.copy()
    info.config_name, info.features, info.splits, info.download_size = config, first.features, None, None
    info.dataset_size = None
    card = DatasetCardData()
    DatasetInfosDict({config: info}).to_dataset_card_data(card)
    return card.dataset_info


# --- reading ---------------------------------------------------------------------------------------------------------
def load_published(
    source: str | os.PathLike,
    root: str | os.PathLike,
    split: str,
    *,
    config: str | None = None,
    follow_links: bool = False,
    cache_dir: str | None = None,
) -> "Dataset":
    """Load what [`publish`] wrote, and find its frames below `root`.

    Args:
        source (`str` or `os.PathLike`): The folder, or the name on the Hub.
        root (`str` or `os.PathLike`): Folder of the original release, as the card shows it.
        split (`str`): A split.
        config (`str`, *optional*): A configuration, where there are several.
        follow_links (`bool`, *optional*, defaults to `False`): Whether symbolic links may leave `root`.
        cache_dir (`str`, *optional*): Where Arrow files go; the cache of `datasets` when not given.

    Returns:
        `datasets.Dataset`: The records, equal to those of [`~data.catalog.load`].

    Raises:
        DataError: There is no such folder, split or configuration, the columns are others, a path would leave `root`,
            or a frame is not there.
    """
    from datasets import load_dataset

    base = _base(Path(root).expanduser().absolute())
    if not base.is_dir():
        raise DataError(f"There is no folder {base}: root is where the frames of the original release are.")
    folder = Path(source).expanduser()
    try:
        rows = load_dataset(str(folder) if folder.is_dir() else str(source), config, split=split, cache_dir=cache_dir)
    except (ValueError, FileNotFoundError) as error:
        raise DataError(f"{source} has no split {split} that can be loaded: {error}") from error
    missing = [name for name in FIELDS if name not in rows.column_names]
    if missing:
        raise DataError(f"{source} is not a set that virst published: it lacks {', '.join(missing)}.")
    join = _Joiner(base, follow_links)
    # Frames may have come or gone since the last time, so nothing is taken from a cache.
    return rows.map(join, features=rows.features, load_from_cache_file=False, desc=f"finding frames of {split}")


class _Joiner:
    """Joins the root to the relative paths of a row; what leaves the root or is not there is an error."""

    def __init__(self, base: Path, follow_links: bool) -> None:
        self.base, self.follow_links = base, follow_links
        self._last: tuple[list[str], list[str]] = ([], [])

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        names, video = row["frame_paths"], row["video_path"]
        # Expressions of one video follow one another.
        if names != self._last[0]:
            self._last = (names, self._frames(names))
        return {"frame_paths": self._last[1], "video_path": None if video is None else self._file(video)}

    def _frames(self, names: Sequence[str]) -> list[str]:
        if not names:
            return []
        if not all(names):
            raise DataError("A published row has a frame path that is empty.")
        parents = {name.rpartition("/")[0] for name in names}
        parent = parents.pop()
        if len(names) < 2 or parents or not parent:
            return [self._file(name) for name in names]
        # One scan of the folder in place of a look at each file.
        stems = [name.rpartition("/")[2] for name in names]
        found = frame_paths(self.base, parent, stems, suffixes=("",), follow_links=self.follow_links)
        return [str(path) for path in found]

    def _file(self, name: str) -> str:
        path = data_path(self.base, name, follow_links=self.follow_links)
        if not path.exists():
            raise DataError(f"There is no file {path}; is {self.base} the root of the original release?")
        return str(path)
