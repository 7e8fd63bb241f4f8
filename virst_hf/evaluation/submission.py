"""Zips for the servers that keep the masks of a benchmark: written frame by frame, then read back and checked."""

import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..errors import EvaluationError
from ..rendering import replacing
from ..rle import decode_rle
from .predictions import PredictionStore
from .protocols import get_protocol
from .samples import MASKS, SampleSet, load_samples

__all__ = ["TOP_FOLDERS", "check_submission", "pack_submission"]

# Protocol -> folder in which the zip has its videos. MeViS wants them at the top.
TOP_FOLDERS = {"mevis-valid": "", "ref-youtube-vos-valid": "Annotations/"}
# One date for all entries, the earliest that a zip can hold: the same masks give the same bytes.
ZIP_DATE = (1980, 1, 1, 0, 0, 0)
READABLE = 0o644 << 16
# A PNG beyond this is no mask; it is not read into memory.
MAX_BYTES_PER_PIXEL, MAX_HEAD_BYTES = 8, 2**16


def pack_submission(
    protocol_name: str,
    folder: str | os.PathLike,
    out: str | os.PathLike | None = None,
    *,
    root: str | os.PathLike | None = None,
    cache_dir: str | None = None,
) -> Path:
    """Write the zip that a benchmark's server takes: `<video>/<expression>/<frame>.png`, 0 and 255, one channel.

    Args:
        protocol_name (`str`): `"mevis-valid"` or `"ref-youtube-vos-valid"` (whose videos stand in `Annotations/`).
        folder (`str` or `os.PathLike`): Output folder of `virst evaluate`.
        out (`str` or `os.PathLike`, *optional*): The zip; `<protocol>.zip` in `folder` when not given.
        root (`str` or `os.PathLike`, *optional*): Folder of the data set; that of the run when not given.
        cache_dir (`str`, *optional*): Where `datasets` keeps its copy of the annotations.

    Returns:
        `pathlib.Path`: The zip, which was read back and checked.

    Raises:
        EvaluationError: The protocol has no server, the run is of another protocol or not complete, or a prediction
            does not fit its video.
    """
    if protocol_name not in TOP_FOLDERS:
        get_protocol(protocol_name)
        raise EvaluationError(
            f"{protocol_name} is scored here, not by a server; zips are for {' and '.join(TOP_FOLDERS)}."
        )
    store = PredictionStore(folder)
    run = store.read_run()
    if run["settings"]["protocol"] != protocol_name:
        raise EvaluationError(f"{store.folder} holds predictions of {run['settings']['protocol']}.")
    samples = load_samples(get_protocol(protocol_name), root or run["root"], cache_dir=cache_dir)
    missing = [unit.video_id for unit in samples.of_kind(MASKS) if not store.path(unit).is_file()]
    if missing:
        raise EvaluationError(
            f"{store.folder} lacks predictions of {len(missing)} of {len(samples.units)} videos, {missing[0]} first: "
            f"run virst evaluate {protocol_name} to its end, without --limit."
        )
    target = Path(out).expanduser() if out is not None else store.folder / f"{protocol_name}.zip"
    if target.suffix != ".zip":
        raise EvaluationError(f"The submission must be a .zip file, found {target.name}.")
    with replacing(target) as temporary:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            _write_all(archive, samples, store, run["settings_hash"], TOP_FOLDERS[protocol_name])
        _check(temporary, samples, TOP_FOLDERS[protocol_name])
    return target


def check_submission(
    path: str | os.PathLike,
    protocol_name: str,
    root: str | os.PathLike,
    cache_dir: str | None = None,
) -> None:
    """Check a zip against the data set: every frame of every expression is there, and nothing else.

    Args:
        path (`str` or `os.PathLike`): The zip, made by any tool.
        protocol_name (`str`): `"mevis-valid"` or `"ref-youtube-vos-valid"`.
        root (`str` or `os.PathLike`): Folder of the data set.
        cache_dir (`str`, *optional*): Where `datasets` keeps its copy of the annotations.

    Raises:
        EvaluationError: An entry is missing, unknown, damaged, of another size or mode, or has other values than 0
            and 255.
    """
    if protocol_name not in TOP_FOLDERS:
        raise EvaluationError(f"{protocol_name} takes no zip; {' and '.join(TOP_FOLDERS)} do.")
    samples = load_samples(get_protocol(protocol_name), root, cache_dir=cache_dir)
    _check(Path(path), samples, TOP_FOLDERS[protocol_name])


