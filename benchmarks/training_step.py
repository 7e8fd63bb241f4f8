"""Where the time of a training step goes, and how much memory it takes: forward, backward and optimizer.

    python benchmarks/training_step.py --size tiny small --expressions 1 4 --json result.json

Each measurement runs in a process of its own, so that its peak memory is its own. A batch is one clip with its
expressions, all frames distinct; the weights are random (a folder instead of a size measures a saved model). A step is
measured as follows; each second counts once, for the innermost part that it belongs to.

- `encoder`: SAM's trunk and neck. `vision_tower`: the vision tower. Neither makes a graph; this is checked.
- `llm`: projector, initial fusion, language model, LM head.
- `tracker`: prompt decoder, mask decoder, memory attention and encoder, and all that joins them.
- `loss`: Eq. 16, with the masks resized to full size. `other`: the rest of the forward pass; with `--cache` it holds
  the hashing of pixels and the reading of features.
- `backward` and `optimizer` (AdamW, gradients set to none) are whole.

Stages differ in what trains and in how many frames are supervised. `memory_model` is the memory in use before the
first step, `memory_peak` its peak up to the end of the last, and `memory` says of which kind both are: on a CPU
`resident`, that of the process with Python and torch; on a GPU `device`, what torch has allocated there.
"""

import argparse
import multiprocessing
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn
from unittest import mock

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from virst_hf import VirstForVideoSegmentation, VirstProcessor, VirstVideoProcessor, modeling_virst
from virst_hf.rendering import write_json
from virst_hf.sampling import sample_training_frames, seg_frame_positions, vlm_frame_indices
from virst_hf.training.feature_cache import FeatureCache
from virst_hf.training.stages import STAGES, get_stage, prepare_model
from virst_hf.untrained import untrained_config, untrained_processor

FORWARD = ("encoder", "vision_tower", "llm", "tracker", "loss", "other")
PARTS = (*FORWARD, "backward", "optimizer")
# Part of each module; what runs inside it counts for it unless it is named itself.
MODULES = {
    "model.segmenter.image_encoder": "encoder",
    "model.vision_tower": "vision_tower",
    "model.projector": "llm",
    "model.initial_fusion": "llm",
    "model.language_model": "llm",
    "lm_head": "llm",
    "model.prompt_decoder": "tracker",
    # The two convolutions of the mask decoder that run where a frame is encoded.
    "model.segmenter.sam_mask_decoder.conv_s0": "tracker",
    "model.segmenter.sam_mask_decoder.conv_s1": "tracker",
}
# Part of each function that `forward` calls.
FUNCTIONS = {"track_texts": "tracker", "mask_objective": "loss", "token_objective": "loss"}
FROZEN = ("encoder", "vision_tower")

# Fields of the configuration by size; "tiny" is the untrained model of the tests.
SIZES: dict[str, dict[str, dict]] = {
    "tiny": {},
    "small": {
        "vision_config": {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 6, "image_size": 128},
        "text_config": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6},
        "segmenter_config": {
            "image_size": 256,
            "hidden_size": 128,
            "trunk_embed_dim": 48,
            "trunk_stages": [1, 2, 7, 2],
            "trunk_global_att_blocks": [5, 7, 9],
            "trunk_window_spec": [8, 4, 16, 8],
            "memory_attention_layers": 2,
            "memory_attention_feedforward": 512,
            "mask_decoder_mlp_dim": 512,
        },
    },
    # SAM 2.1 small at half its side, and a language model of the width of Qwen2-0.5B with half of its layers.
    "medium": {
        "vision_config": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "image_size": 224},
        "text_config": {
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 12,
            "num_attention_heads": 14,
        },
        "segmenter_config": {
            "image_size": 512,
            "hidden_size": 256,
            "trunk_embed_dim": 96,
            "trunk_stages": [1, 2, 11, 2],
            "trunk_global_att_blocks": [7, 10, 13],
            "trunk_window_spec": [8, 4, 14, 7],
            "memory_attention_layers": 4,
            "memory_attention_feedforward": 2048,
            "memory_dim": 64,
            "mask_decoder_mlp_dim": 2048,
        },
    },
}


