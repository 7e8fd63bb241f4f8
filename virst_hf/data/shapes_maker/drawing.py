"""Pixels of a Shapes scene: textures, shaded objects with soft edges, and exact masks of what is visible."""

import math

import numpy as np
from PIL import Image, ImageDraw

from .scene import COLORS, HEIGHT, WIDTH, Scene, Shape, Stream, outline

__all__ = ["MIN_VISIBLE", "draw_scene", "draw_texture", "outline_in_frame", "visible_masks"]

# With fewer visible pixels an object counts as absent in a frame, and is not drawn.
MIN_VISIBLE = 12
# Outlines are drawn this much larger and averaged, which gives soft edges.
FINE = 4


def draw_texture(stream: Stream) -> np.ndarray:
    """A background: clouds of three sizes and a faint pattern, in greyish colours of middle brightness.

    Args:
        stream (`Stream`): Source of the random numbers.

    Returns:
        `np.ndarray` of shape `(240, 320, 3)`: RGB, uint8.
    """
    clouds = np.zeros((HEIGHT, WIDTH))
    for cells, strength in ((4, 0.5), (12, 0.3), (40, 0.2)):
        grid = Image.fromarray(stream.noise(cells * 3 // 4 + 1, cells + 1).astype(np.float32))
        clouds += strength * np.asarray(grid.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), dtype=np.float64)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(np.float64)
    pattern = stream.choice(["none", "stripes", "checks", "planks"])
    slope, period = stream.uniform(-1, 1), stream.uniform(18, 44)
    if pattern == "stripes":
        clouds += 0.12 * (np.floor((columns + slope * rows) / period) % 2)
    elif pattern == "checks":
        clouds += 0.12 * ((np.floor(columns / period) + np.floor(rows / period)) % 2)
    elif pattern == "planks":
        plank = np.floor(rows / period)
        clouds += 0.16 * ((plank * 0.618) % 1) - 0.1 * (rows % period < 2)
    grain = 5.0 * (stream.noise(HEIGHT, WIDTH) - 0.5)
    brightness, contrast = stream.uniform(100, 145), stream.uniform(55, 90)
    tint = np.array([stream.uniform(-9, 9) for _ in range(3)])
    grey = brightness + contrast * (clouds - 0.5) + grain
    return np.clip(np.rint(grey[..., None] + tint), 40, 205).astype(np.uint8)


def outline_in_frame(shape: Shape, frame: int) -> np.ndarray:
    """Outline of an object in a frame.

    Args:
        shape (`Shape`): The object.
        frame (`int`): Index of the frame.

    Returns:
        `np.ndarray` of shape `(num_points, 2)`: x and y in pixels; the corner of the first pixel is (0, 0).
    """
    cos, sin = math.cos(shape.angle[frame]), math.sin(shape.angle[frame])
    x, y = outline(shape.form).T
    turned = np.stack([cos * x - sin * y, sin * x + cos * y], axis=1)
    return turned * shape.side[frame] + (shape.x[frame], shape.y[frame])


def _coverage(shape: Shape, frame: int) -> tuple[slice, slice, np.ndarray] | None:
    """Rows, columns, and how much of each pixel there an object covers (0 to 1); `None` outside of the frame."""
    points = outline_in_frame(shape, frame)
    left, top = np.floor(points.min(axis=0)).astype(int) - 1
    right, bottom = np.ceil(points.max(axis=0)).astype(int) + 1
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, WIDTH), min(bottom, HEIGHT)
    if left >= right or top >= bottom:
        return None
    fine = np.rint((points - (left, top)) * FINE - 0.5).astype(int)
    canvas = Image.new("L", ((right - left) * FINE, (bottom - top) * FINE))
    ImageDraw.Draw(canvas).polygon([(int(x), int(y)) for x, y in fine], fill=1)
    covered = np.asarray(canvas, dtype=np.float64)
    covered = covered.reshape(bottom - top, FINE, right - left, FINE).mean(axis=(1, 3))
    return slice(top, bottom), slice(left, right), covered


def _shade(shape: Shape, frame: int, rows: slice, columns: slice) -> np.ndarray:
    """Colour of an object at these pixels: its own, darker towards one side, which turns with it."""
    y, x = np.mgrid[rows, columns].astype(np.float64) + 0.5
    cos, sin = math.cos(shape.angle[frame]), math.sin(shape.angle[frame])
    depth = ((x - shape.x[frame]) * cos + (y - shape.y[frame]) * sin) / shape.side[frame]
    light = np.clip(0.92 - 0.2 * depth, 0.72, 1.0)
    return light[..., None] * np.array(COLORS[shape.color], dtype=np.float64)


def _back_to_front(scene: Scene) -> list[int]:
    """Object ids in the order in which they are drawn."""
    return sorted(range(len(scene.shapes)), key=lambda i: (scene.shapes[i].front, i))


def visible_masks(scene: Scene) -> np.ndarray:
    """What is visible of each object: pixels of which it covers at least half, without those of objects in front.

    Args:
        scene (`Scene`): The scene.

    Returns:
        `np.ndarray` of shape `(num_shapes, num_frames, 240, 320)`: Boolean masks; empty where fewer than
        `MIN_VISIBLE` pixels are visible.
    """
    masks = np.zeros((len(scene.shapes), scene.num_frames, HEIGHT, WIDTH), dtype=bool)
    for frame in range(scene.num_frames):
        hidden = np.zeros((HEIGHT, WIDTH), dtype=bool)
        for i in reversed(_back_to_front(scene)):
            found = _coverage(scene.shapes[i], frame)
            if found is None:
                continue
            rows, columns, covered = found
            mask = (covered >= 0.5) & ~hidden[rows, columns]
            if mask.sum() >= MIN_VISIBLE:
                masks[i, frame, rows, columns] = mask
                hidden[rows, columns] |= mask
    return masks


def draw_scene(scene: Scene, texture: np.ndarray, masks: np.ndarray) -> list[np.ndarray]:
    """Draw the frames of a scene.

    Args:
        scene (`Scene`): The scene.
        texture (`np.ndarray` of shape `(240, 320, 3)`): Background, uint8.
        masks (`np.ndarray` of shape `(num_shapes, num_frames, 240, 320)`): What [`visible_masks`] gave.

    Returns:
        `list[np.ndarray]`: RGB frames of shape `(240, 320, 3)`, uint8.
    """
    frames = []
    present = masks.any(axis=(2, 3))
    for frame in range(scene.num_frames):
        canvas = texture.astype(np.float64)
        for i in _back_to_front(scene):
            found = _coverage(scene.shapes[i], frame) if present[i, frame] else None
            if found is None:
                continue
            rows, columns, covered = found
            below = canvas[rows, columns]
            below += (_shade(scene.shapes[i], frame, rows, columns) - below) * covered[..., None]
        frames.append(np.rint(canvas).astype(np.uint8))
    return frames
