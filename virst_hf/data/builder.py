"""The base of every `datasets` builder of the package: one record, one way to find, read, check and cache a set."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets

from ..errors import DataError, VirstError
from .files import content_hash
from .records import record_features

__all__ = ["SCHEMA_VERSION", "Report", "VirstDataConfig", "VirstDatasetBuilder", "raise_problem"]

# Part of the key of every Arrow cache: raise it when rows change.
SCHEMA_VERSION = "1.0.0"
# Shards of a split: enough for the processes of a machine, few enough that each is worth opening.
MAX_SHARDS = 64
# (check, item, message): how a reader tells of a defect.
Report = Callable[[str, str, str], None]


def raise_problem(check: str, item: str, message: str) -> None:
    """The report of loading: the first defect ends it.

    Args:
        check (`str`): Name of the check, such as `"mask_count"`.
        item (`str`): Video, expression or file.
        message (`str`): What was found, what was expected, what to do.

    Raises:
        DataError: Always.
    """
    raise DataError(f"{item}: {message} [{check}]")


@dataclasses.dataclass
class VirstDataConfig(datasets.BuilderConfig):
    """
    What can be chosen when a data set is read; sets with more choices have a sub-class.

    Args:
        follow_links (`bool`, *optional*, defaults to `False`): Whether symbolic links may leave the data root.
        splits (`tuple[str]`, *optional*): Splits to prepare; all that are there when not given.
    """

    version: datasets.Version = dataclasses.field(default_factory=lambda: datasets.Version(SCHEMA_VERSION))
    follow_links: bool = False
    splits: tuple[str, ...] | None = None


class VirstDatasetBuilder(datasets.GeneratorBasedBuilder):
    """
    Base of the builders. A sub-class says how its folders look (`find_splits`), which files hold its annotations
    (`annotation_paths`), and how they become records (`units` and `rows`); this class does the rest.

    Args:
        data_dir (`str` or `os.PathLike`): Root of the data set as it was unpacked.
        config_name (`str`, *optional*): One of the set's configurations.
        cache_dir (`str`, *optional*): Where Arrow files go; the cache of `datasets` when not given.
        **kwargs: Fields of the configuration, and what `datasets.GeneratorBasedBuilder` takes.

    Raises:
        DataError: There is no such folder, it holds no split of the set, or a field of the configuration is unknown.
    """

    NAME: str = ""
    CATEGORY: str = ""
    SPLITS: tuple[str, ...] = ()
    TREE: str = ""

    BUILDER_CONFIG_CLASS = VirstDataConfig
    BUILDER_CONFIGS = [VirstDataConfig(name="default")]

    def __init__(
        self, data_dir: str | os.PathLike | None = None, config_name: str | None = None, **kwargs: Any
    ) -> None:
        self.root = self._find_root(data_dir)
        self.config = self._choose_config(config_name, kwargs)
        if "hash" not in kwargs:
            kwargs["hash"] = self._cache_key()
        super().__init__(
            data_dir=str(self.root),
            config_name=self.config.name,
            dataset_name=f"virst-{type(self).__name__}",
            **kwargs,
        )

    # --- what a set says of itself -----------------------------------------------------------------------------------
    def find_splits(self, root: Path) -> list[str]:
        """Splits that stand under `root`, in whichever layout; an empty list if it is another folder."""
        raise VirstError(f"{type(self).__name__} does not say how its folders look.")

    def annotation_paths(self, root: Path, split: str) -> list[Path]:
        """Files and folders whose change makes the Arrow copy of a split stale."""
        raise VirstError(f"{type(self).__name__} does not say where its annotations are.")

    def units(self, root: Path, split: str, report: Report) -> list[str]:
        """Ids of the videos or images of a split, in order."""
        raise VirstError(f"{type(self).__name__} does not say which videos it has.")

    def rows(self, root: Path, split: str, units: Sequence[str], report: Report) -> Iterator[dict[str, Any]]:
        """Records of some videos or images, in order; defects are reported, and what has one is left out."""
        raise VirstError(f"{type(self).__name__} does not say how to read its rows.")

    # --- root, configuration and cache -------------------------------------------------------------------------------
    def _find_root(self, data_dir: str | os.PathLike | None) -> Path:
        if data_dir is None:
            raise DataError(f"{type(self).__name__} needs data_dir, the folder with:\n{self.TREE}")
        root = Path(data_dir).expanduser().absolute()
        if not root.exists():
            raise DataError(f"There is no folder {root}. Expected for {self.NAME}:\n{self.TREE}")
        return root

    def _choose_config(self, name: str | None, fields: dict[str, Any]) -> VirstDataConfig:
        known = {config.name: config for config in self.BUILDER_CONFIGS}
        chosen = known.get(name if name is not None else next(iter(known)))
        if chosen is None:
            raise DataError(f"{self.NAME} has no configuration {name!r}; expected one of {', '.join(known)}.")
        own = {field.name for field in dataclasses.fields(chosen)}
        builder_fields = {"cache_dir", "hash", "num_proc", "writer_batch_size", "info", "token", "storage_options"}
        unknown = sorted(set(fields) - own - builder_fields)
        if unknown:
            raise DataError(f"{self.NAME} has no option {', '.join(unknown)}; it has {', '.join(sorted(own))}.")
        return dataclasses.replace(chosen, **{key: value for key, value in fields.items() if key in own})

    def available_splits(self) -> list[str]:
        """The splits that stand under the root, of those that the configuration asks for.

        Raises:
            DataError: There is none, or one that is asked for is missing.
        """
        found = self.find_splits(self.root)
        wanted = self.config.splits
        if not found:
            raise DataError(f"{self.root} does not look like {self.NAME} ({self.config.name}). Expected:\n{self.TREE}")
        if wanted is None:
            return found
        lacking = [split for split in wanted if split not in found]
        if lacking:
            raise DataError(
                f"{self.root} has no split {', '.join(lacking)} of {self.NAME} ({self.config.name}); it has "
                f"{', '.join(found)}. Expected:\n{self.TREE}"
            )
        return list(wanted)

    def _cache_key(self) -> str:
        """Changes with the schema, the set, the root, the configuration and every annotation file."""
        paths = [path for split in self.available_splits() for path in self.annotation_paths(self.root, split)]
        fields = {key: str(value) for key, value in vars(self.config).items() if key not in ("version", "data_dir")}
        described = f"{SCHEMA_VERSION} {type(self).__qualname__} {self.root} {sorted(fields.items())}"
        # Sets with one file for all splits name it once for each.
        return content_hash([described, *dict.fromkeys(paths)])

    # --- what datasets calls -----------------------------------------------------------------------------------------
    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=record_features(), description=type(self).__doc__ or "")

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        generators = []
        for split in self.available_splits():
            units = self.units(self.root, split, raise_problem)
            if not units:
                raise DataError(f"Split {split} of {self.NAME} under {self.root} is empty.")
            size = -(-len(units) // MAX_SHARDS)
            chunks = [units[start : start + size] for start in range(0, len(units), size)]
            generators.append(datasets.SplitGenerator(name=split, gen_kwargs={"split": split, "chunks": chunks}))
        return generators

    def _generate_examples(self, split: str, chunks: Sequence[Sequence[str]]) -> Iterator[tuple[str, dict[str, Any]]]:
        for units in chunks:
            for index, row in enumerate(self.rows(self.root, split, units, raise_problem)):
                yield f"{units[0]}:{index}", row

    def _prepare_split_single(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """As in `datasets`, which hides every error behind one of its own. With several processes this runs in one of
        them, and later only the text of a traceback would be left."""
        try:
            yield from super()._prepare_split_single(*args, **kwargs)
        except datasets.exceptions.DatasetGenerationError as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, VirstError):
                cause = cause.__cause__ or cause.__context__
            if cause is None:
                raise
            raise cause from None
