"""Checkpoints that are whole or not there: written aside, then renamed; and what a run is resumed with.

```
OUT/checkpoint-100/      weights, optimiser, schedule, random states, and run.json: the stage and what was drawn
OUT/.saving/             the one that is being written; removed at the next start if the run was killed
OUT/final/               what the next stage starts from, and `virst segment --model` takes
```
"""

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_utils import TrainOutput, get_last_checkpoint, rotate_checkpoints

from ..data.files import read_json
from ..errors import CheckpointError, DataError
from ..rendering import write_json
from .weights import read_weights, write_weights

__all__ = ["STAGING", "StagedCheckpoints", "find_checkpoint", "move_into_place", "sweep"]

# Its name is not that of a checkpoint: nothing that looks for one finds it.
STAGING = ".saving"
RUN_FILE = "run.json"
# torch's writer tells of a full disk by a RuntimeError of its own.
TORCH_WRITER = ("PytorchStreamWriter", "unexpected pos", "inline_container", "file write failed", "basic_ios")


def sweep(output_dir: str | os.PathLike) -> None:
    """Remove what a killed save has left.

    Args:
        output_dir (`str` or `os.PathLike`): Folder of the run.
    """
    shutil.rmtree(Path(output_dir) / STAGING, ignore_errors=True)


def find_checkpoint(output_dir: str | os.PathLike, wanted: str | None = None) -> str | None:
    """The checkpoint that a run goes on from.

    Args:
        output_dir (`str` or `os.PathLike`): Folder of the run.
        wanted (`str`, *optional*): A certain checkpoint (`--resume_from_checkpoint`); the last one when not given.

    Returns:
        `str` or `None`: Its folder; `None` where the run is new.

    Raises:
        CheckpointError: The one that is wanted is none.
    """
    if wanted is not None:
        if not (Path(wanted) / "trainer_state.json").is_file():
            raise CheckpointError(f"{wanted} is no checkpoint of a run: it has no trainer_state.json.")
        return str(Path(wanted))
    return get_last_checkpoint(str(output_dir)) if Path(output_dir).is_dir() else None


def move_into_place(staged: Path, target: Path) -> None:
    """Make a folder that was written aside appear under its name, in one step and with its content on the disk.

    Args:
        staged (`pathlib.Path`): The folder, in the staging folder.
        target (`pathlib.Path`): Its name; a folder that has it is replaced.
    """
    for path in [*staged.rglob("*"), staged]:
        _to_disk(path)
    replaced = staged.parent / f"replaced-{target.name}"
    if target.exists():
        target.rename(replaced)
    staged.rename(target)
    _to_disk(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _to_disk(path: Path) -> None:
    """A rename may reach the disk before the content does, and then a power cut leaves an empty file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot
            raise
    finally:
        os.close(descriptor)


@contextmanager
def explain_failed_save(output_dir: str | os.PathLike, what: str) -> Iterator[None]:
    """Around a save: a full disk or the like becomes one clear error, and nothing half-written stays.

    Args:
        output_dir (`str` or `os.PathLike`): Folder of the run.
        what (`str`): What is being written, for the message.

    Raises:
        CheckpointError: It could not be written.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError, CheckpointError) as error:
        text = " ".join(str(error).split()).rstrip(".")
        if isinstance(error, RuntimeError) and not any(part in text for part in TORCH_WRITER):
            raise
        sweep(output_dir)
        last = get_last_checkpoint(str(output_dir))
        kept = f"{last} is whole" if last else "there is no earlier one"
        raise CheckpointError(
            f"{what} could not be written to {output_dir}: {text}. Make room, then give the same command again "
            f"({kept})."
        ) from error


def note_run(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write down what a checkpoint belongs to.

    Args:
        folder (`pathlib.Path`): The checkpoint.
        facts (`dict`): What must be the same when the run goes on.
    """
    write_json(folder / RUN_FILE, dict(facts))


def check_run(folder: str | os.PathLike, facts: Mapping[str, Any]) -> None:
    """Refuse to go on with other data or another stage: the draws would be others from here on, and nobody would see.

    Args:
        folder (`str` or `os.PathLike`): The checkpoint.
        facts (`dict`): Of the run that is to go on.

    Raises:
        CheckpointError: A fact differs, or the checkpoint is of another program.
    """
    path = Path(folder) / RUN_FILE
    try:
        found = read_json(path)
    except DataError as error:
        raise CheckpointError(f"{folder} is no checkpoint of VirstTrainer: {error}") from error
    for name, value in facts.items():
        before = found.get(name) if isinstance(found, dict) else None
        if before != value:
            raise CheckpointError(
                f"{folder} was written with {name} {before!r}, and this run has {value!r}. Go on with the arguments "
                "of the first run, or choose another output_dir to start a new one."
            )


class StagedCheckpoints(Trainer):
    """
    The Trainer of Transformers, with checkpoints that are whole or not there. Its own methods write them; here they
    are given another folder to write to, which is renamed when all processes are done.

    Args:
        *args, **kwargs: Of [`~transformers.Trainer`]; `args` are [`VirstTrainingArguments`] and the training data a
            [`Mixture`].
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._saving = False

    @property
    def facts(self) -> dict[str, Any]:
        """What must be the same when a run goes on."""
        mixture = self.train_dataset.fingerprint()
        return {"stage": self.args.stage, "mixture": mixture, "draws_per_step": self.args.draws_per_step}

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> TrainOutput:
        """Train, from a checkpoint of the same run where one is given.

        Raises:
            CheckpointError: A checkpoint cannot be read or written, or is of another run.
        """
        if self.args.should_save:
            sweep(self.args.output_dir)
        self.accelerator.wait_for_everyone()
        if resume_from_checkpoint is not None:
            check_run(resume_from_checkpoint, self.facts)
        return super().train(resume_from_checkpoint, **kwargs)

    def _get_output_dir(self, trial: Any = None) -> str:
        folder = super()._get_output_dir(trial)
        return str(Path(folder, STAGING)) if self._saving else folder

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        """As the Trainer's, but in the staging folder; the whole checkpoint then appears at once."""
        folder, name = Path(self.args.output_dir), f"checkpoint-{self.state.global_step}"
        with explain_failed_save(folder, name):
            self._saving = True
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._saving = False
            if self.state.best_global_step == self.state.global_step:
                self.state.best_model_checkpoint = str(folder / name)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self.state.save_to_json(str(folder / STAGING / name / "trainer_state.json"))
                note_run(folder / STAGING / name, self.facts)
                move_into_place(folder / STAGING / name, folder / name)
                sweep(folder)
                rotate_checkpoints(str(folder), self.args.save_total_limit, self.state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()

    def save_final(self) -> Path:
        """Write what the run has learned (with a validation: its best checkpoint) to `final` in the output folder.

        Returns:
            `pathlib.Path`: The folder: an adapter folder after a stage with LoRA, else a full model.
        """
        folder = Path(self.args.output_dir)
        with explain_failed_save(folder, "The final model"):
            self.save_model(str(folder / STAGING / "final"), _internal_call=True)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                move_into_place(folder / STAGING / "final", folder / "final")
                sweep(folder)
        self.accelerator.wait_for_everyone()
        return folder / "final"

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if self.args.should_save:
            write_weights(
                self.model, Path(output_dir or self.args.output_dir), self.args, self.processing_class, state_dict
            )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        read_weights(self.model if model is None else model, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            read_weights(self.model, self.state.best_model_checkpoint)
