"""Rows to samples to batches: which frames, which pixels, which labels, and a step of the small model on all of it."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from virst_hf.data.clips import ClipTransform
from virst_hf.data.collator import VirstCollator
from virst_hf.data.mixture import Mixture
from virst_hf.data.records import make_row
from virst_hf.errors import DataError
from virst_hf.prompts import ANSWER_TEMPLATES, segmentation_answer, segmentation_templates
from virst_hf.rle import encode_rle
from virst_hf.sampling import seg_frame_positions, vlm_frame_indices
from virst_hf.video_processing_virst import resize_binary

HEIGHT, WIDTH = 48, 64


def square(frame):
    """The target: a square that moves right, absent in every fifth frame."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    if frame % 5 != 4:
        mask[10:26, 2 * frame % 40 : 2 * frame % 40 + 16] = True
    return mask


@pytest.fixture(scope="module")
def clips(tmp_path_factory, clip_maker):
    """Frames of one video as PNG, which keeps their pixels."""
    folder = tmp_path_factory.mktemp("clips")
    paths = []
    for index, frame in enumerate(clip_maker(24, HEIGHT, WIDTH)):
        paths.append(str(folder / f"{index:05d}.png"))
        Image.fromarray(frame).save(paths[-1])
    return paths


def video_row(paths, **fields):
    masks = [encode_rle(square(t)) if square(t).any() else None for t in range(len(paths))]
    row = {
        "video_id": "clip",
        "expression_id": "0",
        "expression": "the RED square",
        "category": "rvos",
        "source": "own",
        "split": "train",
        "frame_names": [Path(path).stem for path in paths],
        "frame_paths": paths,
        "height": HEIGHT,
        "width": WIDTH,
        "object_ids": [1],
        "masks": masks,
    }
    return make_row(**{**row, **fields})


def image_row(paths, **fields):
    return video_row(paths[:1], **{"category": "referring_image", "video_id": "image", "source": "refcoco", **fields})


def question_row(paths, **fields):
    fixed = {"category": "video_qa", "source": "llava-video", "masks": None, "object_ids": []}
    words = {"expression": "How many squares are there?", "answer": "One."}
    return video_row(paths, **{**fixed, **words, **fields})


def words_of(processor, ids):
    return processor.tokenizer.decode([token for token in ids if token != processor.video_token_id])


# --- samples ---------------------------------------------------------------------------------------------------------
def test_views_are_those_of_inference(processor, clips):
    sample = ClipTransform(processor, jitter=False)([video_row(clips)], random.Random(0))
    views = processor.video_processor(clips)
    assert torch.equal(sample["pixel_values_videos"], views["pixel_values_videos"])
    seg = views["seg_frame_indices"].tolist()
    got = sample["sam_pixel_values"][sample["seg_frame_indices"]]
    assert torch.equal(got, views["sam_pixel_values"][seg])
    assert sample["original_size"] == [HEIGHT, WIDTH]


def test_fast_views_are_off_by_one_at_most(processor, clips):
    row = video_row(clips[:11])
    exact, fast = (ClipTransform(processor, fast_resize=fast)([row], random.Random(0)) for fast in (False, True))
    assert fast["frame_indices"] == exact["frame_indices"]
    sam = (exact["sam_pixel_values"].int() - fast["sam_pixel_values"].int()).abs()
    assert fast["sam_pixel_values"].dtype == torch.uint8 and sam.max() <= 1 and (sam > 0).float().mean() < 0.03
    std = torch.tensor(processor.video_processor.image_std)[:, None, None]
    vlm = ((exact["pixel_values_videos"] - fast["pixel_values_videos"]) * std * 255).abs()
    assert vlm.max() < 1.01 and (vlm > 0.5).float().mean() < 0.03


