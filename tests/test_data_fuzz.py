"""Thousands of damaged annotation files of every layout end in records or in the package's own error."""

import copy
import itertools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_fixtures import make_llava_video, make_reason_seg, make_refcoco
from mask_dict_fixtures import make_lvvis
from palette_fixtures import make_davis_converted, make_davis_raw, make_ref_youtube_vos
from PIL import Image
from semantic_fixtures import box, make_ade20k, make_coco_stuff, make_paco, make_pascal, text_rle, write_image

from virst_hf.data.builder import VirstDatasetBuilder, raise_problem
from virst_hf.data.catalog import builder_class
from virst_hf.data.records import FIELDS, decode_masks
from virst_hf.errors import VirstError

# VIRST_FUZZ_EXAMPLES=5000 looks longer; the default takes about half a minute.
EXAMPLES = int(os.environ.get("VIRST_FUZZ_EXAMPLES", "150"))


# --- the layouts -----------------------------------------------------------------------------------------------------
@dataclass
class Layout:
    """A data set on disk: how it is made, and which of its files are damaged."""

    name: str
    make: Callable[[Path], Any]
    files: tuple[str, ...]
    inner: str = "."
    options: dict[str, Any] = field(default_factory=dict)


def make_mevis(root: Path, split: str = "train") -> None:
    """Two videos of two frames; objects alone, together, absent; no target; 11 expressions in one video."""
    for name in ("a1", "b-2"):
        for frame in ("00000", "00001"):
            write_image(root / split / "JPEGImages" / name / f"{frame}.jpg")
    expressions = {str(i): {"exp": f"thing {i}", "anno_id": [3003019], "obj_id": [0]} for i in range(11)}
    expressions["1"] = {"exp": "both", "anno_id": [3003019, 4], "obj_id": [0, 1]}
    expressions["2"] = {"exp": "none", "anno_id": [], "obj_id": []}
    frames = ["00000", "00001"]
    videos = {
        "a1": {"expressions": expressions, "frames": frames, "vid_id": 3, "height": 8, "width": 12},
        "b-2": {"expressions": {"0": {"exp": "it", "anno_id": [5], "obj_id": [0]}}, "frames": frames, "vid_id": 4},
    }
    masks = {
        "3003019": [text_rle(box(0, 0, 4, 4)), None],
        "4": [{"size": [8, 12], "counts": [96]}, text_rle(box(2, 2, 5, 5))],
        "5": [None, None],
    }
    (root / split / "meta_expressions.json").write_text(json.dumps({"videos": videos}))
    (root / split / "mask_dict.json").write_text(json.dumps(masks))


def make_revos(root: Path, folder: str = "JPEGImages") -> None:
    """Names of videos are paths; the first frame is not frame 0; one clip that training leaves out."""
    videos = {}
    for name in ("UVO/all/-a_b", "TAO/train/Charades/x", "TAO/train/YFCC100M/y"):
        for frame in ("00145", "00146"):
            write_image(root / folder / name / f"{frame}.jpg")
        expressions = {
            "0": {"exp": "what moves", "anno_id": [3003019], "obj_id": [0], "type_id": 1},
            "1": {"exp": "a cat", "anno_id": [], "obj_id": [], "type_id": 2},
        }
        videos[name] = {
            "expressions": expressions,
            "frames": ["00145", "00146"],
            "vid_id": 1,
            "height": 8,
            "width": 12,
        }
    for split in ("train", "valid"):
        (root / f"meta_expressions_{split}_.json").write_text(json.dumps({"videos": videos}))
    (root / "mask_dict.json").write_text(json.dumps({"3003019": [None, text_rle(box(2, 2, 5, 5))]}))


def make_flat(root: Path) -> None:
    for frame in ("00000", "00001"):
        write_image(root / "frames" / "b" / f"{frame}.jpg")
        (root / "masks" / "b").mkdir(parents=True, exist_ok=True)
        Image.fromarray(box(0, 0, 4, 4) * np.uint8(7)).save(root / "masks" / "b" / f"{frame}.png")
    items = [
        {"video": "frames/b", "expression": "the box", "mask_folder": "masks/b", "object_ids": [7]},
        {"video": "frames/b", "expression": "a cat", "masks": [None, text_rle(box(1, 1, 2, 2))], "expression_id": "c"},
        {"video": "frames/b", "expression": "why?", "answer": "so", "type": "reasoning"},
    ]
    (root / "valid.json").write_text(json.dumps(items))


