"""Loads model and processor by name, with one clear error for whatever is wrong with a checkpoint."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import CheckpointError, ConfigError, VirstError

if TYPE_CHECKING:
    from .configuration_virst import VirstConfig
    from .modeling_virst import VirstForVideoSegmentation
    from .processing_virst import VirstProcessor

__all__ = [
    "TINY_NAME",
    "VIRST_TINY",
    "check_model_name",
    "load_config",
    "load_model",
    "load_processor",
    "merge_adapter",
    "pick_device",
]

MODEL_TYPE = "virst"
# Folder of the small model that is part of the package; the functions here take the name "virst-tiny" as well.
VIRST_TINY = str(Path(__file__).resolve().parent / "tiny")
TINY_NAME = "virst-tiny"
DTYPES = ("float32", "bfloat16", "float16")


def check_model_name(name: str | os.PathLike) -> str:
    """Check that `name` is a folder with a VIRST checkpoint, or the name of one on the Hub.

    Args:
        name (`str` or `os.PathLike`): Folder of a full model or of an adapter, `owner/name` on the Hub, or
            `"virst-tiny"`, the small model of this package (unless there is a folder of that name).

    Returns:
        `str`: The name, to be given to `from_pretrained`.

    Raises:
        CheckpointError: There is a file in place of the folder, the folder holds no VIRST model, or there is no such
            folder and the Hub does not give a model of that name.
    """
    name = os.fspath(name)
    path = Path(name).expanduser()
    if path.is_dir():
        _check_config_file(path / "config.json")
        return str(path)
    if name == TINY_NAME:
        return VIRST_TINY
    if path.exists():
        raise CheckpointError(
            f"{name} is a file, expected a folder with config.json and *.safetensors. "
            "`virst convert` makes one from a released .pt file."
        )
    # On the Hub a name has at most one slash and starts with a letter or digit; "./model" and "~/model" do not.
    if name.count("/") > 1 or not name[:1].isalnum() or name.endswith("/") or "\\" in name:
        raise CheckpointError(f"There is no folder {name}. Expected a folder with config.json and *.safetensors.")
    _check_config_file(_fetch_config(name))
    return name


def _fetch_config(name: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(hf_hub_download(name, "config.json"))
    except (OSError, HFValidationError) as error:
        raise CheckpointError(
            f"There is no folder {name}, and the Hub gives no model of that name: {error}"
        ) from error


def _check_config_file(config_file: Path) -> None:
    if not config_file.is_file():
        raise CheckpointError(f"The folder {config_file.parent} has no config.json: it is no saved VIRST model.")
    try:
        content = json.loads(config_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{config_file} is not JSON: {error}") from error
    found = content.get("model_type") if isinstance(content, dict) else None
    if found != MODEL_TYPE:
        raise CheckpointError(f"{config_file} has model_type {found!r}, expected {MODEL_TYPE!r}.")


def load_config(path: str | os.PathLike) -> "VirstConfig":
    """Load a configuration.

    Args:
        path (`str` or `os.PathLike`): Folder of a checkpoint or its config.json, or `owner/name` on the Hub.

    Returns:
        [`VirstConfig`]: The configuration.

    Raises:
        ConfigError: It cannot be read, a field has a value of another type, or its sizes do not fit together.
    """
    from huggingface_hub.errors import StrictDataclassError

    from .configuration_virst import VirstConfig

    try:
        return VirstConfig.from_pretrained(os.fspath(path))
    except (OSError, StrictDataclassError) as error:
        raise ConfigError(f"No configuration could be read from {path}: {error}") from error


def load_processor(name: str | os.PathLike) -> "VirstProcessor":
    """Load the processor of a checkpoint; where an adapter folder holds none, that of its base.

    Args:
        name (`str` or `os.PathLike`): Folder of a full model or of an adapter, or `owner/name` on the Hub.

    Returns:
        [`VirstProcessor`]: The processor.

    Raises:
        CheckpointError: There is no VIRST checkpoint of that name, or its processor's files are missing or damaged.
    """
    from .adapters import base_of, is_adapter
    from .processing_virst import VirstProcessor

    name = check_model_name(name)
    if is_adapter(name) and not (Path(name) / "processor_config.json").is_file():
        name = check_model_name(base_of(name))
    load_config(name)  # the tokenizer's loader reads config.json, too, and its errors are not clear
    try:
        return VirstProcessor.from_pretrained(name)
    except VirstError:
        raise
    # Transformers raises these for files of a tokenizer or processor that are missing, or are not what they should be.
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"The processor of {name} cannot be loaded ({error}). Save one there with VirstProcessor.save_pretrained, "
            "or convert again with --tokenizer."
        ) from error


def load_model(
    name: str | os.PathLike, device: str | None = None, dtype: str | None = None, bits: int | None = None
) -> "VirstForVideoSegmentation":
    """Load a model for inference, and fail on any tensor that is missing, unknown or of another shape.

    An adapter folder gives its base model with what was trained laid over it and LoRA merged.

    Args:
        name (`str` or `os.PathLike`): Folder of a full model or of an adapter, or `owner/name` on the Hub.
        device (`str`, *optional*): Where it runs; by default the first CUDA device, or else the CPU.
        dtype (`str`, *optional*):
            `"float32"`, `"bfloat16"` or `"float16"`; by default the one that the checkpoint was saved in.
        bits (`int`, *optional*):
            8 or 4: the linear layers of the language model in so many bits; on CUDA, with bitsandbytes.

    Returns:
        [`VirstForVideoSegmentation`]: The model, in evaluation mode.

    Raises:
        CheckpointError: The checkpoint and its configuration do not fit together; the message lists the tensors.
        ConfigError: The sizes in its configuration do not fit together, or so many bits are not possible here.
        VirstError: There is no such device.
    """
    from .modeling_virst import VirstForVideoSegmentation

    name = check_model_name(name)
    place = pick_device(device)
    options: dict[str, Any] = {"dtype": dtype or "auto"}
    if bits is not None:
        from .quantization import language_model_bits

        options |= {"quantization_config": language_model_bits(bits), "device_map": {"": place}}
    load_config(name)  # for its errors, which are clearer than those on the way through from_pretrained
    with clear_weight_errors(name):
        model = VirstForVideoSegmentation.from_pretrained(name, **options)
    # What is held in fewer bits is there already, and refuses to be moved.
    return (model if bits is not None else model.to(place)).eval()


def merge_adapter(
    folder: str | os.PathLike,
    output: str | os.PathLike,
    base: str | os.PathLike | None = None,
    dtype: str | None = None,
) -> Path:
    """Write an adapter and its base as one full model without LoRA, whole or not at all, with the processor.

    Args:
        folder (`str` or `os.PathLike`): The adapter folder.
        output (`str` or `os.PathLike`): Folder to write; must not exist yet.
        base (`str` or `os.PathLike`, *optional*): Its base model; by default the one that it names.
        dtype (`str`, *optional*): `"float32"`, `"bfloat16"` or `"float16"`; by default that of the base. Sums are made
            in float32 and rounded once.

    Returns:
        `pathlib.Path`: The folder. Its `virst_stage.json` names the stages that the model has been through.

    Raises:
        CheckpointError: `folder` is no adapter folder, the base is not there or another one, or `output` exists or
            cannot be written.
        ConfigError: There is no such type.
    """
    import torch

    from .adapters import STAGE_FILE, adapter_info, base_of, check_is_new, new_folder
    from .modeling_virst import VirstForVideoSegmentation
    from .rendering import write_json

    if dtype not in (None, *DTYPES):
        raise ConfigError(f"Weights cannot be of type {dtype!r}; expected one of {', '.join(DTYPES)}.")
    history = adapter_info(folder).history
    base = check_model_name(base_of(folder, base))
    check_is_new(output, "model")
    processor = load_processor(folder if (Path(folder) / "processor_config.json").is_file() else base)
    own = load_config(base).dtype
    wanted = own if dtype is None else getattr(torch, dtype)
    # In another type than its own the base would be rounded before the sum, so the sum is held in float32 then.
    held = own if wanted == own else torch.float32
    with clear_weight_errors(f"{folder} or {base}"):
        model = VirstForVideoSegmentation.from_pretrained(folder, base=base, dtype=held or "auto")
    with new_folder(output, "model") as partial:
        model.to(wanted or model.dtype).save_pretrained(partial)
        processor.save_pretrained(partial)
        write_json(partial / STAGE_FILE, {"history": list(history)})
    return Path(output)


@contextmanager
def clear_weight_errors(name: str) -> Iterator[None]:
    """Around reading weights: what safetensors says of a damaged file becomes a `CheckpointError`."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise CheckpointError(
            f"The weights of {name} cannot be read: {error}. Fetch or convert them again."
        ) from error


def pick_device(device: str | None) -> Any:
    """The device to run on.

    Args:
        device (`str`, *optional*): Such as `"cpu"` or `"cuda:1"`; by default the first CUDA device, or else the CPU.

    Returns:
        `torch.device`: The device.

    Raises:
        VirstError: There is no such device.
    """
    import torch

    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (AssertionError, RuntimeError) as error:
        # torch raises AssertionError where it was built without CUDA.
        reason = str(error).split("\n")[0]
        raise VirstError(f"Cannot use the device {device!r}: {reason}") from error