@pytest.mark.parametrize("num_frames", [1, 3, 8, 11, 24])
@pytest.mark.parametrize("supervise", ["anchors", "anchors+propagation"])
def test_frames_and_masks_belong_together(processor, clips, num_frames, supervise):
    views = processor.video_processor
    transform = ClipTransform(processor, supervise)
    for seed in range(6):
        sample = transform([video_row(clips[:num_frames])], random.Random(seed))
        vlm = sample["frame_indices"]
        assert len(vlm) == len(vlm_frame_indices(num_frames)) == len(sample["pixel_values_videos"])
        seg = [vlm[position] for position in seg_frame_positions(len(vlm))]
        frames = sorted(set(seg))
        assert [frames[i] for i in sample["seg_frame_indices"]] == seg
        assert len(sample["sam_pixel_values"]) == len(frames)
        (anchors,), (around,) = sample["anchor_indices"], sample["propagation_indices"]
        assert len(anchors) == min(3, len(seg)) and not set(anchors) & set(around)
        assert bool(around) == (supervise == "anchors+propagation" and len(anchors) < len(seg))
        want = np.stack([square(seg[position]) for position in sorted([*anchors, *around])])
        assert torch.equal(sample["mask_labels"][0], views.resize_masks(want))
        assert np.array_equal(sample["mask_labels"][0], resize_binary(want, (128, 128)))


def test_jitter_draws_other_frames(processor, clips):
    transform = ClipTransform(processor)
    drawn = {tuple(transform([video_row(clips)], random.Random(seed))["frame_indices"]) for seed in range(5)}
    # 24 frames, 24 bins: nothing to draw. Fewer bins leave a choice.
    assert drawn == {tuple(range(24))}
    drawn = {tuple(transform([video_row(clips[:15])], random.Random(seed))["frame_indices"]) for seed in range(5)}
    assert len(drawn) > 1 and all(len(set(frames)) == 12 for frames in drawn)


def test_without_frame_jitter_only_the_words_are_drawn(processor, clips):
    transform = ClipTransform(processor, frame_jitter=False)
    samples = [transform([video_row(clips[:15])], random.Random(seed)) for seed in range(5)]
    expected = ClipTransform(processor, jitter=False)([video_row(clips[:15])], random.Random(0))["frame_indices"]
    assert all(sample["frame_indices"] == expected for sample in samples)
    assert len({tuple(sample["input_ids"][0]) for sample in samples}) > 1


def test_a_still_image(processor, clips):
    sample = ClipTransform(processor)([image_row(clips)], random.Random(0))
    assert sample["frame_indices"] == [0] and len(sample["sam_pixel_values"]) == 1
    assert sample["anchor_indices"] == [[0]] and sample["propagation_indices"] == [[]]
    tokens = sample["input_ids"][0].count(processor.video_token_id)
    assert tokens == processor.video_processor.num_video_tokens(1)


@pytest.mark.parametrize("expression", ["the RED square", "Which one moves  Right?"])
def test_templates_are_drawn_and_case_is_kept(processor, clips, expression):
    transform = ClipTransform(processor)
    asked, said = set(), set()
    for seed in range(60):
        sample = transform([image_row(clips, expression=expression)], random.Random(seed))
        words = words_of(processor, sample["input_ids"][0])
        question, answer = words.split("assistant\n")
        asked.add(question.split("user\n")[1])
        said.add(answer)
    text = " ".join(expression.split())
    want = {
        template.format(video="", text=text) + "<|im_end|>\n<|im_start|>" for template in segmentation_templates(text)
    }
    assert asked == want
    assert said == {segmentation_answer(4, "[SEG]", i) + "<|im_end|>\n" for i in range(len(ANSWER_TEMPLATES))}


def test_without_jitter_all_is_as_at_inference(processor, clips):
    sample = ClipTransform(processor, jitter=False)([image_row(clips)], random.Random(0))
    inputs = processor(text=["the RED square"], num_vlm_frames=[1], lowercase=False, return_labels=True)
    assert sample["input_ids"] == inputs["input_ids"].tolist() and sample["labels"] == inputs["labels"].tolist()


def test_questions_have_no_masks(processor, clips):
    sample = ClipTransform(processor)([question_row(clips)], random.Random(0))
    assert sample["sam_pixel_values"] is None and sample["mask_labels"] == [None] and sample["tasks"] == ["ask"]
    supervised = [token for token in sample["labels"][0] if token != -100]
    assert processor.tokenizer.decode(supervised) == "One.<|im_end|>"
    assert processor.seg_token_id not in sample["input_ids"][0]


