"""Prompts: the wording of training, and user text that stays plain text whatever it spells."""

import copy
import functools
import os
import pickle
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from virst_hf.errors import VirstError
from virst_hf.prompts import (
    ANSWER_TEMPLATES,
    MARKER,
    QUESTION_TEMPLATES,
    STATEMENT_TEMPLATES,
    PlainEncoder,
    build_prompt,
    encode,
    escape,
    is_question,
    normalise_text,
    segmentation_answer,
    segmentation_templates,
)
from virst_hf.toy_tokenizer import toy_tokenizer

QWEN2 = Path(os.environ.get("VIRST_SHARED", Path(__file__).parents[2] / "shared")) / "qwen2_tokenizer"
TOKENS = ["[SEG]", "<video>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"]
# Pieces of tokens side by side make tokens, and tokens inside of tokens make them again once the inner one is gone.
FRAGMENTS = [
    *TOKENS,
    "[SE",
    "G]",
    "<vid",
    "eo>",
    "<|im_",
    "end|>",
    "[",
    "]",
    "<",
    ">",
    MARKER,
    "\n",
    " ",
    "?",
    "a",
    "é",
]
hostile = st.lists(st.sampled_from(FRAGMENTS), max_size=8).map("".join) | st.text(max_size=20)


@functools.cache
def make_tokenizer(name):
    if name == "qwen2" and not QWEN2.is_dir():
        pytest.skip(f"no tokenizer of Qwen2 in {QWEN2}; set VIRST_SHARED to the folder that holds qwen2_tokenizer")
    tokenizer = toy_tokenizer() if name == "toy" else AutoTokenizer.from_pretrained(QWEN2)
    tokenizer.add_tokens(["[SEG]"])
    tokenizer.add_tokens(["<video>"], special_tokens=True)
    return tokenizer, tokenizer.get_added_vocab(), PlainEncoder(tokenizer)


@pytest.fixture(scope="session", params=["toy", "qwen2"])
def tools(request):
    return make_tokenizer(request.param)


@settings(deadline=None)
@given(text=hostile)
def test_escaped_text_holds_no_added_token_and_decodes_to_itself(tools, text):
    tokenizer, added, plain = tools
    ids = encode(escape(text, added), added, plain)
    assert not set(ids) & set(added.values())
    normal = tokenizer.backend_tokenizer.normalizer.normalize_str(text.replace(MARKER, ""))
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == normal


@settings(deadline=None)
@given(pieces=st.lists(hostile, min_size=2, max_size=4))
def test_escaped_pieces_side_by_side_hold_no_added_token(tools, pieces):
    _, added, plain = tools
    ids = encode("".join(escape(piece, added) for piece in pieces), added, plain)
    assert not set(ids) & set(added.values())


@pytest.mark.parametrize("token", TOKENS)
def test_halves_of_a_token_side_by_side_stay_halves(tools, token):
    _, added, plain = tools
    for cut in range(1, len(token)):
        pieces = [token[:cut], "", token[cut:]]
        assert encode("".join(escape(piece, added) for piece in pieces), added, plain) == plain.encode(token)


@settings(deadline=None)
@given(text=hostile)
def test_encode_equals_the_tokenizer(tools, text):
    tokenizer, added, plain = tools
    assume(MARKER not in text)
    assert encode(text, added, plain) == tokenizer(text, add_special_tokens=False).input_ids


@given(text=st.text(alphabet="abx#", max_size=12))
def test_escape_of_tokens_that_overlap(text):
    added = {"ab": 900, "ba": 901, "aba": 902, "#": 903, "xx": 904}
    plain = make_tokenizer("toy")[2]
    ids = encode(escape(text, added), added, plain)
    assert ids == plain.encode(text)


def test_encode_takes_the_longest_token_as_the_tokenizer_does():
    added = {"ab": 900, "aba": 902}
    assert encode("aba", added, make_tokenizer("toy")[2]) == [902]


def test_encode_without_added_tokens():
    plain = make_tokenizer("toy")[2]
    assert encode(f"a{MARKER}b", {}, plain) == plain.encode("ab") == encode(escape("ab", []), {}, plain)


def test_escape_leaves_ordinary_text_alone():
    assert escape("the [red] ball < the blue one", TOKENS) == "the [red] ball < the blue one"


def test_a_control_token_that_appears_by_lower_case_stays_plain():
    tokenizer, added, plain = make_tokenizer("toy")
    text = normalise_text("<|IM_END|> <VIDEO>")
    assert text == "<|im_end|> <video>"
    assert not set(encode(escape(text, added), added, plain)) & set(added.values())


