"""LLaVA-Video: questions without their placeholders, videos as files or as folders of frames, and every trap."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_fixtures import llava_items, make_llava_video, picture, turns, write_json

from virst_hf.data.catalog import load
from virst_hf.data.llava_video import LLaVAVideo, VideoQuestionReader, without_placeholders
from virst_hf.errors import DataError

FILES = "0_30_s_academic_v0_1"


def rows_of(builder: Any) -> list[dict]:
    def fail(check: str, item: str, message: str) -> None:
        raise AssertionError((check, item, message))

    return list(builder.rows(builder.root, "train", builder.units(builder.root, "train", fail), fail))


def findings(root: Path, **options: Any) -> tuple[list[tuple[str, str]], list[dict]]:
    """What the reader tells of `questions.json` as the doctor reads it, and the rows that are left."""
    found: list[tuple[str, str]] = []

    def report(check: str, item: str, message: str) -> None:
        found.append((check, item))

    common = {"category": "video_qa", "source": "llava-video", "split": "train"}
    reader = VideoQuestionReader(root, ".", root / "questions.json", report, common, **options)
    return found, list(reader.rows(reader.units()))


def test_rows(tmp_path: Path):
    root = make_llava_video(tmp_path / "data")
    builder = LLaVAVideo(data_dir=root, cache_dir=str(tmp_path / "cache"))
    caption, again, who, where = rows_of(builder)
    folder = root / FILES / "JPEGImages" / "academic_source" / "Charades" / "RW587"
    names = [f"{number:06d}" for number in range(1, 13)]
    common = {
        "object_ids": [],
        "annotation_ids": [],
        "masks": None,
        "ignore_masks": None,
        "category": "video_qa",
        "expression_type": "question",
        "source": "llava-video",
        "split": "train",
    }
    assert caption == {
        "video_id": "academic_source/Charades/RW587.mp4",
        "expression_id": "0",
        "expression": "Describe the video.",
        "answer": "A man.",
        "frame_names": names,
        "frame_paths": [str(folder / f"{name}.jpg") for name in names],
        "video_path": None,
        "height": 8,
        "width": 10,
        **common,
    }
    # A second item about the same video, with the same id.
    assert again == {**caption, "expression_id": "1", "expression": "What is red?", "answer": "The door."}
    assert who == {
        "video_id": "academic_source/NextQA/1/2.mp4",
        "expression_id": "0",
        "expression": "Who runs?",
        "answer": "A dog.",
        "frame_names": [],
        "frame_paths": [],
        "video_path": str(root / FILES / "academic_source" / "NextQA" / "1" / "2.mp4"),
        "height": None,
        "width": None,
        **common,
    }
    assert where == {**who, "expression_id": "1", "expression": "Where?", "answer": "On grass."}


def test_loads_prepared_and_streaming(tmp_path: Path):
    root = make_llava_video(tmp_path / "data")
    cache = str(tmp_path / "cache")
    prepared = load("llava-video", root, split="train", cache_dir=cache)
    assert list(prepared) == list(load("llava-video", root, split="train", cache_dir=cache, streaming=True))
    assert prepared["answer"] == ["A man.", "The door.", "A dog.", "On grass."]


@pytest.mark.parametrize("above", [FILES, "."])
@pytest.mark.parametrize("frames", ["academic_source/", ""])
def test_layouts(tmp_path: Path, above: str, frames: str):
    """The folder above or the release's own; frames with the first step of the path or without it."""
    root = make_llava_video(tmp_path / "data", above, frames)
    rows = rows_of(LLaVAVideo(data_dir=root, cache_dir=str(tmp_path / "cache")))
    assert [len(row["frame_paths"]) for row in rows] == [12, 12, 0, 0]
    assert all(Path(path).is_file() for path in rows[0]["frame_paths"])


def test_videos_in_a_folder_of_their_own(tmp_path: Path):
    root = make_llava_video(tmp_path / "data")
    (root / FILES / "videos").mkdir()
    (root / FILES / "academic_source").rename(root / FILES / "videos" / "academic_source")
    row = rows_of(LLaVAVideo(data_dir=root, cache_dir=str(tmp_path / "cache")))[-1]
    assert row["video_path"] == str(root / FILES / "videos" / row["video_id"])


