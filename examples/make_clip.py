"""Draws a short clip of moving, coloured shapes: `python examples/make_clip.py clip.mp4`.

It is a scene of the Shapes benchmark that no split of it has. The same number draws the same clip.
"""

import argparse

from virst_hf.data.shapes_maker.drawing import draw_scene, draw_texture, visible_masks
from virst_hf.data.shapes_maker.expressions import video_expressions
from virst_hf.data.shapes_maker.scene import HEIGHT, WIDTH, Stream, make_scene
from virst_hf.rendering import VideoWriter


def main() -> None:
    """Write the clip, and print sentences about it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="the mp4 file to write")
    parser.add_argument("--scene", type=int, default=78, metavar="N", help="which scene (default 78)")
    args = parser.parse_args()
    stream = Stream("demo", 0, args.scene)
    scene = make_scene(stream)
    masks = visible_masks(scene)
    with VideoWriter(args.path, HEIGHT, WIDTH, fps=12) as writer:
        for frame in draw_scene(scene, draw_texture(stream), masks):
            writer.write(frame)
    print(f"Wrote {args.path}: {scene.num_frames} frames of {WIDTH} x {HEIGHT}.")
    expressions = video_expressions(scene, masks.any(axis=(2, 3)), stream)
    print("Sentences to try: " + "; ".join(expression.text for expression in expressions))


if __name__ == "__main__":
    main()
