"""Repeats tables 6, 8, 9 and 10 of the paper's supplement at the size of virst-tiny, on Shapes:

    python examples/tiny/replication.py runs/tiny --share 0.5

after `train_tiny.py runs/tiny`. The chains of stages start where prompts have never been turned into masks: from the
parts before `joint`. Each takes the same share of the recipe's steps. What is done is not done again. A row is a file
in `examples/tiny/results`, and `replication_page.py` writes the page in `docs` from them.
"""

import argparse
import json
import multiprocessing
import resource
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from model import tiny_model, tiny_processor
from train_tiny import OCCLUSION_WEIGHT, STAGES, load_encoders, load_language, run, scaled, stage_command

from virst_hf import load_model, load_processor
from virst_hf.adapters import new_folder
from virst_hf.data.shapes_maker import make_shapes
from virst_hf.evaluation import evaluate_model
from virst_hf.rendering import write_json

HERE = Path(__file__).resolve().parent
PROTOCOL = "shapes-test"
KEPT = ("J", "F", "J&F", "no_target_accuracy", "qa_accuracy", "num_videos", "num_expressions")
# Higher than in the recipe: there everything but the encoders was trained together before.
RATES = {"alignment": 1e-3, "few_image": 1e-3, "propagation": 3e-4}
# Videos whose speed is measured, after one that is not.
TIMED = 20


@dataclass(frozen=True)
class Chain:
    """
    Stages one after the other.

    Args:
        stages (`tuple[tuple[str, tuple[str, ...]], ...]`): Each stage, and the stages whose steps it takes.
        changes (`Mapping[str, Mapping[str, Any]]`): What is unlike virst-tiny in the configuration.
    """

    stages: tuple[tuple[str, tuple[str, ...]], ...]
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


THREE = tuple((stage, (stage,)) for stage in STAGES)
CHAINS = {
    "three_stages": Chain(THREE),
    # As in the paper: the first stage gives its steps to the second.
    "without_alignment": Chain((("few_image", ("alignment", "few_image")), ("propagation", ("propagation",)))),
    "propagation_only": Chain((("propagation", tuple(STAGES)),)),
    "without_initial_fusion": Chain(THREE, {"st_fusion_config": {"use_initial_fusion": False}}),
}
# The finished model, run in other ways.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "alpha_2": {},
    "alpha_4": {"anchor_config": {"anchor_stride": 4}},
    "alpha_6": {"anchor_config": {"anchor_stride": 6}},
    "multimask": {"segmenter_config": {"multimask_output": True}},
    "stability": {"segmenter_config": {"dynamic_multimask_via_stability": True}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="that of train_tiny.py")
    parser.add_argument("--share", type=float, default=1.0, help="of the recipe's steps, for each chain of stages")
    parser.add_argument("--videos", type=int, default=200, help="of the test split")
    parser.add_argument("--seed", type=int, default=9001, help="of the test split")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="where the rows go")
    parser.add_argument("--rows", nargs="*", choices=[*CHAINS, *VARIANTS], help="some of them (default: all)")
    args = parser.parse_args()
    rows = Rows(args.folder, args.results, args.share, args.videos, args.seed)
    wanted = args.rows or [*VARIANTS, *CHAINS]
    for name in wanted:
        if name in CHAINS:
            rows.chain(name)
        else:
            rows.variant(name)


