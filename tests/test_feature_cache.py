"""Cached features: the same losses and gradients, and the encoders run once for each frame and clip."""

import random
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch

from virst_hf.errors import ConfigError, DataError
from virst_hf.training.feature_cache import FeatureCache
from virst_hf.untrained import untrained_model

TEXTS = [["the red square", "what moves?"], ["a ball"]]


@pytest.fixture
def batch(processor, clip, clip_maker):
    """Two videos, of 12 and 9 frames (12 and 8 for the language model), with three texts."""
    videos = [clip, clip_maker(num_frames=9, height=40, width=30, seed=5)]
    generator = torch.Generator().manual_seed(1)
    return {
        **processor(videos=videos, text=TEXTS, return_labels=True),
        "mask_labels": [torch.rand(4, 128, 128, generator=generator) > 0.7 for _ in range(3)],
        "anchor_indices": [[0, 4]] * 3,
        "propagation_indices": [[1, 2]] * 3,
    }


@pytest.fixture
def frozen(model):
    """The small model with what stages 2 and 3 train."""
    model.model.vision_tower.requires_grad_(False)
    model.model.segmenter.image_encoder.requires_grad_(False)
    return model


def step(model, batch, cache=None):
    """Losses and gradients."""
    model.zero_grad()
    features = None if cache is None else cache.encode_video(**batch)
    encode = model.encode_video if features is None else (lambda *args, **kwargs: features)
    with mock.patch.object(model, "encode_video", encode):
        out = model(**batch)
    out.loss.backward()
    return out, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@contextmanager
def encoder_calls(model):
    """How many frames and clips go through the encoders."""
    calls = {"frames": 0, "clips": 0}

    def count(name):
        return lambda module, args, output: calls.__setitem__(name, calls[name] + len(args[0]))

    handles = [
        model.model.segmenter.image_encoder.register_forward_hook(count("frames")),
        model.model.vision_tower.register_forward_hook(count("clips")),
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 5e-3), ("bfloat16", 5e-2)])
def test_losses_and_gradients_are_those_of_the_encoders(frozen, batch, tmp_path, dtype, tolerance):
    expected, gradients = step(frozen, batch)
    out, cached = step(frozen, batch, FeatureCache(tmp_path, frozen, dtype))
    for name in ("token_loss", "bce_loss", "dice_loss", "occlusion_loss", "iou_loss"):
        assert float(out[name].detach()) == pytest.approx(float(expected[name].detach()), rel=tolerance), name
    assert cached.keys() == gradients.keys()
    # What runs behind the cache trains: the projector and the two convolutions of the mask decoder.
    for part in ("projector", "sam_mask_decoder.conv_s0", "sam_mask_decoder.conv_s1"):
        assert any(part in name and float(gradient.abs().max()) > 0 for name, gradient in cached.items()), part
    if dtype == "float32":
        for name, gradient in gradients.items():
            bound = 1e-5 + 1e-4 * float(gradient.abs().max())
            assert torch.allclose(cached[name], gradient, atol=bound), name


def test_second_epoch_encodes_nothing_and_sees_the_same_bits(frozen, batch, tmp_path):
    with encoder_calls(frozen) as calls:
        first, gradients = step(frozen, batch, FeatureCache(tmp_path, frozen))
        assert calls == {"frames": 12 + 9, "clips": 3 + 2}
        cache = FeatureCache(tmp_path, frozen)  # as in another process, or after a resume
        second, again = step(frozen, batch, cache)
        assert calls == {"frames": 12 + 9, "clips": 3 + 2}
    assert cache.counts == {"frames encoded": 0, "frames read": 21, "clips encoded": 0, "clips read": 5}
    assert torch.equal(first.loss, second.loss)
    assert all(torch.equal(gradient, again[name]) for name, gradient in gradients.items())


def test_frames_are_shared_between_draws_with_jitter(frozen, processor, clip, tmp_path):
    """Of a draw with other frames of the same video, only the frames that are new are encoded."""
    cache = FeatureCache(tmp_path, frozen)
    views = processor(videos=clip)
    rng, seen = random.Random(0), set()
    for _ in range(3):
        chosen = sorted(rng.sample(range(12), 8))
        new = set(chosen) - seen
        with encoder_calls(frozen) as calls:
            cache.encode_video(
                pixel_values_videos=views["pixel_values_videos"],
                num_vlm_frames=views["num_vlm_frames"],
                sam_pixel_values=views["sam_pixel_values"][chosen],
                num_frames=torch.tensor([8]),
                seg_frame_indices=torch.arange(8),
                num_seg_frames=torch.tensor([8]),
            )
        assert calls["frames"] == len(new)
        seen |= new


