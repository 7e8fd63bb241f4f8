"""The three stages of supplement A.3 as plain data, and the switch that makes a model train as one of them says.

| stage | trains | supervised frames |
|---|---|---|
| `alignment` | both fusions, LM head, LoRA of the language model | anchors |
| `few_image` | these, mask decoder, memory attention, memory encoder, projector | anchors |
| `propagation` | the same at a twentieth of the learning rate | anchors and the frames around them |

Vision tower and SAM image encoder (trunk and neck) never train. Of the segmenter only the three modules that the paper
lists do: its prompt encoder, `obj_ptr_proj`, `obj_ptr_tpos_proj`, `mask_downsample` and bare parameters
(`maskmem_tpos_enc`, `no_mem_embed`, `no_obj_ptr`, ...) stay as SAM 2.1 has them.

In the first two stages every supervised frame is an anchor, and an anchor is decoded from its prompts alone, without
memory. So memory attention and memory encoder get no gradient in `few_image`, although it unfreezes them as the
supplement says: they learn in `propagation` only.
"""

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import nn

from ..adapters import LoraSettings, add_lora, base_name, has_lora, lora_settings, merge_lora
from ..data.clips import Supervise
from ..errors import ConfigError
from ..modeling_virst import VirstForVideoSegmentation

__all__ = ["STAGES", "TrainingStage", "describe", "get_stage", "part_of", "prepare_model"]

ENCODERS = ("model.vision_tower.*", "model.segmenter.image_encoder.*")


@dataclass(frozen=True)
class TrainingStage:
    """
    What a stage trains, and how.

    Args:
        name (`str`): Its name.
        follows (`str`, *optional*): Name of the stage whose output it starts from.
        trains (`tuple[str, ...]`): Patterns (as of a shell) of the names of parameters, those of LoRA left out.
        lora ([`LoraSettings`], *optional*): LoRA of the language model; without it nothing of LoRA is added.
        learning_rate (`float`): Its highest value.
        lr_scheduler_type (`str`): Schedule, by its name in Transformers.
        warmup_steps (`int`, *optional*, defaults to 100): Steps until the learning rate is reached.
        supervise (`str`, *optional*, defaults to `"anchors"`): Frames with masks: `"anchors"` or
            `"anchors+propagation"`.
        trains_encoders (`bool`, *optional*, defaults to `False`): Whether vision tower and SAM encoder make a graph:
            for pre-training from scratch only.

    Example:

    ```python
    >>> from virst_hf.training import STAGES
    >>> [(stage.name, stage.learning_rate) for stage in STAGES.values()]
    [('alignment', 0.0002), ('few_image', 0.0002), ('propagation', 1e-05)]

    ```
    """

    name: str
    follows: str | None
    trains: tuple[str, ...]
    lora: LoraSettings | None
    learning_rate: float
    lr_scheduler_type: str
    warmup_steps: int = 100
    supervise: Supervise = "anchors"
    trains_encoders: bool = False


ALIGNMENT = TrainingStage(
    name="alignment",
    follows=None,
    trains=("model.initial_fusion.*", "model.prompt_decoder.*", "lm_head.*"),
    lora=LoraSettings(),
    learning_rate=2e-4,
    lr_scheduler_type="constant_with_warmup",
)
# Memory attention and memory encoder are unfrozen here, as the supplement says, but get no gradient yet (see above).
FEW_IMAGE = replace(
    ALIGNMENT,
    name="few_image",
    follows="alignment",
    trains=(
        *ALIGNMENT.trains,
        "model.segmenter.sam_mask_decoder.*",
        "model.segmenter.memory_attention.*",
        "model.segmenter.memory_encoder.*",
        "model.projector.*",
    ),
    lr_scheduler_type="linear",
)
PROPAGATION = replace(
    FEW_IMAGE, name="propagation", follows="few_image", learning_rate=1e-5, supervise="anchors+propagation"
)

STAGES = {stage.name: stage for stage in (ALIGNMENT, FEW_IMAGE, PROPAGATION)}