def test_plain_encoder_is_shared_by_copies_and_can_be_pickled():
    plain = make_tokenizer("toy")[2]
    assert copy.deepcopy(plain) is plain
    assert pickle.loads(pickle.dumps(plain)).encode("a [SEG]") == plain.encode("a [SEG]")


def test_plain_encoder_refuses_a_tokenizer_without_backend():
    with pytest.raises(VirstError, match="tokenizers library"):
        PlainEncoder(object())


def test_normalise_text():
    assert normalise_text("  The\tRED \n ball ") == "the red ball"
    assert normalise_text(" The  RED ball", lowercase=False) == "The RED ball"
    assert normalise_text(" Which?\nA. one\nB. two ", "ask") == "which?\na. one\nb. two"


@pytest.mark.parametrize("text", ["", " \n\t", MARKER, None, 3, "\ud800"])
@pytest.mark.parametrize("task", ["segment", "ask"])
def test_normalise_text_refuses(text, task):
    with pytest.raises(VirstError):
        normalise_text(text, task)


@pytest.mark.parametrize(("text", "question"), [("who waves?", True), ("who waves? ", True), ("a ? b", False)])
def test_questions_take_other_templates(text, question):
    assert is_question(text) == question
    assert segmentation_templates(text) == (QUESTION_TEMPLATES if question else STATEMENT_TEMPLATES)


def test_wording_of_segmentation():
    start = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nReference image: <video> \n"
    end = "<|im_end|>\n<|im_start|>assistant\n"
    ask = "Please respond with segmentation mask in the Target Image."
    assert build_prompt("segment", "a dog").question == f"{start}What is a dog in the Reference image? {ask}{end}"
    assert build_prompt("segment", "a dog", template=1).question == (
        f"{start}What is a dog in the Reference image? Please output segmentation mask in the Target Image.{end}"
    )
    assert build_prompt("segment", "a dog", template=2).question == (
        f"{start}Please find a dog in the Reference image and segment it in the Target Image.{end}"
    )
    found = f"{start}who? Please find it in the Reference image and"
    mask = "segmentation mask in the Target Image."
    assert build_prompt("segment", "who?").question == f"{found} respond with {mask}{end}"
    assert build_prompt("segment", "who?", template=1).question == f"{found} output {mask}{end}"


@pytest.mark.parametrize("index", range(4))
def test_wording_of_answers(index):
    said = ["It is", "Sure,", "Sure, it is", "Sure, the segmentation result is"][index]
    assert segmentation_answer(3, "<S>", index) == f"{said} (0) <S>, (1) <S>, (2) <S>."
    assert len(ANSWER_TEMPLATES) == 4
    prompt = build_prompt("segment", "a dog", answer_template=index)
    assert prompt.answer == segmentation_answer(answer_template=index) + "<|im_end|>\n"
    assert prompt.answer.count("[SEG]") == 10


@pytest.mark.parametrize(("is_image", "kind"), [(False, "Video"), (True, "Image")])
def test_wording_of_questions_and_explanations(is_image, kind):
    asked = build_prompt("ask", "who?", is_image=is_image)
    assert f"user\nReference {kind}: <video>who?<|im_end|>\n" in asked.question and asked.answer == ""
    explained = build_prompt("explain", "who?", is_image=is_image)
    assert (
        f"user\nReference {kind}: <video> \nwho? Please output segmentation mask in the Target Image and explain why."
        "<|im_end|>\n"
    ) in explained.question
    assert explained.answer == segmentation_answer()


def test_training_answers():
    assert build_prompt("ask", "who?", answer=" He. ").answer == "He.<|im_end|>\n"
    assert build_prompt("explain", "who?", answer="He.").answer == f"{segmentation_answer()} He.<|im_end|>\n"
    prompt = build_prompt("ask", "a", answer="b", escape_text=str.upper)
    assert prompt.answer == "B<|im_end|>\n" and "<video>A<|im_end|>" in prompt.question


def test_braces_in_a_text_are_plain():
    assert "What is {video} {0} {text} in" in build_prompt("segment", "{video} {0} {text}").question


@pytest.mark.parametrize(
    "arguments",
    [
        {"task": "track"},
        {"template": 3},
        {"template": -1},
        {"text": "who?", "template": 2},
        {"task": "ask", "template": 1},
        {"answer_template": 4},
        {"answer": "He."},
        {"task": "ask", "answer": " "},
    ],
)
def test_build_prompt_refuses(arguments):
    with pytest.raises(VirstError):
        build_prompt(**{"task": "segment", "text": "a dog", **arguments})
