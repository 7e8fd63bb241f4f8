"""Videos from every kind of source, upright and equal through both decoders; and what is refused."""

import importlib.util
import struct
from itertools import islice

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from virst_hf import VideoError, open_video, video_decoders
from virst_hf.video_io import natural_key

HAS_DECORD = importlib.util.find_spec("decord") is not None
BACKENDS = ["pyav"] + ["decord"] * HAS_DECORD


def write_video(path, frames, fps=10, codec="libx264", pts=None, options=None, codec_options=None):
    """Encode uint8 RGB frames losslessly enough to tell colours apart."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=fps, options=codec_options or {})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for index, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            if pts is not None:
                picture.pts = pts[index]
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def quadrants(num_frames=6, height=48, width=64):
    """Red top left, green top right, blue bottom left, the rest grey and changing with time."""
    frames = np.zeros((num_frames, height, width, 3), np.uint8)
    frames[:] = (20 * np.arange(num_frames))[:, None, None, None]
    frames[:, : height // 2, : width // 2] = (220, 20, 20)
    frames[:, : height // 2, width // 2 :] = (20, 220, 20)
    frames[:, height // 2 :, : width // 2] = (20, 20, 220)
    return frames


def rotate_header(path, degrees):
    """Write a rotation into the display matrix of an mp4's track header."""
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 44
    one = 1 << 16
    turn = {90: (0, one, -one, 0), 180: (-one, 0, 0, -one), 270: (0, -one, one, 0)}[degrees]
    a, b, c, d = turn
    data[matrix : matrix + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def close_to(a, b, tolerance=24):
    return abs(a.astype(int) - b.astype(int)).mean() < tolerance


@pytest.fixture(scope="module")
def movie(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("movie") / "clip.mp4", quadrants())


# --- files -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("backend", [None, *BACKENDS])
def test_a_file(movie, backend):
    video = open_video(movie, backend=backend)
    assert (len(video), video.height, video.width, video.fps, video.is_image) == (6, 48, 64, 10.0, False)
    assert video.frame_times == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    first, second = list(video), list(video)  # any number of times
    assert len(first) == 6 and all(f.dtype == np.uint8 and f.shape == (48, 64, 3) for f in first)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(close_to(a, b) for a, b in zip(first, quadrants(), strict=True))


@pytest.mark.skipif(not HAS_DECORD, reason="decord has no wheel for this platform")
@pytest.mark.parametrize(("codec", "size"), [("libx264", (48, 64)), ("mpeg4", (50, 36)), ("libx264", (34, 26))])
def test_decoders_give_equal_frames(tmp_path, codec, size):
    path = write_video(tmp_path / "clip.mp4", quadrants(12, *size), codec=codec)
    ours, theirs = (list(open_video(path, backend=b)) for b in ("pyav", "decord"))
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("degrees", [90, 180, 270])
@pytest.mark.parametrize("size", [(48, 64), (34, 58), (64, 48)])
def test_rotation_is_applied_and_decoders_agree(tmp_path, degrees, size):
    path = write_video(tmp_path / "clip.mp4", quadrants(4, *size))
    plain = list(open_video(path, backend="pyav"))
    rotate_header(path, degrees)
    turned = open_video(path, backend="pyav")
    # The matrix turns clockwise: a file marked 90 is shown with its left edge on top.
    want = [np.rot90(frame, -degrees // 90) for frame in plain]
    assert (turned.height, turned.width) == want[0].shape[:2]
    assert all(np.array_equal(a, b) for a, b in zip(turned, want, strict=True))
    for backend in [None, *BACKENDS]:
        assert all(np.array_equal(a, b) for a, b in zip(open_video(path, backend=backend), want, strict=True))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".webm"])
def test_containers(tmp_path, suffix):
    codec = {".avi": "mpeg4", ".webm": "libvpx-vp9"}.get(suffix, "libx264")
    path = write_video(tmp_path / f"clip{suffix}", quadrants(9), codec=codec)
    video = open_video(path)
    assert len(video) == len(list(video)) == len(video.frame_times) == 9


def test_variable_frame_rate_keeps_its_times(tmp_path):
    pts = [0, 1, 2, 10, 11, 30]
    path = write_video(tmp_path / "vfr.mp4", quadrants(), pts=pts)
    video = open_video(path)
    assert len(list(video)) == 6
    assert video.frame_times == pytest.approx([p / 10 for p in pts], abs=1e-3)


def moving(num_frames=40):
    """Content that makes the encoder use B-frames."""
    return np.stack([np.roll(quadrants(1, 96, 128)[0], 3 * i, axis=1) for i in range(num_frames)])


@pytest.mark.parametrize("backend", [None, *BACKENDS])
def test_b_frames_come_in_the_order_of_showing(tmp_path, backend):
    path = write_video(tmp_path / "b.mp4", moving(), codec_options={"bf": "3", "b-adapt": "0", "g": "12"})
    video = open_video(path, backend=backend)
    assert video.frame_times == sorted(video.frame_times)
    assert all(close_to(a, b, 8) for a, b in zip(video, moving(), strict=True))


def test_pyav_goes_on_where_decord_breaks_off(tmp_path):
    path = write_video(tmp_path / "b.ts", moving(), codec_options={"bf": "3", "b-adapt": "0"})
    want = list(open_video(path, backend="pyav"))
    assert all(np.array_equal(a, b) for a, b in zip(open_video(path), want, strict=True))


def test_no_frame_twice_when_decord_breaks_off_in_the_middle(tmp_path, monkeypatch):
    path = write_video(tmp_path / "clip.mp4", quadrants())
    want = list(open_video(path, backend="pyav"))

    def three_then_fail(path, info):
        yield from islice(video_decoders.pyav_arrays(path, info), 3)
        raise video_decoders.DecordError("broken off")

    monkeypatch.setattr(video_decoders, "decord_arrays", three_then_fail)
    monkeypatch.setattr(video_decoders.importlib.util, "find_spec", lambda name: object())
    assert all(np.array_equal(a, b) for a, b in zip(open_video(path), want, strict=True))
    with pytest.raises(VideoError, match="broken off"):
        list(open_video(path, backend="decord"))


@pytest.mark.parametrize(("skipped", "ended"), [(5, 0), (17, 0), (0, 25)])
def test_a_clip_trimmed_by_its_edit_list(tmp_path, skipped, ended):
    path = write_video(tmp_path / "clip.mp4", moving(60), codec_options={"bf": "2", "g": "12"})
    with av.open(str(path)) as container:
        tick = int(1 / (10 * container.streams.video[0].time_base))
    data = bytearray(path.read_bytes())
    entry = data.index(b"elst") + 12  # behind the name, version and flags, and the number of entries
    duration, start = struct.unpack(">Ii", data[entry : entry + 8])
    data[entry : entry + 8] = struct.pack(">Ii", duration - 100 * (skipped + ended), start + skipped * tick)
    path.write_bytes(data)
    video = open_video(path)
    assert len(video) == len(list(video)) == 60 - skipped - ended
    assert close_to(next(iter(video)), moving(60)[skipped], 8)


def test_start_end_and_stride(movie):
    everything = list(open_video(movie))
    video = open_video(movie, start=1, end=6, stride=2)
    assert len(video) == 3 and video.fps == 5.0 and video.frame_times == pytest.approx([0.1, 0.3, 0.5])
    assert all(np.array_equal(a, b) for a, b in zip(video, everything[1:6:2], strict=True))
    again = open_video(video, start=1)  # a selection of a selection
    assert all(np.array_equal(a, b) for a, b in zip(again, everything[3:6:2], strict=True))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 12), st.integers(1, 15), st.integers(1, 5))
