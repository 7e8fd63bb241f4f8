"""Names of a package that are imported when they are first used, so that its import takes nothing heavy."""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["lazy_exports"]


def lazy_exports(
    package: str, exports: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """What the `__init__` of a package needs for lazy names.

    Args:
        package (`str`): Its `__name__`.
        exports (`Mapping[str, Sequence[str]]`): Module of the package -> the names that it gives to it.

    Returns:
        `tuple`: `__getattr__`, `__dir__` and `__all__` of the package.
    """
    module_of = {name: module for module, names in exports.items() for name in names}
    namespace = vars(sys.modules[package])

    def get(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f".{module_of[name]}", package), name)
        namespace[name] = value
        return value

    def names() -> list[str]:
        return sorted({*namespace, *module_of})

    return get, names, sorted(module_of)
