"""J, F and R agree with numbers of the reference implementation.

`VIRST_METRICS_CASES=FILE pytest tests/test_metrics_parity.py` runs the same test on another file of that form.
"""

import json
import os
from pathlib import Path

import numpy as np

from virst_hf.metrics import boundary_accuracy, region_similarity, robustness

CASES = Path(os.environ.get("VIRST_METRICS_CASES") or Path(__file__).parent / "data" / "metrics.json")


def draw(shapes: list[list], size: tuple[int, int]) -> np.ndarray:
    """The union of shapes, which may pass the border: ellipse (cy, cx, ry, rx), half-open box (top, left, bottom,
    right), ring (cy, cx, outer, inner)."""
    y, x = np.mgrid[: size[0], : size[1]]
    mask = np.zeros(size, dtype=bool)
    for kind, a, b, c, d in shapes:
        if kind == "ellipse":
            mask |= ((y - a) / c) ** 2 + ((x - b) / d) ** 2 < 1
        elif kind == "box":
            mask |= (y >= a) & (y < c) & (x >= b) & (x < d)
        elif kind == "ring":
            # Not hypot: a pixel may lie exactly on the edge.
            distance = np.sqrt((y - a) ** 2 + (x - b) ** 2)
            mask |= (distance < c) & (distance >= d)
        else:
            raise ValueError(f"unknown shape {kind!r}")
    return mask


def test_metrics_agree_with_the_reference():
    cases = json.loads(CASES.read_text(encoding="utf-8"))
    assert isinstance(cases, list) and cases, f"{CASES} holds no cases"
    for i, case in enumerate(cases):
        size, frames = tuple(case["size"]), case["frames"]
        assert len(frames) == len(case["J"]) == len(case["F"]) == len(case["R"]) > 0, f"case {i}"
        prediction, target, foreground = (
            np.stack([draw(frame[name], size) for frame in frames]) for name in ("pred", "gt", "foreground")
        )
        got = {
            "J": region_similarity(prediction, target),
            "F": boundary_accuracy(prediction, target),
            "R": robustness(prediction, target, foreground),
        }
        for name, scores in got.items():
            np.testing.assert_allclose(
                scores, case[name], rtol=0, atol=1e-6, equal_nan=False, err_msg=f"case {i}, {name}, {CASES}"
            )
