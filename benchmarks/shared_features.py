"""What sharing a video among its expressions saves: N expressions in one call against N calls, in the same run.

    python benchmarks/shared_features.py --frames 24 --expressions 1 4 16 --json result.json

Random weights, float32. The sizes are between the untrained toy and the release: a Hiera trunk of the small SAM 2.1 at
256 pixels and a language model of width 256. Ratios are the point, not seconds.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from virst_hf import VirstForVideoSegmentation, VirstProcessor, VirstVideoProcessor
from virst_hf.untrained import untrained_config, untrained_processor

SEGMENTER = {
    "image_size": 256,
    "hidden_size": 128,
    "trunk_embed_dim": 48,
    "trunk_num_heads": 1,
    "trunk_stages": [1, 2, 7, 2],
    "trunk_global_att_blocks": [5, 7, 9],
    "memory_attention_layers": 2,
    "memory_attention_feedforward": 512,
    "memory_dim": 32,
}


def build() -> tuple[VirstForVideoSegmentation, VirstProcessor]:
    """Model and processor of the benchmark's size."""
    small = untrained_config()
    text = {**small.text_config.to_dict(), "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6}
    del text["layer_types"]  # one entry a layer; made anew for six
    torch.manual_seed(0)
    model = VirstForVideoSegmentation(untrained_config(segmenter_config=SEGMENTER, text_config=text)).eval()
    video_processor = VirstVideoProcessor(image_size=64, sam_image_size=256, tokens_per_clip=16)
    return model, VirstProcessor(video_processor, untrained_processor().tokenizer, num_seg_tokens=4)


def timed(call) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(model, processor, video, num_expressions: int) -> dict:
    """Seconds and encoder calls of one call for all expressions, and of one call each."""
    calls = [0]
    handle = model.model.segmenter.image_encoder.register_forward_hook(
        lambda module, inputs, output: calls.__setitem__(0, calls[0] + len(inputs[0]))
    )
    texts = [f"expression number {i}" for i in range(num_expressions)]
    together = processor(videos=video, text=texts)
    alone = [processor(videos=video, text=[text]) for text in texts]
    shared = timed(lambda: model.segment(**together))
    shared_calls, calls[0] = calls[0], 0
    one_by_one = timed(lambda: [model.segment(**inputs) for inputs in alone])
    handle.remove()
    return {
        "expressions": num_expressions,
        "seconds_together": round(shared, 3),
        "seconds_one_by_one": round(one_by_one, 3),
        "ratio": round(one_by_one / shared, 2),
        "frames_encoded_together": shared_calls,
        "frames_encoded_one_by_one": calls[0],
    }


def main() -> None:
    """Measure, print a table and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--expressions", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    model, processor = build()
    video = np.random.default_rng(0).integers(0, 256, (args.frames, 180, 320, 3), dtype=np.uint8)
    measure(model, processor, video, 1)  # warm up
    rows = [measure(model, processor, video, n) for n in args.expressions]
    print(" | ".join(rows[0]))
    for row in rows:
        print(" | ".join(str(value) for value in row.values()))
    if args.json:
        args.json.write_text(json.dumps({"frames": args.frames, "threads": torch.get_num_threads(), "rows": rows}))


if __name__ == "__main__":
    main()
