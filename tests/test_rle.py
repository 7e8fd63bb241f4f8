"""Run-length masks: equal to numpy and pycocotools on what is sound, an error and never a crash on what is not."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco

from virst_hf.errors import DataError
from virst_hf.rle import MAX_PIXELS, check_rle, decode_rle, encode_rle, polygons_to_rle, rle_area, union_rle

SIZES = st.tuples(st.integers(1, 20), st.integers(1, 20))
MASKS = SIZES.flatmap(lambda size: hnp.arrays(bool, size))


def runs_of(mask: np.ndarray) -> list[int]:
    """Lengths of the runs of a mask by columns, the first of zeros; written without pycocotools."""
    runs, value = [0], False
    for pixel in mask.flatten(order="F"):
        if bool(pixel) != value:
            runs.append(0)
            value = not value
        runs[-1] += 1
    return runs


def text_of(runs: list[int]) -> str:
    """COCO's compressed form of runs, after its description: differences from the fourth on, 5 bits a sign."""
    signs = []
    for index, run in enumerate(runs):
        value = run - runs[index - 2] if index > 2 else run
        while True:
            bits, value = value & 31, value >> 5
            done = (value == 0 and not bits & 16) or (value == -1 and bits & 16)
            signs.append(chr(48 + bits + (0 if done else 32)))
            if done:
                break
    return "".join(signs)


@given(MASKS)
def test_encode_is_that_of_pycocotools_and_of_the_description(mask: np.ndarray):
    rle = encode_rle(mask)
    assert rle["size"] == list(mask.shape) and rle["counts"] == text_of(runs_of(mask))
    assert np.array_equal(coco.decode(rle).astype(bool), mask)


@given(MASKS)
def test_every_form_of_a_mask_decodes_to_it(mask: np.ndarray):
    text = encode_rle(mask)
    for counts in (text["counts"], text["counts"].encode(), runs_of(mask)):
        rle = {"size": list(mask.shape), "counts": counts}
        assert np.array_equal(decode_rle(rle), mask)
        assert check_rle(rle) == check_rle(rle, mask.shape) == (text if mask.any() else None)
        assert np.array_equal(decode_rle(check_rle(rle), mask.shape), mask)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(1080, 1920), (1, 70000), (70000, 1)]))
def test_large_masks(seed: int, size: tuple[int, int]):
    rng = np.random.default_rng(seed)
    flat = np.zeros(size[0] * size[1], dtype=bool)
    for start, stop in np.sort(rng.integers(0, len(flat), (5, 2)), axis=1):
        flat[start:stop] = True
    mask = flat.reshape(size, order="F")
    assert np.array_equal(decode_rle(encode_rle(mask), size), mask)
    assert rle_area(encode_rle(mask)) == mask.sum()


@given(SIZES.flatmap(lambda size: st.lists(st.none() | hnp.arrays(bool, size), max_size=5)))
def test_union_and_area(masks: list[np.ndarray | None]):
    rles = [check_rle(encode_rle(mask)) if mask is not None else None for mask in masks]
    present = [mask for mask in masks if mask is not None and mask.any()]
    union = union_rle(rles)
    if not present:
        assert union is None and rle_area(union) == 0
    else:
        expected = np.logical_or.reduce(present)
        assert union == encode_rle(expected) and rle_area(union) == expected.sum()


def test_union_leaves_its_arguments_and_refuses_other_sizes():
    one, other = encode_rle(np.eye(3, dtype=bool)), encode_rle(np.ones((3, 4), dtype=bool))
    merged = union_rle([one])
    assert merged == one and merged is not one
    with pytest.raises(DataError, match="differ in size"):
        union_rle([one, other])


def test_absent_masks():
    assert check_rle(None) is None and union_rle([]) is None
    assert decode_rle(None, (2, 3)).tolist() == [[False] * 3] * 2
    assert decode_rle({"size": [4, 6], "counts": "h0"}).shape == (4, 6)
    with pytest.raises(DataError, match="pass size"):
        decode_rle(None)


def test_known_values():
    """Of DATASETS.md, section 0: rows 1 and 2, columns 2 and 3 of a mask of 4 x 6."""
    mask = np.zeros((4, 6), dtype=bool)
    mask[1:3, 2:4] = True
    assert encode_rle(mask) == {"size": [4, 6], "counts": "92207"}
    assert encode_rle(np.zeros((4, 6), dtype=bool)) == {"size": [4, 6], "counts": "h0"}


# --- what is damaged -------------------------------------------------------------------------------------------------
def decode_or_refuse(counts: object, size: object) -> np.ndarray | None:
    """What every reader does with a mask of a file: a mask of the size that it names, or a DataError."""
    try:
        mask = decode_rle({"size": size, "counts": counts})
        checked = check_rle({"size": size, "counts": counts})
    except DataError:
        return None
    assert mask.shape == tuple(size) and (checked is None) == (not mask.any())
    if checked is not None:
        assert np.array_equal(coco.decode(checked).astype(bool), mask)
    return mask


