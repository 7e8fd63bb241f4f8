"""A reader for the pickles of old releases that builds lists, dictionaries, texts and numbers, and calls nothing."""

import io
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import DataError
from .files import read_bytes

__all__ = ["read_pickle"]

PICKLE_ERRORS = (
    pickle.UnpicklingError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    EOFError,
    MemoryError,
    RecursionError,
    struct.error,
)


def _bytes_of(text: Any, encoding: Any = "latin1") -> bytes:
    """What protocols 0 to 2 write for bytes: a call of `_codecs.encode(text, "latin1")`."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("bytes are written in an unusual way")
    return text.encode("latin-1")


def _refuse(unpickler: pickle._Unpickler) -> None:
    raise pickle.UnpicklingError("it has an instruction that plain data does not need")


def _key_checked(load: Callable[[pickle._Unpickler], None], first: int) -> Callable[[pickle._Unpickler], None]:
    """An instruction that fills a dictionary from the stack, after a look at the keys: to hash tuples of tuples that
    name one another twice takes for ever."""

    def checked(unpickler: pickle._Unpickler) -> None:
        if not all(isinstance(key, str | bytes | int) for key in unpickler.stack[first::2]):
            raise pickle.UnpicklingError("a key is neither text nor a number")
        load(unpickler)

    return checked


# Of the instructions that are not for plain data, BUILD would let a file set attributes of `_bytes_of`, and BYTEARRAY8
# sets aside as much memory as the file says.
REFUSED = (
    "BUILD INST OBJ NEWOBJ NEWOBJ_EX EXT1 EXT2 EXT4 PERSID BINPERSID BYTEARRAY8 NEXT_BUFFER "
    "READONLY_BUFFER EMPTY_SET ADDITEMS FROZENSET"
).split()


# The unpickler in Python: the one in C sets aside as much memory as a forged memo index asks for.
class _PlainUnpickler(pickle._Unpickler):
    """Refuses every global, every extension code and every persistent id."""

    dispatch = {
        **pickle._Unpickler.dispatch,
        **{getattr(pickle, name)[0]: _refuse for name in REFUSED},
        pickle.DICT[0]: _key_checked(pickle._Unpickler.load_dict, 0),
        pickle.SETITEM[0]: _key_checked(pickle._Unpickler.load_setitem, -2),
        pickle.SETITEMS[0]: _key_checked(pickle._Unpickler.load_setitems, 0),
    }

    def find_class(self, module: str, name: str) -> Any:
        """Only the function that stands for bytes, and in place of it our own."""
        if (module, name) == ("_codecs", "encode"):
            return _bytes_of
        raise pickle.UnpicklingError(f"it asks for {module}.{name}"[:120])

    def get_extension(self, code: int) -> None:
        """Extension codes are names of globals."""
        raise pickle.UnpicklingError("it asks for an extension code")

    def persistent_load(self, pid: Any) -> Any:
        """Persistent ids point to something outside of the file."""
        raise pickle.UnpicklingError("it asks for a persistent id")


def read_pickle(path: str | os.PathLike) -> Any:
    """The content of a pickle that holds nothing but lists, tuples, dictionaries, texts, bytes, numbers and None.

    Args:
        path (`str` or `os.PathLike`): Such as `refs(unc).p`. Texts of Python 2 are read as UTF-8, else as Latin-1.

    Returns:
        `Any`: The content.

    Raises:
        DataError: It is missing, damaged, or asks for any class or function. Nothing of it was executed.
    """
    raw = read_bytes(Path(path))
    for encoding in ("utf-8", "latin-1"):
        try:
            return _PlainUnpickler(io.BytesIO(raw), encoding=encoding).load()
        except UnicodeDecodeError as error:
            found = str(error)
        except PICKLE_ERRORS as error:
            found = f"{type(error).__name__}: {error}"
            break
    raise DataError(
        f"{path} is not a pickle of plain data ({found}). Nothing of it was executed. If you trust its origin, "
        "convert it to JSON where it was made."
    )
