"""What all builders share: loading in every way, caches that notice changes, errors that come out as they are."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from virst_hf.data import CATALOG, MeViS, builder_class, decode_masks, load, make_row
from virst_hf.data.records import CATEGORIES, FIELDS, record_features
from virst_hf.errors import DataError

ROOT = Path(__file__).parent.parent
EMPTY, BOX = {"size": [4, 6], "counts": "h0"}, {"size": [4, 6], "counts": "92207"}


def write_mevis(root: Path, num_videos: int = 3, text: str = "the lizard") -> Path:
    """Split "train": videos of two frames, two expressions each; object 2v is seen in the first frame alone."""
    videos, masks = {}, {}
    for index in range(num_videos):
        name = f"{index:012x}"
        folder = root / "train" / "JPEGImages" / name
        folder.mkdir(parents=True, exist_ok=True)
        for frame in ("00000", "00001"):
            Image.new("RGB", (6, 4), (9, 99, 199)).save(folder / f"{frame}.jpg")
        first, second = 2 * index, 2 * index + 1
        masks.update({str(first): [BOX, None], str(second): [EMPTY, BOX]})
        expressions = {
            "0": {"exp": f"{text} {index}", "obj_id": [0], "anno_id": [first]},
            "1": {"exp": "both", "obj_id": [0, 1], "anno_id": [first, second]},
        }
        videos[name] = {"expressions": expressions, "frames": ["00000", "00001"], "vid_id": index}
    (root / "train" / "meta_expressions.json").write_text(json.dumps({"videos": videos}))
    (root / "train" / "mask_dict.json").write_text(json.dumps(masks))
    return root


@pytest.fixture
def mevis(tmp_path):
    return write_mevis(tmp_path / "mevis")


def test_rows_prepared_streamed_and_in_two_processes_are_equal(mevis, tmp_path):
    streamed = list(load("mevis", mevis, "train", streaming=True))
    prepared = load("mevis", mevis, "train", cache_dir=str(tmp_path / "one"))
    parallel = load("mevis", mevis, "train", cache_dir=str(tmp_path / "two"), num_proc=2)
    assert streamed == list(prepared) == list(parallel) and len(streamed) == 6
    assert streamed[0]["masks"] == [BOX, None] and streamed[1]["masks"] == [BOX, BOX]
    assert decode_masks(streamed[0]).sum(axis=(1, 2)).tolist() == [4, 0]
    assert prepared.features == record_features() and list(streamed[0]) == list(FIELDS)


def test_the_class_itself_works_and_can_be_pickled(mevis, tmp_path):
    builder = pickle.loads(pickle.dumps(MeViS(data_dir=mevis, cache_dir=str(tmp_path / "cache"))))
    builder.download_and_prepare()
    assert builder.as_dataset(split="train")[0]["expression"] == "the lizard 0"
    assert next(iter(builder.as_streaming_dataset(split="train")))["expression"] == "the lizard 0"


def test_without_a_split_all_that_are_there_come(mevis, tmp_path):
    assert list(load("mevis", mevis, cache_dir=str(tmp_path / "cache"))) == ["train"]


def test_relative_roots_are_found_again_from_another_folder(mevis, tmp_path, monkeypatch):
    monkeypatch.chdir(mevis.parent)
    rows = load("mevis", "mevis", "train", streaming=True)
    monkeypatch.chdir("/")
    assert Path(next(iter(rows))["frame_paths"][0]).is_file()


def test_changed_annotations_are_noticed(mevis, tmp_path):
    cache = str(tmp_path / "cache")
    assert load("mevis", mevis, "train", cache_dir=cache)[0]["expression"] == "the lizard 0"
    path = mevis / "train" / "meta_expressions.json"
    before = path.stat()
    path.write_text(path.read_text().replace("lizard", "dragon"))
    # Equal size and equal time: the content alone tells.
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert load("mevis", mevis, "train", cache_dir=cache)[0]["expression"] == "the dragon 0"


def test_two_roots_and_two_sets_do_not_share_a_cache(mevis, tmp_path):
    cache = str(tmp_path / "cache")
    other = write_mevis(tmp_path / "other", text="the snake")
    assert load("mevis", mevis, "train", cache_dir=cache)[0]["expression"] == "the lizard 0"
    assert load("mevis", other, "train", cache_dir=cache)[0]["expression"] == "the snake 0"
    own = load("own", mevis, "train", cache_dir=cache)
    assert {row["source"] for row in own} == {"own"}
    folders = {load(name, mevis, "train", cache_dir=cache).cache_files[0]["filename"] for name in ("mevis", "own")}
    assert len(folders) == 2


def test_defects_come_out_as_data_errors_in_every_way_of_loading(mevis, tmp_path):
    (mevis / "train" / "mask_dict.json").write_text(json.dumps({"0": [BOX]}))
    for fields in (
        {"streaming": True},
        {"cache_dir": str(tmp_path / "a")},
        {"cache_dir": str(tmp_path / "b"), "num_proc": 2},
    ):
        with pytest.raises(DataError, match="it has 1 masks, but its video has 2 frames"):
            list(load("mevis", mevis, "train", **fields))


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("mevos", {}, "no data set 'mevos'; expected one of mevis, revos"),
        ("mevis", {"split": "test"}, "no split test of mevis"),
        ("mevis", {"config": "v3"}, "no configuration 'v3'; expected one of v1, v2"),
        ("mevis", {"config": "v2"}, "does not look like mevis"),
        ("mevis", {"colour": 1}, "has no option colour"),
    ],
)
def test_unknown_names(mevis, name, fields, message):
    with pytest.raises(DataError, match=message):
        load(name, mevis, **fields)


def test_missing_root_shows_the_tree(tmp_path):
    with pytest.raises(DataError, match="meta_expressions.json"):
        load("mevis", tmp_path / "absent")
    with pytest.raises(DataError, match="needs data_dir"):
        MeViS()


def test_links(mevis, tmp_path):
    """A link inside of the root is followed; one that leaves it is refused, unless the user trusts the set."""
    folder = mevis / "train" / "JPEGImages" / f"{0:012x}"
    outside = tmp_path / "outside.jpg"
    (folder / "00001.jpg").rename(outside)
    (folder / "00001.jpg").symlink_to(outside)
    with pytest.raises(DataError, match="link out of the data root"):
        list(load("mevis", mevis, "train", streaming=True))
    assert len(list(load("mevis", mevis, "train", streaming=True, follow_links=True))) == 6
    (folder / "00001.jpg").unlink()
    (folder / "00001.jpg").symlink_to(folder / "00000.jpg")
    assert len(list(load("mevis", mevis, "train", streaming=True))) == 6
    linked_root = tmp_path / "linked"
    linked_root.symlink_to(mevis)
    assert len(list(load("mevis", linked_root, "train", streaming=True))) == 6


def test_frame_names_that_leave_the_root_are_refused(mevis):
    path = mevis / "train" / "meta_expressions.json"
    path.write_text(path.read_text().replace('"00000"', '"../00000"'))
    with pytest.raises(DataError, match="refused"):
        list(load("mevis", mevis, "train", streaming=True))


def test_catalogue_and_classes_agree():
    for name, entry in CATALOG.items():
        builder = builder_class(name)
        assert builder.NAME == name and builder.__module__ == f"virst_hf.data.{entry.module}"
        assert builder.TREE and builder.SPLITS and builder.CATEGORY in CATEGORIES
        assert entry.category in (builder.CATEGORY, "all five")
    assert len({builder_class(name).__module__ for name in CATALOG}) == len(CATALOG)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"masks": [None, None]}, "1 frames, but 2 masks"),
        ({"expression": ""}, "expression must be a text"),
        ({"expression": "\ud800"}, "expression must be a text"),
        ({"object_ids": [2**63]}, "whole numbers"),
        ({"object_ids": [True]}, "whole numbers"),
        ({"category": "sound"}, "Unknown category 'sound'"),
        ({"frame_paths": []}, "1 names of frames, but 0 files"),
        ({"colour": 1}, "no field colour"),
    ],
)
def test_records_that_cannot_be(fields, message):
    good = {
        "video_id": "a",
        "expression_id": "0",
        "expression": "the dog",
        "category": "rvos",
        "source": "own",
        "split": "train",
        "frame_names": ["0"],
        "frame_paths": ["0.jpg"],
    }
    assert make_row(**good)["expression_type"] == "referring"
    with pytest.raises(DataError, match=message):
        make_row(**{**good, **fields})


def test_import_takes_neither_torch_nor_datasets():
    code = "import sys, virst_hf.data; print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert output.stdout.strip() == "[]"