ADE_MAP = "annotations/training/ADE_train_00000001.png"
PACO_FILE = "vlpart/paco/annotations/paco_lvis_v1_train.json"
REFER = "refer_seg/refcoco"
QUESTIONS = "0_30_s_academic_v0_1/0_30_s_academic_v0_1_cap_processed.json"
TEXTS = "reason_seg/ReasonSeg"
LISTED = "meta_expressions/train/meta_expressions.json"
FRAME_MASK = "train/Annotations/{}.png"
YOUTUBE = "ref-youtube-vos"
LAYOUTS = [
    Layout("mevis", make_mevis, ("train/meta_expressions.json", "train/mask_dict.json")),
    Layout("revos", make_revos, ("meta_expressions_train_.json", "mask_dict.json")),
    Layout("revos", lambda root: make_revos(root, "."), ("meta_expressions_valid_.json", "mask_dict.json")),
    Layout("lv-vis", make_lvvis, ("train/meta_expressions.json", "train/mask_dict.json")),
    Layout("lv-vis", lambda root: make_lvvis(root, "original"), ("train_instances.json",)),
    Layout("own", make_flat, ("valid.json", "masks/b/00001.png")),
    Layout("ade20k", make_ade20k, (ADE_MAP, "images/training/ADE_train_00000001.jpg")),
    Layout("coco-stuff", make_coco_stuff, ("cocostuff/train2017/000000000009.png",)),
    Layout("paco-lvis", make_paco, (PACO_FILE,)),
    Layout("pascal-part", make_pascal, ("train.json",)),
    Layout("refcoco", make_refcoco, (f"{REFER}/refs(unc).json", f"{REFER}/instances.json")),
    Layout("refcoco", lambda root: make_refcoco(root, "p2"), (f"{REFER}/refs(unc).p",)),
    Layout("refcoco", lambda root: make_refcoco(root, "p0"), (f"{REFER}/refs(unc).p",)),
    Layout(
        "refcocog",
        lambda root: make_refcoco(root, "json", "refcocog", "umd"),
        ("refer_seg/refcocog/refs(umd).json", "refer_seg/refcocog/instances.json"),
    ),
    Layout(
        "refcoco",
        lambda root: make_refcoco(root, "parquet"),
        (f"{REFER}/data/train-00000-of-00001-0123456789abcdef.parquet",),
    ),
    Layout("reasonseg", make_reason_seg, (f"{TEXTS}/train/three.json", f"{TEXTS}/explanatory/train.json")),
    Layout("llava-video", make_llava_video, (QUESTIONS,)),
    Layout(YOUTUBE, make_ref_youtube_vos, (LISTED, FRAME_MASK.format("003234408d/00005"))),
    Layout(YOUTUBE, lambda root: make_ref_youtube_vos(root, "pkl"), ("train/mask_dict.pkl", LISTED)),
    Layout("ref-davis17", make_davis_converted, (LISTED, FRAME_MASK.format("motorbike/00001"))),
    Layout(
        "ref-davis17",
        make_davis_raw,
        (
            "davis_text_annotations/Davis17_annot2.txt",
            "DAVIS/ImageSets/2017/train.txt",
            "DAVIS/Annotations_unsupervised/480p/motorbike/00001.png",
        ),
    ),
]


# --- damage ----------------------------------------------------------------------------------------------------------
VALUES = [
    None,
    True,
    0,
    -1,
    1,
    7,
    2**31,
    2**63,
    10**30,
    0.5,
    -1e308,
    "",
    " ",
    "0",
    "00000",
    "\ud800",
    "a\0b",
    "../../etc/passwd",
    "/etc/passwd",
    "a\\b",
    "x" * 5000,
    "train",
    "h0",
    [],
    {},
    [None],
    [[]],
    [{}],
    [1, "a", None],
    {"": None},
    {"size": [8, 12], "counts": "h0"},
    {"size": [8, 12], "counts": [96]},
    {"size": [10**9, 10**9], "counts": "0"},
    [[0, 0, 1e5, 0, 1e5, 1e5]],
    [[1, 2, 3, 4, 5]],
    [[1e5, -1e5], [-1e5, 1e5]] * 10_000,
    [[1e5, -1e5, -1e5, 1e5] * 10_000],
]


