"""A parity case as data: its sizes as a configuration, its weights, its clip, and what the release computed."""

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from parity_frames import make_clip, make_ground_truth
from parity_weights import make_state_dict
from PIL import Image
from safetensors.torch import load_file

from virst_hf import VirstConfig
from virst_hf.conversion import convert_state_dict

BUNDLED = Path(__file__).parent / "case"
OPTIONAL = ("hidden_states_", "seg_prompts_", "object_scores_")
REQUIRED = (
    "input_ids labels clip_pixel_sample sam_pixel_sample vision_tower projector initial_fusion hidden_states "
    "lm_logits_tail sam_features_frame0 seg_prompts cond_idx low_res_logits object_scores masks"
).split()


def case_directory() -> Path:
    """The directory named by VIRST_PARITY_CASE, or the bundled case."""
    return Path(os.environ.get("VIRST_PARITY_CASE") or BUNDLED)


@dataclass
class ParityCase:
    directory: Path

    @cached_property
    def case(self) -> dict:
        return json.loads((self.directory / "case.json").read_text(encoding="utf-8"))

    @cached_property
    def expected(self) -> dict[str, torch.Tensor]:
        return load_file(self.directory / "expected.safetensors")

    @cached_property
    def shapes(self) -> dict[str, list[int]]:
        return json.loads((self.directory / "state_dict_shapes.json").read_text(encoding="utf-8"))

    @cached_property
    def clip(self) -> np.ndarray:
        files = {p.name: p for p in (self.directory / "frames").glob("*") if p.suffix in {".jpg", ".png"}}
        if files:
            named = self.case.get("frames", [])
            order = named if set(named) == set(files) else sorted(files)
            return np.stack([np.asarray(Image.open(files[name]).convert("RGB")) for name in order])
        return make_clip(len(self.case["frames"]))

    @cached_property
    def ground_truth(self) -> torch.Tensor:
        return torch.from_numpy(make_ground_truth(len(self.clip), self.case["sam2"]["image_size"]))

    @property
    def missing(self) -> list[str]:
        """Files and tensors that a case must have and this one lacks."""
        names = ("case.json", "state_dict_shapes.json", "expected.safetensors")
        files = [name for name in names if not (self.directory / name).is_file()]
        return files or [name for name in REQUIRED if name not in self.expected]

    @property
    def lowercase(self) -> bool:
        """Whether the expression was lowered in this case: the release does so in evaluation, not in training."""
        return self.case["expression"] not in self.case.get("prompt", "")

    @property
    def has_losses(self) -> bool:
        return "losses" in self.case

    @property
    def has_no_fusion(self) -> bool:
        return any(name.startswith(OPTIONAL) for name in self.expected)

    def size_of(self, ending: str, axis: int = 0) -> int:
        return next(shape[axis] for name, shape in self.shapes.items() if name.endswith(ending))

    def config(self) -> VirstConfig:
        """The case's sizes, those that case.json leaves out read from the shapes."""
        case, sam, fusion = self.case, self.case["sam2"], self.case["fusion"]
        vision = {k: v for k, v in case["vision"].items() if k not in ("num_frames",)}
        return VirstConfig(
            vision_config={**vision, "frames_per_clip": case["vision"]["num_frames"]},
            text_config={
                "model_type": "qwen2",
                **case["llm"],
                "rms_norm_eps": 1e-6,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
                "pad_token_id": None,
            },
            segmenter_config={
                **{f"trunk_{key}": value for key, value in sam["trunk"].items()},
                "image_size": sam["image_size"],
                "hidden_size": sam["neck"]["d_model"],
                "fpn_top_down_levels": sam["neck"]["fpn_top_down_levels"],
                "memory_attention_layers": sam["memory_attention"]["num_layers"],
                "memory_attention_feedforward": sam["memory_attention"]["dim_feedforward"],
                "memory_dim": sam["memory_encoder"]["out_dim"],
                "memory_fuser_layers": sam["memory_encoder"]["fuser_layers"],
                "num_maskmem": sam["num_maskmem"],
                "mask_decoder_mlp_dim": self.size_of("sam_mask_decoder.transformer.layers.0.mlp.layers.0.weight"),
                "iou_head_hidden_size": self.size_of("iou_prediction_head.layers.0.weight"),
            },
            st_fusion_config={
                "num_seg_tokens": fusion["num_seg_tokens"],
                "num_heads": fusion["num_heads"],
                "prompter_layers": fusion["prompter_layers"],
                "prompter_feedforward": self.size_of("seg_prompter.decoder.0.ff.0.weight"),
            },
            anchor_config={"num_anchors": sam["max_cond_frames_in_attn"]},
            seg_token_id=case["seg_token_id"],
            video_token_id=case["seg_token_id"] + 1,
        )

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The released weights of the case, through the converter."""
        released = make_state_dict(self.shapes, self.case["seed"])
        return convert_state_dict(released, self.config(), lora_alpha=self.case["lora"]["alpha"])