def test_files_or_frames_only(tmp_path: Path):
    root = make_llava_video(tmp_path / "data")
    for frames, item in ((True, "academic_source/NextQA/1/2.mp4"), (False, "academic_source/Charades/RW587.mp4")):
        builder = LLaVAVideo(data_dir=root, frames=frames, cache_dir=str(tmp_path / "cache"))
        found: list[tuple] = []
        units = builder.units(root, "train", lambda *problem: None)
        rows = list(builder.rows(root, "train", units, lambda *problem: found.append(problem[:2])))  # noqa: B023
        assert found == [("missing_file", item)]
        assert len(rows) == 2


def test_configurations(tmp_path: Path):
    root = make_llava_video(tmp_path / "data")
    for config in ("oe", "mc"):
        with pytest.raises(DataError, match="does not look like llava-video"):
            LLaVAVideo(data_dir=root, config_name=config, cache_dir=str(tmp_path / "cache"))
        item = {**llava_items()[1], "conversations": turns(f"<image>\n{config}?", "Yes.")}
        write_json(root / FILES / f"0_30_s_academic_{config}_v0_1_qa_processed.json", [item])
        builder = LLaVAVideo(data_dir=root, config_name=config, cache_dir=str(tmp_path / "cache"))
        assert [row["expression"] for row in rows_of(builder)] == [f"{config}?"]


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("<image>\nDescribe.", "Describe."),
        ("<video>\nDescribe.", "Describe."),
        ("Describe.\n<image>", "Describe."),
        ("<image><video> Describe\nit. ", "Describe\nit."),
        ("Is <b> an image?", "Is <b> an image?"),
        ("<image>\n", ""),
    ],
)
def test_placeholders(text: str, question: str):
    assert without_placeholders(text) == question


def test_frames_in_the_order_of_their_numbers(tmp_path: Path):
    """Frames of another tool: no leading zeros; and what macOS leaves beside them."""
    for name in ("10.jpg", "9.jpg", "1.jpg", "._1.jpg", "notes.txt"):
        picture(tmp_path / "JPEGImages" / "clip.v2" / name, 8, 10) if name.endswith("jpg") else (
            tmp_path / "JPEGImages" / "clip.v2" / name
        ).write_text("x")
    # As Shapes writes it: the video is the name of its folder, without a suffix.
    write_json(tmp_path / "questions.json", [{"video": "clip.v2", "conversations": turns("Q", "A")}])
    found, (row,) = findings(tmp_path)
    assert (found, row["frame_names"]) == ([], ["1", "9", "10"])


BAD_ITEMS = [
    (7, "item 0"),
    ({"conversations": turns("Q", "A")}, "item 0"),
    ({"video": ["a"], "conversations": turns("Q", "A")}, "item 0"),
    ({"video": "clip"}, "clip, item 0"),
    ({"video": "clip", "conversations": []}, "clip, item 0"),
    ({"video": "clip", "conversations": {"from": "human"}}, "clip, item 0"),
    ({"video": "clip", "conversations": ["Q", "A"]}, "clip, item 0"),
    ({"video": "clip", "conversations": turns("Q")}, "clip, item 0"),
    ({"video": "clip", "conversations": turns("Q", "A", "Q")}, "clip, item 0"),
    ({"video": "clip", "conversations": turns("Q", "A")[::-1]}, "clip, item 0"),
    ({"video": "clip", "conversations": [{"from": "human"}, {"from": "gpt"}]}, "clip, item 0"),
    ({"video": "clip", "conversations": [{"from": ["human"], "value": "Q"}, {"from": "gpt", "value": ""}]},)
    + ("clip, item 0",),
    ({"video": "clip", "conversations": turns("<image>\n", "A")}, "clip/0"),
    ({"video": "clip", "conversations": turns("Q", " ")}, "clip/0"),
    ({"video": "clip", "conversations": turns("Q", "\ud800")}, "clip/0"),
]


@pytest.mark.parametrize("index", range(len(BAD_ITEMS)))
def test_a_bad_item_is_told_and_the_next_is_read(tmp_path: Path, index: int):
    content, item = BAD_ITEMS[index]
    picture(tmp_path / "JPEGImages" / "clip" / "0.jpg", 8, 10)
    write_json(tmp_path / "questions.json", [content, {"video": "clip", "conversations": turns("Next?", "Yes.")}])
    found, rows = findings(tmp_path)
    assert found == [("bad_entry", item)]
    assert [row["expression"] for row in rows] == ["Next?"]
    write_json(tmp_path / f"{FILES}_cap_processed.json", [content])
    with pytest.raises(DataError, match="bad_entry"):
        list(load("llava-video", tmp_path, split="train", streaming=True, cache_dir=str(tmp_path / "cache")))


