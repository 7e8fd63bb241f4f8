"""The mixture: frequencies, rows once per epoch, and the same draws whatever workers, processes and restarts."""

import pickle
import random
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch.utils.data import DataLoader

from virst_hf.data.mixture import BLOCK, Mixture, MixtureStream
from virst_hf.data.records import CATEGORIES, CATEGORY_WEIGHTS, make_row, record_features
from virst_hf.errors import DataError

# Three workers, as the data have to be right with, are more than this machine may have cores.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

SIZES = {
    "semantic_segmentation": 900,
    "referring_image": 70,
    "reasoning_image": 13,
    "rvos": 400,
    "video_qa": 1,
}


def make_rows(category, count, source=None, per_video=3):
    return [
        make_row(
            video_id=f"v{i // per_video}",
            expression_id=str(i),
            expression=f"shape {i}",
            category=category,
            source=source or category,
            split="train",
        )
        for i in range(count)
    ]


def describe(rows, rng):
    """What a draw is, and a number from its own generator."""
    return [(row["source"], row["expression_id"]) for row in rows], rng.random()


def category_number(rows, rng):
    return CATEGORIES.index(rows[0]["category"])


def as_list(batch):
    return batch


@pytest.fixture(scope="module")
def sources():
    return {category: make_rows(category, size) for category, size in SIZES.items()}


def assert_fits_the_weights(numbers):
    counts = np.bincount(numbers, minlength=5)
    weights = np.array([CATEGORY_WEIGHTS[category] for category in CATEGORIES])
    assert counts.sum() == 20_000
    assert chisquare(counts, weights / weights.sum() * 20_000).pvalue > 0.01


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_frequencies_fit_the_weights(sources, workers):
    mixture = Mixture(sources, num_draws=20_000, seed=5, transform=category_number)
    numbers = {}
    for name, data in (("map", mixture), ("stream", MixtureStream(mixture, batch_size=250))):
        loader = DataLoader(data, batch_size=250, num_workers=workers, collate_fn=as_list)
        numbers[name] = [number for batch in loader for number in batch]
    # Not merely as frequent: the very same draws, in the same order.
    assert numbers["map"] == numbers["stream"] == [CATEGORIES.index(mixture.categories[s]) for s in mixture.plan()[0]]
    assert_fits_the_weights(numbers["map"])


def test_frequencies_hold_for_every_seed(sources):
    values = []
    for seed in range(40):
        counts = np.bincount(Mixture(sources, num_draws=20_000, seed=seed).plan()[0], minlength=5)
        values.append(chisquare(counts, np.array([4, 3, 1, 12, 1]) / 21 * 20_000).pvalue)
    # P-values of draws that fit are even over 0 .. 1.
    assert min(values) > 0.0005 and 0.3 < np.mean(values) < 0.7


def test_every_row_once_per_epoch(sources):
    mixture = Mixture(sources, num_draws=20_000, seed=2)
    which, rows = mixture.plan()
    for source, size in enumerate(mixture.sizes):
        drawn = rows[which == source]
        epochs = [drawn[i : i + size] for i in range(0, len(drawn) - size + 1, size)]
        assert epochs and all(sorted(epoch) == list(range(size)) for epoch in epochs)
        if size > 20:
            assert not any(np.array_equal(a, b) for a, b in zip(epochs, epochs[1:], strict=False))
        # Of the last, unfinished epoch no row comes twice either.
        rest = drawn[len(epochs) * size :]
        assert len(set(rest)) == len(rest)


