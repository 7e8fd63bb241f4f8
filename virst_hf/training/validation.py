"""J&F on a validation split while a model trains, by a protocol of `virst evaluate` and without files in between."""

import dataclasses
from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object
from tqdm import tqdm
from transformers import ProgressCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from ..errors import ConfigError, EvaluationError
from ..evaluation import get_protocol
from ..evaluation.runner import RunOptions, predict_unit, shard_units
from ..evaluation.samples import MASKS, Unit, load_samples
from ..evaluation.scoring import score_unit
from ..evaluation.summary import summarise
from ..evaluation.tracks import object_tracks
from ..rendering import write_json
from .arguments import VirstTrainingArguments

if TYPE_CHECKING:
    from datasets import Dataset

    from ..modeling_virst import VirstForVideoSegmentation
    from ..processing_virst import VirstProcessor

__all__ = ["ScoreBar", "SplitValidation"]

logger = logging.get_logger(__name__)

# What goes into the log; the rest is in the file of the step.
SHOWN = ("J&F", "J", "F", "gIoU", "cIoU", "no_target_accuracy", "qa_accuracy")


class SplitValidation:
    """
    Measures J&F on the videos of a protocol. Every process calls it, with the same weights; each takes its share of
    the videos. The numbers are those of `virst evaluate --limit` on the same model.

    Args:
        args ([`VirstTrainingArguments`]): With a validation that names a protocol.
        processor ([`VirstProcessor`]): Of the model.

    Raises:
        ConfigError: The run uses ZeRO-3.
        EvaluationError: There is no such protocol, its masks are with a server, or there is nothing to evaluate.
        DataError: Its data are missing or have a defect.
    """

    def __init__(self, args: VirstTrainingArguments, processor: "VirstProcessor") -> None:
        plan = args.validation_plan
        protocol = get_protocol(plan.protocol)
        if protocol.server:
            raise EvaluationError(
                f"{protocol.name} cannot be measured during training: only its server has the masks."
            )
        config = getattr(args, "hf_deepspeed_config", None)
        if config is not None and config.is_zero3():
            # A layer is gathered by all processes together, and here each looks at videos of its own.
            raise ConfigError(
                "J&F cannot be measured during training with ZeRO-3. Give the validation data instead of a protocol, "
                "for the loss, or train with ZeRO-2."
            )
        with args.main_process_first(desc="validation split"):
            samples = load_samples(protocol, args.path(plan.root), split=plan.split, limit=plan.videos)
        # Controls need no model, so they would be the same numbers each time.
        self.protocol = dataclasses.replace(samples.protocol, control_predictions=False)
        self.samples, self.args, self.processor = samples, args, processor

    @property
    def rows(self) -> "Dataset":
        """Records of the videos that are looked at, for the validation loss."""
        return self.samples.dataset.select([index for unit in self.samples.units for index in unit.indices])

    def __call__(self, model: "VirstForVideoSegmentation", step: int) -> dict[str, float]:
        """Measure.

        Args:
            model ([`VirstForVideoSegmentation`]): On its device; it is put into evaluation mode.
            step (`int`): Step of the training: all numbers go to `validation/step-STEP.json` in its output folder.

        Returns:
            `dict[str, float]`: `J&F`, `J` and `F` (0 to 100), shares (0 to 1) where there is something to count, and
            `failures`, the number of samples that failed.
        """
        model.eval()
        mine = shard_units(self.samples.units, self.args.world_size)[self.args.process_index]
        quiet = self.args.disable_tqdm or self.args.process_index > 0
        bar = tqdm(mine, desc=self.protocol.name, unit="video", leave=False, disable=quiet)
        records = [record for unit in bar for record in self._score(model, unit)]
        if self.args.world_size > 1:
            records = gather_object(records)
        summary = summarise(self.protocol, records)
        failures = summary["failures"]
        if self.args.process_index == 0:
            folder = f"{self.args.output_dir}/validation"
            write_json(f"{folder}/step-{step:06d}.json", {"step": step, "protocol": self.protocol.name, **summary})
            if failures:
                logger.warning(f"{len(failures)} samples of the validation failed: {failures[0]['error']}")
        return {name: summary[name] for name in SHOWN if name in summary} | {"failures": len(failures)}

    def _score(self, model: "VirstForVideoSegmentation", unit: Unit) -> list[dict[str, Any]]:
        """Records of one video."""
        results = predict_unit(unit, self.samples.rows(unit, with_masks=False), model, self.processor, RunOptions())
        rows = self.samples.rows(unit)
        wanted = self.protocol.averaging == "group_mean" and unit.kind == MASKS
        content = {"height": rows[0]["height"], "width": rows[0]["width"], "expressions": results}
        return score_unit(self.protocol, unit, rows, content, object_tracks(rows) if wanted else {})


class ScoreBar(ProgressCallback):
    """The progress bar, with the last and the best score behind it, so that one sees whether a model learns."""

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Show the score of an evaluation."""
        super().on_evaluate(args, state, control, **kwargs)
        metrics = kwargs.get("metrics") or {}
        name = next((name for name in ("J&F", "loss") if f"eval_{name}" in metrics), None)
        if self.training_bar is None or name is None:
            return
        # From the log, which a resumed run has too.
        shown = [float(entry[f"eval_{name}"]) for entry in state.log_history if f"eval_{name}" in entry]
        best = min(shown) if name == "loss" else max(shown)
        self.training_bar.set_postfix_str(f"{name} {shown[-1]:.4g}, best {best:.4g}")
