"""Run-length masks in COCO's form, read so that a hostile or damaged one raises an error and nothing worse.

`pycocotools` trusts its input: it writes past the end of the mask where the runs are longer than the mask. So every
mask that comes from a file goes through [`check_rle`] or [`decode_rle`] first.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco

from .errors import DataError

__all__ = ["MAX_PIXELS", "check_rle", "decode_rle", "encode_rle", "polygons_to_rle", "rle_area", "union_rle"]

# No frame of a benchmark comes near this; a larger mask is damage or an attack on memory.
MAX_PIXELS = 100_000_000
# A run of up to 2^34 pixels: 7 characters of 5 bits.
MAX_DIGITS = 7
# Polygons are drawn edge by edge, so a far-off corner would cost time and memory.
MAX_COORDINATE = 1e5
# Total length of the edges in pixels: pycocotools keeps 5 points a pixel, and does not notice when memory runs out.
MAX_EDGES = 2e6


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """COCO run-length encoding of a mask, in a form that JSON can hold.

    Args:
        mask (`numpy.ndarray` of shape `(height, width)`, `bool`): The mask.

    Returns:
        `dict`: `size` (`list[int]`, height and width) and `counts` (`str`), as `pycocotools.mask.decode` takes them.

    Example:

    ```python
    >>> import numpy as np
    >>> from virst_hf.rle import decode_rle, encode_rle
    >>> mask = np.zeros((4, 6), dtype=bool)
    >>> mask[1:3, 2:4] = True
    >>> encode_rle(mask)
    {'size': [4, 6], 'counts': '92207'}
    >>> bool((decode_rle(encode_rle(mask)) == mask).all())
    True

    ```
    """
    rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode_rle(rle: Mapping[str, Any] | None, size: tuple[int, int] | None = None) -> np.ndarray:
    """The mask of a run-length encoding.

    Args:
        rle (`dict` or `None`): As [`check_rle`] takes it. `None` is an empty mask, for which `size` must be given.
        size (`tuple[int, int]`, *optional*): Height and width that the mask must have.

    Returns:
        `numpy.ndarray` of shape `(height, width)`, `bool`: The mask.

    Raises:
        DataError: The encoding is damaged, or has another size.
    """
    if rle is None:
        if size is None:
            raise DataError("An absent mask has no size of its own; pass size.")
        return np.zeros(size, dtype=bool)
    runs, height, width = _read_runs(rle, size)[1:]
    values = (np.arange(len(runs)) % 2).astype(bool)
    return np.repeat(values, runs).reshape((height, width), order="F")


def check_rle(rle: Any, size: tuple[int, int] | None = None) -> dict[str, Any] | None:
    """A run-length mask in the one form that the package uses: `counts` is text, and an empty mask is `None`.

    Args:
        rle (`Any`): `{"size": [height, width], "counts": ...}` with counts as text, bytes or a list of runs (all
            three occur in releases), or `None` for an absent object.
        size (`tuple[int, int]`, *optional*): Height and width that the mask must have.

    Returns:
        `dict` or `None`: `{"size": [height, width], "counts": str}`, or `None` where no pixel is set.

    Raises:
        DataError: It is no such mapping, is damaged, too large, or has another size.

    Example:

    ```python
    >>> from virst_hf.rle import check_rle
    >>> check_rle({"size": [4, 6], "counts": [9, 2, 2, 2, 9]})
    {'size': [4, 6], 'counts': '92207'}
    >>> check_rle({"size": [4, 6], "counts": b"h0"}) is None
    True

    ```
    """
    if rle is None:
        return None
    raw, runs, height, width = _read_runs(rle, size)
    if not runs[1::2].any():
        return None
    if raw is None:
        raw = coco.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)["counts"]
    return {"size": [height, width], "counts": raw.decode("ascii")}


def _read_runs(rle: Any, size: tuple[int, int] | None) -> tuple[bytes | None, np.ndarray, int, int]:
    """Compressed counts where there are any, runs, height and width, all checked."""
    if not isinstance(rle, Mapping) or "size" not in rle or "counts" not in rle:
        raise DataError('A mask must be {"size": [height, width], "counts": ...} or null; found something else.')
    height, width = _size(rle["size"])
    if size is not None and (height, width) != tuple(size):
        raise DataError(f"A mask is {height} x {width} (height x width), but its frame is {size[0]} x {size[1]}.")
    counts = rle["counts"]
    if isinstance(counts, str):
        try:
            raw = counts.encode("ascii")
        except UnicodeEncodeError as error:
            raise DataError("The counts of a mask hold a character that is not ASCII.") from error
        runs = _parse_counts(raw)
    elif isinstance(counts, bytes):
        raw, runs = counts, _parse_counts(counts)
    elif isinstance(counts, list):
        raw, runs = None, _list_counts(counts)
    else:
        raise DataError(f"The counts of a mask must be text or a list of runs, found {type(counts).__name__}.")
    _check_runs(runs, height, width)
    return raw, runs, height, width


def _size(size: Any) -> tuple[int, int]:
    """Height and width, checked."""
    fits = isinstance(size, list | tuple) and len(size) == 2
    if not fits or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in size):
        raise DataError("The size of a mask must be [height, width], two positive whole numbers.")
    if size[0] * size[1] > MAX_PIXELS:
        raise DataError(f"A mask has more than {MAX_PIXELS // 10**6} million pixels; such a size is not read.")
    return size[0], size[1]


def _parse_counts(raw: bytes) -> np.ndarray:
    """The runs of compressed counts: 5 bits a character, the sixth says that more follow; differences to the run
    two before from the fourth on."""
    codes = np.frombuffer(raw, dtype=np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise DataError("The counts of a mask are not a COCO run-length string: empty, cut off, or of other signs.")
    ends = np.flatnonzero(codes < 32)
    starts = np.concatenate(([0], ends[:-1] + 1))
    digits = ends - starts + 1
    if digits.max() > MAX_DIGITS:
        raise DataError("A run of a mask is longer than any mask can be.")
    place = np.arange(len(codes)) - np.repeat(starts, digits)
    runs = np.add.reduceat((codes & 31) << (5 * place), starts)
    runs -= np.where(codes[ends] & 16, 1 << (5 * digits), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def _list_counts(counts: list[Any]) -> np.ndarray:
    """The runs of counts that are given as a list."""
    if not counts or not all(type(n) is int and 0 <= n <= MAX_PIXELS for n in counts):
        raise DataError("The counts of a mask must be a list of whole numbers, the lengths of its runs.")
    return np.array(counts, dtype=np.int64)


def _check_runs(runs: np.ndarray, height: int, width: int) -> None:
    """Runs fill the mask exactly; only then are they safe for pycocotools."""
    # A longest run below 2^34 and fewer than 2^29 of them: the sum cannot overflow.
    total = int(runs.sum())
    if runs.min() < 0 or total != height * width:
        found = "a negative run" if runs.min() < 0 else f"runs of {total} pixels in all"
        raise DataError(f"A mask of {height} x {width} has {found}; expected {height * width}.")


def union_rle(rles: Iterable[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """The union of masks, as the target of an expression that names several objects.

    Args:
        rles (`Iterable[dict | None]`): Masks as [`check_rle`] gives them, of one size.

    Returns:
        `dict` or `None`: Their union; `None` where all are absent.

    Raises:
        DataError: The masks differ in size.

    Example:

    ```python
    >>> from virst_hf.rle import rle_area, union_rle
    >>> one, other = {"size": [4, 6], "counts": "92207"}, {"size": [4, 6], "counts": "0440"}
    >>> rle_area(one), rle_area(union_rle([one, None, one])), union_rle([None])
    (4, 4, None)

    ```
    """
    present = [rle for rle in rles if rle is not None]
    if len(present) < 2:
        return dict(present[0]) if present else None
    if any(rle["size"] != present[0]["size"] for rle in present):
        raise DataError("Masks of one frame differ in size: " + ", ".join(str(rle["size"]) for rle in present) + ".")
    merged = coco.merge([dict(rle) for rle in present], intersect=False)
    return {"size": [int(n) for n in merged["size"]], "counts": merged["counts"].decode("ascii")}


def rle_area(rle: Mapping[str, Any] | None) -> int:
    """Pixels of a mask.

    Args:
        rle (`dict` or `None`): A mask as [`check_rle`] gives it.

    Returns:
        `int`: Number of pixels that are set.
    """
    return 0 if rle is None else int(coco.area(dict(rle)))


def polygons_to_rle(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> dict[str, Any] | None:
    """The union of COCO polygons, drawn by the rule of pycocotools.

    Args:
        polygons (`Sequence[Sequence[float]]`): Each `x1, y1, x2, y2, ...` in pixels, at least three corners. No
            polygon at all is an empty mask.
        size (`tuple[int, int]`): Height and width of the image.

    Returns:
        `dict` or `None`: The mask; `None` where no pixel is inside.

    Raises:
        DataError: A polygon has fewer than three corners, half a corner, or a corner that is no number or far off.
    """
    height, width = _size(list(size))
    drawn = []
    for polygon in polygons:
        numeric = isinstance(polygon, list | tuple) and all(type(x) in (int, float) for x in polygon)
        if not numeric or len(polygon) < 6 or len(polygon) % 2:
            raise DataError("A polygon must be x1, y1, x2, y2, ... with at least three corners.")
        # A comparison with NaN is false, so that NaN is refused, too.
        if not all(-MAX_COORDINATE <= x <= MAX_COORDINATE for x in polygon):
            raise DataError("A corner of a polygon is not a number, or far outside of the image.")
        drawn.append([float(x) for x in polygon])
    if not drawn:
        return None
    if sum(_edge_length(polygon) for polygon in drawn) > MAX_EDGES:
        raise DataError(f"The edges of the polygons of a mask are more than {int(MAX_EDGES):,} pixels long in all.")
    merged = coco.merge(coco.frPyObjects(drawn, height, width), intersect=False)
    return check_rle({"size": [height, width], "counts": merged["counts"]})


def _edge_length(polygon: Sequence[float]) -> float:
    """Length of the edges of a polygon, each counted by its longer direction."""
    corners = np.array(polygon).reshape(-1, 2)
    return float(np.abs(np.roll(corners, -1, axis=0) - corners).max(axis=1).sum())