@given(st.integers(0, 4999), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_any_draw_stands_alone(k, seed):
    data = [make_rows("rvos", 37), make_rows("referring_image", 5)]
    weights = {"rvos": 2, "referring_image": 1}
    mixture = Mixture(data, 5000, seed, weights, transform=describe)
    fresh = Mixture(data, 5000, seed, weights, transform=describe)
    which, rows = fresh.plan()
    source, row = int(which[k]), int(rows[k])
    assert mixture[k][0] == [(mixture.sources[source][row]["source"], str(row))]
    assert mixture[k] == fresh[k] == fresh[k - 5000]
    # A shorter or longer mixture has the same draws.
    assert Mixture(data, k + 1, seed, weights, transform=describe)[k] == mixture[k]


def test_seeds_and_generators_differ(sources):
    first, second = (Mixture(sources, 4000, seed) for seed in (0, 1))
    assert not np.array_equal(first.plan()[0], second.plan()[0])
    numbers = {m.rng(k).random() for m in (first, second) for k in range(500)}
    assert len(numbers) == 1000
    largest, next_to = (Mixture(sources, 4000, seed=2**64 - 1 - i) for i in range(2))
    assert not np.array_equal(largest.plan()[0], next_to.plan()[0])


def test_long_expression_lists_are_used_fully():
    # Drawn by video, the nine expressions of the second would get half of the draws, not nine tenths.
    rows = make_rows("rvos", 1) + [{**row, "video_id": "long"} for row in make_rows("rvos", 9)]
    mixture = Mixture([rows], 1000, weights={"rvos": 1})
    assert Counter(row["video_id"] for (row,) in mixture) == {"v0": 100, "long": 900}


def test_sets_of_a_category(sources):
    data = {"a": make_rows("rvos", 300, "a"), "b": make_rows("rvos", 100, "b"), "c": make_rows("video_qa", 10)}
    by_size = Mixture(data, 100, weights={"rvos": 3, "video_qa": 1})
    assert by_size.probabilities.tolist() == [0.5625, 0.1875, 0.25]
    chosen = Mixture(data, 100, weights={"rvos": 3, "video_qa": 1}, source_weights={"a": 1, "b": 2, "c": 5})
    assert chosen.probabilities.tolist() == [0.25, 0.5, 0.25]
    none = Mixture(data, 3000, weights={"rvos": 1, "video_qa": 0}, source_weights={"a": 1, "b": 0, "c": 1})
    assert set(none.plan()[0]) == {0}
    same = Mixture([data["a"], data["a"], data["b"]], 10, weights={"rvos": 1})
    assert same.names == ["a/train", "a/train#2", "b/train"]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [0, 1, 7, 100])
def test_processes_share_the_draws(sources, workers, start):
    mixture = Mixture(sources, 131, seed=1, transform=describe)
    want = [mixture[k] for k in range(start, 131)]
    parts = []
    for index in range(2):
        stream = MixtureStream(mixture, start, index, 2, batch_size=4)
        loader = DataLoader(stream, batch_size=4, num_workers=workers, collate_fn=as_list)
        parts.append([item for batch in loader for item in batch])
        assert parts[index] == [mixture[k] for k in range(start, 131) if k % 2 == index]
    assert sorted(parts[0] + parts[1], key=repr) == sorted(want, key=repr)
    one = DataLoader(MixtureStream(mixture, start, batch_size=4), batch_size=4, num_workers=3, collate_fn=as_list)
    assert [item for batch in one for item in batch] == want


