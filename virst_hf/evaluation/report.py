"""The files of a result: results.json for programs, results.md for a page, report.html to look at."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..rendering import replacing, write_json
from .pictures import clip_pictures
from .predictions import PredictionStore
from .report_html import render_page
from .samples import SampleSet
from .tables import markdown_table, table_rows

__all__ = ["PAGE_FILE", "RECORDS_FILE", "RESULTS_FILE", "TABLE_FILE", "remove_report", "results_text", "write_report"]

RESULTS_FILE, RECORDS_FILE, TABLE_FILE, PAGE_FILE = "results.json", "expressions.jsonl", "results.md", "report.html"


def remove_report(folder: Path) -> None:
    """Remove an earlier result: where predictions change or cannot be scored, its numbers must not stay as if current.

    Args:
        folder (`pathlib.Path`): Folder of the run.
    """
    for name in (RESULTS_FILE, PAGE_FILE, TABLE_FILE, RECORDS_FILE):
        (folder / name).unlink(missing_ok=True)


def write_report(
    store: PredictionStore, samples: SampleSet, results: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> None:
    """Write all files of a result, each whole or not at all.

    Args:
        store ([`PredictionStore`]): The folder of the run.
        samples ([`SampleSet`]): The data set, for the pictures.
        results (`dict`): The content of results.json.
        records (`Sequence[dict]`): Scores of the expressions; empty where nothing could be scored.
    """
    folder = store.folder
    # First: a reader who finds results.json finds the rest as it belongs to it, or an older rest is overwritten next.
    _write_text(folder / RECORDS_FILE, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    _write_text(folder / TABLE_FILE, results_text(results))
    pictures = clip_pictures(store, samples, records, results["settings_hash"])
    _write_text(folder / PAGE_FILE, render_page(results, records, pictures))
    write_json(folder / RESULTS_FILE, results)


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def results_text(results: Mapping[str, Any]) -> str:
    """A result as Markdown: what was measured, the table, notes and failures.

    Args:
        results (`dict`): The content of results.json.

    Returns:
        `str`: The text.
    """
    title = f"# {results['protocol']}" + (" (partial)" if results["partial"] else "")
    model = " ".join(results["model"].split()) or "(unnamed)"
    lines = [
        title,
        "",
        f"Model `{model.replace('`', '')}`, hash `{results['model_hash']}`; {results['num_expressions']} expressions "
        f"of {results['num_videos']} videos.",
        "",
        results["rule"],
        "",
    ]
    header, rows = table_rows(results)
    if rows:
        lines += [markdown_table(header, rows)]
    for name, label in (("no_target_accuracy", "No-target accuracy"), ("qa_accuracy", "Right answers to questions")):
        if name in results:
            lines += [f"{label}: {100 * results[name]:.2f} %", ""]
    lines += [f"Note: {note}\n" for note in results["notes"]]
    if results["failures"]:
        failed = [[entry["video"], entry["expression_id"], entry["error"]] for entry in results["failures"]]
        lines += [markdown_table(["video", "expression", "error"], failed)]
    return "\n".join(lines).rstrip() + "\n"
