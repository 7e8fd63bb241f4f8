"""Writes docs/replication.md from the files in `examples/tiny/results`: `python examples/tiny/replication_page.py`."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from virst_hf.rendering import replacing

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent.parent / "docs" / "replication.md"
TYPES = ("attribute", "motion", "relation", "plural", "reasoning", "no_target")
Results = Mapping[str, Mapping[str, Any]]

HEAD = """# The tables of the supplement, on Shapes

The ablations of the paper's supplement, repeated with a model of five million parameters on the test split of
[Shapes](data/shapes.md): {videos} videos of it (seed {seed}), which no training had. One run each, so a point or two
says little. This page is written by `examples/tiny/replication_page.py` from the files in
`examples/tiny/results`, which `examples/tiny/replication.py` makes.

J, F and J&F are from 0 to 100, means over expressions. The paper's numbers are those of the 7B model on MeViS
(valid_u): what can be compared is the order of the rows, not the values.
"""
STAGES = """
## After each stage (table 8)

From the pre-trained parts, before any prompt was turned into a mask (see [virst-tiny](tiny.md)). Each chain of
stages takes {share} of the steps of the recipe: {steps}.

| | J | F | J&F | J&F in the paper |
|---|---|---|---|---|
{rows}
"""
CHAINS = """
## Combinations of stages (table 9), and the initial fusion

All chains take the same number of steps. Without the first stage its steps go to the second; with the last stage only
all steps go to it. The parts were pre-trained with both fusions, so the chain without the initial fusion must first
get used to the lack of it.

| | J | F | J&F | J&F in the paper |
|---|---|---|---|---|
{rows}
"""
VARIANTS = """
## Other ways to run virst-tiny (tables 6 and 10)

Nothing is trained again. Alpha is the stride of the anchors among the frames for the language model: eight here, so
alpha 2 gives four anchors, 4 two, and 6 two. Frames in a second and peak memory (the whole process, with Python and
torch) are those of {threads} threads of a CPU, one expression at a time; the cores had other work as well, so a fifth
more or less says nothing. Only the single mask was ever trained. The release takes the best of three masks by its
predicted IoU; SAM 2 can do so where the single mask is not stable.

| | J | F | J&F | frames a second | peak memory |
|---|---|---|---|---|---|
{rows}
"""
BY_TYPE = """
## J&F by type of expression

| | {types} | no target said so |
|---|{lines}---|
{rows}
"""
# Row of each table: its file, its name, and J&F in the paper.
STAGE_ROWS = (
    ("three_stages.alignment", "after stage 1", "60.6"),
    ("three_stages.few_image", "after stage 2", "64.4"),
    ("three_stages.propagation", "after stage 3", "72.6"),
)
CHAIN_ROWS = (
    ("three_stages.propagation", "all three stages", "72.6"),
    ("without_alignment.propagation", "without stage 1", "65.8"),
    ("propagation_only.propagation", "stage 3 only", "65.8"),
    ("without_initial_fusion.propagation", "all three, without the initial fusion", ""),
)
VARIANT_ROWS = (
    ("alpha_2", "alpha 2, single mask (virst-tiny)", ""),
    ("alpha_4", "alpha 4", ""),
    ("alpha_6", "alpha 6", ""),
    ("multimask", "best of three masks", ""),
    ("stability", "best of three, only where the single mask is not stable", ""),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the rows")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page to write")
    args = parser.parse_args()
    text = page(read(args.results))
    with replacing(args.page) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"Wrote {args.page}")


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """The rows, by name."""
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return {row["row"]: row for row in rows}


def page(results: Results) -> str:
    """The page. Rows that have no file are left out."""
    some = next(iter(results.values()))
    text = HEAD.format(videos=some["test_videos"], seed=some["test_seed"])
    stages = table(results, STAGE_ROWS)
    if stages:
        last = results[[row[0] for row in STAGE_ROWS if row[0] in results][-1]]
        steps = ", ".join(f"{count} in `{stage}`" for stage, count in last["steps"].items())
        text += STAGES.format(share=f"{100 * last['share']:.0f} %", steps=steps, rows=stages)
    chains = table(results, CHAIN_ROWS)
    if chains:
        text += CHAINS.format(rows=chains)
    variants = table(results, VARIANT_ROWS, speed=True)
    if variants:
        text += VARIANTS.format(threads=some["threads"], rows=variants)
    return text + by_type(results)


def table(results: Results, rows: Sequence[tuple[str, str, str]], speed: bool = False) -> str:
    """Lines of a table."""
    lines = []
    for name, title, paper in rows:
        if name not in results:
            continue
        row = results[name]
        cells = [title, *(f"{row[key]:.1f}" for key in ("J", "F", "J&F"))]
        cells += [f"{row['frames_a_second']:.0f}", f"{row['peak_memory_mb']:.0f} MB"] if speed else [paper]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def by_type(results: Results) -> str:
    """The table of types, with all rows there are."""
    titles = {name: title for name, title, _ in (*VARIANT_ROWS, *CHAIN_ROWS, *STAGE_ROWS) if name in results}
    lines = []
    for name, title in titles.items():
        row = results[name]
        cells = [
            title,
            *(f"{row['per_type'][kind]:.1f}" for kind in TYPES),
            f"{100 * row['no_target_accuracy']:.0f} %",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    types = " | ".join(kind.replace("_", "-") for kind in TYPES)
    return BY_TYPE.format(types=types, lines="---|" * len(TYPES), rows="\n".join(lines))


if __name__ == "__main__":
    main()
