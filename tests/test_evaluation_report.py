"""What is written about a run: the page, the tables, and the comparison of two runs."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from evaluation_fixtures import SIZE, box, perfect_entries, rle_track, write_mevis

from virst_hf.errors import EvaluationError
from virst_hf.evaluation.comparison import bootstrap_interval, compare_runs
from virst_hf.evaluation.pipeline import score_run
from virst_hf.evaluation.predictions import PredictionStore
from virst_hf.evaluation.protocols import PROTOCOLS
from virst_hf.evaluation.report import results_text
from virst_hf.evaluation.samples import load_samples
from virst_hf.evaluation.tables import markdown_table

PROTOCOL = "mevis-v1-valid_u"
HOSTILE = '<script>alert("x")</script> | & `m`'


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_mevis(tmp_path_factory.mktemp("mevis"), num_videos=6)


def make_run(folder, root, cache, shift=0, model="model"):
    """A run whose masks are the targets, those of "the red square" moved to the right."""
    samples = load_samples(PROTOCOLS[PROTOCOL], root, cache_dir=cache)
    store = PredictionStore(folder)
    settings = {"protocol": PROTOCOL, "model_hash": f"{shift:032d}"}
    store.begin(settings, {"root": str(root), "model": model, "device": "cpu", "versions": {"torch": "2"}})
    run_hash = store.read_run()["settings_hash"]
    for unit in samples.units:
        rows = samples.rows(unit)
        found = perfect_entries(rows)
        for key, text in zip(unit.expression_ids, unit.expressions, strict=True):
            if text == "the red square" and shift:
                left = [2 + 2 * t + shift for t in range(unit.num_frames)]
                found[key]["masks"] = rle_track([box(3, x, 15, x + 12) for x in left])
        store.write(unit, run_hash, found, height=SIZE[0], width=SIZE[1], frames=rows[0]["frame_names"])
    return score_run(folder, cache_dir=cache, workers=1)


class PageReader(HTMLParser):
    """Collects tags, pictures and text, and checks that tags are closed in their order."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.pictures, self.text = [], set(), [], []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "img":
            self.pictures.append(dict(attrs)["src"])
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_stands_alone_and_escapes_every_text(root, tmp_path, cache):
    results = make_run(tmp_path / "out", root, cache, shift=6, model=HOSTILE)
    page = (tmp_path / "out" / "report.html").read_text()
    reader = PageReader()
    reader.feed(page)
    assert reader.open == [] and not {"script", "b<", "link", "iframe"} & reader.tags
    text = " ".join("".join(reader.text).split())
    assert HOSTILE in text and "the one that goes | away <b>" in text and "&" in text
    # Six videos: three of the worst and three of the best, three frames each, all inside of the page.
    assert len(reader.pictures) == 18 and all(src.startswith("data:image/jpeg;base64,") for src in reader.pictures)
    assert not re.search(r"""(src|href)=["']?http""", page)
    assert results["model_hash"] in text and "torch 2" in text and PROTOCOLS[PROTOCOL].rule in text
    assert f"{results['J&F']:.1f}" in text and "width: 100.00%" in page
    text = (tmp_path / "out" / "results.md").read_text()
    assert "| motion | 5 | 100.00 | 100.00 | 100.00 |" in text and "No-target accuracy: 100.00 %" in text


def test_a_table_of_hostile_texts():
    table = markdown_table(["", "a"], [["x|y\n<b>", "\\"]])
    assert table == "|  | a |\n|---|---|\n| x\\|y &lt;b> | \\\\ |\n"


def test_pictures_of_frames_that_are_gone_are_left_out(tmp_path, cache):
    root = write_mevis(tmp_path / "data", num_videos=2)
    make_run(tmp_path / "out", root, cache)
    (root / "valid_u" / "JPEGImages" / "00ab0" / "00001.jpg").write_bytes(b"damaged")
    results = score_run(tmp_path / "out", cache_dir=cache, workers=1)
    assert results["J&F"] == 100
    assert (tmp_path / "out" / "report.html").read_text().count("<img") == 3


def test_comparison_of_two_runs(root, tmp_path, cache):
    make_run(tmp_path / "a", root, cache, shift=6)
    make_run(tmp_path / "b", root, cache)
    rows = {(row["name"], row["score"]): row for row in compare_runs(tmp_path / "a", tmp_path / "b")}
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in "ab"]
    row = rows["all", "J&F"]
    assert (row["first"], row["second"]) == pytest.approx([result["J&F"] for result in results])
    assert row["difference"] == pytest.approx(row["second"] - row["first"]) and row["difference"] > 0
    assert 0 <= row["low"] <= row["difference"] <= row["high"]
    assert rows["attribute", "J&F"]["first"] == pytest.approx(results[0]["per_type"]["attribute"]["J&F"])
    # Nothing but the red square differs.
    motion = rows["motion", "J&F"]
    assert (motion["difference"], motion["low"], motion["high"]) == (0, 0, 0)
    assert rows["no target", "accuracy"]["second"] == 100
    assert compare_runs(tmp_path / "a", tmp_path / "b") == list(rows.values())
    back = compare_runs(tmp_path / "b", tmp_path / "a")[0]
    assert back["difference"] == -row["difference"]


