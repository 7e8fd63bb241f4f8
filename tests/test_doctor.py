"""The doctor: each kind of defect is found, none hides another, and what is in order is left in peace."""

import json
import shutil
from pathlib import Path

import cv2
import image_fixtures
import numpy as np
import pytest
import semantic_fixtures
from PIL import Image

from virst_hf.data import MeViS, load
from virst_hf.data.alignment import THRESHOLD, clip_score, sample_frames
from virst_hf.data.doctor import ADVICE, Diagnosis, diagnose
from virst_hf.errors import DataError
from virst_hf.rle import encode_rle

HEIGHT, WIDTH = 32, 48
VIDEOS = ("aaaaaaaaaaaa", "bbbbbbbbbbbb", "cccccccccccc")
FRAMES = ("00000", "00001", "00002", "00003")


def box(left: int) -> dict:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[8:20, left : left + 10] = True
    return encode_rle(mask)


class Tree:
    """A MeViS tree that is in order, which tests damage before it is written."""

    def __init__(self, root: Path, split: str = "valid_u") -> None:
        self.root, self.folder = root, root / split
        self.videos, self.masks = {}, {}
        self.expression_file = "meta_expressions.json"
        for index, name in enumerate(VIDEOS):
            first, second = 2 * index, 2 * index + 1
            for t, frame in enumerate(FRAMES):
                self.frame(name, frame).parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (WIDTH, HEIGHT), (20 * index, 30 * t, 90)).save(self.frame(name, frame))
            self.masks[str(first)] = [box(2 + t) for t in range(4)]
            self.masks[str(second)] = [None, box(30), {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}, None]
            expressions = {
                "0": {"exp": "the red fish", "obj_id": [0], "anno_id": [first]},
                "1": {"exp": "both fish", "obj_id": [0, 1], "anno_id": [first, second]},
                "2": {"exp": "the elephant", "obj_id": [], "anno_id": []},
            }
            self.videos[name] = {"expressions": expressions, "frames": list(FRAMES), "vid_id": index}

    def frame(self, video: str, frame: str) -> Path:
        return self.folder / "JPEGImages" / video / f"{frame}.jpg"

    def write(self) -> Path:
        (self.folder / self.expression_file).write_text(json.dumps({"videos": self.videos}))
        (self.folder / "mask_dict.json").write_text(json.dumps(self.masks))
        return self.root

    def found(self, **options: object) -> set[tuple[str, str]]:
        diagnosis = diagnose("mevis", self.write(), **options)
        assert all(finding.check in ADVICE and finding.message for finding in diagnosis.findings)
        assert len(diagnosis.findings) == len(set(diagnosis.findings))
        return {(finding.check, finding.item) for finding in diagnosis.findings}


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path / "mevis")


def test_a_clean_set_has_no_findings(tree):
    diagnosis = diagnose("mevis", tree.write())
    assert diagnosis == Diagnosis([], [], ["valid_u"], 3, 9) and diagnosis.clean
    assert diagnose("mevis", tree.root, quick=True, limit=2).num_videos == 2


# What is done to the tree -> what must be found, and nothing else.
def missing_frame(tree):
    tree.frame(VIDEOS[0], "00002").unlink()
    return "missing_frame", VIDEOS[0]


def extra_frame(tree):
    shutil.copy(tree.frame(VIDEOS[0], "00000"), tree.frame(VIDEOS[0], "00009"))
    return "extra_frame", VIDEOS[0]


def truncated_frame(tree):
    path = tree.frame(VIDEOS[0], "00003")
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-600])
    return "undecodable", f"{VIDEOS[0]}, 00003.jpg"


