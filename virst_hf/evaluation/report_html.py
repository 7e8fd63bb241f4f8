"""The page of a result: one HTML file with style and pictures inside, every text escaped."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from .pictures import ClipPicture
from .tables import table_rows

__all__ = ["render_page"]

# More rows make browsers slow; expressions.jsonl has all of them.
MAX_ROWS = 3000

STYLE = """
:root { --ink: #1c2430; --soft: #5c6675; --line: #dde2e8; --paper: #ffffff; --wash: #f4f6f8;
  --right: #009e73; --missed: #e65500; --extra: #0072b2; --bar: #3b6fb6; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #9aa5b4; --line: #333c48; --paper: #161b22;
  --wash: #1f2630; --bar: #6f9fe0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 28px 20px 60px; color: var(--ink); background: var(--paper);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 26px; margin: 0; } h2 { font-size: 18px; margin: 36px 0 10px; }
p { margin: 6px 0; } .soft { color: var(--soft); } code { font-size: 13px; overflow-wrap: anywhere; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin: 18px 0; }
.tile { background: var(--wash); border: 1px solid var(--line); border-radius: 8px; padding: 10px 16px;
  min-width: 110px; }
.tile b { display: block; font-size: 24px; line-height: 1.25; } .tile span { color: var(--soft); font-size: 13px; }
.note { border-left: 4px solid var(--missed); background: var(--wash); padding: 8px 12px; margin: 8px 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: left; padding: 5px 10px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.text { overflow-wrap: anywhere; }
.bars { display: grid; grid-template-columns: minmax(90px, max-content) 1fr max-content; gap: 8px 12px;
  align-items: center; }
.track { background: var(--wash); border: 1px solid var(--line); border-radius: 4px; height: 18px; }
.fill { background: var(--bar); border-radius: 3px; height: 100%; }
.bars .n { font-variant-numeric: tabular-nums; }
.clip { border: 1px solid var(--line); border-radius: 8px; padding: 10px 12px; margin: 10px 0; }
.frames { display: flex; flex-wrap: wrap; gap: 10px; margin-top: 8px; }
figure { margin: 0; width: 260px; max-width: 100%; }
figure img { display: block; border-radius: 4px; width: 100%; }
figcaption { color: var(--soft); font-size: 12px; }
.key i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin: 0 5px 0 14px; }
.key i:first-child { margin-left: 0; }
details summary { cursor: pointer; }
"""

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ results.protocol }}</title>
<style>{{ style }}</style>
</head>
<body>
<h1>{{ results.protocol }}</h1>
<p class="soft">{{ results.model or "(unnamed model)" }} &middot; {{ results.num_expressions }} expressions of
{{ results.num_videos }} videos{% if results.num_questions %} &middot; {{ results.num_questions }} questions
{% endif %}</p>
{% for note in results.notes %}<p class="note">{{ note }}</p>{% endfor %}
{% if tiles %}<div class="tiles">
{% for label, value in tiles %}<div class="tile"><b>{{ value }}</b><span>{{ label }}</span></div>
{% endfor %}</div>{% endif %}
{% if table %}
<h2>Scores</h2>
<div class="scroll"><table>
<tr>{% for name in header %}<th{% if not loop.first %} class="n"{% endif %}>{{ name }}</th>{% endfor %}</tr>
{% for row in table %}<tr>{% for cell in row %}<td{% if not loop.first %} class="n"{% endif %}>{{ cell }}</td>
{% endfor %}</tr>
{% endfor %}</table></div>
{% endif %}
{% if bars %}
<h2>{{ bar_score }} by type of expression</h2>
<div class="bars">
{% for label, value, count in bars %}<div>{{ label }}</div>
<div class="track"><div class="fill" style="width: {{ "%.2f"|format(value) }}%"></div></div>
<div class="n">{{ "%.1f"|format(value) }} <span class="soft">({{ count }})</span></div>
{% endfor %}</div>
{% endif %}
{% if results.failures %}
<h2>Failed samples</h2>
<div class="scroll"><table><tr><th>video</th><th>expression</th><th>error</th></tr>
{% for entry in results.failures %}<tr><td class="text">{{ entry.video }}</td>
<td class="text">{{ entry.expression_id }}: {{ entry.expression }}</td><td class="text">{{ entry.error }}</td></tr>
{% endfor %}</table></div>
{% endif %}
{% for group, title in (("worst", "The worst clips"), ("best", "The best clips")) %}
{% set clips = pictures|selectattr("group", "equalto", group)|list %}
{% if clips %}
<h2>{{ title }}</h2>
<p class="key soft"><i style="background: var(--right)"></i>right<i style="background: var(--missed)"></i>missed<i
 style="background: var(--extra)"></i>too much</p>
{% for clip in clips %}<div class="clip">
<div>&ldquo;{{ clip.record.expression }}&rdquo;</div>
<div class="soft">{{ clip.record.video }}, expression {{ clip.record.expression_id }}, {{ clip.record.type }} &middot;
J {{ "%.1f"|format(100 * clip.record.J) }}, F {{ "%.1f"|format(100 * clip.record.F) }}</div>
<div class="frames">{% for name, address in clip.frames %}<figure><img src="{{ address }}" alt="frame {{ name }}">
<figcaption>frame {{ name }}</figcaption></figure>{% endfor %}</div>
</div>
{% endfor %}{% endif %}{% endfor %}
{% if rows %}
<h2>Expressions</h2>
{% if hidden %}<p class="soft">The first {{ rows|length }}; expressions.jsonl has {{ hidden }} more.</p>{% endif %}
<details{% if rows|length <= 60 %} open{% endif %}><summary>{{ rows|length }} rows, the worst first</summary>
<div class="scroll"><table>
<tr><th>video</th><th>id</th><th>expression</th><th>type</th><th class="n">J</th><th class="n">F</th>
<th class="n">J&amp;F</th></tr>
{% for row in rows %}<tr><td class="text">{{ row.video }}</td><td>{{ row.expression_id }}</td>
<td class="text">{{ row.expression }}{% if row.error %} <b>(failed)</b>{% endif %}</td><td>{{ row.type }}</td>
<td class="n">{{ "%.1f"|format(100 * row.J) }}</td><td class="n">{{ "%.1f"|format(100 * row.F) }}</td>
<td class="n">{{ "%.1f"|format(50 * (row.J + row.F)) }}</td></tr>
{% endfor %}</table></div></details>
{% endif %}
{% if answers %}
<h2>Questions</h2>
<details{% if answers|length <= 60 %} open{% endif %}><summary>{{ answers|length }} rows, wrong ones first</summary>
<div class="scroll"><table>
<tr><th>video</th><th>question</th><th>expected</th><th>answer</th></tr>
{% for row in answers %}<tr><td class="text">{{ row.video }}</td><td class="text">{{ row.expression }}</td>
<td class="text">{{ row.expected }}</td><td class="text">{% if row.error %}(failed)
{% else %}{{ row.answer }}{% endif %}
{% if not row.right %}<b>&times;</b>{% endif %}</td></tr>
{% endfor %}</table></div></details>
{% endif %}
<h2>How this was measured</h2>
<p>{{ results.rule }}</p>
<div class="scroll"><table>
{% for name, value in facts %}<tr><th>{{ name }}</th><td class="text"><code>{{ value }}</code></td></tr>
{% endfor %}</table></div>
</body>
</html>
"""


def render_page(
    results: Mapping[str, Any], records: Sequence[Mapping[str, Any]], pictures: Sequence[ClipPicture]
) -> str:
    """The page of a result.

    Args:
        results (`dict`): The content of results.json.
        records (`Sequence[dict]`): Scores of the expressions and questions.
        pictures (`Sequence[ClipPicture]`): The best and the worst clips.

    Returns:
        `str`: HTML. Every text of the data set, the model and its name is escaped.
    """
    header, table = table_rows(results)
    bar_score = "gIoU" if "gIoU" in results else "J&F"
    masks = [record for record in records if "J" in record]
    masks.sort(key=lambda record: record["J"] + record["F"])
    answers = sorted((record for record in records if "right" in record), key=lambda record: record["right"])
    # StrictUndefined would refuse the fields that only some records have.
    rows = [{"error": None, **record} for record in masks[:MAX_ROWS]]
    return (
        _environment()
        .from_string(TEMPLATE)
        .render(
            results={"num_questions": 0, **results},
            style=Markup(STYLE),
            header=header,
            table=table,
            tiles=_tiles(results),
            bars=[(kind, scores[bar_score], scores["count"]) for kind, scores in results.get("per_type", {}).items()],
            bar_score=bar_score,
            pictures=pictures,
            rows=rows,
            hidden=len(masks) - len(rows),
            answers=[{"error": None, **record} for record in answers[:MAX_ROWS]],
            facts=_facts(results),
        )
    )


def _environment() -> Environment:
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)


def _tiles(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The large numbers at the top."""
    tiles = [
        (name, f"{results[name]:.1f}")
        for name in ("J&F", "J", "F", "gIoU", "cIoU")
        if isinstance(results.get(name), float)
    ]
    for name, label in (("no_target_accuracy", "no-target accuracy"), ("qa_accuracy", "right answers")):
        if name in results:
            tiles.append((label, f"{100 * results[name]:.1f} %"))
    return tiles


def _facts(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What identifies the run."""
    facts = [(name.replace("_", " "), str(results[name])) for name in ("dataset", "config", "split", "averaging")]
    facts += [("model", results["model"]), ("model hash", results["model_hash"]), ("device", results["device"])]
    facts.append(("settings", json.dumps(results["settings"], sort_keys=True)))
    for name, label in (("versions", "predicted with"), ("scored_with", "scored with")):
        facts.append((label, ", ".join(f"{key} {value}" for key, value in results[name].items())))
    return facts
