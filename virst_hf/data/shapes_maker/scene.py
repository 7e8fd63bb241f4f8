"""Scenes of the Shapes benchmark: which objects there are, how they look, and where they are in each frame.

A scene is drawn at random from a stream that depends on its key only, so that any video can be made alone. Motions are
large and clear, and objects meet only where one is meant to pass or to hide behind another, so that a sentence about
a scene is either plainly true or plainly false.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np

__all__ = [
    "COLORS",
    "CORNERS",
    "DIRECTIONS",
    "HEIGHT",
    "WIDTH",
    "Scene",
    "Shape",
    "Stream",
    "circumradius",
    "make_scene",
    "make_still",
    "outline",
]

T = TypeVar("T")

HEIGHT, WIDTH = 240, 320
MIN_FRAMES, MAX_FRAMES = 24, 60
# Far apart in hue or brightness from one another and from the greyish backgrounds.
COLORS = {
    "red": (216, 32, 36),
    "green": (28, 160, 52),
    "blue": (32, 64, 224),
    "yellow": (246, 214, 24),
    "purple": (146, 36, 186),
    "cyan": (24, 206, 222),
    "white": (250, 250, 250),
}
# Corners of the outline, inner ones included: a five-pointed star has ten, a moon the two tips.
CORNERS = {"circle": 0, "moon": 2, "triangle": 3, "square": 4, "star": 10, "cross": 12}
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
MOTION_WEIGHTS = {
    "left": 1.2,
    "right": 1.2,
    "up": 1.0,
    "down": 1.0,
    "turns": 1.2,
    "grows": 1.0,
    "shrinks": 1.0,
    "still": 0.9,
    "stops": 1.0,
    "enters": 1.1,
    "leaves": 1.1,
}
NUM_SHAPES = {2: 0.06, 3: 0.12, 4: 0.27, 5: 0.30, 6: 0.25}
# Pixels between any object and the border of the frame, and between two objects.
MARGIN, GAP = 3.0, 2.0


class Stream:
    """Random numbers that depend on the key only, on no other video and no process.

    Only the raw uniform numbers of numpy's Philox generator are used, as other methods may change with its version.

    Args:
        key (`str` or `int`): Parts of the key, for example split, seed, and video.

    Example:

    ```python
    >>> from virst_hf.data.shapes_maker.scene import Stream
    >>> Stream("train", 0, 5).integer(0, 9) == Stream("train", 0, 5).integer(0, 9)
    True

    ```
    """

    def __init__(self, *key: str | int) -> None:
        digest = hashlib.sha256("|".join(("shapes", *map(str, key))).encode()).digest()
        self._generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))

    def uniform(self, low: float, high: float) -> float:
        """A number in `[low, high)`."""
        return low + (high - low) * float(self._generator.random())

    def integer(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return low + int(self._generator.random() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        """Whether something of this probability happens."""
        return float(self._generator.random()) < probability

    def choice(self, items: Sequence[T], weights: Sequence[float] | None = None) -> T:
        """One of `items`, with equal chances or in proportion to `weights`."""
        if weights is None:
            return items[self.integer(0, len(items) - 1)]
        left = self.uniform(0, math.fsum(weights))
        for item, weight in zip(items, weights, strict=True):
            left -= weight
            if left < 0:
                return item
        return items[-1]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in random order."""
        order = np.argsort(self._generator.random(len(items)), kind="stable")
        return [items[i] for i in order]

    def noise(self, *shape: int) -> np.ndarray:
        """An array of numbers in `[0, 1)`, float64."""
        return self._generator.random(shape)


@dataclass(frozen=True, eq=False)
class Shape:
    """One object and its way through the clip.

    Args:
        color (`str`): One of `COLORS`.
        form (`str`): One of `CORNERS`.
        motion (`str`): One of `left`, `right`, `up`, `down`, `turns`, `grows`, `shrinks`, `still`, `stops`, `enters`,
            `leaves`, `behind` (passes behind another object), `hidden` (moves behind another object and stays there).
        heading (`str`): Direction of the movement; empty for an object that stays in its place.
        x (`np.ndarray` of shape `(num_frames,)`): Column of the centroid in each frame, in pixels.
        y (`np.ndarray` of shape `(num_frames,)`): Row of the centroid.
        side (`np.ndarray` of shape `(num_frames,)`): Square root of the area, in pixels.
        angle (`np.ndarray` of shape `(num_frames,)`): Rotation, in radians.
        front (`bool`): Drawn over the others.
    """

    color: str
    form: str
    motion: str
    heading: str
    x: np.ndarray
    y: np.ndarray
    side: np.ndarray
    angle: np.ndarray
    front: bool = False


