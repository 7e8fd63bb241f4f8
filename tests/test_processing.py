"""The processor: ids and labels of a prompt, texts and videos that belong together, and masks out of logits."""

import copy
import functools
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco
from transformers import AutoProcessor, AutoTokenizer

from virst_hf import VirstProcessor, VirstVideoProcessor
from virst_hf.errors import VirstError
from virst_hf.modeling_outputs import VirstSegmentationOutput
from virst_hf.processing_virst import iter_masks
from virst_hf.prompts import MARKER, normalise_text
from virst_hf.rle import encode_rle
from virst_hf.toy_tokenizer import toy_tokenizer

SHARED = Path(os.environ.get("VIRST_SHARED", Path(__file__).parents[2] / "shared"))
FRAGMENTS = ["[SEG]", "<video>", "<|im_start|>", "<|im_end|>", "[SE", "G]", "<vid", "<", "[", MARKER, "\n", "?", "a"]
hostile = st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=6).map("".join) | st.text(min_size=1, max_size=12)
TURN_END = "<|im_end|>\n"


def new_processor(tokenizer=None, **settings):
    video_processor = VirstVideoProcessor(image_size=64, sam_image_size=128, tokens_per_clip=16)
    return VirstProcessor(video_processor, tokenizer or toy_tokenizer(), **{"num_seg_tokens": 3, **settings})


@functools.cache
def toy():
    """One processor for all tests, which none of them changes."""
    return new_processor()


def make_frames(count, height=20, width=30):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def text_of(row, mask=None):
    """A row of ids as text, its video tokens as one placeholder."""
    ids = [int(i) for i in (row if mask is None else row[mask.bool()])]
    kept = [i for n, i in enumerate(ids) if i != toy().video_token_id or ids[n - 1] != i]
    return toy().decode(kept)


# --- the prompt of the released weights ------------------------------------------------------------------------------
@pytest.fixture(scope="session")
def qwen2_folder(tmp_path_factory):
    """Qwen2's tokenizer as tokenizer.json, which loads faster than its vocabulary and merges."""
    source = SHARED / "qwen2_tokenizer"
    if not source.is_dir():
        pytest.skip(f"no tokenizer of Qwen2 in {source}; set VIRST_SHARED to the folder that holds qwen2_tokenizer")
    folder = tmp_path_factory.mktemp("qwen2")
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


@pytest.fixture
def qwen2(qwen2_folder):
    return AutoTokenizer.from_pretrained(qwen2_folder)


def test_ids_and_labels_of_the_parity_case(qwen2):
    from safetensors.torch import load_file

    folder = SHARED / "parity" / "case"
    if not folder.is_dir():
        pytest.skip(f"no parity case in {folder}")
    case = json.loads((folder / "case.json").read_text())
    want = load_file(folder / "expected.safetensors")
    seg = case["fusion"]["num_seg_tokens"]
    processor = VirstProcessor(VirstVideoProcessor(), qwen2, num_seg_tokens=seg, supervise_turn_tokens=True)
    assert (processor.seg_token_id, processor.video_token_id) == (case["seg_token_id"], case["seg_token_id"] + 1)
    templates = {"template": case["template"], "answer_template": case["answer"]}
    frames = len(case["frames"])
    got = processor(text=case["expression"], num_vlm_frames=frames, return_labels=True, **templates)
    is_video = got["input_ids"][0] == processor.video_token_id
    assert int(is_video.sum()) == 16 * frames
    # All video tokens but the first go, and that one becomes the release's placeholder.
    first = torch.zeros_like(is_video)
    first[is_video.int().argmax()] = True
    kept = ~is_video | first
    ids, labels = (got[name][0][kept] for name in ("input_ids", "labels"))
    assert torch.equal(ids.masked_fill(ids == processor.video_token_id, -200), want["input_ids"])
    assert torch.equal(labels, want["labels"].masked_fill(want["labels"] == processor.seg_token_id, -100))


