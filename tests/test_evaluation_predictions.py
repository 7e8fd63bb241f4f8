"""Stored predictions: names of files, the identity of a run, and every way in which a file can be wrong."""

import json

import pytest
from evaluation_fixtures import box
from hypothesis import given
from hypothesis import strategies as st

from virst_hf.errors import EvaluationError
from virst_hf.evaluation.predictions import PredictionStore, settings_hash, video_file_name
from virst_hf.evaluation.samples import ANSWERS, MASKS, Unit
from virst_hf.rle import encode_rle

SETTINGS = {"protocol": "mevis-v1-valid_u", "model_hash": "ab"}
HASH = settings_hash(SETTINGS)
UNIT = Unit(MASKS, "UVO/all/-a_b", ("0", "10"), ("the ball", "two dogs"), (0, 1), 2)
RLE = encode_rle(box(1, 1, 9, 9))


@pytest.fixture
def store(tmp_path):
    store = PredictionStore(tmp_path / "out")
    store.begin(SETTINGS, {"root": "/data"})
    return store


def entries(**changes):
    found = {
        "0": {"expression": "the ball", "masks": [dict(RLE), None]},
        "10": {"expression": "two dogs", "masks": [None, None]},
    }
    return {**found, **changes}


def write(store, expressions=None, **changes):
    fields = {"height": 36, "width": 48, "frames": ["00000", "00001"], **changes}
    store.write(UNIT, HASH, entries() if expressions is None else expressions, **fields)


@given(st.lists(st.text(min_size=1), min_size=2, max_size=20, unique=True))
def test_every_video_has_a_file_of_its_own(names):
    names = [name for name in names if not any("\ud800" <= sign <= "\udfff" for sign in name)]
    files = [video_file_name(name) for name in names]
    assert len(set(files)) == len(names)
    for file in files:
        assert "/" not in file and len(file.encode()) < 200 and file[0] not in ".-~" and file.endswith(".json")


def test_long_names_are_cut_without_becoming_equal():
    one, other = video_file_name("a/" * 200 + "x"), video_file_name("a/" * 200 + "y")
    assert one != other and len(one) < 180


def test_read_gives_what_was_written(store):
    write(store)
    content = store.read(UNIT, HASH, ["00000", "00001"])
    assert content["expressions"] == entries() and content["video_id"] == "UVO/all/-a_b"
    assert store.is_complete(UNIT, HASH)
    assert store.names(MASKS) == {"UVO%2Fall%2F-a_b.json"} and store.names(ANSWERS) == set()


def test_a_failed_sample_is_no_complete_video(store):
    write(store, entries(**{"10": {"expression": "two dogs", "error": "OutOfMemoryError"}}))
    assert not store.is_complete(UNIT, HASH)
    assert "masks" not in store.read(UNIT, HASH)["expressions"]["10"]


@pytest.mark.parametrize(
    ("expressions", "changes", "message"),
    [
        ({"0": entries()["0"]}, {}, "lacks 1 expressions.*10"),
        (entries(**{"99": entries()["0"]}), {}, "1 unknown expressions.*'99'"),
        (entries(**{"0": {"expression": "the bat", "masks": [None, None]}}), {}, "is not that of the data set"),
        (entries(**{"0": {"expression": "the ball"}}), {}, "no masks and no error"),
        (entries(**{"0": {"expression": "the ball", "masks": [None]}}), {}, "1 masks for 2 frames"),
        (entries(), {"width": 50}, "mask is 36 x 48"),
        (entries(), {"frames": ["00000", "00005"]}, "or other names"),
        (entries(), {"frames": ["00000"]}, "1 frames, but the data set has 2"),
        (entries(), {"height": None}, "does not state the frames and their size"),
        (
            entries(**{"0": {"expression": "the ball", "masks": [{"size": [36, 48], "counts": "92207"}, None]}}),
            {},
            "expression 0: a predicted mask cannot be used",
        ),
    ],
)
def test_predictions_that_do_not_fit(store, expressions, changes, message):
    write(store, expressions, **changes)
    with pytest.raises(EvaluationError, match=message):
        store.read(UNIT, HASH, ["00000", "00001"])


def test_missing_half_and_foreign_files(store):
    with pytest.raises(EvaluationError, match="missing or unreadable"):
        store.read(UNIT, HASH)
    write(store)
    path = store.path(UNIT)
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    with pytest.raises(EvaluationError, match="UVO/all/-a_b are missing or unreadable"):
        store.read(UNIT, HASH)
    assert not store.is_complete(UNIT, HASH)
    for content in ("[]", '{"video_id": "UVO/all/-a_b", "expressions": 3}', text.replace("-a_b", "-a_c")):
        path.write_text(content)
        with pytest.raises(EvaluationError, match="does not hold predictions of"):
            store.read(UNIT, HASH)
    path.write_text(text)
    with pytest.raises(EvaluationError, match="of another run"):
        store.read(UNIT, "0" * 16)


def test_another_model_needs_another_folder(store):
    store.begin(SETTINGS, {"root": "/moved"})
    assert store.read_run()["root"] == "/moved"
    with pytest.raises(EvaluationError, match="another run: model_hash was 'ab' and is now 'cd'.*another output"):
        store.begin({**SETTINGS, "model_hash": "cd"}, {})


def test_folders_that_are_not_of_a_run(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(EvaluationError, match=r"not empty \(it holds note.txt\)"):
        PredictionStore(tmp_path).begin(SETTINGS, {})
    with pytest.raises(EvaluationError, match="is a file"):
        PredictionStore(tmp_path / "note.txt").begin(SETTINGS, {})
    with pytest.raises(EvaluationError, match="no folder of `virst evaluate`"):
        PredictionStore(tmp_path).read_run()


def test_a_run_file_that_was_changed(store):
    path = store.folder / "run.json"
    content = json.loads(path.read_text())
    content["settings"]["model_hash"] = "other"
    path.write_text(json.dumps(content))
    with pytest.raises(EvaluationError, match="changed by hand"):
        store.read_run()
    for text in ("{", '{"settings": 1}', "[]"):
        path.write_text(text)
        with pytest.raises(EvaluationError, match="run.json"):
            store.read_run()


def test_leftovers_of_a_killed_process_are_removed(store):
    write(store)
    leftover = store.path(UNIT).with_name(".x.123.part.json")
    leftover.write_text("{")
    store.begin(SETTINGS, {})
    assert not leftover.exists() and store.path(UNIT).exists()