@pytest.mark.parametrize("taken", [0, 1, 5, 50])
def test_resume_in_the_middle(sources, taken):
    mixture = Mixture(sources, 101, seed=3, transform=describe)
    whole = list(MixtureStream(mixture))
    assert whole == [mixture[k] for k in range(101)]
    stream = MixtureStream(mixture)
    items = iter(stream)
    before = [next(items) for _ in range(taken)]
    state = stream.state_dict()
    resumed = MixtureStream(Mixture(sources, 101, seed=3, transform=describe))
    resumed.load_state_dict(pickle.loads(pickle.dumps(state)))
    assert before + list(resumed) == whole == before + list(MixtureStream(mixture, start=state["position"]))
    # A run of two processes may be resumed by three.
    streams = [MixtureStream(mixture, 0, index, 2) for index in range(2)]
    items = [iter(stream) for stream in streams]
    done = [next(item) for _ in range(taken // 2) for item in items]
    assert streams[0].state_dict() == streams[1].state_dict()
    rest = []
    for index in range(3):
        stream = MixtureStream(mixture, 0, index, 3)
        stream.load_state_dict(streams[0].state_dict())
        rest += list(stream)
    assert sorted(done + rest, key=repr) == sorted(whole, key=repr)


@pytest.mark.parametrize("taken", [(0, 0), (4, 4), (6, 3), (9, 9)])
def test_a_loader_may_keep_the_state_of_its_workers(sources, monkeypatch, taken):
    mixture = Mixture(sources, 60, seed=3, transform=describe)
    whole, states = [], []
    for worker in range(2):
        info = SimpleNamespace(id=worker, num_workers=2)
        monkeypatch.setattr("virst_hf.data.mixture.get_worker_info", lambda info=info: info)
        stream = MixtureStream(mixture, start=5, batch_size=3)
        items = iter(stream)
        whole += [next(items) for _ in range(taken[worker])]
        states.append(stream.state_dict())
        resumed = MixtureStream(mixture, start=0, batch_size=3)
        resumed.load_state_dict(states[-1])
        whole += list(resumed)
    assert sorted(whole, key=repr) == sorted((mixture[k] for k in range(5, 60)), key=repr)


def test_the_state_of_another_mixture_is_refused(sources):
    state = MixtureStream(Mixture(sources, 100, seed=3)).state_dict()
    MixtureStream(Mixture(sources, 500, seed=3)).load_state_dict(state)  # longer: the same draws
    with pytest.raises(DataError, match="another mixture"):
        MixtureStream(Mixture(sources, 100, seed=4)).load_state_dict(state)
    for bad in ({}, {**state, "position": -1}, {**state, "start": None}):
        with pytest.raises(DataError, match="no state"):
            MixtureStream(Mixture(sources, 100, seed=3)).load_state_dict(bad)


def test_several_expressions_of_one_video():
    rows = make_rows("rvos", 50, per_video=4)
    random.Random(0).shuffle(rows)
    mixture = Mixture([rows], 400, weights={"rvos": 1}, expressions_per_clip=3)
    single = Mixture([rows], 400, weights={"rvos": 1})
    partners = Counter()
    for k in range(400):
        drawn = mixture[k]
        ids = [row["expression_id"] for row in drawn]
        assert len({row["video_id"] for row in drawn}) == 1 and len(set(ids)) == len(ids)
        assert ids[0] == single[k][0]["expression_id"]
        assert len(ids) == (2 if drawn[0]["video_id"] == "v12" else 3)  # the last video has two
        partners.update(ids[1:])
    assert len(partners) == 50


def test_videos_of_one_name_in_two_sets_are_not_mixed():
    data = [make_rows("rvos", 8, "a"), make_rows("rvos", 8, "b")]
    mixture = Mixture(data, 60, weights={"rvos": 1}, expressions_per_clip=4)
    assert all(len({row["source"] for row in rows}) == 1 for rows in mixture)


def test_arrow_rows_are_the_same(sources, tmp_path):
    rows = make_rows("rvos", 60)
    arrow = Dataset.from_list(rows, features=record_features())
    arrow.save_to_disk(str(tmp_path / "arrow"))
    arrow = Dataset.load_from_disk(str(tmp_path / "arrow"))
    make = {"num_draws": 200, "weights": {"rvos": 1}, "expressions_per_clip": 2, "transform": describe}
    plain, mapped = Mixture([rows], **make), Mixture([arrow], **make)
    assert [plain[k] for k in range(200)] == [mapped[k] for k in range(200)]
    loader = DataLoader(mapped, batch_size=20, num_workers=2, collate_fn=as_list)
    assert [item for batch in loader for item in batch] == [plain[k] for k in range(200)]
    # Rows that were chosen and reordered, too: columns and rows are read through the same indices.
    part = arrow.select(range(59, 30, -1))
    assert Mixture([part], **make)[7] == Mixture([rows[59:30:-1]], **make)[7]


def test_pickled_for_workers_that_are_started_anew(sources):
    mixture = Mixture(sources, 50, transform=describe)
    assert pickle.loads(pickle.dumps(mixture))[49] == mixture[49]


def test_far_draws_are_quick_to_plan(sources):
    mixture = Mixture(sources, 10**6)
    which, rows = mixture.plan(10**6 - 10)
    assert len(which) == 10 and len(mixture._counts) == -(-(10**6) // BLOCK) and len(mixture._blocks) == 1
    assert np.array_equal(mixture.plan(999_000)[1][-10:], rows)


def test_the_end(sources):
    mixture = Mixture(sources, 5)
    assert len(list(mixture)) == len(mixture) == 5
    for k in (5, -6):
        with pytest.raises(IndexError, match="0 to 4"):
            mixture[k]
    for bounds in ((3, 3), (0, 6), (-1, 2)):
        with pytest.raises(DataError, match="draws"):
            mixture.plan(*bounds)


def test_draws_are_the_same_for_ever():
    # A run that is resumed years later, with other versions of Python and NumPy, must go on with the same draws.
    mixture = Mixture([make_rows("rvos", 5), make_rows("video_qa", 3)], 12, 7, {"rvos": 2, "video_qa": 1})
    which, rows = mixture.plan()
    assert which.tolist() == [1, 0, 0, 0, 0, 1, 0, 0, 0, 1, 1, 0]
    assert rows.tolist() == [2, 3, 1, 2, 4, 0, 0, 4, 3, 1, 2, 2]
    assert mixture.rng(0).random() == 0.9140925562105561


RVOS = make_rows("rvos", 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sources": [RVOS]}, r"no rows of the category semantic.*weights=\{'rvos': 12\}"),
        ({"sources": [RVOS], "weights": {"video_qa": 1}}, "no rows of the category video_qa"),
        ({"sources": [RVOS, make_rows("video_qa", 2)], "weights": {"rvos": 1}}, "video_qa has rows but no weight"),
        ({"sources": [RVOS], "weights": {"rvos": 0}}, "All weights"),
        ({"sources": [RVOS], "weights": {"rvos": -1}}, "at least 0"),
        ({"sources": [RVOS], "weights": {"rvos": float("nan")}}, "at least 0"),
        ({"sources": [RVOS], "weights": {"videos": 1}}, "Unknown category 'videos'"),
        ({"sources": [[]], "weights": {"rvos": 1}}, "no rows. Check its root"),
        ({"sources": [], "weights": {"rvos": 1}}, "at least one set"),
        ({"sources": RVOS, "weights": {"rvos": 1}}, "one set alone"),
        ({"sources": Dataset.from_list(RVOS), "weights": {"rvos": 1}}, "one set alone"),
        ({"sources": [iter(RVOS)], "weights": {"rvos": 1}}, "no numbered rows.*streaming=False"),
        ({"sources": [RVOS + make_rows("video_qa", 1)], "weights": {"rvos": 1}}, "'rvos', 'video_qa'"),
        ({"sources": {"a": RVOS}, "weights": {"rvos": 1}, "source_weights": {"b": 1}}, "Unknown set 'b'"),
        ({"sources": {"a": RVOS}, "weights": {"rvos": 1}, "source_weights": {}}, "lacks a"),
        ({"sources": {"a": RVOS}, "weights": {"rvos": 1}, "source_weights": {"a": 0}}, "weight 0"),
        ({"sources": [RVOS], "weights": {"rvos": 1}, "num_draws": 0}, "num_draws"),
        ({"sources": [RVOS], "weights": {"rvos": 1}, "seed": -1}, "seed"),
        ({"sources": [RVOS], "weights": {"rvos": 1}, "expressions_per_clip": 0}, "expressions_per_clip"),
    ],
)
def test_bad_mixtures_are_refused(arguments, message):
    with pytest.raises(DataError, match=message):
        Mixture(**{"num_draws": 10, **arguments})


@pytest.mark.parametrize("arguments", [{"start": 11}, {"process_index": 2, "num_processes": 2}, {"batch_size": 0}])
def test_bad_streams_are_refused(arguments):
    with pytest.raises(DataError, match=next(iter(arguments))):
        MixtureStream(Mixture([RVOS], 10, weights={"rvos": 1}), **arguments)