@settings(max_examples=3000, deadline=None)
@given(MASKS, st.data())
def test_mutated_counts_never_crash(mask: np.ndarray, data: st.DataObject):
    counts = list(encode_rle(mask)["counts"])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(counts)))
        kind = data.draw(st.sampled_from("replace insert delete double".split()))
        sign = data.draw(st.characters(min_codepoint=40, max_codepoint=120))
        if kind == "insert":
            counts.insert(place, sign)
        elif place < len(counts):
            counts[place : place + 1] = {"replace": [sign], "delete": [], "double": counts[place:] * 2}[kind]
    decode_or_refuse("".join(counts), list(mask.shape))


@settings(max_examples=2000, deadline=None)
@given(st.binary(max_size=40) | st.text(max_size=20) | st.lists(st.integers(-3, 30), max_size=9), SIZES)
@example(b"oooooooooooooooooo0", (4, 6))
@example("PPPPPPPPP", (4, 6))
@example([2**70], (4, 6))
@example([24, 0, 0, 0, 0], (4, 6))
@example([0, 24], (4, 6))
@example([True, 23], (4, 6))
@example([1.0, 23], (4, 6))
@example("\ud800", (4, 6))
def test_any_counts_are_a_mask_or_refused(counts: object, size: tuple[int, int]):
    decode_or_refuse(counts, list(size))


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12))
def test_runs_are_taken_where_they_fill_the_mask_and_only_there(runs: list[int]):
    total = sum(runs)
    if total:
        flat = np.concatenate([np.full(run, i % 2, dtype=bool) for i, run in enumerate(runs)])
        for counts in (runs, text_of(runs)):
            assert np.array_equal(decode_rle({"size": [total, 1], "counts": counts})[:, 0], flat)
            with pytest.raises(DataError, match="pixels in all"):
                check_rle({"size": [total + 1, 1], "counts": counts})


@pytest.mark.parametrize(
    "size",
    [None, 3, "46", [4], [4, 6, 1], [0, 6], [-4, 6], [4.0, 6], [True, 6], ["4", 6], {}, [4, None], [2**40, 2**40]],
)
def test_sizes_that_are_none(size: object):
    with pytest.raises(DataError, match="size of a mask|million pixels"):
        check_rle({"size": size, "counts": "h0"})


def test_a_size_of_too_many_pixels_takes_no_memory():
    side = int(MAX_PIXELS**0.5) + 1
    with pytest.raises(DataError, match="million pixels"):
        decode_rle({"size": [side, side], "counts": [side * side]})


@pytest.mark.parametrize("rle", [3, "h0", [], [4, 6], {}, {"size": [4, 6]}, {"counts": "h0"}])
def test_other_things_than_masks(rle: object):
    with pytest.raises(DataError, match="found something else"):
        check_rle(rle)


@pytest.mark.parametrize("counts", [None, 3, {}, 1.5, [], [None], ["1"], [[24]]])
def test_other_things_than_counts(counts: object):
    with pytest.raises(DataError, match="counts of a mask"):
        check_rle({"size": [4, 6], "counts": counts})


def test_another_size_than_the_frame():
    with pytest.raises(DataError, match="4 x 6 .* its frame is 6 x 4"):
        check_rle({"size": [4, 6], "counts": "92207"}, (6, 4))


# --- polygons --------------------------------------------------------------------------------------------------------
CORNERS = st.floats(-30, 60, allow_nan=False) | st.integers(-30, 60)


@given(st.lists(st.lists(CORNERS, min_size=6, max_size=16).filter(lambda p: len(p) % 2 == 0), max_size=4))
def test_polygons_are_drawn_as_by_pycocotools_and_united(polygons: list[list[float]]):
    expected = np.zeros((24, 32), dtype=bool)
    for polygon in polygons:
        expected |= coco.decode(coco.frPyObjects([[float(x) for x in polygon]], 24, 32))[:, :, 0].astype(bool)
    found = polygons_to_rle(polygons, (24, 32))
    assert (found is None) == (not expected.any())
    assert np.array_equal(decode_rle(found, (24, 32)), expected)


def test_a_square():
    square = decode_rle(polygons_to_rle([[2, 1, 5, 1, 5, 3, 2, 3]], (4, 6)))
    assert square.astype(int).tolist() == [[0] * 6, [0, 0, 1, 1, 1, 0], [0, 0, 1, 1, 1, 0], [0] * 6]


ANYTHING = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3), st.lists)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(st.integers(-300, 300) | st.floats() | ANYTHING, max_size=9) | ANYTHING, max_size=3))
def test_any_polygons_are_a_mask_or_refused(polygons: list):
    try:
        found = polygons_to_rle(polygons, (9, 7))
    except DataError:
        return
    assert found is None or decode_rle(found).shape == (9, 7)


@pytest.mark.parametrize("corner", [float("nan"), float("inf"), 1e300, 10**30, True, "1", None, [1]])
def test_corners_that_are_none(corner: object):
    with pytest.raises(DataError, match="polygon"):
        polygons_to_rle([[0, 0, 5, 0, 5, corner]], (8, 8))


def test_edges_that_would_fill_the_memory():
    """pycocotools ends the process here: it does not look whether it got the memory that it asked for."""
    with pytest.raises(DataError, match="pixels long in all"):
        polygons_to_rle([[-1e5, -1e5, 1e5, 1e5] * 20_000], (10, 10))
