"""What a training stage with LoRA writes: an adapter folder beside its base model, not a copy of the whole model.

```
FOLDER/adapter_config.json, adapter_model.safetensors   LoRA of the language model, in peft's own format
FOLDER/trained_modules.safetensors                      every other tensor that was trained, under its full name
FOLDER/virst_adapter.json                               the base model, the stage, and the stages before it
FOLDER/config.json and the processor's files            as in any model's folder
```
"""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin

from .errors import CheckpointError, ConfigError
from .rendering import write_json

__all__ = [
    "AdapterInfo",
    "LoraSettings",
    "add_lora",
    "adapter_info",
    "base_name",
    "has_lora",
    "is_adapter",
    "load_adapter",
    "merge_lora",
    "save_adapter",
]

INFO_FILE, TENSORS_FILE = "virst_adapter.json", "trained_modules.safetensors"
PEFT_CONFIG, PEFT_TENSORS = "adapter_config.json", "adapter_model.safetensors"
# Where peft expects the tensors of an adapter, and where they are in our model.
PEFT_PREFIX, OUR_PREFIX = "base_model.model.", "model.language_model."
ADAPTER = "default"


@dataclass(frozen=True)
class LoraSettings:
    """
    LoRA of the language model (supplement A and DESIGN: rank 64, alpha 16, dropout 0.05 on all its linear layers).

    Args:
        rank (`int`, *optional*, defaults to 64): Rank of an update.
        alpha (`int`, *optional*, defaults to 16): The update is scaled by `alpha / rank`.
        dropout (`float`, *optional*, defaults to 0.05): Dropout in front of it, in training.
        target_modules (`tuple[str, ...]`, *optional*): Last parts of the names of its layers.

    Example:

    ```python
    >>> from virst_hf.adapters import LoraSettings
    >>> LoraSettings(rank=8).alpha
    16

    ```
    """

    rank: int = 64
    alpha: int = 16
    dropout: float = 0.05
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class AdapterInfo:
    """
    What an adapter folder says of itself.

    Args:
        base (`str`): Folder or Hub name of the model it belongs to.
        stage (`str`): The stage that wrote it.
        history (`tuple[str, ...]`): All stages so far, that one included.
        trained (`tuple[str, ...]`): Patterns of what the stage trains.

    Example:

    ```python
    >>> from virst_hf.adapters import AdapterInfo
    >>> AdapterInfo("base", "alignment", ("alignment",), ("lm_head.*",)).history
    ('alignment',)

    ```
    """

    base: str
    stage: str
    history: tuple[str, ...]
    trained: tuple[str, ...]


# --- LoRA ------------------------------------------------------------------------------------------------------------
def has_lora(model: nn.Module) -> bool:
    """Whether a model has LoRA layers.

    Args:
        model (`torch.nn.Module`): The model.

    Returns:
        `bool`: Whether it has.
    """
    return any(".lora_" in name for name, _ in model.named_parameters())


def base_name(name: str) -> str:
    """Name that a parameter has without LoRA around its layer.

    Args:
        name (`str`): Name of a parameter.

    Returns:
        `str`: The same without `base_layer`.
    """
    return name.replace(".base_layer.", ".")


