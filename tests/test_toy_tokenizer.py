"""The tokenizer that is built in code."""

from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from virst_hf.toy_tokenizer import toy_tokenizer

TOKENIZER = toy_tokenizer()


@given(st.text(max_size=30))
def test_every_text_is_encoded_byte_by_byte(text):
    normal = TOKENIZER.backend_tokenizer.normalizer.normalize_str(text)
    ids = TOKENIZER(text).input_ids
    assert TOKENIZER.decode(ids) == normal
    if not any(token in normal for token in TOKENIZER.get_added_vocab()):
        assert len(ids) == len(normal.encode("utf-8"))


def test_turn_tokens():
    assert TOKENIZER("<|endoftext|><|im_start|><|im_end|>").input_ids == [256, 257, 258]
    assert (TOKENIZER.pad_token_id, TOKENIZER.eos_token_id, len(TOKENIZER)) == (256, 258, 259)
    assert TOKENIZER.decode([257, 97, 258], skip_special_tokens=True) == TOKENIZER.decode([97])


def test_save_and_load(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == TOKENIZER.get_vocab()
    text = "<|im_start|>user\nWhich café?<|im_end|>"
    assert loaded(text).input_ids == TOKENIZER(text).input_ids
    assert loaded.padding_side == "right" and loaded.model_input_names == ["input_ids", "attention_mask"]
