"""`model.stream`: the masks of `segment`, frame by frame, with windows, broken videos and interruptions."""

import threading
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from virst_hf import VirstForVideoSegmentation, VirstProcessor, open_video
from virst_hf.errors import ConfigError, VideoError, VirstError
from virst_hf.frame_reader import LazyFrames, read_ahead
from virst_hf.modules.frame_store import FrameStore
from virst_hf.modules.tracker import MemoryEntry, TrackingOptions
from virst_hf.streaming import WindowTracker, windows_of
from virst_hf.video_io import VideoSource

TEXTS = ["the red square", "what moves to the left?", "the cat"]


@pytest.fixture(scope="module")
def model(shared_model: VirstForVideoSegmentation) -> VirstForVideoSegmentation:
    return shared_model


def video(num_frames: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (num_frames, 36, 48, 3), dtype=np.uint8)


def broken_video(num_frames: int, readable: int) -> VideoSource:
    """A video that cannot be read to its end."""
    frames = video(num_frames)

    def read() -> Iterator[np.ndarray]:
        yield from frames[:readable]
        raise VideoError(f"frame {readable} of broken.mp4 cannot be decoded")

    return VideoSource("broken.mp4", num_frames, 36, 48, read)


def reader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "virst frames"]


@pytest.mark.parametrize("num_frames", [1, 3, 9, 40, 75])
def test_a_stream_gives_the_masks_of_segment(
    model: VirstForVideoSegmentation, processor: VirstProcessor, num_frames: int
):
    frames = video(num_frames)
    whole = processor.post_process_video_segmentation(model.segment(**processor(videos=frames, text=TEXTS)))
    streamed = list(model.stream(frames, TEXTS, processor))
    assert [frame.index for frame in streamed] == list(range(num_frames))
    for i, result in enumerate(whole):
        torch.testing.assert_close(torch.stack([frame.scores[i] for frame in streamed]), result["scores"])
        assert (torch.stack([frame.masks[i] for frame in streamed]) != result["masks"]).float().mean() < 1e-4


def test_each_frame_goes_through_the_encoder_once(model: VirstForVideoSegmentation, processor: VirstProcessor):
    seen = []
    hook = model.model.segmenter.image_encoder.register_forward_hook(
        lambda m, inputs, out: seen.append(len(inputs[0]))
    )
    try:
        list(model.stream(video(75), TEXTS, processor))
    finally:
        hook.remove()
    assert sum(seen) == 75


@pytest.mark.parametrize("policy", ["uniform", "windowed"])
@pytest.mark.parametrize("readable", [1, 30, 69])
def test_a_video_that_breaks_off_gives_what_came_before(
    model: VirstForVideoSegmentation, processor: VirstProcessor, policy: str, readable: int
):
    stream = model.stream(broken_video(70, readable), "the cat", processor, anchor_policy=policy, window=16)
    got = []
    with pytest.raises(VideoError, match=f"frame {readable} of broken.mp4"):
        got.extend(frame.index for frame in iter(lambda: next(stream), None))
    assert not reader_threads()


def test_the_frames_before_a_break_are_all_there(model: VirstForVideoSegmentation, processor: VirstProcessor):
    for policy in ("uniform", "windowed"):
        got = []
        with pytest.raises(VideoError):
            for frame in model.stream(broken_video(70, 33), "the cat", processor, anchor_policy=policy, window=16):
                got.append(frame.index)
        assert got == list(range(33))


def test_a_file_that_is_cut_short_gives_the_frames_that_are_there(
    model: VirstForVideoSegmentation, processor: VirstProcessor, tmp_path: Path
):
    path = tmp_path / "cut.mp4"
    frames = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), dtype=np.uint8)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "0"})
        stream.width = stream.height = 64
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    got = []
    for policy in ("uniform", "windowed"):
        with pytest.raises(VideoError, match=r"cut.mp4"):
            for frame in model.stream(str(path), "the cat", processor, anchor_policy=policy, window=16):
                got.append(frame.index)
    length = len(got) // 2
    assert 12 < length < 40 and got == [*range(length)] * 2


def test_a_video_of_which_nothing_can_be_read(model: VirstForVideoSegmentation, processor: VirstProcessor):
    for policy in ("uniform", "windowed"):
        with pytest.raises(VideoError, match="frame 0 of broken.mp4"):
            next(model.stream(broken_video(9, 0), "the cat", processor, anchor_policy=policy))