def test_explanations_are_drawn(processor, clips):
    row = image_row(clips, category="reasoning_image", answer="It is Warm.")
    for probability, least, most in ((0.0, 0, 0), (1.0, 50, 50), (0.5, 15, 35)):
        transform = ClipTransform(processor, explain_probability=probability)
        samples = [transform([row], random.Random(seed)) for seed in range(50)]
        explained = [sample for sample in samples if sample["tasks"] == ["explain"]]
        assert least <= len(explained) <= most
        for sample in explained:
            assert words_of(processor, sample["input_ids"][0]).endswith(". It is Warm.<|im_end|>\n")
            assert sample["mask_labels"][0].shape == (1, 128, 128)


def test_expressions_share_frames_and_anchors(processor, clips):
    empty = video_row(clips, expression_id="1", expression="the dog", object_ids=[], masks=[None] * 24)
    sample = ClipTransform(processor)([video_row(clips), empty], random.Random(0))
    assert len(sample["input_ids"]) == 2 and sample["anchor_indices"][0] == sample["anchor_indices"][1]
    assert sample["mask_labels"][0].any() and not sample["mask_labels"][1].any()
    with pytest.raises(DataError, match="own train, video clip.*expression 1 has other frames"):
        ClipTransform(processor)([video_row(clips), video_row(clips[:9], expression_id="1")], random.Random(0))


def test_ignored_pixels_are_background(processor, clips):
    everywhere = encode_rle(np.ones((HEIGHT, WIDTH), dtype=bool))
    plain = ClipTransform(processor)([image_row(clips)], random.Random(0))
    ignoring = ClipTransform(processor)([image_row(clips, ignore_masks=[everywhere])], random.Random(0))
    assert torch.equal(plain["mask_labels"][0], ignoring["mask_labels"][0])


def test_a_video_file(processor, tmp_path, clip_maker):
    import av

    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height = WIDTH, HEIGHT
        for frame in clip_maker(20, HEIGHT, WIDTH):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    row = question_row([], video_path=str(path), frame_names=[], height=None, width=None)
    sample = ClipTransform(processor, jitter=False)([row], random.Random(0))
    want = processor.video_processor(str(path))["pixel_values_videos"]
    assert torch.equal(sample["pixel_values_videos"], want)


def damaged(path, folder):
    broken = folder / "broken.png"
    broken.write_bytes(Path(path).read_bytes()[:200])
    return str(broken)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row, folder: {"frame_paths": [*row["frame_paths"][:11], str(folder / "gone.png")]}, "gone.png"),
        (lambda row, folder: {"frame_paths": [damaged(p, folder) for p in row["frame_paths"]]}, "broken.png"),
        (lambda row, folder: {"frame_paths": [], "frame_names": []}, "neither frames nor"),
        (lambda row, folder: {"masks": None}, "server"),
        (lambda row, folder: {"masks": row["masks"][:5]}, "5 masks for 12 frames"),
        (lambda row, folder: {"height": 40}, "00000.png is 64 x 48.*expected 64 x 40"),
        (lambda row, folder: {"masks": [{"size": [HEIGHT, WIDTH], "counts": "0"}] * 12}, "pixels in all"),
        (lambda row, folder: {"expression": "  "}, "empty"),
        (lambda row, folder: {"category": "video_qa"}, "without an answer"),
        (lambda row, folder: {"video_path": str(folder / "gone.mp4")}, "gone.mp4"),
    ],
)
def test_a_row_that_fails_is_named(processor, clips, tmp_path, change, message):
    row = video_row(clips[:12])
    row.update(change(row, tmp_path))
    with pytest.raises(DataError, match=rf"own train, video clip, expression 0.*{message}"):
        ClipTransform(processor)([row], random.Random(0))


@pytest.mark.parametrize(
    "arguments", [{"supervise": "all"}, {"explain_probability": 1.5}, {"num_anchors": 0}, {"num_before": -1}]
)
def test_bad_arguments_are_refused(processor, arguments):
    with pytest.raises(DataError, match="found"):
        ClipTransform(processor, **arguments)
    with pytest.raises(DataError, match="at least one row"):
        ClipTransform(processor)([], random.Random(0))


