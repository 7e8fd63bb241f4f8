"""Files of data sets that are damaged or hostile: read, or refused with a DataError; nothing executed or followed."""

import codecs
import io
import json
import os
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from virst_hf.data import files
from virst_hf.data.files import (
    cached_file_reader,
    content_hash,
    data_path,
    describe,
    frame_paths,
    image_size,
    list_images,
    read_image,
    read_json,
    read_label_map,
    read_text,
)
from virst_hf.data.pickles import read_pickle
from virst_hf.errors import DataError


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# --- JSON and text ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":'])
def test_json_of_500_000_levels(tmp_path: Path, opening: str):
    closing = "".join({"[": "]", "{": "}"}[sign] for sign in reversed(opening) if sign in "[{")
    for text in (opening * 500_000, opening * 500_000 + "1" + closing * 500_000):
        with pytest.raises(DataError, match="nested too deeply"):
            read_json(write(tmp_path / "deep.json", text))
        with pytest.raises(DataError, match="nested too deeply"):
            read_json(tmp_path / "deep.json", unique_keys=True)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" * 400 + ".0"])
def test_numbers_that_are_none(tmp_path: Path, number: str):
    with pytest.raises(DataError, match="not a number of JSON|too large for a number"):
        read_json(write(tmp_path / "a.json", f'{{"a": [{number}]}}'))


def test_a_number_of_5000_digits(tmp_path: Path):
    with pytest.raises(DataError, match="not a JSON file that can be read"):
        read_json(write(tmp_path / "a.json", "[" + "9" * 5000 + "]"))


def test_byte_order_mark_is_dropped(tmp_path: Path):
    assert read_json(write(tmp_path / "a.json", codecs.BOM_UTF8 + b'{"a": 1}')) == {"a": 1}
    assert read_text(write(tmp_path / "a.txt", codecs.BOM_UTF8 + b"a")) == "a"


def test_encodings(tmp_path: Path):
    path = write(tmp_path / "a.json", '["caf\xe9"]'.encode("cp1252"))
    with pytest.raises(DataError, match="not text in utf-8"):
        read_json(path)
    assert read_json(path, encodings=("utf-8", "cp1252")) == ["caf\xe9"]
    with pytest.raises(DataError, match="utf-8 or ascii"):
        read_text(path, ("utf-8", "ascii"))


@pytest.mark.parametrize("content", ["", "{", '{"a": 1,}', "[1] 2", "nul", "\0", "'a'", b"\xff\xfe{"])
def test_what_is_not_json(tmp_path: Path, content: str | bytes):
    with pytest.raises(DataError, match="a.json"):
        read_json(write(tmp_path / "a.json", content))


def test_missing_files_and_folders(tmp_path: Path):
    for path in (tmp_path / "none.json", tmp_path, tmp_path / ("a" * 5000), tmp_path / "a\0b"):
        with pytest.raises(DataError):
            read_json(path)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 10)
    assert read_json(write(tmp_path / "a.json", "[1]       ")) == [1]
    with pytest.raises(DataError, match="11 bytes"):
        read_json(write(tmp_path / "a.json", "[1]        "))


def test_a_pipe_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(DataError, match="no file"):
        read_json(tmp_path / "a.json")


def test_a_key_that_stands_twice(tmp_path: Path):
    path = write(tmp_path / "a.json", '{"a": {"video": 1, "video": 2}}')
    assert read_json(path) == {"a": {"video": 2}}
    with pytest.raises(DataError, match="'video' stands twice"):
        read_json(path, unique_keys=True)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(JSON, st.booleans())
def test_json_comes_back(tmp_path_factory: pytest.TempPathFactory, value: object, unique: bool):
    path = write(tmp_path_factory.getbasetemp() / "any.json", json.dumps(value))
    assert read_json(path, unique_keys=unique) == value


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_json_or_refused(tmp_path_factory: pytest.TempPathFactory, raw: bytes):
    path = write(tmp_path_factory.getbasetemp() / "bytes.json", raw)
    try:
        read_json(path, unique_keys=True)
    except DataError as error:
        assert str(path) in str(error)


@given(JSON)
def test_descriptions_are_short(value: object):
    assert 0 < len(describe(value)) < 500
    assert describe([[value]]) == "a list"


