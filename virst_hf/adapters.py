"""What a training stage with LoRA writes: an adapter folder beside its base model, not a copy of the whole model.

```
FOLDER/adapter_config.json, adapter_model.safetensors   LoRA of the language model, in peft's own format
FOLDER/trained_modules.safetensors                      every other tensor that was trained, under its full name
FOLDER/virst_adapter.json                               the base model, the stage, and the stages before it
FOLDER/config.json and the processor's files            as in any model's folder
```

`from_pretrained`, and so every command, takes such a folder: it loads the base, overlays the trained tensors and
merges LoRA. `virst merge` writes the result as an ordinary model.
"""

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin
from transformers.utils import cached_file

from .errors import CheckpointError, ConfigError
from .rendering import write_json

if TYPE_CHECKING:
    from peft import LoraConfig

__all__ = [
    "STAGE_FILE",
    "AdapterInfo",
    "LoraSettings",
    "adapter_info",
    "add_lora",
    "base_name",
    "base_of",
    "check_is_new",
    "find_adapter",
    "find_file",
    "full_name",
    "has_lora",
    "is_adapter",
    "load_adapter",
    "lora_settings",
    "merge_lora",
    "new_folder",
    "save_adapter",
]

INFO_FILE, TENSORS_FILE = "virst_adapter.json", "trained_modules.safetensors"
PEFT_CONFIG, PEFT_TENSORS = "adapter_config.json", "adapter_model.safetensors"
# In the folder of a full model that stages have trained.
STAGE_FILE = "virst_stage.json"
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


def lora_settings(model: PreTrainedModel) -> LoraSettings | None:
    """The settings of the LoRA that a model has.

    Args:
        model ([`VirstForVideoSegmentation`]): The model.

    Returns:
        [`LoraSettings`] or `None`: Its settings, the layers in alphabetical order; `None` where it has no LoRA.
    """
    config = getattr(model.model.language_model, "peft_config", {}).get(ADAPTER)
    if config is None:
        return None
    return LoraSettings(config.r, config.lora_alpha, config.lora_dropout, tuple(sorted(config.target_modules)))


def add_lora(model: PreTrainedModel, settings: LoraSettings) -> None:
    """Put LoRA around the layers of the language model, in place. Its weights are float32 whatever those of the model,
    so that small steps are not lost; everything else stays as it is, names and `requires_grad` as well.

    Args:
        model ([`VirstForVideoSegmentation`]): The model.
        settings ([`LoraSettings`]): Rank, scale, dropout and layers.

    Raises:
        ConfigError: The language model has none of these layers, the rank is below 1, or there is LoRA already.
    """
    from peft import LoraConfig

    if has_lora(model):
        raise ConfigError("The language model has LoRA already. Merge it before another one is added.")
    try:
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=list(settings.target_modules),
            bias="none",
        )
        _inject(model, config)
    except ValueError as error:
        raise ConfigError(f"LoRA cannot be added to the language model: {error}") from error


def _inject(model: PreTrainedModel, config: "LoraConfig") -> None:
    from peft import inject_adapter_in_model

    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    inject_adapter_in_model(config, model.model.language_model, adapter_name=ADAPTER)
    for parameter in learning:
        parameter.requires_grad_(True)  # peft has frozen the language model
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()


def merge_lora(model: PreTrainedModel) -> None:
    """Add the updates of LoRA to the weights and take LoRA away, in place. Sums are rounded once, from float32.

    Args:
        model ([`VirstForVideoSegmentation`]): The model; one without LoRA stays as it is.

    Raises:
        ConfigError: The weights are held in fewer bits, which nothing can be added to.
    """
    for name, layer in _lora_layers(model):
        base = layer.get_base_layer()
        if not isinstance(base, nn.Linear) or not base.weight.is_floating_point():
            raise ConfigError(
                f"LoRA of {OUR_PREFIX}{name} cannot be merged into a {type(base).__name__} of {base.weight.dtype}: "
                "load the base model without quantization for that."
            )
    merged = set()
    for name, layer in _lora_layers(model):
        weight = layer.get_base_layer().weight
        down, up = (part[ADAPTER].weight.data.float() for part in (layer.lora_A, layer.lora_B))
        update = layer.scaling[ADAPTER] * (up @ down)
        weight.data = (weight.data.float() + update.to(weight.device)).to(weight.dtype)
        merged.add(f"{OUR_PREFIX}{name}.weight")
    _take_lora_away(model)
    # These are no longer the weights of the base: an adapter that is saved from here on must hold them.
    model.overlaid_tensors = frozenset(model.overlaid_tensors | merged)


