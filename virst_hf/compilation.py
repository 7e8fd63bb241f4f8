"""`torch.compile` of the parts that take the time of a segmentation."""

from typing import Any

__all__ = ["CompilationMixin"]

# Parts of the segmenter: SAM's image encoder, and all modules of a step of the tracker.
PARTS = ("image_encoder", "memory_attention", "memory_encoder", "sam_mask_decoder")


class CompilationMixin:
    """Gives [`VirstForVideoSegmentation`] its method `compile_inference`."""

    def compile_inference(self, **options: Any) -> None:
        """Compile SAM's image encoder and the step of the tracker, in place; for `segment`, `stream` and sessions.

        Nothing is compiled before the first call, which takes a minute or more. In the first frames of a video
        the memory grows; from its second length on, code for any length is used. Names of weights and what
        `save_pretrained` writes stay as they were. A copy of the model is not compiled.

        Args:
            **options: Arguments of [`torch.compile`], such as `mode` or `backend`.
        """
        for name in PARTS:
            getattr(self.model.segmenter, name).compile(**options)
