"""The prompts that the weights were trained on, and how user text gets into them without becoming a control token.

User text goes through `escape` before it is put into a prompt: a marker, a private-use character, is set into every
added token that the text spells. `encode` then finds the real added tokens alone, takes the markers out again, and
encodes everything in between with a tokenizer that knows no added token at all.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from .errors import VirstError

__all__ = [
    "PlainEncoder",
    "Prompt",
    "Task",
    "build_prompt",
    "encode",
    "escape",
    "is_question",
    "normalise_text",
    "segmentation_answer",
    "segmentation_templates",
]

Task = Literal["segment", "ask", "explain"]

SYSTEM_MESSAGE = "You are a helpful assistant."
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
ANSWER_START, ANSWER_END = f"{TURN_START}assistant\n", f"{TURN_END}\n"

# The weights saw these very strings: "image" stands in them for videos too.
STATEMENT_TEMPLATES = (
    "Reference image: {video} \nWhat is {text} in the Reference image? "
    "Please respond with segmentation mask in the Target Image.",
    "Reference image: {video} \nWhat is {text} in the Reference image? "
    "Please output segmentation mask in the Target Image.",
    "Reference image: {video} \nPlease find {text} in the Reference image and segment it in the Target Image.",
)
QUESTION_TEMPLATES = (
    "Reference image: {video} \n{text} Please find it in the Reference image "
    "and respond with segmentation mask in the Target Image.",
    "Reference image: {video} \n{text} Please find it in the Reference image "
    "and output segmentation mask in the Target Image.",
)
ANSWER_TEMPLATES = (
    "It is {seg}.",
    "Sure, {seg}.",
    "Sure, it is {seg}.",
    "Sure, the segmentation result is {seg}.",
)
ASK_TEMPLATE = "Reference {kind}: {video}{text}"
EXPLAIN_TEMPLATE = (
    "Reference {kind}: {video} \n{text} Please output segmentation mask in the Target Image and explain why."
)

# The last private-use character: no font and no script gives it a meaning.
MARKER = "\U0010fffd"


# --- user text -------------------------------------------------------------------------------------------------------
def is_question(text: str) -> bool:
    """Whether a text ends in a question mark, and so takes the templates for questions.

    Args:
        text (`str`): An expression.

    Returns:
        `bool`: Whether its last character that is no white space is "?".
    """
    return text.rstrip().endswith("?")


def normalise_text(text: str, task: Task = "segment", lowercase: bool = True) -> str:
    """User text as the released evaluation feeds it: lower case, and white space collapsed in expressions.

    Args:
        text (`str`): What the user wrote.
        task (`str`, *optional*, defaults to `"segment"`):
            One of `"segment"`, `"ask"` and `"explain"`. A question to `"ask"` keeps its inner line breaks, which
            separate the choices where there are any.
        lowercase (`bool`, *optional*, defaults to `True`): Off in training, where expressions keep their case.

    Returns:
        `str`: The text, without white space around it.

    Raises:
        VirstError: The text is no string, is empty, or is not valid Unicode.

    Example:

    ```python
    >>> from virst_hf.prompts import normalise_text
    >>> normalise_text("  The  RED ball ")
    'the red ball'

    ```
    """
    if not isinstance(text, str):
        raise VirstError(f"A text must be a string, found {type(text).__name__}.")
    # A text of nothing but markers would be empty once `escape` has taken them out.
    text = text.replace(MARKER, "")
    text = text.strip() if task == "ask" else " ".join(text.split())
    if not text:
        raise VirstError("A text is empty; say what to look for, such as 'the red ball'.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise VirstError(f"The text {text!r} holds half of a surrogate pair; pass valid Unicode.") from error
    return text.lower() if lowercase else text


@lru_cache(maxsize=32)
def _start_pattern(tokens: frozenset[str]) -> re.Pattern:
    """Matches the first character of every place where one of `tokens` stands, places that overlap included."""
    return re.compile(f"(?=(?:{'|'.join(map(re.escape, tokens))}))(.)", re.DOTALL)


@lru_cache(maxsize=32)
def _token_pattern(tokens: frozenset[str]) -> re.Pattern:
    """Matches one of `tokens`, the longest first, as the tokenizers library does."""
    ordered = sorted(tokens, key=lambda token: (-len(token), token))
    # No marker fits inside a token of one character; there it stands behind.
    return re.compile("(" + "|".join(re.escape(t) + (f"(?!{MARKER})" if len(t) == 1 else "") for t in ordered) + ")")


def escape(text: str, tokens: Iterable[str]) -> str:
    """Mark user text so that [`encode`] finds no added token in it, whatever is put behind it.

    Args:
        text (`str`): User text. Markers that it already holds are removed first.
        tokens (`Iterable[str]`): The added tokens of the tokenizer.

    Returns:
        `str`: The text, with a marker after the first character of every added token in it, and at its end if that
        could be the beginning of one. Text without any of that is returned as it is.

    Example:

    ```python
    >>> from virst_hf.prompts import escape
    >>> escape("the [SEG] sign", ["[SEG]"]) == "the [\\U0010fffdSEG] sign"
    True
    >>> escape("the red ball", ["[SEG]"])
    'the red ball'

    ```
    """
    tokens = frozenset(tokens)
    text = text.replace(MARKER, "")
    if not tokens:
        return text
    text = _start_pattern(tokens).sub(rf"\1{MARKER}", text)
    # Two pieces of user text may stand side by side, as in the contents of a chat message: "[SE" and "G]".
    if any(text.endswith(token[:length]) for token in tokens for length in range(1, len(token))):
        text += MARKER
    return text


class PlainEncoder:
    """
    A tokenizer's model, normaliser and pre-tokenizer without its added tokens: no text yields one of their ids.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): A tokenizer of the tokenizers library.

    Raises:
        VirstError: The tokenizer is not backed by the tokenizers library.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise VirstError(
                f"{type(tokenizer).__name__} is not backed by the tokenizers library; load it with AutoTokenizer."
            )
        self._bare = Tokenizer(backend.model)
        if backend.normalizer is not None:
            self._bare.normalizer = backend.normalizer
        if backend.pre_tokenizer is not None:
            self._bare.pre_tokenizer = backend.pre_tokenizer

    def __deepcopy__(self, memo: dict[int, Any]) -> "PlainEncoder":
        # It never changes, and a copy of the vocabulary for each `ProcessorMixin.to_dict` would be slow.
        return self

    def encode(self, text: str) -> list[int]:
        """Ids of a text in which nothing is an added token.

        Args:
            text (`str`): Any text.

        Returns:
            `list[int]`: Its ids.
        """
        return self._bare.encode(text, add_special_tokens=False).ids if text else []


