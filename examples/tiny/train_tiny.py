"""Trains virst-tiny from nothing, on two CPU cores:

    python examples/tiny/train_tiny.py runs/tiny

First come the parts that would otherwise be VideoChat-Flash and SAM 2.1: tower and segmenter side by side, then the
language model with both fusions. Then come the three stages of the paper, by `examples/train.py` as for any model.
What is done is not done again: after Ctrl-C, or kill, the same command goes on. The model is in
`runs/tiny/virst-tiny`.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from clips import Clips, add_false_relations, make_clips
from encoded import EncodedClips, write_maps, write_tokens
from joint import JointTraining
from language import LanguageTraining
from loop import pretrain
from model import tiny_model, tiny_processor
from segmenter import SegmenterTraining
from torch import distributed, nn
from tower import TowerTraining

from virst_hf import VirstForVideoSegmentation
from virst_hf.adapters import new_folder
from virst_hf.data.shapes_maker import make_shapes
from virst_hf.loading import merge_adapter

HERE = Path(__file__).resolve().parent
PARTS = ("tower", "segmenter", "tracking", "maps", "language", "joint", "relations")
# Learning rate and steps of each stage; all else is in stages.yaml.
STAGES = {"alignment": (3e-4, 120), "few_image": (3e-4, 300), "propagation": (3e-4, 400)}
CLIPS = {"train": 8000, "held_out": 200}
STEPS = {"tower": 2400, "segmenter": 2600, "tracking": 1200, "language": 3000, "joint": 1600, "relations": 400}
# Videos on disk for the stages: the training split of Shapes, of another seed than its default.
VIDEOS, SEED = 800, 7
# Whose matrices Muon trains, of tower and segmenter.
TRUNK = ("trunk.blocks", "transformer", "memory_attention", "mlp")
# The same of the language model and the fusions, by their names in both parts.
BLOCKS = ("text.layers", "language_model.layers", "fusion.", "prompter.", "prompt_decoder.")
# From the false relations on; 0.05 in the paper. Of a sentence that fits nothing, as one in six, it is the only term.
OCCLUSION_WEIGHT = 0.5
# Of AdamW and of Muon, where everything has learned something already.
JOINT_RATES, RELATION_RATES = (5e-4, 1e-3), (3e-4, 6e-4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where everything goes; about 16 GB while it runs")
    parser.add_argument("--scale", type=float, default=1.0, help="share of clips, videos and steps, for a quick try")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        run_part(args.part, args.folder, args.scale)
    else:
        train(args.folder, args.scale)


def train(folder: Path, scale: float) -> None:
    """Everything, in order."""
    start = time.monotonic()
    for name, count in CLIPS.items():
        make_clips(folder / "clips", name, scaled(count, scale))
    run([part_command(part, folder, scale) for part in ("tower", "segmenter")])
    run([part_command(part, folder, scale) for part in ("tracking", "maps")])
    run([part_command("language", folder, scale, processes=2)])
    run([part_command("joint", folder, scale, processes=2)])
    run([part_command("relations", folder, scale, processes=2)])
    pretrained = join(folder)
    if not (folder / "shapes" / "train").is_dir():
        make_shapes(folder / "shapes", "train", scaled(VIDEOS, scale), SEED, num_proc=2)
    add_false_relations(folder / "shapes", "train", SEED)
    model = pretrained
    for stage, (rate, steps) in STAGES.items():
        if not (folder / stage / "final").is_dir():
            run([stage_command(stage, folder, model, folder / stage, rate, scaled(steps, scale))])
        model = folder / stage / "final"
    if not (folder / "virst-tiny").is_dir():
        finish(model, pretrained, folder / "virst-tiny")
    minutes = (time.monotonic() - start) / 60
    print(f"The model is in {folder / 'virst-tiny'}; this call took {minutes:.0f} minutes.")


def scaled(count: int, scale: float) -> int:
    """A share of a number, at least two."""
    return max(2, round(count * scale))


def part_command(part: str, folder: Path, scale: float, processes: int = 1) -> list[str]:
    """Command of a part of the pre-training."""
    return _python(processes) + [__file__, str(folder), "--part", part, "--scale", str(scale)]


def stage_command(stage: str, folder: Path, model: Path, output: Path, rate: float, steps: int) -> list[str]:
    """Command of a stage of the paper: by the example that trains any model."""
    command = [str(HERE.parent / "train.py"), "--config", str(HERE / "stages.yaml"), "--stage", stage]
    command += ["--model", str(model), "--data_root", str(folder), "--output_dir", str(output)]
    command += ["--learning_rate", str(rate), "--max_steps", str(steps)]
    return _python(processes=2) + command


def _python(processes: int) -> list[str]:
    if processes == 1:
        return [sys.executable]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]


def run(commands: Sequence[Sequence[str]]) -> None:
    """Run commands side by side, in processes of one thread each."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with ThreadPoolExecutor() as pool:
        codes = list(pool.map(lambda command: subprocess.call(command, env=environment), commands))
    for command, code in zip(commands, codes, strict=True):
        if code:
            sys.exit(f"train_tiny.py: {' '.join(command)} ended with code {code}")


