"""Tables of results, as texts."""

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["MAIN_SCORES", "markdown_table", "table_rows"]

# Columns of tables, where a result has them.
MAIN_SCORES = ("J", "F", "J&F", "gIoU", "cIoU", "A", "R", "A_published", "R_published")


def table_rows(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of a result: overall, groups, types and controls.

    Args:
        results (`dict`): The content of results.json.

    Returns:
        `tuple`: Names of the columns, and rows of texts.
    """
    named: list[tuple[str, Mapping[str, Any]]] = []
    groups = results.get("groups", {})
    if "overall" in groups:
        named.append(("overall (mean of groups)", groups["overall"]))
        named += [(name, scores) for name, scores in groups.items() if name != "overall"]
        named += [
            (f"{name}, each expression rounded", scores["rounded"])
            for name, scores in groups.items()
            if "rounded" in scores
        ]
    elif "J&F" in results:
        named.append(("all", {**results, "count": results["num_expressions"]}))
        named += results.get("per_type", {}).items()
    named += [(f"control: {control['meaning']}", control) for control in results.get("controls", {}).values()]
    columns = [name for name in MAIN_SCORES if any(scores.get(name) is not None for _, scores in named)]
    rows = [
        [name, str(scores.get("count", ""))]
        + ["" if scores.get(column) is None else f"{scores[column]:.2f}" for column in columns]
        for name, scores in named
    ]
    return ["", "expressions", *columns], rows


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; what would end a cell is escaped.

    Args:
        header (`Sequence[str]`): Names of the columns.
        rows (`Sequence[Sequence[str]]`): As many texts each.

    Returns:
        `str`: The table, with a line break at its end.

    Example:

    ```python
    >>> from virst_hf.evaluation.report import markdown_table
    >>> print(markdown_table(["", "J"], [["a|b", "50.00"]]), end="")
    |  | J |
    |---|---|
    | a\\|b | 50.00 |

    ```
    """

    def line(cells: Sequence[str]) -> str:
        cleaned = (" ".join(cell.split()).replace("\\", "\\\\").replace("|", "\\|") for cell in cells)
        return "| " + " | ".join(cell.replace("<", "&lt;") for cell in cleaned) + " |\n"

    return line(header) + "|" + "---|" * len(header) + "\n" + "".join(map(line, rows))
