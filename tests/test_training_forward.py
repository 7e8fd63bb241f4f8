"""What several texts and videos share in a training step must change nothing: packed texts, tracking in lockstep."""

import pytest
import torch

from virst_hf.modules import text as text_module
from virst_hf.untrained import untrained_model

TEXTS = [["the red square", "what moves?", "the longest expression of them all, by far"], ["a ball"]]


@pytest.fixture(scope="module")
def videos(clip, clip_maker):
    return [clip, clip_maker(num_frames=9, height=40, width=30, seed=5)]


def step(model, processor, videos, texts, frames):
    """Losses and gradients of one step."""
    inputs = processor(videos=videos, text=texts, return_labels=True)
    generator = torch.Generator().manual_seed(1)
    masks = [torch.rand(len(anchors) + len(around), 128, 128, generator=generator) > 0.7 for anchors, around in frames]
    anchors, around = (list(part) for part in zip(*frames, strict=True))
    out = model(**inputs, mask_labels=masks, anchor_indices=anchors, propagation_indices=around)
    model.zero_grad()
    out.loss.backward()
    return out, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_texts_of_one_video_in_one_row_equal_texts_alone(processor, videos, attention, monkeypatch):
    model = untrained_model(attn_implementation=attention)
    frames = [([0, 3], [1, 2])] * 4
    lengths = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["inputs_embeds"].shape), with_kwargs=True
    )
    packed, gradients = step(model, processor, videos, TEXTS, frames)
    hook.remove()
    assert len(lengths) == 1 and lengths[0][0] == 2  # one row a video
    monkeypatch.setattr(type(model), "_prefix_length", lambda self, rows: 0)
    apart, expected = step(model, processor, videos, TEXTS, frames)
    assert torch.allclose(packed.loss, apart.loss, rtol=1e-5)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, expected[name], atol=1e-5 + 1e-4 * float(expected[name].abs().max())), name


def test_packed_texts_do_not_see_one_another(processor, videos):
    model = untrained_model()
    seen = []
    for other in ("what moves?", "something else altogether, of another length"):
        frames = [([0, 3], [])] * 2
        out, _ = step(model, processor, videos[:1], [["the red square", other]], frames)
        seen.append(out.mask_logits)
    assert torch.allclose(seen[0][0], seen[1][0], atol=1e-4)
    assert not torch.allclose(seen[0][1], seen[1][1], atol=1e-2)


def test_other_kinds_of_attention_are_not_packed(processor, videos, monkeypatch):
    model = untrained_model()
    frames = [([0, 3], [])] * 4
    expected, _ = step(model, processor, videos, TEXTS, frames)
    monkeypatch.setattr(text_module, "packed_states", None)
    monkeypatch.setattr(type(model.model.language_model.config), "_attn_implementation", "flash_attention_2")
    model.model.language_model.forward = lambda inputs_embeds, attention_mask, use_cache: pytest.fail("not reached")
    with pytest.raises(pytest.fail.Exception):
        step(model, processor, videos, TEXTS, frames)
    assert expected.loss > 0


def test_lockstep_equals_one_text_at_a_time(processor, videos, monkeypatch):
    """Texts with the same order of anchors are tracked together, whatever their videos and frames."""
    model = untrained_model()
    frames = [([0, 4], [1, 2]), ([0, 4], [1, 2]), ([2], [1, 5]), ([1, 6], [2, 5])]
    together, gradients = step(model, processor, videos, TEXTS, frames)
    expected = [step(model, processor, videos, TEXTS, frames)[0]]
    import virst_hf.modeling_virst as modeling

    track = modeling.track_texts
    monkeypatch.setattr(
        modeling, "track_texts", lambda config, segmenter, texts: [track(config, segmenter, [t])[0] for t in texts]
    )
    apart, expected = step(model, processor, videos, TEXTS, frames)
    assert together.supervised_frames == apart.supervised_frames
    for a, b in zip(together.mask_logits, apart.mask_logits, strict=True):
        assert torch.allclose(a, b, atol=1e-4)
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, expected[name], atol=1e-5 + 1e-4 * float(expected[name].abs().max())), name


def test_a_video_with_its_texts_is_one_sample(processor, videos):
    """So that a batch of two videos is the mean of two batches of one, however many texts each has."""
    model = untrained_model()
    frames = [([0, 3], [1])] * 4
    generator = torch.Generator().manual_seed(2)
    masks = [torch.rand(3, 128, 128, generator=generator) > 0.7 for _ in frames]

    def loss(which, texts, rows):
        inputs = processor(videos=which, text=texts, return_labels=True)
        with torch.no_grad():
            return model(
                **inputs,
                mask_labels=[masks[i] for i in rows],
                anchor_indices=[[0, 3]] * len(rows),
                propagation_indices=[[1]] * len(rows),
            ).loss

    both = loss(videos, TEXTS, [0, 1, 2, 3])
    first, second = loss(videos[:1], TEXTS[:1], [0, 1, 2]), loss(videos[1:], TEXTS[1:], [3])
    assert torch.allclose(both, (first + second) / 2, rtol=1e-5)
    assert not torch.allclose(first, second, rtol=1e-3)


def test_encoders_make_a_graph_for_pretraining_only(processor, videos):
    model = untrained_model()
    frames = [([0, 3], [1])] * 4
    encoders = ("model.vision_tower.", "model.segmenter.image_encoder.")
    _, gradients = step(model, processor, videos, TEXTS, frames)
    assert not [name for name in gradients if name.startswith(encoders)]
    model.model.train_encoders = True
    _, gradients = step(model, processor, videos, TEXTS, frames)
    without = [n for n, _ in model.named_parameters() if n.startswith(encoders) and n not in gradients]
    assert not without, without


def test_features_stand_in_for_pixels(processor, videos):
    """What a feature cache gives is used as the model's own features are."""
    model = untrained_model()
    inputs = processor(videos=videos, text=TEXTS, return_labels=True)
    frames = {"anchor_indices": [[0, 3]] * 4, "propagation_indices": [[1]] * 4}
    masks = [torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(i)) > 0.7 for i in range(4)]
    texts = {name: inputs[name] for name in ("input_ids", "attention_mask", "video_indices", "labels")}
    with torch.no_grad():
        expected = model(**inputs, mask_labels=masks, **frames)
        features = model.encode_video(**{name: inputs[name] for name in inputs if name not in texts})
        given = model(**texts, features=features, mask_labels=masks, **frames)
    assert torch.allclose(given.loss, expected.loss, rtol=1e-6)
    assert given.supervised_frames == expected.supervised_frames
