"""Every name of the released 7B checkpoint, of VideoChat-Flash and of SAM 2.1, on shapes alone."""

import gzip
import json
from pathlib import Path

import pytest
import sam2 as sam2_package
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from transformers.initialization import meta_device_safe_creation_ops

from virst_hf import CheckpointError, VirstConfig
from virst_hf.conversion import convert_state_dict, expected_shapes, plan_conversion
from virst_hf.conversion_files import in_memory
from virst_hf.conversion_tables import (
    INITIALISED_PREFIXES,
    SAM2_PREFIX,
    released_to_virst,
    strip_wrappers,
    virst_to_released,
)

DATA = Path(__file__).parent / "data"
PEFT = "base_model.model."


def read_data(name: str) -> dict | list:
    return json.loads(gzip.decompress((DATA / name).read_bytes()))


def meta(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    return {name: torch.empty(tuple(shape), dtype=torch.bfloat16, device="meta") for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def official() -> dict[str, list[int]]:
    return read_data("official_7b_state_dict_shapes.json.gz")


@pytest.fixture(scope="module")
def full_size() -> dict[str, tuple[int, ...]]:
    return expected_shapes(VirstConfig())


def test_all_released_names_are_mapped_merged_or_listed(official: dict, full_size: dict) -> None:
    assert len(official) == 2016
    plan = plan_conversion(in_memory(meta(official)).items(), full_size)
    assert {name: x.shape for name, x in plan.tensors.items()} == full_size
    assert list(plan.tensors) == list(full_size)
    assert plan.unused == [f"{PEFT}model.occ_predictor.{x}" for x in ("weight", "bias")]
    # 7 projections of each of the 28 layers, two factors each; every other name is a tensor of its own.
    assert len(plan.merged) == 28 * 7
    assert len(plan.tensors) + 2 * len(plan.merged) + len(plan.unused) == len(official)


def test_meta_state_dict_of_full_size_converts(official: dict, full_size: dict) -> None:
    state = convert_state_dict(meta(official), VirstConfig())
    assert {name: tuple(x.shape) for name, x in state.items()} == full_size
    assert {x.device.type for x in state.values()} == {"meta"}


def full_size_start(official: dict) -> tuple[dict, dict]:
    """Shapes of VideoChat-Flash and of SAM 2.1; both share names, and but for the padding shapes, with the release."""
    shapes = {strip_wrappers(name): shape for name, shape in official.items()}
    videochat = {name: shapes[name] for name in read_data("videochat_flash_7b_448_keys.json.gz")}
    videochat |= {name: [152064, 3584] for name in ("model.embed_tokens.weight", "lm_head.weight")}
    return videochat, {name: x for name, x in shapes.items() if name.startswith(SAM2_PREFIX)}


def test_all_videochat_and_sam2_names_are_mapped(official: dict, full_size: dict) -> None:
    videochat, sam2 = full_size_start(official)
    assert len(videochat) == 646
    expected = {name: x for name, x in full_size.items() if not name.startswith(INITIALISED_PREFIXES)}
    plan = plan_conversion(in_memory(meta(videochat | sam2)).items(), expected, lora_alpha=None, cut_rows=True)
    assert {name: x.shape for name, x in plan.tensors.items()} == expected
    assert len(videochat) + len(sam2) == len(expected)
    assert sorted(plan.cut) == ["lm_head.weight", "model.language_model.embed_tokens.weight"]
    assert plan.tensors["lm_head.weight"].load().shape == (151647, 3584)
    assert not plan.merged and not plan.unused


def test_sam2_names_are_those_of_the_sam2_package(full_size: dict) -> None:
    path = Path(sam2_package.__file__).parent / "configs" / "sam2.1" / "sam2.1_hiera_l.yaml"
    with torch.device("meta"), meta_device_safe_creation_ops():
        original = instantiate(OmegaConf.load(path).model)
    prefix = "model.segmenter."
    ours = {name.removeprefix(prefix): x for name, x in full_size.items() if name.startswith(prefix)}
    assert ours == {name: tuple(x.shape) for name, x in original.state_dict().items()}


def test_names_go_there_and_back(full_size: dict) -> None:
    released_names = [virst_to_released(name) for name in full_size]
    assert len(set(released_names)) == len(full_size)
    assert [released_to_virst(name) for name in released_names] == list(full_size)


@pytest.mark.parametrize("prefix", ["", PEFT, "module." + PEFT, "module."])
def test_prefixes_and_base_layer_are_removed(prefix: str) -> None:
    ours = "model.language_model.layers.3.self_attn.q_proj."
    assert released_to_virst(prefix + "model.layers.3.self_attn.q_proj.bias") == ours + "bias"
    assert released_to_virst(prefix + "model.layers.3.self_attn.q_proj.base_layer.bias") == ours + "bias"
    assert released_to_virst(prefix + "model.layers.3.self_attn.q_proj.lora_B.default.weight") == ours + "weight"
    assert released_to_virst(prefix + "model.occ_predictor.bias") is None


@pytest.mark.parametrize("name", ["model.mm_projector2.0.bias", "encoder.weight", "", "module.module.lm_head.weight"])
def test_unknown_names_raise(name: str) -> None:
    with pytest.raises(CheckpointError, match="not the name of a tensor"):
        released_to_virst(name)