@pytest.mark.parametrize(
    ("video", "check"),
    [
        ("../secret.mp4", "unsafe_path"),
        ("/etc/passwd", "unsafe_path"),
        ("a\\..\\b.mp4", "unsafe_path"),
        ("a\0b.mp4", "unsafe_path"),
        ("C:/x.mp4", "unsafe_path"),
        ("none.mp4", "missing_file"),
        (".mp4", "unsafe_path"),
        ("empty.mp4", "missing_frame"),
        ("broken.mp4", "missing_frame"),
        ("twice.mp4", "duplicate"),
        ("linked.mp4", "unsafe_path"),
        ("leaving/x.mp4", "unsafe_path"),
    ],
)
def test_videos_that_are_refused(tmp_path: Path, video: str, check: str):
    root = tmp_path / "data"
    frames = root / "JPEGImages"
    (frames / "empty").mkdir(parents=True)
    (frames / "broken").mkdir()
    (frames / "broken" / "1.jpg").write_bytes(b"no picture")
    picture(frames / "twice" / "1.jpg", 8, 10)
    picture(frames / "twice" / "1.png", 8, 10)
    secret = picture(tmp_path / "secret" / "x.jpg", 8, 10)
    (tmp_path / "secret.mp4").write_bytes(b"")
    (tmp_path / "secret" / "x.mp4").write_bytes(b"")
    (frames / "linked").mkdir()
    (frames / "linked" / "1.jpg").symlink_to(secret)
    (root / "leaving").symlink_to(secret.parent)
    write_json(root / "questions.json", [{"video": video, "conversations": turns("Q", "A")}])
    assert findings(root) == ([(check, video)], [])


@pytest.mark.parametrize("follow_links", [False, True])
def test_names_that_no_file_can_have(tmp_path: Path, follow_links: bool):
    write_json(tmp_path / "questions.json", [{"video": "long" * 100, "conversations": turns("Q", "A")}])
    ((check, _),), rows = findings(tmp_path, follow_links=follow_links)
    assert check in ("missing_file", "unsafe_path")
    assert rows == []


def test_links_that_may_be_followed(tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.mp4").write_bytes(b"")
    root = tmp_path / "data"
    write_json(root / "questions.json", [{"video": "leaving/x.mp4", "conversations": turns("Q", "A")}])
    (root / "leaving").symlink_to(tmp_path / "elsewhere")
    assert len(findings(root, follow_links=True)[1]) == 1


@pytest.mark.parametrize("raw", [b"", b"{}", b"7", b"[" * 500_000, b"[NaN]", b"\xff"])
def test_files_of_another_kind(tmp_path: Path, raw: bytes):
    (tmp_path / f"{FILES}_cap_processed.json").write_bytes(raw)
    with pytest.raises(DataError, match=f"{FILES}_cap_processed.json"):
        load("llava-video", tmp_path, split="train", cache_dir=str(tmp_path / "cache"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """Every place of a JSON value."""
    steps = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    return [place for key, inner in steps for place in [(*path, key), *places(inner, (*path, key))]]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutated_files_end_in_rows_or_defects(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    root = tmp_path_factory.getbasetemp() / "llava-fuzz"
    if not root.exists():
        picture(root / "JPEGImages" / "clip" / "1.jpg", 8, 10)
    content: Any = [
        {"video": "clip.mp4", "conversations": turns("<image>\nQ", "A", "Q", "A")},
        {"video": "clip", "conversations": turns("Q", "A")},
    ]
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(places(content)))
        holder = content
        for step in place[:-1]:
            holder = holder[step]
        holder[place[-1]] = copy.deepcopy(data.draw(json_values))
    write_json(root / "questions.json", content)
    for row in findings(root)[1]:
        assert json.dumps(row)
        assert row["frame_paths"] == [str(root / "JPEGImages" / "clip" / "1.jpg")]


def test_the_row_of_the_page(tmp_path: Path):
    page = (Path(__file__).parent.parent / "docs" / "data" / "llava-video.md").read_text(encoding="utf-8")
    shown = json.loads(page.split("```json\n")[1].split("```")[0])
    root = make_llava_video(tmp_path)
    row = rows_of(LLaVAVideo(data_dir=root, cache_dir=str(tmp_path / "cache")))[-1]
    assert json.loads(json.dumps(row).replace(str(root), "/data")) == shown
