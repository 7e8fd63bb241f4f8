"""Golden cases of scoring: averages, empty masks, failures, ReVOS, the official Ref-DAVIS17 protocol and images."""

import json

import datasets
import numpy as np
import pytest
from evaluation_fixtures import SIZE, box, perfect_entries, rle_track
from PIL import Image

from virst_hf.data.records import make_row, record_features
from virst_hf.errors import EvaluationError
from virst_hf.evaluation.controls import fixed_choice, other_row
from virst_hf.evaluation.predictions import PredictionStore
from virst_hf.evaluation.protocols import PROTOCOLS, get_protocol
from virst_hf.evaluation.samples import make_samples
from virst_hf.evaluation.scoring import score_samples
from virst_hf.evaluation.summary import summarise

FULL = box(0, 0, *SIZE)
LEFT, RIGHT = box(0, 0, SIZE[0], SIZE[1] // 2), box(0, SIZE[1] // 2, *SIZE)


def row(video, key, masks, objects=(1,), kind=None, ignore=None, **fields):
    names = [f"{t:05d}" for t in range(len(masks))]
    return make_row(
        video_id=video,
        expression_id=key,
        expression=f"expression {key}",
        frame_names=names,
        frame_paths=fields.pop("paths", [f"/none/{name}.jpg" for name in names]),
        height=SIZE[0],
        width=SIZE[1],
        object_ids=list(objects),
        masks=rle_track(masks),
        ignore_masks=None if ignore is None else rle_track(ignore),
        category=fields.pop("category", "rvos"),
        expression_type=kind,
        source="test",
        split="valid",
        **fields,
    )


def evaluate(tmp_path, protocol_name, rows, predictions, workers=1):
    """Store predictions {(video, expression): masks or text of an error} and score them."""
    protocol = get_protocol(protocol_name)
    samples = make_samples(protocol, datasets.Dataset.from_list(rows, features=record_features()))
    store = PredictionStore(tmp_path / "out")
    store.begin({"protocol": protocol_name}, {})
    run_hash = store.read_run()["settings_hash"]
    for unit in samples.units:
        found = perfect_entries(samples.rows(unit))
        for (video, key), masks in predictions.items():
            if video == unit.video_id:
                found[key].pop("masks")
                found[key] |= {"error": masks} if isinstance(masks, str) else {"masks": rle_track(masks)}
        frames = samples.rows(unit)[0]["frame_names"]
        store.write(unit, run_hash, found, height=SIZE[0], width=SIZE[1], frames=frames)
    records = score_samples(samples, store, run_hash, workers)
    return summarise(protocol, records), records


def test_every_expression_weighs_the_same_whatever_its_length(tmp_path):
    rows = [row("long", "0", [LEFT] * 9), row("short", "0", [LEFT])]
    summary, _ = evaluate(tmp_path, "mevis-v1-valid_u", rows, {("short", "0"): [RIGHT]})
    assert summary["J"] == pytest.approx(50) and summary["num_videos"] == summary["num_expressions"] == 2
    assert summary["J&F"] == pytest.approx((summary["J"] + summary["F"]) / 2)


def test_empty_masks(tmp_path):
    absent = [None, None]
    rows = [
        row("a", "0", absent, objects=()),
        row("a", "1", absent, objects=()),
        row("a", "2", [LEFT, None]),
        row("a", "3", [LEFT, LEFT]),
    ]
    predictions = {("a", "1"): [None, box(0, 0, 1, 1)], ("a", "2"): absent, ("a", "3"): absent}
    summary, records = evaluate(tmp_path, "mevis-v1-valid_u", rows, predictions)
    # Nothing in nothing is right; one pixel in one frame of two is half right, and no "nothing" any more.
    assert [record["J"] for record in records] == [1.0, 0.5, 0.5, 0.0]
    assert [record["F"] for record in records] == [1.0, 0.5, 0.5, 0.0]
    assert summary["no_target_accuracy"] == 0.5
    assert {kind: scores["count"] for kind, scores in summary["per_type"].items()} == {"no_target": 2, "referring": 2}


def test_a_failure_counts_zero_and_is_named(tmp_path):
    rows = [row("a", "0", [None], objects=()), row("a", "1", [LEFT])]
    summary, _ = evaluate(tmp_path, "mevis-v1-valid_u", rows, {("a", "0"): "OSError: gone"})
    assert summary["J"] == summary["F"] == pytest.approx(50) and summary["no_target_accuracy"] == 0
    assert summary["failures"] == [
        {"video": "a", "expression_id": "0", "expression": "expression 0", "error": "OSError: gone"}
    ]


def write_masks(root, tracks):
    """The file of single objects, above the frames as in ReVOS; gives paths of frames."""
    folder = root / "JPEGImages" / "UVO" / "clip"
    folder.mkdir(parents=True, exist_ok=True)
    (root / "mask_dict.json").write_text(json.dumps({str(k): rle_track(track) for k, track in tracks.items()}))
    return [str(folder / "00145.jpg")]


def test_revos_overall_is_the_mean_of_two_groups_and_r_has_two_scales(tmp_path):
    paths = write_masks(tmp_path, {7: [LEFT], 8: [RIGHT]})
    same = {"paths": paths}
    rows = [
        row("UVO/clip", "0", [LEFT], (1,), "referring", annotation_ids=[7], **same),
        row("UVO/clip", "1", [LEFT], (1,), "referring", annotation_ids=[7], **same),
        row("UVO/clip", "2", [RIGHT], (2,), "referring", annotation_ids=[8], **same),
        row("UVO/clip", "3", [LEFT], (1,), "reasoning", annotation_ids=[7], **same),
        row("UVO/clip", "4", [None], (), "no_target", **same),
    ]
    # A strip of 4 columns too much beside the left half.
    more = LEFT | box(0, SIZE[1] // 2, SIZE[0], SIZE[1] // 2 + 4)
    predictions = {("UVO/clip", "3"): [more], ("UVO/clip", "4"): [LEFT]}
    summary, _ = evaluate(tmp_path, "revos-valid", rows, predictions)
    groups = summary["groups"]
    assert groups["referring"]["J"] == 100 and groups["referring"]["count"] == 3
    expected = 100 * 24 / 28
    assert groups["reasoning"]["J"] == pytest.approx(expected)
    assert groups["overall"]["J"] == summary["J"] == pytest.approx((100 + expected) / 2)
    pooled = (300 + expected) / 4
    assert abs(summary["J"] - pooled) > 3
    assert groups["reasoning"]["rounded"]["J"] == round(expected, 2)
    # 4 of 48 columns are false; the foreground of the clip is everything. 255 times as much is more than all.
    assert groups["reasoning"]["R"] == pytest.approx(100 * (1 - 4 / 48))
    assert groups["reasoning"]["R_published"] == 0 and groups["referring"]["R_published"] == 100
    assert groups["reasoning"]["A"] == pytest.approx(100 * 44 / 48)
    # As published only true background agrees: 20 of 48 columns.
    assert groups["reasoning"]["A_published"] == pytest.approx(100 * 20 / 48)
    # Type 2 is run and counted, but in no average.
    assert summary["num_expressions"] == 5 and summary["no_target_accuracy"] == 0
    assert set(summary["per_type"]) == {"referring", "reasoning"}


def test_revos_adds_the_masks_of_overlapping_objects_in_the_published_scale(tmp_path):
    paths = write_masks(tmp_path, {7: [FULL], 8: [LEFT]})
    rows = [row("UVO/clip", "0", [FULL], (1, 2), "referring", annotation_ids=[7, 8], paths=paths)]
    summary, _ = evaluate(tmp_path, "revos-valid", rows, {})
    scores = summary["groups"]["referring"]
    assert scores["R"] == 100
    # Where both objects are, (1 - 2) * 255 is 1 in bytes: every right pixel of the left half counts as a false one.
    assert scores["R_published"] == pytest.approx(50)


def davis_rows(annotators=4):
    """Two objects with four sentences each; expression 4 * rank + annotator."""
    masks = {1: [LEFT, LEFT], 2: [RIGHT, RIGHT]}
    return [
        row("dogs", str(4 * rank + k), masks[rank + 1], (rank + 1,)) for rank in range(2) for k in range(annotators)
    ]


def test_ref_davis_swap_scores_one_officially_and_zero_alone(tmp_path):
    rows = davis_rows()
    swapped = {("dogs", str(k)): [RIGHT, RIGHT] for k in range(4)}
    swapped |= {("dogs", str(4 + k)): [LEFT, LEFT] for k in range(4)}
    official, records = evaluate(tmp_path / "a", "ref-davis17-official", rows, swapped)
    assert official["J&F"] == 100 and official["num_expressions"] == 8
    assert [record["matched_proposal"] for record in records] == [2, 1] * 4
    alone, _ = evaluate(tmp_path / "b", "ref-davis17-expression", rows, swapped)
    assert alone["J"] == 0


def test_ref_davis_is_the_mean_of_four_annotators(tmp_path):
    summary, records = evaluate(
        tmp_path, "ref-davis17-official", davis_rows(), {("dogs", "0"): [None, None], ("dogs", "5"): "OSError: gone"}
    )
    types = {kind: scores["J"] for kind, scores in summary["per_type"].items()}
    # Annotator 1 misses one of two objects; the failure of annotator 2 is the second object.
    assert types == {"annotator 1": 50, "annotator 2": 50, "annotator 3": 100, "annotator 4": 100}
    assert summary["J"] == 75 and len(summary["failures"]) == 1 and len(records) == 8


def test_ref_davis_overlaps_go_to_the_lowest_index(tmp_path):
    # The second mask covers all; what the first one has stays with the first.
    predictions = {("dogs", str(4 + k)): [FULL, FULL] for k in range(4)}
    summary, _ = evaluate(tmp_path, "ref-davis17-official", davis_rows(), predictions)
    assert summary["J&F"] == 100


def test_ref_davis_counts_objects_that_no_sentence_names_and_leaves_void_out(tmp_path):
    frames, labels = tmp_path / "JPEGImages" / "dogs", tmp_path / "Annotations" / "dogs"
    frames.mkdir(parents=True)
    labels.mkdir(parents=True)
    top, void = box(0, 0, 6, SIZE[1]), box(30, 0, 36, SIZE[1])
    palette = np.zeros(SIZE, dtype=np.uint8)
    palette[LEFT], palette[RIGHT], palette[top], palette[void] = 1, 2, 3, 255
    paths = []
    for t in range(2):
        Image.fromarray(palette).save(labels / f"{t:05d}.png")
        paths.append(str(frames / f"{t:05d}.jpg"))
    masks = {1: [palette == 1] * 2, 2: [palette == 2] * 2}
    rows = [
        row("dogs", str(4 * rank + k), masks[rank + 1], (rank + 1,), ignore=[void] * 2, paths=paths)
        for rank in range(2)
        for k in range(4)
    ]
    # Painting over the void costs nothing.
    predictions = {("dogs", str(k)): [(palette == 1) | (void & LEFT)] * 2 for k in range(4)}
    summary, records = evaluate(tmp_path / "official", "ref-davis17-official", rows, predictions)
    assert [record["J"] for record in records[:3]] == [1.0, 1.0, 0.0]
    assert summary["J"] == pytest.approx(200 / 3) and summary["num_expressions"] == 8
    # One expression at a time, as the common script does it, void is background: there it does cost.
    _, records = evaluate(tmp_path / "alone", "ref-davis17-expression", rows, predictions)
    assert records[0]["J"] == pytest.approx(24 / 30) and records[4]["J"] == 1


def test_images_have_giou_and_ciou(tmp_path):
    image = {"category": "reasoning_image"}
    quarter, ignored = box(0, 0, SIZE[0], 12), box(0, 12, SIZE[0], 24)
    rows = [
        row("a", "0", [LEFT], ignore=[ignored], kind="short", **image),
        row("a", "1", [RIGHT], kind="short", **image),
        row("b", "0", [None], (), kind="long", **image),
        row("c", "0", [None], (), kind="long", **image),
        row("d", "0", [LEFT], kind="long", **image),
    ]
    predictions = {("a", "0"): [quarter], ("c", "0"): [quarter], ("d", "0"): "OSError: gone"}
    summary, records = evaluate(tmp_path, "reasonseg-val", rows, predictions)
    # Only the first sentence of an image; what is ignored counts neither way; a failure counts 0.
    assert [record["expression_id"] for record in records] == ["0"] * 4
    assert summary["gIoU"] == pytest.approx(100 * (1 + 1 + 0 + 0) / 4, abs=1e-3)
    # In columns: 12 of 12 that count, nothing of nothing, 12 in place of nothing, and 24 that failed.
    assert summary["cIoU"] == pytest.approx(100 * 12 / (12 + 12 + 24), abs=1e-3)
    assert summary["per_type"]["short"]["gIoU"] == pytest.approx(100, abs=1e-3)
    assert summary["per_type"]["long"]["count"] == 3


def test_questions_are_matched_exactly_but_for_case(tmp_path):
    rows = [row("a", "0", [LEFT])]
    for key, answer in (("0", "Three"), ("1", "red")):
        rows.append(row("a", key, [None], (), answer=answer, category="video_qa", kind="question"))
    protocol = get_protocol("own")
    samples = make_samples(protocol, datasets.Dataset.from_list(rows, features=record_features()))
    store = PredictionStore(tmp_path / "out")
    store.begin({"protocol": "own"}, {})
    run_hash = store.read_run()["settings_hash"]
    masks, answers = samples.units
    entries = perfect_entries(samples.rows(masks))
    store.write(masks, run_hash, entries, height=SIZE[0], width=SIZE[1], frames=["00000"])
    said = {key: {"expression": f"expression {key}", "answer": text} for key, text in (("0", " three"), ("1", "red."))}
    store.write(answers, run_hash, said)
    summary = summarise(protocol, score_samples(samples, store, run_hash, 1))
    assert summary["qa_accuracy"] == 0.5 and summary["num_questions"] == 2
    assert summary["num_expressions"] == 1 and summary["J"] == 100


def test_no_number_where_a_prediction_is_wrong(tmp_path):
    rows = [row("a", "0", [LEFT]), row("b", "0", [LEFT]), row("c", "0", [LEFT])]
    evaluate(tmp_path, "mevis-v1-valid_u", rows, {})
    samples = make_samples(PROTOCOLS["mevis-v1-valid_u"], datasets.Dataset.from_list(rows, features=record_features()))
    store = PredictionStore(tmp_path / "out")
    run_hash = store.read_run()["settings_hash"]
    one, two, three = (store.path(unit) for unit in samples.units)
    two.write_text(two.read_text()[:50])
    three.write_text(three.read_text().replace('"0": ', '"7": '))
    with pytest.raises(EvaluationError, match="2 of 3 videos cannot be scored.* b are missing.*unknown expressions"):
        score_samples(samples, store, run_hash, 1)
    one.unlink()
    with pytest.raises(EvaluationError, match="missing for 1 expressions of 1 videos: a"):
        score_samples(samples, store, run_hash, 1)
    one.write_text("{}")
    one.with_name("other.json").write_text("{}")
    with pytest.raises(EvaluationError, match="1 videos that the data set does not have: other.json"):
        score_samples(samples, store, run_hash, 1)


def test_a_pool_gives_the_same_records_in_the_same_order(tmp_path):
    rows = [row(f"v{i}", "0", [box(0, 0, 5 + i, 9)] * 3) for i in range(6)]
    predictions = {(f"v{i}", "0"): [box(0, i, 7, 9)] * 3 for i in range(6)}
    alone = evaluate(tmp_path / "a", "mevis-v1-valid_u", rows, predictions)
    assert evaluate(tmp_path / "b", "mevis-v1-valid_u", rows, predictions, workers=2) == alone


def test_controls(tmp_path):
    paths = write_masks(tmp_path, {7: [LEFT], 8: [RIGHT]})
    rows = [
        row("UVO/clip", "0", [LEFT], (1,), "attribute", annotation_ids=[7], paths=paths),
        row("UVO/clip", "1", [LEFT], (1,), "motion", annotation_ids=[7], paths=paths),
        row("UVO/clip", "2", [RIGHT], (2,), "motion", annotation_ids=[8], paths=paths),
    ]
    assert [other_row(rows, i)["expression_id"] for i in range(3)] == ["2", "2", "0"]
    assert other_row(rows[:2], 0) is None
    summary, records = evaluate(tmp_path, "shapes-test", rows, {})
    assert summary["J&F"] == 100
    controls = summary["controls"]
    assert controls["union_of_objects"]["J"] == 50
    # The model's masks are right, so those of another sentence are wrong throughout.
    assert controls["other_expression"]["J"] == 0 and controls["other_expression"]["count"] == 3
    assert {record["controls"]["random_object"]["J"] for record in records} <= {0.0, 1.0}
    assert fixed_choice("a\0b", [1, 2, 3]) == fixed_choice("a\0b", [1, 2, 3])
    assert {fixed_choice(str(i), "xyz") for i in range(30)} == set("xyz")


def test_protocols_are_the_ones_that_are_promised():
    names = {"mevis-v1-valid_u", "mevis-v2-valid_u", "revos-valid", "ref-davis17-expression", "ref-davis17-official"}
    names |= {"reasonseg-val", "reasonseg-test", "shapes-test", "mevis-valid", "ref-youtube-vos-valid", "own"}
    names |= {f"refcoco{plus}-{split}" for plus in ("", "+") for split in ("val", "testA", "testB")}
    assert names | {"refcocog-val", "refcocog-test", "shapes-valid"} == set(PROTOCOLS)
    assert [name for name, protocol in PROTOCOLS.items() if protocol.name != name or not protocol.rule] == []
    with pytest.raises(EvaluationError, match="no protocol 'mevis'; expected one of mevis-v1-valid_u"):
        get_protocol("mevis")


def test_expressions_that_stand_twice(tmp_path):
    rows = [row("a", "0", [LEFT]), row("a", "0", [LEFT])]
    dataset = datasets.Dataset.from_list(rows, features=record_features())
    with pytest.raises(EvaluationError, match="stands twice"):
        make_samples(PROTOCOLS["own"], dataset)
    with pytest.raises(EvaluationError, match="at least one video, found 0"):
        make_samples(PROTOCOLS["own"], dataset, limit=0)
