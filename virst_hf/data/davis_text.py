"""The sentences of Ref-DAVIS17 as they were released: four text files, one line for each object of each sequence."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .builder import Report
from .files import cached_file_reader, describe, read_text
from .mask_dict import whole_numbers
from .records import is_text

__all__ = ["NUM_ANNOTATORS", "TEXT_FILES", "TextFile", "merge_texts", "read_sequences", "read_text_file"]

# Name -> encoding, in the order of the annotators: two people, each after the first frame and after the whole video.
TEXT_FILES = {
    "Davis17_annot1.txt": "utf-8",
    "Davis17_annot1_full_video.txt": "utf-8",
    "Davis17_annot2.txt": "latin-1",
    "Davis17_annot2_full_video.txt": "latin-1",
}
NUM_ANNOTATORS = len(TEXT_FILES)
# Sequences that the text files spell in another way than DAVIS.
MISSPELT = {"clasic-car": "classic-car", "dog-scale": "dogs-scale", "motor-bike": "motorbike"}
# A quotation mark of Windows becomes a control character where the file is read as Latin-1.
QUOTES = "\"'\u201c\u201d\x93\x94"


@dataclass(frozen=True)
class TextFile:
    """
    What a text file says.

    Args:
        sentences (`dict[str, list[tuple[str, str]]]`): Sequence -> object id and sentence of each of its lines, sorted
            by the id as text, as the usual converter does.
        defects (`list[tuple[str, str, str]]`): Check, item and message of lines that could not be read.
    """

    sentences: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    defects: list[tuple[str, str, str]] = field(default_factory=list)


@cached_file_reader
def read_text_file(path: Path) -> TextFile:
    """The sentences of one of `TEXT_FILES`. A line is `<sequence> <object id> "<sentence>"`.

    Args:
        path (`pathlib.Path`): The file; its name says which encoding it has.

    Returns:
        [`TextFile`]: Its sentences and its defects.

    Raises:
        DataError: It is missing, or not in its encoding.
    """
    found = TextFile()
    seen: set[tuple[str, str]] = set()
    # Not splitlines(): it would also break a line at signs that Latin-1 text may hold, such as \x85.
    for number, line in enumerate(read_text(path, (TEXT_FILES[path.name],)).split("\n"), start=1):
        words = line.split()
        if not words:
            continue
        item = f"{path.name}, line {number}"
        sentence = _unquoted(" ".join(words[2:]))
        ids = whole_numbers(words[1]) if len(words) > 1 else None
        if ids is None or not is_text(sentence):
            message = f'expected <sequence> <object id> "<sentence>", found {describe(line)}.'
            found.defects.append(("bad_entry", item, message))
            continue
        name = MISSPELT.get(words[0], words[0])
        if (name, words[1]) in seen:
            found.defects.append(("duplicate", item, f"it is the second line about object {words[1]} of {name}."))
            continue
        seen.add((name, words[1]))
        found.sentences.setdefault(name, []).append((words[1], sentence))
    for lines in found.sentences.values():
        lines.sort()
    return found


def _unquoted(text: str) -> str:
    """A sentence without the quotation mark at its start and the one at its end."""
    start = 1 if text[:1] and text[0] in QUOTES else 0
    end = len(text) - 1 if len(text) > 1 and text[-1] in QUOTES else len(text)
    return text[start:end]


def merge_texts(name: str, files: Sequence[TextFile], report: Report) -> dict[str, dict[str, str]] | None:
    """The expressions of a sequence in the form of the converted tree: expression `4 * r + k` is what annotator `k`
    says of the object of rank `r`. Objects are ranked by their ids sorted as texts; what only some of the files have
    at the end is left out, as the usual converter does.

    Args:
        name (`str`): Sequence.
        files (`Sequence[TextFile]`): What each annotator says.
        report (`Report`): Told of each defect.

    Returns:
        `dict` or `None`: Expression id -> `exp` and `obj_id`; `None` after a defect.
    """
    lines = [file.sentences.get(name, []) for file in files]
    if not all(lines):
        report("bad_entry", name, "its split lists the sequence, but not each of the text files has a line about it.")
        return None
    expressions = {}
    for rank, group in enumerate(zip(*lines, strict=False)):
        owners = {owner for owner, _ in group}
        if len(owners) > 1:
            said = " and ".join(sorted(owners))
            message = f"the text files are about different objects at rank {rank} ({said}); a line is missing in one."
            report("bad_entry", name, message)
            return None
        for annotator, (owner, sentence) in enumerate(group):
            expressions[str(NUM_ANNOTATORS * rank + annotator)] = {"exp": sentence, "obj_id": owner}
    return expressions


def read_sequences(path: Path, report: Report) -> list[str]:
    """The sequences of a list in `ImageSets/2017`.

    Args:
        path (`pathlib.Path`): `train.txt` or `val.txt`.
        report (`Report`): Told of each defect.

    Returns:
        `list[str]`: Their names, sorted.

    Raises:
        DataError: It is missing, or no text.
    """
    names: set[str] = set()
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        name, item = line.strip(), f"{path.name}, line {number}"
        if not name:
            continue
        if "/" in name:
            report("unsafe_path", item, f"the name of a sequence holds a path: {describe(name)} is refused.")
        elif name in names:
            report("duplicate", item, f"{describe(name)} stands twice in the list.")
        else:
            names.add(name)
    return sorted(names)