def test_runs_that_cannot_be_compared(root, tmp_path, cache):
    make_run(tmp_path / "a", root, cache)
    with pytest.raises(EvaluationError, match="has no results.json"):
        compare_runs(tmp_path / "a", tmp_path)
    make_run(tmp_path / "b", root, cache)
    path = tmp_path / "b" / "results.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "protocol": "mevis-v2-valid_u"}))
    with pytest.raises(EvaluationError, match="protocols differ: mevis-v1-valid_u and mevis-v2-valid_u"):
        compare_runs(tmp_path / "a", tmp_path / "b")
    path.write_text(json.dumps(content))
    records = tmp_path / "b" / "expressions.jsonl"
    lines = records.read_text().splitlines()
    records.write_text("\n".join(lines[1:]) + "\n")
    with pytest.raises(EvaluationError, match="1 are in one of them only, 00ab0 0 first"):
        compare_runs(tmp_path / "a", tmp_path / "b")
    records.write_text('{"kind": 1}\n')
    with pytest.raises(EvaluationError, match="does not hold the scores"):
        compare_runs(tmp_path / "a", tmp_path / "b")
    records.write_text("{")
    with pytest.raises(EvaluationError, match="cannot be read"):
        compare_runs(tmp_path / "a", tmp_path / "b")


def write_results(folder, protocol, records):
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps({"protocol": protocol}))
    common = {"kind": "masks", "expression": "x"}
    records = [{**common, "expression_id": str(i), **record} for i, record in enumerate(records)]
    (folder / "expressions.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def absent(kind, score):
    return {"no_target": True, "empty_prediction": bool(score)} if kind == "no_target" else {}


def test_comparison_of_groups_is_of_the_mean_of_groups(tmp_path):
    kinds = ["referring"] * 3 + ["reasoning", "no_target"]
    for name, scores in (("a", [0.0, 0.0, 0.0, 0.0, 0.0]), ("b", [1.0, 1.0, 1.0, 0.0, 1.0])):
        records = [
            {"video": f"v{i}", "type": kind, "J": score, "F": score, **absent(kind, score)}
            for i, (kind, score) in enumerate(zip(kinds, scores, strict=True))
        ]
        write_results(tmp_path / name, "revos-valid", records)
    rows = {(row["name"], row["score"]): row for row in compare_runs(tmp_path / "a", tmp_path / "b")}
    assert rows["overall", "J&F"]["difference"] == 50 and rows["overall", "J&F"]["count"] == 4
    assert rows["referring", "J&F"]["difference"] == 100 and rows["reasoning", "J&F"]["difference"] == 0
    assert ("no_target", "J&F") not in rows and rows["no target", "accuracy"]["difference"] == 100


def test_comparison_of_images_is_of_giou_and_ciou(tmp_path):
    for name, found in (("a", [0, 0]), ("b", [100, 0])):
        records = [
            {"video": f"v{i}", "type": "short", "J": 0, "F": 0, "intersection": both, "union": union}
            for i, (both, union) in enumerate(zip(found, [100, 300], strict=True))
        ]
        write_results(tmp_path / name, "reasonseg-val", records)
    rows = {(row["name"], row["score"]): row for row in compare_runs(tmp_path / "a", tmp_path / "b")}
    assert rows["all", "gIoU"]["difference"] == pytest.approx(50, abs=1e-3)
    assert rows["all", "cIoU"]["difference"] == pytest.approx(25) == rows["short", "cIoU"]["second"]
    # Of two images the draws hold the first twice, once or never.
    assert (rows["all", "cIoU"]["low"], rows["all", "cIoU"]["high"]) == pytest.approx((0, 100))


def test_the_interval_is_that_of_the_mean():
    # Differences of 100 videos with one expression each: the interval of a mean of independent numbers is known.
    differences = np.random.default_rng(0).normal(0.05, 0.2, 100)
    sums = np.zeros((2, 1, 2, 100))
    sums[:, :, 1] = 1
    sums[1, 0, 0] = differences
    low, high = bootstrap_interval(sums)
    half = 1.96 * differences.std() / 10
    assert low == pytest.approx(100 * (differences.mean() - half), abs=0.6)
    assert high == pytest.approx(100 * (differences.mean() + half), abs=0.6)


def test_results_text_of_groups_and_failures():
    group = {"J": 50.0, "F": 70.0, "J&F": 60.0, "A": 90.0, "R": 80.0, "A_published": 40.0, "R_published": 10.0}
    groups = {"referring": group | {"count": 3, "rounded": group}, "overall": group | {"count": 3, "rounded": group}}
    results = {
        "protocol": "revos-valid",
        "partial": False,
        "model": "",
        "model_hash": "ab",
        "num_expressions": 3,
        "num_videos": 1,
        "rule": "rule",
        "notes": ["look"],
        "groups": groups,
        "failures": [{"video": "UVO/a", "expression_id": "0", "expression": "x", "error": "OSError: gone"}],
        "qa_accuracy": 0.5,
    }
    text = results_text(results)
    assert "| overall (mean of groups) | 3 | 50.00 | 70.00 | 60.00 | 90.00 | 80.00 | 40.00 | 10.00 |" in text
    assert "| UVO/a | 0 | OSError: gone |" in text and "50.00 %" in text and "Note: look" in text
