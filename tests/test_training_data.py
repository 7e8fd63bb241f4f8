"""What training draws: sources by the arguments, and categories by weight under any number of workers."""

from collections import Counter

import datasets
import pytest
import torch
from scipy.stats import chisquare
from training_fixtures import CATEGORIES

from virst_hf.data import CATEGORY_WEIGHTS, Mixture, make_row
from virst_hf.errors import DataError
from virst_hf.training import VirstTrainer, VirstTrainingArguments
from virst_hf.training.data import describe_mixture, load_sources, training_mixture, validation_mixture
from virst_hf.untrained import untrained_model

pytestmark = pytest.mark.usefixtures("one_thread", "work_cache")

DRAWS = 20_000


def arguments(work, tmp_path, **changes) -> VirstTrainingArguments:
    return VirstTrainingArguments(**work.values(tmp_path / "run", **{"disable_tqdm": True, **changes}))


def cheap_rows(category: str, count: int) -> list[dict]:
    fields = {"expression": "it", "category": category, "source": f"my-{category}", "split": "train"}
    return [make_row(video_id=str(i), expression_id=str(i), **fields) for i in range(count)]


def category_of(rows, rng) -> str:
    return rows[0]["category"]


def drawn(work, tmp_path, processor, workers: int) -> list[str]:
    """The categories of all draws, as the Trainer's own loader gives them."""
    # Sets of unlike sizes: how many rows a category has must not matter.
    sources = [cheap_rows(category, 7 * 4**i) for i, category in enumerate(CATEGORIES)]
    args = arguments(
        work, tmp_path, max_steps=DRAWS // 40, per_device_train_batch_size=40, dataloader_num_workers=workers
    )
    mixture = Mixture(sources, num_draws=DRAWS, seed=11, transform=category_of)
    trainer = VirstTrainer(untrained_model(), args, processor, mixture)
    trainer.data_collator = list
    return [category for batch in trainer.get_train_dataloader() for category in batch]


@pytest.fixture(scope="module")
def without_workers(work, tmp_path_factory, processor):
    return drawn(work, tmp_path_factory.mktemp("none"), processor, 0)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_frequencies_fit_the_weights(work, tmp_path, processor, without_workers, workers):
    found = without_workers if workers == 0 else drawn(work, tmp_path, processor, workers)
    assert len(found) == DRAWS
    counts = Counter(found)
    total = sum(CATEGORY_WEIGHTS.values())
    assert [CATEGORY_WEIGHTS[name] for name in CATEGORIES] == [12, 3, 1, 4, 1] and total == 21
    expected = [DRAWS * CATEGORY_WEIGHTS[name] / total for name in CATEGORIES]
    # The seed is fixed, so this is no matter of luck.
    assert chisquare([counts[name] for name in CATEGORIES], expected).pvalue > 0.01
    assert chisquare([counts[name] for name in CATEGORIES], [DRAWS / 5] * 5).pvalue < 1e-6
    assert found == without_workers


# --- sources ---------------------------------------------------------------------------------------------------------
def test_the_mixture_of_a_run(work, tmp_path, processor):
    args = arguments(work, tmp_path, max_steps=5, gradient_accumulation_steps=4, expressions_per_clip=2, data_seed=9)
    mixture = training_mixture(args, processor)
    assert mixture.names == [f"shapes/{category}/train" for category in CATEGORIES]
    assert (len(mixture), mixture.seed, mixture.expressions_per_clip) == (20, 9, 2)
    assert mixture.probabilities.tolist() == pytest.approx([12 / 21, 3 / 21, 1 / 21, 4 / 21, 1 / 21])
    text = describe_mixture(mixture)
    assert "20 draws, seed 9" in text and all(category in text for category in CATEGORIES)


def test_frames_are_supervised_by_the_stage(work, tmp_path, processor):
    for stage, propagates in (("alignment", False), ("few_image", False), ("propagation", True)):
        args = arguments(work, tmp_path, stage=stage, data=work.sources("rvos"), max_steps=6)
        mixture = training_mixture(args, processor)
        samples = [mixture[k] for k in range(2)]
        assert any(any(sample["propagation_indices"][0] or []) for sample in samples) == propagates


def test_weights_of_the_paper_for_the_categories_that_are_there(work, tmp_path, processor):
    mixture = training_mixture(arguments(work, tmp_path, data=work.sources("video_qa", "referring_image")), processor)
    assert mixture.probabilities.tolist() == pytest.approx([1 / 4, 3 / 4])


def test_a_source_may_have_a_weight_inside_its_category(work, tmp_path, processor):
    twice = [{**work.sources("rvos")[0], "split": split, "weight": w} for split, w in (("train", 3), ("valid", 1))]
    mixture = training_mixture(arguments(work, tmp_path, data=twice), processor)
    assert mixture.names == ["shapes/rvos/train", "shapes/rvos/valid"]
    assert mixture.probabilities.tolist() == pytest.approx([0.75, 0.25])
    # And so may one of the validation.
    args = arguments(work, tmp_path, validation={"data": twice, "samples": 2})
    assert validation_mixture(args, processor).probabilities.tolist() == pytest.approx([0.75, 0.25])
    twice[1]["weight"] = -1
    with pytest.raises(DataError, match="weight of shapes/rvos/valid must be a number"):
        training_mixture(arguments(work, tmp_path, data=twice), processor)


def test_sources_of_a_validation_are_named_as_such(work, tmp_path, processor):
    args = arguments(work, tmp_path, validation=[{"name": "nosuch", "root": "shapes"}])
    with pytest.raises(DataError, match="Source 0 of validation data has the name 'nosuch'"):
        validation_mixture(args, processor)


def test_categories_are_read_without_a_list_of_them(work, tmp_path, processor, monkeypatch):
    def whole(self, key):
        assert key != "category", "a text for each row of a set that may have a million"
        return inner(self, key)

    inner = datasets.Dataset.__getitem__
    monkeypatch.setattr(datasets.Dataset, "__getitem__", whole)
    assert training_mixture(arguments(work, tmp_path), processor).categories == list(CATEGORIES)


def test_the_same_source_twice_has_two_names(work, tmp_path):
    args = arguments(work, tmp_path, data=work.sources("rvos", "rvos"))
    assert list(load_sources(args, args.data)) == ["shapes/rvos/train", "shapes/rvos/train#2"]


def test_the_validation_loss_is_of_the_same_draws_each_time(work, tmp_path, processor):
    plan = {"data": [{**work.sources("rvos")[0], "split": "valid"}], "samples": 3}
    first, second = (
        validation_mixture(arguments(work, tmp_path, validation=plan, seed=seed), processor) for seed in (1, 2)
    )
    assert len(first) == 3 and first.names == ["shapes/rvos/valid"]
    assert all(
        torch.equal(a["pixel_values_videos"], b["pixel_values_videos"]) for a, b in zip(first, second, strict=True)
    )
    assert validation_mixture(arguments(work, tmp_path), processor) is None


def test_without_data_the_validation_loss_is_of_the_records_of_the_protocol(work, tmp_path, processor):
    plan = {"protocol": "shapes-valid", "root": "shapes", "videos": 1, "samples": 2}
    args = arguments(work, tmp_path, validation=plan)
    rows = datasets.concatenate_datasets(
        [*load_sources(args, [{**source, "split": "valid"} for source in work.sources("video_qa", "rvos")]).values()]
    )
    mixture = validation_mixture(args, processor, rows)
    assert mixture.categories == ["rvos", "video_qa"]
    assert mixture.probabilities.tolist() == pytest.approx([12 / 13, 1 / 13])