def _lora_layers(model: PreTrainedModel) -> list[tuple[str, nn.Module]]:
    """The layers with LoRA, by their names inside the language model; also those around quantized layers."""
    from peft.tuners.lora import LoraLayer

    modules = model.model.language_model.named_modules()
    return [(name, module) for name, module in modules if isinstance(module, LoraLayer)]


def _take_lora_away(model: PreTrainedModel) -> None:
    language_model = model.model.language_model
    for name, layer in _lora_layers(model):
        parent, _, child = name.rpartition(".")
        setattr(language_model.get_submodule(parent), child, layer.get_base_layer())
    if hasattr(language_model, "peft_config"):
        del language_model.peft_config


# --- what a folder says of itself ------------------------------------------------------------------------------------
def is_adapter(folder: str | os.PathLike) -> bool:
    """Whether a folder is an adapter folder.

    Args:
        folder (`str` or `os.PathLike`): The folder.

    Returns:
        `bool`: Whether it is.
    """
    return (Path(folder) / INFO_FILE).is_file()


def find_adapter(name: str | os.PathLike | None, **hub_options: Any) -> Path | None:
    """The adapter folder of that name, fetched from the Hub if it is there.

    Args:
        name (`str` or `os.PathLike`, *optional*): A folder, or a name on the Hub.
        **hub_options: Of [`~transformers.utils.cached_file`], such as `revision` and `token`.

    Returns:
        `pathlib.Path` or `None`: The folder; `None` where the name is that of a full model, or of nothing.

    Raises:
        CheckpointError: It is an adapter on the Hub, and a file of it is missing there.
    """
    found = None if name is None else find_file(name, INFO_FILE, **hub_options)
    if found is None or Path(name).expanduser().exists():
        return None if found is None else found.parent
    try:
        for part in ("config.json", PEFT_CONFIG, PEFT_TENSORS, TENSORS_FILE):
            cached_file(str(name), part, **hub_options)
    except OSError as error:
        raise CheckpointError(f"The adapter {name} cannot be fetched from the Hub: {error}") from error
    return found.parent


def find_file(name: str | os.PathLike, file: str, **hub_options: Any) -> Path | None:
    """A small file of a model that not every model has, fetched from the Hub if it is there.

    Args:
        name (`str` or `os.PathLike`): A folder, or a name on the Hub.
        file (`str`): Name of the file.
        **hub_options: Of [`~transformers.utils.cached_file`], such as `revision` and `token`.

    Returns:
        `pathlib.Path` or `None`: The file, if there is one.
    """
    folder = Path(name).expanduser()
    # Of a name that cannot be on the Hub the client would complain in its own words.
    if folder.exists() or str(name).count("/") > 1 or not str(name)[:1].isalnum():
        return folder / file if (folder / file).is_file() else None
    kinds = ("gated_repo", "missing_entries", "connection_errors")
    silent = {f"_raise_exceptions_for_{kind}": False for kind in kinds}
    try:
        found = cached_file(str(name), file, **hub_options, **silent)
    except OSError:  # no such repository: loading a model of that name will say so
        found = None
    return None if found is None else Path(found)


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


def base_of(folder: str | os.PathLike, base: str | os.PathLike | None = None) -> str:
    """The full model that an adapter folder belongs to.

    Args:
        folder (`str` or `os.PathLike`): The adapter folder.
        base (`str` or `os.PathLike`, *optional*): Where it is now; by default where it was when the adapter was saved.

    Returns:
        `str`: A folder that exists, or a name on the Hub.

    Raises:
        CheckpointError: There is no such folder, or it is an adapter folder itself.
    """
    named = adapter_info(folder).base if base is None else os.fspath(base)
    place = Path(named).expanduser()
    if is_adapter(place):
        raise CheckpointError(
            f"{named} is an adapter folder, expected the full model that the adapter {folder} was trained from."
        )
    if not place.exists() and (place.is_absolute() or named.count("/") > 1 or not named[:1].isalnum()):
        raise CheckpointError(
            f"The adapter {folder} belongs to the model {named}, and there is no such folder. Say where it is now: "
            "`virst merge --base MODEL`, or from_pretrained(..., base=MODEL)."
        )
    return str(place) if place.exists() else named