@settings(deadline=None, max_examples=50)
@given(text=hostile)
def test_user_text_stays_text_with_qwen2(qwen2_folder, text):
    check_user_text(qwen2_processor(str(qwen2_folder)), text)


@functools.cache
def qwen2_processor(folder):
    return new_processor(AutoTokenizer.from_pretrained(folder))


# --- text ------------------------------------------------------------------------------------------------------------
def check_user_text(processor, text):
    clean = text.replace(MARKER, "")
    if not clean.strip():
        with pytest.raises(VirstError, match="empty"):
            processor(text=text, num_vlm_frames=8)
        return
    special = set(processor.tokenizer.get_added_vocab().values())
    for task in ("segment", "ask", "explain"):
        found = processor(text=text, num_vlm_frames=8, task=task)["input_ids"][0]
        plain = processor(text="dog", num_vlm_frames=8, task=task)["input_ids"][0]
        # Same tokens of every kind, in the same order: one run of video tokens, N [SEG], the turns.
        assert [int(i) for i in found if int(i) in special] == [int(i) for i in plain if int(i) in special]
        places = (found == processor.video_token_id).nonzero()[:, 0]
        assert len(places) == 32 and int(places[-1] - places[0]) == 31
        normal = processor.tokenizer.backend_tokenizer.normalizer.normalize_str(normalise_text(text, task))
        assert normal in processor.decode(found)


@settings(deadline=None)
@given(text=hostile)
def test_user_text_stays_text(text):
    check_user_text(toy(), text)


@settings(deadline=None, max_examples=50)
@given(text=hostile, answer=hostile.filter(lambda text: text.replace(MARKER, "").strip()))
def test_training_answers_stay_text(text, answer):
    if not text.replace(MARKER, "").strip():
        return
    processor = toy()
    ids = processor(text=text, answers=answer, num_vlm_frames=8, task="explain")["input_ids"][0].tolist()
    assert ids.count(processor.seg_token_id) == 3
    assert ids.count(processor.tokenizer.convert_tokens_to_ids("<|im_end|>")) == 3


def test_a_token_added_later_is_plain_text_too():
    processor = new_processor()
    processor.tokenizer.add_tokens(["<box>"])
    ids = processor(text="a <box>", num_vlm_frames=8)["input_ids"][0].tolist()
    assert processor.tokenizer.convert_tokens_to_ids("<box>") not in ids


def test_questions_and_statements():
    got = toy()(text=["Who WAVES?", "the  Dog"], num_vlm_frames=8)
    assert "\nwho waves? Please find it in" in text_of(got["input_ids"][0])
    assert "\nWhat is the dog in the Reference image?" in text_of(got["input_ids"][1])
    got = toy()(text="The Dog", num_vlm_frames=8, lowercase=False, template=2, answer_template=1)
    assert "\nPlease find The Dog in" in text_of(got["input_ids"][0])
    assert "assistant\nSure, (0) [SEG], (1) [SEG], (2) [SEG]." in text_of(got["input_ids"][0])


@pytest.mark.parametrize(
    ("task", "end"),
    [
        ("segment", "assistant\nIt is (0) [SEG], (1) [SEG], (2) [SEG]." + TURN_END),
        ("ask", TURN_END + "<|im_start|>assistant\n"),
        ("explain", "assistant\nIt is (0) [SEG], (1) [SEG], (2) [SEG]."),
    ],
)
def test_where_a_prompt_ends_and_padding_side(task, end):
    got = toy()(text=["a", "a longer text"], task=task, num_vlm_frames=8)
    ids, mask = got["input_ids"], got["attention_mask"]
    assert all(text_of(row, keep).endswith(end) for row, keep in zip(ids, mask, strict=True))
    assert int(mask[0].sum()) + 12 == int(mask[1].sum()) == ids.shape[1]
    pads = mask[0] == 0
    assert (ids[0][pads] == toy().tokenizer.pad_token_id).all()
    assert bool(pads[:12].all()) == (task != "segment") and bool(pads[-12:].all()) == (task == "segment")


