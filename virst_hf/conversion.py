"""Builds our checkpoint from the released one, or from the two that training starts from.

Three steps: a plan is made from names and shapes alone, and anything missing, unexpected or of a wrong shape ends it
there; then the tensors are read, changed and written one shard at a time, into a folder that gets its name last.
"""

import copy
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .configuration_virst import VirstConfig
from .conversion_files import (
    LazyTensor,
    check_free,
    checkpoint_files,
    in_memory,
    new_folder,
    open_checkpoint,
    sha256,
    write_shards,
)
from .conversion_tables import (
    INITIALISED_PREFIXES,
    RELEASED_SHA256,
    ROWS_CUT,
    SAM2_PREFIX,
    lora_part,
    released_to_virst,
    strip_wrappers,
    virst_to_released,
)
from .errors import CheckpointError
from .model_card import write_model_card
from .modeling_virst import VirstForVideoSegmentation
from .modules.fusion import VirstInitialFusion, VirstPromptDecoder

if TYPE_CHECKING:
    from .processing_virst import VirstProcessor

__all__ = [
    "ConversionPlan",
    "convert_released",
    "convert_state_dict",
    "convert_videochat",
    "expected_shapes",
    "init_fusions",
    "merge_lora",
    "plan_conversion",
    "released_to_virst",
]

Progress = Callable[[str], None]


@dataclass
class ConversionPlan:
    """What becomes of every tensor of a source checkpoint.

    Args:
        tensors (`dict[str, LazyTensor]`): Our names, in the order of the model, and where each tensor comes from.
        unused (`list[str]`): Names in the source that are known and that nothing uses.
        merged (`list[str]`): Our names of the weights into which LoRA is merged.
        cut (`list[str]`): Our names of the tables whose rows behind the vocabulary are left out.
        initialised (`list[str]`): Our names of the tensors that no source has.
    """

    tensors: dict[str, LazyTensor] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    merged: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    initialised: list[str] = field(default_factory=list)

    def describe(self) -> list[str]:
        """One line for each thing that a user should know of."""
        lines = {
            "Known and unused, left out": self.unused,
            "Rows behind the vocabulary cut": self.cut,
            "In no source, so initialised": self.initialised,
        }
        text = [f"{title} ({len(names)}): {', '.join(names)}" for title, names in lines.items() if names]
        if self.merged:
            text.append(f"LoRA merged into {len(self.merged)} weights")
        return text


@dataclass
class Sources:
    """The tensors of a source, ordered by what they become.

    Args:
        weights (`dict[str, tuple[str, LazyTensor]]`): Our name; name in the source and tensor.
        factors (`dict[str, dict[str, tuple[str, LazyTensor]]]`): Our name of a weight; its LoRA factors "A" and "B".
        unused (`list[str]`): Known names that nothing uses.
        problems (`dict[str, list[str]]`): Kind of problem and the names that have it.
    """

    weights: dict[str, tuple[str, LazyTensor]] = field(default_factory=dict)
    factors: dict[str, dict[str, tuple[str, LazyTensor]]] = field(default_factory=lambda: defaultdict(dict))
    unused: list[str] = field(default_factory=list)
    problems: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