def run_part(part: str, folder: Path, scale: float) -> None:
    """A part of the pre-training, in a process of its own."""
    clips = folder / "clips"
    torch.manual_seed(0)
    processor = tiny_processor()
    model = tiny_model(processor)
    steps = scaled(STEPS.get(part, 0), scale)
    if part == "tower":
        tower = TowerTraining(model, Clips(clips, "train"), Clips(clips, "held_out"))
        pretrain(folder, part, tower.parts, tower.losses, tower.scores, steps, lambda name: "blocks" in name)
        for name in CLIPS:
            write_tokens(clips, name, model.model.vision_tower)
    elif part in ("segmenter", "tracking"):
        if part == "tracking":
            load_part(folder, "segmenter", "segmenter", model.model.segmenter)
        segmenter = SegmenterTraining(
            model, Clips(clips, "train"), Clips(clips, "held_out"), tracking=part == "tracking"
        )
        pretrain(folder, part, segmenter.parts, segmenter.losses, segmenter.scores, steps, _in_trunk)
    elif part == "maps":
        load_part(folder, "segmenter", "segmenter", model.model.segmenter)
        for name in CLIPS:
            write_maps(clips, name, model.model.segmenter)
    else:
        distributed.init_process_group("gloo")
        train_set, held_out = EncodedClips(clips, "train"), EncodedClips(clips, "held_out")
        if part == "language":
            language = LanguageTraining(model, processor, train_set, held_out)
            pretrain(folder, part, language.parts, language.losses, language.scores, steps, _in_blocks)
        elif part == "joint":
            load_encoders(model, folder)
            load_language(model, folder)
            whole = JointTraining(model, processor, train_set, held_out)
            pretrain(folder, part, whole.parts, whole.losses, whole.scores, steps, _in_blocks, *JOINT_RATES)
        else:
            load_part(folder, "joint", "model", model)
            model.config.occlusion_loss_weight = OCCLUSION_WEIGHT
            whole = JointTraining(model, processor, train_set, held_out, false_relations=True)
            pretrain(folder, part, whole.parts, whole.losses, whole.scores, steps, _in_blocks, *RELATION_RATES)
        distributed.destroy_process_group()


def _in_trunk(name: str) -> bool:
    return any(part in name for part in TRUNK) and "token" not in name


def _in_blocks(name: str) -> bool:
    return any(part in name for part in BLOCKS)


def load_encoders(model: VirstForVideoSegmentation, folder: Path) -> None:
    """The trained tower and segmenter into the model."""
    load_part(folder, "tower", "tower", model.model.vision_tower)
    load_part(folder, "tracking", "segmenter", model.model.segmenter)


def load_part(folder: Path, part: str, name: str, module: nn.Module) -> None:
    """Weights of one module out of those of a part of the pre-training."""
    state = torch.load(folder / f"{part}.pt", weights_only=True)
    prefix = f"{name}."
    module.load_state_dict({key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)})


def load_language(model: VirstForVideoSegmentation, folder: Path) -> None:
    """The trained language model and fusions into the model."""
    parts = {"text": model.model.language_model, "projector": model.model.projector.mlp, "head": model.lm_head}
    parts |= {"fusion": model.model.initial_fusion, "prompter": model.model.prompt_decoder}
    for name, module in parts.items():
        load_part(folder, "language", name, module)


def join(folder: Path) -> Path:
    """The pre-trained model, where the stages start."""
    target = folder / "pretrained"
    if not target.is_dir():
        processor = tiny_processor()
        model = tiny_model(processor)
        load_part(folder, "relations", "model", model)
        model.config.occlusion_loss_weight = OCCLUSION_WEIGHT
        with new_folder(target, "the pre-trained model") as partial:
            model.save_pretrained(partial)
            processor.save_pretrained(partial)
    return target


def finish(adapter: Path, pretrained: Path, target: Path) -> None:
    """The full model: held in bfloat16, which halves the file, and run in float32, which CPUs are faster in."""
    with new_folder(target, "virst-tiny") as partial:
        merge_adapter(adapter, partial / "merged", pretrained, "bfloat16")
        for path in (partial / "merged").iterdir():
            path.rename(partial / path.name)
        (partial / "merged").rmdir()
        config = json.loads((partial / "config.json").read_text()) | {"dtype": "float32"}
        (partial / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        shutil.copy(HERE / "card.md", partial / "README.md")


if __name__ == "__main__":
    main()