@pytest.mark.parametrize(("frames", "tokens"), [(1, 16), (8, 32), (64, 256)])
def test_number_of_video_tokens(frames, tokens):
    ids = toy()(text="a", task="ask", num_vlm_frames=frames)["input_ids"][0]
    assert int((ids == toy().video_token_id).sum()) == tokens
    assert ("Reference Image: <video>" if frames == 1 else "Reference Video: <video>") in text_of(ids)


def test_a_batch_holds_the_rows_of_its_parts():
    texts = ["a", "who waves with both hands?"]
    batch = toy()(text=texts, num_vlm_frames=[8, 16])
    assert batch["video_indices"].tolist() == [0, 1]
    for i, frames in enumerate((8, 16)):
        alone = toy()(text=texts[i], num_vlm_frames=frames)["input_ids"][0]
        assert torch.equal(batch["input_ids"][i][batch["attention_mask"][i].bool()], alone)


@pytest.mark.parametrize(
    ("text", "videos", "owners"),
    [
        ("a", 1, [0]),
        (["a", "b", "c"], 1, [0, 0, 0]),
        (("a", "b"), 2, [0, 1]),
        ([["a", "b"], ["c"]], 2, [0, 0, 1]),
        ([["a", "b"], "c"], 2, [0, 0, 1]),
        ([["a", "b"]], 1, [0, 0]),
        ([["a"], []], 2, [0]),
    ],
)
def test_which_text_is_about_which_video(text, videos, owners):
    assert toy()(text=text, num_vlm_frames=[8] * videos)["video_indices"].tolist() == owners


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Nothing to prepare"),
        ({"text": "a"}, "num_vlm_frames"),
        ({"text": "a", "num_vlm_frames": 0}, "at least 1"),
        ({"text": "a", "num_vlm_frames": []}, "at least 1"),
        ({"text": "", "num_vlm_frames": 8}, "empty"),
        ({"text": [], "num_vlm_frames": 8}, "empty"),
        ({"text": [["a"], 3], "num_vlm_frames": [8, 8]}, "int"),
        ({"text": "a", "num_vlm_frames": [8, 8]}, "there are 2"),
        ({"text": ["a"] * 3, "num_vlm_frames": [8, 8]}, "there are 2"),
        ({"text": "a", "num_vlm_frames": 8, "task": "track"}, "track"),
        ({"text": "a", "num_vlm_frames": 8, "template": 3}, "template"),
        ({"text": "a", "num_vlm_frames": 8, "answers": "b"}, "fixed answer"),
        ({"text": ["a", "b"], "num_vlm_frames": 8, "task": "ask", "answers": ["c"]}, "2 texts and 1 answers"),
        ({"text": "a", "num_vlm_frames": 8, "task": "ask", "return_labels": True}, "need answers"),
        ({"videos": make_frames(2), "return_labels": True}, "belong to texts"),
        ({"videos": make_frames(2), "text": "a", "num_vlm_frames": 8}, "one of the two"),
    ],
)
def test_calls_that_are_refused(arguments, message):
    with pytest.raises(VirstError, match=message):
        toy()(**arguments)


def test_text_keys_as_lists():
    got = toy()(text=["a", "bc"], num_vlm_frames=8, return_tensors=None)
    assert isinstance(got["input_ids"][0], list) and got["video_indices"] == [0, 0]


# --- labels ----------------------------------------------------------------------------------------------------------
def supervised(got, row=0):
    labels = got["labels"][row]
    assert torch.equal(labels[labels >= 0], got["input_ids"][row][labels >= 0])
    assert not (labels == toy().seg_token_id).any()
    return toy().decode(labels[labels >= 0])


