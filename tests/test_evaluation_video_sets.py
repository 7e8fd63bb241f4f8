"""Every video protocol from the files of its release to the result, through the real builder of its set."""

import json
import zipfile

import pytest
from evaluation_fixtures import (
    SIZE,
    perfect_entries,
    write_ref_davis,
    write_ref_youtube_vos,
    write_revos,
    write_shapes,
)

from virst_hf.evaluation.pipeline import evaluate_model, score_run
from virst_hf.evaluation.predictions import PredictionStore
from virst_hf.evaluation.protocols import PROTOCOLS
from virst_hf.evaluation.samples import ANSWERS, load_samples
from virst_hf.evaluation.submission import pack_submission


def score_perfect(protocol, root, folder, change=None):
    """Score predictions that are the targets, but for what `change` does to them."""
    samples = load_samples(PROTOCOLS[protocol], root, cache_dir=str(folder / "cache"))
    store = PredictionStore(folder / "out")
    store.begin({"protocol": protocol}, {"root": str(root)})
    run_hash = store.read_run()["settings_hash"]
    for unit in samples.units:
        rows = samples.rows(unit)
        if unit.kind == ANSWERS:
            said = {row["expression_id"]: {"expression": row["expression"], "answer": "THREE"} for row in rows}
            store.write(unit, run_hash, said)
            continue
        entries = perfect_entries(rows)
        if change is not None:
            change(entries)
        store.write(unit, run_hash, entries, height=SIZE[0], width=SIZE[1], frames=rows[0]["frame_names"])
    return score_run(folder / "out", cache_dir=str(folder / "cache"), workers=1)


def test_revos(tmp_path, shared_model, processor):
    root = write_revos(tmp_path / "revos")
    results = score_perfect("revos-valid", root, tmp_path)
    groups = results["groups"]
    assert {name: group["count"] for name, group in groups.items()} == {"referring": 4, "reasoning": 2, "overall": 6}
    # With right masks everything is 100 but A as published, which no mask of 0 and 255 can reach.
    for name in ("J", "F", "J&F", "A", "R", "R_published"):
        assert [groups[group][name] for group in groups] == pytest.approx([100] * 3), name
    assert groups["overall"]["A_published"] < 100
    assert results["num_videos"] == 2 and results["num_expressions"] == 8 and results["no_target_accuracy"] == 1

    run = evaluate_model(
        "revos-valid", shared_model, processor, root, tmp_path / "run", cache_dir=str(tmp_path / "cache"), workers=1
    )
    assert run["failures"] == [] and run["num_expressions"] == 8
    names = sorted(path.name for path in (tmp_path / "run" / "predictions").iterdir())
    assert names == ["TAO%2Ftrain%2FCharades%2Fx.json", "UVO%2Fall%2F-a_b.json"]


def test_ref_davis(tmp_path):
    root = write_ref_davis(tmp_path / "davis17")

    def swap(entries):
        """The masks of the two objects exchanged."""
        for k in range(4):
            one, other = entries[str(k)], entries[str(4 + k)]
            one["masks"], other["masks"] = other["masks"], one["masks"]

    alone = score_perfect("ref-davis17-expression", root, tmp_path / "a", swap)
    assert alone["J"] == 0 and alone["num_expressions"] == 8
    official = score_perfect("ref-davis17-official", root, tmp_path / "b", swap)
    # The third object, which no sentence names, is in the first frame, so it counts, and nothing was predicted for it.
    assert official["J"] == pytest.approx(200 / 3) and official["num_expressions"] == 8
    assert set(official["per_type"]) == {f"annotator {k}" for k in range(1, 5)}


def test_ref_youtube_vos(tmp_path, shared_model, processor):
    root, cache = write_ref_youtube_vos(tmp_path / "refytvos"), str(tmp_path / "cache")
    results = evaluate_model(
        "ref-youtube-vos-valid", shared_model, processor, root, tmp_path / "out", cache_dir=cache, workers=1
    )
    assert results["num_videos"] == 1 and results["num_expressions"] == 11 and "J&F" not in results
    with zipfile.ZipFile(pack_submission("ref-youtube-vos-valid", tmp_path / "out", cache_dir=cache)) as archive:
        assert set(archive.namelist()) == {
            f"Annotations/0062f687f1/{e}/{frame}.png" for e in range(11) for frame in ("00000", "00005")
        }


def test_shapes(tmp_path, shared_model, processor):
    root = write_shapes(tmp_path / "shapes")
    results = score_perfect("shapes-test", root, tmp_path)
    assert results["J&F"] == 100 and results["qa_accuracy"] == 0.5 and results["no_target_accuracy"] == 1
    assert (results["num_videos"], results["num_expressions"], results["num_questions"]) == (3, 12, 6)
    controls = results["controls"]
    assert set(controls) == {"union_of_objects", "random_object", "other_expression"}
    assert all(0 <= control["J&F"] < 90 and control["count"] == 12 for control in controls.values())
    run = evaluate_model(
        "shapes-test", shared_model, processor, root, tmp_path / "run", cache_dir=str(tmp_path / "cache"), workers=1
    )
    assert run["failures"] == [] and run["qa_accuracy"] == 0
    answers = json.loads((tmp_path / "run" / "answers" / "00ab0.json").read_text())
    assert len(answers["expressions"]) == 2
