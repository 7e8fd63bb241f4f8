"""The processor: a video and sentences become the tensors of the model, and its outputs become masks of the video."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils import ModelOutput

from .errors import VirstError
from .prompts import (
    ANSWER_START,
    TURN_END,
    TURN_START,
    PlainEncoder,
    Prompt,
    Task,
    build_prompt,
    encode,
    escape,
    normalise_text,
    segmentation_answer,
)
from .rle import encode_rle
from .video_io import open_video

if TYPE_CHECKING:
    from .video_processing_virst import VirstVideoProcessor

__all__ = ["VirstProcessor", "iter_masks"]

CHAT_TEMPLATE_FILE = Path(__file__).with_name("chat_template.jinja")
# Positions with this label are left out of the token loss.
IGNORED_LABEL = -100
ROLES = ("system", "user", "assistant")
# Keys under which a chat message may hold a video or an image.
VISUAL_KEYS = ("video", "image", "path")


class VirstProcessor(ProcessorMixin):
    r"""
    Joins a [`VirstVideoProcessor`] and a tokenizer. Tokens that the tokenizer lacks are added to it: first `seg_token`
    as an ordinary added token, then `video_token` as a special one. With the tokenizer of Qwen2 they get the ids
    151646 and 151647; the second lies outside of the embedding, because the model replaces it before the look-up.

    Args:
        video_processor ([`VirstVideoProcessor`]): Makes both views of a video.
        tokenizer (`PreTrainedTokenizerBase`): A tokenizer with Qwen2's turn tokens.
        chat_template (`str`, *optional*): A Jinja template; the package's own where it is not given.
        num_seg_tokens (`int`, *optional*, defaults to 10): Number of [SEG] tokens of an expression, N.
        seg_token (`str`, *optional*, defaults to `"[SEG]"`): The token whose hidden states become mask prompts.
        video_token (`str`, *optional*, defaults to `"<video>"`): The placeholder of the video's tokens.
        supervise_turn_tokens (`bool`, *optional*, defaults to `False`):
            Whether labels hold the turn tokens and line breaks of the whole prompt and the assistant's header as well.
            Off: the answer alone is supervised. On: as the released weights were trained.

    Raises:
        VirstError: The tokenizer has no turn tokens, or `num_seg_tokens` is below 1.

    Example:

    ```python
    >>> from virst_hf import VirstProcessor, VirstVideoProcessor
    >>> from virst_hf.toy_tokenizer import toy_tokenizer
    >>> processor = VirstProcessor(VirstVideoProcessor(), toy_tokenizer())
    >>> inputs = processor(text=["the red ball", "who waves?"], num_vlm_frames=8)
    >>> sorted(inputs), (inputs["input_ids"] == processor.seg_token_id).sum(dim=1).tolist()
    (['attention_mask', 'input_ids', 'video_indices'], [10, 10])

    ```
    """

    def __init__(
        self,
        video_processor: "VirstVideoProcessor",
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None = None,
        num_seg_tokens: int = 10,
        seg_token: str = "[SEG]",
        video_token: str = "<video>",
        supervise_turn_tokens: bool = False,
    ) -> None:
        if num_seg_tokens < 1:
            raise VirstError(f"num_seg_tokens must be at least 1, found {num_seg_tokens}.")
        if chat_template is None:
            chat_template = CHAT_TEMPLATE_FILE.read_text(encoding="utf-8")
        super().__init__(video_processor, tokenizer, chat_template=chat_template)
        lacking = [token for token in (TURN_START, TURN_END) if token not in tokenizer.get_added_vocab()]
        if lacking:
            raise VirstError(f"The tokenizer has no token {' and no '.join(lacking)}; expected one of Qwen2's kind.")
        if seg_token not in tokenizer.get_added_vocab():
            tokenizer.add_tokens([seg_token])
        if video_token not in tokenizer.get_added_vocab():
            tokenizer.add_tokens([video_token], special_tokens=True)
        self.num_seg_tokens = num_seg_tokens
        self.seg_token, self.seg_token_id = seg_token, tokenizer.convert_tokens_to_ids(seg_token)
        self.video_token, self.video_token_id = video_token, tokenizer.convert_tokens_to_ids(video_token)
        self.supervise_turn_tokens = supervise_turn_tokens
        self._plain = PlainEncoder(tokenizer)

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors that a call may give."""
        return [*super().model_input_names, "video_indices"]

    # --- text to ids -------------------------------------------------------------------------------------------------
    def escape(self, text: str) -> str:
        """Mark user text so that [`~VirstProcessor.encode`] finds no token such as [SEG] in it.

        Args:
            text (`str`): User text.

        Returns:
            `str`: The text, with an invisible marker in every added token that it spells.
        """
        return escape(text, self.tokenizer.get_added_vocab())

    def encode(self, text: str) -> list[int]:
        """Ids of a prompt, or of a chat rendered by `apply_chat_template`; markers of `escape` are taken out.

        Args:
            text (`str`): The prompt. Its video placeholder is not expanded.

        Returns:
            `list[int]`: The ids.
        """
        return encode(text, self.tokenizer.get_added_vocab(), self._plain)

    def __call__(
        self,
        videos: Any = None,
        text: str | Sequence[str] | Sequence[Sequence[str]] | None = None,
        task: Task = "segment",
        *,
        answers: str | Sequence[str] | Sequence[Sequence[str]] | None = None,
        template: int = 0,
        answer_template: int = 0,
        lowercase: bool = True,
        return_labels: bool = False,
        num_vlm_frames: int | Sequence[int] | torch.Tensor | None = None,
        videos_kwargs: Mapping[str, Any] | None = None,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        r"""
        Prepare videos, texts or both. Without `text` only the video is prepared, so that it can be encoded once;
        without `videos` only the text, for a video that is encoded already: then say how many frames it has.

        Args:
            videos (`Any`, *optional*): One video or a list of videos, as [`VirstVideoProcessor`] takes them.
            text (`str`, `list[str]` or `list[list[str]]`, *optional*):
                With one video, one text or several about it; with several videos one text each, or a list of texts
                each.
            task (`str`, *optional*, defaults to `"segment"`):
                `"segment"`, `"ask"` (a question, answered by `generate`) or `"explain"` (masks, then an explanation).
            answers (as `text`, *optional*): What is to be generated, for training on `"ask"` and `"explain"`.
            template (`int`, *optional*, defaults to 0):
                Which template, of [`~prompts.segmentation_templates`] of the text.
            answer_template (`int`, *optional*, defaults to 0): Which wording of the [SEG] answer.
            lowercase (`bool`, *optional*, defaults to `True`): As in the released evaluation; in its training off.
            return_labels (`bool`, *optional*, defaults to `False`): Whether to give `labels`.
            num_vlm_frames (`int`, `list[int]` or `torch.Tensor`, *optional*):
                Without `videos`: frames of the VLM view of each video (1 for a still image).
            videos_kwargs (`dict`, *optional*): Further arguments of the video processor.
            return_tensors (`str`, *optional*, defaults to `"pt"`): Kind of the tensors; `None` leaves ids as lists.

        Returns:
            `BatchFeature`: The video processor's tensors, and with `text`

            - **input_ids**, **attention_mask** of shape `(num_texts, length)`. Padding stands on the left where
              generation follows (`"ask"` and `"explain"` without answers), else on the right.
            - **video_indices** of shape `(num_texts,)`, the video that each text is about.
            - **labels** of shape `(num_texts, length)` where asked for; -100 at what is not supervised.

        Raises:
            VirstError: There is nothing to prepare, texts and videos do not fit together, a text is empty, a task or
                template is unknown, or labels are asked for without answers.
        """
        if videos is None and text is None:
            raise VirstError("Nothing to prepare: pass videos, text or both.")
        if text is None and (answers is not None or return_labels):
            raise VirstError("Answers and labels belong to texts; pass text as well.")
        data, frames = self._prepare_videos(videos, num_vlm_frames, videos_kwargs, return_tensors, text is not None)
        if text is None:
            return data
        pairs = _pair_with_videos(text, len(frames), "text")
        said: list[str | None] = [None] * len(pairs)
        if answers is not None:
            said = _answers_of(pairs, _pair_with_videos(answers, len(frames), "answers"))
        elif return_labels and task != "segment":
            raise VirstError(f'Labels of the task "{task}" need answers.')
        prompts = [
            build_prompt(
                task,
                normalise_text(words, task, lowercase),
                seg_answer=self._segmentation_answer,
                video_token=self.video_token,
                is_image=frames[video] == 1,
                template=template,
                answer_template=answer_template,
                answer=answer,
                escape_text=self.escape,
            )
            for (words, video), answer in zip(pairs, said, strict=True)
        ]
        owners = [video for _, video in pairs]
        left = task != "segment" and answers is None
        data.update(self._batch(prompts, owners, frames, left, return_labels, return_tensors))
        return data

    def _segmentation_answer(self, index: int) -> str:
        return segmentation_answer(self.num_seg_tokens, self.seg_token, index)

    def _prepare_videos(
        self,
        videos: Any,
        num_vlm_frames: int | Sequence[int] | torch.Tensor | None,
        videos_kwargs: Mapping[str, Any] | None,
        return_tensors: str | None,
        with_text: bool,
    ) -> tuple[BatchFeature, list[int]]:
        """The tensors of the videos, and the number of VLM frames of each."""
        data = BatchFeature()
        if videos is not None:
            if num_vlm_frames is not None:
                raise VirstError("num_vlm_frames comes from the videos; pass one of the two.")
            data = self.video_processor(videos, return_tensors=return_tensors, **(videos_kwargs or {}))
            num_vlm_frames = data["num_vlm_frames"]
        elif num_vlm_frames is None:
            raise VirstError("Without videos, pass num_vlm_frames: the number of VLM frames of each video.")
        frames = [int(n) for n in np.asarray(num_vlm_frames).reshape(-1)]
        if with_text and (not frames or min(frames) < 1):
            raise VirstError(f"num_vlm_frames must be at least 1 for each video, found {frames}.")
        return data, frames

    def _batch(
        self,
        prompts: Sequence[Prompt],
        owners: Sequence[int],
        frames: Sequence[int],
        left: bool,
        return_labels: bool = False,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """Encode prompts, expand their videos and pad them."""
        rows, labels = [], []
        for prompt, video in zip(prompts, owners, strict=True):
            question = self._expand_video(self.encode(prompt.question), frames[video])
            answer = self.encode(prompt.answer)
            rows.append(question + answer)
            labels.append(self._labels(question, answer) if return_labels else [])
        length = max(map(len, rows))

        def pad(row: list[int], value: int) -> list[int]:
            padding = [value] * (length - len(row))
            return padding + row if left else row + padding

        pad_id = self.tokenizer.pad_token_id
        data = {
            "input_ids": [pad(row, 0 if pad_id is None else pad_id) for row in rows],
            "attention_mask": [pad([1] * len(row), 0) for row in rows],
            "video_indices": list(owners),
        }
        if return_labels:
            data["labels"] = [pad(row, IGNORED_LABEL) for row in labels]
        return BatchFeature(data, tensor_type=return_tensors)

    def _expand_video(self, ids: list[int], num_vlm_frames: int) -> list[int]:
        """Repeat the one placeholder of the video as often as the video has tokens."""
        if ids.count(self.video_token_id) != 1:
            raise VirstError(
                f"A prompt must have exactly one video, found {ids.count(self.video_token_id)} placeholders "
                f"{self.video_token}."
            )
        place = ids.index(self.video_token_id)
        tokens = [self.video_token_id] * self.video_processor.num_video_tokens(num_vlm_frames)
        return ids[:place] + tokens + ids[place + 1 :]

    def _labels(self, question: list[int], answer: list[int]) -> list[int]:
        """Labels of one prompt: the answer with the token that ends the turn, [SEG] left out."""
        said = [IGNORED_LABEL if token == self.seg_token_id else token for token in answer]
        if not self.supervise_turn_tokens:
            end = answer.index(self.tokenizer.convert_tokens_to_ids(TURN_END)) + 1
            return [IGNORED_LABEL] * len(question) + said[:end] + [IGNORED_LABEL] * (len(said) - end)
        turn_ids = {*self.encode(TURN_START), *self.encode(TURN_END), *self.encode("\n")}
        header = len(question) - len(self.encode(ANSWER_START))
        asked = [t if t in turn_ids or i >= header else IGNORED_LABEL for i, t in enumerate(question)]
        return asked + said

    # --- chats -------------------------------------------------------------------------------------------------------
    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        chat_template: str | None = None,
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = "pt",
        processor_kwargs: Mapping[str, Any] | None = None,
        **template_kwargs: Any,
    ) -> Any:
        r"""
        Render a conversation about one video, or several conversations. Message texts never yield special tokens,
        whatever they spell; case and spaces stay as they are.

        Args:
            conversation (`list[dict]` or `list[list[dict]]`):
                Messages with `role` ("system", "user" or "assistant") and `content`: a string, or a list of
                `{"type": "text", "text": ...}` and one `{"type": "video", "path": ...}` (or `"video": ...` for a video
                in memory; type `"image"` for a still image). A video in front of the text gets the words that the
                weights were trained with, so video, then question, gives the prompt of `task="ask"`.
            chat_template (`str`, *optional*): Another template, or its name.
            add_generation_prompt (`bool`, *optional*, defaults to `False`): Whether the assistant's turn is begun.
            continue_final_message (`bool`, *optional*, defaults to `False`): Whether the last turn stays open.
            tokenize (`bool`, *optional*, defaults to `False`): Whether to prepare tensors.
            return_dict (`bool`, *optional*, defaults to `False`): Whether those are all tensors or `input_ids` alone.
            return_tensors (`str`, *optional*, defaults to `"pt"`): Kind of the tensors.
            processor_kwargs (`dict`, *optional*):
                `videos_kwargs`, and `num_vlm_frames` where the messages name a video without its source.
            template_kwargs (`dict`, *optional*): Variables of the template.

        Returns:
            `str`, `list[str]`, `torch.Tensor` or `BatchFeature`: The text, which holds a marker wherever a message
            spells a token, so encode it with [`~VirstProcessor.encode`]; or the keys of a call of the processor.

        Raises:
            VirstError: A message has an unknown role or content, or a conversation has not exactly one video.
        """
        if not conversation:
            raise VirstError("The conversation is empty.")
        single = isinstance(conversation[0], Mapping)
        conversations = [conversation] if single else conversation
        messages = [[self._escape_message(message) for message in messages] for messages in conversations]
        template = self._resolve_chat_template(chat_template)
        if "video_token" in template:
            template_kwargs["video_token"] = self.video_token
        rendered = super().apply_chat_template(
            messages,
            template,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tokenize=False,
            **template_kwargs,
        )
        if not tokenize:
            return rendered[0] if single else rendered
        videos, owners = _collect_videos(conversations)
        settings = {"num_vlm_frames": None, "videos_kwargs": None, **(processor_kwargs or {})}
        data, frames = self._prepare_videos(videos, return_tensors=return_tensors, with_text=True, **settings)
        if max(owners) >= len(frames):
            raise VirstError(f"num_vlm_frames has {len(frames)} entries for {len(owners)} conversations.")
        prompts = [Prompt(text, "") for text in rendered]
        left = add_generation_prompt or continue_final_message
        data.update(self._batch(prompts, owners, frames, left, return_tensors=return_tensors))
        return data if return_dict else data["input_ids"]

    def _escape_message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """A message whose texts have gone through `escape`, and whose videos are placeholders."""
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise VirstError(f"Unknown role {role!r} of a message; expected one of {', '.join(ROLES)}.")
        if isinstance(content, str):
            return {"role": role, "content": self.escape(content)}
        items = []
        for item in content or []:
            if item.get("type") == "text" and isinstance(item.get("text"), str):
                items.append({"type": "text", "text": self.escape(item["text"])})
            elif item.get("type") in ("video", "image"):
                items.append({"type": item["type"]})
            else:
                raise VirstError(f"Unknown content of a message: {item!r}; expected a text, a video or an image.")
        return {"role": role, "content": items}

    # --- masks -------------------------------------------------------------------------------------------------------
    def post_process_video_segmentation(
        self,
        outputs: ModelOutput,
        original_sizes: Sequence[Sequence[int]] | torch.Tensor | None = None,
        video_indices: Sequence[int] | torch.Tensor | None = None,
        threshold: float = 0.0,
        return_rle: bool = False,
    ) -> list[dict[str, Any]]:
        r"""
        Masks at the size of the video: logits above `threshold` after a bilinear resize. Where the object score is
        <= 0 the object is absent, and the mask empty.

        Args:
            outputs ([`VirstSegmentationOutput`]): What `segment` returned.
            original_sizes (`torch.Tensor` of shape `(num_videos, 2)`, *optional*):
                Height and width of each video; those in `outputs` where not given.
            video_indices (`torch.Tensor` of shape `(num_expressions,)`, *optional*):
                Video of each expression; those in `outputs` where not given.
            threshold (`float`, *optional*, defaults to 0.0): Logit above which a pixel belongs to the object.
            return_rle (`bool`, *optional*, defaults to `False`): Whether to add COCO run-length encodings.

        Returns:
            `list[dict]`: For each expression, on the CPU, **masks** (`torch.BoolTensor` of shape `(T, H, W)`),
            **scores** and **iou_scores** (`torch.FloatTensor` of shape `(T,)`: the object score, a logit, and the
            predicted IoU), and where asked for **rle** (`list[dict]`, a COCO RLE a frame, its counts as text).

        Raises:
            VirstError: The sizes are unknown, or do not fit the expressions.
        """
        sizes = outputs.original_sizes if original_sizes is None else original_sizes
        owners = outputs.video_indices if video_indices is None else video_indices
        expression_sizes = _expression_sizes(sizes, owners, len(outputs.mask_logits))
        results = []
        for i, (logits, size) in enumerate(zip(outputs.mask_logits, expression_sizes, strict=True)):
            masks = torch.empty(len(logits), *size, dtype=torch.bool)
            for t, mask in enumerate(iter_masks(logits, outputs.object_scores[i], size, threshold)):
                masks[t] = torch.from_numpy(mask)
            result = {
                "masks": masks,
                "scores": outputs.object_scores[i].float().cpu(),
                "iou_scores": outputs.iou_scores[i].float().cpu(),
            }
            if return_rle:
                result["rle"] = [encode_rle(mask) for mask in masks.numpy()]
            results.append(result)
        return results

    @staticmethod
    def iter_masks(
        mask_logits: torch.Tensor,
        object_scores: torch.Tensor,
        size: tuple[int, int],
        threshold: float = 0.0,
        chunk: int = 8,
    ) -> Iterator[np.ndarray]:
        """The function [`iter_masks`]: masks of one expression, one by one."""
        return iter_masks(mask_logits, object_scores, size, threshold, chunk)


def iter_masks(
    mask_logits: torch.Tensor,
    object_scores: torch.Tensor,
    size: tuple[int, int],
    threshold: float = 0.0,
    chunk: int = 8,
) -> Iterator[np.ndarray]:
    """Masks of one expression at the size of the video, one by one, so that a long video need not fit in memory.

    Args:
        mask_logits (`torch.Tensor` of shape `(num_frames, h, w)`): Low-resolution logits.
        object_scores (`torch.Tensor` of shape `(num_frames,)`): Where <= 0, the mask is empty.
        size (`tuple[int, int]`): Height and width of the video, in pixels.
        threshold (`float`, *optional*, defaults to 0.0): Logit above which a pixel belongs to the object.
        chunk (`int`, *optional*, defaults to 8): Frames that are resized at a time.

    Yields:
        `numpy.ndarray` of shape `(height, width)`, `bool`: The mask of the next frame.

    Raises:
        VirstError: Logits and scores are of different length, or `chunk` is below 1.
    """
    if mask_logits.ndim != 3 or object_scores.shape != mask_logits.shape[:1]:
        raise VirstError(
            "Expected logits (num_frames, height, width) and as many object scores, found shapes "
            f"{tuple(mask_logits.shape)} and {tuple(object_scores.shape)}."
        )
    if chunk < 1:
        raise VirstError(f"chunk must be at least 1, found {chunk}.")
    height, width = (int(n) for n in size)
    for start in range(0, len(mask_logits), chunk):
        # Resized in float32: bfloat16 would move the border of the mask.
        logits = mask_logits[start : start + chunk, None].detach().float()
        present = object_scores[start : start + chunk].detach() > 0
        resized = F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)[:, 0]
        yield from ((resized > threshold) & present[:, None, None]).cpu().numpy()