def test_labels_are_the_answer():
    seg = "It is (0) , (1) , (2) ."
    got = toy()(text="a", num_vlm_frames=8, return_labels=True)
    assert supervised(got) == f"{seg}<|im_end|>"
    got = toy()(
        text=["a", "b?"], task="explain", answers=["Red.", "As it\nwaves"], num_vlm_frames=8, return_labels=True
    )
    assert [supervised(got, i) for i in range(2)] == [f"{seg} Red.<|im_end|>", f"{seg} As it\nwaves<|im_end|>"]
    got = toy()(text=["a", "b"], task="ask", answers=["Yes", "No [SEG]"], num_vlm_frames=8, return_labels=True)
    assert [supervised(got, i) for i in range(2)] == ["Yes<|im_end|>", "No [SEG]<|im_end|>"]
    # With answers nothing is generated, and padding is on the right.
    assert got["attention_mask"][0].tolist() == sorted(got["attention_mask"][0].tolist(), reverse=True)


def test_labels_with_turn_tokens():
    processor = new_processor(supervise_turn_tokens=True)
    got = processor(text=["a", "longer"], num_vlm_frames=8, return_labels=True)
    turns = "<|im_start|>\n<|im_end|>\n<|im_start|>\n"
    # The line break behind the video counts as well, as its own token that it is here.
    assert supervised(got) == f"{turns}\n<|im_end|>\n<|im_start|>assistant\nIt is (0) , (1) , (2) .<|im_end|>\n"


def test_generation_begins_where_the_training_answer_begins():
    for task, answer in (("ask", "Yes."), ("explain", "It waves.")):
        prompt = toy()(text="a", task=task, num_vlm_frames=8)["input_ids"][0].tolist()
        trained = toy()(text="a", task=task, answers=answer, num_vlm_frames=8)["input_ids"][0].tolist()
        assert trained[: len(prompt)] == prompt
        assert toy().decode(trained[len(prompt) :]).strip() == answer + "<|im_end|>"


# --- videos ----------------------------------------------------------------------------------------------------------
def test_videos_and_texts_in_one_call():
    processor, videos = toy(), [make_frames(10), make_frames(3, 40, 24)]
    got = processor(videos=videos, text=[["a", "b"], ["who?"]])
    assert set(got) == set(processor.model_input_names)
    assert got["num_vlm_frames"].tolist() == [8, 8] and got["num_frames"].tolist() == [10, 3]
    assert got["original_sizes"].tolist() == [[20, 30], [40, 24]] and got["video_indices"].tolist() == [0, 0, 1]
    assert got["sam_pixel_values"].shape == (13, 3, 128, 128) and got["sam_pixel_values"].dtype == torch.uint8
    alone = processor(text=[["a", "b"], ["who?"]], num_vlm_frames=got["num_vlm_frames"])
    assert all(torch.equal(got[name], alone[name]) for name in alone)
    views = processor(videos=videos)
    assert set(views) == set(processor.video_processor.model_input_names)
    assert all(torch.equal(got[name], views[name]) for name in views)


def test_still_image_and_metadata():
    image = Image.fromarray(make_frames(1)[0])
    got = toy()(videos=image, text="a", task="ask", videos_kwargs={"return_metadata": True})
    assert got["num_vlm_frames"].tolist() == [1] and "Reference Image: <video>a" in text_of(got["input_ids"][0])
    assert got["video_metadata"][0]["is_image"]


