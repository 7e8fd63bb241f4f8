"""Draws a short clip of moving coloured shapes: `python examples/make_clip.py clip.mp4`.

Three shapes move over a plain ground; the same call draws the same clip.
"""

import argparse
import math
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw

from virst_hf.rendering import VideoWriter

RED, BLUE, GREEN = (214, 40, 40), (30, 90, 200), (40, 160, 80)


def draw_frames(num_frames: int, height: int, width: int) -> Iterator[np.ndarray]:
    """Yield uint8 RGB frames of shape `(height, width, 3)`."""
    size = height // 5
    for t in range(num_frames):
        progress = t / max(1, num_frames - 1)
        image = Image.new("RGB", (width, height), (225, 222, 214))
        draw = ImageDraw.Draw(image)
        # A red square goes right, a blue circle swings up and down, a green triangle stays.
        left, top = progress * (width - size), height * 0.15
        draw.rectangle((left, top, left + size, top + size), fill=RED)
        x, y = width * 0.3, height * (0.6 + 0.15 * math.sin(2 * math.pi * progress))
        draw.ellipse((x - size / 2, y - size / 2, x + size / 2, y + size / 2), fill=BLUE)
        x, y = width * 0.75, height * 0.85
        draw.polygon(((x - size / 2, y), (x + size / 2, y), (x, y - size)), fill=GREEN)
        yield np.array(image)


def main() -> None:
    """Write the clip."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", help="the mp4 file to write")
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--height", type=int, default=180)
    parser.add_argument("--width", type=int, default=320)
    args = parser.parse_args()
    with VideoWriter(args.path, args.height, args.width, fps=12) as writer:
        for frame in draw_frames(args.frames, args.height, args.width):
            writer.write(frame)
    print(f"Wrote {args.path}: {args.frames} frames of {args.width} x {args.height}.")


if __name__ == "__main__":
    main()
