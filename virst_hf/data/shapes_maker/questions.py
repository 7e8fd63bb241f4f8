"""Questions about a Shapes scene with answers of one word."""

from .expressions import NUMBERS
from .scene import COLORS, CORNERS, Scene, Stream

__all__ = ["scene_questions"]


def scene_questions(scene: Scene, stream: Stream) -> list[tuple[str, str]]:
    """Questions for numbers, colours and forms.

    Args:
        scene (`Scene`): The scene. Every object that it has is visible at some time.
        stream (`Stream`): Source of the random numbers.

    Returns:
        `list[tuple[str, str]]`: Two to four pairs of a question and its answer.
    """
    shapes = scene.shapes
    colors, forms = [shape.color for shape in shapes], [shape.form for shape in shapes]
    found = [("how many shapes are there?", NUMBERS[len(shapes)])]
    color, form = stream.choice(list(COLORS)), stream.choice(list(CORNERS))
    # Half of the time about something that is there.
    color = stream.choice(colors) if stream.chance(0.5) else color
    form = stream.choice(forms) if stream.chance(0.5) else form
    found.append((f"how many {color} shapes are there?", NUMBERS[colors.count(color)]))
    found.append((f"how many {form}{'es' if form == 'cross' else 's'} are there?", NUMBERS[forms.count(form)]))
    counting = stream.shuffled(found)[: stream.integer(1, 2)]
    single = [i for i in range(len(shapes)) if forms.count(forms[i]) == 1]
    named = [(f"what color is the {forms[i]}?", colors[i]) for i in single]
    alone = [i for i in range(len(shapes)) if colors.count(colors[i]) == 1]
    named_forms = [(f"what form is the {colors[i]} shape?", forms[i]) for i in alone]
    chosen = [*counting, *stream.shuffled(named)[:1], *stream.shuffled(named_forms)[:1]]
    return stream.shuffled(chosen)
