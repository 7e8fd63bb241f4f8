"""The model of a run: loaded with what its stage trains switched on, written as its stage does, and read back."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import set_seed
from transformers.trainer_utils import load_sharded_checkpoint

from ..adapters import (
    STAGE_FILE,
    adapter_info,
    base_of,
    find_adapter,
    find_file,
    full_name,
    has_lora,
    is_adapter,
    load_adapter,
    save_adapter,
)
from ..data.files import read_json
from ..errors import CheckpointError, ConfigError, DataError
from ..loading import check_model_name
from ..modeling_virst import VirstForVideoSegmentation
from ..quantization import four_bit_config
from ..rendering import write_json
from .arguments import VirstTrainingArguments
from .stages import prepare_model

if TYPE_CHECKING:
    from ..processing_virst import VirstProcessor

__all__ = ["Origin", "load_training_model", "origin_of", "read_weights", "same_model", "stages_of", "write_weights"]


@dataclass(frozen=True)
class Origin:
    """
    What a run started from. It is read once: the folder may change or go while the run goes on.

    Args:
        name (`str`): The model that the run was given: a full path, or a name on the Hub.
        base (`str`): The full model under it; the same, or what an adapter folder names.
        history (`tuple[str, ...]`): The stages it had been through.

    Example:

    ```python
    >>> from virst_hf.training.weights import Origin
    >>> Origin("me/aligned", "me/virst", ("alignment",)).base
    'me/virst'

    ```
    """

    name: str
    base: str
    history: tuple[str, ...]


def origin_of(model: VirstForVideoSegmentation, args: VirstTrainingArguments) -> Origin:
    """What a run started from.

    Args:
        model ([`VirstForVideoSegmentation`]): Its model, of `load_training_model` or made by other means.
        args ([`VirstTrainingArguments`]): The run.

    Returns:
        [`Origin`]: As it was when the model was loaded; for a model made by other means as it is now.

    Raises:
        CheckpointError: What the model of `args` says of itself is damaged.
    """
    origin = getattr(model, "origin", None)
    if origin is None:
        history, base = stages_of(args.model)
        origin = model.origin = Origin(full_name(args.model), full_name(base or args.model), tuple(history))
    return origin


def same_model(before: str, now: str) -> bool:
    """Whether two names are of one model, as far as can be told.

    Args:
        before (`str`): A full path or a name on the Hub, as it was written down.
        now (`str`): The same of today.

    Returns:
        `bool`: Whether they are equal, or `before` is a folder that is gone: then it has been moved.
    """
    return before == now or (Path(before).is_absolute() and not Path(before).exists())


def stages_of(name: str | os.PathLike) -> tuple[list[str], str | None]:
    """What a model has been through.

    Args:
        name (`str` or `os.PathLike`): A full model or an adapter folder, here or on the Hub.

    Returns:
        `tuple[list[str], str | None]`: Names of its stages, in order, and for an adapter folder its base.

    Raises:
        CheckpointError: What it says of itself is damaged.
    """
    adapter = find_adapter(name)
    if adapter is not None:
        return list(adapter_info(adapter).history), base_of(adapter)
    path = find_file(name, STAGE_FILE)
    if path is None:
        return [], None
    try:
        return [str(name) for name in read_json(path)["history"]], None
    except (DataError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); expected the history of the model's stages.") from error


def load_training_model(args: VirstTrainingArguments) -> tuple[VirstForVideoSegmentation, dict[str, int]]:
    """The model that a stage starts from, with what the stage trains switched on.

    Args:
        args ([`VirstTrainingArguments`]): The run.

    Returns:
        `tuple[VirstForVideoSegmentation, dict[str, int]]`: The model, and the number of trained parameters by part.

    Raises:
        CheckpointError: There is no such model, or it cannot be read.
        ConfigError: The stage before was not run.
    """
    name, stage = check_model_name(args.model), args.training_stage
    history, base = stages_of(name)
    adapter = find_adapter(name)
    if stage.follows is not None and stage.follows not in history and not args.allow_missing_stage:
        raise ConfigError(
            f"The stage {stage.name} follows {stage.follows}, but {args.model} has been through "
            f"{', '.join(history) or 'no stage'}. Run {stage.follows} first and give its final folder as model, or "
            "leave it out on purpose with --allow_missing_stage."
        )
    # The values of new LoRA weights: the same in every process and in every run with this seed.
    set_seed(args.seed)
    mixed = args.bf16 or args.fp16
    options: dict[str, Any] = {"dtype": "auto" if mixed else torch.float32}
    if args.load_in_4bit:
        options["quantization_config"] = four_bit_config()
    with whole_model(args):
        try:
            model = VirstForVideoSegmentation.from_pretrained(base or name, **options)
        except SafetensorError as error:
            raise CheckpointError(f"The weights of {base or name} cannot be read: {error}.") from error
        if adapter is not None:
            load_adapter(model, adapter, trainable=True)
        counts = prepare_model(model, stage)
    # What learns is held in float32: a step at 1e-5 is less than bfloat16 can add to a weight.
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if mixed and adapter is not None and has_lora(model):
        load_adapter(model, adapter, trainable=True)  # again: the first time it was rounded to the base's type
    model.origin = Origin(full_name(name), full_name(base or name), tuple(history))
    if args.cache_features is not None:
        use_cached_features(model, args.cache_features)
    return model, counts


@contextmanager
def whole_model(args: VirstTrainingArguments) -> Iterator[None]:
    """Around loading: under ZeRO-3 Transformers would build the model in pieces, and SAM 2 reads the shapes of its
    weights while it is built. The engine takes the whole model apart afterwards.

    Args:
        args ([`VirstTrainingArguments`]): The run.
    """
    config = getattr(args, "hf_deepspeed_config", None)
    if config is None:
        yield
        return
    from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(config)


def use_cached_features(model: VirstForVideoSegmentation, folder: str | os.PathLike) -> None:
    """Take the features of the frozen encoders from a folder, in training; a validation encodes as inference does.

    Args:
        model ([`VirstForVideoSegmentation`]): With frozen encoders.
        folder (`str` or `os.PathLike`): Where they are, or will be.
    """
    from .feature_cache import FeatureCache

    cache, direct = FeatureCache(folder, model), model.encode_video
    model.encode_video = lambda *args, **kwargs: (cache.encode_video if model.training else direct)(*args, **kwargs)


def write_weights(
    model: VirstForVideoSegmentation,
    folder: Path,
    args: VirstTrainingArguments,
    processor: "VirstProcessor",
    state_dict: dict[str, Tensor] | None = None,
) -> None:
    """Write a model as its stage does: an adapter folder after a stage with LoRA, else a full model.

    Args:
        model ([`VirstForVideoSegmentation`]): The model.
        folder (`pathlib.Path`): Where to; other processes may have put files of theirs there already.
        args ([`VirstTrainingArguments`]): The run.
        processor ([`VirstProcessor`]): Saved beside it.
        state_dict (`dict[str, torch.Tensor]`, *optional*): Weights that were gathered from several processes.
    """
    origin = origin_of(model, args)
    if args.training_stage.lora is None:
        model.save_pretrained(folder, state_dict=state_dict)
        processor.save_pretrained(folder)
        write_json(folder / STAGE_FILE, {"history": [*origin.history, args.stage]})
    else:
        parts = folder.with_name(f"{folder.name}-weights")
        save_adapter(model, parts, origin.base, args.training_stage, state_dict, processor, origin.history)
        folder.mkdir(parents=True, exist_ok=True)
        for path in parts.iterdir():
            path.replace(folder / path.name)
        parts.rmdir()
    (folder / "training_args.json").write_text(args.to_json_string(), encoding="utf-8")


def read_weights(model: VirstForVideoSegmentation, folder: str | os.PathLike, base: str | None = None) -> None:
    """Read what `write_weights` wrote, into the model of the same stage.

    Args:
        model ([`VirstForVideoSegmentation`]): The model.
        folder (`str` or `os.PathLike`): A checkpoint.
        base (`str`, *optional*): The full model that the run stands on: the adapter must be of the same.

    Raises:
        CheckpointError: It does not fit the model, is of another base, or cannot be read.
    """
    try:
        if is_adapter(folder):
            found = adapter_info(folder).base
            if base is not None and not same_model(found, base):
                raise CheckpointError(
                    f"The adapter {folder} belongs to the model {found}, and this run stands on {base}. Go on with "
                    "the model of the first run."
                )
            load_adapter(model, folder, trainable=True)
        elif (Path(folder) / "model.safetensors").is_file():
            model.load_state_dict(load_file(Path(folder) / "model.safetensors"))
        else:
            load_sharded_checkpoint(model, str(folder))
    except CheckpointError:
        raise
    # torch raises RuntimeError for names and shapes that do not fit, Transformers ValueError where there are no files.
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"The weights of {folder} cannot be read: {' '.join(str(error).split())}") from error
