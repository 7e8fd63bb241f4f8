"""`torch.compile` of the parts that take the time of a segmentation."""

import os
import shutil
from typing import Any

from .errors import ConfigError

__all__ = ["CompilationMixin"]

# Parts of the segmenter: SAM's image encoder, and all modules of a step of the tracker.
PARTS = ("image_encoder", "memory_attention", "memory_encoder", "sam_mask_decoder")

# What inductor compiles with on a CPU, unless the variable CXX names another.
COMPILERS = ("g++", "clang++", "c++", "cl")


class CompilationMixin:
    """Gives [`VirstForVideoSegmentation`] its method `compile_inference`."""

    def compile_inference(self, **options: Any) -> None:
        """Compile SAM's image encoder and the step of the tracker, in place; for `segment`, `stream` and sessions.

        Nothing is compiled before the first call, which takes a minute or more. In the first frames of a video
        the memory grows; from its second length on, code for any length is used. Names of weights and what
        `save_pretrained` writes stay as they were. A copy of the model is not compiled.

        Args:
            **options: Arguments of [`torch.compile`], such as `mode` or `backend`.

        Raises:
            ConfigError: There is no C++ compiler, which `torch.compile` needs on a CPU.
        """
        needed = self.device.type == "cpu" and options.get("backend", "inductor") == "inductor"
        if needed and not os.environ.get("CXX") and not any(map(shutil.which, COMPILERS)):
            raise ConfigError(
                f"Compiling for a CPU needs a C++ compiler, and none of {', '.join(COMPILERS)} is here: install one, "
                "or run without it."
            )
        for name in PARTS:
            getattr(self.model.segmenter, name).compile(**options)
