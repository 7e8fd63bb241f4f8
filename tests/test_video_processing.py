from fractions import Fraction

import cv2
import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from virst_hf import VideoError, VirstError, VirstVideoProcessor, open_video
from virst_hf.sampling import seg_frame_positions, vlm_frame_indices
from virst_hf.video_processing_virst import box_area, overlaps, resize_binary

KEYS = [
    "pixel_values_videos",
    "num_vlm_frames",
    "sam_pixel_values",
    "num_frames",
    "seg_frame_indices",
    "num_seg_frames",
    "original_sizes",
]


@pytest.fixture(scope="module")
def small():
    return VirstVideoProcessor(image_size=32, sam_image_size=64, tokens_per_clip=4)


def normalise(x):
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    return (x - mean) / std


def test_both_views_pixel_by_pixel(small, clip):
    views = small(clip)
    assert list(views) == KEYS
    vlm = [np.asarray(Image.fromarray(f).resize((32, 32), Image.BICUBIC)).astype(np.float32) / 255 for f in clip]
    assert torch.equal(views["pixel_values_videos"], normalise(torch.from_numpy(np.stack(vlm)).permute(0, 3, 1, 2)))
    sam = [np.asarray(TF.resize(Image.fromarray(f), [64, 64])) for f in clip]
    assert views["sam_pixel_values"].dtype == torch.uint8
    assert torch.equal(views["sam_pixel_values"], torch.from_numpy(np.stack(sam)).permute(0, 3, 1, 2))
    assert views["original_sizes"].tolist() == [[48, 64]]


@pytest.mark.parametrize("num_frames", [1, 2, 5, 8, 11, 70, 400])
def test_frames_of_the_views(small, clip_maker, num_frames):
    video = clip_maker(num_frames=num_frames, height=10, width=20)
    views = small(video)
    vlm = vlm_frame_indices(num_frames)
    assert int(views["num_vlm_frames"]) == len(vlm) == len(views["pixel_values_videos"])
    assert int(views["num_frames"]) == num_frames == len(views["sam_pixel_values"])
    want = [vlm[p] for p in seg_frame_positions(len(vlm))]
    assert views["seg_frame_indices"].tolist() == want and int(views["num_seg_frames"]) == len(want)
    last = small.vlm_view(Image.fromarray(video[vlm[-1]]))
    assert torch.equal(views["pixel_values_videos"][-1], last)


def test_still_image(small, clip):
    for image in (clip[0], Image.fromarray(clip[0])):
        views = small(image)
        assert [int(views[k]) for k in ("num_vlm_frames", "num_frames", "num_seg_frames")] == [1, 1, 1]
    assert small.num_video_tokens(1) == 4 and small.num_video_tokens(8) == 8 and small.num_video_tokens(64) == 64


def test_several_videos_stand_one_behind_the_other(small, clip, clip_maker):
    other = clip_maker(num_frames=9, height=30, width=20)
    batch, one, two = small([clip, other]), small(clip), small(other)
    for key in KEYS:
        assert torch.equal(batch[key], torch.cat([one[key], two[key]]))


def test_what_counts_as_one_video(small, clip, tmp_path):
    paths = []
    for i, frame in enumerate(clip):
        paths.append(tmp_path / f"{i:05d}.png")
        Image.fromarray(frame).save(paths[-1])
    want = small(clip)["sam_pixel_values"]
    for source in (list(clip), [Image.fromarray(f) for f in clip], paths, tmp_path, str(tmp_path), open_video(clip)):
        assert torch.equal(small(source)["sam_pixel_values"], want)
    assert small([clip, clip])["num_frames"].tolist() == [12, 12]
    assert small([tmp_path, clip])["num_frames"].tolist() == [12, 12]
    assert small([list(clip), list(clip)])["num_frames"].tolist() == [12, 12]


@pytest.mark.parametrize("size", [(96, 54), (31, 47), (3, 2), (1, 1)])
def test_portrait_and_odd_sizes(small, size):
    views = small(np.zeros((3, *size, 3), np.uint8))
    assert views["original_sizes"].tolist() == [list(size)] and views["sam_pixel_values"].shape == (3, 3, 64, 64)


def test_frames_are_read_once_and_never_held(small, clip):
    alive, most = [0], [0]

    class Counted(np.ndarray):
        def __del__(self):
            alive[0] -= 1

    def read():
        for frame in clip:
            alive[0] += 1
            most[0] = max(most[0], alive[0])
            yield frame.view(Counted)

    video = open_video(clip)
    video.read = read
    small(video)
    assert most[0] <= 2  # the one at hand and the one that is just being replaced


def test_the_large_view_is_not_copied(small, clip, monkeypatch):
    made = []
    make_views = small.make_views
    monkeypatch.setattr(small, "make_views", lambda source: made.append(make_views(source)) or made[-1])
    assert small(clip)["sam_pixel_values"].data_ptr() == made[0]["sam_pixel_values"].data_ptr()


def test_metadata(small, clip):
    (data,) = small(clip, return_metadata=True)["video_metadata"]
    assert data["total_num_frames"] == 12 and data["fps"] == 25.0 and len(data["frame_times"]) == 12


