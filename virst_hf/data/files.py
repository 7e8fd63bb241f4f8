"""Reading of annotation files and images that may be damaged or hostile: rows or a [`DataError`], nothing else."""

import functools
import hashlib
import json
import math
import os
import struct
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from ..errors import DataError
from ..rle import MAX_PIXELS
from ..video_io import IMAGE_FORMATS, IMAGE_SUFFIXES

__all__ = [
    "UnsafePathError",
    "cached_file_reader",
    "content_hash",
    "data_path",
    "describe",
    "frame_paths",
    "image_size",
    "list_images",
    "read_bytes",
    "read_image",
    "read_json",
    "read_label_map",
    "read_text",
]

# mask_dict.json of MeViS has 0.4 GB; beyond this a file is not read into memory.
MAX_FILE_BYTES = 4 * 2**30
# The system refuses longer ones with an error of its own, also when only asked whether there is such a file.
MAX_NAME = 1024
# What Pillow's decoders raise on damaged files.
IMAGE_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    SyntaxError,
    EOFError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
# Modes of a label map: a pixel is a number already, so nothing is quantised again.
LABEL_MODES = ("P", "L", "1")
T = TypeVar("T")


class UnsafePathError(DataError):
    """A name or a link in a data set could lead out of its root."""


def describe(value: Any) -> str:
    """A value from a file in a few words, for messages; never long, and safe for structures of any depth.

    Args:
        value (`Any`): What was found.

    Returns:
        `str`: A short text.

    Example:

    ```python
    >>> from virst_hf.data.files import describe
    >>> describe(3), describe("a" * 99), describe([1, 2])
    ('3', "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'...", 'a list')

    ```
    """
    if isinstance(value, str):
        return repr(value[:40]) + ("..." if len(value) > 40 else "")
    if value is None or isinstance(value, bool | float):
        return repr(value)
    if isinstance(value, int):
        return repr(value) if abs(value) < 10**20 else "a huge number"
    return f"a {type(value).__name__}"


# --- text and JSON ---------------------------------------------------------------------------------------------------
def read_bytes(path: Path) -> bytes:
    """The bytes of a file, unless it is missing or too large; see [`read_text`]."""
    try:
        if not path.is_file():
            raise DataError(f"There is no file {path}.")
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise DataError(f"{path} has {size:,} bytes; files above {MAX_FILE_BYTES:,} are not read.")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}.") from error


def read_text(path: str | os.PathLike, encodings: Sequence[str] = ("utf-8",)) -> str:
    """The text of a file.

    Args:
        path (`str` or `os.PathLike`): The file.
        encodings (`Sequence[str]`, *optional*, defaults to `("utf-8",)`): Tried in this order. A byte order mark is
            dropped.

    Returns:
        `str`: Its text.

    Raises:
        DataError: It is missing, or no encoding fits.
    """
    raw = read_bytes(Path(path))
    for encoding in encodings:
        try:
            return raw.decode(encoding).removeprefix("\ufeff")
        except UnicodeDecodeError:
            continue
    raise DataError(f"{path} is not text in {' or '.join(encodings)}.")


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:20]} is too large for a number")
    return number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {describe(twice)} stands twice in one object")
    return found


def read_json(path: str | os.PathLike, encodings: Sequence[str] = ("utf-8",), unique_keys: bool = False) -> Any:
    """The content of a JSON file.

    Args:
        path (`str` or `os.PathLike`): The file.
        encodings (`Sequence[str]`, *optional*, defaults to `("utf-8",)`): Tried in this order.
        unique_keys (`bool`, *optional*, defaults to `False`): Refuse a key that stands twice in one object, of which
            one would be lost. Takes three times as long, so it is off for the files of masks.

    Returns:
        `Any`: What `json` makes of it.

    Raises:
        DataError: It is missing, not JSON, too deep, or has NaN or infinite numbers.
    """
    text = read_text(path, encodings)
    try:
        return json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            object_pairs_hook=_unique if unique_keys else None,
        )
    except RecursionError as error:
        raise DataError(f"{path} is nested too deeply to be an annotation file.") from error
    except ValueError as error:
        raise DataError(f"{path} is not a JSON file that can be read: {error}.") from error