def encode(text: str, added_tokens: Mapping[str, int], plain: PlainEncoder) -> list[int]:
    """Ids of a prompt: its real added tokens become their ids, all text between them is plain.

    Args:
        text (`str`): A prompt, in which user text has gone through [`escape`].
        added_tokens (`Mapping[str, int]`): The tokenizer's added tokens and their ids.
        plain (`PlainEncoder`): Encodes the text between them.

    Returns:
        `list[int]`: The ids. Without markers in the text they are those of the tokenizer itself.
    """
    if not added_tokens:
        return plain.encode(text.replace(MARKER, ""))
    ids = []
    for i, piece in enumerate(_token_pattern(frozenset(added_tokens)).split(text)):
        # `split` by a group gives text and token in turn.
        ids.extend([added_tokens[piece]] if i % 2 else plain.encode(piece.replace(MARKER, "")))
    return ids


# --- prompts ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Prompt:
    """
    A prompt in two parts, which are encoded one by one: at the seam a model that generates begins.

    Args:
        question (`str`): System message, question and the beginning of the assistant's turn.
        answer (`str`): What the assistant says; without the end of its turn where generation goes on.
    """

    question: str
    answer: str


def segmentation_templates(text: str) -> tuple[str, ...]:
    """The templates that fit an expression: those for questions where it ends in "?".

    Args:
        text (`str`): The expression.

    Returns:
        `tuple[str]`: Strings with the fields `{video}` and `{text}`. Training draws one, inference takes the first.
    """
    return QUESTION_TEMPLATES if is_question(text) else STATEMENT_TEMPLATES