@pytest.mark.parametrize("policy", ["uniform", "windowed"])
def test_an_interrupted_stream_ends_its_thread(
    model: VirstForVideoSegmentation, processor: VirstProcessor, policy: str
):
    stream = model.stream(video(80), "the cat", processor, anchor_policy=policy, window=16)
    next(stream)
    stream.close()
    assert not reader_threads()


def test_a_live_source_is_segmented_window_by_window(model: VirstForVideoSegmentation, processor: VirstProcessor):
    taken = []

    def camera() -> Iterator[np.ndarray]:
        for index, frame in enumerate(video(100)):
            taken.append(index)
            yield frame

    stream = model.stream(camera(), TEXTS, processor, anchor_policy="windowed", window=16, ahead=2)
    assert next(stream).index == 0
    # A window, what is read ahead, and the frame that the thread holds.
    assert max(taken) <= 16 + 3
    assert [frame.index for frame in stream] == list(range(1, 100))


@pytest.mark.parametrize("num_frames", [4, 40])
def test_one_window_is_the_whole_video(model: VirstForVideoSegmentation, processor: VirstProcessor, num_frames: int):
    frames = video(num_frames)
    uniform = list(model.stream(frames, TEXTS, processor))
    windowed = list(model.stream(frames, TEXTS, processor, anchor_policy="windowed", window=40))
    for one, other in zip(uniform, windowed, strict=True):
        torch.testing.assert_close(one.scores, other.scores)


def test_memory_of_windows_stays_small(model: VirstForVideoSegmentation, processor: VirstProcessor):
    tracker = WindowTracker(model, processor, ["the cat"])
    held = []
    for window in windows_of(model, open_video(video(96)), processor, length=16):
        list(tracker.segment(window))
        held.append((len(tracker.memory.anchors), len(tracker.memory.recent)))
    assert len(set(held[1:])) == 1