@dataclass(frozen=True, eq=False)
class Scene:
    """Objects of a clip; their index is their object id.

    Args:
        shapes (`tuple[Shape, ...]`): The objects.
        num_frames (`int`): Frames of the clip; 1 for a still image.
    """

    shapes: tuple[Shape, ...]
    num_frames: int


@lru_cache
def outline(form: str) -> np.ndarray:
    """Outline of a form: area 1, centroid at the origin, y pointing down.

    Args:
        form (`str`): One of `CORNERS`.

    Returns:
        `np.ndarray` of shape `(num_points, 2)`: x and y, in order round the form.
    """
    if form == "circle":
        points = _arc(0.0, 0.0, 1.0, 0.0, 360.0, 48)[:-1]
    elif form == "moon":
        outer = _arc(0.0, 0.0, 1.0, 57.7, 302.3, 36)
        inner = _arc(0.62, 0.0, 0.85, 264.2, 95.8, 28)
        points = outer + inner[1:-1]
    elif form == "star":
        points = [_polar(1.0 if i % 2 == 0 else 0.45, -90.0 + 36.0 * i) for i in range(10)]
    elif form == "cross":
        a, b = 1.0, 0.36
        points = [(-b, -a), (b, -a), (b, -b), (a, -b), (a, b), (b, b), (b, a), (-b, a), (-b, b), (-a, b), (-a, -b)]
        points.append((-b, -b))
    else:
        sides = CORNERS[form]
        points = [_polar(1.0, -90.0 + 180.0 / sides * (form == "square") + 360.0 / sides * i) for i in range(sides)]
    array = np.array(points)
    ahead = np.roll(array, -1, axis=0)
    crossed = array[:, 0] * ahead[:, 1] - ahead[:, 0] * array[:, 1]
    area = crossed.sum() / 2
    centroid = ((array + ahead) * crossed[:, None]).sum(axis=0) / (6 * area)
    return (array - centroid) / math.sqrt(abs(area))


def _polar(radius: float, degrees: float) -> tuple[float, float]:
    """A point at this distance and angle from the origin."""
    return radius * math.cos(math.radians(degrees)), radius * math.sin(math.radians(degrees))


def _arc(x: float, y: float, radius: float, start: float, end: float, steps: int) -> list[tuple[float, float]]:
    """Points of an arc round (x, y), both ends included."""
    around = [_polar(radius, start + (end - start) * i / steps) for i in range(steps + 1)]
    return [(x + dx, y + dy) for dx, dy in around]


@lru_cache
def circumradius(form: str) -> float:
    """Radius of the circle round the centroid that holds the form of area 1."""
    return float(np.sqrt((outline(form) ** 2).sum(axis=1)).max())


def make_scene(stream: Stream) -> Scene:
    """A random clip: number of frames, objects, and motions.

    Args:
        stream (`Stream`): Source of the random numbers.

    Returns:
        `Scene`: 2 to 6 objects in 24 to 60 frames; shorter clips are more frequent.
    """
    # Evaluation time goes with the frames, so that long clips are rarer.
    num_frames = MIN_FRAMES + int((MAX_FRAMES - MIN_FRAMES + 1) * stream.uniform(0, 1) ** 1.8)
    count = stream.choice(list(NUM_SHAPES), list(NUM_SHAPES.values()))
    while True:
        motions, pair = _motions(stream, count)
        shapes = _place(stream, num_frames, motions, pair)
        if shapes is not None:
            return Scene(tuple(shapes), num_frames)


def make_still(stream: Stream) -> Scene:
    """A random still image of 3 to 6 objects.

    Args:
        stream (`Stream`): Source of the random numbers.

    Returns:
        `Scene`: A scene of one frame in which every object is wholly visible.
    """
    count = stream.integer(3, 6)
    while True:
        shapes = _place(stream, 1, ["still"] * count, None)
        if shapes is not None:
            return Scene(tuple(shapes), 1)