def cached_file_reader(read: Callable[[Path], T]) -> Callable[[Path], T]:
    """Keep what a function made of a file, until the file changes: shards of one set read the same annotations.

    Args:
        read (`Callable[[pathlib.Path], T]`): Reads one file. What it returns is shared and must not be changed.

    Returns:
        `Callable[[pathlib.Path], T]`: The same with a memory of its last two files.
    """
    kept: OrderedDict[tuple[str, int, int, int], T] = OrderedDict()

    @functools.wraps(read)
    def wrapper(path: Path) -> T:
        try:
            state = path.stat()
        except OSError as error:
            raise DataError(f"There is no file {path}.") from error
        key = (str(path), state.st_size, state.st_mtime_ns, state.st_ctime_ns)
        if key not in kept:
            value = read(path)
            kept[key] = value
            while len(kept) > 2:
                kept.popitem(last=False)
        kept.move_to_end(key)
        return kept[key]

    return wrapper


def content_hash(paths: Iterable[str | os.PathLike]) -> str:
    """A hash that changes when files change: by content for files, by names, sizes and times for folders.

    Args:
        paths (`Iterable[str | os.PathLike]`): Files and folders; missing ones count as missing.

    Returns:
        `str`: 32 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for path in map(Path, paths):
        digest.update(f"\0{path}\0".encode("utf-8", "surrogateescape"))
        if path.is_file():
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        elif path.is_dir():
            for folder, folders, names in os.walk(path):
                folders.sort()
                for name in sorted(names):
                    state = os.lstat(os.path.join(folder, name))
                    entry = f"{folder}/{name}:{state.st_size}:{state.st_mtime_ns}\n"
                    digest.update(entry.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


# --- paths -----------------------------------------------------------------------------------------------------------
def data_path(root: Path, *parts: str, follow_links: bool = False) -> Path:
    """The path below `root` that names from an annotation give.

    Args:
        root (`pathlib.Path`): Folder that must not be left.
        *parts (`str`): Names, each of which may hold "/" (ReVOS names its videos by paths).
        follow_links (`bool`, *optional*, defaults to `False`): Whether a symbolic link may leave `root`.

    Returns:
        `pathlib.Path`: The path; it need not exist.

    Raises:
        DataError: A name is empty, absolute, too long, has "..", a backslash or a control character, or a link leaves
            `root`.
    """
    for part in parts:
        if not isinstance(part, str) or not part:
            raise DataError(f"A name of a file must be a text that is not empty, found {describe(part)}.")
        steps = part.split("/")
        if "" in steps or ".." in steps or "." in steps or "\\" in part or not part.isprintable() or ":" in steps[0]:
            raise UnsafePathError(f"The name {describe(part)} is refused: it could point outside of {root}.")
        if len(part) > MAX_NAME or any(len(step.encode()) > 255 for step in steps):
            raise UnsafePathError(f"The name {describe(part)} is refused: no file can have so long a name.")
    path = root.joinpath(*parts)
    if not follow_links:
        _refuse_leaving(root, path)
    return path


def _refuse_leaving(root: Path, path: Path) -> None:
    """Follow the links on the way to `path`; the root itself may be one."""
    try:
        real = path.resolve()
        inside = real.is_relative_to(root.resolve())
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"{path} cannot be followed: {error}.") from error
    if not inside:
        raise UnsafePathError(
            f"{path} is a link out of the data root to {real}. Pass the folder it points to as the root, or "
            "follow_links=True if you trust this data set."
        )


def _scan(root: Path, folder: Path, follow_links: bool) -> dict[str, Path]:
    """Files of a folder by name; a link that leaves the root is refused."""
    found = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                path = folder / entry.name
                if entry.is_symlink() and not follow_links:
                    _refuse_leaving(root, path)
                if entry.is_file():
                    found[entry.name] = path
    except OSError as error:
        raise DataError(f"There is no folder {folder} that can be read ({error.strerror}).") from error
    return found


def frame_paths(
    root: Path,
    folder: str,
    names: Sequence[str],
    suffixes: Sequence[str] = IMAGE_SUFFIXES,
    follow_links: bool = False,
) -> list[Path]:
    """The files of the frames of one video.

    Args:
        root (`pathlib.Path`): Root of the data set.
        folder (`str`): Folder of the frames, relative to it.
        names (`Sequence[str]`): Names of the frames without a suffix.
        suffixes (`Sequence[str]`, *optional*): Tried in this order.
        follow_links (`bool`, *optional*, defaults to `False`): Whether symbolic links may leave `root`.

    Returns:
        `list[pathlib.Path]`: One file for each name.

    Raises:
        DataError: A name is unsafe, or a file is missing.
    """
    directory = data_path(root, folder, follow_links=follow_links)
    files = _scan(root, directory, follow_links)
    paths = []
    for name in names:
        if isinstance(name, str) and "/" in name:
            raise UnsafePathError(f"The frame name {describe(name)} is refused: it holds a path.")
        data_path(directory, name, follow_links=True)
        path = next((files[name + suffix] for suffix in suffixes if name + suffix in files), None)
        if path is None:
            raise DataError(
                f"{directory} has no frame {name} ({', '.join(suffixes)}); it has {len(files)} files, "
                f"and {len(names)} frames are named."
            )
        paths.append(path)
    return paths


def list_images(
    root: Path, folder: str, suffixes: Sequence[str] = IMAGE_SUFFIXES, follow_links: bool = False
) -> list[Path]:
    """Images of a folder.

    Args:
        root (`pathlib.Path`): Root of the data set.
        folder (`str`): Folder, relative to it.
        suffixes (`Sequence[str]`, *optional*): Lower-case suffixes that count as images.
        follow_links (`bool`, *optional*, defaults to `False`): Whether symbolic links may leave `root`.

    Returns:
        `list[pathlib.Path]`: Sorted by name.

    Raises:
        DataError: There is no such folder, or a link leaves `root`.
    """
    files = _scan(root, data_path(root, folder, follow_links=follow_links), follow_links)
    return [files[name] for name in sorted(files) if name.lower().endswith(tuple(suffixes))]


# --- images ----------------------------------------------------------------------------------------------------------
def _load(path: str | os.PathLike, use: Callable[[Image.Image], T]) -> T:
    """Open an image and give it to `use`; whatever is wrong with it becomes a DataError."""
    try:
        # A pipe would be waited for.
        if not Path(path).is_file():
            raise DataError(f"There is no image {path}.")
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{path} has {image.width} x {image.height} pixels; so large an image is not read.")
            return use(image)
    except DataError:
        raise
    except IMAGE_ERRORS as error:
        raise DataError(f"{path} is not an image that can be read: {error}.") from error


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """Height and width of an image, read from its head.

    Args:
        path (`str` or `os.PathLike`): Image file.

    Returns:
        `tuple[int, int]`: Height and width in pixels, as stored (rotation notes of a camera are not applied).

    Raises:
        DataError: It is missing, no image, or has more than 100 million pixels.
    """
    return _load(path, lambda image: (image.height, image.width))


def read_image(path: str | os.PathLike) -> np.ndarray:
    """The pixels of an image as stored: masks of data sets refer to them, not to the picture turned upright.

    Args:
        path (`str` or `os.PathLike`): Image file.

    Returns:
        `numpy.ndarray` of shape `(height, width, 3)`, `uint8`: RGB.

    Raises:
        DataError: It is missing, damaged, or has more than 100 million pixels.
    """
    return _load(path, lambda image: np.asarray(image.convert("RGB")))


def read_label_map(path: str | os.PathLike) -> np.ndarray:
    """A PNG whose pixels are numbers (object or class ids), whatever colours its palette gives them.

    Args:
        path (`str` or `os.PathLike`): PNG of mode P, L or 1.

    Returns:
        `numpy.ndarray` of shape `(height, width)`, `uint8`: The numbers.

    Raises:
        DataError: It is missing, damaged, too large, or of another mode, from which ids could only be guessed.
    """

    def numbers(image: Image.Image) -> np.ndarray:
        if image.mode not in LABEL_MODES:
            raise DataError(
                f"{path} has mode {image.mode}; expected a palette or grey PNG whose pixels are ids. A tool that "
                "converted it to colours has lost them: take the original file."
            )
        return np.asarray(image).astype(np.uint8)

    return _load(path, numbers)
