"""Draws the masks of one expression over a video: `segment_video.py clip.mp4 "the red square" out.mp4`.

The same as `virst segment`, in code: load, encode the video, segment, draw.
"""

import argparse

import torch
from transformers import AutoProcessor

import virst_hf


def main() -> None:
    """Write the overlay."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("video", help="video file, folder of frames, or image")
    parser.add_argument("text", help="what to segment")
    parser.add_argument("output", help="the mp4 file to write")
    parser.add_argument(
        "--model", default=virst_hf.VIRST_TINY, help="folder of a checkpoint (default: a small one, for drawn shapes)"
    )
    args = parser.parse_args()

    processor = AutoProcessor.from_pretrained(args.model)
    # Like AutoModel.from_pretrained, but a checkpoint that lacks a tensor is an error.
    model = virst_hf.load_model(args.model)
    with torch.inference_mode():
        outputs = model.segment(**processor(videos=args.video, text=args.text))
    result = processor.post_process_video_segmentation(outputs)[0]

    video = virst_hf.open_video(args.video)
    with virst_hf.VideoWriter(args.output, video.height, video.width, fps=video.fps) as writer:
        for frame, mask in zip(video, result["masks"].numpy(), strict=True):
            writer.write(virst_hf.draw_overlay(frame, [mask], [args.text]))
    found = int((result["scores"] > 0).sum())
    print(f"Wrote {args.output}: {args.text!r} is visible in {found} of {video.num_frames} frames.")


if __name__ == "__main__":
    main()
