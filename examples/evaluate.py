"""Evaluate a model from Python, on one process or several.

python examples/evaluate.py mevis-v1-valid_u --model M --root DIR --output OUT
accelerate launch --num_processes 4 examples/evaluate.py mevis-v1-valid_u --model M --root DIR --output OUT

(Without GPUs, `accelerate launch` starts several processes only with `--multi_gpu`; it then uses the CPU.)
"""

import argparse
import sys

from virst_hf import load_model, load_processor
from virst_hf.evaluation import PROTOCOLS, evaluate_model
from virst_hf.evaluation.pipeline import processes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("protocol", choices=sorted(PROTOCOLS))
    parser.add_argument("--model", required=True, help="folder of a checkpoint, or its name on the Hub")
    parser.add_argument("--root", required=True, help="folder of the data set")
    parser.add_argument("--output", required=True, help="folder for predictions and results")
    parser.add_argument("--limit", type=int, help="only the first videos, for a trial")
    args = parser.parse_args()

    state = processes()
    model = load_model(args.model, device=str(state.device))
    results = evaluate_model(
        args.protocol,
        model,
        load_processor(args.model),
        args.root,
        args.output,
        model_name=args.model,
        limit=args.limit,
        state=state,
    )
    state.destroy_process_group()
    if results is None:  # not the main process
        return 0
    for kind, scores in results.get("per_type", {}).items():
        print(f"{kind}: J&F {scores['J&F']:.1f} over {scores['count']} expressions")
    if "J&F" in results:
        print(f"{args.protocol}: J {results['J']:.2f}, F {results['F']:.2f}, J&F {results['J&F']:.2f}")
    print(f"{len(results['failures'])} samples failed. The page to look at: {args.output}/report.html")
    return 1 if results["failures"] else 0


# Scoring starts further processes, which import this file: so nothing may run on import.
if __name__ == "__main__":
    sys.exit(main())