class Clock:
    """Seconds by part: while one part runs inside another, only the inner one's count."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.running: list[str] = []
        self.since = 0.0

    def now(self) -> float:
        """The time, with all that a GPU was given done."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def turn(self) -> None:
        """Count the time since the last turn for the innermost part."""
        now = self.now()
        if self.running:
            self.seconds[self.running[-1]] += now - self.since
        self.since = now

    def start(self, part: str) -> None:
        self.turn()
        self.running.append(part)

    def stop(self) -> None:
        self.turn()
        self.running.pop()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count a block."""
        self.start(name)
        try:
            yield
        finally:
            self.stop()

    def watch(self, module: nn.Module, part: str) -> list[torch.utils.hooks.RemovableHandle]:
        """Count the forward pass of a module; that of a frozen one must make no graph."""

        def ended(module: nn.Module, args: tuple, output: object) -> None:
            self.stop()
            tensors = output if isinstance(output, list | tuple) else [output]
            if part in FROZEN and any(tensor.requires_grad for tensor in tensors):
                raise RuntimeError(f"The {part} is frozen, but its output carries a graph.")

        return [
            module.register_forward_pre_hook(lambda module, args: self.start(part)),
            module.register_forward_hook(ended),
        ]

    def wrap(self, function: Callable, part: str) -> Callable:
        """Count the calls of a function."""

        def counted(*args, **kwargs):
            with self.part(part):
                return function(*args, **kwargs)

        return counted


@contextmanager
def measured(model: VirstForVideoSegmentation) -> Iterator[Clock]:
    """A clock that runs through the parts of a model's forward pass."""
    clock = Clock()
    with ExitStack() as stack:
        for name, part in MODULES.items():
            for handle in clock.watch(model.get_submodule(name), part):
                stack.callback(handle.remove)
        for name, part in FUNCTIONS.items():
            function = getattr(modeling_virst, name)
            stack.enter_context(mock.patch.object(modeling_virst, name, clock.wrap(function, part)))
        yield clock


def build(size: str) -> tuple[VirstForVideoSegmentation, VirstProcessor]:
    """Model and processor of a size, or of a folder."""
    if size not in SIZES:
        return VirstForVideoSegmentation.from_pretrained(size), VirstProcessor.from_pretrained(size)
    small = untrained_config()
    fields = {}
    for name, values in SIZES[size].items():
        fields[name] = {**getattr(small, name).to_dict(), **values}
        fields[name].pop("layer_types", None)  # one entry a layer; made anew
    torch.manual_seed(0)
    config = untrained_config(**fields, initializer_range=0.15 if size == "tiny" else 0.02)
    views = VirstVideoProcessor(
        image_size=config.vision_config.image_size,
        sam_image_size=config.segmenter_config.image_size,
        tokens_per_clip=config.vision_config.tokens_per_clip,
    )
    processor = VirstProcessor(
        views, untrained_processor().tokenizer, num_seg_tokens=config.st_fusion_config.num_seg_tokens
    )
    return VirstForVideoSegmentation(config), processor


