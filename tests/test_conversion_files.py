"""Checkpoint files: what is refused, and that tensors come one at a time."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from virst_hf import CheckpointError
from virst_hf.conversion_files import LazyTensor, new_folder, open_checkpoint, sha256, write_shards

STATE = {
    "a": torch.arange(600.0).view(20, 30),
    "b": torch.tensor(0.5, dtype=torch.bfloat16),
    "c": torch.ones(300, dtype=torch.int8),
    "d": torch.zeros(0, 3),
}

State = dict[str, torch.Tensor]


def read(path: Path) -> State:
    with open_checkpoint(path, wrapped_in="model_state_dict") as tensors:
        state = {name: x.load().clone() for name, x in tensors.items()}
        assert {name: (x.shape, x.dtype) for name, x in tensors.items()} == {
            name: (tuple(x.shape), x.dtype) for name, x in state.items()
        }
    return state


def save_one(state: State, file: Path) -> Path:
    if file.suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save({"model_state_dict": state}, file)
    return file


def save_shards(state: State, folder: Path) -> Path:
    """A folder of two shards with an index."""
    folder.mkdir()
    names = list(state)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: state[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def assert_equal(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], x) and found[name].dtype == x.dtype for name, x in expected.items())


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_files_are_read(name: str, tmp_path: Path) -> None:
    assert_equal(read(save_one(STATE, tmp_path / name)), STATE)


def test_folders_are_read_with_and_without_an_index(tmp_path: Path) -> None:
    folder = save_shards(STATE, tmp_path / "in")
    assert_equal(read(folder), STATE)
    (folder / "model.safetensors.index.json").unlink()
    assert_equal(read(folder), STATE)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    tensors = {name: LazyTensor(tuple(x.shape), x.dtype, lambda x=x: x) for name, x in STATE.items()}
    write_shards(tensors, tmp_path, "1KB", print)
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert_equal(read(tmp_path), STATE)


def test_sha256_of_a_file_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_bytes(bytes(range(256)) * 3)
    monkeypatch.setattr("virst_hf.conversion_files.HASH_CHUNK", 100)
    assert sha256(tmp_path / "x") == hashlib.sha256(bytes(range(256)) * 3).hexdigest()


def test_new_folder_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    with new_folder(tmp_path / "deep" / "out") as folder:
        (folder / "x").write_text("1")
        assert not (tmp_path / "deep" / "out").exists()
    assert [x.name for x in (tmp_path / "deep").iterdir()] == ["out"]
    # Open to those to whom the folder around it is open, which a temporary folder is not.
    assert (tmp_path / "deep" / "out").stat().st_mode == (tmp_path / "deep").stat().st_mode
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "broken") as folder:
        (folder / "x").write_text("1")
        raise KeyboardInterrupt
    assert [x.name for x in tmp_path.iterdir()] == ["deep"]


def test_one_shard_is_read_at_a_time(tmp_path: Path) -> None:
    loaded, read_before_line = [], []

    def lazy(name: str) -> LazyTensor:
        def load() -> torch.Tensor:
            loaded.append(name)
            return torch.zeros(256)

        return LazyTensor((256,), torch.float32, load)

    tensors = {f"t{i}": lazy(f"t{i}") for i in range(6)}
    write_shards(tensors, tmp_path, 2 * 1024, lambda line: read_before_line.append(len(loaded)))
    assert read_before_line == [2, 4, 6]


def damaged(form: str, folder: Path, state: State) -> Path:
    """A file or folder that is no whole checkpoint."""
    file = folder / ("x.safetensors" if form == "cut safetensors" else "x.pt")
    if form in ("empty", "text"):
        file.write_text("" if form == "empty" else "hello")
    elif form.startswith("cut"):
        file.write_bytes(save_one(state, folder / f"whole{file.suffix}").read_bytes()[:-1000])
    elif form in ("list", "no tensors", "nothing in it"):
        torch.save({"list": [1], "no tensors": {"step": 3}, "nothing in it": {}}[form], file)
    elif form == "empty folder":
        (folder / "x").mkdir()
        return folder / "x"
    return file


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("absent", "No checkpoint at .*x.pt"),
        ("empty", "x.pt is not a whole file"),
        ("text", "x.pt is not a whole file"),
        ("cut pt", "x.pt is not a whole file"),
        ("cut safetensors", "x.safetensors is not a whole safetensors file"),
        ("list", "x.pt holds a list; expected a dictionary"),
        ("no tensors", r"Found 'step' \(int\)"),
        ("nothing in it", "Found an empty dictionary"),
        ("empty folder", "holds neither"),
    ],
)
def test_damaged_files_are_refused(form: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(damaged(form, tmp_path, STATE))


def test_shards_must_agree_with_their_index(tmp_path: Path) -> None:
    folder = save_shards(STATE, tmp_path / "in")
    index_file = folder / "model.safetensors.index.json"
    index = json.loads(index_file.read_text())
    first, second = sorted(set(index["weight_map"].values()))

    def refused(match: str) -> None:
        with pytest.raises(CheckpointError, match=match):
            read(folder)

    index_file.write_text(json.dumps({"weight_map": {**index["weight_map"], "more": first}}))
    refused("not in a shard: more; not in the index: none")
    index_file.write_text(json.dumps({"weight_map": {**index["weight_map"], "more": "../virst.safetensors"}}))
    refused(r"names shards that are not beside it: \.\./virst\.safetensors")
    index_file.write_text("{}")
    refused("has no weight_map")
    index_file.write_text("{")
    refused("is not JSON")
    index_file.unlink()
    save_file({"a": torch.ones(64)}, folder / "model-00003.safetensors")
    refused("repeats tensors of another shard: a")
    index_file.write_text(json.dumps(index))
    (folder / second).unlink()
    refused(f"names shards that are not beside it: {second}")