def test_windows_that_are_short_forget_nothing_in_reach(
    model: VirstForVideoSegmentation, processor: VirstProcessor, monkeypatch: pytest.MonkeyPatch
):
    """Anchors of several windows ago are among the last 15 frames, and give pointers as any of them."""
    segmenter, seen = model.model.segmenter, []
    tokens = segmenter.pointer_tokens
    monkeypatch.setattr(
        segmenter,
        "pointer_tokens",
        lambda given, distances, scale: seen.append(distances) or tokens(given, distances, scale),
    )
    tracker = WindowTracker(model, processor, ["the cat"])
    for window in windows_of(model, video(44), processor, length=4):
        seen.clear()
        list(tracker.segment(window))
        assert len(tracker.memory.anchors) <= 2 * (15 // 4 + 2)
    # Of frames 40 to 43 the first and the last are anchors.
    assert [sorted(distances) for distances in seen] == [list(range(1, 16))] * 2


def test_bad_arguments(model: VirstForVideoSegmentation, processor: VirstProcessor):
    for arguments, message in (
        ({"texts": []}, "no expression"),
        ({"anchor_policy": "random"}, "no anchor policy 'random'"),
        ({"window": 0}, "at least 1"),
        ({"ahead": 0}, "at least 1"),
        ({"texts": ["the cat", " "]}, "text is empty"),
        ({"tracking": TrackingOptions(pool=3)}, "pooled by 3"),
    ):
        with pytest.raises(VirstError, match=message):
            model.stream(**{"video": video(9), "texts": "the cat", "processor": processor, **arguments})


def test_frames_of_another_size_are_told(model: VirstForVideoSegmentation, processor: VirstProcessor):
    frames = [*video(5), np.zeros((10, 10, 3), np.uint8)]
    stream = model.stream(iter(frames), "the cat", processor, anchor_policy="windowed", window=4)
    assert [next(stream).index for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(VideoError, match="Frame 5 is"):
        next(stream)


# --- reading ---------------------------------------------------------------------------------------------------------
def test_what_is_read_ahead_is_bounded():
    made = []
    reader = read_ahead(video(50), lambda index, frame: made.append(index) or index, 4)
    assert [next(reader) for _ in range(10)] == list(range(10))
    reader.close()
    assert len(made) <= 10 + 4 + 1 and not reader_threads()


def test_lazy_frames_give_known_ones_at_any_time():
    frames = video(12)

    def resize(frame: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(frame)

    with LazyFrames(frames, resize, 12, known={9: resize(frames[9])}) as lazy:
        assert torch.equal(lazy[[9]][0], torch.from_numpy(frames[9]))
        assert torch.equal(lazy[[0, 3]], torch.from_numpy(frames[[0, 3]]))
        with pytest.raises(VideoError, match="passed already"):
            lazy[[2]]
        with pytest.raises(VideoError, match="ends after 12"):
            lazy[[12]]


def test_frames_that_nobody_asks_for_are_not_resized():
    resized, frames = [], video(12)

    def resize(frame: np.ndarray) -> torch.Tensor:
        resized.append(1)
        return torch.from_numpy(frame)

    with LazyFrames(frames, resize, 12, known={9: torch.from_numpy(frames[9])}, wanted=range(0, 12, 3)) as lazy:
        assert torch.equal(lazy[[0, 6, 9]], torch.from_numpy(frames[[0, 6, 9]]))
        with pytest.raises(VideoError, match="Frame 8 is not among those"):
            lazy[[8]]
    assert len(resized) == 3


# --- ways to be faster -----------------------------------------------------------------------------------------------
def logits_of(model: VirstForVideoSegmentation, processor: VirstProcessor, tracking: TrackingOptions) -> torch.Tensor:
    outputs = model.segment(**processor(videos=video(26), text=TEXTS), tracking=tracking)
    return torch.stack(outputs.mask_logits)


@pytest.mark.parametrize("chunk", [1, 2, 3, 50])
def test_chunks_of_expressions_change_nothing(model: VirstForVideoSegmentation, processor: VirstProcessor, chunk: int):
    torch.testing.assert_close(
        logits_of(model, processor, TrackingOptions(chunk=chunk)), logits_of(model, processor, TrackingOptions())
    )


def test_frames_between_are_interpolated(model: VirstForVideoSegmentation, processor: VirstProcessor):
    inputs = processor(videos=video(26), text=TEXTS)
    outputs = model.segment(**inputs, tracking=TrackingOptions(stride=3))
    anchors = outputs.anchor_indices[0]
    tracked = [t for t in range(26) if t % 3 == 0 or t in anchors or t == 25]
    assert TrackingOptions(stride=3).tracked(range(26), anchors) == tracked
    for name in ("object_scores", "iou_scores"):
        values = torch.stack(getattr(outputs, name)).numpy()
        for row in values:
            np.testing.assert_allclose(row, np.interp(np.arange(26), tracked, row[tracked]), rtol=1e-4, atol=1e-5)


def test_a_stride_encodes_and_resizes_fewer_frames(
    model: VirstForVideoSegmentation, processor: VirstProcessor, monkeypatch: pytest.MonkeyPatch
):
    seen, resized = [], []
    view = type(processor.video_processor).sam_view
    monkeypatch.setattr(
        type(processor.video_processor), "sam_view", lambda self, image: resized.append(1) or view(self, image)
    )
    encoder = model.model.segmenter.image_encoder
    hook = encoder.register_forward_hook(lambda m, inputs, out: seen.append(len(inputs[0])))
    try:
        frames = list(model.stream(video(150), TEXTS, processor, tracking=TrackingOptions(stride=4)))
    finally:
        hook.remove()
    assert [frame.index for frame in frames] == list(range(150))
    pinned = processor.video_processor.max_seg_frames
    assert sum(seen) <= 150 / 4 + pinned + 1 and len(resized) == sum(seen)


@pytest.mark.parametrize("recent", [0, 2])
def test_fewer_recent_frames_are_attended_to(
    model: VirstForVideoSegmentation, processor: VirstProcessor, recent: int, monkeypatch: pytest.MonkeyPatch
):
    segmenter = model.model.segmenter
    lengths = []
    attend = segmenter.attend_to_memory

    def counted(frame, memory, positions, num_pointers, pool):
        lengths.append((len(memory) - num_pointers) // frame.top.shape[-1] ** 2)
        return attend(frame, memory, positions, num_pointers, pool)

    monkeypatch.setattr(segmenter, "attend_to_memory", counted)
    logits_of(model, processor, TrackingOptions(recent=recent))
    assert max(lengths) == model.config.anchor_config.num_anchors + recent


def test_bad_options():
    for arguments in (
        {"chunk": 0},
        {"recent": -1},
        {"stride": 0},
        {"stride": 1.5},
        {"stride": None},
        {"pool": 0},
        {"pool": True},
    ):
        with pytest.raises(ConfigError, match=f"{next(iter(arguments))} must be"):
            TrackingOptions(**arguments)


# --- images, odd sources and short windows ---------------------------------------------------------------------------
@pytest.mark.parametrize("policy", ["uniform", "windowed"])
def test_a_still_image_is_one_with_every_policy(
    model: VirstForVideoSegmentation, processor: VirstProcessor, policy: str
):
    image = video(1)[0]
    expected = model.segment(**processor(videos=image, text=TEXTS)).object_scores
    (frame,) = model.stream(image, TEXTS, processor, anchor_policy=policy)
    torch.testing.assert_close(frame.scores[:, None], torch.stack(expected), atol=1e-4, rtol=1e-4)
    assert frame.is_anchor and frame.masks.shape == (3, 36, 48)


@pytest.mark.parametrize("window", [1, 2])
def test_windows_shorter_than_all_else(model: VirstForVideoSegmentation, processor: VirstProcessor, window: int):
    frames = list(model.stream(video(5), TEXTS, processor, anchor_policy="windowed", window=window))
    assert [frame.index for frame in frames] == list(range(5))
    assert all(frame.scores.isfinite().all() for frame in frames)


def test_a_live_source_that_fails_gives_what_came_before(model: VirstForVideoSegmentation, processor: VirstProcessor):
    def camera(last: object) -> Iterator[object]:
        yield from video(6)
        if isinstance(last, Exception):
            raise last
        yield last

    for last, message in (
        (OSError("unplugged"), r"gives no frame 6 \(OSError: unplugged\)"),
        (None, "frame 6 of the live source is a NoneType"),
        (np.zeros((36, 48, 2), np.uint8), "frame 6 of the live source has shape"),
    ):
        got = []
        with pytest.raises(VideoError, match=message):
            for frame in model.stream(camera(last), "the cat", processor, anchor_policy="windowed", window=4):
                got.append(frame.index)
        assert got == list(range(6)) and not reader_threads()


def test_frames_of_a_camera_may_be_grey(model: VirstForVideoSegmentation, processor: VirstProcessor):
    grey = video(4)[..., 0]
    stream = model.stream(iter(grey), "the cat", processor, anchor_policy="windowed", window=4)
    colour = np.repeat(grey[..., None], 3, axis=-1)
    expected = model.stream(iter(colour), "the cat", processor, anchor_policy="windowed", window=4)
    for one, other in zip(stream, expected, strict=True):
        torch.testing.assert_close(one.scores, other.scores)


def test_a_live_source_is_not_read_twice(model: VirstForVideoSegmentation, processor: VirstProcessor):
    with pytest.raises(VideoError, match="anchor_policy"):
        model.stream(iter(video(4)), "the cat", processor)


def test_an_error_that_ends_the_reader_is_raised_where_it_is_waited_for():
    """Also one that is no `Exception`: else the reader's end would never be known."""

    def source() -> Iterator[np.ndarray]:
        yield video(1)[0]
        raise SystemExit(3)

    reader = read_ahead(source(), lambda index, frame: index, 2)
    assert next(reader) == 0
    with pytest.raises(SystemExit):
        next(reader)
    assert not reader_threads()


def test_lazy_frames_go_on_telling_of_a_break():
    with LazyFrames(broken_video(9, 3), torch.from_numpy, 9) as lazy:
        assert len(lazy[[1, 2, 3, 4]]) == 2  # as many as there are
        for frame in (3, 5):
            with pytest.raises(VideoError, match="frame 3 of broken.mp4"):
                lazy[[frame]]


def test_frames_that_were_not_announced_are_encoded_as_well(model: VirstForVideoSegmentation):
    pixels = torch.zeros(6, 3, 128, 128, dtype=torch.uint8)
    store = FrameStore(model.model.segmenter, pixels, [0])
    store.wanted = [0, 4]
    assert [store(index).top.shape[0] for index in (0, 2, 4, 5)] == [1] * 4


def test_recent_frames_are_the_nearest_that_were_tracked(
    model: VirstForVideoSegmentation, processor: VirstProcessor, monkeypatch: pytest.MonkeyPatch
):
    """With every second frame skipped there are still two: those 2 and 4 frames before."""
    segmenter, rows = model.model.segmenter, []
    code = segmenter.memory_positions
    monkeypatch.setattr(segmenter, "memory_positions", lambda tau, like: rows.append(tau) or code(tau, like))
    memory = model.empty_memory(20, tracking=TrackingOptions(recent=2, stride=2))
    entry = MemoryEntry(torch.zeros(64, 1, segmenter.mem_dim), torch.zeros(1, segmenter.hidden_dim))
    memory.anchors, memory.recent = {0: entry}, dict.fromkeys((4, 6, 8), entry)
    memory.gather(10)
    assert rows == [0, 3, 5]  # the anchor, then 4 and 2 frames before
