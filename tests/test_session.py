"""`VirstSession`: expressions come and go on one video, which may grow."""

import threading

import numpy as np
import pytest
import torch
from test_streaming import video

from virst_hf import TrackingOptions, VirstForVideoSegmentation, VirstProcessor, VirstSession
from virst_hf.errors import VideoError, VirstError


@pytest.fixture(scope="module")
def model(shared_model: VirstForVideoSegmentation) -> VirstForVideoSegmentation:
    return shared_model


def segment(
    model: VirstForVideoSegmentation, processor: VirstProcessor, frames: np.ndarray, text: str
) -> torch.Tensor:
    outputs = model.segment(**processor(videos=frames, text=text))
    return processor.post_process_video_segmentation(outputs)[0]["masks"]


def test_a_session_gives_the_masks_of_segment(model: VirstForVideoSegmentation, processor: VirstProcessor):
    frames = video(20)
    session = VirstSession(model, processor, frames)
    first, second = session.add("the cat", "the dog that runs")
    (third,) = session.add("the bird")
    assert session.expressions == {first: "the cat", second: "the dog that runs", third: "the bird"}
    for number, text in session.expressions.items():
        assert (session.masks(number) != segment(model, processor, frames, text)).float().mean() < 1e-4


def test_frames_are_encoded_once_whatever_is_asked(model: VirstForVideoSegmentation, processor: VirstProcessor):
    seen = []
    hook = model.model.segmenter.image_encoder.register_forward_hook(
        lambda m, inputs, out: seen.append(len(inputs[0]))
    )
    tower = []
    other = model.model.vision_tower.register_forward_hook(lambda m, inputs, out: tower.append(1))
    try:
        session = VirstSession(model, processor, video(20))
        calls = len(tower)
        session.add("the cat")
        session.add("the dog", "the bird")
        assert isinstance(session.ask("What is it?", max_new_tokens=3), str)
    finally:
        hook.remove()
        other.remove()
    assert sum(seen) == 20 and len(tower) == calls


def test_removing_one_leaves_the_others_as_they_were(model: VirstForVideoSegmentation, processor: VirstProcessor):
    frames = video(30)
    one, other = (VirstSession(model, processor, frames[:20]) for _ in range(2))
    cat, dog, bird = one.add("the cat", "the dog", "the bird")
    one.remove(dog)
    kept = other.add("the cat", "the bird")
    for mine, theirs in zip(one.extend(frames[20:]), other.extend(frames[20:]), strict=True):
        assert mine.index == theirs.index
        torch.testing.assert_close(mine.scores, theirs.scores)
        assert (mine.masks != theirs.masks).float().mean() < 1e-4
    assert one.num_frames == 30 and one.masks(bird).shape == (30, 36, 48)
    assert (one.masks(cat) != other.masks(kept[0])).float().mean() < 1e-4
    with pytest.raises(VirstError, match=f"no expression {dog}"):
        one.masks(dog)
    with pytest.raises(VirstError, match=f"no expression {dog}"):
        one.remove(dog)


def test_a_video_may_grow_before_anything_is_asked(model: VirstForVideoSegmentation, processor: VirstProcessor):
    frames = video(28)
    session = VirstSession(model, processor, frames[:10])
    assert [frame.masks.shape for frame in session.extend(frames[10:])] == [(0, 36, 48)] * 18
    (number,) = session.add("the cat")
    windows = model.stream(frames[:10], "the cat", processor, anchor_policy="windowed", window=10)
    for frame in windows:
        assert (session.masks(number)[frame.index] != frame.masks[0]).float().mean() < 1e-4
    assert session.masks(number).shape == (28, 36, 48)


def test_bad_input(model: VirstForVideoSegmentation, processor: VirstProcessor):
    with pytest.raises(VirstError, match="pooled by 3"):
        VirstSession(model, processor, video(8), tracking=TrackingOptions(pool=3))
    session = VirstSession(model, processor, video(8))
    with pytest.raises(VirstError, match="no expression"):
        session.add()
    with pytest.raises(VirstError, match="empty"):
        session.add("  ")
    with pytest.raises(VideoError, match="those before it"):
        session.extend(np.zeros((3, 10, 10, 3), np.uint8))
    assert session.num_frames == 8 and session.expressions == {}


