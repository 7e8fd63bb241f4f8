"""Sentences about a Shapes scene and their targets, by what the scene was planned to show.

A statement about an object is true, false, or not clear (`None`): "moves left" is not clear for an object that enters
to the left. A sentence is made only where every object it could mean is clear, and true by a margin.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from .scene import COLORS, CORNERS, DIRECTIONS, HEIGHT, WIDTH, Scene, Shape, Stream

__all__ = [
    "ACTIONS",
    "EXPRESSION_TYPES",
    "NUMBERS",
    "REASONING",
    "Expression",
    "Noun",
    "does",
    "image_expressions",
    "reasoning_about",
    "video_expressions",
]

EXPRESSION_TYPES = ("attribute", "motion", "relation", "plural", "reasoning", "no_target")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
# What an object does, in the words for one object and in those for several; two ways to say most of it.
ACTIONS = {
    "left": (("moves to the left", "move to the left"), ("goes left", "go left")),
    "right": (("moves to the right", "move to the right"), ("goes right", "go right")),
    "up": (("moves up", "move up"), ("goes up", "go up")),
    "down": (("moves down", "move down"), ("goes down", "go down")),
    "turns": (("turns", "turn"), ("spins", "spin")),
    "grows": (("grows", "grow"), ("gets bigger", "get bigger")),
    "shrinks": (("shrinks", "shrink"), ("gets smaller", "get smaller")),
    "still": (("stays still", "stay still"), ("does not move", "do not move")),
    "stops": (("moves and then stops", "move and then stop"),),
    "enters": (("comes in late", "come in late"),),
    "leaves": (("leaves the picture", "leave the picture"),),
    "behind": (("passes behind another shape", "pass behind another shape"),),
}
# Motions of which an action is neither plainly true nor plainly false.
UNCLEAR = {
    "turns": {"still"},
    "grows": {"still"},
    "shrinks": {"still"},
    "hidden": {"stops", "leaves", "behind"},
}
# What must be worked out, and the two ways to say it.
REASONING = {
    "most_corners": ["the shape with the most corners", "which shape has the most corners?"],
    "fewest_corners": ["the shape with the fewest corners", "which shape has the fewest corners?"],
    "largest": ["the largest shape", "which shape is the largest?"],
    "smallest": ["the smallest shape", "which shape is the smallest?"],
    "farthest": ["the shape that moves the farthest", "which shape moves the farthest?"],
    "hidden": ["the shape that ends up hidden", "which shape ends up hidden?"],
    "missing": ["the shape that is not there at first", "which shape is not there at first?"],
    "gone": ["the shape that is gone at the end", "which shape is gone at the end?"],
    "hides": ["the shape that hides another", "which shape hides another?"],
}
REASONING_WEIGHTS = {"most_corners": 1.3, "fewest_corners": 1.3, "hidden": 2.5, "missing": 1.2}
PLACES = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
MOMENTS = {"": slice(None), "that starts ": slice(0, 1), "that ends ": slice(-1, None)}
# Share of the frame's side by which one object lies to the left of another at least, and by which it lies to the other
# side where it does not.
PLACE_MARGIN, NO_PLACE_MARGIN = 0.12, 0.04
# By how much the largest area exceeds the next, the large one the small one, and the longest way the next.
LARGEST, LARGE, FARTHEST = 1.5, 1.8, 1.6


@dataclass(frozen=True)
class Noun:
    """What a sentence names: a colour, a form, both, or just "shape".

    Args:
        color (`str`, *optional*, defaults to `""`): One of `COLORS`; empty for any.
        form (`str`, *optional*, defaults to `""`): One of `CORNERS`; empty for any.

    Example:

    ```python
    >>> from virst_hf.data.shapes_maker.expressions import Noun
    >>> str(Noun("red")), Noun("red", "cross").plural
    ('red shape', 'red crosses')

    ```
    """

    color: str = ""
    form: str = ""

    def __str__(self) -> str:
        return f"{self.color} {self.form or 'shape'}".strip()

    @property
    def plural(self) -> str:
        """The noun for several objects."""
        return str(self) + ("es" if self.form == "cross" else "s")

    def of(self, scene: Scene) -> list[int]:
        """Ids of the objects that the noun fits."""
        return [i for i, s in enumerate(scene.shapes) if self.color in ("", s.color) and self.form in ("", s.form)]


@dataclass(frozen=True)
class Expression:
    """A sentence and what it means.

    Args:
        text (`str`): The sentence.
        type (`str`): One of `EXPRESSION_TYPES`.
        targets (`tuple[int, ...]`): Ids of the objects it means, ascending; empty for no target.
        kind (`str`): What it goes by, for example `color`.
    """

    text: str
    type: str
    targets: tuple[int, ...]
    kind: str


ALL_NOUNS = [Noun(color, form) for color in ("", *COLORS) for form in ("", *CORNERS)]


def does(shape: Shape, action: str, present: np.ndarray) -> bool | None:
    """Whether an object does something, as planned.

    Args:
        shape (`Shape`): The object.
        action (`str`): One of `ACTIONS`.
        present (`np.ndarray` of shape `(num_frames,)`): Whether it is visible in each frame.

    Returns:
        `bool` or `None`: `None` where it is not clear.
    """
    if action in DIRECTIONS:
        if shape.heading != action:
            return False
        return True if shape.motion in (action, "behind") else None
    if shape.motion == "behind" and action == "behind":
        # Between two frames it may pass without ever being wholly out of sight.
        return True if not present.all() else None
    if shape.motion == action:
        return True
    return None if action in UNCLEAR.get(shape.motion, ()) else False


def _only(ids: list[int], holds: Callable[[int], bool | None]) -> list[int] | None:
    """Those of `ids` for which `holds` is true; `None` if it is not clear for one of them."""
    answers = [holds(i) for i in ids]
    return None if None in answers else [i for i, answer in zip(ids, answers, strict=True) if answer]


def _doing(scene: Scene, present: np.ndarray, ids: list[int], action: str) -> list[int] | None:
    """Those of `ids` that do something; `None` if it is not clear for one of them."""
    return _only(ids, lambda i: does(scene.shapes[i], action, present[i]))


def _nouns(scene: Scene) -> list[tuple[Noun, list[int]]]:
    """Nouns that fit an object of the scene, and whom they fit."""
    return [(noun, ids) for noun in ALL_NOUNS if (ids := noun.of(scene))]


def _attribute(scene: Scene, present: np.ndarray) -> Iterator[Expression]:
    """One object by colour, form, size."""
    for noun, ids in _nouns(scene):
        if len(ids) == 1 and (noun.color or noun.form):
            kind = "color" if not noun.form else "form"
            if noun.color and noun.form:
                # With others of the colour and others of the form, both words are needed.
                alike = len(Noun(noun.color).of(scene)) > 1 and len(Noun("", noun.form).of(scene)) > 1
                kind = "both_needed" if alike else "both"
            yield Expression(f"the {noun}", "attribute", tuple(ids), kind)
        if len(ids) == 2:
            areas = [scene.shapes[i].side ** 2 for i in ids]
            for small, large in ((0, 1), (1, 0)):
                if areas[large].min() > LARGE * areas[small].max():
                    yield Expression(f"the small {noun}", "attribute", (ids[small],), "size")
                    yield Expression(f"the large {noun}", "attribute", (ids[large],), "size")


def _motion(scene: Scene, present: np.ndarray) -> Iterator[Expression]:
    """One object by what it does, among others of the same look."""
    for noun, ids in _nouns(scene):
        for action, phrases in ACTIONS.items() if len(ids) > 1 else ():
            targets = _doing(scene, present, ids, action)
            if targets is not None and len(targets) == 1:
                for words, _ in phrases:
                    yield Expression(f"the {noun} that {words}", "motion", tuple(targets), action)


def _lies(scene: Scene, i: int, j: int, place: str, moment: str) -> bool | None:
    """Whether object `i` lies at this place of object `j`."""
    a, b = scene.shapes[i], scene.shapes[j]
    # What is absent somewhere has no place there.
    if {a.motion, b.motion} & {"enters", "leaves", "hidden", "behind"}:
        return None
    dx, dy = PLACES[place]
    ahead = ((a.x - b.x) * dx / WIDTH + (a.y - b.y) * dy / HEIGHT)[MOMENTS[moment]]
    if (ahead > PLACE_MARGIN).all():
        return True
    return False if (ahead < -NO_PLACE_MARGIN).all() else None


def _relations(scene: Scene) -> Iterator[tuple[str, str, list[int], int]]:
    """Kind, sentence, targets, and number of objects in question, of every relation that is clear."""
    references = [(noun, ids[0]) for noun, ids in _nouns(scene) if len(ids) == 1]
    for reference, j in references:
        for noun, fitting in _nouns(scene):
            ids = [i for i in fitting if i != j]
            for place in PLACES if ids else ():
                for moment in MOMENTS if scene.num_frames > 1 else ("",):
                    targets = _only(ids, lambda i, p=place, m=moment, j=j: _lies(scene, i, j, p, m))
                    if targets is not None:
                        text = f"the {noun} {moment}{place} the {reference}"
                        yield "moment" if moment else "place", text, targets, len(ids)


def _relation(scene: Scene, present: np.ndarray) -> Iterator[Expression]:
    """One object by where it lies beside another."""
    for kind, text, targets, count in _relations(scene):
        if len(targets) == 1:
            # Without another of the same look the noun alone would do.
            yield Expression(text, "relation", tuple(targets), kind if count > 1 else "easy")


def _plural(scene: Scene, present: np.ndarray) -> Iterator[Expression]:
    """Two objects or more, but not all."""
    for noun, ids in _nouns(scene):
        if 2 <= len(ids) < len(scene.shapes):
            for words in (f"all {noun.plural}", f"the {NUMBERS[len(ids)]} {noun.plural}"):
                yield Expression(words, "plural", tuple(ids), "look")
        for action, phrases in ACTIONS.items():
            targets = _doing(scene, present, ids, action)
            if targets is not None and 2 <= len(targets) < len(ids):
                for _, words in phrases:
                    yield Expression(f"all {noun.plural} that {words}", "plural", tuple(targets), "motion")


def reasoning_about(scene: Scene, present: np.ndarray) -> dict[str, int]:
    """Which object each fact of `REASONING` is true of, where it is true of one plainly.

    Args:
        scene (`Scene`): The scene.
        present (`np.ndarray` of shape `(num_shapes, num_frames)`): Whether each object is visible in each frame.

    Returns:
        `dict[str, int]`: Object id of each fact.
    """
    shapes, ids = scene.shapes, range(len(scene.shapes))
    corners = [CORNERS[shape.form] for shape in shapes]
    areas = [shape.side**2 for shape in shapes]
    ways = [float(np.hypot(shape.x[-1] - shape.x[0], shape.y[-1] - shape.y[0])) for shape in shapes]
    facts: dict[str, list[int]] = {
        "most_corners": [i for i in ids if corners[i] == max(corners)],
        "fewest_corners": [i for i in ids if corners[i] == min(corners)],
    }
    for i in ids:
        others = [areas[j] for j in ids if j != i]
        if areas[i].min() > LARGEST * max(area.max() for area in others):
            facts["largest"] = [i]
        if LARGEST * areas[i].max() < min(area.min() for area in others):
            facts["smallest"] = [i]
        seen_all_the_way = shapes[i].motion not in ("enters", "leaves", "hidden")
        if seen_all_the_way and ways[i] > max(60.0, FARTHEST * max(ways[j] for j in ids if j != i)):
            facts["farthest"] = [i]
    facts["hidden"] = [i for i in ids if shapes[i].motion == "hidden" and not present[i, -1]]
    facts["missing"] = [i for i in ids if not present[i, 0]]
    facts["gone"] = [i for i in ids if not present[i, -1]]
    out_of_sight = any(shapes[i].motion in ("hidden", "behind") and not present[i].all() for i in ids)
    facts["hides"] = [i for i in ids if shapes[i].front and out_of_sight]
    return {fact: found[0] for fact, found in facts.items() if len(found) == 1}


def _reasoning(scene: Scene, present: np.ndarray) -> Iterator[Expression]:
    """One object by something that must be worked out."""
    for fact, target in reasoning_about(scene, present).items():
        for text in REASONING[fact]:
            yield Expression(text, "reasoning", (target,), fact)


def _no_target(scene: Scene, present: np.ndarray) -> Iterator[Expression]:
    """Sentences of the other types that fit nothing in the clip."""
    colors, forms = {shape.color for shape in scene.shapes}, {shape.form for shape in scene.shapes}
    for noun in ALL_NOUNS:
        ids = noun.of(scene)
        if not ids:
            known = (noun.color in colors) + (noun.form in forms)
            kind = ("unknown", "half_known", "new_pair")[known]
            yield Expression(f"the {noun}", "no_target", (), kind)
            yield Expression(f"all {noun.plural}", "no_target", (), kind)
        for action, phrases in ACTIONS.items() if ids and scene.num_frames > 1 else ():
            if _doing(scene, present, ids, action) == []:
                for one, several in phrases:
                    yield Expression(f"the {noun} that {one}", "no_target", (), "motion")
                    yield Expression(f"all {noun.plural} that {several}", "no_target", (), "motion")
    for _, text, targets, _ in _relations(scene):
        if not targets:
            yield Expression(text, "no_target", (), "relation")


MAKERS = {
    "attribute": _attribute,
    "motion": _motion,
    "relation": _relation,
    "plural": _plural,
    "reasoning": _reasoning,
    "no_target": _no_target,
}
# How often each kind is taken where a scene offers it; 1 where nothing is said.
KIND_WEIGHTS = {
    "attribute": {"both_needed": 5.0, "both": 1.5, "color": 1.5, "form": 1.5, "size": 2.0},
    "motion": {},
    "relation": {"place": 3.0, "moment": 1.5, "easy": 0.5},
    "plural": {"look": 3.0, "motion": 2.0},
    "reasoning": REASONING_WEIGHTS,
    "no_target": {"new_pair": 4.0, "half_known": 2.0, "motion": 3.0},
}


def _draw(stream: Stream, expression_type: str, pool: list[Expression]) -> Expression:
    """One of the pool: its kind by weight, then any of that kind."""
    weights = KIND_WEIGHTS[expression_type]
    kinds = sorted({expression.kind for expression in pool})
    kind = stream.choice(kinds, [weights.get(kind, 1.0) for kind in kinds])
    return stream.choice([expression for expression in pool if expression.kind == kind])


def video_expressions(scene: Scene, present: np.ndarray, stream: Stream) -> list[Expression]:
    """Sentences of a clip: one of each type and up to two more.

    Types that not every scene offers (relation, plural) come twice a little more often, so that each type keeps its
    share of an eighth or so.

    Args:
        scene (`Scene`): The scene.
        present (`np.ndarray` of shape `(num_shapes, num_frames)`): Whether each object is visible in each frame.
        stream (`Stream`): Source of the random numbers.

    Returns:
        `list[Expression]`: Sentences in random order; no text comes twice.
    """
    pools = {name: list(make(scene, present)) for name, make in MAKERS.items()}
    types = [*EXPRESSION_TYPES]
    types.append(stream.choice(["attribute", "motion", "relation", "relation", "no_target"]))
    types.append(stream.choice(["plural", "plural", "motion", "reasoning"]))
    chosen: list[Expression] = []
    for name in types:
        texts = {expression.text for expression in chosen}
        # Two of one type are about different objects where the scene allows it.
        taken = {expression.targets for expression in chosen if expression.type == name and expression.targets}
        fresh = [expression for expression in pools[name] if expression.text not in texts]
        pool = [expression for expression in fresh if expression.targets not in taken] or fresh
        if pool:
            chosen.append(_draw(stream, name, pool))
    return stream.shuffled(chosen)


def image_expressions(scene: Scene, stream: Stream) -> dict[int, list[str]]:
    """Sentences of a still image, one to three for each object that has any.

    Args:
        scene (`Scene`): A scene of one frame.
        stream (`Stream`): Source of the random numbers.

    Returns:
        `dict[int, list[str]]`: Sentences of each object id.
    """
    present = np.ones((len(scene.shapes), 1), dtype=bool)
    # Among still objects a difference of place that makes no difference of words is "easy": left out.
    found = [*_attribute(scene, present)]
    found += [expression for expression in _relation(scene, present) if expression.kind != "easy"]
    sentences: dict[int, list[str]] = {}
    for i in range(len(scene.shapes)):
        texts = sorted({expression.text for expression in found if expression.targets == (i,)})
        if texts:
            sentences[i] = stream.shuffled(texts)[: stream.integer(1, 3)]
    return sentences