# --- saving ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("tokenizer", ["toy", "qwen2"])
def test_save_and_load(tokenizer, request, tmp_path):
    tokenizer = toy_tokenizer() if tokenizer == "toy" else request.getfixturevalue("qwen2")
    processor = new_processor(tokenizer, num_seg_tokens=5, seg_token="[MASK]", supervise_turn_tokens=True)
    processor.save_pretrained(tmp_path)
    for loaded in (AutoProcessor.from_pretrained(tmp_path), VirstProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is VirstProcessor and type(loaded.video_processor) is VirstVideoProcessor
        assert loaded.chat_template == processor.chat_template and loaded.num_seg_tokens == 5
        assert (loaded.seg_token_id, loaded.video_token_id) == (processor.seg_token_id, processor.video_token_id)
        assert loaded.to_dict() == processor.to_dict()
        arguments = {"videos": make_frames(9), "text": ["a [MASK]", "b?"], "return_labels": True}
        want, got = processor(**arguments), loaded(**arguments)
        assert set(want) == set(got) and all(torch.equal(want[name], got[name]) for name in want)


def test_copy_and_pickle():
    want = toy()(text="a [SEG]", num_vlm_frames=8)["input_ids"]
    for copied in (copy.deepcopy(toy()), pickle.loads(pickle.dumps(toy()))):
        assert torch.equal(copied(text="a [SEG]", num_vlm_frames=8)["input_ids"], want)


def test_added_tokens():
    processor = new_processor()
    assert (processor.seg_token_id, processor.video_token_id) == (259, 260)
    special = {t.content: t.special for t in processor.tokenizer.added_tokens_decoder.values()}
    assert special["<video>"] and not special["[SEG]"]
    again = new_processor(processor.tokenizer)
    assert (again.seg_token_id, again.video_token_id) == (259, 260)
    assert processor.batch_decode([[259, 258]], skip_special_tokens=True) == ["[SEG]"]


def test_processors_that_are_refused():
    with pytest.raises(VirstError, match="num_seg_tokens"):
        new_processor(num_seg_tokens=0)
    with pytest.raises(VirstError, match="<|im_start|>"):
        new_processor(tokenizer_without_turns())


def tokenizer_without_turns():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab={"a": 0}, merges=[])))


# --- chats -----------------------------------------------------------------------------------------------------------
def question(*contents):
    return [{"role": "user", "content": list(contents)}]


VIDEO = {"type": "video"}
EIGHT_FRAMES = {"num_vlm_frames": 8}


def words(text):
    return {"type": "text", "text": text}


def test_video_then_question_is_the_prompt_of_ask():
    chat, frames = question({"type": "video", "video": make_frames(9)}, words("Who [SEG]?")), make_frames(9)
    got = toy().apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True)
    want = toy()(videos=frames, text="Who [SEG]?", task="ask", lowercase=False)
    assert set(got) == set(want) and all(torch.equal(got[name], want[name]) for name in want)
    ids = toy().apply_chat_template(chat, add_generation_prompt=True, tokenize=True)
    assert torch.equal(ids, want["input_ids"])


def test_rendered_chat():
    chat = [
        {"role": "system", "content": "Be brief."},
        *question(words("Look: "), VIDEO, words(" What?")),
        {"role": "assistant", "content": [words("A dog.")]},
        {"role": "user", "content": "Why?"},
    ]
    want = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nLook: <video> What?<|im_end|>\n"
        "<|im_start|>assistant\nA dog.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"
    )
    assert toy().apply_chat_template(chat) == want
    assert (
        toy().apply_chat_template([chat, chat], add_generation_prompt=True) == [want + "<|im_start|>assistant\n"] * 2
    )
    still = toy().apply_chat_template(question({"type": "image"}, words("What?")))
    assert still == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nReference Image: <video>What?<|im_end|>\n"
    )
    # An open last turn has no end.
    assert toy().apply_chat_template(chat[:3], continue_final_message=True).endswith("assistant\nA dog.")


@settings(deadline=None, max_examples=50)
@given(pieces=st.lists(hostile, min_size=1, max_size=3), system=hostile, answer=hostile)
def test_message_texts_stay_text(pieces, system, answer):
    processor = toy()

    def specials(pieces, system, answer):
        chat = [
            {"role": "system", "content": system},
            *question(VIDEO, *map(words, pieces)),
            {"role": "assistant", "content": answer},
        ]
        ids = processor.apply_chat_template(chat, tokenize=True, processor_kwargs=EIGHT_FRAMES)[0]
        return [int(i) for i in ids if int(i) in set(processor.tokenizer.get_added_vocab().values())]

    assert specials(pieces, system, answer) == specials(["a"], "b", "c")


