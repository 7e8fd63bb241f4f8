"""Makes the Auto classes of Transformers know this package, without importing Transformers or torch to do so.

`AutoModel.register(config, model)` wants the classes themselves, so calling it in `virst_hf/__init__.py` would make
`import virst_hf` as slow as importing torch. Here the entry is put where `register` would put it, in the
`_extra_content` of the Auto mapping, but as a dictionary that imports our class only when somebody asks for it. A
mapping whose module is not imported yet gets its entry right after that module has run.
"""

import importlib
import sys
from collections.abc import Callable, ItemsView, Iterator, KeysView, Sequence, ValuesView
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

__all__ = ["install"]

MODEL_TYPE = "virst"


def _class(module: str, name: str) -> type:
    return getattr(importlib.import_module(f"virst_hf.{module}"), name)


def _config_entry() -> tuple[str, type]:
    return MODEL_TYPE, _class("configuration_virst", "VirstConfig")


def _model_entry() -> tuple[type, type]:
    return _config_entry()[1], _class("modeling_virst", "VirstForVideoSegmentation")


def _processor_entry() -> tuple[type, type]:
    return _config_entry()[1], _class("processing_virst", "VirstProcessor")


def _video_processor_entry() -> tuple[type, dict[str, type]]:
    # Video processors are registered by backend; ours does its own resizing and needs no other.
    return _config_entry()[1], {"torchvision": _class("video_processing_virst", "VirstVideoProcessor")}


# Module of Transformers -> name of the mapping in it, and what makes our entry of that mapping.
MAPPINGS: dict[str, tuple[str, Callable[[], tuple[Any, Any]]]] = {
    "transformers.models.auto.configuration_auto": ("CONFIG_MAPPING", _config_entry),
    "transformers.models.auto.modeling_auto": ("MODEL_MAPPING", _model_entry),
    "transformers.models.auto.processing_auto": ("PROCESSOR_MAPPING", _processor_entry),
    "transformers.models.auto.video_processing_auto": ("VIDEO_PROCESSOR_MAPPING", _video_processor_entry),
}


class LazyEntries(dict):
    """A dictionary with one entry that is made when it is first needed.

    A look-up of some other model's configuration does not make it; a look-up of ours does, and so does reading all
    entries.

    Args:
        entries (`dict`): What is there already.
        make_entry (`Callable[[], tuple]`): Gives key and value of the entry; called once.
    """

    def __init__(self, entries: dict, make_entry: Callable[[], tuple[Any, Any]]) -> None:
        super().__init__(entries)
        self._make_entry: Callable[[], tuple[Any, Any]] | None = make_entry

    def _load(self) -> None:
        if self._make_entry is not None:
            key, value = self._make_entry()
            self._make_entry = None
            # An explicit `AutoModel.register(VirstConfig, ...)` by the user comes first.
            super().setdefault(key, value)

    def _load_for(self, key: Any) -> None:
        # Keys are model types in the mapping of configurations, and configuration classes in all others.
        if getattr(key, "model_type", key) == MODEL_TYPE:
            self._load()

    def __contains__(self, key: object) -> bool:
        self._load_for(key)
        return super().__contains__(key)

    def __getitem__(self, key: Any) -> Any:
        self._load_for(key)
        return super().__getitem__(key)

    def __iter__(self) -> Iterator:
        self._load()
        return super().__iter__()

    def __len__(self) -> int:
        self._load()
        return super().__len__()

    def keys(self) -> KeysView:
        """All keys, ours included."""
        self._load()
        return super().keys()

    def values(self) -> ValuesView:
        """All values, ours included."""
        self._load()
        return super().values()

    def items(self) -> ItemsView:
        """All pairs, ours included."""
        self._load()
        return super().items()


def register(module: ModuleType) -> None:
    """Add our entry to the mapping of a module of `transformers.models.auto`, once.

    Args:
        module (`ModuleType`): One of the modules in `MAPPINGS`, imported.
    """
    name, make_entry = MAPPINGS[module.__name__]
    mapping = getattr(module, name)
    if not isinstance(mapping._extra_content, LazyEntries):
        mapping._extra_content = LazyEntries(mapping._extra_content, make_entry)


class AutoModuleFinder(MetaPathFinder):
    """Finds the modules of `MAPPINGS` as the usual machinery does, and calls `register` when one has been imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The usual spec of a module of `MAPPINGS`, with a loader that registers; `None` for any other module."""
        if fullname not in MAPPINGS:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            register(module)

        spec.loader.exec_module = execute_and_register
        return spec


def install() -> None:
    """Register with the Auto modules that are imported already, and see to it that the others follow."""
    if any(isinstance(finder, AutoModuleFinder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, AutoModuleFinder())
    for name, (mapping, _) in MAPPINGS.items():
        module = sys.modules.get(name)
        # A module that another thread is just importing has no mapping yet.
        if module is not None and mapping in vars(module):
            register(module)