# --- paths -----------------------------------------------------------------------------------------------------------
BAD_NAMES = [
    "",
    ".",
    "..",
    "../a",
    "a/../../b",
    "a/..",
    "/etc/passwd",
    "//a",
    "a//b",
    "a/",
    "./a",
    "a\\b",
    "..\\a",
    "C:/a",
    "a\0b",
    "a\nb",
    "a\x7fb",
    "\ud800",
    "a" * 256,
    "\xe9" * 200,
    "a/" * 600 + "a",
    None,
    3,
    ["a"],
    {},
    b"a",
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: describe(name)[:20])
def test_names_that_are_refused(tmp_path: Path, name: object):
    for parts in ((name,), ("a", name)):
        for follow_links in (False, True):
            with pytest.raises(DataError, match="refused|not empty"):
                data_path(tmp_path, *parts, follow_links=follow_links)
    (tmp_path / "video").mkdir()
    with pytest.raises(DataError):
        frame_paths(tmp_path, "video", [name])


@pytest.mark.parametrize(
    "name", ["a", "a.jpg", "UVO/all/-a_b", "TAO/train/Charades/x", "..a", "a..b", "a b", "\xe9", "~"]
)
def test_names_that_are_taken(tmp_path: Path, name: str):
    assert data_path(tmp_path, name) == tmp_path / name


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=12) | st.text("./\\a~:\0", max_size=9), st.booleans())
def test_no_name_leaves_the_root(tmp_path_factory: pytest.TempPathFactory, name: str, follow_links: bool):
    root = tmp_path_factory.getbasetemp()
    try:
        path = data_path(root, name, follow_links=follow_links)
    except DataError:
        return
    assert os.path.normpath(path).startswith(f"{root}/") and path.resolve().is_relative_to(root.resolve())
    assert not path.exists() or path != root


def test_links(tmp_path: Path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root / "inside", outside):
        folder.mkdir(parents=True)
        write(folder / "00000.jpg", b"")
    (root / "link_in").symlink_to(root / "inside")
    (root / "link_out").symlink_to(outside)
    (root / "inside" / "00001.jpg").symlink_to(outside / "00000.jpg")
    (root / "circle").symlink_to(root / "circle")
    assert data_path(root, "link_in", "00000.jpg").is_file()
    assert frame_paths(root, "link_out", ["00000"], follow_links=True) == [root / "link_out/00000.jpg"]
    assert len(list_images(root, "inside", follow_links=True)) == 2
    for parts in (("link_out",), ("link_out", "00000.jpg"), ("link_out/00000.jpg",), ("link_out", "none.jpg")):
        with pytest.raises(DataError, match="link out of the data root .*follow_links=True"):
            data_path(root, *parts)
    for read in (lambda: frame_paths(root, "inside", ["00000"]), lambda: list_images(root, "inside")):
        with pytest.raises(DataError, match="link out of the data root"):
            read()
    with pytest.raises(DataError):
        frame_paths(root, "circle", ["00000"])


def test_the_root_itself_may_be_a_link(tmp_path: Path):
    write(tmp_path / "real/video/0.jpg", b"")
    (tmp_path / "root").symlink_to(tmp_path / "real")
    assert frame_paths(tmp_path / "root", "video", ["0"]) == [tmp_path / "root/video/0.jpg"]


def test_frames(tmp_path: Path):
    for name in ("00000.jpg", "00005.PNG", "00005.png", "00010.jpeg", "notes.txt", "sub/00015.jpg"):
        write(tmp_path / "v" / name, b"")
    assert [path.name for path in frame_paths(tmp_path, "v", ["00010", "00000", "00005"])] == [
        "00010.jpeg",
        "00000.jpg",
        "00005.png",
    ]
    assert [path.name for path in list_images(tmp_path, "v")] == ["00000.jpg", "00005.PNG", "00005.png", "00010.jpeg"]
    for name in ("00015", "notes", "sub"):
        with pytest.raises(DataError, match=f"has no frame {name} "):
            frame_paths(tmp_path, "v", ["00000", name])
    with pytest.raises(DataError, match="holds a path"):
        frame_paths(tmp_path, "v", ["sub/00015"])
    with pytest.raises(DataError, match="no folder"):
        frame_paths(tmp_path, "none", ["00000"])
    with pytest.raises(DataError, match="no folder"):
        list_images(tmp_path, "v/00000.jpg")