def places_of(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON tree."""
    found, waiting = [], [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict | list):
            for key in list(node) if isinstance(node, dict) else range(len(node)):
                found.append((node, key))
                waiting.append(node[key])
    return found


def damage_tree(tree: Any, draw: Callable[[st.SearchStrategy], Any]) -> Any:
    """The tree after one to three changes: nodes replaced, deleted, doubled, exchanged, renamed."""
    root = [copy.deepcopy(tree)]
    for _ in range(draw(st.integers(1, 3))):
        places = places_of(root)
        node, key = places[draw(st.integers(0, len(places) - 1))]
        kind = draw(st.sampled_from(["value", "value", "copy", "delete", "double", "rename"]))
        if kind == "delete" and node is not root:
            del node[key]
        elif kind == "double" and isinstance(node, list) and node is not root:
            node.append(copy.deepcopy(node[key]))
        elif kind == "rename" and isinstance(node, dict):
            name = draw(st.sampled_from(VALUES))
            node[name if isinstance(name, str) else "other"] = node.pop(key)
        elif kind == "copy":
            other, place = places[draw(st.integers(0, len(places) - 1))]
            node[key] = copy.deepcopy(other[place])
        else:
            node[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))
    return root[0]


def damage_bytes(raw: bytes, draw: Callable[[st.SearchStrategy], Any]) -> bytes:
    """The bytes after one to four changes: replaced, inserted, cut out, cut off."""
    changed = bytearray(raw)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(changed)))
        kind = draw(st.sampled_from(["replace", "replace", "insert", "cut", "end"]))
        if kind == "replace" and place < len(changed):
            changed[place] = draw(st.integers(0, 255))
        elif kind == "insert":
            changed[place:place] = draw(st.binary(max_size=4))
        elif kind == "cut":
            del changed[place : place + draw(st.integers(1, 40))]
        elif kind == "end":
            del changed[place:]
    return bytes(changed)


# --- what must hold --------------------------------------------------------------------------------------------------
def check_row(row: dict[str, Any], root: Path) -> None:
    """What everything after a reader relies on."""
    assert list(row) == list(FIELDS)
    for path in [*row["frame_paths"], *([row["video_path"]] if row["video_path"] else [])]:
        assert Path(path).resolve().is_relative_to(root.resolve()) and Path(path).is_file()
    json.dumps(row).encode()
    length, size = len(row["frame_names"]), (row["height"], row["width"])
    for name in ("masks", "ignore_masks"):
        if row[name] is not None:
            assert decode_masks(row, name).shape == (length, *size)


def read_all(builder: VirstDatasetBuilder, root: Path, report: Callable[[str, str, str], None]) -> int:
    """Number of records of a tree, each checked."""
    count = 0
    for split in builder.available_splits():
        builder.annotation_paths(root, split)
        units = builder.units(root, split, report)
        assert all(isinstance(unit, str) for unit in units) and len(set(units)) == len(units)
        seen = set()
        for row in builder.rows(root, split, units, report):
            check_row(row, root)
            key = (row["video_id"], row["expression_id"])
            assert key not in seen, f"{key} stands twice"
            seen.add(key)
            count += 1
    return count


def note(check: str, item: str, message: str) -> None:
    """The doctor's report, which goes on."""
    # A video may have an empty name, which is then the defect.
    assert all(isinstance(text, str) for text in (check, item, message)) and check and message


CLOCK = itertools.count(10**18, 10**9)


def write(path: Path, raw: bytes) -> None:
    """Each state of a file has a time of its own, so no reader takes it for the one before."""
    path.write_bytes(raw)
    moment = next(CLOCK)
    os.utime(path, ns=(moment, moment))


@pytest.fixture(scope="module", params=LAYOUTS, ids=lambda layout: f"{layout.name}-{layout.files[0].split('/')[-1]}")
def tree(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    layout = request.param
    root = tmp_path_factory.mktemp("fuzz") / "root"
    root.mkdir()
    layout.make(root)
    builder = builder_class(layout.name)(data_dir=root / layout.inner, **layout.options)
    assert read_all(builder, builder.root, raise_problem) > 0
    return layout, builder, {name: (root / name).read_bytes() for name in layout.files}


def run(layout: Layout, builder: VirstDatasetBuilder, path: Path, raw: bytes, original: bytes) -> None:
    """Read the damaged tree as loading does and as the doctor does."""
    write(path, raw)
    try:
        for report in (raise_problem, note):
            try:
                read_all(builder, builder.root, report)
            except VirstError as error:
                assert len(str(error)) > 10
    finally:
        write(path, original)


FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.slow
@FUZZ
@given(data=st.data())
def test_damaged_trees_of_json(tree, data: st.DataObject):
    layout, builder, files = tree
    names = [name for name in files if name.endswith(".json")]
    if not names:
        return
    name = data.draw(st.sampled_from(names))
    raw = json.dumps(damage_tree(json.loads(files[name]), data.draw)).encode()
    run(layout, builder, root_of(builder, layout) / name, raw, files[name])


@pytest.mark.slow
@FUZZ
@given(data=st.data())
def test_damaged_bytes(tree, data: st.DataObject):
    layout, builder, files = tree
    name = data.draw(st.sampled_from(sorted(files)))
    run(layout, builder, root_of(builder, layout) / name, damage_bytes(files[name], data.draw), files[name])


def root_of(builder: VirstDatasetBuilder, layout: Layout) -> Path:
    """Where `make` wrote, of which the builder's root may be a part."""
    return builder.root.parents[len(Path(layout.inner).parts) - 1] if Path(layout.inner).parts else builder.root


@pytest.mark.parametrize("content", [b"", b"[" * 500_000, b'{"a":' * 500_000, b"null", b"NaN", b"\xff\xfe", b"\0" * 9])
def test_files_of_something_else(tree, content: bytes):
    layout, builder, files = tree
    for name in files:
        run(layout, builder, root_of(builder, layout) / name, content, files[name])