def _motions(stream: Stream, count: int) -> tuple[list[str], tuple[int, int] | None]:
    """Motion of each object; and the pair (the one behind, the one in front) where one goes behind another."""
    names, weights = list(MOTION_WEIGHTS), list(MOTION_WEIGHTS.values())
    motions = [stream.choice(names, weights) for _ in range(count)]
    if count >= 4 and stream.chance(0.55):
        motions[1] = motions[0]
    if len(set(motions)) == 1:
        motions[-1] = stream.choice([name for name in names if name != motions[0]])
    pair = None
    if count >= 3 and stream.chance(0.45):
        # The last two, so that a motion that the first two share stays shared.
        motions[-2:] = [stream.choice(["behind", "hidden"]), "still"]
        pair = (count - 2, count - 1)
    order = stream.shuffled(range(count))
    if pair is not None:
        pair = (order.index(pair[0]), order.index(pair[1]))
    return [motions[i] for i in order], pair


def _looks(stream: Stream, motions: list[str], pair: tuple[int, int] | None) -> list[tuple[str, str]]:
    """Colour and form of each object, such that similar ones come together."""
    count = len(motions)
    while True:
        colors = stream.shuffled(list(COLORS))[: max(2, round(count * stream.uniform(0.4, 0.8)))]
        forms = stream.shuffled(list(CORNERS))[: max(2, round(count * stream.uniform(0.4, 0.8)))]
        looks = [(stream.choice(colors), stream.choice(forms)) for _ in motions]
        if pair is not None:
            # A round or square object has room for another behind it.
            looks[pair[1]] = (looks[pair[1]][0], stream.choice(["circle", "square"]))
        turning_circle = any(m == "turns" and look[1] == "circle" for m, look in zip(motions, looks, strict=True))
        if pair is not None and looks[pair[0]][0] == looks[pair[1]][0]:
            continue  # where they meet, nobody could tell the two apart
        if turning_circle or max(looks.count(look) for look in looks) > 2:
            continue
        pairs = [(a, b) for i, a in enumerate(looks) for b in looks[:i]]
        same_color = any(a[0] == b[0] and a[1] != b[1] for a, b in pairs)
        same_form = any(a[0] != b[0] and a[1] == b[1] for a, b in pairs)
        if (same_color and same_form) if count > 2 else (same_color or same_form):
            return looks


def _sizes(stream: Stream, motions: list[str], looks: list[tuple[str, str]], pair: tuple[int, int] | None) -> list:
    """First and last area of each object, as a share of the frame."""
    most = 0.06 if len(motions) < 5 else 0.045
    small = stream.integer(0, len(motions) - 1) if stream.chance(0.6) else -1
    sizes = []
    for i, motion in enumerate(motions):
        # Even in the logarithm: as many small ones as large ones.
        area = 0.015 * (most / 0.015) ** stream.uniform(0, 1)
        growth = stream.uniform(3.2, 4.5)
        low = stream.uniform(0.012, 0.018)
        if motion == "turns":
            area = max(area, 0.022)
        if motion in ("grows", "shrinks"):
            sizes.append((low, low * growth) if motion == "grows" else (low * growth, low))
        elif pair is not None and i == pair[1]:
            sizes.append((stream.uniform(0.055, 0.075),) * 2)
        elif i == small and motion != "turns":
            sizes.append((stream.uniform(0.0075, 0.0097),) * 2)
        else:
            sizes.append((area, area))
    if pair is not None:
        behind, front = pair
        # The inner circle of the one in front must hold the outer circle of the one behind.
        inner = (0.564 if looks[front][1] == "circle" else 0.5) * 0.94 / circumradius(looks[behind][1])
        sizes[behind] = (min(sizes[behind][0], sizes[front][0] * inner**2),) * 2
    return sizes


def _place(
    stream: Stream, num_frames: int, motions: list[str], pair: tuple[int, int] | None, tries: int = 40
) -> list[Shape] | None:
    """Objects on ways that do not meet; `None` where no room was found."""
    looks = _looks(stream, motions, pair)
    sizes = _sizes(stream, motions, looks, pair)
    if min(area for size in sizes for area in size) < 0.007:
        return None
    placed: dict[int, Shape] = {}
    # The one in front first: the way of the one behind leads to it. Then those that need much room.
    order = sorted(range(len(motions)), key=lambda i: (pair is None or i != pair[1], pair is None or i != pair[0]))
    for i in order:
        hider = placed.get(pair[1]) if pair is not None and i == pair[0] else None
        for _ in range(tries):
            shape = _shape(stream, num_frames, motions[i], looks[i], sizes[i], hider)
            if pair is not None and i == pair[1]:
                shape = Shape(**{**vars(shape), "front": True})
            if all(other is hider or _apart(shape, other) for other in placed.values()) and _inside(shape):
                placed[i] = shape
                break
        else:
            return None
    return [placed[i] for i in range(len(motions))]