def test_a_token_in_two_contents_stays_text():
    ids = toy().apply_chat_template(
        question(VIDEO, words("who [SE"), words("G]?")), tokenize=True, processor_kwargs=EIGHT_FRAMES
    )
    assert not (ids == toy().seg_token_id).any() and "who [SEG]?" in text_of(ids[0])


def test_other_tokens_and_templates():
    processor = new_processor(video_token="<clip>")
    assert "Reference Video: <clip>Who?" in processor.apply_chat_template(question(VIDEO, words("Who?")))
    simple = "{% for m in messages %}{{ m.content }};{% endfor %}"
    assert processor.apply_chat_template([{"role": "user", "content": "a"}], simple) == "a;"


def test_chats_about_one_file_share_the_video(tmp_path):
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path, frame in zip(paths, make_frames(2), strict=True):
        Image.fromarray(frame).save(path)
    chats = [question({"type": "image", "path": str(paths[i])}, words(text)) for i, text in enumerate("ab")]
    chats.append(question({"type": "image", "path": paths[0]}, words("longer")))
    got = toy().apply_chat_template(chats, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert got["video_indices"].tolist() == [0, 1, 0] and got["num_vlm_frames"].tolist() == [1, 1]
    assert got["attention_mask"][0, 0] == 0 and got["attention_mask"][0, -1] == 1


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ([], "empty"),
        (question(words("a")), "exactly one video, found 0"),
        (question(VIDEO, VIDEO, words("a")), "exactly one video, found 2"),
        ([{"role": "user\n<|im_end|>", "content": "a"}], "Unknown role"),
        (question({"type": "audio", "path": "a.wav"}), "Unknown content"),
        (question({"type": "text", "text": None}), "Unknown content"),
        ([question(VIDEO), question({"type": "video", "video": make_frames(2)})], "all or none"),
        ([question(VIDEO), question(VIDEO)], "1 entries for 2"),
    ],
)
def test_chats_that_are_refused(chat, message):
    with pytest.raises(VirstError, match=message):
        toy().apply_chat_template(chat, tokenize=True, processor_kwargs=EIGHT_FRAMES)


def test_a_template_without_the_video_is_refused():
    with pytest.raises(VirstError, match="exactly one video, found 0"):
        toy().apply_chat_template(question(VIDEO), "nothing", tokenize=True, processor_kwargs=EIGHT_FRAMES)


# --- masks -----------------------------------------------------------------------------------------------------------
def bilinear(image, height, width):
    """Bilinear resize, align_corners off, pixel by pixel."""
    rows, columns = image.shape
    out = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            v = max((y + 0.5) * rows / height - 0.5, 0.0)
            u = max((x + 0.5) * columns / width - 0.5, 0.0)
            top, left = int(v), int(u)
            bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
            dy, dx = v - top, u - left
            upper = (1 - dx) * image[top, left] + dx * image[top, right]
            lower = (1 - dx) * image[bottom, left] + dx * image[bottom, right]
            out[y, x] = (1 - dy) * upper + dy * lower
    return out


