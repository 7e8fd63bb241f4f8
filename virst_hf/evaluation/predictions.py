"""Predictions on disk: one JSON file for each video, written whole or not at all, so that a run can be resumed.

```
OUT/run.json                     what was run: protocol, root, model, settings
OUT/predictions/<video>.json     masks of the expressions of a video, as COCO RLE
OUT/answers/<video>.json         answers to the questions about a video
```
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..data.files import describe, read_json
from ..errors import DataError, EvaluationError
from ..rendering import write_json
from ..rle import check_rle
from .samples import ANSWERS, MASKS, Unit

__all__ = ["PredictionStore", "settings_hash", "video_file_name"]

RUN_FILE = "run.json"
FOLDERS = {MASKS: "predictions", ANSWERS: "answers"}
# Names of files have at most 255 bytes, and the temporary name is longer by a few.
MAX_NAME = 180


def video_file_name(video_id: str) -> str:
    """Name of the file of a video: another for each video, without slashes, and never a hidden file or an option.

    Args:
        video_id (`str`): May hold slashes, dots and leading dashes, as those of ReVOS do.

    Returns:
        `str`: A name that ends in `.json`.

    Example:

    ```python
    >>> from virst_hf.evaluation.predictions import video_file_name
    >>> video_file_name("UVO/all/-a_b"), video_file_name("-x")
    ('UVO%2Fall%2F-a_b.json', '%2Dx.json')

    ```
    """
    name = quote(video_id, safe="")
    if name[:1] in (".", "-", "~"):
        name = f"%{ord(name[0]):02X}{name[1:]}"
    if len(name) > MAX_NAME:
        # "%%" stands in no quoted name.
        name = f"{name[:100]}%%{hashlib.sha256(video_id.encode('utf-8')).hexdigest()}"
    return name + ".json"


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Identity of a run: predictions of another model or other settings have another one.

    Args:
        settings (`Mapping[str, Any]`): Anything that JSON can hold.

    Returns:
        `str`: 16 hexadecimal digits.
    """
    text = json.dumps(settings, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class PredictionStore:
    """
    The folder of a run.

    Args:
        folder (`str` or `os.PathLike`): `--output` of `virst evaluate`.

    Example:

    ```python
    >>> import tempfile
    >>> from virst_hf.evaluation import PredictionStore
    >>> store = PredictionStore(tempfile.mkdtemp())
    >>> store.begin({"protocol": "mevis-v1-valid_u", "model_hash": "12ab"}, {"root": "/data/mevis"})
    >>> store.read_run()["settings"]["protocol"]
    'mevis-v1-valid_u'

    ```
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder).expanduser().absolute()

    # --- run.json ----------------------------------------------------------------------------------------------------
    def begin(self, settings: Mapping[str, Any], notes: Mapping[str, Any]) -> None:
        """Write `run.json`, or check that the one that is there is of the same run.

        Args:
            settings (`Mapping[str, Any]`): What the predictions depend on.
            notes (`Mapping[str, Any]`): What may change between the sittings of a run, such as the root.

        Raises:
            EvaluationError: The folder holds predictions of another model or of other settings, or other files.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise EvaluationError(f"{self.folder} is a file, expected a folder for the results.")
        if (self.folder / RUN_FILE).exists():
            found = self.read_run()["settings"]
            other = [key for key in sorted({*found, *settings}) if found.get(key) != settings.get(key)]
            if other:
                key = other[0]
                raise EvaluationError(
                    f"{self.folder} holds predictions of another run: {key} was {describe(found.get(key))} and is "
                    f"now {describe(settings.get(key))}. Choose another output folder."
                )
        elif self.folder.is_dir() and any(self.folder.iterdir()):
            name = min(path.name for path in self.folder.iterdir())
            raise EvaluationError(
                f"{self.folder} is not empty (it holds {name}) and has no {RUN_FILE}: choose another output folder."
            )
        content = {"settings": dict(settings), "settings_hash": settings_hash(settings), **notes}
        write_json(self.folder / RUN_FILE, content)
        for name in FOLDERS.values():
            for leftover in (self.folder / name).glob(".*.part.json"):
                leftover.unlink(missing_ok=True)  # of a process that was killed while it wrote

    def read_run(self) -> dict[str, Any]:
        """The content of `run.json`.

        Returns:
            `dict`: `settings`, `settings_hash` and the notes.

        Raises:
            EvaluationError: It is missing or damaged.
        """
        path = self.folder / RUN_FILE
        if not path.is_file():
            raise EvaluationError(f"{self.folder} is no folder of `virst evaluate`: it has no {RUN_FILE}.")
        try:
            content = read_json(path)
        except DataError as error:
            raise EvaluationError(f"{path} is damaged: {error}") from error
        settings = content.get("settings") if isinstance(content, dict) else None
        if not isinstance(settings, dict) or not isinstance(settings.get("protocol"), str):
            raise EvaluationError(f"{path} does not say which protocol was run.")
        if content.get("settings_hash") != settings_hash(settings):
            raise EvaluationError(f"{path} was changed by hand: its settings do not fit its settings_hash.")
        return content

    # --- predictions -------------------------------------------------------------------------------------------------
    def path(self, unit: Unit) -> Path:
        """File of a video."""
        return self.folder / FOLDERS[unit.kind] / video_file_name(unit.video_id)

    def names(self, kind: str) -> set[str]:
        """Names of the files that are there."""
        folder = self.folder / FOLDERS[kind]
        if not folder.is_dir():
            return set()
        return {name for name in os.listdir(folder) if name.endswith(".json") and not name.startswith(".")}

    def write(self, unit: Unit, run_hash: str, expressions: Mapping[str, Any], **fields: Any) -> None:
        """Write the predictions of a video.

        Args:
            unit ([`Unit`]): The video and what was asked.
            run_hash (`str`): `settings_hash` of the run.
            expressions (`Mapping[str, Any]`): For each expression id its text, and `masks`, `answer` or `error`.
            **fields: `height`, `width` and `frames`.
        """
        content = {
            "video_id": unit.video_id,
            "settings_hash": run_hash,
            **fields,
            "expressions": dict(expressions),
        }
        write_json(self.path(unit), content)

    def read(self, unit: Unit, run_hash: str, frames: list[str] | None = None) -> dict[str, Any]:
        """Read and check the predictions of a video.

        Args:
            unit ([`Unit`]): The video and what was asked.
            run_hash (`str`): `settings_hash` of the run.
            frames (`list[str]`, *optional*): Names of its frames; not compared when not given.

        Returns:
            `dict`: The content, every mask as [`check_rle`] gives it.

        Raises:
            EvaluationError: The file is missing or unreadable, is of another run, or its expressions, frames or
                masks are not those of the data set.
        """
        path = self.path(unit)
        try:
            content = read_json(path)
        except DataError as error:
            raise EvaluationError(f"The predictions of {unit.video_id} are missing or unreadable: {error}") from error
        found = content.get("expressions") if isinstance(content, dict) else None
        if not isinstance(found, dict) or content.get("video_id") != unit.video_id:
            raise EvaluationError(f"{path} does not hold predictions of {unit.video_id}.")
        if content.get("settings_hash") != run_hash:
            raise EvaluationError(f"The predictions of {unit.video_id} are of another run ({path}).")
        _check_expressions(unit, found, path)
        if unit.kind == MASKS:
            _check_frames(content, frames, path)
            size = (content["height"], content["width"])
            for key, entry in found.items():
                _check_masks(entry, len(content["frames"]), size, f"{unit.video_id}, expression {key}")
        return content

    def is_complete(self, unit: Unit, run_hash: str) -> bool:
        """Whether a video need not be computed again: its file is whole, of this run, and nothing in it failed."""
        if not self.path(unit).is_file():
            return False
        try:
            content = self.read(unit, run_hash)
        except EvaluationError:
            return False
        return not any("error" in entry for entry in content["expressions"].values())


def _check_expressions(unit: Unit, found: Mapping[str, Any], path: Path) -> None:
    """The expressions are those of the data set, each with a result."""
    unknown = [key for key in found if key not in unit.expression_ids]
    if unknown:
        raise EvaluationError(
            f"{path} has {len(unknown)} unknown expressions of {unit.video_id}, {describe(unknown[0])} first."
        )
    missing = [key for key in unit.expression_ids if key not in found]
    if missing:
        raise EvaluationError(
            f"{path} lacks {len(missing)} expressions of {unit.video_id}: {', '.join(missing[:5])} first."
        )
    wanted = "answer" if unit.kind == ANSWERS else "masks"
    for key, text in zip(unit.expression_ids, unit.expressions, strict=True):
        entry = found[key]
        if not isinstance(entry, dict) or entry.get("expression") != text:
            raise EvaluationError(f"{path}: expression {key} of {unit.video_id} is not that of the data set.")
        kind = str if wanted == "answer" else list
        if not isinstance(entry.get("error", ""), str) or not (
            "error" in entry or isinstance(entry.get(wanted), kind)
        ):
            raise EvaluationError(f"{path}: expression {key} of {unit.video_id} has no {wanted} and no error.")


def _check_frames(content: Mapping[str, Any], frames: list[str] | None, path: Path) -> None:
    """The frames are those of the data set, and their size is known."""
    names, size = content.get("frames"), (content.get("height"), content.get("width"))
    if not isinstance(names, list) or not all(type(n) is int and n > 0 for n in size):
        raise EvaluationError(f"{path} does not state the frames and their size.")
    if frames is not None and names != frames:
        raise EvaluationError(
            f"{path} has predictions of {len(names)} frames, but the data set has {len(frames)}, or other names."
        )


def _check_masks(entry: dict[str, Any], length: int, size: tuple[int, int], where: str) -> None:
    """One mask for each frame, of the frame's size; each becomes what `check_rle` gives."""
    if "error" in entry:
        return
    if len(entry["masks"]) != length:
        raise EvaluationError(f"{where}: {len(entry['masks'])} masks for {length} frames.")
    try:
        entry["masks"] = [check_rle(rle, size) for rle in entry["masks"]]
    except DataError as error:
        raise EvaluationError(f"{where}: a predicted mask cannot be used: {error}") from error
