"""Shared fixtures: the small untrained model, its processor and a short clip."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def two_threads():
    torch.set_num_threads(min(2, os.cpu_count() or 1))


@pytest.fixture
def one_thread():
    """For what gains nothing by a second thread: a process with two of them stalls where others are at work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def work(tmp_path_factory):
    """A model and a data set for training runs; a run writes elsewhere."""
    from training_fixtures import make_workspace

    return make_workspace(tmp_path_factory.mktemp("training"))


@pytest.fixture
def work_cache(work, monkeypatch):
    """Arrow copies of its data are kept beside it."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(work.folder / "cache"))


@pytest.fixture(scope="session")
def processor():
    from virst_hf.untrained import untrained_processor

    return untrained_processor()


@pytest.fixture(scope="session")
def shared_model():
    """The small model. A test must not change it; take `model` for that."""
    from virst_hf.untrained import untrained_model

    return untrained_model()


@pytest.fixture
def model(shared_model):
    import copy

    return copy.deepcopy(shared_model)


def make_clip(num_frames=12, height=48, width=64, seed=0):
    """A textured background with a moving bright square, uint8 (num_frames, height, width, 3)."""
    rng = np.random.default_rng(seed)
    frames = np.repeat(rng.integers(0, 120, (1, height, width, 3), dtype=np.uint8), num_frames, axis=0)
    for t in range(num_frames):
        left = (3 * t) % (width - 16)
        frames[t, 10:26, left : left + 16] = (220, 60, 40)
    return frames


@pytest.fixture(scope="session")
def clip():
    return make_clip()


@pytest.fixture(scope="session")
def clip_maker():
    return make_clip


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A folder with the small model, to train from."""
    from virst_hf.untrained import make_untrained_model

    return make_untrained_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="session")
def trained(base):
    """It after the first two stages. A test must not change it."""
    from adapter_fixtures import train_two_stages

    return train_two_stages(base)


@pytest.fixture(scope="session")
def adapter(trained, base, processor, tmp_path_factory):
    """The adapter folder of that."""
    from adapter_fixtures import write_adapter

    return write_adapter(trained, base, processor, tmp_path_factory.mktemp("adapter") / "final")
