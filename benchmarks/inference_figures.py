"""Writes what `inference.py`, `speed_switches.py` and `stream_memory.py` found into the page of the documentation.

    python benchmarks/inference_figures.py result.json [more.json ...] --page docs/inference.md

The part of the page between its two marks is replaced by a table for each file; nothing else is touched. What stands
beside a result, in `result.details.json`, goes into its heading.
"""

import argparse
import json
from pathlib import Path
from typing import Any

__all__ = ["figures", "put_into", "read_result"]

BEGIN, END = "<!-- figures: begin (benchmarks/inference_figures.py) -->", "<!-- figures: end -->"
RATIOS = ("release/exact", "exact/fast", "exact/lower bound")


def read_result(path: Path) -> dict[str, Any]:
    """A result, and under "details" what stands beside it.

    Args:
        path (`pathlib.Path`): The file that a benchmark wrote.

    Returns:
        `dict`: Its content.
    """
    beside = path.with_name(f"{path.stem}.details.json")
    details = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    return {**json.loads(path.read_text(encoding="utf-8")), "details": details}


def figures(content: dict[str, Any]) -> str:
    """A result as Markdown.

    Args:
        content (`dict`): What `read_result` gave of one of the three benchmarks.

    Returns:
        `str`: A heading and a table, or two.
    """
    where = f"{content['device']}, {content['threads']} thread{'s' if content['threads'] != 1 else ''}"
    if "switches" in content:
        return switches(content, where)
    if "stream_mb" in content:
        lines = [f"### Memory of a stream, size `{content['size']}`, {where}", ""]
        lines += ["| frames | peak RSS of fresh processes, MB | median |", "| --- | --- | --- |"]
        for frames, found in content["stream_mb"].items():
            lines.append(f"| {frames} | {', '.join(f'{x:.0f}' for x in found)} | {content['median_mb'][frames]:.0f} |")
        first, last = content["mean_rss_mb"]
        lines += [
            "",
            f"Over {content['videos']} videos: mean RSS {first:.0f} MB of the first half, {last:.0f} MB of the",
        ]
        return "\n".join([*lines, "second."])
    details = content.get("details", {})
    fusion = "" if details.get("initial_fusion", True) else ", without the initial fusion"
    lines = [f"### Size `{content['size']}`, {where}{fusion}", ""]
    lines += [
        "| frames | expressions | mode | seconds | frames/s | peak MB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    rest = details.get("rows", [{} for _ in content["rows"]])
    for row, more in zip(content["rows"], rest, strict=True):
        mode = row["mode"] + (" (of one, multiplied)" if more.get("scaled") else "")
        cells = [row["frames"], row["expressions"], mode, f"{row['seconds']:.2f}", f"{row['fps']:.2f}"]
        lines.append(f"| {' | '.join(map(str, [*cells, round(row['peak_rss_mb'])]))} |")
    lines += [
        "",
        "| frames x expressions | release/exact | exact/fast | exact/lower bound |",
        "| --- | --- | --- | --- |",
    ]
    for key, ratios in content["ratios"].items():
        found = [ratios.get(name) for name in RATIOS]
        lines.append(f"| {key} | {' | '.join('-' if x is None else f'{x:.2f}' for x in found)} |")
    return "\n".join(lines)


def switches(content: dict[str, Any], where: str) -> str:
    """What `benchmarks/speed_switches.py` wrote, as a table."""
    count = f"{content['frames']} frames, expressions: {content['expressions']}"
    lines = [
        f"### Switches, {where}",
        "",
        f"Speed at size `{content['size']}`, {count}; J&F of virst-tiny on {content['videos']} videos of Shapes.",
        "",
        "| switch | seconds | times exact | peak MB | J&F | points |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    names = (("seconds", ".2f"), ("times_exact", ".2f"), ("peak_rss_mb", ".0f"), ("J&F", ".1f"), ("points", "+.1f"))
    for row in content["switches"]:
        cells = [format(row[name], form) if name in row else "-" for name, form in names]
        lines.append(f"| {' | '.join((row['switch'], *cells))} |")
    return "\n".join(lines)


def put_into(page: str, parts: list[str]) -> str:
    """A page with its figures replaced.

    Args:
        page (`str`): The page; both marks are in it once.
        parts (`list[str]`): What `figures` gave.

    Returns:
        `str`: The new page.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise SystemExit(f"The page has no place for figures; expected the lines {BEGIN} and {END}.")
    before, rest = page.split(BEGIN)
    return "\n\n".join([before + BEGIN, *parts, END + rest.split(END)[1]])


def main(arguments: list[str] | None = None) -> None:
    """Read the files and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--page", type=Path, required=True)
    args = parser.parse_args(arguments)
    parts = [figures(read_result(path)) for path in args.results]
    args.page.write_text(put_into(args.page.read_text(encoding="utf-8"), parts), encoding="utf-8")


if __name__ == "__main__":
    main()
