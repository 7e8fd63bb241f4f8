"""Overlay drawing and writing of files."""

import json

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from virst_hf.errors import VideoError, VirstError
from virst_hf.rendering import VideoWriter, draw_overlay, expression_color, replacing, write_json, write_mask


def read_video(path) -> tuple[list[np.ndarray], object]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        return frames, (stream.codec_context.name, float(stream.average_rate))


def test_overlay_blends_inside_and_outlines_the_edge():
    frame = np.full((20, 30, 3), 100, dtype=np.uint8)
    mask = np.zeros((20, 30), dtype=bool)
    mask[5:15, 5:25] = True
    out = draw_overlay(frame, [mask])
    color = np.array(expression_color(0))
    assert (out[~mask] == 100).all()
    assert (out[5, 5:25] == color).all() and (out[5:15, 24] == color).all()
    assert np.abs(out[10, 15] - (100 + color) / 2).max() <= 0.5
    assert (frame == 100).all()


def test_overlay_has_a_colour_for_each_expression_and_a_legend():
    frame = np.zeros((240, 320, 3), dtype=np.uint8)
    masks = [np.zeros((240, 320), dtype=bool) for _ in range(2)]
    masks[0][150:200, 20:80], masks[1][150:200, 120:180] = True, True
    plain = draw_overlay(frame, masks)
    out = draw_overlay(frame, masks, ["the girl", "das Bett, größer"])
    assert (out[150, 20] == expression_color(0)).all() and (out[150, 120] == expression_color(1)).all()
    assert (out[100:] == plain[100:]).all()
    corner = out[:100].reshape(-1, 3)
    for index in range(2):
        assert (corner == expression_color(index)).all(1).any()
    assert (corner == 255).all(1).any()


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 40), st.integers(1, 40), st.text(max_size=30), st.integers(1, 10))
def test_overlay_keeps_size_and_type(height: int, width: int, text: str, count: int):
    frame = np.full((height, width, 3), 7, dtype=np.uint8)
    out = draw_overlay(frame, [np.ones((height, width), dtype=bool)] * count, [text] * count)
    assert out.shape == frame.shape and out.dtype == np.uint8


def test_overlay_says_what_does_not_fit():
    frame = np.zeros((4, 6, 3), dtype=np.uint8)
    with pytest.raises(VirstError, match=r"\(6, 4\)"):
        draw_overlay(frame, [np.zeros((6, 4), dtype=bool)])
    with pytest.raises(VirstError, match="2 and 1 masks"):
        draw_overlay(frame, [np.zeros((4, 6), dtype=bool)], ["a", "b"])


@pytest.mark.parametrize("size", [(32, 48), (33, 47), (1, 1)])
def test_video_writer_pads_odd_sizes(tmp_path, size):
    height, width = size
    with VideoWriter(tmp_path / "clip.mp4", height, width, fps=25) as writer:
        for value in (0, 100, 200):
            writer.write(np.full((height, width, 3), value, dtype=np.uint8))
    frames, (codec, rate) = read_video(tmp_path / "clip.mp4")
    assert codec == "h264" and rate == 25 and len(frames) == 3
    assert frames[0].shape == (height + height % 2, width + width % 2, 3)
    for frame, value in zip(frames, (0, 100, 200), strict=True):
        assert np.abs(frame.astype(int) - value).max() <= 6


def test_video_writer_has_a_frame_rate_for_sources_without_one(tmp_path):
    with VideoWriter(tmp_path / "clip.mp4", 16, 16, fps=None) as writer:
        writer.write(np.zeros((16, 16, 3), dtype=np.uint8))
    assert read_video(tmp_path / "clip.mp4")[1][1] == 10


def test_video_writer_leaves_nothing_after_an_error(tmp_path):
    with pytest.raises(VideoError, match="uint8 frame"):
        with VideoWriter(tmp_path / "clip.mp4", 16, 16) as writer:
            writer.write(np.zeros((16, 16, 3), dtype=np.uint8))
            writer.write(np.zeros((16, 18, 3), dtype=np.uint8))
    with pytest.raises(VideoError, match="at least one"):
        with VideoWriter(tmp_path / "clip.mp4", 16, 16):
            pass
    assert list(tmp_path.iterdir()) == []


def test_replacing_keeps_the_old_file_after_an_error(tmp_path):
    path = tmp_path / "deep" / "note.txt"
    with replacing(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(RuntimeError):
        with replacing(path) as temporary:
            temporary.write_text("new")
            raise RuntimeError
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_masks_are_0_and_255(tmp_path_factory, height: int, width: int, seed: int):
    mask = np.random.default_rng(seed).random((height, width)) > 0.5
    path = tmp_path_factory.mktemp("mask") / "00000.png"
    write_mask(path, mask)
    image = Image.open(path)
    assert image.mode == "L"
    assert (np.array(image) == np.where(mask, 255, 0)).all()


def test_mask_must_be_boolean(tmp_path):
    with pytest.raises(VirstError, match="uint8"):
        write_mask(tmp_path / "a.png", np.zeros((2, 2), dtype=np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_json_is_utf8_and_strict(tmp_path):
    write_json(tmp_path / "a.json", {"text": "größer"})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"text": "größer"}
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"score": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"text": "größer"}