# --- images ----------------------------------------------------------------------------------------------------------
def png_head(width: int, height: int, mode: int = 2) -> bytes:
    """A PNG that says that it is this large, and holds nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, mode, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


READERS = (image_size, read_image, read_label_map)


@pytest.mark.parametrize("size", [(50_000, 50_000), (2**31 - 1, 2**31 - 1), (100_000_001, 1)])
@pytest.mark.parametrize("read", READERS)
def test_image_bombs(tmp_path: Path, size: tuple[int, int], read):
    with pytest.raises(DataError, match="bomb.png"):
        read(write(tmp_path / "bomb.png", png_head(*size, mode=0)))


@pytest.mark.parametrize("read", READERS[1:])
def test_images_with_less_than_they_say(tmp_path: Path, read):
    with pytest.raises(DataError, match="not an image that can be read"):
        read(write(tmp_path / "short.png", png_head(1000, 1000, mode=0)))


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
@pytest.mark.parametrize("read", READERS)
def test_truncated_images(tmp_path: Path, suffix: str, read):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "jpeg" if suffix == "jpg" else suffix)
    raw = buffer.getvalue()
    refused = 0
    for length in range(0, len(raw), max(1, len(raw) // 60)):
        try:
            read(write(tmp_path / f"a.{suffix}", raw[:length]))
        except DataError:
            refused += 1
    assert refused > (0 if read is image_size else 30)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutated_images(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    buffer = io.BytesIO()
    form = data.draw(st.sampled_from(["png", "jpeg", "bmp", "webp"]))
    Image.fromarray(np.eye(12, dtype=np.uint8) * 200).save(buffer, form)
    raw = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = write(tmp_path_factory.getbasetemp() / "mutated.png", bytes(raw))
    for read in READERS:
        try:
            read(path)
        except DataError:
            continue


def test_other_files_than_images(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.png")
    write(tmp_path / "text.png", b"text"), write(tmp_path / "empty.png", b"")
    for name in ("pipe.png", "a" * 5000, "none.png", "", "text.png", "empty.png"):
        for read in READERS:
            with pytest.raises(DataError):
                read(tmp_path / name)


def test_postscript_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Pillow takes a file by its content, and gives PostScript to Ghostscript."""
    called = tmp_path / "called"
    write(tmp_path / "bin" / "gs", f"#!/bin/sh\ntouch {called}\nexit 1\n").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    page = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    for read in READERS:
        with pytest.raises(DataError, match="not an image that can be read"):
            read(write(tmp_path / "a.png", page))
    assert not called.exists()


@pytest.mark.parametrize("form", ["gif", "tiff", "ppm", "tga", "ico", "pdf"])
def test_other_forms_of_images_are_refused(tmp_path: Path, form: str):
    Image.new("L", (16, 16)).save(tmp_path / "a", form)
    (tmp_path / "a").rename(tmp_path / "a.png")
    with pytest.raises(DataError, match="not an image that can be read"):
        read_image(tmp_path / "a.png")


