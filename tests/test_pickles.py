"""The reader of old pickles: plain data comes out equal, and nothing that a pickle asks for is ever called."""

import io
import os
import pickle
import pickletools
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virst_hf.data.pickles import read_pickle
from virst_hf.errors import DataError

PLAIN = [
    {
        "sent_ids": [0, 1],
        "file_name": "COCO_train2014_000000581857_16.jpg",
        "ann_id": 1719310,
        "sentences": [{"tokens": ["café", ""], "raw": "naïve", "sent_id": 2**40, "sent": "\u4e2d"}],
        "counts": b"92207\xff",
        "other": (None, True, False, -1.5, (), 10**30),
    }
]


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple:
        return self.function, self.arguments


def written(folder: Path, raw: bytes) -> Path:
    path = folder / "refs.p"
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_of_every_protocol(tmp_path: Path, protocol: int):
    assert read_pickle(written(tmp_path, pickle.dumps(PLAIN, protocol=protocol))) == PLAIN


def test_shared_objects(tmp_path: Path):
    inner = ["cup"]
    first, second = read_pickle(written(tmp_path, pickle.dumps([inner, inner])))
    assert first == second == ["cup"]


@pytest.mark.parametrize(("raw", "text"), [(b"caf\xc3\xa9", "café"), (b"caf\xe9", "café"), (b"cup", "cup")])
def test_texts_of_python_2(tmp_path: Path, raw: bytes, text: str):
    """Protocol 2 of Python 2 writes `str` as bytes of no stated encoding."""
    stream = b"\x80\x02" + b"U" + bytes([len(raw)]) + raw + b"."
    assert read_pickle(written(tmp_path, stream)) == text


def test_protocol_0_of_python_2(tmp_path: Path):
    """As cPickle wrote it: texts quoted or escaped, long numbers with an L, truths as I00 and I01."""
    stream = (
        b"(lp1\n(dp2\nS'ann_id'\np3\nI1719310\nsS'image_id'\np4\nL581857L\nsS'sent'\np5\nVcaf\\u00e9\np6\n"
        b"sS'raw'\np7\nS\"it's \\xc3\\xa9\"\np8\nsS'crowd'\nI01\nsS'area'\nF0.5\nsa."
    )
    expected = {"ann_id": 1719310, "image_id": 581857, "sent": "café", "raw": "it's é", "crowd": True, "area": 0.5}
    assert read_pickle(written(tmp_path, stream)) == [expected]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("deep", [False, True])
def test_os_system(tmp_path: Path, protocol: int, deep: bool):
    call = Call(os.system, f"touch {tmp_path / 'executed'}")
    raw = pickle.dumps([{"sentences": [call]}] if deep else call, protocol=protocol)
    with pytest.raises(DataError, match="asks for .*system.*Nothing of it was executed"):
        read_pickle(written(tmp_path, raw))
    assert not (tmp_path / "executed").exists()


def test_os_system_written_by_hand(tmp_path: Path):
    raw = b"cos\nsystem\n(S'touch " + str(tmp_path / "executed").encode() + b"'\ntR."
    with pytest.raises(DataError, match="os.system"):
        read_pickle(written(tmp_path, raw))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["eval", "exec", "getattr", "__import__", "dict", "object"])
def test_every_builtin_is_refused(tmp_path: Path, name: str):
    for protocol in (b"\x80\x02cbuiltins\n%s\n.", b"\x80\x02c__builtin__\n%s\n."):
        with pytest.raises(DataError, match=name):
            read_pickle(written(tmp_path, protocol % name.encode()))


def test_eval_inside_a_call(tmp_path: Path):
    target = tmp_path / "executed"
    raw = pickle.dumps(Call(eval, f"open({str(target)!r}, 'w')"), protocol=2)
    with pytest.raises(DataError):
        read_pickle(written(tmp_path, raw))
    # A name with dots reaches through a module; the name of the one permitted function does not help.
    for name in (
        b"_codecs\nencode.__class__",
        b"_codecs\nlookup",
        b"codecs\nencode",
        b"_codecs\nencode.__self__.decode",
    ):
        with pytest.raises(DataError, match="asks for"):
            read_pickle(written(tmp_path, b"\x80\x04c" + name + b"\n."))
    assert not target.exists()


@pytest.mark.parametrize(
    "arguments",
    [("text", "rot13"), ("text", "utf-8"), (b"text", "latin1"), ("\u4e2d", "latin1"), (), ("a", "latin1", 1)],
)
def test_the_call_for_bytes_is_not_a_general_one(tmp_path: Path, arguments: tuple):
    stream = io.BytesIO()
    pickler = pickle._Pickler(stream, protocol=2)
    pickler.write(b"\x80\x02c_codecs\nencode\n")
    if b"text" in arguments:
        # The letter C: bytes as protocol 3 writes them.
        pickler.write(b"(C\x04textX\x06\0\0\0latin1t")
    else:
        pickler.save(arguments)
    pickler.write(b"R.")
    with pytest.raises(DataError):
        read_pickle(written(tmp_path, stream.getvalue()))