# --- which text, which video -----------------------------------------------------------------------------------------
def _pair_with_videos(text: Any, num_videos: int, name: str) -> list[tuple[str, int]]:
    """Every text with the index of its video."""
    nested = text if isinstance(text, (list, tuple)) else [text]
    if any(isinstance(part, (list, tuple)) for part in nested):
        groups = [part if isinstance(part, (list, tuple)) else [part] for part in nested]
    else:
        groups = [nested] if num_videos == 1 else [[part] for part in nested]
    if len(groups) != num_videos:
        raise VirstError(
            f"Found {name} for {len(groups)} videos, but there are {num_videos}. Pass one text or a list of texts for "
            "one video; for several, a list with one text, or one list of texts, for each."
        )
    pairs = [(part, video) for video, group in enumerate(groups) for part in group]
    if not pairs:
        raise VirstError(f"The list of {name} is empty.")
    for part, _ in pairs:
        if not isinstance(part, str):
            raise VirstError(f"Every entry of {name} must be a string, found {type(part).__name__}.")
    return pairs


def _answers_of(pairs: Sequence[tuple[str, int]], answers: Sequence[tuple[str, int]]) -> list[str | None]:
    if [video for _, video in pairs] != [video for _, video in answers]:
        raise VirstError(f"Every text needs an answer: found {len(pairs)} texts and {len(answers)} answers.")
    return [answer for answer, _ in answers]


