"""Models that were trained a little with LoRA, and how two of them are compared: for the tests of adapters."""

from pathlib import Path

import torch

from virst_hf import VirstForVideoSegmentation
from virst_hf.adapters import save_adapter
from virst_hf.training import get_stage, prepare_model


def train(model, stage, seed=0, scale=0.02):
    """As a stage would: what trains moves a little."""
    torch.manual_seed(seed)
    prepare_model(model, get_stage(stage))
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(scale * torch.randn_like(p))
    return model.eval()


def train_two_stages(base: Path):
    """The model after stages 1 and 2."""
    return train(train(VirstForVideoSegmentation.from_pretrained(base), "alignment"), "few_image", seed=1)


def write_adapter(trained, base: Path, processor, folder: Path) -> Path:
    stage = get_stage("few_image")
    assert save_adapter(trained, folder, str(base), stage, processor=processor, history=["alignment"]) == folder
    return folder


@torch.no_grad()
def answers(model, inputs):
    """Masks, scores and logits of the text: everything that is trained has a part in them."""
    model.eval()
    output = model.segment(**inputs)
    text = {name: inputs[name] for name in ("input_ids", "pixel_values_videos", "num_vlm_frames")}
    return [output.mask_logits[0], output.object_scores[0], model(**text).logits]


def assert_same(model, other, inputs, tolerance=1e-5):
    for a, b in zip(answers(model, inputs), answers(other, inputs), strict=True):
        # Of masks that are absent the logits are -1024.
        assert torch.allclose(a, b, rtol=tolerance, atol=10 * tolerance), float((a - b).abs().max())
