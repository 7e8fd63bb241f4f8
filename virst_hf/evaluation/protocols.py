"""The protocols of the benchmarks, each a small object that states what is read, counted and averaged.

Published numbers of one benchmark differ by 5 to 10 points for reasons of protocol, so a number of this package always
comes with the name of one of these.
"""

from dataclasses import dataclass, field
from typing import Any

from ..errors import EvaluationError

__all__ = ["PROTOCOLS", "Protocol", "get_protocol"]

EXPRESSION_RULE = (
    "Both masks of a frame empty: J = F = 1. Only one empty: J = F = 0. All frames count, the first and the last and "
    "those without the object included. A failing sample counts J = F = 0."
)
REVOS_RULE = (
    EXPRESSION_RULE + " Expressions of type 2 (no target) are run, but are in no average. R is 1 minus the false "
    "positives over the foreground of the video, at least 0. A_published and R_published are what the published "
    "script makes of masks stored as 0 and 255: every false positive counts 255 times."
)
OFFICIAL_RULE = (
    "Hard masks; where masks overlap, the object with the lowest index wins. Void pixels (255) count neither way. "
    "Objects are matched to predictions by the best sum of (J + F) / 2, for each of the 4 annotators; objects are "
    "those of the first frame. An object whose sample failed counts J = F = 0."
)
IMAGE_RULE = (
    "Both masks empty: IoU 1. Empty target and any prediction: IoU 0. Ignored pixels count neither way. A failing "
    "sample counts IoU 0, with its target in the union of cIoU."
)
SERVER_RULE = "The masks are with the server: this protocol predicts, and `virst pack` writes the zip to send."


@dataclass(frozen=True)
class Protocol:
    """
    What a number of a benchmark means.

    Args:
        name (`str`): Its name on the command line.
        dataset (`str`): Name of the set in the catalogue of `virst_hf.data`.
        split (`str` or `None`): Split of the set; `None` takes the only one that is there.
        config (`str`, *optional*): Configuration of the set.
        averaging (`str`, *optional*, defaults to `"expression"`):
            `"expression"` (mean over expressions, whatever the length of their videos), `"group_mean"` (unweighted
            mean of the groups' means), `"davis_official"` (mean over objects and annotators after matching) or
            `"image"` (gIoU and cIoU).
        expected_expressions (`int`, *optional*): Expressions of the released split, where known; another count is
            noted in the report.
        rule (`str`, *optional*): What empty masks and failing samples count, in words.
        server (`bool`, *optional*, defaults to `False`): Whether only the benchmark's server has the masks.
        groups (`tuple[str]`, *optional*): Expression types that are averaged with `"group_mean"`; others are left out.
        first_text_only (`bool`, *optional*, defaults to `False`): Take the first sentence of an image only.
        control_predictions (`bool`, *optional*, defaults to `False`): Also score predictions that need no model.
        question_config (`str`, *optional*): A second configuration of the set, with questions that are answered in
            text.
        options (`dict`, *optional*): Further arguments of `virst_hf.data.load`.

    Example:

    ```python
    >>> from virst_hf.evaluation import PROTOCOLS
    >>> PROTOCOLS["mevis-v1-valid_u"].split, PROTOCOLS["mevis-valid"].server
    ('valid_u', True)

    ```
    """

    name: str
    dataset: str
    split: str | None
    config: str | None = None
    averaging: str = "expression"
    expected_expressions: int | None = None
    rule: str = EXPRESSION_RULE
    server: bool = False
    groups: tuple[str, ...] = ()
    first_text_only: bool = False
    control_predictions: bool = False
    question_config: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


def _refer(dataset: str, split: str, count: int) -> Protocol:
    return Protocol(
        f"{dataset}-{split}", dataset, split, averaging="image", expected_expressions=count, rule=IMAGE_RULE
    )


def _shapes(split: str) -> Protocol:
    return Protocol(
        f"shapes-{split}", "shapes", split, config="rvos", control_predictions=True, question_config="video_qa"
    )


_ALL = (
    Protocol("mevis-v1-valid_u", "mevis", "valid_u", config="v1", expected_expressions=793),
    Protocol("mevis-v2-valid_u", "mevis", "valid_u", config="v2"),
    Protocol("mevis-valid", "mevis", "valid", config="v1", expected_expressions=2236, rule=SERVER_RULE, server=True),
    Protocol(
        "revos-valid",
        "revos",
        "valid",
        averaging="group_mean",
        rule=REVOS_RULE,
        groups=("referring", "reasoning"),
    ),
    Protocol(
        "ref-youtube-vos-valid",
        "ref-youtube-vos",
        "valid",
        expected_expressions=834,
        rule=SERVER_RULE,
        server=True,
    ),
    Protocol(
        "ref-davis17-expression",
        "ref-davis17",
        "valid",
        expected_expressions=244,
        rule=EXPRESSION_RULE + " Every expression is scored alone; void pixels (255) count as background.",
    ),
    Protocol(
        "ref-davis17-official",
        "ref-davis17",
        "valid",
        averaging="davis_official",
        expected_expressions=244,
        rule=OFFICIAL_RULE,
    ),
    Protocol(
        "reasonseg-val",
        "reasonseg",
        "val",
        averaging="image",
        expected_expressions=200,
        rule=IMAGE_RULE,
        first_text_only=True,
    ),
    Protocol(
        "reasonseg-test",
        "reasonseg",
        "test",
        averaging="image",
        expected_expressions=779,
        rule=IMAGE_RULE,
        first_text_only=True,
    ),
    _refer("refcoco", "val", 10834),
    _refer("refcoco", "testA", 5657),
    _refer("refcoco", "testB", 5095),
    _refer("refcoco+", "val", 10758),
    _refer("refcoco+", "testA", 5726),
    _refer("refcoco+", "testB", 4889),
    _refer("refcocog", "val", 4896),
    _refer("refcocog", "test", 9602),
    _shapes("valid"),
    _shapes("test"),
    Protocol("own", "own", None),
)
# Name -> protocol.
PROTOCOLS = {protocol.name: protocol for protocol in _ALL}


def get_protocol(name: str) -> Protocol:
    """A protocol by its name.

    Args:
        name (`str`): A key of `PROTOCOLS`.

    Returns:
        [`Protocol`]: The protocol.

    Raises:
        EvaluationError: There is none of that name; the message lists all.
    """
    if name not in PROTOCOLS:
        raise EvaluationError(f"There is no protocol {name!r}; expected one of {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]
