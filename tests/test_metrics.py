"""The metrics against naive versions of their definitions, and on cases worked out by hand."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import virst_hf.metrics as metrics
from virst_hf import EvaluationError
from virst_hf.metrics import (
    accuracy,
    accuracy_as_published,
    boundary_accuracy,
    c_iou,
    g_iou,
    index_map,
    intersection_and_union,
    is_empty,
    match_objects,
    no_target_accuracy,
    region_similarity,
    robustness,
    robustness_as_published,
    target_accuracy,
    temporal_consistency,
    tolerance_radius,
)

ROOT = Path(__file__).parent.parent


# --- the definitions, pixel by pixel ---------------------------------------------------------------------------------


def naive_boundary(mask: np.ndarray) -> list[tuple[int, int]]:
    """Boundary pixels of a mask `(height, width)`: those that differ from a right, lower or lower-right neighbour."""
    height, width = mask.shape
    found = []
    for y in range(height):
        for x in range(width):
            if y == height - 1:
                neighbours = [(y, x + 1)]
            elif x == width - 1:
                neighbours = [(y + 1, x)]
            else:
                neighbours = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
            if any(b < width and mask[y, x] != mask[a, b] for a, b in neighbours):
                found.append((y, x))
    return found


def naive_f(prediction: np.ndarray, target: np.ndarray, ignore: np.ndarray | None, radius: int) -> float:
    """F of one frame by the distance of every pair of boundary pixels."""
    if ignore is not None:
        prediction, target = prediction & ~ignore, target & ~ignore
    ours, theirs = naive_boundary(prediction), naive_boundary(target)
    if not ours or not theirs:
        return 1.0 if not ours and not theirs else 0.0

    def share(of: list, near: list) -> float:
        other = np.array(near)
        hits = [(((other - pixel) ** 2).sum(axis=1) <= radius**2).any() for pixel in np.array(of)]
        return sum(hits) / len(of)

    precision, recall = share(ours, theirs), share(theirs, ours)
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def naive_j(prediction: np.ndarray, target: np.ndarray, ignore: np.ndarray | None) -> float:
    """J of one frame by sets of pixels."""
    kept = np.ones_like(target) if ignore is None else ~ignore
    ours = {tuple(p) for p in np.argwhere(prediction & kept)}
    theirs = {tuple(p) for p in np.argwhere(target & kept)}
    return len(ours & theirs) / len(ours | theirs) if ours | theirs else 1.0


def random_mask(rng: np.random.Generator, size: tuple[int, int], kind: str) -> np.ndarray:
    """A mask of one of the kinds that have tripped such code: blocks, noise, lines, full, empty."""
    height, width = size
    mask = np.zeros(size, dtype=bool)
    if kind == "noise":
        return rng.random(size) < rng.choice([0.02, 0.5, 0.98])
    if kind == "full":
        return ~mask
    if kind == "corner":
        mask[rng.choice([0, -1]), rng.choice([0, -1])] = True
    elif kind == "line":
        mask[rng.integers(height)] = True
        mask[:, rng.integers(width)] = True
    elif kind == "blocks":
        for _ in range(rng.integers(1, 4)):
            (top, bottom), (left, right) = (sorted(rng.integers(0, n + 1, 2)) for n in size)
            mask[top:bottom, left:right] ^= True
    return mask


KINDS = ("blocks", "blocks", "blocks", "noise", "corner", "line", "full", "empty")
# Widths around the 64 pixels of a word, and one-pixel images.
SIZES = st.tuples(st.integers(1, 24), st.one_of(st.integers(1, 24), st.integers(55, 75), st.integers(120, 136)))
# Radii of 0 to beyond the image; 0.008 is the protocol's.
TOLERANCES = st.sampled_from([0.0, 0.008, 0.02, 0.05, 0.1, 0.25, 0.6, 0.99])


@settings(max_examples=200, deadline=None)
@given(SIZES, st.integers(0, 2**32 - 1), TOLERANCES, st.booleans())
@example((1, 1), 0, 0.008, False)
@example((1, 64), 1, 0.05, False)
@example((5, 128), 2, 0.5, True)
def test_j_and_f_are_those_of_the_definition(size, seed, tolerance, with_ignore):
    rng = np.random.default_rng(seed)
    prediction, target = (np.stack([random_mask(rng, size, rng.choice(KINDS)) for _ in range(2)]) for _ in range(2))
    if rng.random() < 0.5:  # alike but not equal, as in practice
        prediction[1] = np.roll(target[1], tuple(rng.integers(-2, 3, 2)), axis=(0, 1))
    ignore = np.stack([random_mask(rng, size, "blocks") for _ in range(2)]) if with_ignore else None
    radius = math.ceil(tolerance * math.sqrt(size[0] ** 2 + size[1] ** 2))
    f = boundary_accuracy(prediction, target, ignore, tolerance)
    j = region_similarity(prediction, target, ignore)
    for t in range(2):
        ignored = None if ignore is None else ignore[t]
        assert f[t] == pytest.approx(naive_f(prediction[t], target[t], ignored, radius), abs=1e-12)
        assert j[t] == naive_j(prediction[t], target[t], ignored)


@pytest.mark.parametrize("size", [(480, 854), (97, 640), (640, 97)])
def test_f_of_real_frame_sizes(size):
    rng = np.random.default_rng(3)
    target = random_mask(rng, size, "blocks")
    prediction = np.roll(target, (5, -7), axis=(0, 1)) ^ (rng.random(size) < 1e-4)
    expected = naive_f(prediction, target, None, tolerance_radius(size))
    assert 0 < expected < 1
    assert boundary_accuracy(prediction, target).tolist() == pytest.approx([expected], abs=1e-12)


def test_a_disk_wider_than_a_word():
    rng = np.random.default_rng(0)
    for size, tolerance in (((20, 300), 0.3), ((150, 140), 0.5), ((3, 260), 0.9)):
        prediction, target = np.zeros((2, *size), dtype=bool)
        prediction[0, :5], target[-1, -5:] = True, True
        target[rng.integers(size[0]), rng.integers(size[1])] = True
        radius = math.ceil(tolerance * math.hypot(*size))
        assert radius > 64
        got = boundary_accuracy(prediction, target, tolerance=tolerance).tolist()
        assert got == pytest.approx([naive_f(prediction, target, None, radius)], abs=1e-12)


@pytest.mark.parametrize(
    ("move", "expected"), [((0, 8), 1), ((8, 0), 1), ((5, 6), 1), ((6, 6), 3 / 4), ((0, 9), 1 / 2), ((10, 0), 0)]
)
def test_the_disk_is_round(move, expected):
    """The boundary of one pixel is a square of four; radius 8, and the distance of (6, 6) is above it."""
    target = np.zeros((480, 854), dtype=bool)
    target[200, 316] = True
    prediction = np.roll(target, move, axis=(0, 1))
    assert boundary_accuracy(prediction, target).tolist() == [expected]
    assert boundary_accuracy(target, prediction).tolist() == [expected]


@pytest.mark.parametrize(
    ("size", "radius"), [((480, 854), 8), ((720, 1280), 12), ((1080, 1920), 18), ((300, 400), 4), ((1, 1), 1)]
)
def test_tolerance_radius(size, radius):
    assert tolerance_radius(size) == radius


def test_100_frames_take_well_under_a_second():
    target = np.zeros((100, 480, 854), dtype=bool)
    target[:, 60:420, 100:700] = True
    prediction = np.roll(target, 6, axis=2)
    seconds = []
    for _ in range(3):
        start = time.process_time()
        boundary_accuracy(prediction, target)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 1.0


def test_speed_against_plain_numpy_and_opencv(tmp_path):
    """The benchmark's own run: it also fails where the two versions do not agree."""
    script, result = ROOT / "benchmarks" / "boundary_speed.py", tmp_path / "result.json"
    command = [sys.executable, str(script), "--frames", "6", "--json", str(result)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    scores = json.loads(result.read_text(encoding="utf-8"))
    # About 10 on an idle core; the margin is for a machine that is busy with other things.
    assert scores["geometric_mean"] >= 3, done.stdout
    assert len(scores["rows"]) == 7 and scores["rows"][0]["mean_share"] == pytest.approx(0.005, rel=0.1)


# --- golden cases: empty masks, what counts as a mask, scales --------------------------------------------------------


def square(size=(40, 60)):
    mask = np.zeros(size, dtype=bool)
    mask[10:30, 20:40] = True
    return mask


def test_empty_rules():
    empty, some, full = np.zeros((40, 60), dtype=bool), square(), np.ones((40, 60), dtype=bool)
    prediction, target = np.stack([empty, empty, some, some]), np.stack([empty, some, empty, some])
    assert region_similarity(prediction, target).tolist() == [1.0, 0.0, 0.0, 1.0]
    assert boundary_accuracy(prediction, target).tolist() == [1.0, 0.0, 0.0, 1.0]
    # The rule is about boundaries, and a mask that fills the frame has none.
    assert boundary_accuracy(full, empty).tolist() == [1.0]
    assert boundary_accuracy(full, some).tolist() == [0.0]
    assert region_similarity(full, empty).tolist() == [0.0]


def test_ignored_pixels_count_neither_way():
    target, ignore = square(), np.zeros((40, 60), dtype=bool)
    ignore[:, 40:] = True
    prediction = target | ignore
    assert region_similarity(prediction, target).tolist() != [1.0]
    assert region_similarity(prediction, target, ignore).tolist() == [1.0]
    assert boundary_accuracy(prediction, target, ignore).tolist() == [1.0]
    # Nothing is left: both are empty.
    assert region_similarity(target, ~target, np.ones_like(target)).tolist() == [1.0]
    assert boundary_accuracy(target, ~target, np.ones_like(target)).tolist() == [1.0]


@pytest.mark.parametrize("make", [lambda m: m.astype(np.uint8), lambda m: m * np.uint8(255), lambda m: m * -1, list])
def test_what_is_not_zero_is_the_object(make):
    target, prediction = square(), np.roll(square(), 3, axis=0)
    assert region_similarity(make(prediction), make(target)) == region_similarity(prediction, target)
    assert boundary_accuracy(make(prediction), make(target)) == boundary_accuracy(prediction, target)
    assert accuracy(make(prediction), make(target)) == accuracy(prediction, target)


def test_memory_layout_does_not_matter():
    video = np.stack([square(), np.roll(square(), 4, axis=1)])
    moved = np.roll(video, 3, axis=1)
    expected = boundary_accuracy(moved, video).tolist()
    assert boundary_accuracy(np.asfortranarray(moved), video).tolist() == expected
    assert (
        boundary_accuracy(moved.repeat(2, axis=0)[::2], np.ascontiguousarray(video[::-1])[::-1]).tolist() == expected
    )


def test_inputs_are_left_alone():
    prediction, target, ignore = square(), np.roll(square(), 3, axis=0), np.roll(square(), 9, axis=1)
    copies = prediction.copy(), target.copy(), ignore.copy()
    boundary_accuracy(prediction, target, ignore)
    region_similarity(prediction, target, ignore)
    robustness(prediction, target, ignore)
    assert all((a == b).all() for a, b in zip(copies, (prediction, target, ignore), strict=True))


def test_no_frames_give_no_scores():
    none = np.zeros((0, 40, 60), dtype=bool)
    assert region_similarity(none, none).shape == boundary_accuracy(none, none).shape == (0,)


BAD = [
    (np.zeros((2, 4, 6), bool), np.zeros((2, 6, 4), bool), r"prediction 2 x 4 x 6, target 2 x 6 x 4"),
    (np.zeros((2, 4, 6), bool), np.zeros((3, 4, 6), bool), r"prediction 2 x 4 x 6, target 3 x 4 x 6"),
    (np.zeros((4, 6), bool), np.zeros((1, 4, 6), bool), r"prediction 4 x 6, target 1 x 4 x 6"),
    (np.zeros((4, 6)), np.zeros((4, 6), bool), "prediction.*float64"),
    (np.zeros((4, 6), bool), np.zeros(24, bool), r"target.*\(24,\)"),
    (np.zeros((2, 0, 6), bool), np.zeros((2, 0, 6), bool), "shape"),
    ([np.zeros((4, 6), bool), np.zeros((4, 7), bool)], np.zeros((2, 4, 6), bool), "differ in size"),
    (None, np.zeros((4, 6), bool), "prediction.*object"),
]


@pytest.mark.parametrize(("prediction", "target", "message"), BAD)
@pytest.mark.parametrize(
    "metric", [region_similarity, boundary_accuracy, accuracy, lambda p, t: robustness(p, t, t), accuracy_as_published]
)
def test_masks_that_do_not_fit(metric, prediction, target, message):
    with pytest.raises(EvaluationError, match=message):
        metric(prediction, target)


def test_ignore_and_foreground_must_fit():
    mask = square()
    with pytest.raises(EvaluationError, match="ignore 40 x 59"):
        boundary_accuracy(mask, mask, mask[:, :-1])
    for metric in (robustness, robustness_as_published):
        with pytest.raises(EvaluationError, match="foreground"):
            metric(mask, mask, mask[:, :-1])


@pytest.mark.parametrize("tolerance", [-0.1, 1, 8, math.nan, math.inf])
def test_a_tolerance_is_a_part_of_the_diagonal(tolerance):
    with pytest.raises(EvaluationError, match="tolerance"):
        boundary_accuracy(square(), square(), tolerance=tolerance)


# --- ReVOS -----------------------------------------------------------------------------------------------------------


def test_both_scales_of_r_and_a():
    """5 right pixels, 1 false one, 4 of background: the case of the data sheet."""
    target = np.array([[[1] * 5 + [0] * 5]], dtype=np.uint8)
    prediction = np.array([[[1] * 6 + [0] * 4]], dtype=np.uint8)
    assert robustness(prediction, target, target).tolist() == pytest.approx([0.80], abs=1e-6)
    assert accuracy(prediction, target).tolist() == pytest.approx([0.90])
    for stored in (prediction, prediction * 255, prediction.astype(bool)):
        assert robustness_as_published(stored, target, target).tolist() == [0.0]
        assert accuracy_as_published(stored, target).tolist() == pytest.approx([0.40])


def test_overlapping_targets_wrap_only_as_published():
    foreground = np.ones((1, 1, 1000), dtype=np.uint8)
    target_sum = np.zeros((1, 1, 1000), dtype=np.uint8)
    target_sum[..., :3] = 1
    target_sum[..., 3:5] = 2
    prediction = target_sum > 0
    assert robustness(prediction, target_sum, foreground).tolist() == [1.0]
    # (1 - 2) * 255 is 255 * 255 = 65025, which is 1 in eight bits; two such pixels of a thousand.
    assert robustness_as_published(prediction, target_sum, foreground).tolist() == pytest.approx([0.998])
    assert robustness_as_published(prediction, target_sum.astype(np.int64), foreground)[0] == pytest.approx(0.998)
    prediction[..., 5] = True
    assert robustness_as_published(prediction, target_sum, foreground).tolist() == pytest.approx([1 - 257 / 1000])


def test_robustness_without_foreground():
    empty, some = np.zeros((4, 6), dtype=bool), np.ones((4, 6), dtype=bool)
    assert robustness(empty, empty, empty).tolist() == [1.0]
    assert robustness(some, empty, empty).tolist() == [0.0]
    assert robustness(empty, some, some).tolist() == [1.0]


def test_counts_of_objects_are_bytes():
    with pytest.raises(EvaluationError, match="0 to 255"):
        accuracy_as_published(square(), square() * 256)


# --- images ----------------------------------------------------------------------------------------------------------


def test_giou_and_ciou_rules():
    target, empty = square(), np.zeros((40, 60), dtype=bool)
    half = target.copy()
    half[:20] = False
    pairs = [(half, target), (empty, empty), (target, empty), (empty, target)]
    areas = np.array([intersection_and_union(p, t) for p, t in pairs])[..., 0]
    assert areas.tolist() == [[200, 400], [0, 0], [0, 400], [0, 400]]
    assert g_iou(*areas.T) == pytest.approx((200 / (400 + 1e-5) + 1 + 0 + 0) / 4, abs=1e-12)
    assert c_iou(*areas.T) == pytest.approx(200 / 1200, abs=1e-12)
    assert g_iou([0], [0]) == 1.0 and c_iou([0], [0]) == 0.0
    # One pixel: the small number below the line is there.
    assert g_iou([1], [1]) == pytest.approx(1 / 1.00001, abs=1e-12)


def test_ignored_pixels_leave_both_images():
    target, ignore = square(), np.zeros((40, 60), dtype=bool)
    ignore[25:, :] = True
    both, either = intersection_and_union(np.ones_like(target), target, ignore)
    assert (both.tolist(), either.tolist()) == ([15 * 20], [25 * 60])
    # An empty target with predictions in ignored pixels only is right.
    assert g_iou(*intersection_and_union(ignore, np.zeros_like(target), ignore)) == 1.0


@pytest.mark.parametrize("areas", [([], []), ([1], [1, 2]), ([2], [1]), ([-1], [1]), ([math.nan], [1]), (["a"], [1])])
@pytest.mark.parametrize("metric", [g_iou, c_iou])
def test_areas_that_cannot_be(metric, areas):
    with pytest.raises(EvaluationError):
        metric(*areas)


# --- Ref-DAVIS17 -----------------------------------------------------------------------------------------------------


def two_objects(frames=3):
    target = np.zeros((frames, 40, 60), dtype=np.uint8)
    target[:, 5:20, 5:25] = 1
    target[:, 22:38, 30:55] = 2
    return target


def test_hungarian_swap_scores_1_matched_and_0_by_expression():
    target = two_objects()
    swapped = np.choose(target, [0, 2, 1])
    scores = match_objects(swapped, target)
    assert scores.j.tolist() == scores.f.tolist() == [1.0, 1.0]
    assert scores.proposals.tolist() == [2, 1]
    for index in (1, 2):
        assert region_similarity(swapped == index, target == index).tolist() == [0.0] * 3
        assert boundary_accuracy(swapped == index, target == index).tolist() == [0.0] * 3


def test_matching_maximises_the_sum():
    """The best proposal of an object may have to go to another one."""
    target = two_objects(1)
    prediction = np.zeros_like(target)
    prediction[:, 5:20, 5:24] = 3  # nearly object 1
    prediction[:, 22:30, 30:55] = 1  # half of object 2
    scores = match_objects(prediction, target)
    assert scores.proposals.tolist() == [3, 1]
    assert scores.j.tolist() == pytest.approx([19 / 20, 1 / 2])


def test_missing_proposals_are_empty_ones():
    target = two_objects()
    scores = match_objects(np.where(target == 2, 1, 0), target)
    assert (scores.j.tolist(), scores.f.tolist(), scores.proposals.tolist()) == ([0.0, 1.0], [0.0, 1.0], [2, 1])
    scores = match_objects(np.zeros_like(target), target)
    assert scores.j.tolist() == scores.f.tolist() == [0.0, 0.0]


def test_all_frames_count_and_absent_objects_score_1_when_left_out():
    target = two_objects(4)
    target[3][target[3] == 2] = 0
    prediction = target.copy()
    prediction[0] = 0
    scores = match_objects(prediction, target)
    assert scores.j.tolist() == [0.75, 0.75] and scores.f.tolist() == [0.75, 0.75]


def test_void_is_removed_and_objects_are_those_of_the_first_frame():
    target = two_objects()
    target[:, 30:38, 30:55] = 255
    target[1:, 0:3, 0:3] = 3  # appears later: not scored
    prediction = np.where(target == 255, 2, target)
    prediction[prediction == 3] = 0
    scores = match_objects(prediction, target)
    assert scores.j.tolist() == scores.f.tolist() == [1.0, 1.0]


def test_lowest_index_wins_overlaps():
    masks = np.zeros((3, 2, 1, 4), dtype=bool)
    masks[0, :, :, 1], masks[1, :, :, :3], masks[2, :, :, 1:] = True, True, True
    assert index_map(masks).tolist() == [[[2, 1, 2, 3]]] * 2
    assert index_map(masks[:, 0]).dtype == np.uint8
    for count in (0, 255):
        with pytest.raises(EvaluationError, match=f"found {count}"):
            index_map(np.zeros((count, 1, 2, 2), dtype=bool))


def test_maps_that_cannot_be_scored():
    target = two_objects()
    with pytest.raises(EvaluationError, match="20 proposals.*21"):
        match_objects(np.where(target == 1, 21, target), target)
    with pytest.raises(EvaluationError, match="no object"):
        match_objects(target, np.zeros_like(target))
    with pytest.raises(EvaluationError, match="no object"):
        match_objects(target, np.full_like(target, 255))
    with pytest.raises(EvaluationError, match="3 x 40 x 60.*2 x 40 x 60"):
        match_objects(target, target[:2])
    with pytest.raises(EvaluationError, match="booleans"):
        match_objects(target > 0, target)
    with pytest.raises(EvaluationError, match="no frame"):
        match_objects(target[:0], target[:0])
    with pytest.raises(EvaluationError, match="0 to 255"):
        match_objects(target.astype(int) - 1, target)


# --- no target, steadiness -------------------------------------------------------------------------------------------


def test_no_target_accuracy():
    assert is_empty(np.zeros((3, 4, 6), dtype=bool))
    one_pixel = np.zeros((3, 4, 6), dtype=bool)
    one_pixel[2, 3, 5] = True
    assert not is_empty(one_pixel)
    empty, absent = np.array([1, 1, 0, 1, 0], dtype=bool), np.array([1, 1, 1, 0, 0], dtype=bool)
    assert no_target_accuracy(empty, absent) == pytest.approx(2 / 3)
    assert target_accuracy(empty, absent) == pytest.approx(1 / 2)
    assert no_target_accuracy(empty, np.zeros(5, dtype=bool)) is None
    assert target_accuracy(empty, np.ones(5, dtype=bool)) is None
    assert no_target_accuracy([], []) is None and target_accuracy([], []) is None
    for bad in ([True], [1, 0, 1, 0, 1], [[True] * 5]):
        with pytest.raises(EvaluationError, match="one boolean"):
            no_target_accuracy(empty, bad)


def test_temporal_consistency():
    still = np.stack([square()] * 4)
    assert temporal_consistency(still) == temporal_consistency(np.zeros_like(still)) == 1.0
    assert temporal_consistency(still[:1]) == 1.0
    flicker = still.copy()
    flicker[1] = False
    assert temporal_consistency(flicker) == pytest.approx(1 / 3)
    moved = np.stack([square(), np.roll(square(), 10, axis=1)])
    assert temporal_consistency(moved) == pytest.approx(1 / 3)
    for bad in (still[:0], still[0]):
        with pytest.raises(EvaluationError):
            temporal_consistency(bad)


# --- the package and its shells --------------------------------------------------------------------------------------


def test_import_takes_neither_evaluate_nor_torch():
    code = (
        "import sys, virst_hf.metrics as m; m.boundary_accuracy, m.match_objects, m.g_iou, m.robustness;"
        "print([n for n in ('torch', 'transformers', 'datasets', 'evaluate') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


def test_every_name_is_there():
    import importlib

    for name in metrics.__all__:
        assert getattr(metrics, name) is not None and name in dir(metrics)
    for module, names in metrics.EXPORTS.items():
        assert set(names) <= set(importlib.import_module(f"virst_hf.metrics.{module}").__all__), module
    with pytest.raises(AttributeError, match="no_such_name"):
        metrics.no_such_name  # noqa: B018


def test_shells_give_what_the_functions_give():
    import evaluate

    from virst_hf.rle import encode_rle

    rng = np.random.default_rng(1)
    target = np.stack([random_mask(rng, (30, 50), "blocks") for _ in range(3)])
    prediction = np.roll(target, 2, axis=2)
    prediction[2] = False
    rles = [None if not mask.any() else encode_rle(mask) for mask in prediction]
    expected = {"J": region_similarity(prediction, target).mean(), "F": boundary_accuracy(prediction, target).mean()}
    expected["J&F"] = (expected["J"] + expected["F"]) / 2
    for form in (rles, prediction, prediction * np.uint8(255), prediction.tolist()):
        assert metrics.VideoJF(keep_in_memory=True).compute(predictions=[form], references=[target]) == expected
    # Videos have equal weight, whatever their length.
    both = metrics.VideoJF(keep_in_memory=True)
    both.add(prediction=rles, reference=target)
    both.add_batch(predictions=[[None]], references=[[None]])
    assert both.compute()["J"] == pytest.approx((expected["J"] + 1) / 2)
    scores = metrics.ReVOSAccuracyRobustness(keep_in_memory=True).compute(
        predictions=[rles], references=[target], foregrounds=[target | prediction]
    )
    assert scores == {
        "A": accuracy(prediction, target).mean(),
        "R": robustness(prediction, target, target | prediction).mean(),
    }
    steady = metrics.TemporalConsistency(keep_in_memory=True)
    assert steady.compute(predictions=[target])["temporal_consistency"] == temporal_consistency(target)
    together = evaluate.combine([metrics.VideoJF(keep_in_memory=True), metrics.VideoJF(keep_in_memory=True)])
    assert expected["F"] in together.compute(predictions=[rles], references=[target]).values()


def test_image_shell_with_ignored_pixels():
    target, ignore = square(), np.zeros((40, 60), dtype=bool)
    ignore[25:] = True
    prediction = np.ones_like(target)
    shell = metrics.ImageIoU(config_name="ignore", keep_in_memory=True)
    scores = shell.compute(predictions=[[prediction]], references=[[target]], ignores=[[ignore]])
    assert scores == {"gIoU": g_iou([300], [1500]), "cIoU": c_iou([300], [1500])}
    with pytest.raises(EvaluationError, match="one frame"):
        metrics.ImageIoU(keep_in_memory=True).compute(predictions=[[target] * 2], references=[[target] * 2])


def test_shells_refuse_what_does_not_fit():
    for prediction, message in (([square()] * 2, "same frames"), ([np.zeros((40, 59), bool)], "40 x 60")):
        with pytest.raises(ValueError, match=message):
            metrics.VideoJF(keep_in_memory=True).compute(predictions=[prediction], references=[[square()]])
    for prediction in ([{"size": [4, 6], "counts": "9220"}], [square().astype(float)], [{"counts": "92207"}]):
        with pytest.raises(ValueError, match="mask"):
            metrics.VideoJF(keep_in_memory=True).compute(predictions=[prediction], references=[[square()]])