def _write_all(archive: zipfile.ZipFile, samples: SampleSet, store: PredictionStore, run_hash: str, top: str) -> None:
    for unit in tqdm(list(samples.of_kind(MASKS)), desc="packing", unit="video"):
        row = samples.rows(unit, with_masks=False)[0]
        content = store.read(unit, run_hash, row["frame_names"])
        size = (row["height"], row["width"])
        if (content["height"], content["width"]) != size:
            found = f"{content['height']} x {content['width']}"
            raise EvaluationError(f"The masks of {unit.video_id} are {found}, its frames {size[0]} x {size[1]}.")
        for key in unit.expression_ids:
            entry = content["expressions"][key]
            if "error" in entry:
                raise EvaluationError(
                    f"{unit.video_id}, expression {key} failed ({entry['error']}), so there is nothing to send: run "
                    "virst evaluate again, which tries failed videos once more."
                )
            for frame, rle in zip(row["frame_names"], entry["masks"], strict=True):
                info = zipfile.ZipInfo(f"{top}{unit.video_id}/{key}/{frame}.png", ZIP_DATE)
                info.external_attr = READABLE
                archive.writestr(info, _png(decode_rle(rle, size)))


def _png(mask: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(buffer, format="PNG", optimize=False)
    return buffer.getvalue()


def _expected(samples: SampleSet, top: str) -> Iterator[tuple[str, tuple[int, int]]]:
    """Every entry that the server looks for, with the size of its frame."""
    for unit in samples.of_kind(MASKS):
        row = samples.rows(unit, with_masks=False)[0]
        for key in unit.expression_ids:
            for frame in row["frame_names"]:
                yield f"{top}{unit.video_id}/{key}/{frame}.png", (row["height"], row["width"])


def _check(path: Path, samples: SampleSet, top: str) -> None:
    """Read a zip back: exactly the expected entries, each a PNG as the server takes it."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            found = set(names)
            if len(found) != len(names):
                raise EvaluationError(f"{path} has an entry twice.")
            for name, size in tqdm(_expected(samples, top), desc="checking", unit="mask", total=len(names)):
                if name not in found:
                    raise EvaluationError(f"{path} lacks {name}.")
                found.remove(name)
                if archive.getinfo(name).file_size > MAX_BYTES_PER_PIXEL * size[0] * size[1] + MAX_HEAD_BYTES:
                    raise EvaluationError(f"{name} is larger than any mask of its size.")
                _check_png(archive.read(name), name, size)
    except (OSError, zipfile.BadZipFile, zipfile.LargeZipFile) as error:
        raise EvaluationError(f"{path} is not a zip that can be read: {error}") from error
    if found:
        raise EvaluationError(f"{path} has {len(found)} entries that no expression has, {min(found)} first.")


def _check_png(content: bytes, name: str, size: tuple[int, int]) -> None:
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            mode, shape = image.mode, (image.height, image.width)
            # The size is compared before anything is decoded: a hostile head could claim any.
            values = set(np.unique(np.asarray(image)).tolist()) if shape == size and mode == "L" else set()
    except (OSError, ValueError, SyntaxError) as error:
        raise EvaluationError(f"{name} is not a PNG that can be read: {error}") from error
    if mode != "L" or shape != size:
        raise EvaluationError(f"{name} has mode {mode} and size {shape}, expected L and {size}.")
    if not values <= {0, 255}:
        raise EvaluationError(f"{name} has other values than 0 and 255.")