def expected_shapes(config: VirstConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of the model, found without making one.

    Args:
        config ([`VirstConfig`]): Sizes of the model.

    Returns:
        `dict[str, tuple[int, ...]]`: In the order of `state_dict()`.
    """
    return {name: tuple(x.shape) for name, x in on_meta(config).state_dict().items()}


def on_meta(config: VirstConfig) -> VirstForVideoSegmentation:
    """The model without memory for its tensors."""
    # A model writes its dtype into the configuration that it is given.
    with torch.device("meta"):
        return VirstForVideoSegmentation(copy.deepcopy(config))


def sort_source(
    source: Iterable[tuple[str, LazyTensor]], expected: Mapping[str, tuple[int, ...]], with_lora: bool
) -> Sources:
    """Find out what each tensor of a source is; what nobody knows becomes a problem."""
    found = Sources()
    for name, tensor in source:
        try:
            target = released_to_virst(name)
        except CheckpointError:
            found.problems["unexpected"].append(name)
            continue
        part = lora_part(strip_wrappers(name))
        if target is None:
            found.unused.append(name)
            continue
        if target not in expected or (part and not with_lora):
            found.problems["unexpected"].append(name)
            continue
        slots, key = (found.factors[target], part[1]) if part else (found.weights, target)
        if key in slots:
            found.problems["there twice"].append(f"{name} and {slots[key][0]}")
        slots[key] = (name, tensor)
    return found


def check_source(found: Sources, expected: Mapping[str, tuple[int, ...]], cut_rows: bool) -> None:
    """Add what is missing or wrongly shaped to the problems of a source, and raise if there is any problem.

    Raises:
        `CheckpointError`: With every name that is missing, unexpected, there twice or of a wrong shape.
    """
    problems = found.problems
    for name, shape in expected.items():
        if name not in found.weights:
            problems["missing"].append(virst_to_released(name))
            continue
        source_name, tensor = found.weights[name]
        if tensor.shape == () and shape == (1,):
            tensor = as_vector(tensor)
            found.weights[name] = (source_name, tensor)
        fits = tensor.shape == shape or (cut_rows and is_padded(name, tensor.shape, shape))
        if not fits or not tensor.dtype.is_floating_point:
            problems["not as expected"].append(describe_misfit(source_name, tensor, shape))
    for name, factors in found.factors.items():
        layer = virst_to_released(name).removesuffix(".weight")
        problems["missing"] += [f"{layer}.lora_{x}.default.weight" for x in "AB" if x not in factors]
        rank = factors["A"][1].shape[0] if "A" in factors and factors["A"][1].shape else 0
        wanted = {"A": (max(rank, 1), *expected[name][1:]), "B": (*expected[name][:1], max(rank, 1))}
        for x, (source_name, tensor) in factors.items():
            if tensor.shape != wanted[x] or not tensor.dtype.is_floating_point:
                problems["not as expected"].append(describe_misfit(source_name, tensor, wanted[x]))
    listed = [f"{len(names)} {kind}: {', '.join(names)}" for kind, names in problems.items() if names]
    if listed:
        raise CheckpointError(
            "The checkpoint does not fit the model of this configuration. Take a checkpoint that was saved whole, and "
            "the configuration that it was trained with. Found (names as in the released checkpoint, those of SAM 2.1 "
            f"behind {SAM2_PREFIX!r}) {'; '.join(listed)}."
        )


def as_vector(tensor: LazyTensor) -> LazyTensor:
    """A number as a vector of length 1: so we hold the gate, as DeepSpeed and FSDP take no parameter without axes."""
    return LazyTensor((1,), tensor.dtype, lambda: tensor.load().reshape(1))


def is_padded(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Whether a table over the vocabulary has rows to spare."""
    return name in ROWS_CUT and len(found) == 2 and found[0] > expected[0] and found[1:] == expected[1:]


def describe_misfit(name: str, tensor: LazyTensor, shape: tuple[int, ...]) -> str:
    """What a tensor is and what it should be."""
    return f"{name} is {tensor.dtype} {list(tensor.shape)}, expected a float type {list(shape)}"


def plan_conversion(
    source: Iterable[tuple[str, LazyTensor]],
    expected: Mapping[str, tuple[int, ...]],
    lora_alpha: float | None = 16.0,
    cut_rows: bool = False,
) -> ConversionPlan:
    """Decide what becomes of every tensor of a source, from names and shapes alone.

    Args:
        source (`Iterable[tuple[str, LazyTensor]]`): Names as in the released checkpoint, and tensors.
        expected (`Mapping[str, tuple[int, ...]]`): Our names and their shapes.
        lora_alpha (`float`, *optional*, defaults to 16.0):
            Alpha of LoRA, which no checkpoint holds; the rank r is in the shapes. `None`: there must be no LoRA.
        cut_rows (`bool`, *optional*, defaults to `False`): Allow, and cut, embedding rows behind the vocabulary.

    Returns:
        [`ConversionPlan`]: Every name of `expected`, and lists of what was done.

    Raises:
        `CheckpointError`: With every name that is missing, unexpected, there twice or of a wrong shape.
    """
    if lora_alpha is not None and not math.isfinite(lora_alpha):
        raise CheckpointError(f"lora_alpha must be a finite number, found {lora_alpha}.")
    found = sort_source(source, expected, with_lora=lora_alpha is not None)
    check_source(found, expected, cut_rows)
    plan = ConversionPlan(unused=found.unused)
    for name, shape in expected.items():
        tensor = found.weights[name][1]
        if tensor.shape != shape:
            plan.cut.append(name)
            tensor = first_rows(tensor, shape)
        if name in found.factors:
            plan.merged.append(name)
            tensor = with_lora_merged(tensor, *(found.factors[name][x][1] for x in "AB"), lora_alpha)
        plan.tensors[name] = tensor
    return plan


def first_rows(tensor: LazyTensor, shape: tuple[int, ...]) -> LazyTensor:
    """The first rows of a table, as many as `shape` says."""
    return LazyTensor(shape, tensor.dtype, lambda: tensor.load()[: shape[0]])


def with_lora_merged(base: LazyTensor, a: LazyTensor, b: LazyTensor, alpha: float) -> LazyTensor:
    """A weight with LoRA merged into it when it is read."""
    return LazyTensor(base.shape, base.dtype, lambda: merge_lora(base.load(), a.load(), b.load(), alpha))


def merge_lora(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, alpha: float) -> torch.Tensor:
    """Merge LoRA (arXiv 2106.09685, Eq. 3, scaled): `W + alpha / r * B A`.

    Args:
        weight (`torch.Tensor` of shape `(out_features, in_features)`): W.
        a (`torch.Tensor` of shape `(r, in_features)`): A.
        b (`torch.Tensor` of shape `(out_features, r)`): B.
        alpha (`float`): Alpha.

    Returns:
        `torch.Tensor` of shape `(out_features, in_features)`: The sum, made in float32 (or wider) and rounded once, to
        the type of `weight`.

    Example:

    ```python
    >>> import torch
    >>> from virst_hf.conversion import merge_lora
    >>> merge_lora(torch.zeros(1, 2), torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]]), alpha=2.0)
    tensor([[ 6., 12.]])

    ```
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    return (weight.to(wide) + alpha / a.shape[0] * (b.to(wide) @ a.to(wide))).to(weight.dtype)


def convert_state_dict(
    state: Mapping[str, torch.Tensor], config: VirstConfig, lora_alpha: float = 16.0
) -> dict[str, torch.Tensor]:
    """Convert a state dictionary in the released format that is in memory.

    Args:
        state (`Mapping[str, torch.Tensor]`): Released names and tensors; on the meta device only shapes are checked.
        config ([`VirstConfig`]): Sizes of the model.
        lora_alpha (`float`, *optional*, defaults to 16.0): Alpha of LoRA.

    Returns:
        `dict[str, torch.Tensor]`: Every name of `VirstForVideoSegmentation(config).state_dict()`.

    Raises:
        `CheckpointError`: With every name that is missing, unexpected, there twice or of a wrong shape.
    """
    plan = plan_conversion(in_memory(state).items(), expected_shapes(config), lora_alpha)
    return {name: tensor.load() for name, tensor in plan.tensors.items()}


def init_fusions(config: VirstConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    """New weights of the two Spatio-Temporal Fusions, by the model's own rules.

    Args:
        config ([`VirstConfig`]): Sizes of the model.
        seed (`int`, *optional*, defaults to 0): Seed; the global random state is left as it was.

    Returns:
        `dict[str, torch.Tensor]`: Our names and float32 tensors, on the CPU.
    """
    rules = on_meta(config).model
    width, text_width = config.segmenter_config.hidden_size, config.text_config.hidden_size
    parts = zip(INITIALISED_PREFIXES, (VirstInitialFusion, VirstPromptDecoder), strict=True)
    state: dict[str, torch.Tensor] = {}
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        for prefix, fusion in parts:
            module = fusion(config.st_fusion_config, width, text_width)
            module.apply(rules._init_weights)
            state.update({prefix + name: x for name, x in module.state_dict().items()})
    return state


def convert_released(
    path: str | os.PathLike,
    output_dir: str | os.PathLike,
    config: VirstConfig | None = None,
    tokenizer: PreTrainedTokenizerBase | str | os.PathLike | None = None,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = "2GB",
    lora_alpha: float = 16.0,
    progress: Progress = print,
) -> ConversionPlan:
    """Convert the released checkpoint.

    Args:
        path (`str` or `os.PathLike`):
            The `.pt`, whose tensors stand under `model_state_dict` or at the top, or safetensors with the same names.
        output_dir (`str` or `os.PathLike`): New folder for `from_pretrained`.
        config ([`VirstConfig`], *optional*): Sizes of the model; the released 7B model by default.
        tokenizer (`PreTrainedTokenizerBase`, `str` or `os.PathLike`, *optional*):
            Tokenizer of Qwen2, or where to load it from. With it the processor is written too.
        dtype (`torch.dtype`, *optional*): Type of the written tensors; by default each keeps its own.
        max_shard_size (`int` or `str`, *optional*, defaults to `"2GB"`):
            Size of a shard at most; about twice as much memory is used.
        lora_alpha (`float`, *optional*, defaults to 16.0): Alpha of LoRA; the rank is read from the shapes.
        progress (`Callable[[str], None]`, *optional*, defaults to `print`): Called with each line of the report.

    Returns:
        [`ConversionPlan`]: What became of every tensor.

    Raises:
        `CheckpointError`: If the file is refused or damaged, a tensor is missing, unexpected or of a wrong shape, or
            `output_dir` is taken. No output folder is left then.
    """
    check_free(output_dir)
    config = VirstConfig() if config is None else config
    report_sources([path], progress, RELEASED_SHA256)
    processor = make_processor(tokenizer, config)
    with open_checkpoint(path, wrapped_in="model_state_dict") as source:
        plan = plan_conversion(source.items(), expected_shapes(config), lora_alpha)
        write_checkpoint(plan, output_dir, config, processor, dtype, max_shard_size, progress)
    return plan


def convert_videochat(
    videochat_dir: str | os.PathLike,
    sam2_path: str | os.PathLike,
    output_dir: str | os.PathLike,
    config: VirstConfig | None = None,
    tokenizer: PreTrainedTokenizerBase | str | os.PathLike | None = None,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = "2GB",
    seed: int = 0,
    progress: Progress = print,
) -> ConversionPlan:
    """Build the checkpoint that training starts from: VideoChat-Flash, SAM 2.1 and two new fusions.

    Args:
        videochat_dir (`str` or `os.PathLike`): Folder with the shards of VideoChat-Flash-Qwen2-7B-res448.
        sam2_path (`str` or `os.PathLike`): `sam2.1_hiera_large.pt`.
        output_dir (`str` or `os.PathLike`): New folder for `from_pretrained`.
        config ([`VirstConfig`], *optional*): Sizes of the model; the released 7B model by default.
        tokenizer (`PreTrainedTokenizerBase`, `str` or `os.PathLike`, *optional*):
            Tokenizer of Qwen2, or where to load it from. With it the processor is written too.
        dtype (`torch.dtype`, *optional*): Type of the written tensors; by default each keeps its own, and new ones are
            float32.
        max_shard_size (`int` or `str`, *optional*, defaults to `"2GB"`):
            Size of a shard at most; about twice as much memory is used.
        seed (`int`, *optional*, defaults to 0): Seed of the new weights.
        progress (`Callable[[str], None]`, *optional*, defaults to `print`): Called with each line of the report.

    Returns:
        [`ConversionPlan`]: What became of every tensor.

    Raises:
        `CheckpointError`: If a file is refused or damaged, a tensor is missing, unexpected or of a wrong shape, or
            `output_dir` is taken. No output folder is left then.
    """
    check_free(output_dir)
    config = VirstConfig() if config is None else config
    report_sources([videochat_dir, sam2_path], progress)
    processor = make_processor(tokenizer, config)
    expected, new = expected_shapes(config), in_memory(init_fusions(config, seed))
    from_sources = {name: shape for name, shape in expected.items() if name not in new}
    with ExitStack() as stack:
        videochat = stack.enter_context(open_checkpoint(videochat_dir, wrapped_in="model_state_dict"))
        sam2 = stack.enter_context(open_checkpoint(sam2_path, wrapped_in="model"))
        source = [*videochat.items(), *((SAM2_PREFIX + name, x) for name, x in sam2.items())]
        plan = plan_conversion(source, from_sources, lora_alpha=None, cut_rows=True)
        plan.initialised = list(new)
        plan.tensors = {name: new[name] if name in new else plan.tensors[name] for name in expected}
        write_checkpoint(plan, output_dir, config, processor, dtype, max_shard_size, progress)
    return plan


def report_sources(paths: list[str | os.PathLike], progress: Progress, released: str | None = None) -> None:
    """Say the SHA-256 of every file that is read, and whether it is that of the release where that is known."""
    for file in (file for path in paths for file in checkpoint_files(path)):
        digest = sha256(file)
        note = ""
        if released is not None:
            note = " (the published checkpoint)" if digest == released else f" (the published one has {released})"
        progress(f"SHA-256 of {file.name}: {digest}{note}")


def make_processor(
    tokenizer: PreTrainedTokenizerBase | str | os.PathLike | None, config: VirstConfig
) -> "VirstProcessor | None":
    """The processor that fits a configuration; `None` without a tokenizer.

    Raises:
        `CheckpointError`: If there is no tokenizer to load, or its `[SEG]` or video token has another id than the
            model's.
    """
    if tokenizer is None:
        return None
    # Weights alone can be converted without a video decoder.
    from .processing_virst import VirstProcessor
    from .video_processing_virst import VirstVideoProcessor

    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        try:
            tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"No tokenizer could be loaded from {tokenizer}: {error}") from error
    vision, segmenter = config.vision_config, config.segmenter_config
    video_processor = VirstVideoProcessor(
        image_size=vision.image_size,
        sam_image_size=segmenter.image_size,
        frames_per_clip=vision.frames_per_clip,
        tokens_per_clip=vision.tokens_per_clip,
        min_frames=config.anchor_config.min_frames,
    )
    processor = VirstProcessor(video_processor, tokenizer, num_seg_tokens=config.st_fusion_config.num_seg_tokens)
    for token, wanted in ((processor.seg_token, config.seg_token_id), (processor.video_token, config.video_token_id)):
        found = processor.tokenizer.convert_tokens_to_ids(token)
        if found != wanted:
            raise CheckpointError(
                f"The tokenizer gives {token} the id {found}, the model expects {wanted}. Pass the tokenizer that the "
                "checkpoint was trained with (that of Qwen2 for the released one)."
            )
    return processor


def write_checkpoint(
    plan: ConversionPlan,
    output_dir: str | os.PathLike,
    config: VirstConfig,
    processor: "VirstProcessor | None",
    dtype: torch.dtype | None,
    max_shard_size: int | str,
    progress: Progress,
) -> None:
    """Write a folder for `from_pretrained` as a plan says."""
    for line in plan.describe():
        progress(line)
    tensors = {name: cast(x, dtype) for name, x in plan.tensors.items()}
    config = copy.deepcopy(config)
    config.architectures = [VirstForVideoSegmentation.__name__]
    # Sources may mix types; what from_pretrained loads by default is that of the language model.
    config.dtype = tensors["lm_head.weight"].dtype
    with new_folder(output_dir) as folder:
        write_shards(tensors, folder, max_shard_size, progress)
        config.save_pretrained(folder)
        on_meta(config).generation_config.save_pretrained(folder)
        write_model_card(folder, config)
        if processor is not None:
            processor.save_pretrained(folder)
    rest = "" if processor is None else " and the processor"
    progress(f"Wrote {Path(output_dir)}: {len(tensors)} tensors{rest}")


def cast(tensor: LazyTensor, dtype: torch.dtype | None) -> LazyTensor:
    """A tensor of another type; `None` keeps the type."""
    if dtype is None or dtype == tensor.dtype:
        return tensor
    return LazyTensor(tensor.shape, dtype, lambda: tensor.load().to(dtype))