# --- saving ----------------------------------------------------------------------------------------------------------
def save_adapter(
    model: PreTrainedModel,
    folder: str | os.PathLike,
    base: str,
    stage: Any,
    state_dict: Mapping[str, Tensor] | None = None,
    processor: ProcessorMixin | None = None,
    history: Sequence[str] = (),
) -> Path:
    """Write what was trained, by this stage or one before. The folder appears at once and whole.

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
        CheckpointError: The folder exists or cannot be written, there is no LoRA, or `state_dict` is not whole.
    """
    if not has_lora(model):
        raise CheckpointError("This model has no LoRA, so there is no adapter to save: use save_pretrained.")
    lora, modules = _trained_tensors(model, model.state_dict() if state_dict is None else state_dict)
    info = AdapterInfo(full_name(base), stage.name, (*history, stage.name), tuple(stage.trains))
    with new_folder(folder, "adapter") as partial:
        config = copy.deepcopy(model.config)
        # Of the base as it was held in training: the adapter is for the base itself.
        vars(config).pop("quantization_config", None)
        config.save_pretrained(partial)
        if processor is not None:
            processor.save_pretrained(partial)
        peft_config = copy.copy(model.model.language_model.peft_config[ADAPTER])
        peft_config.base_model_name_or_path, peft_config.inference_mode = info.base, True
        peft_config.save_pretrained(str(partial))
        save_file(lora, partial / PEFT_TENSORS, metadata={"format": "pt"})
        save_file(modules, partial / TENSORS_FILE, metadata={"format": "pt"})
        write_json(partial / INFO_FILE, asdict(info))
    return Path(folder)


def _trained_tensors(model: PreTrainedModel, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], ...]:
    """Tensors of LoRA under peft's names, and all others that differ from the base under theirs."""
    # What an earlier stage trained and this one does not goes along.
    kept = {base_name(name) for name, p in model.named_parameters() if p.requires_grad} | model.overlaid_tensors
    wanted = [name for name, _ in model.named_parameters() if ".lora_" in name or base_name(name) in kept]
    absent = [name for name in wanted if name not in state or not state[name].numel()]
    if absent:
        raise CheckpointError(
            f"The weights that are to be saved lack {len(absent)} trained tensors, among them {absent[0]}: with "
            'ZeRO-3 they must be gathered first ("stage3_gather_16bit_weights_on_model_save": true).'
        )
    lora: dict[str, Tensor] = {}
    modules: dict[str, Tensor] = {}
    for name in wanted:
        tensor = state[name].detach().cpu().contiguous()
        if ".lora_" in name:
            lora[PEFT_PREFIX + name.removeprefix(OUR_PREFIX).replace(f".{ADAPTER}.", ".")] = tensor
        else:
            modules[base_name(name)] = tensor
    return lora, modules


def full_name(model: str) -> str:
    """A name of a model that holds everywhere.

    Args:
        model (`str`): A folder, or a name on the Hub.

    Returns:
        `str`: The folder by its full path; a name on the Hub as it is.
    """
    return str(Path(model).expanduser().resolve()) if Path(model).expanduser().is_dir() else model


def check_is_new(folder: str | os.PathLike, what: str) -> Path:
    """Refuse to write over something.

    Args:
        folder (`str` or `os.PathLike`): Where something is to be written.
        what (`str`): What it is, for the message.

    Returns:
        `pathlib.Path`: The folder.

    Raises:
        CheckpointError: It exists.
    """
    target = Path(folder).expanduser()
    if target.exists():
        raise CheckpointError(f"{target} exists already; name a new folder for the {what}.")
    return target


@contextmanager
def new_folder(folder: str | os.PathLike, what: str) -> Iterator[Path]:
    """Give a temporary folder beside `folder`, and move it there once the block has ended well.

    Args:
        folder (`str` or `os.PathLike`): Where to; must not exist yet.
        what (`str`): What is written, for the message.

    Yields:
        `pathlib.Path`: The temporary folder. It is removed when the block raises.

    Raises:
        CheckpointError: The folder exists, or cannot be written.
    """
    target = check_is_new(folder, what)
    partial = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        yield partial
        partial.chmod(0o755)
        partial.rename(target)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"The {what} could not be written to {target}: {error}. Nothing is left of it."
        ) from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


