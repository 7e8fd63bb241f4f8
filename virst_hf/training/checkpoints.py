"""Checkpoints that are whole or not there: written aside, then renamed; and what a run is resumed with.

```
OUT/checkpoint-100/      weights, optimiser, schedule, random states, and run.json: the stage and what was drawn
OUT/.saving/             the one that is being written; removed at the next start if the run was killed
OUT/final/               what the next stage starts from, and `virst segment --model` takes
```
"""

import errno
import json
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
from transformers.utils import logging

from ..data.files import read_json
from ..errors import CheckpointError, ConfigError, DataError
from ..rendering import write_json
from .weights import origin_of, read_weights, same_model, write_weights

__all__ = ["STAGING", "StagedCheckpoints", "find_checkpoint", "move_into_place", "sweep"]

logger = logging.get_logger(__name__)

# Its name is not that of a checkpoint: nothing that looks for one finds it.
STAGING = ".saving"
RUN_FILE, STATE_FILE = "run.json", "trainer_state.json"
# Facts that checkpoints of the first versions do not have.
ADDED_FACTS = ("seed", "model", "fast_resize", "cached_features")
# torch's writer tells of a full disk by a RuntimeError of its own.
TORCH_WRITER = ("PytorchStreamWriter", "unexpected pos", "inline_container", "file write failed", "basic_ios")
# A full disk, a quota, and the largest size of a file.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
        ConfigError: There are later ones than it.
    """
    if wanted is not None:
        check_is_last(output_dir, wanted)
        return str(Path(wanted))
    return get_last_checkpoint(str(output_dir)) if Path(output_dir).is_dir() else None


def check_is_last(output_dir: str | os.PathLike, wanted: str | os.PathLike) -> None:
    """Refuse to go on from a checkpoint where there are later ones: of old and new ones together the lower numbers,
    which are the new ones, would be deleted, and the next start would go on from the old ones.

    Args:
        output_dir (`str` or `os.PathLike`): Folder of the run.
        wanted (`str` or `os.PathLike`): The checkpoint to go on from.

    Raises:
        CheckpointError: It is no checkpoint.
        ConfigError: There are later ones in the folder of the run, or any at all where it is not in that folder.
    """
    folder, wanted = Path(output_dir), Path(wanted)
    try:
        step = json.loads((wanted / STATE_FILE).read_text(encoding="utf-8"))["global_step"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{wanted} is no checkpoint of a run: it has no whole {STATE_FILE} ({error})."
        ) from error
    numbers = [path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")]
    inside = is_same_folder(folder, wanted.parent)
    others = sorted(int(n) for n in numbers if n.isdecimal() and (not inside or int(n) > step))
    if others:
        raise ConfigError(
            f"{output_dir} has {'later' if inside else 'other'} checkpoints than {wanted}: "
            f"{', '.join(f'checkpoint-{n}' for n in others)}. Move them elsewhere, or give another output_dir, to go "
            "on from that one. Without --resume_from_checkpoint the run goes on from its last."
        )


def is_same_folder(one: Path, other: Path) -> bool:
    """Whether two paths are one folder.

    Args:
        one (`pathlib.Path`): A path.
        other (`pathlib.Path`): Another.

    Returns:
        `bool`: Whether both are there, and the same.
    """
    return one.is_dir() and other.is_dir() and os.path.samefile(one, other)


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
        advice = "Make room" if lacks_room(error) else "Mend that"
        raise CheckpointError(
            f"{what} could not be written to {output_dir}: {text}. {advice}, then give the same command again "
            f"({kept})."
        ) from error


def lacks_room(error: BaseException) -> bool:
    """Whether a file could not be written because there was no room for it.

    Args:
        error (`BaseException`): Of the writer, or one that was raised from it.

    Returns:
        `bool`: Whether it says so. torch's writer says only that it could not go on, which is taken for that.
    """
    text = str(error)
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return True
    if isinstance(error, SafetensorError) and any(f"(os error {number})" in text for number in NO_ROOM):
        return True
    if isinstance(error, RuntimeError) and any(part in text for part in TORCH_WRITER):
        return True
    return error.__cause__ is not None and lacks_room(error.__cause__)


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
        if isinstance(found, dict) and name not in found and name in ADDED_FACTS:
            continue
        if before != value and not (name == "model" and isinstance(before, str) and same_model(before, value)):
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
        self._resumed: Path | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """What must be the same when a run goes on."""
        return {
            "stage": self.args.stage,
            "mixture": self.train_dataset.fingerprint(),
            "draws_per_step": self.args.draws_per_step,
            "seed": self.args.seed,
            "model": origin_of(self.model, self.args).name,
            # Both change the pixels. Where the features are kept does not matter.
            "fast_resize": self.args.fast_resize,
            "cached_features": self.args.cache_features is not None,
        }

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> TrainOutput:
        """Train, from a checkpoint of the same run where one is given.

        Raises:
            CheckpointError: A checkpoint cannot be read or written, or is of another run.
            ConfigError: There are later checkpoints than the one that is given.
        """
        if self.args.should_save:
            sweep(self.args.output_dir)
        self.accelerator.wait_for_everyone()
        self._resumed = None
        if resume_from_checkpoint is not None:
            check_is_last(self.args.output_dir, resume_from_checkpoint)
            check_run(resume_from_checkpoint, self.facts)
            self._resumed = Path(resume_from_checkpoint)
        return super().train(resume_from_checkpoint, **kwargs)

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """As the Trainer's. The best checkpoint is beside the one that the run goes on from, and not where its path
        says: the folder may have been moved, or be spelled in another way."""
        counts = super()._init_training_state(*args, **kwargs)
        if self._resumed is not None and self.state.best_global_step:
            folder, best = Path(self.args.output_dir), f"checkpoint-{self.state.best_global_step}"
            folder = folder if is_same_folder(folder, self._resumed.parent) else self._resumed.parent.resolve()
            if (folder / best).is_dir():
                if self.state.best_model_checkpoint is None:  # the Trainer has said that it ignores it
                    logger.warning(f"The best checkpoint was moved with its folder, and is used: {folder / best}")
                self.state.best_model_checkpoint = str(folder / best)
        return counts

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
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        try:
            write_weights(self.model, folder, self.args, self.processing_class, state_dict)
        except CheckpointError as error:
            if not self.is_deepspeed_enabled:
                raise
            # There the Trainer takes a ValueError, which ours is, for weights that were not gathered, and writes again
            # without any: the second error would hide this one.
            raise OSError(str(error)) from error

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        model = self.model if model is None else model
        read_weights(model, resume_from_checkpoint, origin_of(self.model, self.args).base)

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            read_weights(self.model, self.state.best_model_checkpoint, origin_of(self.model, self.args).base)