def frame_of_another_size(tree):
    Image.new("RGB", (WIDTH // 2, HEIGHT)).save(tree.frame(VIDEOS[0], "00001"))
    return "size_mismatch", f"{VIDEOS[0]}, 00001.jpg"


def too_few_masks(tree):
    tree.masks["0"].pop()
    return "mask_count", f"{VIDEOS[0]}, annotation 0"


def mask_of_another_size(tree):
    tree.masks["0"][1] = encode_rle(np.ones((HEIGHT, WIDTH - 1), dtype=bool))
    return "mask_size", f"{VIDEOS[0]}, annotation 0, frame 1"


def damaged_mask(tree):
    tree.masks["0"][2]["counts"] += "1"
    return "bad_mask", f"{VIDEOS[0]}, annotation 0, frame 2"


def unknown_annotation(tree):
    tree.videos[VIDEOS[0]]["expressions"]["0"]["anno_id"] = [77]
    return "unknown_id", f"{VIDEOS[0]}, annotation 77"


def empty_masks(tree):
    tree.masks["0"] = [None, None, {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}, None]
    return "empty_mask", f"{VIDEOS[0]}/0"


def unsorted_frames(tree):
    tree.videos[VIDEOS[0]]["frames"] = ["00001", "00000", "00002", "00003"]
    return "unsorted_frames", VIDEOS[0]


def numbers_without_zeros(tree):
    names = ["1", "10", "2", "3"]
    for former, name in zip(FRAMES, names, strict=True):
        tree.frame(VIDEOS[0], former).rename(tree.frame(VIDEOS[0], name))
    tree.videos[VIDEOS[0]]["frames"] = names
    return "unsorted_frames", VIDEOS[0]


def same_text_and_target(tree):
    expressions = tree.videos[VIDEOS[0]]["expressions"]
    expressions["3"] = dict(expressions["0"])
    return "duplicate", f"{VIDEOS[0]}/3"


def no_expressions(tree):
    del tree.videos[VIDEOS[0]]["expressions"]
    return "json_version", VIDEOS[0]


def no_text(tree):
    tree.videos[VIDEOS[0]]["expressions"]["0"]["exp"] = 5
    return "bad_entry", f"{VIDEOS[0]}/0"


def name_that_leaves_the_root(tree):
    tree.videos[VIDEOS[0]]["frames"][0] = "../../x"
    tree.videos[VIDEOS[0]]["frames"].sort()
    return "unsafe_path", VIDEOS[0]


DEFECTS = [
    missing_frame,
    extra_frame,
    truncated_frame,
    frame_of_another_size,
    too_few_masks,
    mask_of_another_size,
    damaged_mask,
    unknown_annotation,
    empty_masks,
    unsorted_frames,
    numbers_without_zeros,
    same_text_and_target,
    no_expressions,
    no_text,
    name_that_leaves_the_root,
]


@pytest.mark.parametrize("damage", DEFECTS, ids=lambda damage: damage.__name__)
def test_each_defect_is_found_beside_that_of_another_video(tree, damage):
    tree.masks["4"].append(None)
    expected = damage(tree)
    assert tree.found() == {expected, ("mask_count", f"{VIDEOS[2]}, annotation 4")}


def test_a_quick_check_reads_heads_only(tree):
    truncated_frame(tree)
    assert tree.found(quick=True) == set()


# --- whole files -----------------------------------------------------------------------------------------------------
def test_a_missing_file_of_masks_is_found_once(tree):
    tree.write()
    (tree.folder / "mask_dict.json").unlink()
    findings = diagnose("mevis", tree.root).findings
    assert [(finding.check, finding.item) for finding in findings] == [("missing_file", "valid_u")]


@pytest.mark.parametrize(
    ("content", "check"),
    [("{", "bad_entry"), ('{"videos": []}', "bad_entry"), ('{"videos": {"a": {}, "a": {}}}', "duplicate")],
)
def test_a_damaged_file_of_expressions_in_one_split_hides_no_other(tree, content, check):
    other = Tree(tree.root, "train")
    other.masks["0"].pop()
    other.write(), tree.write()
    (tree.folder / "meta_expressions.json").write_text(content)
    found = {(finding.check, finding.item) for finding in diagnose("mevis", tree.root).findings}
    assert found == {(check, "valid_u"), ("mask_count", f"{VIDEOS[0]}, annotation 0")}


def test_the_file_of_another_version(tree):
    tree.expression_file = "meta_expressions_v2.json"
    assert tree.found() == {("json_version", "valid_u")}
    assert tree.found(split="valid_u") == {("json_version", "valid_u")}
    assert tree.found(config="v2") == set()


def test_the_file_of_another_set(tree):
    tree.write()
    (tree.root / "valid").mkdir()
    (tree.root / "valid" / "meta_valid.json").write_text('{"videos": {}}')
    assert tree.found() == {("json_version", "valid/meta_valid.json")}
    assert tree.found(split="valid_u") == set()


def test_what_could_not_be_checked_is_an_error(tree, tmp_path):
    tree.write()
    (tmp_path / "empty").mkdir()
    for arguments in (
        ("mevis", tmp_path / "absent"),
        ("mevis", tmp_path / "empty"),
        ("nothing", tree.root),
        ("mevis", tree.root, "train"),
        ("mevis", tree.root, None, "v9"),
    ):
        with pytest.raises(DataError):
            diagnose(*arguments)
    with pytest.raises(DataError, match="no_such"):
        diagnose("mevis", tree.root, no_such=1)


def test_several_splits_are_told_apart(tree):
    other = Tree(tree.root, "train")
    for each in (tree, other):
        each.masks["0"].pop()
        each.write()
    messages = [finding.message for finding in diagnose("mevis", tree.root).findings]
    assert [message.split(":")[0] for message in messages] == ["train", "valid_u"]


@pytest.mark.parametrize("bad", [0, 1, 70])
def test_an_error_that_a_reader_cannot_pass_ends_one_video_only(tmp_path, monkeypatch, bad):
    """129 videos make chunks of three; every expression is still seen, and once."""
    tree = Tree(tmp_path / "mevis")
    names = [f"{index:012d}" for index in range(129)]
    entry = tree.videos[VIDEOS[0]]
    tree.videos = {name: entry for name in names}
    for name in names:
        shutil.copytree(tree.folder / "JPEGImages" / VIDEOS[0], tree.folder / "JPEGImages" / name)
    read = MeViS.rows

    def rows(self, root, split, units, report):
        for unit in units:
            yield from read(self, root, split, [unit], report)
            if unit == names[bad]:
                raise DataError("This video is beyond me.")

    monkeypatch.setattr(MeViS, "rows", rows)
    diagnosis = diagnose("mevis", tree.write(), quick=True)
    assert [(finding.check, finding.item) for finding in diagnosis.findings] == [("bad_entry", names[bad])]
    assert diagnosis.num_expressions == 3 * 129


def test_clips_that_the_loader_leaves_out_are_a_note(tree, monkeypatch):
    monkeypatch.setattr(MeViS, "excluded_units", lambda self, root, split: ["TAO/x"], raising=False)
    diagnosis = diagnose("mevis", tree.write())
    assert diagnosis.clean and len(diagnosis.notes) == 1 and "TAO/x" in diagnosis.notes[0]


def test_several_annotators_may_use_the_same_words(tree, monkeypatch):
    same_text_and_target(tree)
    monkeypatch.setattr("virst_hf.data.doctor.SEVERAL_ANNOTATORS", ("mevis",))
    assert tree.found() == set()


def test_own_videos(tmp_path):
    """A flat list: a folder of frames whose numbers have no zeros, and a file that is no video."""
    for name in ("frame_9", "frame_10"):
        path = tmp_path / "clip" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(path)
    (tmp_path / "b.mp4").write_bytes(b"no video")
    items = [{"video": "clip", "expression": "a dog", "masks": [box(3), None]}, {"video": "b.mp4", "expression": "c"}]
    (tmp_path / "train.json").write_text(json.dumps(items))
    found = {(finding.check, finding.item) for finding in diagnose("own", tmp_path).findings}
    assert ("missing_frame", "b.mp4") in found and len(found) <= 2


# The fixtures of the readers' own tests -> what the doctor says of them: a reference without a mask, a fake mp4.
OTHER_SETS = {
    "refcoco": (image_fixtures.make_refcoco, {"empty_mask"}),
    "reasonseg": (image_fixtures.make_reason_seg, set()),
    "llava-video": (image_fixtures.make_llava_video, {"undecodable"}),
    "ade20k": (semantic_fixtures.make_ade20k, set()),
    "coco-stuff": (semantic_fixtures.make_coco_stuff, set()),
    "paco-lvis": (semantic_fixtures.make_paco, set()),
    "pascal-part": (semantic_fixtures.make_pascal, set()),
}


@pytest.mark.parametrize("name", OTHER_SETS)
def test_other_sets(name, tmp_path):
    make, expected = OTHER_SETS[name]
    make(tmp_path)
    diagnosis = diagnose(name, tmp_path)
    assert {finding.check for finding in diagnosis.findings} == expected and diagnosis.num_expressions > 1


@pytest.mark.parametrize("name", ["ade20k", "coco-stuff"])
def test_a_damaged_picture_among_many_images(name, tmp_path):
    OTHER_SETS[name][0](tmp_path)
    row = next(iter(load(name, tmp_path, streaming=True).values()))
    path = Path(next(iter(row))["frame_paths"][0])
    path.write_bytes(path.read_bytes()[:200])
    found = {finding.check for finding in diagnose(name, tmp_path).findings}
    assert found and found <= {"undecodable", "missing_frame"}


# --- alignment -------------------------------------------------------------------------------------------------------
def texture(rng: np.random.Generator, height: int, width: int, cell: int = 6) -> np.ndarray:
    coarse = rng.normal(size=(height // cell + 2, width // cell + 2, 3)).astype(np.float32)
    return 20 * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def clip(seed: int, speed: float, contrast: float, length: int = 20) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """A textured form over a textured background: `contrast` is the difference of their mean colours, and 20 the
    standard deviation of both textures. Three times as many masks as frames."""
    rng = np.random.default_rng(seed)
    height, width = 120, 200
    base = rng.uniform(90, 160, 3)
    background, surface = base + texture(rng, height, width), base + texture(rng, height, width)
    surface += contrast * rng.choice([-1, 1], 3)
    radius, angle = rng.uniform(14, 22), rng.uniform(0, 6) + np.arange(5) * 2 * np.pi / 5
    frames, masks = [], []
    for t in range(3 * length):
        travelled = (speed * t + 30 * seed) % (2 * (width - 60))
        centre = (30 + min(travelled, 2 * (width - 60) - travelled), 60 + 15 * np.sin(speed * t / 15))
        corners = np.stack([centre[0] + radius * np.cos(angle), centre[1] + radius * np.sin(angle)], 1)
        mask = cv2.fillPoly(np.zeros((height, width), np.uint8), [corners.round().astype(np.int32)], 1) > 0
        masks.append(mask)
        if t < length:
            moved = np.roll(surface, (int(centre[1]), int(centre[0])), (0, 1))
            frames.append(np.where(mask[..., None], moved, background).clip(0, 255).astype(np.uint8))
    return frames, masks


def score(frames: list[np.ndarray], masks: list[np.ndarray]) -> float:
    return clip_score(lambda index: frames[index], [[encode_rle(mask) for mask in masks[: len(frames)]]]).score


@pytest.mark.parametrize("contrast", [60, 20, 12])
@pytest.mark.parametrize("speed", [4, 0.5, 0])
def test_masks_that_fit_score_high(speed, contrast):
    for seed in range(3):
        assert score(*clip(seed, speed, contrast)) > THRESHOLD


@pytest.mark.parametrize("contrast", [60, 20])
def test_masks_of_other_times_and_places_score_low(contrast):
    for seed in range(3):
        frames, masks = clip(seed, 4, contrast)
        # As in ReVOS, where the i-th mask belongs to frame 30 i.
        assert score(frames, masks[::3]) < THRESHOLD
        assert score(frames, [np.roll(mask, (8, 24), (0, 1)) for mask in masks]) < THRESHOLD


def test_masks_of_another_time_fit_where_nothing_moves():
    frames, masks = clip(0, 0, 60)
    assert score(frames, masks[::3]) > THRESHOLD


def test_the_best_shift_is_told():
    frames, masks = clip(0, 1, 60)
    shifted = [encode_rle(np.roll(mask, (-6, 20), (0, 1))) for mask in masks[:20]]
    found = clip_score(lambda index: frames[index], [shifted])
    assert found.misaligned and found.shift == pytest.approx((6 / 200, -20 / 200), abs=0.015)


def test_what_is_too_small_or_absent_has_no_score():
    frames, _ = clip(0, 1, 60)
    dot = np.zeros(frames[0].shape[:2], dtype=bool)
    dot[5, 5] = True
    assert clip_score(lambda index: frames[index], [[None] * 20, [encode_rle(dot)] * 20]) is None
    assert sample_frames([None, box(1), None, box(2)]) == [1, 3]
    assert sample_frames([box(1)] * 100, 3) == [0, 50, 99]


def test_the_doctor_names_the_misaligned_clip(tmp_path):
    videos, annotations = {}, {}
    for index, shift in enumerate((0, 30)):
        name, names = f"video{index}", [f"{t:05d}" for t in range(20)]
        frames, masks = clip(index, 3, 60)
        (tmp_path / "JPEGImages" / name).mkdir(parents=True)
        for stem, frame in zip(names, frames, strict=True):
            Image.fromarray(frame).save(tmp_path / "JPEGImages" / name / f"{stem}.jpg", quality=90)
        annotations[str(index)] = [encode_rle(np.roll(mask, shift, 1)) for mask in masks[:20]]
        expressions = {"0": {"exp": "the pentagon", "obj_id": [0], "anno_id": [index]}}
        videos[name] = {"expressions": expressions, "frames": names}
    (tmp_path / "meta_expressions.json").write_text(json.dumps({"videos": videos}))
    (tmp_path / "mask_dict.json").write_text(json.dumps(annotations))
    assert diagnose("own", tmp_path).clean
    findings = diagnose("own", tmp_path, alignment=True).findings
    assert [(finding.check, finding.item) for finding in findings] == [("misaligned", "video1")]
    assert "right" in findings[0].message
