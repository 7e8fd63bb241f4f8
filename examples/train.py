"""Train a stage of VIRST.

python examples/train.py --config examples/configs/shapes.yaml
accelerate launch examples/train.py --config examples/configs/alignment.yaml --output_dir runs/alignment
torchrun --nproc_per_node 2 examples/train.py --config ... --deepspeed examples/deepspeed/zero2.json

Every key of the YAML file is an option as well. The same command goes on with a run that was interrupted.
"""

import sys
from collections.abc import Sequence

from virst_hf import load_processor
from virst_hf.errors import VirstError
from virst_hf.training import VirstTrainer, describe
from virst_hf.training.arguments import TrainingArgumentParser
from virst_hf.training.checkpoints import find_checkpoint
from virst_hf.training.data import describe_mixture, training_mixture, validation_mixture
from virst_hf.training.validation import SplitValidation
from virst_hf.training.weights import load_training_model


def make_parser() -> TrainingArgumentParser:
    return TrainingArgumentParser()


def train(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse(argv)
    checkpoint = find_checkpoint(args.output_dir, args.resume_from_checkpoint)
    processor = load_processor(args.model)
    mixture = training_mixture(args, processor)
    plan = args.validation_plan
    validation = SplitValidation(args, processor) if plan is not None and plan.protocol is not None else None
    held_out = validation_mixture(args, processor, None if validation is None else validation.rows)
    model, counts = load_training_model(args)
    trainer = VirstTrainer(model, args, processor, mixture, held_out, validation)
    if trainer.is_world_process_zero():
        print(describe(args.training_stage, counts), describe_mixture(mixture), sep="\n\n", flush=True)
        print(f"\nGoing on from {checkpoint}" if checkpoint else f"\nStarting in {args.output_dir}", flush=True)
    trainer.train(checkpoint)
    folder = trainer.save_final()
    if trainer.is_world_process_zero():
        best = trainer.state.best_metric
        print(
            f"The model is in {folder}" + ("" if best is None else f" (best {args.metric_for_best_model}: {best:.4g})")
        )
    # Else processes of a run with several may abort on their way out.
    trainer.accelerator.end_training()


def main(argv: Sequence[str] | None = None) -> int:
    try:
        train(argv)
    except (VirstError, OSError) as error:
        print(f"train.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train.py: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


# Workers of the data loader may import this file: nothing runs on import.
if __name__ == "__main__":
    sys.exit(main())