def test_objects_built_without_a_call(tmp_path: Path):
    """INST, OBJ, NEWOBJ and BUILD make objects, too."""
    for raw in (
        b"(ios\nsystem\n.",
        b"(cos\nsystem\nS'ls'\no.",
        b"\x80\x02cos\nsystem\n)\x81.",
        b"\x80\x04c_codecs\nencode\n)\x81.",
        b"\x80\x02c_codecs\nencode\n}X\x01\0\0\0aK\x01sb.",
        b"\x80\x02]}X\x06\0\0\0appendK\x01sb.",
    ):
        with pytest.raises(DataError):
            read_pickle(written(tmp_path, raw))


@pytest.mark.parametrize("raw", [b"Pabc\n.", b"\x80\x02K\x01Q."])
def test_persistent_ids(tmp_path: Path, raw: bytes):
    with pytest.raises(DataError, match="persistent id|instruction"):
        read_pickle(written(tmp_path, raw))


@pytest.mark.parametrize("raw", [b"\x80\x02\x82\x01.", b"\x80\x02\x83\x01\x00.", b"\x80\x02\x84\x01\0\0\0."])
def test_extension_codes(tmp_path: Path, raw: bytes, monkeypatch: pytest.MonkeyPatch):
    import copyreg

    monkeypatch.setitem(copyreg._inverted_registry, 1, ("os", "system"))
    with pytest.raises(DataError, match="extension code|instruction"):
        read_pickle(written(tmp_path, raw))


def test_out_of_band_buffers(tmp_path: Path):
    with pytest.raises(DataError):
        read_pickle(written(tmp_path, b"\x80\x05\x97."))


# A limit on memory would be met at once by what these ask for: gigabytes and more.
BOMBS = {
    "a memo index of two thousand million": b"]r\xff\xff\xff\x7f.",
    "a memo index as text": b"]p99999999999999\n.",
    "bytes of 2^62": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"a.",
    "a text of 2^62": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"a.",
    "bytes of 2^63": b"\x80\x04\x8e" + struct.pack("<Q", 2**63) + b"a.",
    "a byte array of 2^40": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"a.",
    "bytes of 2^32 - 1": b"B\xff\xff\xff\xffa.",
    "a negative length": b"T\xff\xff\xff\xffa.",
    "a frame of 2^62": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.",
    "a number of 2^31 - 1 bytes": b"\x8b\xff\xff\xff\x7fa.",
    "a number of many digits": b"I" + b"9" * 100_000 + b"\n.",
}


@pytest.mark.parametrize("name", BOMBS)
def test_memory_bombs(tmp_path: Path, name: str):
    import tracemalloc

    path = written(tmp_path, BOMBS[name])
    tracemalloc.start()
    try:
        value = read_pickle(path)
    except DataError:
        pass
    else:
        # A memo index names a place, and a frame is only read ahead; both cost nothing.
        assert value in ([], None)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 20_000_000


@pytest.mark.parametrize("depth", [100, 100_000])
def test_deep_nesting(tmp_path: Path, depth: int):
    """Lists in lists, as far as memory goes, are no call in a call; taking them apart is up to the caller."""
    value = read_pickle(written(tmp_path, b"]" * depth + b"a" * (depth - 1) + b"."))
    for _ in range(depth - 1):
        assert len(value) == 1
        value = value[0]
    assert value == []


@pytest.mark.parametrize("fill", [b"}%sK\x01s.", b"}(%sK\x01u.", b"(%sK\x01d."])
def test_tuples_cannot_be_keys(tmp_path: Path, fill: bytes):
    """A key is hashed to the bottom: deep tuples end the stack, and pairs of one another take 2^100 steps."""
    for key in (b")" + b"\x85" * 100_000, b")" + b"2\x86" * 100):
        with pytest.raises(DataError, match="a key is neither"):
            read_pickle(written(tmp_path, fill % key))


@pytest.mark.parametrize(
    "raw", [b"", b".", b"\x80", b"\x80\x09N.", b"]", b"(1", b"h\x05.", b"0.", b"\xfe", b"\x80\x02}]K\x01s."]
)
def test_damaged(tmp_path: Path, raw: bytes):
    with pytest.raises(DataError, match="not a pickle of plain data"):
        read_pickle(written(tmp_path, raw))


def test_missing(tmp_path: Path):
    with pytest.raises(DataError, match="There is no file"):
        read_pickle(tmp_path / "refs.p")


def is_plain(value: Any, depth: int = 0) -> bool:
    if depth > 50:
        return True
    if isinstance(value, dict):
        return all(is_plain(part, depth + 1) for pair in value.items() for part in pair)
    if isinstance(value, list | tuple | set | frozenset):
        return all(is_plain(part, depth + 1) for part in value)
    # A global alone is the function that stands for bytes; it does nothing but that.
    return value is None or isinstance(value, bool | int | float | str | bytes | bytearray) or callable(value)


OPCODES = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]
SEEDS = [pickle.dumps(PLAIN, protocol=protocol) for protocol in (0, 2, 4)]


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_mutated_pickles(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    raw = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(raw)))
        part = data.draw(st.sampled_from(OPCODES) | st.binary(max_size=4))
        raw[place : place + data.draw(st.integers(0, 4))] = part
    path = written(tmp_path_factory.getbasetemp(), bytes(raw))
    try:
        value = read_pickle(path)
    except DataError:
        return
    assert is_plain(value)