# --- loading ---------------------------------------------------------------------------------------------------------
def load_adapter(model: PreTrainedModel, folder: str | os.PathLike, trainable: bool = False) -> None:
    """Put what an adapter folder holds into its base model, in place: modules are overlaid, LoRA is added. A folder
    that does not fit changes nothing.

    Args:
        model ([`VirstForVideoSegmentation`]): The base model, or one that has LoRA of the same settings already.
        folder (`str` or `os.PathLike`): The adapter folder.
        trainable (`bool`, *optional*, defaults to `False`): Whether LoRA goes on to learn.

    Raises:
        CheckpointError: A file is missing or damaged, or the adapter belongs to another model.
    """
    folder = Path(folder)
    info = adapter_info(folder)
    if not hasattr(model, "lm_head"):
        raise CheckpointError(
            f"The adapter {folder} is for VirstForVideoSegmentation, not for {type(model).__name__}."
        )
    config = _peft_config(folder)
    lora, modules = _read(folder / PEFT_TENSORS), _read(folder / TENSORS_FILE)
    had_lora = has_lora(model)
    if not had_lora:
        try:
            _inject(model, config)
        except ValueError as error:
            raise CheckpointError(f"{folder / PEFT_CONFIG} does not fit the language model: {error}") from error
    try:
        _check_same_lora(model, config, folder)
        _copy_tensors(model, folder, info, lora, modules)
    except CheckpointError:
        if not had_lora:
            _take_lora_away(model)
        raise
    model.overlaid_tensors = frozenset(modules)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.requires_grad_(trainable)


def _peft_config(folder: Path) -> "LoraConfig":
    """The LoRA of a folder, as far as it can be merged by `merge_lora`."""
    from peft import LoraConfig

    path = folder / PEFT_CONFIG
    if not path.is_file():  # peft would look for it on the Hub
        raise CheckpointError(f"The adapter folder {folder} has no {PEFT_CONFIG}. Copy it again.")
    try:
        config = LoraConfig.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    numbers = isinstance(config, LoraConfig) and all(
        isinstance(value, int | float) for value in (config.r, config.lora_alpha, config.lora_dropout)
    )
    if not numbers or isinstance(config.target_modules, str):
        raise CheckpointError(f"{path} is not that of LoRA: expected numbers for r, lora_alpha, lora_dropout.")
    if config.use_dora or config.bias != "none" or config.modules_to_save:
        raise CheckpointError(f"{path} says more than plain LoRA (bias, DoRA, modules_to_save), which is all we read.")
    config.inference_mode = False
    return config


def _check_same_lora(model: PreTrainedModel, config: "LoraConfig", folder: Path) -> None:
    """The tensors may fit and the scale differ."""
    own = model.model.language_model.peft_config[ADAPTER]
    for field in ("r", "lora_alpha", "use_rslora"):
        if getattr(own, field) != getattr(config, field):
            raise CheckpointError(
                f"The model has LoRA with {field} {getattr(own, field)!r}, and the adapter {folder} has "
                f"{getattr(config, field)!r}. Load it into its base model instead."
            )


def _copy_tensors(
    model: PreTrainedModel, folder: Path, info: AdapterInfo, lora: Mapping[str, Tensor], modules: Mapping[str, Tensor]
) -> None:
    own = {base_name(name): tensor for name, tensor in model.state_dict().items()}
    found = dict(modules)
    for key, tensor in lora.items():
        inner, _, kind = key.removeprefix(PEFT_PREFIX).partition(".lora_")
        kind, _, weight = kind.partition(".")
        found[f"{OUR_PREFIX}{inner}.lora_{kind}.{ADAPTER}.{weight}"] = tensor
    wrong = [name for name, tensor in found.items() if name not in own or own[name].shape != tensor.shape]
    wrong += [name for name in own if ".lora_" in name and name not in found]
    if wrong:
        raise CheckpointError(
            f"{folder} does not belong to this model: {len(wrong)} tensors are missing or of another size, among them "
            f"{', '.join(sorted(wrong)[:3])}. It was trained from {info.base}."
        )
    # Where a device map leaves weights on the disk, a copy to them would be lost without a word.
    away = [name for name in found if own[name].is_meta]
    if away:
        raise CheckpointError(
            f"{folder} cannot be loaded while {len(away)} tensors of its model, such as {away[0]}, are not in memory. "
            "Write a full model with `virst merge`, and load that."
        )
    with torch.no_grad():
        for name, tensor in found.items():
            own[name].copy_(tensor)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Copy the adapter folder again.") from error
