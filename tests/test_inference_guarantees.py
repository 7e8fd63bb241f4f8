"""What inference promises: masks of a plain run, no graph, nothing left in memory, threads, presets, compilation."""

import contextlib
import gc
import shutil
import threading
import weakref
from collections.abc import Iterator

import pytest
import torch
from test_streaming import broken_video, reader_threads, video

from virst_hf import FAST, InferencePreset, TrackingOptions, VirstForVideoSegmentation, VirstProcessor, VirstSession
from virst_hf.errors import ConfigError, VideoError
from virst_hf.modules.frame_store import FrameStore
from virst_hf.modules.segmenter import VirstSegmenter
from virst_hf.modules.text import unpad_rows
from virst_hf.modules.tracker import MemoryEntry
from virst_hf.presets import PRESETS, get_preset
from virst_hf.sampling import closest_anchors, inference_anchors
from virst_hf.untrained import untrained_model


@pytest.fixture(scope="module")
def model() -> VirstForVideoSegmentation:
    return untrained_model()


def texts_of(count: int) -> list[str]:
    return [f"the square number {i}{', which moves' * (i % 3)}" for i in range(count)]


# --- the plain run ---------------------------------------------------------------------------------------------------
def plain_masks(segmenter: VirstSegmenter, index: int, known: dict, anchors: list[int], reach: int, top) -> tuple:
    """A frame from its memories, gathered by the words of the paper: anchors, last frames, pointers."""
    num_recent = segmenter.num_maskmem - 1
    chosen = closest_anchors(index, anchors, 3)
    near = [t for t in range(index - num_recent, index) if t in known and t not in chosen]
    spatial = [(0, known[k].tokens) for k in chosen] + [(num_recent + 1 - (index - t), known[t].tokens) for t in near]
    pointers = [(index - k, known[k].pointer) for k in chosen if k < index]
    others = [t for t in range(index - 1, index - reach - 1, -1) if t in known and t not in chosen]
    pointers += [(index - t, known[t].pointer) for t in others]
    distances, vectors = zip(*pointers, strict=True) if pointers else ((), ())
    tokens, codes = [m for _, m in spatial], [segmenter.memory_positions(tau, m) for tau, m in spatial]
    count = 0
    if pointers:
        extra, code = segmenter.pointer_tokens(list(vectors), list(distances), reach)
        tokens, codes, count = [*tokens, extra], [*codes, code], len(extra)
    return segmenter.attend_to_memory(top, torch.cat(tokens), torch.cat(codes), count)


@torch.no_grad()
def plain_run(model: VirstForVideoSegmentation, inputs: dict, row: torch.Tensor) -> torch.Tensor:
    """Logits of one expression: each frame encoded alone, the text from its first token on, all memories kept."""
    parts, segmenter = model.model, model.model.segmenter
    frames = [segmenter.encode_frames(frame[None]) for frame in inputs["sam_pixel_values"]]
    seg = inputs["seg_frame_indices"].tolist()
    maps = torch.cat([frames[i].top for i in seg])
    embeds = parts.embed_text([row], parts.get_video_features(inputs["pixel_values_videos"]), maps)[0]
    hidden = parts(inputs_embeds=embeds[None], use_cache=False).last_hidden_state
    prompts = parts.prompt_decoder(hidden[:, row == model.config.seg_token_id], maps)
    anchors: dict[int, int] = {}
    for position in inference_anchors(len(seg), model.config.anchor_config.anchor_stride):
        anchors.setdefault(seg[position], position)
    known, masks = {}, {}
    for t, position in anchors.items():
        found = segmenter.decode(segmenter.without_memory(frames[t]), prompts[:, :, position], frames[t], True)
        known[t], masks[t] = MemoryEntry(segmenter.encode_memory(frames[t], found), found.pointer), found
    reach = min(max(len(frames), 8), 16) - 1
    for t, frame in enumerate(frames):
        if t in anchors:
            continue
        # Frames behind this one are known only where they are anchors.
        past = {k: entry for k, entry in known.items() if k < t or k in anchors}
        found = segmenter.decode(plain_masks(segmenter, t, past, list(anchors), reach, frame), None, frame, True)
        known[t], masks[t] = MemoryEntry(segmenter.encode_memory(frame, found), found.pointer), found
    return torch.cat([masks[t].gated_logits for t in range(len(frames))])