def test_selection_is_slicing(start, end, stride):
    frames = np.arange(10, dtype=np.uint8)[:, None, None, None].repeat(3, -1)
    expected = frames[start:end:stride]
    if not len(expected):
        with pytest.raises(VideoError, match="select none"):
            open_video(frames, start=start, end=end, stride=stride)
        return
    assert np.array_equal(np.stack(list(open_video(frames, start=start, end=end, stride=stride))), expected)


def test_some_frames(movie):
    everything = list(open_video(movie))
    picked = open_video(movie).frames(torch.tensor([4, 0, 4]))
    assert [np.array_equal(a, everything[i]) for a, i in zip(picked, [4, 0, 4], strict=True)] == [True] * 3
    with pytest.raises(VideoError, match="0 to 5"):
        open_video(movie).frames([6])


# --- folders, images, arrays -----------------------------------------------------------------------------------------
def test_folder_in_natural_order(tmp_path):
    for number in (10, 9, 1, 100):
        Image.fromarray(np.full((4, 6, 3), number, np.uint8)).save(tmp_path / f"frame_{number}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    (tmp_path / "._frame_9.png").write_text("what macOS leaves beside a file")
    (tmp_path / "masks_5.png").mkdir()
    video = open_video(tmp_path)
    assert [int(frame[0, 0, 0]) for frame in video] == [1, 9, 10, 100]
    assert natural_key(tmp_path / "v2_0007.jpg")[0] == 7


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "1", "CMYK"])
def test_images_of_every_mode_become_rgb(tmp_path, mode):
    image = Image.fromarray(quadrants(1)[0]).convert(mode)
    for source in (image, [image, image]):
        video = open_video(source)
        assert video.is_image is (source is image)
        assert next(iter(video)).shape == (48, 64, 3) and next(iter(video)).dtype == np.uint8
    if mode != "CMYK":
        image.save(tmp_path / "still.png")
        assert open_video(tmp_path / "still.png").is_image