def _collect_videos(conversations: Sequence[Sequence[Mapping[str, Any]]]) -> tuple[list[Any] | None, list[int]]:
    """The videos of conversations, each once, and for each conversation which it is about."""
    sources: list[Any] = []
    for messages in conversations:
        contents = [message.get("content") for message in messages]
        items = [item for content in contents if not isinstance(content, str) for item in content or []]
        visual = [item for item in items if item["type"] in ("video", "image")]
        if len(visual) != 1:
            raise VirstError(f"A conversation must have exactly one video, found {len(visual)}.")
        sources.append(next((visual[0][key] for key in VISUAL_KEYS if key in visual[0]), None))
    if all(source is None for source in sources):
        return None, list(range(len(sources)))
    if any(source is None for source in sources):
        raise VirstError("Some conversations name the source of their video and some do not; name all or none.")
    # Conversations about one video share it, so that it is read and encoded once.
    keys: list[Any] = [os.fspath(s) if isinstance(s, (str, os.PathLike)) else id(s) for s in sources]
    unique = {key: source for key, source in zip(keys, sources, strict=True)}
    order = list(unique)
    # Opened one by one, because a list of image files would be one video.
    return [open_video(source) for source in unique.values()], [order.index(key) for key in keys]


def _expression_sizes(sizes: Any, owners: Any, count: int) -> list[tuple[int, int]]:
    """Height and width of the video of each expression."""
    if sizes is None:
        raise VirstError("The size of the video is unknown: pass original_sizes (height and width of each video).")
    pairs = [(int(height), int(width)) for height, width in sizes]
    if owners is None:
        if len(pairs) not in (1, count):
            raise VirstError(f"{count} expressions on {len(pairs)} videos: say which with video_indices.")
        owners = [0] * count if len(pairs) == 1 else range(count)
    indices = [int(i) for i in owners]
    if len(indices) != count or not all(0 <= i < len(pairs) for i in indices):
        raise VirstError(f"video_indices {indices} does not name one of {len(pairs)} videos for {count} expressions.")
    return [pairs[i] for i in indices]