def segmentation_answer(num_seg_tokens: int = 10, seg_token: str = "[SEG]", answer_template: int = 0) -> str:
    """The answer that is put into the assistant's mouth: its hidden states at `seg_token` become the mask prompts.

    Args:
        num_seg_tokens (`int`, *optional*, defaults to 10): Number of spatio-temporal tokens, N.
        seg_token (`str`, *optional*, defaults to `"[SEG]"`): The token.
        answer_template (`int`, *optional*, defaults to 0): Which of `ANSWER_TEMPLATES`.

    Returns:
        `str`: The answer.

    Raises:
        VirstError: There is no such template.

    Example:

    ```python
    >>> from virst_hf.prompts import segmentation_answer
    >>> segmentation_answer(num_seg_tokens=2)
    'It is (0) [SEG], (1) [SEG].'

    ```
    """
    seg = ", ".join(f"({i}) {seg_token}" for i in range(num_seg_tokens))
    return _pick(ANSWER_TEMPLATES, answer_template, "answer_template").format(seg=seg)


def build_prompt(
    task: Task,
    text: str,
    *,
    seg_answer: Callable[[int], str] = lambda index: segmentation_answer(answer_template=index),
    video_token: str = "<video>",
    is_image: bool = False,
    template: int = 0,
    answer_template: int = 0,
    answer: str | None = None,
    escape_text: Callable[[str], str] = str,
) -> Prompt:
    """The prompt of one text.

    Args:
        task (`str`):
            `"segment"` (question and answer, nothing is generated), `"ask"` (a question, answered by generation) or
            `"explain"` (the [SEG] answer is given, generation goes on behind it).
        text (`str`): The text, normalised.
        seg_answer (`Callable`, *optional*): Gives the [SEG] answer for an index into `ANSWER_TEMPLATES`.
        video_token (`str`, *optional*, defaults to `"<video>"`): Placeholder of the video.
        is_image (`bool`, *optional*, defaults to `False`): Whether the video is a still image.
        template (`int`, *optional*, defaults to 0): Which of the templates that fit the text; for `"segment"`.
        answer_template (`int`, *optional*, defaults to 0): Which of `ANSWER_TEMPLATES`; not for `"ask"`.
        answer (`str`, *optional*): What generation should give, in training; not for `"segment"`.
        escape_text (`Callable`, *optional*): Applied to `text` and `answer` on the way into the prompt.

    Returns:
        [`Prompt`]: Its two parts.

    Raises:
        VirstError: The task or a template is unknown, the answer is empty, or an answer is given for `"segment"`.
    """
    if task not in get_args(Task):
        raise VirstError(f"Unknown task {task!r}; expected one of {', '.join(get_args(Task))}.")
    if task == "segment" and answer is not None:
        raise VirstError('The task "segment" has a fixed answer; pass answers with task="explain" or task="ask".')
    if answer is not None and not answer.strip():
        raise VirstError("A training answer is empty.")
    templates = {"segment": segmentation_templates(text), "ask": (ASK_TEMPLATE,), "explain": (EXPLAIN_TEMPLATE,)}
    kind = "Image" if is_image else "Video"
    user = _pick(templates[task], template, "template").format(video=video_token, text=escape_text(text), kind=kind)
    system = f"{TURN_START}system\n{SYSTEM_MESSAGE}{TURN_END}\n"
    said = "" if task == "ask" else seg_answer(answer_template)
    if answer is not None:
        # The tokens of the explanation begin with the space, as when it is generated.
        said += (" " if said else "") + escape_text(answer.strip())
    end = ANSWER_END if task == "segment" or answer is not None else ""
    return Prompt(f"{system}{TURN_START}user\n{user}{TURN_END}\n{ANSWER_START}", said + end)


def _pick(templates: tuple[str, ...], index: int, name: str) -> str:
    if not 0 <= index < len(templates):
        raise VirstError(f"{name} must be in 0 .. {len(templates) - 1} for this text, found {index}.")
    return templates[index]