def test_sixteen_bits_keep_their_range(tmp_path):
    deep = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.array_equal(next(iter(open_video(tmp_path / "deep.png")))[..., 0], deep >> 8)
    with pytest.raises(VideoError, match="mode F"):
        open_video(Image.fromarray(np.zeros((4, 6), np.float32)))


def test_orientation_of_a_photograph_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    Image.fromarray(quadrants(1)[0]).save(tmp_path / "photo.png", exif=exif)
    assert np.array_equal(next(iter(open_video(tmp_path / "photo.png"))), np.rot90(quadrants(1)[0], -1))


def test_alpha_is_dropped():
    rgb = quadrants(1)[0]
    rgba = np.dstack([rgb, np.zeros((48, 64), np.uint8)])
    assert np.array_equal(next(iter(open_video(rgba[None]))), rgb)
    assert np.array_equal(next(iter(open_video(Image.fromarray(rgba)))), rgb)


@pytest.mark.parametrize("kind", ["array", "channels_first", "float", "half", "tensor", "list", "pil"])
def test_equal_frames_from_every_kind_of_array(kind):
    frames = quadrants(5)
    source = {
        "array": frames,
        "channels_first": frames.transpose(0, 3, 1, 2),
        "float": frames.astype(np.float32) / 255,
        "half": torch.from_numpy(frames / 255).half(),
        "tensor": torch.from_numpy(frames.transpose(0, 3, 1, 2).copy()),
        "list": list(frames),
        "pil": [Image.fromarray(f) for f in frames],
    }[kind]
    video = open_video(source)
    assert len(video) == 5 and np.array_equal(np.stack(list(video)), frames)


def test_grey_arrays():
    grey = quadrants(5)[..., 0]
    assert np.array_equal(np.stack(list(open_video(grey)))[..., 2], grey)
    assert open_video(grey[0]).is_image
    assert len(open_video(grey[:3, ..., None])) == 3


def test_bfloat16_tensor():
    assert np.array_equal(next(iter(open_video(torch.ones(2, 3, 4, 6).bfloat16()))), np.full((4, 6, 3), 255))


# --- what is refused -------------------------------------------------------------------------------------------------
def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def test_missing_text_and_empty_files(tmp_path):
    with pytest.raises(VideoError, match="no file or folder"):
        open_video(tmp_path / "absent.mp4")
    (tmp_path / "text.mp4").write_text("hello, I am a text file\n" * 50)
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.png").write_text("no image")
    for name in ("text.mp4", "empty.mp4", "text.png"):
        with pytest.raises(VideoError, match=name):
            open_video(tmp_path / name)
    with pytest.raises(VideoError, match="holds no frames"):
        open_video(tmp_path / "folder") if (tmp_path / "folder").mkdir() else open_video(tmp_path / "folder")