def test_pixels_are_those_that_are_stored(tmp_path: Path):
    """Masks belong to the stored pixels, so a note that the camera was turned is not obeyed."""
    image = Image.fromarray(np.zeros((8, 12, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert image_size(tmp_path / "turned.jpg") == (8, 12)
    assert read_image(tmp_path / "turned.jpg").shape == (8, 12, 3)


def test_label_maps_keep_their_numbers(tmp_path: Path):
    numbers = (np.arange(256) % 256).astype(np.uint8).reshape(16, 16)
    grey = Image.fromarray(numbers)
    grey.save(tmp_path / "grey.png")
    palette = Image.fromarray(numbers)
    palette.putpalette([(37 * i) % 256 for i in range(768)])
    palette.save(tmp_path / "palette.png")
    for name in ("grey", "palette"):
        found = read_label_map(tmp_path / f"{name}.png")
        assert found.dtype == np.uint8 and np.array_equal(found, numbers)
    Image.fromarray(numbers > 100).save(tmp_path / "bits.png")
    assert np.array_equal(read_label_map(tmp_path / "bits.png"), numbers > 100)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "I;16", "CMYK"])
def test_label_maps_of_other_modes(tmp_path: Path, mode: str):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.new(mode, (4, 4)).save(path)
    with pytest.raises(DataError, match="has mode"):
        read_label_map(path)


# --- memory of files, and their hash ---------------------------------------------------------------------------------
def test_a_file_is_read_once_until_it_changes(tmp_path: Path):
    calls = []

    @cached_file_reader
    def read(path: Path) -> str:
        calls.append(path.name)
        return path.read_text()

    one, two, three = (write(tmp_path / name, name) for name in ("one", "two", "three"))
    assert read(one) is read(one) and calls == ["one"]
    os.utime(one, ns=(1, 1))
    assert read(one) == "one" and calls == ["one", "one"]
    write(one, "longer")
    assert read(one) == "longer"
    read(two), read(one), read(three)
    calls.clear()
    # Two are kept: `two` was used before `one`.
    assert (read(one), read(three)) == ("longer", "three") and calls == []
    read(two)
    assert calls == ["two"]
    with pytest.raises(DataError, match="no file"):
        read(tmp_path / "none")


def test_an_error_is_not_kept(tmp_path: Path):
    read = cached_file_reader(read_json)
    path = write(tmp_path / "a.json", "{")
    for _ in range(2):
        with pytest.raises(DataError):
            read(path)
    write(path, "{}")
    assert read(path) == {}


def test_hashes_change_with_what_they_are_of(tmp_path: Path):
    path, folder = write(tmp_path / "a.json", "[1]"), tmp_path / "maps"
    write(folder / "sub" / "1.png", b"1")
    seen = {content_hash([path, folder])}
    assert content_hash([path, folder]) in seen

    def changed() -> bool:
        fresh = content_hash([path, folder])
        new = fresh not in seen and len(fresh) == 32
        seen.add(fresh)
        return new

    write(path, "[2]")
    os.utime(path, ns=(1, 1))
    assert changed()
    os.utime(path, ns=(2, 2))
    assert not changed(), "a file counts by its content"
    write(folder / "2.png", b"2")
    assert changed()
    os.utime(folder / "sub" / "1.png", ns=(3, 3))
    assert changed()
    (folder / "2.png").unlink()
    assert changed()
    path.unlink()
    assert changed()
    assert content_hash([folder, path]) not in seen and content_hash([tmp_path / "none"]) != content_hash([])
    (folder / os.fsdecode(b"\xff.png")).write_bytes(b"")
    assert changed()


# --- pickles ---------------------------------------------------------------------------------------------------------
class Hostile:
    def __init__(self, *call: object) -> None:
        self.call = call

    def __reduce__(self) -> tuple:
        return self.call[0], tuple(self.call[1:])


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_calls_is_refused(tmp_path: Path, protocol: int):
    target = tmp_path / "written"
    for call in (
        (os.mkdir, str(target)),
        (eval, f"open({str(target)!r}, 'w')"),
        (bytearray, 10**12),
        (getattr, 1, "a"),
    ):
        path = write(tmp_path / "refs(unc).p", pickle.dumps([{"a": Hostile(*call)}], protocol))
        with pytest.raises(DataError, match="Nothing of it was executed"):
            read_pickle(path)
    assert not target.exists()


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(min_size=1),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=6,
    ),
    st.integers(0, pickle.HIGHEST_PROTOCOL),
)
def test_pickles_of_plain_data_come_back(tmp_path_factory: pytest.TempPathFactory, value: object, protocol: int):
    try:
        raw = pickle.dumps(value, protocol)
    except UnicodeEncodeError:
        return
    assert read_pickle(write(tmp_path_factory.getbasetemp() / "plain.p", raw)) == value


@settings(max_examples=1500, deadline=None)
@given(st.data())
def test_mutated_pickles_are_plain_data_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    value = [
        {"sent_ids": [0, 1], "ann_id": 7, "split": "train", "sentences": [{"raw": "caf\xe9", "b": b"1"}], "f": 1.5}
    ]
    raw = bytearray(pickle.dumps(value, data.draw(st.integers(0, pickle.HIGHEST_PROTOCOL))))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = write(tmp_path_factory.getbasetemp() / "mutated.p", bytes(raw[: data.draw(st.integers(1, len(raw)))]))
    try:
        read_pickle(path)
    except DataError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize(
    "raw", [b"", b".", b"N", b"((((", b"\x80\x63.", b"r\xff\xff\xff\x7f.", b"\x8d" + b"\xff" * 8 + b"."]
)
def test_odd_pickles(tmp_path: Path, raw: bytes):
    with pytest.raises(DataError, match="not a pickle of plain data"):
        read_pickle(write(tmp_path / "a.p", raw))
    # What was refused left nothing behind.
    assert read_pickle(write(tmp_path / "b.p", pickle.dumps([b"92207"], 2))) == [b"92207"]