def add_lora(model: PreTrainedModel, settings: LoraSettings) -> None:
    """Put LoRA around the layers of the language model, in place; names of all other parameters stay.

    Args:
        model ([`VirstForVideoSegmentation`]): The model.
        settings ([`LoraSettings`]): Rank, scale, dropout and layers.

    Raises:
        ConfigError: The language model has none of these layers.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.target_modules),
        bias="none",
    )
    try:
        inject_adapter_in_model(config, model.model.language_model, adapter_name=ADAPTER)
    except ValueError as error:
        raise ConfigError(f"LoRA cannot be added to the language model: {error}") from error


def merge_lora(model: PreTrainedModel) -> None:
    """Add the updates of LoRA to the weights and take LoRA away, in place. Sums are rounded once, from float32.

    Args:
        model ([`VirstForVideoSegmentation`]): The model.
    """
    from peft.tuners.lora import Linear as LoraLinear

    language_model = model.model.language_model
    layers = [(name, module) for name, module in language_model.named_modules() if isinstance(module, LoraLinear)]
    for name, layer in layers:
        base = layer.get_base_layer()
        down, up = (part[ADAPTER].weight.data.float() for part in (layer.lora_A, layer.lora_B))
        update = layer.scaling[ADAPTER] * (up @ down)
        base.weight.data = (base.weight.data.float() + update.to(base.weight.device)).to(base.weight.dtype)
        parent, _, child = name.rpartition(".")
        setattr(language_model.get_submodule(parent), child, base)
    if layers:
        del language_model.peft_config


# --- folders ---------------------------------------------------------------------------------------------------------
def is_adapter(folder: str | os.PathLike) -> bool:
    """Whether a folder is an adapter folder.

    Args:
        folder (`str` or `os.PathLike`): The folder.

    Returns:
        `bool`: Whether it is.
    """
    return (Path(folder) / INFO_FILE).is_file()


def adapter_info(folder: str | os.PathLike) -> AdapterInfo:
    """Read what an adapter folder says of itself.

    Args:
        folder (`str` or `os.PathLike`): The folder.

    Returns:
        [`AdapterInfo`]: Its base and stages.

    Raises:
        CheckpointError: It is no adapter folder, or its file is damaged.
    """
    path = Path(folder) / INFO_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        history, trained = content["history"], content["trained"]
        names = [content["base"], content["stage"], *history, *trained]
        if not all(isinstance(name, str) for name in names):
            raise ValueError("a name is no text")
        return AdapterInfo(content["base"], content["stage"], tuple(history), tuple(trained))
    except OSError as error:
        raise CheckpointError(f"{folder} is no adapter folder: {INFO_FILE} cannot be read ({error}).") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is damaged ({type(error).__name__}: {error}); expected base, stage, history and trained."
        ) from error


def save_adapter(
    model: PreTrainedModel,
    folder: str | os.PathLike,
    base: str,
    stage: Any,
    state_dict: Mapping[str, Tensor] | None = None,
    processor: ProcessorMixin | None = None,
    history: Sequence[str] = (),
) -> Path:
    """Write what was trained. The folder appears at once and whole.

    Args:
        model ([`VirstForVideoSegmentation`]): With LoRA, prepared for the stage.
        folder (`str` or `os.PathLike`): Where to; must not exist yet.
        base (`str`): Folder or Hub name of the model that it was trained from.
        stage ([`TrainingStage`]): The stage.
        state_dict (`Mapping[str, torch.Tensor]`, *optional*): Weights gathered from several processes (ZeRO-3).
        processor ([`VirstProcessor`], *optional*): Saved beside it.
        history (`Sequence[str]`, *optional*): Stages before this one.

    Returns:
        `pathlib.Path`: The folder.

    Raises:
        CheckpointError: The folder exists, or cannot be written.
    """
    target = Path(folder)
    if target.exists():
        raise CheckpointError(f"{target} exists already; name a new folder for the adapter.")
    state = model.state_dict() if state_dict is None else state_dict
    # What an earlier stage trained and this one does not goes along.
    kept = {base_name(name) for name, p in model.named_parameters() if p.requires_grad} | model.overlaid_tensors
    lora, modules = {}, {}
    for name, tensor in state.items():
        if ".lora_" in name:
            key = PEFT_PREFIX + name.removeprefix(OUR_PREFIX).replace(f".{ADAPTER}.", ".")
            lora[key] = tensor.detach().cpu().contiguous()
        elif base_name(name) in kept:
            modules[base_name(name)] = tensor.detach().cpu().contiguous()
    info = AdapterInfo(_absolute(base), stage.name, (*history, stage.name), tuple(stage.trains))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            _write(partial, model, info, lora, modules, processor)
            partial.chmod(0o755)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"The adapter could not be written to {target}: {error}. Nothing is left of it."
        ) from error
    return target


def _absolute(base: str) -> str:
    """A folder by its full path, so that the adapter finds it from anywhere; a name on the Hub as it is."""
    return str(Path(base).expanduser().resolve()) if Path(base).expanduser().is_dir() else base


def _write(
    folder: Path,
    model: PreTrainedModel,
    info: AdapterInfo,
    lora: Mapping[str, Tensor],
    modules: Mapping[str, Tensor],
    processor: ProcessorMixin | None,
) -> None:
    model.config.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    config = model.model.language_model.peft_config[ADAPTER]
    config.base_model_name_or_path, config.inference_mode = info.base, True
    config.save_pretrained(str(folder))
    save_file(dict(lora), folder / PEFT_TENSORS, metadata={"format": "pt"})
    save_file(dict(modules), folder / TENSORS_FILE, metadata={"format": "pt"})
    write_json(folder / INFO_FILE, asdict(info))


def load_adapter(model: PreTrainedModel, folder: str | os.PathLike, trainable: bool = False) -> None:
    """Put what an adapter folder holds into its base model, in place: modules are overlaid, LoRA is added.

    Args:
        model ([`VirstForVideoSegmentation`]): The base model, or one that has LoRA of the same sizes already.
        folder (`str` or `os.PathLike`): The adapter folder.
        trainable (`bool`, *optional*, defaults to `False`): Whether LoRA goes on to learn.

    Raises:
        CheckpointError: A file is missing or damaged, or the adapter belongs to another model.
    """
    from peft import LoraConfig

    folder = Path(folder)
    info = adapter_info(folder)
    lora, modules = _read(folder / PEFT_TENSORS), _read(folder / TENSORS_FILE)
    if not has_lora(model):
        try:
            config = LoraConfig.from_pretrained(str(folder))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"{folder / PEFT_CONFIG} cannot be read: {error}") from error
        add_lora(
            model,
            LoraSettings(config.r, config.lora_alpha, config.lora_dropout, tuple(sorted(config.target_modules))),
        )
    own = {base_name(name): tensor for name, tensor in model.state_dict().items()}
    found = dict(modules)
    for key, tensor in lora.items():
        inner, kind, weight = key.removeprefix(PEFT_PREFIX).rsplit(".", 2)
        found[f"{OUR_PREFIX}{inner}.{kind}.{ADAPTER}.{weight}"] = tensor
    wrong = [name for name, tensor in found.items() if name not in own or own[name].shape != tensor.shape]
    wrong += [name for name in own if ".lora_" in name and name not in found]
    if wrong:
        raise CheckpointError(
            f"{folder} does not belong to this model: {len(wrong)} tensors are missing or of another size, among them "
            f"{', '.join(sorted(wrong)[:3])}. It was trained from {info.base}."
        )
    with torch.no_grad():
        for name, tensor in found.items():
            own[name].copy_(tensor)
    model.overlaid_tensors = frozenset(modules)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.requires_grad_(trainable)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Copy the adapter folder again.") from error
