"""The model card that `save_pretrained` writes."""

import os
from pathlib import Path

from .configuration_virst import VirstConfig

__all__ = ["model_card_text", "write_model_card"]

TEMPLATE = """---
library_name: virst_hf
tags:
- video-object-segmentation
- referring-video-object-segmentation
- reasoning-segmentation
- virst
---

# VIRST

A VIRST model (CVPR 2026: reasoning video object segmentation) in the format of `virst_hf`.

```python
import virst_hf
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("PATH_OR_REPO").eval()
processor = AutoProcessor.from_pretrained("PATH_OR_REPO")
inputs = processor(videos="video.mp4", text=["the dog that sniffed the truck bed"])
masks = processor.post_process_video_segmentation(model.segment(**inputs))
```

| part | size |
|---|---|
| language model | {text_layers} layers of width {text_width}, vocabulary {vocab} |
| vision tower | {vision_layers} layers of width {vision_width} at {vision_size} pixels |
| segmenter | SAM 2.1, trunk {stages} from width {trunk_width}, width {seg_width}, {seg_size} pixels |
| fusion | {num_seg} [SEG] tokens, initial fusion {initial} |
| anchors | alpha {alpha} |

State here what the weights were trained on, how they score, and their licence: the release of VIRST states none.
"""


def model_card_text(config: VirstConfig) -> str:
    """The card of a model with these sizes, as Markdown with Hub metadata.

    Args:
        config ([`VirstConfig`]): The sizes.

    Returns:
        `str`: The text of `README.md`.
    """
    text, vision, segmenter = config.text_config, config.vision_config, config.segmenter_config
    return TEMPLATE.format(
        text_layers=text.num_hidden_layers,
        text_width=text.hidden_size,
        vocab=text.vocab_size,
        vision_layers=vision.num_built_layers,
        vision_width=vision.hidden_size,
        vision_size=vision.image_size,
        stages="-".join(str(n) for n in segmenter.trunk_stages),
        trunk_width=segmenter.trunk_embed_dim,
        seg_width=segmenter.hidden_size,
        seg_size=segmenter.image_size,
        num_seg=config.st_fusion_config.num_seg_tokens,
        initial="on" if config.st_fusion_config.use_initial_fusion else "off",
        alpha=config.anchor_config.num_anchors,
    )


def write_model_card(directory: str | os.PathLike, config: VirstConfig) -> None:
    """Write `README.md` into `directory` unless one is there: an owner's text is never replaced.

    Args:
        directory (`str` or `os.PathLike`): The model's directory; made when missing.
        config ([`VirstConfig`]): The sizes.
    """
    path = Path(directory) / "README.md"
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(".README.md.partial")
    partial.write_text(model_card_text(config), encoding="utf-8")
    partial.replace(path)
