"""Server zips: file by file as the servers take them, and refused where anything is missing or wrong."""

import io
import json
import shutil
import zipfile

import numpy as np
import pytest
from evaluation_fixtures import SIZE, box, rle_track, write_mevis
from PIL import Image

from virst_hf.errors import EvaluationError
from virst_hf.evaluation.predictions import PredictionStore
from virst_hf.evaluation.protocols import PROTOCOLS
from virst_hf.evaluation.samples import load_samples
from virst_hf.evaluation.submission import check_submission, pack_submission

PROTOCOL = "mevis-valid"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def root(tmp_path):
    return write_mevis(tmp_path / "data", split="valid", num_videos=2, expressions=3, num_frames=2)


def predict(folder, root, cache, protocol=PROTOCOL):
    """Stored predictions: in frame t of expression e a box that is as wide as e + t + 1, none in expression 2."""
    samples = load_samples(PROTOCOLS[protocol], root, cache_dir=cache)
    store = PredictionStore(folder)
    store.begin({"protocol": protocol}, {"root": str(root)})
    run_hash = store.read_run()["settings_hash"]
    for unit in samples.units:
        row = samples.rows(unit)[0]
        found = {}
        for e, (key, text) in enumerate(zip(unit.expression_ids, unit.expressions, strict=True)):
            masks = [None if e == 2 else box(0, 0, 5, e + t + 1) for t in range(unit.num_frames)]
            found[key] = {"expression": text, "masks": rle_track(masks)}
        store.write(unit, run_hash, found, height=SIZE[0], width=SIZE[1], frames=row["frame_names"])
    return store


@pytest.fixture
def store(tmp_path, root, cache):
    return predict(tmp_path / "out", root, cache)


def read_png(archive, name):
    with Image.open(io.BytesIO(archive.read(name))) as image:
        assert image.format == "PNG" and image.mode == "L"
        return np.asarray(image)


def test_mevis_zip_has_every_frame_and_no_top_folder(store, cache):
    path = pack_submission(PROTOCOL, store.folder, cache_dir=cache)
    assert path == store.folder / "mevis-valid.zip"
    lengths = {"00ab0": 2, "01ab1": 3}
    expected = {f"{v}/{e}/{t:05d}.png" for v, length in lengths.items() for e in range(3) for t in range(length)}
    with zipfile.ZipFile(path) as archive:
        assert set(archive.namelist()) == expected and len(archive.namelist()) == 15
        assert archive.testzip() is None
        for name in expected:
            mask = read_png(archive, name)
            _, e, frame = name.removesuffix(".png").split("/")
            wanted = np.zeros(SIZE, dtype=np.uint8) if e == "2" else box(0, 0, 5, int(e) + int(frame) + 1) * 255
            assert mask.shape == SIZE and np.array_equal(mask, wanted), name


def test_ref_youtube_vos_zip_has_a_top_folder(root, tmp_path, cache, monkeypatch):
    # The records of another set: what differs is the folder at the top.
    predict(tmp_path / "out", root, cache)
    samples = load_samples(PROTOCOLS[PROTOCOL], root, cache_dir=cache)
    monkeypatch.setattr("virst_hf.evaluation.submission.load_samples", lambda *args, **kwargs: samples)
    run = tmp_path / "out" / "run.json"
    content = json.loads(run.read_text())
    run.unlink()
    other = PredictionStore(tmp_path / "other")
    other.begin({"protocol": "ref-youtube-vos-valid"}, {"root": content["root"]})
    run_hash = other.read_run()["settings_hash"]
    shutil.copytree(tmp_path / "out" / "predictions", other.folder / "predictions")
    for file in (other.folder / "predictions").iterdir():
        file.write_text(file.read_text().replace(content["settings_hash"], run_hash))
    path = pack_submission("ref-youtube-vos-valid", other.folder, tmp_path / "send.zip")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        assert names[0] == "Annotations/00ab0/0/00000.png" and len(names) == 15
        assert all(name.startswith("Annotations/") for name in names)
        assert set(np.unique(read_png(archive, names[0]))) == {0, 255}


def test_the_same_masks_give_the_same_bytes(store, tmp_path, cache):
    one = pack_submission(PROTOCOL, store.folder, tmp_path / "one.zip", cache_dir=cache)
    two = pack_submission(PROTOCOL, store.folder, tmp_path / "two.zip", cache_dir=cache)
    assert one.read_bytes() == two.read_bytes()
    assert sorted(path.name for path in tmp_path.glob("*.zip")) == ["one.zip", "two.zip"]


