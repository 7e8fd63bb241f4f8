"""Named ways to run a model: `exact`, as in the paper, and `fast`; what they are made of may be set one by one."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from .errors import ConfigError
from .modules.tracker import EXACT, TrackingOptions

if TYPE_CHECKING:
    from .modeling_virst import VirstForVideoSegmentation

__all__ = ["FAST", "PRESETS", "InferencePreset", "get_preset"]

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class InferencePreset:
    """
    How a model is run.

    Args:
        tracking ([`TrackingOptions`], *optional*): For `segment`, `stream`, [`VirstSession`] and `RunOptions`.
        dtype (`str`, *optional*): `"float32"`, `"bfloat16"` or `"float16"`, of all weights; as saved when not given.
        encoder_dtype (`str`, *optional*): That of SAM's image encoder alone, which is most of the work.

    Raises:
        ConfigError: There is no such type.

    Example:

    ```python
    >>> from virst_hf import FAST, InferencePreset
    >>> from virst_hf.untrained import untrained_model
    >>> FAST.prepare(untrained_model()).dtype
    torch.bfloat16
    >>> model = InferencePreset(encoder_dtype="bfloat16").prepare(untrained_model())
    >>> model.dtype, next(model.model.segmenter.image_encoder.parameters()).dtype
    (torch.float32, torch.bfloat16)

    ```
    """

    tracking: TrackingOptions = EXACT
    dtype: str | None = None
    encoder_dtype: str | None = None

    def __post_init__(self) -> None:
        for name in ("dtype", "encoder_dtype"):
            if getattr(self, name) not in (None, *DTYPES):
                raise ConfigError(
                    f"{name} cannot be {getattr(self, name)!r}; expected one of {', '.join(DTYPES)}, or nothing."
                )

    def prepare(self, model: "VirstForVideoSegmentation") -> "VirstForVideoSegmentation":
        """Cast a model, in place, to the types of the preset.

        Args:
            model ([`VirstForVideoSegmentation`]): The model. Of a quantized one the language model stays as it is.

        Returns:
            [`VirstForVideoSegmentation`]: The same model.
        """
        if self.dtype is not None:
            parts = [model]
            if getattr(model, "is_quantized", False):
                parts = [part for name, part in model.model.named_children() if name != "language_model"]
            for part in parts:
                part.to(getattr(torch, self.dtype))
        if self.encoder_dtype is not None:
            model.model.segmenter.image_encoder.to(getattr(torch, self.encoder_dtype))
        return model


# All weights in bfloat16, in which recent CPUs and GPUs calculate themselves: it costs next to nothing in J&F. Pooled
# memories would be faster still, but cost 1.6 points on Shapes; frames that are skipped cost where something moves.
FAST = InferencePreset(dtype="bfloat16")
PRESETS: Mapping[str, InferencePreset] = MappingProxyType({"exact": InferencePreset(), "fast": FAST})


def get_preset(name: str) -> InferencePreset:
    """A preset by its name.

    Args:
        name (`str`): A key of `PRESETS`.

    Returns:
        [`InferencePreset`]: The preset.

    Raises:
        ConfigError: There is no preset of that name.
    """
    if name not in PRESETS:
        raise ConfigError(f"There is no preset {name!r}; there are {', '.join(PRESETS)}.")
    return PRESETS[name]
