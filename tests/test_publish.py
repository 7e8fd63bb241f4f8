"""Publishing: parquet with relative paths and a card, in a folder and on a local server that speaks for the Hub."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs

import image_fixtures
import pyarrow.parquet
import pytest
import semantic_fixtures
import yaml
from datasets import Dataset
from PIL import Image
from test_hub import HubHandler, run_with_hub

from virst_hf.data import load
from virst_hf.data.publish import load_published, publish
from virst_hf.data.records import FIELDS, record_features
from virst_hf.errors import DataError

REPOSITORY = "tester/tiny-set"
MASK = {"size": [4, 6], "counts": "92207"}


def write_mevis(root: Path) -> Path:
    """Two splits with two videos each; the second expression of each has no target."""
    for split in ("train", "valid_u"):
        videos = {}
        for name in ("a" * 12, "b" * 12):
            folder = root / split / "JPEGImages" / name
            folder.mkdir(parents=True)
            for frame in ("00000", "00001"):
                Image.new("RGB", (6, 4), (9, 99, 199)).save(folder / f"{frame}.jpg")
            expressions = {
                "0": {"exp": f"the fish of {name}", "obj_id": [0], "anno_id": [7]},
                "1": {"exp": "the horse", "obj_id": [], "anno_id": []},
            }
            videos[name] = {"expressions": expressions, "frames": ["00000", "00001"]}
        (root / split / "meta_expressions.json").write_text(json.dumps({"videos": videos}))
        (root / split / "mask_dict.json").write_text(json.dumps({"7": [MASK, None]}))
    return root


@pytest.fixture
def mevis(tmp_path: Path) -> Path:
    return write_mevis(tmp_path / "mevis")


@pytest.fixture
def published(mevis: Path, tmp_path: Path) -> Path:
    return Path(publish("mevis", mevis, tmp_path / "out", cache_dir=str(tmp_path / "cache")))


def metadata(card: str) -> dict:
    return yaml.safe_load(card.split("---")[1])


def test_folder_and_back(mevis, published, tmp_path):
    for split in ("train", "valid_u"):
        original = load("mevis", mevis, split, streaming=True)
        again = load_published(published, mevis, split, cache_dir=str(tmp_path / "again"))
        assert list(again) == list(original) and len(again) == 4
        assert again.features == record_features()


def test_parquet_has_relative_paths_and_no_pixels(mevis, published):
    files = sorted(path.relative_to(published).as_posix() for path in published.rglob("*") if path.is_file())
    assert files == ["README.md", "v1/train-00000-of-00001.parquet", "v1/valid_u-00000-of-00001.parquet"]
    row = pyarrow.parquet.read_table(published / files[1]).to_pylist()[0]
    assert list(row) == list(FIELDS)
    assert row["frame_paths"] == [f"train/JPEGImages/{'a' * 12}/{frame}.jpg" for frame in ("00000", "00001")]
    for path in published.rglob("*"):
        assert path.is_dir() or str(mevis).encode() not in path.read_bytes()


def test_a_moved_original_is_found_at_its_new_root(mevis, published, tmp_path):
    moved = mevis.rename(tmp_path / "moved")
    rows = load_published(published, moved, "train", cache_dir=str(tmp_path / "again"))
    assert all(Path(path).is_relative_to(moved) for row in rows for path in row["frame_paths"])


def test_card(published):
    card = (published / "README.md").read_text(encoding="utf-8")
    data = metadata(card)
    assert data["license"] == "cc-by-nc-sa-4.0" and data["task_categories"] == ["image-segmentation"]
    assert data["configs"][0]["data_files"][1] == {"split": "valid_u", "path": "v1/valid_u-*"}
    assert [feature["name"] for feature in data["dataset_info"]["features"]] == list(FIELDS)
    assert "| train | 4 | 2 |" in card and "JPEGImages/<video>" in card and 'config="v1"' in card
    assert "henghuiding/MeViS" in card and "no pixels" in card


def test_own_data_has_the_default_configuration_and_videos_of_their_own(tmp_path, clip_maker):
    from virst_hf.rendering import VideoWriter

    with VideoWriter(tmp_path / "own" / "clips" / "a.mp4", 32, 48) as writer:
        for frame in clip_maker(num_frames=3, height=32, width=48):
            writer.write(frame)
    items = [{"video": "clips/a.mp4", "expression": "the square"}]
    (tmp_path / "own" / "test.json").write_text(json.dumps(items))
    out = publish("own", tmp_path / "own" / "test.json", tmp_path / "out", cache_dir=str(tmp_path / "cache"))
    assert (tmp_path / "out" / "data" / "test-00000-of-00001.parquet").is_file()
    rows = load_published(out, tmp_path / "own", "test", cache_dir=str(tmp_path / "again"))
    assert rows[0]["video_path"] == str(tmp_path / "own" / "clips" / "a.mp4") and rows[0]["masks"] is None
    card = metadata((tmp_path / "out" / "README.md").read_text(encoding="utf-8"))
    assert card["license"] == "other" and card["configs"][0]["config_name"] == "default"


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("refcoco", image_fixtures.make_refcoco),
        ("reasonseg", image_fixtures.make_reason_seg),
        ("llava-video", image_fixtures.make_llava_video),
        ("paco-lvis", semantic_fixtures.make_paco),
    ],
)
def test_sets_of_other_categories(name, make, tmp_path):
    make(tmp_path / "root")
    out = publish(name, tmp_path / "root", tmp_path / "out", cache_dir=str(tmp_path / "cache"))
    for split, rows in load(name, tmp_path / "root", streaming=True).items():
        again = load_published(out, tmp_path / "root", split, cache_dir=str(tmp_path / "again"))
        assert list(again) == list(rows)


# --- bad input -------------------------------------------------------------------------------------------------------
def test_where_to_publish_must_be_said_and_free(mevis, tmp_path):
    with pytest.raises(DataError, match="either a folder or"):
        publish("mevis", mevis)
    with pytest.raises(DataError, match="user/name"):
        publish("mevis", mevis, repo_id="a b/c")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("mine")
    for used in (tmp_path / "full", tmp_path / "full" / "note"):
        with pytest.raises(DataError, match="in use"):
            publish("mevis", mevis, used)
    assert (tmp_path / "full" / "note").read_text() == "mine"


def test_nothing_is_left_after_a_defect(mevis, tmp_path):
    (mevis / "train" / "mask_dict.json").write_text('{"7": [null]}')
    with pytest.raises(DataError, match="1 masks"):
        publish("mevis", mevis, tmp_path / "out", cache_dir=str(tmp_path / "cache"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "mevis"]


def test_missing_frames_and_splits(mevis, published, tmp_path):
    (mevis / "train" / "JPEGImages" / ("b" * 12) / "00001.jpg").unlink()
    with pytest.raises(DataError, match="00001.jpg"):
        load_published(published, mevis, "train", cache_dir=str(tmp_path / "again"))
    with pytest.raises(DataError, match="valid"):
        load_published(published, mevis, "valid", cache_dir=str(tmp_path / "again"))
    with pytest.raises(DataError, match="no folder"):
        load_published(published, tmp_path / "absent", "train")


def hostile(folder: Path, path: str, count: int = 1) -> Path:
    """A published set whose frames are elsewhere."""
    row = dict.fromkeys(FIELDS) | {"expression": "x", "frame_paths": [path] * count, "frame_names": ["0"] * count}
    (folder / "data").mkdir(parents=True)
    Dataset.from_list([row], features=record_features()).to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    return folder


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("path", ["../secret.jpg", "a/../../secret.jpg", "/etc/hostname", "", "link/x.jpg", "."])
def test_paths_that_leave_the_root_are_refused(path, count, tmp_path):
    root = tmp_path / "root"
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x.jpg").write_bytes(b"")
    (tmp_path / "secret.jpg").write_bytes(b"")
    (root / "a").mkdir(parents=True)
    (root / "link").symlink_to(tmp_path / "outside")
    source = hostile(tmp_path / "set", path, count)
    with pytest.raises(DataError):
        load_published(source, root, "train", cache_dir=str(tmp_path / "cache"))


def test_another_parquet_is_refused(tmp_path):
    Dataset.from_list([{"text": "a"}]).to_parquet(tmp_path / "set" / "data" / "train-0.parquet")
    with pytest.raises(DataError, match="it lacks video_id"):
        load_published(tmp_path / "set", tmp_path, "train", cache_dir=str(tmp_path / "cache"))


# --- the Hub ---------------------------------------------------------------------------------------------------------
class DatasetHubHandler(HubHandler):
    """The same server for a repository of a data set. Each commit has a name of its own, or the client would take
    files of an earlier one from its cache."""

    commits: list[str]

    @property
    def commit(self) -> str:
        return f"{len(self.commits):040x}"

    def answer(self, status: int, body: bytes = b"", content_type: str = "application/json", **headers: str) -> None:
        super().answer(status, body, content_type, **{"X-Repo-Commit": self.commit} | headers)

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path == "/api/whoami-v2":
            self.answer_json({"type": "user", "name": "tester", "orgs": []})
        elif match := re.fullmatch(rf"/datasets/{REPOSITORY}/resolve/[^/]+/(.+)", path):
            self.send_file(match[1])
        elif match := re.fullmatch(rf"/api/datasets/{REPOSITORY}/tree/[^/]+/?(.*)", path):
            self.send_tree(match[1])
        elif re.fullmatch(rf"/api/datasets/{REPOSITORY}(/revision/[^/]+)?", path):
            siblings = [{"rfilename": name} for name in self.files]
            self.answer_json(
                {"id": REPOSITORY, "sha": self.commit, "siblings": siblings, "tags": [], "private": False}
            )
        else:
            self.refuse()

    def do_POST(self) -> None:
        if "/preupload/" in self.path:
            files = [
                {"path": name, "uploadMode": "lfs" if name.endswith(".parquet") else "regular", "shouldIgnore": False}
                for name in (file["path"] for file in json.loads(self.read_body())["files"])
            ]
            self.answer_json({"files": [file | {"oid": None} for file in files]})
        elif "/paths-info/" in self.path:
            body = self.read_body().decode()
            asked = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
            self.answer_json([self.describe(name) for name in [*self.folders(), *self.files] if name in asked])
        else:
            super().do_POST()
            if "/commit/" in self.path:
                self.commits.append(self.path)

    def folders(self) -> list[str]:
        return sorted({str(parent) for name in self.files for parent in PurePosixPath(name).parents} - {"."})

    def send_tree(self, folder: str) -> None:
        below = [name for name in [*self.folders(), *self.files] if str(PurePosixPath(name).parent) == (folder or ".")]
        if folder and not below:
            self.answer(404, **{"X-Error-Code": "EntryNotFound"})
        else:
            self.answer_json([self.describe(name) for name in below])

    def describe(self, name: str) -> dict:
        if name not in self.files:
            return {"type": "directory", "path": name, "oid": self.commit}
        content = self.files[name]
        return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}


@pytest.fixture
def dataset_hub() -> Iterator[type[HubHandler]]:
    handler = type("Handler", (DatasetHubHandler,), {"files": {}, "uploads": {}, "unknown": [], "commits": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    handler.endpoint = f"http://127.0.0.1:{server.server_port}"
    yield handler
    server.shutdown()
    server.server_close()


PUSH = """
import sys
from virst_hf.data.publish import publish
for config in ("v1", "v2")[:int(sys.argv[4])]:
    print(publish("mevis", sys.argv[1], repo_id=sys.argv[2], config=config, cache_dir=sys.argv[3]))
