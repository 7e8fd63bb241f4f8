"""A picture of a video: some of its frames side by side, a row for each file:

python examples/contact_sheet.py sheet.jpg build/demo/shapes.mp4 build/demo/masks/overlay.mp4
"""

import argparse

import numpy as np
from PIL import Image

from virst_hf import open_video
from virst_hf.rendering import replacing


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="the jpg or png file to write")
    parser.add_argument("videos", nargs="+", help="video files, one for each row")
    parser.add_argument("--frames", type=int, default=4, metavar="N", help="frames of each video (default 4)")
    args = parser.parse_args()
    with replacing(args.path) as partial:
        Image.fromarray(np.concatenate([row(video, args.frames) for video in args.videos])).save(partial)
    print(f"Wrote {args.path}.")


def row(path: str, count: int) -> np.ndarray:
    """Frames of a video beside one another, from the first to the last."""
    video = open_video(path)
    wanted = np.linspace(0, video.num_frames - 1, count).round().astype(int)
    return np.concatenate([frame for index, frame in enumerate(video) if index in wanted], axis=1)


if __name__ == "__main__":
    main()