def get_stage(name: str) -> TrainingStage:
    """A stage by its name.

    Args:
        name (`str`): Its name.

    Returns:
        [`TrainingStage`]: The stage.

    Raises:
        ConfigError: There is no such stage.
    """
    if name not in STAGES:
        raise ConfigError(f"There is no stage {name!r}; the stages are {', '.join(STAGES)}.")
    return STAGES[name]


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to, for a table.

    Args:
        name (`str`): Name of a parameter of [`VirstForVideoSegmentation`].

    Returns:
        `str`: Such as `"initial_fusion"`, `"sam_mask_decoder"` or `"lora"`.
    """
    if ".lora_" in name:
        return "lora"
    parts = name.split(".")
    if parts[0] != "model":
        return parts[0]
    return parts[2] if parts[1] == "segmenter" else parts[1]


def prepare_model(model: VirstForVideoSegmentation, stage: TrainingStage) -> dict[str, int]:
    """Make a model train as a stage says: LoRA is added unless it is there, everything else is frozen or not.

    A stage without LoRA writes a full model, so LoRA that is there is merged first. The encoders stay frozen, whatever
    the patterns, unless the stage has `trains_encoders`. New LoRA is drawn from torch's generator: set a seed before.

    Args:
        model ([`VirstForVideoSegmentation`]): The model; changed in place.
        stage ([`TrainingStage`]): The stage.

    Returns:
        `dict[str, int]`: Number of trained parameters of each part, in the order of the model.

    Raises:
        ConfigError: A pattern of the stage fits no parameter, LoRA none of the language model's layers, or the model
            has LoRA of other settings than the stage.
    """
    names = [base_name(name) for name, _ in model.named_parameters()]
    for pattern in stage.trains:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(f"The stage {stage.name} trains {pattern!r}, but no parameter has such a name.")
    _set_lora(model, stage)
    model.model.train_encoders = stage.trains_encoders
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        trained = ".lora_" in name or _is_trained(base_name(name), stage)
        _set_trained(parameter, trained)
        if trained:
            part = part_of(name)
            counts[part] = counts.get(part, 0) + parameter.numel()
    return counts


def _set_lora(model: VirstForVideoSegmentation, stage: TrainingStage) -> None:
    if stage.lora is None:
        merge_lora(model)
    elif not has_lora(model):
        add_lora(model, stage.lora)
    else:
        found = lora_settings(model)
        wanted = (stage.lora.rank, stage.lora.alpha, sorted(stage.lora.target_modules))
        if (found.rank, found.alpha, sorted(found.target_modules)) != wanted:
            raise ConfigError(
                f"The stage {stage.name} has LoRA of rank {stage.lora.rank} and alpha {stage.lora.alpha} on "
                f"{', '.join(stage.lora.target_modules)}; the model has rank {found.rank} and alpha {found.alpha} on "
                f"{', '.join(found.target_modules)}. Merge that first (`virst merge`), or give the stage the same."
            )


def _is_trained(name: str, stage: TrainingStage) -> bool:
    if not stage.trains_encoders and any(fnmatchcase(name, pattern) for pattern in ENCODERS):
        return False
    return any(fnmatchcase(name, pattern) for pattern in stage.trains)


def _set_trained(parameter: nn.Parameter, trained: bool) -> None:
    # What is not of a floating type (a 4-bit weight) cannot have a gradient, and needs none.
    if parameter.is_floating_point():
        parameter.requires_grad_(trained)


def describe(stage: TrainingStage, counts: dict[str, int]) -> str:
    """A table of what a stage trains.

    Args:
        stage ([`TrainingStage`]): The stage.
        counts (`dict[str, int]`): What [`prepare_model`] gave.

    Returns:
        `str`: A line for each part, and their sum.
    """
    lines = [f"Stage {stage.name} trains {sum(counts.values()):,} parameters:"]
    lines += [f"  {part:<20} {count:>14,}" for part, count in counts.items()]
    if stage.supervise == "anchors" and {"memory_attention", "memory_encoder"} & set(counts):
        lines.append("  (every supervised frame is an anchor: the memory modules get no gradient in this stage)")
    return "\n".join(lines)
