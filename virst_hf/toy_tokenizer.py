"""A tokenizer built in code, without a file: for untrained models, for trying things out and for tests."""

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

__all__ = ["byte_level", "chat_tokenizer", "toy_tokenizer"]

# The turn tokens of Qwen2, in the order of their ids.
TURN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def toy_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that behaves as Qwen2's does, with one token for each of the 256 bytes and no merges.

    Ids 0 to 255 are the bytes, 256 to 258 `<|endoftext|>` (padding), `<|im_start|>` and `<|im_end|>` (end of a turn).
    Every text can be encoded, and is brought to Unicode's normal form C on the way, as by Qwen2.

    Returns:
        `PreTrainedTokenizerFast`: The tokenizer; padding goes to the right.

    Example:

    ```python
    >>> from virst_hf.toy_tokenizer import toy_tokenizer
    >>> tokenizer = toy_tokenizer()
    >>> len(tokenizer), tokenizer.decode(tokenizer("a red ball").input_ids)
    (259, 'a red ball')

    ```
    """
    # `alphabet()` comes in no fixed order, and the ids have to be the same in every process.
    vocabulary = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    return chat_tokenizer(byte_level(models.BPE(vocab=vocabulary, merges=[])), max_length=32768)


def byte_level(model: models.Model) -> Tokenizer:
    """A tokenizer of bytes around a model, with the normal form and the splitting of Qwen2's kind.

    Args:
        model (`tokenizers.models.Model`): Such as `BPE`, with a vocabulary or still to be trained.

    Returns:
        `tokenizers.Tokenizer`: The tokenizer, without any added token.
    """
    backend = Tokenizer(model)
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    return backend


def chat_tokenizer(backend: Tokenizer, max_length: int, phrases: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """Add the turn tokens of Qwen2, and make a tokenizer of Transformers of it.

    Args:
        backend (`tokenizers.Tokenizer`): What [`byte_level`] gave.
        max_length (`int`): Most tokens of a text.
        phrases (`Iterable[str]`, *optional*): Texts that are to be one token each.

    Returns:
        `PreTrainedTokenizerFast`: The tokenizer; padding goes to the right.
    """
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in TURN_TOKENS])
    backend.add_tokens([AddedToken(phrase, special=False, normalized=False) for phrase in phrases])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
        padding_side="right",
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