class Rows:
    """
    Makes the rows of the tables.

    Args:
        folder (`pathlib.Path`): Folder of the recipe.
        results (`pathlib.Path`): Where the files of the rows go.
        share (`float`): Of the recipe's steps.
        videos (`int`): Videos of the test split.
        seed (`int`): Of the test split.
    """

    def __init__(self, folder: Path, results: Path, share: float, videos: int, seed: int) -> None:
        self.folder, self.results, self.share = folder, results, share
        self.test = folder / f"shapes-{seed}"
        self.facts = {"test_videos": videos, "test_seed": seed}
        if not (self.test / "test").is_dir():
            make_shapes(self.test, "test", videos, seed, num_proc=2)

    def variant(self, name: str) -> None:
        """The finished model with another configuration."""
        model = changed(self.folder / "virst-tiny", self.folder / "replication" / name / "model", VARIANTS[name])
        self.measure(name, model, {"trained": "as virst-tiny"})

    def chain(self, name: str) -> None:
        """Stages from the parts, with the numbers after each."""
        place = self.folder / "replication" / name
        model = changed(parts_together(self.folder), place / "model", CHAINS[name].changes)
        steps: dict[str, int] = {}
        for stage, budget in CHAINS[name].stages:
            steps[stage] = sum(scaled(STAGES[each][1], self.share) for each in budget)
            if not (place / stage / "final").is_dir():
                command = stage_command(stage, self.folder, model, place / stage, RATES[stage], steps[stage])
                run([[*command, "--allow_missing_stage", "true"]])
            model = place / stage / "final"
            self.measure(f"{name}.{stage}", model, {"share": self.share, "steps": dict(steps)})

    def measure(self, name: str, model: Path, facts: Mapping[str, Any]) -> None:
        """Write the file of a row, unless it is there."""
        path = self.results / f"{name}.json"
        if path.is_file():
            return
        output = self.folder / "replication" / "evaluations" / name
        # A process of its own for each row: its peak memory is its own.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, context) as pool:
            numbers = pool.submit(evaluate, str(model), str(self.test), str(output)).result()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"row": name, **self.facts, **facts, **numbers})
        print(f"{name}: J&F {numbers['J&F']:.1f}", flush=True)


def evaluate(model: str, root: str, output: str) -> dict[str, Any]:
    """Numbers of a model on the test split, its speed and peak memory."""
    processor, loaded = load_processor(model), load_model(model, device="cpu")
    speed = frames_a_second(loaded, processor, Path(root))
    # Before scoring, which has memory of its own.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = evaluate_model(PROTOCOL, loaded, processor, root, output, model_name=Path(model).name)
    kept = {name: found[name] for name in KEPT if name in found}
    per_type = {kind: scores["J&F"] for kind, scores in found["per_type"].items()}
    speeds = {"frames_a_second": speed, "peak_memory_mb": peak, "threads": torch.get_num_threads()}
    return {**kept, "per_type": per_type, "controls": found.get("controls"), **speeds}


def frames_a_second(model: Any, processor: Any, root: Path) -> float:
    """Frames that are encoded and segmented in a second, one expression at a time."""
    videos = json.loads((root / "test" / "meta_expressions.json").read_text())["videos"]
    seconds = frames = 0.0
    for number, (name, video) in enumerate(list(videos.items())[: TIMED + 1]):
        inputs = processor(videos=str(root / "test" / "JPEGImages" / name), text=first_expression(video))
        start = time.perf_counter()
        model.segment(**inputs)
        if number:
            seconds += time.perf_counter() - start
            frames += len(video["frames"])
    return frames / seconds


def first_expression(video: Mapping[str, Any]) -> str:
    """The first sentence about a video."""
    return next(iter(video["expressions"].values()))["exp"]


def parts_together(folder: Path) -> Path:
    """The pre-trained model before `joint`: all parts, but no prompt was ever a mask."""
    target = folder / "replication" / "parts"
    if not target.is_dir():
        processor = tiny_processor()
        model = tiny_model(processor)
        load_encoders(model, folder)
        load_language(model, folder)
        model.config.occlusion_loss_weight = OCCLUSION_WEIGHT
        with new_folder(target, "the parts") as partial:
            model.save_pretrained(partial)
            processor.save_pretrained(partial)
    return target


def changed(model: Path, target: Path, changes: Mapping[str, Mapping[str, Any]]) -> Path:
    """A copy of a model with another configuration."""
    if not target.is_dir():
        with new_folder(target, "the copy") as partial:
            shutil.copytree(model, partial, dirs_exist_ok=True)
            config = json.loads((partial / "config.json").read_text())
            for part, values in changes.items():
                config[part] |= values
            write_json(partial / "config.json", config)
    return target


if __name__ == "__main__":
    main()