# --- batches ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def samples(processor, clips):
    rows = [
        [image_row(clips)],
        [video_row(clips[:12]), video_row(clips[:12], expression_id="1", expression="which one moves?")],
        [question_row(clips)],
        [image_row(clips, category="reasoning_image", answer="It is warm.")],
        [video_row(clips[:3])],
    ]
    transform = ClipTransform(processor, explain_probability=1.0)
    return [transform(part, random.Random(seed)) for seed, part in enumerate(rows)]


def test_a_batch_of_everything(processor, samples):
    batch = VirstCollator(processor)(samples)
    assert batch["video_indices"].tolist() == [0, 1, 1, 2, 3, 4]
    assert batch["num_vlm_frames"].tolist() == [1, 12, 24, 1, 8]
    assert batch["num_frames"].tolist() == [1, 12, 1, 1, 3] and batch["num_seg_frames"].tolist() == [1, 12, 1, 1, 8]
    assert [mask is None for mask in batch["mask_labels"]] == [False, False, False, True, False, False]
    ids = [row for sample in samples for row in sample["input_ids"]]
    for row, mask, labels, want in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], ids, strict=True):
        assert row[mask.bool()].tolist() == want and mask[: len(want)].all()
        assert (labels[~mask.bool()] == -100).all() and (labels != processor.seg_token_id).all()


def test_one_step_of_the_model(model, processor, samples):
    model.train()
    batch = VirstCollator(processor)(samples)
    out = model(**batch)
    assert bool(out.loss.isfinite())
    frames = [
        sorted([*a, *p])
        for s in samples
        for a, p in zip(s["anchor_indices"], s["propagation_indices"], strict=True)
        if a
    ]
    assert [list(part) for part in out.supervised_frames] == frames
    out.loss.backward()
    parts = (model.model.prompt_decoder, model.model.initial_fusion, model.lm_head, model.model.language_model)
    for part in parts:
        assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in part.parameters())


def test_a_batch_is_the_mean_of_its_samples(shared_model, processor, samples):
    collator = VirstCollator(processor)
    with torch.no_grad():
        whole = shared_model(**collator(samples))
        single = [shared_model(**collator([sample])) for sample in samples]
    assert len({len(sample["input_ids"]) for sample in samples}) > 1  # however many texts each has
    for name in ("loss", "token_loss", "bce_loss", "dice_loss", "occlusion_loss", "iou_loss"):
        parts = [getattr(out, name) or torch.zeros(()) for out in single]
        want = sum(parts) / len(parts)
        assert torch.allclose(getattr(whole, name), want, atol=1e-5), name


def test_questions_alone_need_no_sam_view(shared_model, processor, clips):
    sample = ClipTransform(processor)([question_row(clips)], random.Random(0))
    batch = VirstCollator(processor)([sample, sample])
    assert "sam_pixel_values" not in batch and "mask_labels" not in batch
    assert bool(shared_model(**batch).loss.isfinite())


def test_bad_batches_are_refused(processor, samples):
    collator = VirstCollator(processor)
    with pytest.raises(DataError, match="at least one sample"):
        collator([])
    with pytest.raises(DataError, match="sizes"):
        collator([samples[0], {**samples[1], "pixel_values_videos": torch.zeros(1, 3, 8, 8)}])


@pytest.mark.parametrize("workers", [0, 2])
def test_from_rows_to_batches(processor, clips, workers):
    rows = [
        [image_row(clips, category=category) for _ in range(3)]
        for category in ("semantic_segmentation", "referring_image", "reasoning_image")
    ]
    rows += [[video_row(clips[:n]) for n in (9, 16, 24)], [question_row(clips) for _ in range(2)]]
    mixture = Mixture(rows, 12, seed=3, expressions_per_clip=1, transform=ClipTransform(processor))
    loader = DataLoader(mixture, batch_size=3, num_workers=workers, collate_fn=VirstCollator(processor))
    batches = list(loader)
    again = VirstCollator(processor)([mixture[k] for k in range(3, 6)])
    assert len(batches) == 4 and set(batches[1]) == set(again)
    for name, value in again.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(batches[1][name], value), name
    for got, want in zip(batches[1].get("mask_labels", []), again.get("mask_labels", []), strict=True):
        assert (got is None and want is None) or torch.equal(got, want)
