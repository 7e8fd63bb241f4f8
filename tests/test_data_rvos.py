"""What the five video sets have in common: one root for all of them, roots and folders that are links, and traps that
the files of the single sets leave open."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from mask_dict_fixtures import findings, make_lvvis, make_mevis, make_revos, rows_of
from palette_fixtures import make_davis_converted, make_davis_raw, make_ref_youtube_vos, youtube_packed

from virst_hf.data.catalog import builder_class, load
from virst_hf.data.ref_davis17 import RefDAVIS17
from virst_hf.data.ref_youtube_vos import RefYouTubeVOS
from virst_hf.errors import DataError

# Set, how its tree is made, and a folder or file of it that somebody may have put on another disk.
TREES: list[tuple[str, Callable[[Path], Path], str]] = [
    ("mevis", make_mevis, "train"),
    ("mevis", make_mevis, "train/mask_dict.json"),
    ("revos", make_revos, "mask_dict.json"),
    ("lv-vis", make_lvvis, "train"),
    ("lv-vis", lambda root: make_lvvis(root, "original"), "train_instances.json"),
    ("ref-youtube-vos", make_ref_youtube_vos, "train/Annotations"),
    ("ref-youtube-vos", make_ref_youtube_vos, "meta_expressions"),
    ("ref-davis17", make_davis_raw, "davis_text_annotations"),
    ("ref-davis17", make_davis_raw, "DAVIS/Annotations_unsupervised"),
    ("ref-davis17", make_davis_converted, "train"),
]


def made(make: Callable[[Path], Path], root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    return make(root)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """All five sets below one root, as VISA and VIRST keep them."""
    root = tmp_path / "data"
    make_mevis(root / "mevis")
    make_revos(root / "ReVOS")
    make_lvvis(root / "lvvis")
    made(make_ref_youtube_vos, root / "refytvos")
    made(make_davis_converted, root / "davis17")
    return root


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("mevis", {"train": 12, "valid_u": 12, "valid": 12}),
        ("revos", {"train": 12, "valid": 2}),
        ("lv-vis", {"train": 12}),
        ("ref-youtube-vos", {"train": 13, "valid": 2}),
        ("ref-davis17", {"train": 12, "valid": 8}),
    ],
)
def test_one_root_for_all_sets(disk: Path, tmp_path: Path, name: str, sizes: dict[str, int]):
    cache = str(tmp_path / "cache")
    prepared, streamed = load(name, disk, cache_dir=cache), load(name, disk, cache_dir=cache, streaming=True)
    assert {split: len(rows) for split, rows in prepared.items()} == sizes
    assert all(list(prepared[split]) == list(streamed[split]) for split in sizes)
    assert {row["source"] for split in sizes for row in prepared[split]} == {name}


@pytest.mark.parametrize("index", range(len(TREES)))
def test_a_root_may_be_a_link_but_nothing_below_it(tmp_path: Path, index: int):
    name, make, part = TREES[index]
    root, link = made(make, tmp_path / "real"), tmp_path / "link"
    link.symlink_to(root)

    def rows(place: Path, **fields: bool) -> list[dict]:
        found = rows_of(builder_class(name)(data_dir=place, cache_dir=str(tmp_path / "cache"), **fields), "train")
        return [{**row, "frame_paths": None} for row in found]

    expected = rows(root)
    assert rows(link) == expected
    moved = (root / part).rename(tmp_path / "elsewhere")
    (root / part).symlink_to(moved)
    with pytest.raises(DataError, match="is a link out of the data root"):
        rows(root)
    assert rows(root, follow_links=True) == expected


def test_pngs_are_preferred_to_the_pickle(tmp_path: Path):
    root = make_ref_youtube_vos(tmp_path)
    # Of another release: every entry says that nothing is there.
    packed = {key: [None] * len(track) for key, track in youtube_packed().items()}
    (root / "train" / "mask_dict.pkl").write_bytes(pickle.dumps(packed))
    assert any(rows_of(RefYouTubeVOS(data_dir=root), "train")[0]["masks"])


@pytest.mark.parametrize(
    ("said", "read"),
    [
        # In Latin-1 a line of the second person may hold this sign; it ends no line.
        (b'"man\x85 with hat"', "man with hat"),
        # The quotation mark of the line goes, that of the sentence stays.
        (b'"the one called "man""', 'the one called "man"'),
        (b"\x93man\x94", "man"),
        (b'"man"\r', "man"),
    ],
)
def test_lines_of_the_second_person(tmp_path: Path, said: bytes, read: str):
    root = make_davis_raw(tmp_path)
    file = root / "davis_text_annotations" / "Davis17_annot2.txt"
    file.write_bytes(file.read_bytes().replace(b'2 "man"', b"2 " + said))
    os.utime(file, ns=(1, 1))
    found, rows = findings(RefDAVIS17(data_dir=root), "train")
    assert (found, len(rows)) == ([], 12)
    assert (rows[6]["expression_id"], rows[6]["expression"]) == ("6", read)
