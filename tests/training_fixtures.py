"""A small model, made-up videos and a YAML file: what `examples/train.py` needs to run in seconds."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import yaml

from virst_hf.data import make_shapes
from virst_hf.untrained import make_untrained_model

ROOT = Path(__file__).parents[1]
CATEGORIES = ("rvos", "referring_image", "reasoning_image", "semantic_segmentation", "video_qa")


@dataclass(frozen=True)
class Workspace:
    """A folder with a model, a data set and the cache of its Arrow copies."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def shapes(self) -> Path:
        return self.folder / "shapes"

    def sources(self, *categories: str) -> list[dict]:
        return [{"name": "shapes", "root": "shapes", "config": category} for category in categories or CATEGORIES]

    def values(self, output: Path, **changes) -> dict:
        """Values of a short run."""
        values = {
            "stage": "alignment",
            "model": str(self.model),
            "data_root": str(self.folder),
            "data": self.sources(),
            "output_dir": str(output),
            "max_steps": 4,
            "gradient_accumulation_steps": 1,
            "learning_rate": 1e-3,
            "warmup_steps": 0,
            "save_steps": 2,
            "logging_steps": 1,
            "dataloader_num_workers": 0,
            "seed": 3,
        }
        return {**values, **changes}

    def config(self, output: Path, **changes) -> Path:
        """The same as a file; it is named after the folder of the run."""
        path = output.with_suffix(".yaml")
        path.write_text(yaml.safe_dump(self.values(output, **changes)), encoding="utf-8")
        return path

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "HF_DATASETS_CACHE": str(self.folder / "cache"),
            "OMP_NUM_THREADS": "1",
        }

    def start(self, *command: str, script: str = str(ROOT / "examples" / "train.py")) -> subprocess.Popen:
        """Run a script in a process of its own."""
        return subprocess.Popen(
            [sys.executable, script, *command],
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def make_workspace(folder: Path, videos: int = 3) -> Workspace:
    """Make the model and two splits."""
    make_untrained_model(folder / "model")
    for split in ("train", "valid"):
        make_shapes(folder / "shapes", split, videos, num_proc=1, progress=False)
    return Workspace(folder)


def example() -> ModuleType:
    """`examples/train.py` as a module."""
    spec = importlib.util.spec_from_file_location("virst_train_example", ROOT / "examples" / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def log_of(output: Path) -> list[dict]:
    """The log of the last checkpoint of a run."""
    last = max(output.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return json.loads((last / "trainer_state.json").read_text())["log_history"]


def losses(log: list[dict]) -> list[float]:
    return [entry["loss"] for entry in log if "loss" in entry]