def test_save_and_load(small, tmp_path, clip):
    small.save_pretrained(tmp_path)
    loaded = VirstVideoProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == small.to_dict() and loaded.tokens_per_clip == 4
    assert torch.equal(loaded(clip)["pixel_values_videos"], small(clip)["pixel_values_videos"])


def test_resize_masks(small):
    masks = np.zeros((2, 128, 128), np.uint8)
    masks[0, :64] = 255
    resized = small.resize_masks(masks)
    assert resized.dtype == torch.bool and resized.shape == (2, 64, 64)
    assert bool(resized[0, :32].all()) and not bool(resized[0, 32:].any()) and not bool(resized[1].any())
    with pytest.raises(VirstError, match="frames, height, width"):
        small.resize_masks(masks[0])
    assert torch.equal(small.resize_masks(torch.from_numpy(masks)), resized)


SIDES = st.integers(1, 90)


def count_parts(mask):
    return cv2.connectedComponents(np.asarray(mask, dtype=np.uint8), connectivity=8)[0] - 1


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 9), st.integers(1, 9), st.integers(0, 999))
def test_areas_against_fractions(height, width, high, wide, seed):
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    got = box_area(mask, overlaps(height, high), overlaps(width, wide))
    full = int(box_area(np.ones_like(mask), overlaps(height, high), overlaps(width, wide))[0, 0])

    def overlap(i, old, j, new):
        return max(
            Fraction(0), min(Fraction(i + 1, old), Fraction(j + 1, new)) - max(Fraction(i, old), Fraction(j, new))
        )

    for r in range(high):
        for c in range(wide):
            share = sum(
                overlap(y, height, r, high) * overlap(x, width, c, wide)
                for y, x in zip(*np.nonzero(mask), strict=True)
            )
            assert Fraction(int(got[r, c]), full) == share * high * wide


@given(SIDES, SIDES, SIDES, SIDES, st.floats(0, 1), st.integers(0, 999))
def test_no_part_of_a_mask_vanishes(height, width, high, wide, density, seed):
    mask = np.random.default_rng(seed).random((height, width)) < density
    (resized,) = resize_binary(mask[None], (high, wide))
    assert resized.shape == (high, wide) and resized.any() == mask.any() and (not mask.all() or resized.all())
    # Every part has a set pixel of the result on it, and every set pixel stands on the mask.
    shown = box_area(resized, overlaps(height, high).T, overlaps(width, wide).T) > 0
    parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[1]
    assert set(np.unique(parts[mask])) == set(np.unique(parts[mask & shown]))
    assert not (resized & (box_area(mask, overlaps(height, high), overlaps(width, wide)) == 0)).any()


@given(st.data(), st.integers(20, 200), st.integers(20, 200), st.integers(16, 100), st.integers(1, 3))
@settings(max_examples=300)
def test_a_line_stays_in_one_piece(data, height, width, side, thickness):
    ends = [data.draw(st.tuples(st.integers(0, width - 1), st.integers(0, height - 1))) for _ in range(2)]
    mask = cv2.line(np.zeros((height, width), np.uint8), *ends, 1, thickness)
    (resized,) = resize_binary(mask[None] > 0, (side, side))
    assert count_parts(resized) == 1
    # About as long, and at most a few pixels wide.
    scaled = [(end[0] * side / width, end[1] * side / height) for end in ends]
    length = max(abs(scaled[0][i] - scaled[1][i]) for i in range(2)) + 1
    wide = thickness * side / min(height, width)
    assert length * 0.7 - 3 <= resized.sum() <= (length + wide) * 2 * (wide + 1.5)


@given(st.data(), st.integers(40, 300), st.integers(40, 300), st.integers(32, 150))
def test_the_area_of_an_object_is_kept(data, height, width, side):
    centre = data.draw(st.integers(0, width)), data.draw(st.integers(0, height))
    axes = data.draw(st.integers(5, width)), data.draw(st.integers(5, height))
    mask = cv2.ellipse(np.zeros((height, width), np.uint8), centre, axes, 0, 0, 360, 1, -1) > 0
    (resized,) = resize_binary(mask[None], (side, side))
    outline = 2 * (np.ptp(np.nonzero(resized)[0]) + np.ptp(np.nonzero(resized)[1]) + 2)
    assert abs(resized.sum() - mask.mean() * side * side) <= 0.5 * outline


def test_a_string_stays_on_its_kite():
    mask = np.zeros((240, 320), np.uint8)
    cv2.circle(mask, (200, 60), 30, 1, -1)
    cv2.line(mask, (200, 60), (30, 230), 1, 1)
    cv2.circle(mask, (300, 200), 1, 1, -1)
    for side in (32, 64, 128):
        (resized,) = resize_binary(mask[None] > 0, (side, side))
        assert count_parts(resized) == 2, side


def test_bad_calls(small, clip):
    for call, message in [
        (lambda: small([]), "empty"),
        (lambda: small(clip, return_tensors="np"), "return_tensors"),
        (lambda: small(clip, do_resize=True), "do_resize"),
        (lambda: small("absent.mp4"), "absent.mp4"),
    ]:
        with pytest.raises((VirstError, VideoError), match=message):
            call()
