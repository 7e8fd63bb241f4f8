"""What a Shapes sentence means, found by reading its words and measuring the clip.

This knows nothing of how a sentence or a motion was made: it has the looks of the objects, their centres, sizes and
angles in each frame, and their visible masks. `make_shapes` compares every target with it.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ...errors import DataError
from .scene import COLORS, CORNERS, HEIGHT, WIDTH, Scene

__all__ = ["answer_of", "objects_of"]

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
RELATION = re.compile(r"(?:that (starts|ends) )?(left of|right of|above|below) the (.+)")
SIDES = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
WAYS = {
    "left": ("moves to the left", "move to the left", "goes left", "go left"),
    "right": ("moves to the right", "move to the right", "goes right", "go right"),
    "up": ("moves up", "move up", "goes up", "go up"),
    "down": ("moves down", "move down", "goes down", "go down"),
}


@dataclass
class _Track:
    """One object as it can be measured."""

    color: str
    form: str
    centres: np.ndarray
    areas: np.ndarray
    angles: np.ndarray
    visible: np.ndarray

    def path(self) -> np.ndarray:
        """From the first place where it is seen to the last, in pixels."""
        seen = np.flatnonzero(self.visible)
        return self.centres[seen[-1]] - self.centres[seen[0]]

    def in_frame(self) -> np.ndarray:
        """Whether its centre is inside of the picture."""
        x, y = self.centres.T
        return (x > 0) & (x < WIDTH) & (y > 0) & (y < HEIGHT)

    def does(self, words: str) -> bool:
        """Whether it does what the words say."""
        way, last = self.path(), len(self.visible) - 1
        far = float(np.abs(way).max())
        for name, phrases in WAYS.items():
            if words in phrases:
                axis, sign = {"left": (0, -1), "right": (0, 1), "up": (1, -1), "down": (1, 1)}[name]
                return way[axis] * sign > 25 and abs(way[axis]) > 2 * abs(way[1 - axis])
        growth = self.areas[last] / self.areas[0]
        turned = abs(self.angles[last] - self.angles[0])
        if words in ("turns", "turn", "spins", "spin"):
            return turned > np.pi / 2
        if words in ("grows", "grow", "gets bigger", "get bigger"):
            return growth > 1.5
        if words in ("shrinks", "shrink", "gets smaller", "get smaller"):
            return growth < 1 / 1.5
        if words in ("stays still", "stay still", "does not move", "do not move"):
            return far < 3 and turned < 0.1 and 0.8 < growth < 1.25
        if words in ("moves and then stops", "move and then stop"):
            steps = np.abs(np.diff(self.centres, axis=0)).max(axis=1)
            return bool(steps[-len(steps) // 4 :].max() < 0.01 and far > 25 and self.visible[last])
        if words in ("comes in late", "come in late"):
            return not self.visible[0] and not self.in_frame()[0]
        if words in ("leaves the picture", "leave the picture"):
            return not self.visible[last] and not self.in_frame()[last]
        if words in ("passes behind another shape", "pass behind another shape"):
            lost = np.flatnonzero(~self.visible & self.in_frame())
            return bool(len(lost) and self.visible[: lost[0]].any() and self.visible[lost[-1] :].any())
        raise DataError(f"Unknown words about a shape: {words!r}.")

    def ends_hidden(self) -> bool:
        """Whether it is out of sight at the end, but inside of the picture."""
        return bool(not self.visible[-1] and self.in_frame()[-1])


def _tracks(scene: Scene, masks: np.ndarray) -> list[_Track]:
    return [
        _Track(
            shape.color,
            shape.form,
            np.stack([shape.x, shape.y], axis=1),
            shape.side**2,
            shape.angle,
            masks[i].any(axis=(1, 2)),
        )
        for i, shape in enumerate(scene.shapes)
    ]


def _fitting(tracks: list[_Track], noun: str) -> list[int]:
    """Objects that a noun with its adjectives fits, in one or several words."""
    words = noun.split()
    colors = [word for word in words if word in COLORS]
    kind = words[-1]
    singular = kind if kind in (*CORNERS, "shape") else kind.removesuffix("s")
    singular = singular if singular in (*CORNERS, "shape") else kind.removesuffix("es")
    rest = [word for word in words[:-1] if word not in (*COLORS, *NUMBERS, "small", "large")]
    if (singular not in CORNERS and singular != "shape") or rest or len(colors) > 1:
        raise DataError(f"Unknown words for a shape: {noun!r}.")
    found = [
        i
        for i, track in enumerate(tracks)
        if (not colors or track.color == colors[0]) and singular in ("shape", track.form)
    ]
    if "small" in words or "large" in words:
        pick = min if "small" in words else max
        found = [pick(found, key=lambda i: tracks[i].areas[0])]
    return found


def objects_of(text: str, scene: Scene, masks: np.ndarray) -> list[int]:
    """The objects that a sentence means.

    Args:
        text (`str`): A sentence of Shapes.
        scene (`Scene`): The scene.
        masks (`np.ndarray` of shape `(num_shapes, num_frames, height, width)`): Visible masks.

    Returns:
        `list[int]`: Object ids, ascending.

    Raises:
        DataError: The sentence has words that Shapes does not use.
    """
    tracks = _tracks(scene, masks)
    words = text.removesuffix("?")
    words = words.removeprefix("which shape ") if text.endswith("?") else words
    reasoned = _reasoned(words, tracks, scene, masks)
    if reasoned is not None:
        return reasoned
    words = re.sub("^(the|all) ", "", words)
    relation = RELATION.search(words)
    if relation is not None:
        noun = words[: relation.start()].strip()
        moment, side, place = relation.groups()
        (known,) = _fitting(tracks, place)
        frames = {"starts": [0], "ends": [-1], None: range(scene.num_frames)}[moment]
        axis, sign = SIDES[side]
        others = [i for i in _fitting(tracks, noun) if i != known]
        return [i for i in others if _beside(tracks[i], tracks[known], axis, sign, frames)]
    noun, _, deed = words.partition(" that ")
    return [i for i in _fitting(tracks, noun) if not deed or tracks[i].does(deed)]


def _beside(one: _Track, other: _Track, axis: int, sign: int, frames: Iterable[int]) -> bool:
    """Whether one is on this side of the other whenever both are seen in these frames, and that at least once."""
    both = [frame for frame in frames if one.visible[frame] and other.visible[frame]]
    ahead = [sign * (one.centres[frame][axis] - other.centres[frame][axis]) for frame in both]
    return bool(ahead) and min(ahead) > 15


def _reasoned(words: str, tracks: list[_Track], scene: Scene, masks: np.ndarray) -> list[int] | None:
    """What a sentence that compares all objects means; `None` for another sentence."""
    everyone = range(len(tracks))
    corners = [CORNERS[track.form] for track in tracks]
    sizes = [float(np.median(track.areas)) for track in tracks]
    ways = [float(np.hypot(*track.path())) for track in tracks]
    extremes = {
        "most corners": (corners, max),
        "fewest corners": (corners, min),
        "largest": (sizes, max),
        "smallest": (sizes, min),
        "farthest": (ways, max),
    }
    for key, (values, pick) in extremes.items():
        if key in words:
            return [i for i in everyone if values[i] == pick(values)]
    if "ends up hidden" in words:
        return [i for i in everyone if tracks[i].ends_hidden()]
    if "not there at first" in words:
        return [i for i in everyone if not tracks[i].visible[0]]
    if "gone at the end" in words:
        return [i for i in everyone if not tracks[i].visible[-1]]
    if "hides another" in words:
        return _hiders(tracks, masks)
    return None


def _hiders(tracks: list[_Track], masks: np.ndarray) -> list[int]:
    """Objects whose visible mask has the centre of another that is out of sight inside of the picture."""
    found = set()
    for other in tracks:
        for frame in np.flatnonzero(~other.visible & other.in_frame()):
            x, y = other.centres[frame].astype(int)
            found |= {i for i in range(len(tracks)) if masks[i, frame, y, x]}
    return sorted(found)


def answer_of(question: str, scene: Scene, masks: np.ndarray) -> str:
    """The answer to a question of Shapes.

    Args:
        question (`str`): The question.
        scene (`Scene`): The scene.
        masks (`np.ndarray` of shape `(num_shapes, num_frames, height, width)`): Visible masks.

    Returns:
        `str`: A number, colour or form as a word.

    Raises:
        DataError: The question has words that Shapes does not use.
    """
    tracks = _tracks(scene, masks)
    counting = re.fullmatch("how many (.+) are there\\?", question)
    if counting is not None:
        return NUMBERS[len(_fitting(tracks, counting.group(1)))]
    asked = re.fullmatch("what (color|form) is the (.+)\\?", question)
    if asked is None:
        raise DataError(f"Unknown question: {question!r}.")
    (one,) = _fitting(tracks, asked.group(2))
    return tracks[one].color if asked.group(1) == "color" else tracks[one].form