def make_batch(
    processor: VirstProcessor, num_frames: int, num_expressions: int, supervise: str, seed: int = 0
) -> dict[str, object]:
    """One clip with its expressions, which share anchors and propagation frames as in training."""
    rng = np.random.default_rng(seed)
    video = rng.integers(0, 256, (num_frames, 96, 128, 3), dtype=np.uint8)
    texts = [f"the square number {i} that moves to the left" for i in range(num_expressions)]
    inputs = processor(videos=video, text=[texts], return_labels=True)
    views = processor.video_processor
    num_vlm = len(vlm_frame_indices(num_frames, views.max_vlm_frames, views.frames_per_clip, views.min_frames))
    num_seg = len(seg_frame_positions(num_vlm, views.max_seg_frames))
    anchors, around = sample_training_frames(num_seg, rng=random.Random(seed))
    if supervise == "anchors":
        around = []
    side = views.sam_image_size
    masks = torch.zeros(len(anchors) + len(around), side, side, dtype=torch.bool)
    masks[:, side // 4 : side // 2, side // 4 : side // 2] = True
    return {
        **inputs,
        "mask_labels": [masks] * num_expressions,
        "anchor_indices": [anchors] * num_expressions,
        "propagation_indices": [around] * num_expressions,
    }


def resident() -> int:
    """Resident memory of this process now, in bytes; its peak where the system does not say."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return peak_resident()


def peak_resident() -> int:
    """Peak of the resident memory of this process, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory_in_use(device: str) -> tuple[str, int]:
    """Kind of memory that the model is in, and how much of it is in use now, in bytes."""
    if device.startswith("cuda"):
        return "device", torch.cuda.memory_allocated(device)
    return "resident", resident()


def peak_memory(device: str) -> int:
    """Peak of the same memory, in bytes."""
    return torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else peak_resident()


def train_steps(
    model: VirstForVideoSegmentation, batch: dict[str, object], num_steps: int, bf16: bool
) -> list[dict[str, float]]:
    """Seconds by part of each step, after one that is not counted."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    device = next(model.parameters()).device
    batch = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    rows = []
    for _ in range(num_steps + 1):
        with measured(model) as clock:
            with clock.part("other"), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                loss = model(**batch).loss
            with clock.part("backward"):
                loss.backward()
            with clock.part("optimizer"):
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        rows.append(clock.seconds)
    return rows[1:]


def measure(size: str, stage: str, expressions: int, args: argparse.Namespace) -> dict[str, object]:
    """One row of the table."""
    torch.set_num_threads(args.threads)
    model, processor = build(size)
    model = model.to(args.device).train()
    prepare_model(model, get_stage(stage))
    if args.checkpointing:
        model.gradient_checkpointing_enable()
    batch = make_batch(processor, args.frames, expressions, get_stage(stage).supervise)
    with TemporaryDirectory() as folder:
        if args.cache:
            model.encode_video = FeatureCache(folder, model).encode_video  # the step that is not counted fills it
        kind, before = memory_in_use(args.device)
        steps = train_steps(model, batch, args.steps, args.bf16)
    # The middle one by its time, with its own parts: so that they add up.
    middle = sorted(steps, key=lambda step: sum(step.values()))[len(steps) // 2]
    parameters = list(model.parameters())
    return {
        "size": size,
        "stage": stage,
        "expressions": expressions,
        "supervised_frames": len(batch["mask_labels"][0]),
        "parameters": sum(p.numel() for p in parameters),
        "trained": sum(p.numel() for p in parameters if p.requires_grad),
        "seconds": sum(middle.values()),
        "parts": middle,
        "memory": kind,
        "memory_model": before,
        "memory_peak": peak_memory(args.device),
    }


def print_table(rows: list[dict]) -> None:
    """The rows, seconds by part, memory in MB."""
    kind = rows[0]["memory"]
    header = ("size", "stage", "expr.", "frames", "step s", *PARTS, f"model {kind} MB", f"peak {kind} MB")
    print(" | ".join(header))
    for row in rows:
        cells = [row["size"], row["stage"], row["expressions"], row["supervised_frames"], f"{row['seconds']:.3f}"]
        cells += [f"{row['parts'][part]:.3f}" for part in PARTS]
        cells += [f"{row[name] / 1e6:.0f}" for name in ("memory_model", "memory_peak")]
        print(" | ".join(str(cell) for cell in cells))


class Parser(argparse.ArgumentParser):
    """Bad input is one line on stderr and exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def at_least_1(text: str) -> int:
    """A number of the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, found {text}")
    return int(text)


def make_parser() -> argparse.ArgumentParser:
    """The arguments."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--size", nargs="+", default=["tiny", "small"], help=f"{', '.join(SIZES)}, or a folder with a saved model"
    )
    parser.add_argument("--stage", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--expressions", type=at_least_1, nargs="+", default=[1, 4], help="per clip")
    parser.add_argument("--frames", type=at_least_1, default=16, help="of the clip")
    parser.add_argument("--steps", type=at_least_1, default=5, help="that are measured, after one that is not")
    parser.add_argument("--threads", type=at_least_1, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16, as the training does on a GPU")
    parser.add_argument("--cache", action="store_true", help="features of both encoders come from a full cache")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing of the language model")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    return parser


def main() -> None:
    """Measure, print a table and write the rows."""
    args = make_parser().parse_args()
    cases = [(size, stage, n) for size in args.size for stage in args.stage for n in args.expressions]
    rows = []
    for case in tqdm(cases, disable=None):
        # A new process each: the peak of memory is that of a process.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            rows.append(pool.submit(measure, *case, args).result())
    print_table(rows)
    if args.json:
        settings = {name: value for name, value in vars(args).items() if name != "json"}
        write_json(args.json, {**settings, "torch": torch.__version__, "rows": rows})


if __name__ == "__main__":
    main()