"""
PULL = """
import sys
from virst_hf.data import load
from virst_hf.data.publish import load_published
for split in ("train", "valid_u"):
    rows = load_published(sys.argv[2], sys.argv[1], split, config="v1", cache_dir=sys.argv[3])
    print(len(rows), list(rows) == list(load("mevis", sys.argv[1], split, streaming=True)))
"""


@pytest.mark.slow
def test_push_and_pull(dataset_hub, mevis, tmp_path):
    assert run_with_hub(PUSH, dataset_hub, tmp_path, str(mevis), REPOSITORY, str(tmp_path / "c"), "1") == REPOSITORY
    assert {"README.md", "v1/train-00000-of-00001.parquet"} <= set(dataset_hub.files)
    card = dataset_hub.files["README.md"].decode()
    data = metadata(card)
    assert data["license"] == "cc-by-nc-sa-4.0" and "load_published" in card
    assert data["dataset_info"]["splits"][0]["num_examples"] == 4
    pulled = run_with_hub(PULL, dataset_hub, tmp_path, str(mevis), REPOSITORY, str(tmp_path / "d"))
    assert pulled.splitlines() == ["4 True", "4 True"]


@pytest.mark.slow
def test_a_second_configuration_and_an_owners_card_stay(dataset_hub, mevis, tmp_path):
    for split in ("train", "valid_u"):
        text = (mevis / split / "meta_expressions.json").read_text().replace("horse", "zebra")
        (mevis / split / "meta_expressions_v2.json").write_text(text)
    dataset_hub.files["README.md"] = b"---\nlanguage: en\n---\nMy own words.\n"
    run_with_hub(PUSH, dataset_hub, tmp_path, str(mevis), REPOSITORY, str(tmp_path / "c"), "2")
    card = dataset_hub.files["README.md"].decode()
    data = metadata(card)
    assert "My own words." in card and data["language"] == "en"
    assert [config["config_name"] for config in data["configs"]] == ["v1", "v2"]
    assert "v2/valid_u-00000-of-00001.parquet" in dataset_hub.files