def test_two_sessions_in_two_threads_do_not_disturb_each_other(
    model: VirstForVideoSegmentation, processor: VirstProcessor
):
    texts = {0: "the cat", 1: "the dog that runs to the left"}
    expected = {seed: segment(model, processor, video(16, seed), text) for seed, text in texts.items()}
    found: dict[int, list[torch.Tensor]] = {0: [], 1: []}

    def work(seed: int) -> None:
        for _ in range(3):
            session = VirstSession(model, processor, video(16, seed))
            found[seed].append(session.masks(session.add(texts[seed])[0]))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, masks in found.items():
        assert len(masks) == 3
        for mask in masks:
            assert (mask != expected[seed]).float().mean() < 1e-4


def test_the_video_goes_through_the_language_model_once(
    model: VirstForVideoSegmentation, processor: VirstProcessor, monkeypatch: pytest.MonkeyPatch
):
    session = VirstSession(model, processor, video(20))
    lengths = []
    forward = model.model.language_model.forward

    def counted(*args, **kwargs):
        lengths.append(kwargs["inputs_embeds"].shape[1])
        return forward(*args, **kwargs)

    monkeypatch.setattr(model.model.language_model, "forward", counted)
    (first,) = session.add("the cat")
    (second,) = session.add("the dog that runs")
    # The prefix, then the rest of each text.
    assert len(lengths) == 3
    assert (session.masks(second) != segment(model, processor, video(20), "the dog that runs")).float().mean() < 1e-4
    assert (session.masks(first) != segment(model, processor, video(20), "the cat")).float().mean() < 1e-4


def test_a_session_on_a_still_image_gives_the_mask_of_segment(
    model: VirstForVideoSegmentation, processor: VirstProcessor
):
    image = video(1)[0]
    session = VirstSession(model, processor, image)
    (number,) = session.add("the cat")
    assert (session.masks(number) != segment(model, processor, image, "the cat")).float().mean() < 1e-4
    inputs = processor(videos=image, text="What is it?", task="ask")
    tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert session.ask("What is it?", 4) == processor.batch_decode(tokens, skip_special_tokens=True)[0].strip()


@pytest.mark.parametrize("num_frames", [3, 11])
def test_a_session_on_a_short_video_gives_the_scores_of_segment(
    model: VirstForVideoSegmentation, processor: VirstProcessor, num_frames: int
):
    """Pointers reach as far back as in a video of that length, not as in a long one."""
    frames = video(num_frames)
    session = VirstSession(model, processor, frames)
    session.add("the cat")
    (memory,) = (tracker.memory for _, tracker in session._groups)
    assert memory.pointer_reach == max(num_frames, 8) - 1
    expected = segment(model, processor, frames, "the cat")
    assert (session.masks(0) != expected).float().mean() < 1e-4
    session.extend(video(9, 5))
    assert memory.pointer_reach == max(num_frames, 8) - 1  # of the state before
    assert session._groups[0][1].memory.pointer_reach == min(num_frames + 9, 16) - 1


def test_a_session_is_as_it_was_after_an_error(
    model: VirstForVideoSegmentation, processor: VirstProcessor, monkeypatch: pytest.MonkeyPatch
):
    frames = video(20)
    session, other = (VirstSession(model, processor, frames[:12]) for _ in range(2))
    for each in (session, other):
        each.add("the cat")
        each.add("the dog")
    decode, calls = model.model.segmenter.decode, []

    def failing(*args):
        calls.append(1)
        if len(calls) > 9:
            raise MemoryError("no memory")
        return decode(*args)

    with monkeypatch.context() as patch:
        patch.setattr(model.model.segmenter, "decode", failing)
        with pytest.raises(MemoryError):
            session.extend(frames[12:])
    assert session.num_frames == 12 and session.masks(0).shape[0] == 12
    for one, two in zip(session.extend(frames[12:]), other.extend(frames[12:]), strict=True):
        torch.testing.assert_close(one.scores, two.scores)


def test_a_session_without_expressions_goes_on(model: VirstForVideoSegmentation, processor: VirstProcessor):
    session = VirstSession(model, processor, video(9))
    for number in session.add("the cat", "the dog"):
        session.remove(number)
    assert session.expressions == {} and [f.masks.shape[0] for f in session.extend(video(2))] == [0, 0]
    (number,) = session.add("the bird")
    assert number == 2 and session.masks(number).shape == (11, 36, 48)


def test_a_session_may_be_faster(model: VirstForVideoSegmentation, processor: VirstProcessor):
    calls = []
    hook = model.model.segmenter.sam_mask_decoder.register_forward_hook(lambda *_: calls.append(1))
    try:
        session = VirstSession(model, processor, video(20), tracking=TrackingOptions(stride=4))
        (number,) = session.add("the cat")
    finally:
        hook.remove()
    assert len(calls) < 12 and session.masks(number).shape[0] == 20
