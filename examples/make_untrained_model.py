"""Makes a small model with random weights: `python examples/make_untrained_model.py build/model`.

It has every part of VIRST at a small size, so it loads and runs in seconds on a CPU. It is untrained: its masks and
answers mean nothing. It is there to try the commands and the code around the model.
"""

import argparse

from virst_hf.untrained import make_untrained_model


def main() -> None:
    """Write the folder of the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", help="folder to write model and processor to")
    args = parser.parse_args()
    make_untrained_model(args.directory)
    print(f"Wrote an untrained model to {args.directory}.")


if __name__ == "__main__":
    main()