def test_one_bit_of_a_pixel_is_another_frame(frozen, batch, tmp_path):
    cache = FeatureCache(tmp_path, frozen)
    cache.encode_video(**batch)
    batch["sam_pixel_values"][3, 0, 0, 0] ^= 1
    with encoder_calls(frozen) as calls:
        cache.encode_video(**batch)
    assert calls == {"frames": 1, "clips": 0}


def test_other_weights_have_a_folder_of_their_own(frozen, batch, tmp_path):
    FeatureCache(tmp_path, frozen).encode_video(**batch)
    other = untrained_model(seed=1).requires_grad_(False)
    with encoder_calls(other) as calls:
        features = FeatureCache(tmp_path, other).encode_video(**batch)
    assert calls == {"frames": 21, "clips": 5}
    expected = other.encode_video(**{k: v for k, v in batch.items() if k not in ("mask_labels", "input_ids")})
    assert torch.allclose(features[0].seg_features, expected[0].seg_features, rtol=1e-2, atol=1e-2)
    # What trains does not belong to the identity: the features outlast a stage.
    with torch.no_grad():
        frozen.model.projector.mlp[0].weight.add_(1)
        frozen.model.segmenter.sam_mask_decoder.conv_s0.weight.add_(1)
    assert FeatureCache(tmp_path, frozen).folder in set(tmp_path.iterdir())
    assert len(list(tmp_path.iterdir())) == 2


def test_autocast_does_not_change_what_is_stored(frozen, batch, tmp_path):
    plain = FeatureCache(tmp_path / "plain", frozen).encode_video(**batch)
    with torch.autocast("cpu", torch.bfloat16):
        cast = FeatureCache(tmp_path / "cast", frozen).encode_video(**batch)
    assert torch.equal(plain[0].tokens, cast[0].tokens)
    assert torch.equal(plain[1].seg_features, cast[1].seg_features)


def test_still_images_and_questions(frozen, processor, clip, tmp_path):
    cache = FeatureCache(tmp_path, frozen, "float32")
    image = processor(videos=clip[0], text=["the square"])
    expected, features = frozen.encode_video(**image)[0], cache.encode_video(**image)[0]
    assert features.is_image and features.num_frames == 1
    assert torch.allclose(features.video_embeds, expected.video_embeds, atol=1e-5)
    question = {name: image[name] for name in ("pixel_values_videos", "num_vlm_frames")}
    assert cache.encode_video(**question)[0].seg_features is None
    assert cache.counts["clips encoded"] == 1


def test_cached_features_segment(frozen, processor, clip, tmp_path):
    """They stand in for those of the model everywhere, with every frame of a video."""
    inputs = processor(videos=clip, text=["the square"])
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    expected = frozen.segment(features=frozen.encode_video(**inputs), **text)
    masks = frozen.segment(features=FeatureCache(tmp_path, frozen, "float32").encode_video(**inputs), **text)
    assert torch.allclose(masks.mask_logits[0], expected.mask_logits[0], atol=1e-3)


def test_damaged_file_is_named(frozen, batch, tmp_path):
    cache = FeatureCache(tmp_path, frozen)
    cache.encode_video(**batch)
    path = next(cache.folder.glob("frames/*/*.safetensors"))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=f"{path.name}.*Delete this file"):
        cache.encode_video(**batch)


def test_full_disk_leaves_nothing_behind(frozen, batch, tmp_path):
    cache = FeatureCache(tmp_path, frozen)

    def fail(values: dict, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with mock.patch("virst_hf.training.feature_cache.save_file", fail):
        with pytest.raises(DataError, match="No space left on device.*cache_features"):
            cache.encode_video(**batch)
    assert not [p for p in cache.folder.rglob("*") if p.is_file() and p.name != "about.json"]
    cache.encode_video(**batch)


def test_values_that_do_not_fit_are_an_error(frozen, batch, tmp_path):
    frozen.model.segmenter.image_encoder.neck.convs[0].conv.bias.data.fill_(1e6)
    with pytest.raises(DataError, match="does not fit torch.float16; cache it as bfloat16"):
        FeatureCache(tmp_path, frozen).encode_video(**batch)
    FeatureCache(tmp_path, frozen, "bfloat16").encode_video(**batch)


def test_encoders_that_train_are_refused(model, tmp_path):
    with pytest.raises(ConfigError, match="train"):
        FeatureCache(tmp_path, model)
    model.requires_grad_(False)
    model.model.train_encoders = True
    with pytest.raises(ConfigError, match="cannot be cached"):
        FeatureCache(tmp_path, model)
    model.model.train_encoders = False
    with pytest.raises(ConfigError, match="float8"):
        FeatureCache(tmp_path, model, "float8")
    assert not list(tmp_path.iterdir())
