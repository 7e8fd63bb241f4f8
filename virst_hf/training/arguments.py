"""The arguments of a training run: those of Transformers, those of VIRST, one YAML file and the command line."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments

from ..errors import ConfigError
from .sources import check_sources
from .stages import TrainingStage, get_stage

__all__ = ["TrainingArgumentParser", "Validation", "VirstTrainingArguments"]

PATHS = ("model", "output_dir", "data_root", "cache_features", "resume_from_checkpoint")


@dataclass(frozen=True)
class Validation:
    """
    What is looked at during training.

    Args:
        protocol (`str`, *optional*): Protocol of `virst evaluate` whose J&F is measured, such as `"shapes-valid"`.
        root (`str`, *optional*): Folder of the protocol's data set.
        split (`str`, *optional*): Split, for a protocol that states none (`own`).
        videos (`int`, *optional*): Only the first videos; all of them when not given.
        data (`list[dict]`, *optional*): Sources, as of the training, for the validation loss. When not given, the loss
            is computed on the videos of the protocol.
        samples (`int`, *optional*, defaults to 32): How many draws the validation loss is averaged over.

    Raises:
        ConfigError: Neither a protocol with its root nor data are given, or a number is too small.

    Example:

    ```python
    >>> from virst_hf.training.arguments import Validation
    >>> Validation(protocol="shapes-valid", root="data/shapes", videos=20).metric
    'J&F'

    ```
    """

    protocol: str | None = None
    root: str | None = None
    split: str | None = None
    videos: int | None = None
    data: list[dict[str, Any]] | None = None
    samples: int = 32

    def __post_init__(self) -> None:
        for name in ("protocol", "root", "split"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str | os.PathLike):
                raise ConfigError(f"validation: {name} must be a text, found {value!r}.")
        if self.data is not None:
            check_sources("validation data", self.data)
        if self.protocol is None and not self.data:
            raise ConfigError("validation needs a protocol with its root, or data for the loss; found neither.")
        if self.protocol is not None and self.root is None:
            raise ConfigError(f"validation with the protocol {self.protocol} needs the root of its data set.")
        for name in ("videos", "samples"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigError(f"validation: {name} must be a whole number of at least 1, found {value!r}.")

    @property
    def metric(self) -> str:
        """Name of the number by which the best checkpoint is chosen: `"J&F"`, or `"loss"` without a protocol."""
        return "loss" if self.protocol is None else "J&F"


@dataclass
class VirstTrainingArguments(TrainingArguments):
    """
    Arguments of [`VirstTrainer`]: all of [`~transformers.TrainingArguments`], and those of VIRST. What is not given
    takes the values of supplement A, as the stage states them.

    Args:
        stage (`str`): `"alignment"`, `"few_image"` or `"propagation"`.
        model (`str`): What training starts from: a folder (a full model, or what the last stage wrote) or a name on
            the Hub.
        data (`list[dict]`): Sources: `name` (of `virst data list`), `root`, and, where needed, `split` (`"train"` when
            not given), `config`, options of the set such as `follow_links`, and `weight`, its share inside its
            category (by the number of rows when no source has one; all of them need one or none).
        data_root (`str`, *optional*): Folder that relative roots are in.
        weights (`dict[str, float]`, *optional*): How often each category is drawn; [4, 3, 1, 12, 1] of the paper, for
            the categories that the data have, when not given.
        expressions_per_clip (`int`, *optional*, defaults to 1): Expressions about one video that share its features.
        fast_resize (`bool`, *optional*, defaults to `False`): Resize frames faster and a little differently, see
            [`ClipTransform`].
        validation (`dict`, *optional*): Fields of [`Validation`], or a list of sources for the validation loss alone.
        allow_missing_stage (`bool`, *optional*, defaults to `False`): Start although the stage before was not run.
        cache_features (`str`, *optional*): Folder for features of the frozen encoders, for small runs.
        load_in_4bit (`bool`, *optional*, defaults to `False`): Hold the frozen language model in 4 bits (bitsandbytes,
            needs a GPU).

    Raises:
        ConfigError: An argument is missing, unknown or makes no sense.
    """

    stage: str | None = field(default=None, metadata={"help": "alignment, few_image or propagation"})
    model: str | None = field(default=None, metadata={"help": "folder or Hub name that training starts from"})
    data: list | str | None = field(default=None, metadata={"help": "sources: a list in YAML, or JSON"})
    data_root: str | None = field(default=None, metadata={"help": "folder that relative roots are in"})
    weights: dict | str | None = field(default=None, metadata={"help": "category -> weight, or JSON"})
    expressions_per_clip: int = field(default=1, metadata={"help": "expressions that share the frames of a draw"})
    fast_resize: bool = field(default=False, metadata={"help": "resize by torch instead of Pillow"})
    validation: dict | str | None = field(default=None, metadata={"help": "protocol, root, videos, ..., or JSON"})
    allow_missing_stage: bool = field(default=False, metadata={"help": "start without the stage before"})
    cache_features: str | None = field(default=None, metadata={"help": "folder for features of frozen encoders"})
    load_in_4bit: bool = field(default=False, metadata={"help": "4-bit language model (needs a GPU)"})

    # Set by the stage, when not given.
    learning_rate: float | None = field(default=None, metadata={"help": "by the stage when not given"})
    lr_scheduler_type: str | None = field(default=None, metadata={"help": "by the stage when not given"})
    warmup_steps: float | None = field(default=None, metadata={"help": "by the stage when not given"})
    # Set by the machine and by `validation`, when not given.
    bf16: bool | None = field(default=None, metadata={"help": "bfloat16; where the GPU has it when not given"})
    eval_strategy: str | None = field(default=None, metadata={"help": "steps where there is a validation"})
    eval_steps: float | None = field(default=None, metadata={"help": "as often as checkpoints when not given"})
    load_best_model_at_end: bool | None = field(default=None, metadata={"help": "on where there is a validation"})

    # Supplement A.
    per_device_train_batch_size: int = field(default=1, metadata={"help": "videos of a micro-batch"})
    gradient_accumulation_steps: int = field(default=16, metadata={"help": "micro-batches of a step"})
    per_device_eval_batch_size: int = field(default=1, metadata={"help": "videos of a batch of the validation loss"})
    # Draw k depends on the seed and k alone: in their order, a resumed run only has to count.
    train_sampling_strategy: str = field(default="sequential", metadata={"help": "leave it: draws come in order"})
    # A batch without masks leaves the mask modules without gradient.
    ddp_find_unused_parameters: bool | None = field(default=True, metadata={"help": "needed: not all are used"})
    remove_unused_columns: bool = field(default=False, metadata={"help": "leave it: samples are no columns"})
    # A NaN is an error here, and not to be filtered out of the log.
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "leave it: NaN ends the run"})
    logging_steps: float = field(default=10, metadata={"help": "steps between two lines of the log"})
    save_total_limit: int | None = field(default=2, metadata={"help": "checkpoints that are kept, the best included"})
    dataloader_num_workers: int = field(default=2, metadata={"help": "processes that read and resize frames"})

    def __post_init__(self) -> None:
        for name in ("data", "weights", "validation"):
            setattr(self, name, _from_json(name, getattr(self, name)))
        self._check()
        stage = self.training_stage
        for name in ("learning_rate", "lr_scheduler_type", "warmup_steps"):
            if getattr(self, name) is None:
                setattr(self, name, getattr(stage, name))
        if not torch.accelerator.is_available():
            self.use_cpu = True  # else accelerate takes the backend of GPUs for several processes
        if self.bf16 is None:
            self.bf16 = not self.use_cpu and not self.fp16 and torch.cuda.is_available() and _has_bf16()
        if isinstance(self.validation, list):
            self.validation = {"data": self.validation}
        plan = self.validation_plan
        if self.eval_strategy is None:
            self.eval_strategy = "no" if plan is None else "steps"
        if self.eval_steps is None:
            self.eval_steps = self.save_steps
        evaluates = plan is not None and str(getattr(self.eval_strategy, "value", self.eval_strategy)) != "no"
        if self.load_best_model_at_end is None:
            self.load_best_model_at_end = evaluates
        if self.metric_for_best_model is None and evaluates:
            self.metric_for_best_model = plan.metric
        if evaluates and self.load_best_model_at_end:
            self._check_best()
        self.label_names = self.label_names or ["labels"]
        super().__post_init__()
        # Plain `python` on a machine with several GPUs: one is used. DataParallel cannot split lists of masks.
        self._n_gpu = min(self._n_gpu, 1)

    def _check(self) -> None:
        """What Transformers does not know of."""
        for name, meaning in (("stage", "the stage"), ("model", "what it starts from"), ("data", "its sources")):
            if not getattr(self, name):
                raise ConfigError(f"A training run needs {name} ({meaning}), found none. Set it in the YAML file.")
        for name in ("stage", *PATHS):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str | os.PathLike):
                raise ConfigError(f"{name} must be a text, found {value!r}.")
            if value is not None and name in PATHS:
                setattr(self, name, os.path.expanduser(value))
        check_sources("data", self.data)
        if self.weights is not None and not isinstance(self.weights, Mapping):
            raise ConfigError(f"weights must be a mapping of category to number, found {self.weights!r}.")
        if self.max_steps < 1:
            raise ConfigError(
                f"max_steps must be at least 1, found {self.max_steps}: a mixture has no end of its own."
            )
        for name in ("gradient_accumulation_steps", "per_device_train_batch_size", "expressions_per_clip"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, found {getattr(self, name)}.")
        if self.load_in_4bit and not torch.cuda.is_available():
            raise ConfigError("load_in_4bit needs a CUDA device, and there is none here. Leave it out.")

    def _check_best(self) -> None:
        """The best checkpoint can be kept only if there is one of each step that is evaluated."""
        evaluates, saves = (str(getattr(x, "value", x)) for x in (self.eval_strategy, self.save_strategy))
        if evaluates == saves == "steps" and self.eval_steps != self.save_steps:
            raise ConfigError(
                f"eval_steps is {self.eval_steps:g} and save_steps is {self.save_steps:g}: give both the same value, "
                "or the best of the evaluated models may not be among those that are saved. For evaluations without "
                "a best checkpoint: load_best_model_at_end: false."
            )

    @property
    def training_stage(self) -> TrainingStage:
        """The stage of that name."""
        return get_stage(self.stage)

    @property
    def validation_plan(self) -> Validation | None:
        """What is looked at during training, if anything."""
        if not self.validation:
            return None
        if not isinstance(self.validation, Mapping):
            raise ConfigError(f"validation must be a mapping or a list of sources, found {self.validation!r}.")
        known = [entry.name for entry in fields(Validation)]
        for name in self.validation:
            if name not in known:
                raise ConfigError(f"validation has no {name!r}{_guess(str(name), known)}; it has {', '.join(known)}.")
        return Validation(**self.validation)

    @property
    def draws_per_step(self) -> int:
        """Draws of the mixture that go into one step of the optimiser, of all processes together."""
        return self.train_batch_size * self.gradient_accumulation_steps * self.world_size

    def path(self, root: str | os.PathLike) -> Path:
        """A root as the data sets take it: relative ones are in `data_root`.

        Args:
            root (`str` or `os.PathLike`): As given.

        Returns:
            `pathlib.Path`: The folder.
        """
        return Path(self.data_root or "").expanduser() / Path(root).expanduser()


class TrainingArgumentParser(HfArgumentParser):
    """
    The command line of a training run: `--config FILE.yaml`, and every key of the file as an option that overrides it.

    Example:

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> from virst_hf.training.arguments import TrainingArgumentParser
    >>> path = Path(tempfile.mkdtemp()) / "run.yaml"
    >>> _ = path.write_text("stage: alignment\\nmodel: base\\ndata: [{name: own, root: mine}]\\nlearning_rate: 2e-4")
    >>> args = TrainingArgumentParser().parse(["--config", str(path), "--max_steps", "4", "--output_dir", "run"])
    >>> args.learning_rate, args.max_steps, args.lr_scheduler_type.value
    (0.0002, 4, 'constant_with_warmup')

    ```
    """

    def __init__(self) -> None:
        super().__init__(VirstTrainingArguments, allow_abbrev=False)
        self.add_argument("--config", metavar="FILE", help="YAML file with any of the options below")

    def error(self, message: str) -> NoReturn:
        """A usage error is one line, like any other bad input."""
        raise ConfigError(f"{message[:1].upper()}{message[1:]}. The options: --help.")

    def parse(self, argv: Sequence[str] | None = None) -> VirstTrainingArguments:
        """Read the file and the command line.

        Args:
            argv (`Sequence[str]`, *optional*): Arguments; by default those of the process.

        Returns:
            [`VirstTrainingArguments`]: All of them.

        Raises:
            ConfigError: The file cannot be read, or an argument is unknown or makes no sense.
        """
        given, others = self.parse_known_args(argv)
        if others:
            self.error(f"unknown option {others[0]}{_guess(others[0].lstrip('-'), self._known())}")
        if given.config is not None:
            given = self.parse_args([*self._options(Path(given.config).expanduser()), *(self._argv(argv))])
        values = {name: value for name, value in vars(given).items() if name != "config"}
        try:
            return VirstTrainingArguments(**values)
        except ConfigError:
            raise
        # Transformers raises these for values that do not fit together.
        except (ValueError, TypeError) as error:
            raise ConfigError(" ".join(str(error).split())) from error

    @staticmethod
    def _argv(argv: Sequence[str] | None) -> list[str]:
        import sys

        return list(sys.argv[1:] if argv is None else argv)

    def _known(self) -> list[str]:
        return [entry.name for entry in fields(VirstTrainingArguments) if entry.init]

    def _options(self, path: Path) -> list[str]:
        """The file as options, so that its values become what those of the command line do: 2e-4 is a string to YAML,
        and `max_steps: many` is an error either way. Lists and mappings, and null, are taken as they are."""
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(content, dict):
            raise ConfigError(f"{path} must hold `key: value` lines, found a {type(content).__name__}.")
        known, options = self._known(), []
        # Not by `fields`: the parser of Transformers writes other types there.
        types = {name: str(kind) for name, kind in get_type_hints(VirstTrainingArguments).items()}
        structured = {name for name, kind in types.items() if "list" in kind or "dict" in kind}
        for key, value in content.items():
            if key not in known:
                raise ConfigError(f"{path} has the unknown key {key!r}{_guess(str(key), known)}.")
            if isinstance(value, list | dict) and key not in structured:
                raise ConfigError(f"{path}: {key} takes one value, found the {type(value).__name__} {value!r}.")
            if value is None or isinstance(value, list | dict):
                self.set_defaults(**{key: value})
            else:
                options.append(f"--{key}={str(value).lower() if isinstance(value, bool) else value}")
        return options


def _guess(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, 1)
    return f" (did you mean {near[0]}?)" if near else ""


def _from_json(name: str, value: Any) -> Any:
    """A list or mapping that came from the command line."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ConfigError(f"{name} must be JSON on the command line, found {value!r}: {error}.") from error


def _has_bf16() -> bool:
    return torch.cuda.is_bf16_supported()