def _reach(shape: Shape) -> np.ndarray:
    """Radius of the circle that holds the object, in each frame."""
    return shape.side * circumradius(shape.form)


def _apart(a: Shape, b: Shape) -> bool:
    """Whether two objects never meet."""
    distance = np.sqrt((a.x - b.x) ** 2 + (a.y - b.y) ** 2)
    return bool((distance > _reach(a) + _reach(b) + GAP).all())


def _inside(shape: Shape) -> bool:
    """Whether the object is wholly in the frame wherever its motion asks for it."""
    room = _reach(shape) + MARGIN
    inside = (shape.x > room) & (shape.x < WIDTH - room) & (shape.y > room) & (shape.y < HEIGHT - room)
    if shape.motion == "enters":
        return bool(inside[-max(1, len(inside) // 4) :].all())
    if shape.motion == "leaves":
        return bool(inside[: max(1, len(inside) // 4)].all())
    return bool(inside.all())


def _shape(
    stream: Stream,
    num_frames: int,
    motion: str,
    look: tuple[str, str],
    size: tuple[float, float],
    hider: Shape | None,
) -> Shape:
    """One try of an object: a random place and way for its motion."""
    time = np.arange(num_frames) / max(num_frames - 1, 1)
    first, last = (math.sqrt(area * HEIGHT * WIDTH) for area in size)
    side = first + (last - first) * time
    turn = stream.choice([-1, 1]) * math.radians(stream.uniform(200, 260)) if motion == "turns" else 0.0
    # A square that stood on a corner would be called a diamond.
    tilt = stream.uniform(-0.2, 0.2) if look[1] in ("square", "cross", "triangle", "star") else stream.uniform(-3, 3)
    radius = max(first, last) * circumradius(look[1])
    heading = "" if motion in ("turns", "grows", "shrinks", "still") else motion
    if heading and heading not in DIRECTIONS:
        heading = stream.choice(list(DIRECTIONS))
    if not heading:
        x = np.full(num_frames, stream.uniform(radius + MARGIN, WIDTH - radius - MARGIN))
        y = np.full(num_frames, stream.uniform(radius + MARGIN, HEIGHT - radius - MARGIN))
    elif hider is not None:
        x, y = _way_behind(stream, time, motion, heading, radius, hider)
    else:
        x, y = _way(stream, time, motion, heading, radius)
    return Shape(*look, motion, heading, x, y, side, tilt + turn * time)


def _way(stream: Stream, time: np.ndarray, motion: str, heading: str, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows of an object that moves in a direction, with a slight slant."""
    across = DIRECTIONS[heading][0] != 0
    length, breadth = (WIDTH, HEIGHT) if across else (HEIGHT, WIDTH)
    room = (radius + MARGIN, length - radius - MARGIN)
    distance = stream.uniform(0.38, 0.6) * length
    progress = time
    if motion == "stops":
        progress = np.minimum(time / stream.uniform(0.4, 0.55), 1.0)
    start = stream.uniform(room[0], max(room[0], room[1] - distance))
    if motion in ("enters", "leaves"):
        # Seen from the border that it crosses: just outside until `late`, then ever further in.
        late = stream.uniform(0.35, 0.5)
        start, distance = -radius - 1.0, stream.uniform(0.3, 0.6) * length + 2 * radius
        progress = np.maximum((time - late) / (1 - late), 0.0)
        if motion == "leaves":
            progress = progress[::-1]
    along = start + distance * progress
    # An object that enters to the right comes from the left; one that leaves to the right goes to the right border.
    if (heading in ("left", "up")) != (motion == "leaves"):
        along = length - along
    slant = stream.uniform(-0.06, 0.06) * breadth
    beside = stream.uniform(radius + MARGIN, breadth - radius - MARGIN) + slant * progress
    return (along, beside) if across else (beside, along)


def _way_behind(
    stream: Stream, time: np.ndarray, motion: str, heading: str, radius: float, hider: Shape
) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows of an object that moves behind `hider`: through its centre, or to it and no further."""
    dx, dy = DIRECTIONS[heading]
    length = WIDTH if dx else HEIGHT
    clear = radius + float(_reach(hider)[0]) + 6.0
    before = max(clear, stream.uniform(0.25, 0.4) * length)
    after = max(clear, stream.uniform(0.25, 0.4) * length)
    if motion == "behind":
        along = -before + (before + after) * time
    else:
        along = -before * (1 - np.minimum(time / stream.uniform(0.5, 0.65), 1.0))
    return hider.x + dx * along, hider.y + dy * along
