import pytest

from virst_hf import ConfigError, VirstConfig
from virst_hf.untrained import untrained_config


def test_defaults_are_the_release():
    config = VirstConfig()
    assert config.text_config.hidden_size == 3584 and config.text_config.vocab_size == 151647
    assert config.vision_config.num_built_layers == 23 and config.vision_config.grid_size == 28
    assert config.segmenter_config.grid_size == 64 and config.segmenter_config.low_res_size == 256
    assert config.st_fusion_config.use_initial_fusion is True and config.anchor_config.num_anchors == 3
    assert config.get_text_config() is config.text_config


def test_save_and_load(tmp_path):
    config = untrained_config()
    config.save_pretrained(tmp_path)
    assert VirstConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"segmenter_config": {"image_size": 100}}, "multiple of 32, found 100"),
        ({"segmenter_config": {"memory_dim": 60}}, "memory_dim"),
        ({"segmenter_config": {"trunk_stages": [1, 2]}}, "four entries"),
        ({"segmenter_config": {"hidden_size": 12}}, "multiple of 8"),
        ({"segmenter_config": {"num_maskmem": 1}}, "num_maskmem"),
        ({"segmenter_config": {"trunk_global_att_blocks": [8]}}, "first of a later stage"),
        ({"segmenter_config": {"trunk_global_att_blocks": [48]}}, "0 to 47"),
        ({"segmenter_config": {"trunk_window_spec": [8, 1, 16, 8]}}, "windows of 2"),
        ({"vision_config": {"hidden_size": 30, "num_attention_heads": 4}}, "num_attention_heads"),
        ({"vision_config": {"image_size": 100}}, "patch_size"),
        ({"vision_config": {"select_layer": -25}}, "select_layer"),
        ({"vision_config": {"tokens_per_clip": 63}}, "tokens_per_clip"),
        ({"st_fusion_config": {"num_heads": 7}}, "num_heads"),
        ({"st_fusion_config": {"num_seg_tokens": 0}}, "num_seg_tokens"),
        ({"anchor_config": {"num_anchors": 0}}, "num_anchors"),
        ({"anchor_config": {"min_frames": 2}}, "min_frames"),
        ({"seg_token_id": 151647}, "no row"),
        ({"seg_token_id": 5, "video_token_id": 5}, "must differ"),
    ],
)
def test_inconsistent_sizes_are_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        VirstConfig(**fields)