@pytest.mark.parametrize("count", [1, 16])
def test_exact_masks_are_those_of_a_plain_run(
    model: VirstForVideoSegmentation, processor: VirstProcessor, count: int, monkeypatch: pytest.MonkeyPatch
):
    """Shared, in chunks, streamed: logits as without any of it."""
    frames, texts = video(21), texts_of(count)
    inputs = processor(videos=frames, text=texts)
    rows = unpad_rows(inputs["input_ids"], inputs["attention_mask"])
    # Of sixteen a few, each in another place of the batch.
    places = sorted({0, count // 2, count - 1})
    expected = torch.stack([plain_run(model, inputs, rows[i]) for i in places])
    assert float(expected.max()) > 0.1  # there is something to compare

    for tracking in (TrackingOptions(), TrackingOptions(chunk=5)):
        logits = torch.stack(model.segment(**inputs, tracking=tracking).mask_logits)[places]
        torch.testing.assert_close(logits, expected, atol=1e-3, rtol=0)

    streamed = []
    monkeypatch.setattr("virst_hf.streaming._streamed", lambda index, masks, *_: masks.gated_logits[places].clone())
    for policy in ("uniform", "windowed"):
        streamed = list(model.stream(frames, texts, processor, anchor_policy=policy, window=21))
        torch.testing.assert_close(torch.stack(streamed, dim=1), expected, atol=1e-3, rtol=0)


@pytest.mark.slow
def test_exact_masks_of_a_long_video_are_those_of_a_plain_run(
    model: VirstForVideoSegmentation, processor: VirstProcessor, monkeypatch: pytest.MonkeyPatch
):
    """Anchors lie further apart than any memory reaches, so that all that is dropped is dropped on the way."""
    frames, texts = video(130), texts_of(2)
    inputs = processor(videos=frames, text=texts)
    rows = unpad_rows(inputs["input_ids"], inputs["attention_mask"])
    expected = plain_run(model, inputs, rows[1])
    outputs = model.segment(**inputs)
    anchors = outputs.anchor_indices[0]
    assert min(b - a for a, b in zip(anchors, anchors[1:], strict=False)) > 15
    torch.testing.assert_close(outputs.mask_logits[1], expected, atol=1e-3, rtol=0)
    monkeypatch.setattr("virst_hf.streaming._streamed", lambda index, masks, *_: masks.gated_logits[1].clone())
    for policy in ("uniform", "windowed"):
        streamed = list(model.stream(frames, texts, processor, anchor_policy=policy, window=130))
        torch.testing.assert_close(torch.stack(streamed), expected, atol=1e-3, rtol=0)


# --- graph and memory ------------------------------------------------------------------------------------------------
def test_no_graph_is_made(processor: VirstProcessor):
    model = untrained_model()
    assert all(parameter.requires_grad for parameter in model.parameters()) and torch.is_grad_enabled()
    inputs = processor(videos=video(9), text=texts_of(2))
    outputs = model.segment(**inputs)
    features = model.encode_video(**inputs)[0]
    prompts = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    again = model.segment(features=features, **prompts)
    kept = [features.video_embeds, *features.frames.tops.values()]
    session = VirstSession(model, processor, video(9))
    session.add("the cat")
    kept += [entry.tokens for _, tracker in session._groups for entry in tracker.memory.anchors.values()]
    for policy in ("uniform", "windowed"):
        for frame in model.stream(video(9), "the cat", processor, anchor_policy=policy):
            kept += [frame.scores, frame.iou_scores]
            assert torch.is_grad_enabled()  # nothing is left switched off between two frames
    tensors = [*outputs.mask_logits, *outputs.object_scores, *outputs.iou_scores, *again.mask_logits, *kept]
    assert all(tensor.grad_fn is None and not tensor.requires_grad for tensor in tensors)


def alive(kind: type = torch.Tensor) -> int:
    """Tensors that are there, without a collection: what hangs in a circle counts."""
    return sum(issubclass(type(thing), kind) for thing in gc.get_objects())


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Memory has to be free at once, not when circles happen to be collected."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def stores(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref]:
    """References to all frame stores that are made: they hold the features of a video."""
    made = []
    init = FrameStore.__init__

    def noted(self: FrameStore, *args: object, **kwargs: object) -> None:
        made.append(weakref.ref(self))
        init(self, *args, **kwargs)

    monkeypatch.setattr(FrameStore, "__init__", noted)
    return made


def test_segment_frees_what_it_took(
    model: VirstForVideoSegmentation, processor: VirstProcessor, monkeypatch: pytest.MonkeyPatch, no_collection: None
):
    inputs = processor(videos=video(12), text=texts_of(2))
    model.segment(**inputs)  # tables that are cached
    before, made = alive(), stores(monkeypatch)
    for _ in range(3):
        outputs = model.segment(**inputs)
        del outputs
    assert len(made) == 3 and all(reference() is None for reference in made)
    assert alive() <= before


@pytest.mark.parametrize("policy", ["uniform", "windowed"])
def test_an_interrupted_stream_frees_everything(
    model: VirstForVideoSegmentation,
    processor: VirstProcessor,
    policy: str,
    monkeypatch: pytest.MonkeyPatch,
    no_collection: None,
):
    list(model.stream(video(12), "the cat", processor, anchor_policy=policy, window=8))
    before, made = alive(), stores(monkeypatch)
    stream = model.stream(video(40), "the cat", processor, anchor_policy=policy, window=16)
    next(stream)
    assert alive() > before
    stream.close()
    del stream
    assert not reader_threads() and made and all(reference() is None for reference in made)
    assert alive() <= before


@pytest.mark.parametrize("policy", ["uniform", "windowed"])
def test_an_error_of_who_takes_the_frames_frees_everything(
    model: VirstForVideoSegmentation,
    processor: VirstProcessor,
    policy: str,
    monkeypatch: pytest.MonkeyPatch,
    no_collection: None,
):
    """Nobody closes the stream: it goes with the last reference to it."""

    def consume() -> None:
        for frame in model.stream(video(40), "the cat", processor, anchor_policy=policy, window=16):
            if frame.index == 2:
                raise RuntimeError("the disk is full")

    list(model.stream(video(12), "the cat", processor, anchor_policy=policy, window=8))
    before, made = alive(), stores(monkeypatch)
    with contextlib.suppress(RuntimeError):
        consume()
    assert not reader_threads() and made and all(reference() is None for reference in made)
    assert alive() <= before


@pytest.mark.parametrize("policy", ["uniform", "windowed"])
@pytest.mark.parametrize("readable", [5, 39])
def test_a_broken_video_frees_everything(
    model: VirstForVideoSegmentation,
    processor: VirstProcessor,
    policy: str,
    readable: int,
    monkeypatch: pytest.MonkeyPatch,
    no_collection: None,
):
    list(model.stream(video(12), "the cat", processor, anchor_policy=policy, window=8))
    before, made = alive(), stores(monkeypatch)
    frames = []
    try:
        frames.extend(f.index for f in model.stream(broken_video(40, readable), "the cat", processor, policy, 16))
    except VideoError as error:
        assert f"frame {readable} of broken.mp4" in str(error)
    else:
        pytest.fail("no error")
    assert not reader_threads() and made and all(reference() is None for reference in made)
    assert alive() <= before


def test_windows_are_not_held_while_the_next_is_encoded(
    model: VirstForVideoSegmentation, processor: VirstProcessor, monkeypatch: pytest.MonkeyPatch, no_collection: None
):
    made = stores(monkeypatch)
    for frame in model.stream(video(40), "the cat", processor, anchor_policy="windowed", window=8):
        assert sum(reference() is not None for reference in made) == 1
        assert len(made) == frame.index // 8 + 1


# --- threads ---------------------------------------------------------------------------------------------------------
def test_two_sessions_in_two_threads_give_what_one_after_the_other_does(
    model: VirstForVideoSegmentation, processor: VirstProcessor
):
    def work(seed: int) -> list[torch.Tensor]:
        session = VirstSession(model, processor, video(9, seed))
        numbers = session.add(*texts_of(2 + seed))
        scores = [frame.scores for frame in session.extend(video(4, seed + 10))]
        return [*scores, *(session.masks(number) for number in numbers)]

    expected = [work(seed) for seed in (0, 1)]
    found: dict[int, list[torch.Tensor]] = {}
    threads = [threading.Thread(target=lambda seed=seed: found.update({seed: work(seed)})) for seed in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in (0, 1):
        for one, other in zip(found[seed], expected[seed], strict=True):
            if one.dtype == torch.bool:
                assert (one != other).float().mean() < 1e-4
            else:
                torch.testing.assert_close(one, other, atol=1e-3, rtol=0)


# --- presets ---------------------------------------------------------------------------------------------------------
def test_presets():
    assert PRESETS["exact"] == InferencePreset() and get_preset("fast") is FAST
    with pytest.raises(ConfigError, match="no preset 'quick'; there are exact, fast"):
        get_preset("quick")
    with pytest.raises(ConfigError, match="encoder_dtype cannot be 'int8'"):
        InferencePreset(encoder_dtype="int8")


@pytest.mark.parametrize("preset", [FAST, InferencePreset(encoder_dtype="bfloat16")])
def test_a_preset_changes_masks_little(processor: VirstProcessor, preset: InferencePreset):
    inputs = processor(videos=video(12), text=texts_of(2))
    expected = untrained_model().segment(**inputs)
    found = preset.prepare(untrained_model()).segment(**inputs, tracking=preset.tracking)
    for one, other in zip(found.mask_logits, expected.mask_logits, strict=True):
        assert one.isfinite().all() and not torch.equal(one, other)
        assert ((one > 0) != (other > 0)).float().mean() < 0.05


def test_a_quantized_language_model_is_not_cast():
    model = untrained_model()
    model.is_quantized = True
    FAST.prepare(model)
    assert model.model.language_model.dtype == torch.float32
    assert next(model.model.segmenter.parameters()).dtype == torch.bfloat16


def test_pooled_memories(model: VirstForVideoSegmentation, processor: VirstProcessor, monkeypatch: pytest.MonkeyPatch):
    segmenter = model.model.segmenter
    lengths = []
    attend = segmenter.attend_to_memory

    def counted(frame, memory, positions, num_pointers, pool):
        lengths.append(len(memory) - num_pointers)
        assert len(positions) == len(memory)
        return attend(frame, memory, positions, num_pointers, pool)

    monkeypatch.setattr(segmenter, "attend_to_memory", counted)
    inputs = processor(videos=video(12), text="the cat")
    model.segment(**inputs)
    whole = lengths.copy()
    lengths.clear()
    logits = model.segment(**inputs, tracking=TrackingOptions(pool=2)).mask_logits[0]
    assert [4 * length for length in lengths] == whole and logits.isfinite().all()
    with pytest.raises(ConfigError, match=r"8 x 8 tokens cannot be pooled by 3"):
        model.segment(**inputs, tracking=TrackingOptions(pool=3))


@torch.no_grad()
def test_a_pooled_memory_that_is_even_is_attended_to_as_a_whole_one(model: VirstForVideoSegmentation):
    """Where all tokens of a memory are alike in values and codes, their means and their number make no difference."""
    segmenter = model.model.segmenter
    frame = segmenter.encode_frames(torch.full((1, 3, 128, 128), 90, dtype=torch.uint8))
    torch.manual_seed(0)
    token = torch.randn(1, 1, segmenter.mem_dim)
    outputs = []
    for pool in (1, 2):
        memory = token.expand((8 // pool) ** 2, 1, -1)
        # Values do not depend on the place, so whatever the weights are, the mean of the values is the value.
        positions = segmenter.memory_positions(6, memory)
        assert positions.shape == ((8 // pool) ** 2, 1, segmenter.mem_dim)
        outputs.append(segmenter.attend_to_memory(frame, memory, positions, 0, pool))
    torch.testing.assert_close(*outputs)


# --- torch.compile ---------------------------------------------------------------------------------------------------
def test_compiled_parts_keep_their_names(tmp_path):
    """And a model that was compiled is saved, loaded and copied as any other. Nothing is compiled here."""
    model = untrained_model()
    names = list(model.state_dict())
    model.compile_inference(backend="eager")
    assert list(model.state_dict()) == names
    model.save_pretrained(tmp_path)
    again = VirstForVideoSegmentation.from_pretrained(tmp_path)
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])


def test_a_compiler_that_is_missing_is_told_before_the_work(monkeypatch: pytest.MonkeyPatch):
    model = untrained_model()
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler"):
        model.compile_inference()
    model.compile_inference(backend="eager")  # which needs none


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_logits(processor: VirstProcessor, backend: str):
    """For one expression and for sixteen, in a video in which the memory grows and then is full."""
    if backend == "inductor" and not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        pytest.skip("inductor needs a C++ compiler")
    model, frames = untrained_model(), video(12)
    inputs = [processor(videos=frames, text=texts_of(count)) for count in (1, 16)]
    expected = [model.segment(**given).mask_logits for given in inputs]
    torch._dynamo.reset()
    model.compile_inference(backend=backend)
    try:
        found = [model.segment(**given).mask_logits for given in inputs]
    finally:
        torch._dynamo.reset()
    for logits, others in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.stack(logits), torch.stack(others), atol=1e-3, rtol=0)
