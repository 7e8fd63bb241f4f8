"""The sources of a run as its YAML file names them, checked before anything is loaded."""

import os
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError

__all__ = ["check_sources"]

# Keys of a source whose value is a text. Which names, splits and further options there are, the catalogue knows.
TEXTS = ("name", "root", "split")
TEXTS_OR_NULL = ("config", "cache_dir")


def check_sources(what: str, sources: Any) -> None:
    """Check the form of a list of sources.

    Args:
        what (`str`): Where the list stands, for the message: `"data"`.
        sources (`Any`): What stands there; should be a list of mappings, each with `name` and `root`.

    Raises:
        ConfigError: It is no such list, a key has a value of another type, or some sources have a `weight` and others
            have none.

    Example:

    ```python
    >>> from virst_hf.errors import ConfigError
    >>> from virst_hf.training.sources import check_sources
    >>> try:
    ...     check_sources("data", [{"name": "own", "root": 5}])
    ... except ConfigError as error:
    ...     print(error)
    Source 0 of data, own: root must be a text, found 5.

    ```
    """
    if not isinstance(sources, list | tuple) or not all(isinstance(source, Mapping) for source in sources):
        raise ConfigError(f"{what} must be a list of sources, each with a name and a root, found {sources!r}.")
    for number, source in enumerate(sources):
        _check_source(f"Source {number} of {what}", source)
    without = [f"{number} ({source['name']})" for number, source in enumerate(sources) if "weight" not in source]
    if 0 < len(without) < len(sources):
        raise ConfigError(
            f"Some sources of {what} have a weight, and source {', '.join(without)} has none. Give every source a "
            "weight (its share inside its category), or none of them."
        )


def _check_source(place: str, source: Mapping) -> None:
    if source.get("name") is None:
        raise ConfigError(f"{place} has no name, found {dict(source)}. `virst data list` shows the names.")
    if isinstance(source["name"], str):
        place = f"{place}, {source['name']}"
    if source.get("root") is None:
        raise ConfigError(f"{place}, has no root: name the folder of the data set.")
    for key, value in source.items():
        allowed = str | os.PathLike if key == "root" else str
        wanted = key in TEXTS or (key in TEXTS_OR_NULL and value is not None)
        if not isinstance(key, str) or (wanted and not isinstance(value, allowed)):
            raise ConfigError(f"{place}: {key} must be a text, found {value!r}.")
    if source.get("streaming"):
        raise ConfigError(f"{place} cannot be streamed: draws are rows by their number. Leave streaming out.")