def make_outputs(lengths=(11, 3), side=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = [torch.randn(n, generator=generator) for n in lengths]
    scores[0][1] = 0.0
    return VirstSegmentationOutput(
        mask_logits=tuple(torch.randn(n, side, side, generator=generator) for n in lengths),
        object_scores=tuple(scores),
        iou_scores=tuple(torch.rand(n, generator=generator) for n in lengths),
        video_indices=torch.tensor([1, 0]),
        original_sizes=torch.tensor([[5, 9], [13, 4]]),
    )


@pytest.mark.parametrize("threshold", [0.0, 0.4])
def test_masks_against_brute_force(threshold):
    outputs = make_outputs()
    results = toy().post_process_video_segmentation(outputs, threshold=threshold)
    for i, (result, size) in enumerate(zip(results, [(13, 4), (5, 9)], strict=True)):
        scores = outputs.object_scores[i]
        assert result["masks"].shape == (len(scores), *size) and result["masks"].dtype == torch.bool
        for t, logits in enumerate(outputs.mask_logits[i].numpy().astype(np.float64)):
            resized = bilinear(logits, *size)
            clear = np.abs(resized - threshold) > 1e-5
            want = (resized > threshold) & (scores[t].item() > 0)
            assert (result["masks"][t].numpy() == want)[clear].all()
        assert not result["masks"][scores <= 0].any() and (scores <= 0).any()
        assert result["masks"][scores > 0].any()
        assert torch.equal(result["scores"], scores) and torch.equal(result["iou_scores"], outputs.iou_scores[i])
        assert "rle" not in result


def test_rle_round_trip():
    for result in toy().post_process_video_segmentation(make_outputs(), return_rle=True):
        stored = json.loads(json.dumps(result["rle"]))
        decoded = np.stack([coco.decode(rle) for rle in stored]).astype(bool)
        assert np.array_equal(decoded, result["masks"].numpy())


def test_rle_against_the_format():
    mask = np.zeros((4, 6), dtype=bool)
    assert encode_rle(mask) == {"size": [4, 6], "counts": "h0"}
    mask[1:3, 2:4] = True
    assert encode_rle(mask) == {"size": [4, 6], "counts": "92207"}


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_iter_masks(chunk):
    outputs = make_outputs()
    logits, scores = outputs.mask_logits[0], outputs.object_scores[0]
    masks = list(iter_masks(logits, scores, (13, 4), chunk=chunk))
    assert all(mask.shape == (13, 4) and mask.dtype == bool for mask in masks)
    want = toy().post_process_video_segmentation(outputs)[0]["masks"].numpy()
    assert np.array_equal(np.stack(masks), want)
    assert np.array_equal(np.stack(list(toy().iter_masks(logits, scores, torch.tensor([13, 4])))), want)


def test_half_precision_logits_are_resized_in_single_precision():
    logits = make_outputs().mask_logits[0].bfloat16()
    got = list(iter_masks(logits, torch.ones(len(logits)), (90, 70)))
    want = F.interpolate(logits.float()[:, None], size=(90, 70), mode="bilinear", align_corners=False)[:, 0] > 0
    assert np.array_equal(np.stack(got), want.numpy())


def test_sizes_and_owners_can_be_given():
    outputs = make_outputs()
    results = toy().post_process_video_segmentation(outputs, original_sizes=[(7, 8)], video_indices=[0, 0])
    assert [result["masks"].shape[1:] for result in results] == [(7, 8), (7, 8)]
    outputs.video_indices = None
    shapes = [r["masks"].shape[1:] for r in toy().post_process_video_segmentation(outputs)]
    assert shapes == [(5, 9), (13, 4)]
    shapes = [r["masks"].shape[1:] for r in toy().post_process_video_segmentation(outputs, torch.tensor([[3, 2]]))]
    assert shapes == [(3, 2), (3, 2)]


def test_masks_that_are_refused():
    outputs = make_outputs()
    with pytest.raises(VirstError, match="does not name one of 1 videos"):
        toy().post_process_video_segmentation(outputs, original_sizes=[(5, 9)])
    with pytest.raises(VirstError, match="does not name one of 2 videos for 2"):
        toy().post_process_video_segmentation(outputs, video_indices=[0])
    with pytest.raises(VirstError, match="say which"):
        outputs.video_indices = None
        toy().post_process_video_segmentation(outputs, original_sizes=[(5, 9)] * 3)
    outputs.original_sizes = None
    with pytest.raises(VirstError, match="original_sizes"):
        toy().post_process_video_segmentation(outputs)
    with pytest.raises(VirstError, match="found shapes"):
        list(iter_masks(torch.zeros(3, 4, 4), torch.zeros(2), (4, 4)))
    with pytest.raises(VirstError, match="chunk"):
        list(iter_masks(torch.zeros(3, 4, 4), torch.zeros(3), (4, 4), chunk=0))