def test_what_cannot_be_packed(store, tmp_path, root, cache):
    with pytest.raises(EvaluationError, match="scored here, not by a server"):
        pack_submission("mevis-v1-valid_u", store.folder, cache_dir=cache)
    with pytest.raises(EvaluationError, match="no protocol 'mevis'"):
        pack_submission("mevis", store.folder, cache_dir=cache)
    with pytest.raises(EvaluationError, match="holds predictions of mevis-valid"):
        pack_submission("ref-youtube-vos-valid", store.folder, cache_dir=cache)
    with pytest.raises(EvaluationError, match="must be a .zip file, found send.tar"):
        pack_submission(PROTOCOL, store.folder, tmp_path / "send.tar", cache_dir=cache)
    with pytest.raises(EvaluationError, match="no folder of `virst evaluate`"):
        pack_submission(PROTOCOL, tmp_path / "absent", cache_dir=cache)
    (store.folder / "predictions" / "01ab1.json").unlink()
    with pytest.raises(EvaluationError, match="lacks predictions of 1 of 2 videos, 01ab1 first"):
        pack_submission(PROTOCOL, store.folder, cache_dir=cache)
    assert not list(tmp_path.rglob("*.zip"))


def test_failed_and_misfit_predictions_are_not_packed(store, cache):
    path = store.folder / "predictions" / "00ab0.json"
    content = json.loads(path.read_text())
    for change, message in (
        (
            {"expressions": {**content["expressions"], "1": {**content["expressions"]["1"], "error": "OOM"}}},
            "1 failed",
        ),
        ({"height": 40, "width": 50}, "expression 0: a predicted mask cannot be used"),
        ({"frames": ["00000", "00007"]}, "or other names"),
    ):
        path.write_text(json.dumps({**content, **change}))
        with pytest.raises(EvaluationError, match=message):
            pack_submission(PROTOCOL, store.folder, cache_dir=cache)
        assert not list(store.folder.glob("*.zip")) and not list(store.folder.glob(".*"))


def rewritten(source, target, change):
    """A copy of a zip whose entries went through `change`, which gives a list of (name, content)."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            for entry in change(name, old.read(name)):
                new.writestr(*entry)
    return target


def png(mode, size=(SIZE[1], SIZE[0]), value=255):
    buffer = io.BytesIO()
    Image.new(mode, size, value).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "lacks 00ab0/1/00001.png"),
        (png("L", value=7), "other values than 0 and 255"),
        (png("P", value=1), "has mode P"),
        (png("L", size=(9, 9)), r"size \(9, 9\), expected L and \(36, 48\)"),
        (b"no picture", "not a PNG that can be read"),
    ],
)
def test_a_zip_of_any_tool_is_checked(store, root, tmp_path, cache, content, message):
    good = pack_submission(PROTOCOL, store.folder, tmp_path / "good.zip", cache_dir=cache)
    check_submission(good, PROTOCOL, root, cache_dir=cache)

    def change(name, old):
        if name != "00ab0/1/00001.png":
            return [(name, old)]
        return [] if content is None else [(name, content)]

    with pytest.raises(EvaluationError, match=message):
        check_submission(rewritten(good, tmp_path / "bad.zip", change), PROTOCOL, root, cache_dir=cache)


def test_a_zip_with_more_than_it_should_have(store, root, tmp_path, cache):
    good = pack_submission(PROTOCOL, store.folder, tmp_path / "good.zip", cache_dir=cache)
    more = rewritten(good, tmp_path / "more.zip", lambda name, old: [(name, old), (f"Annotations/{name}", old)])
    with pytest.raises(EvaluationError, match="15 entries that no expression has, Annotations/00ab0/0/00000.png"):
        check_submission(more, PROTOCOL, root, cache_dir=cache)
    (tmp_path / "half.zip").write_bytes(good.read_bytes()[:300])
    with pytest.raises(EvaluationError, match="not a zip that can be read"):
        check_submission(tmp_path / "half.zip", PROTOCOL, root, cache_dir=cache)
    with pytest.raises(EvaluationError, match="not a zip that can be read"):
        check_submission(tmp_path / "absent.zip", PROTOCOL, root, cache_dir=cache)