@pytest.mark.parametrize("backend", [None, *BACKENDS])
@pytest.mark.parametrize("faststart", [False, True])
def test_truncated_file(tmp_path, backend, faststart):
    noise = np.random.default_rng(0).integers(0, 256, (30, 96, 96, 3), dtype=np.uint8)
    options = {"movflags": "faststart"} if faststart else None
    path = cut(write_video(tmp_path / "cut.mp4", noise, options=options), 0.6)
    with pytest.raises(VideoError, match="cut.mp4"):
        list(open_video(path, backend=backend))


@pytest.mark.parametrize("backend", [None, "pyav"])
def test_a_cut_file_that_is_allowed_gives_its_frames_then_the_error(tmp_path, backend):
    noise = np.random.default_rng(0).integers(0, 256, (30, 96, 96, 3), dtype=np.uint8)
    path = write_video(tmp_path / "cut.mp4", noise, options={"movflags": "faststart"})
    whole = list(open_video(path, backend=backend))
    video = open_video(cut(path, 0.6), backend=backend, allow_cut=True)
    got = []
    with pytest.raises(VideoError, match=r"cut.mp4"):
        for frame in video:
            got.append(frame)
    assert video.num_frames == 30 and 10 <= len(got) < 30
    # The last of them may be half there.
    for found, expected in zip(got[:-1], whole, strict=False):
        np.testing.assert_array_equal(found, expected)


def test_damaged_middle(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (30, 96, 96, 3), dtype=np.uint8)
    path = write_video(tmp_path / "damaged.mp4", noise, codec="mpeg4")
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + len(data) // 2
    data[start : start + 4000] = bytes(4000)
    path.write_bytes(data)
    try:
        assert len(list(open_video(path, backend="pyav"))) == 30  # concealed by the decoder
    except VideoError as error:
        assert "damaged.mp4" in str(error)


def test_a_file_with_sound_only(tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match="no video stream"):
        open_video(tmp_path / "sound.mp4")


def test_frames_of_different_sizes(tmp_path):
    for i, size in enumerate([(8, 6), (8, 6), (6, 8)]):
        Image.new("RGB", size).save(tmp_path / f"{i:05d}.png")
    with pytest.raises(VideoError, match=r"00000.png is 8x6, .*00002.png is 6x8"):
        list(open_video(tmp_path))
    with pytest.raises(VideoError, match="frame 0 is 6x4, frame 1 is 4x6"):
        list(open_video([np.zeros((4, 6, 3), np.uint8), np.zeros((6, 4, 3), np.uint8)]))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((0, 4, 6, 3), np.uint8), "no frames"),
        ([], "empty"),
        (np.full((2, 4, 6, 3), np.nan), "nan"),
        (np.full((2, 4, 6, 3), 2.0), "from 2 to 2"),
        (np.zeros((2, 4, 6, 3), np.int64), "int64"),
        (np.zeros((2, 7, 6, 5), np.uint8), "expected"),
        (np.zeros((2, 2, 4, 6, 3), np.uint8), "expected"),
        (object(), "object"),
        ([object()], "object"),
        (3, "int"),
    ],
)
def test_no_video(source, message):
    with pytest.raises(VideoError, match=message):
        list(open_video(source))


@pytest.mark.parametrize("bad", [{"start": -1}, {"start": 6}, {"start": 3, "end": 3}, {"stride": 0}, {"end": -2}])
def test_bad_ranges(movie, bad):
    with pytest.raises(VideoError, match="has 6 frames"):
        open_video(movie, **bad)


@pytest.mark.parametrize("bad", [{"start": 1.5}, {"stride": "2"}, {"end": 2.0}, {"start": None}])
def test_ranges_are_whole_numbers(movie, bad):
    with pytest.raises(VideoError, match="whole number"):
        open_video(movie, **bad)


def test_unknown_backend(movie):
    with pytest.raises(VideoError, match="choose one of decord, pyav"):
        list(open_video(movie, backend="vlc"))
