"""`VirstTrainer`: the Trainer of Transformers, with the few things that VIRST does otherwise."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ProgressCallback, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from ..data import Mixture, VirstCollator
from ..errors import VirstError
from ..modeling_virst import VirstForVideoSegmentation
from ..processing_virst import VirstProcessor
from .arguments import VirstTrainingArguments
from .checkpoints import StagedCheckpoints
from .ordered_gradients import order_gradients
from .same_modules import check_same_modules
from .step_batches import StepBatches
from .validation import ScoreBar, SplitValidation

__all__ = ["LOSS_PARTS", "VirstTrainer"]

# The terms of Eq. 16, each with its weight: their sum is the loss.
LOSS_PARTS = ("token_loss", "bce_loss", "dice_loss", "occlusion_loss", "iou_loss")


class VirstTrainer(StagedCheckpoints):
    """
    Trains a stage. What differs from [`~transformers.Trainer`]:

    - Draws come in their order, so a resumed run goes on with the next one.
    - Each part of Eq. 16 is logged by name, and J&F of a validation split is measured in evaluations.
    - Checkpoints are written aside and renamed; those of a stage with LoRA hold an adapter folder.
    - A loss or gradient that is no number ends the run before it reaches the weights.

    Args:
        model ([`VirstForVideoSegmentation`]): Prepared by `prepare_model`.
        args ([`VirstTrainingArguments`]): The run.
        processor ([`VirstProcessor`]): Of the model; saved with every checkpoint.
        train_dataset ([`Mixture`]): What is drawn.
        eval_dataset ([`Mixture`], *optional*): For the validation loss.
        validation ([`SplitValidation`], *optional*): Measures J&F.
        callbacks (`Sequence[TrainerCallback]`, *optional*): Further ones.

    Example:

    ```python
    >>> import contextlib, io, tempfile
    >>> from virst_hf.data import ClipTransform, Mixture, load, make_shapes
    >>> from virst_hf.training import VirstTrainer, VirstTrainingArguments, get_stage, prepare_model
    >>> from virst_hf.untrained import untrained_model, untrained_processor
    >>> root, model, processor = tempfile.mkdtemp(), untrained_model(), untrained_processor()
    >>> _ = make_shapes(root, "train", num_videos=1, num_proc=1, progress=False)
    >>> args = VirstTrainingArguments(
    ...     output_dir=tempfile.mkdtemp(), stage="alignment", model="untrained", max_steps=1,
    ...     data=[{"name": "shapes", "root": root}], gradient_accumulation_steps=1, dataloader_num_workers=0,
    ...     logging_strategy="no", save_strategy="no", disable_tqdm=True)
    >>> rows = load("shapes", root, split="train")
    >>> mixture = Mixture([rows], 1, weights={"rvos": 1}, transform=ClipTransform(processor, "anchors"))
    >>> _ = prepare_model(model, get_stage("alignment"))
    >>> with contextlib.redirect_stdout(io.StringIO()):  # the log
    ...     result = VirstTrainer(model, args, processor, mixture).train()
    >>> result.global_step
    1

    ```
    """

    def __init__(
        self,
        model: VirstForVideoSegmentation,
        args: VirstTrainingArguments,
        processor: VirstProcessor,
        train_dataset: Mixture,
        eval_dataset: Mixture | None = None,
        validation: SplitValidation | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        super().__init__(
            model,
            args,
            VirstCollator(processor),
            train_dataset,
            eval_dataset,
            processing_class=processor,
            callbacks=list(callbacks),
        )
        self.validation = validation
        self._parts, self._batches = torch.zeros(len(LOSS_PARTS), device=args.device), 0
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(ScoreBar)
        if self.is_deepspeed_enabled:
            self._fit_deepspeed()

    def _fit_deepspeed(self) -> None:
        """What a mixture needs of DeepSpeed: the processes of a step may have samples of different kinds."""
        if self.accelerator.state.deepspeed_plugin.zero_stage < 3:
            order_gradients(self.model)
            return
        for what, mixture in (("training", self.train_dataset), ("validation", self.eval_dataset)):
            if mixture is not None:
                check_same_modules(what, mixture, self.args.training_stage.supervise, self.processing_class)

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> TrainOutput:
        """Train, from a checkpoint of the same run where one is given.

        Raises:
            VirstError: A loss or gradient is no number, or a checkpoint cannot be read or written.
        """
        try:
            return super().train(resume_from_checkpoint, **kwargs)
        finally:
            # Where a run ends early, its bar would stand in front of the message.
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, ScoreBar) and callback.training_bar is not None:
                    callback.training_bar.close()

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[StepBatches, None]:
        """The micro-batches of a step, read as they are needed; and no count of their tokens, as the loss takes
        none."""
        return StepBatches(epoch_iterator, num_batches), None

    # --- losses ------------------------------------------------------------------------------------------------------
    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """The loss; its parts are added up for the log, and one that is no number is an error."""
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        # A batch without masks has the token loss alone; the others count as zero.
        found = [outputs.get(name) for name in LOSS_PARTS]
        parts = [torch.zeros_like(loss) if part is None else part.detach() for part in found]
        if not bool(loss.isfinite()):
            listed = ", ".join(f"{name} {float(part):.4g}" for name, part in zip(LOSS_PARTS, parts, strict=True))
            self._stop(f"The loss is {float(loss.detach())} ({listed})", model.training)
        if model.training:
            self._parts += torch.stack([part.to(self._parts) for part in parts])
            self._batches += 1
        return (loss, outputs) if return_outputs else loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        # With float16 an infinite gradient is usual: the scaler leaves the step out.
        if norm is not None and not self.args.fp16 and not math.isfinite(float(norm)):
            self._stop(f"The norm of the gradients is {float(norm)}")
        return norm

    def _stop(self, what: str, training: bool = True) -> None:
        step = self.state.global_step
        if not training:
            raise VirstError(
                f"{what} in the validation after step {step}. The checkpoints in {self.args.output_dir} are whole. "
                "Lower learning_rate, or look at the validation data with `virst data doctor`."
            )
        first = step * self.args.draws_per_step
        raise VirstError(
            f"{what} in step {step + 1} (draws {first} to {first + self.args.draws_per_step - 1}). "
            f"The weights were not changed by it, and the checkpoints in {self.args.output_dir} are whole. Lower "
            "learning_rate, or look at the data with `virst data doctor`."
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log; to a line with the training loss its parts are added, averaged over steps and processes like the loss
        itself."""
        if "loss" in logs and self._batches:
            means = self.accelerator.reduce(self._parts / self._batches, reduction="mean").tolist()
            logs |= dict(zip(LOSS_PARTS, means, strict=True))
            self._parts, self._batches = torch.zeros_like(self._parts), 0
        super().log(logs, start_time)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Weights that decay: no norms, no biases, and nothing of one dimension (gates, tokens)."""
        # Under ZeRO-3 a weight is an empty vector here, and `ds_shape` is its shape.
        matrices = {name for name, p in model.named_parameters() if len(getattr(p, "ds_shape", p.shape)) > 1}
        return [name for name in super().get_decay_parameter_names(model) if name in matrices]

    # --- evaluation --------------------------------------------------------------------------------------------------
    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """The validation loss, and J&F with the numbers that belong to it."""
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self.validation is not None:
            with self.accelerator.autocast():
                scores = self.validation(self.model, self.state.global_step)
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in scores.items()})
        return output
