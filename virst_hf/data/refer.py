"""The layout of the refer API (lichengunc/refer): `refs(<split_by>)` says which sentences name which annotation of
`instances.json`. RefCOCO, RefCOCO+ and RefCOCOg have it, and so has the picture part of Shapes.

References come as the pickle of the release, as a JSON file of the same content, or as parquet in the columns of
`jxu124/refcoco` on the Hub; all three give the same rows."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..rle import check_rle, polygons_to_rle, union_rle
from .builder import Report, VirstDataConfig, VirstDatasetBuilder
from .files import MAX_FILE_BYTES, data_path, describe, image_size, read_json
from .mask_dict import own_type, whole_numbers
from .pickles import read_pickle
from .records import MAX_ID, is_text, make_row

__all__ = [
    "ReferBuilder",
    "ReferConfig",
    "ReferFiles",
    "ReferReader",
    "find_refer_files",
    "in_split",
    "segmentation_to_rle",
]

Rle = dict[str, Any]
# Who split a set -> its splits.
SPLITS_OF = {
    "unc": ("train", "val", "testA", "testB"),
    "umd": ("train", "val", "test"),
    "google": ("train", "val", "test"),
}
# Every name under which a set's folder is known; a folder of another set's name is not taken for one's own.
FOLDERS_OF = {"refcoco": ("refcoco",), "refcoco+": ("refcoco+", "refcocoplus"), "refcocog": ("refcocog",)}
# Where the pictures are, relative to the folder of a set or to the one above it.
IMAGE_FOLDERS = ("images/mscoco/images/train2014", "images/train2014", "train2014", "images")
PARQUET_COLUMNS = ("ann_id", "image_id", "split", "sentences", "raw_anns", "raw_image_info")
MAX_PARQUET_ROWS = 10_000_000


def in_split(stated: str, split: str) -> bool:
    """Whether a reference belongs to a split, by the rule of the refer API.

    Args:
        stated (`str`): What the reference says, such as `"testAB"`.
        split (`str`): The split.

    Returns:
        `bool`: `"testA"` takes what has an A in it, `"test"` what has "test" in it, others must be equal.

    Example:

    ```python
    >>> from virst_hf.data.refer import in_split
    >>> in_split("testAB", "testA"), in_split("testB", "test"), in_split("train", "val")
    (True, True, False)

    ```
    """
    if split in ("testA", "testB", "testC"):
        return split[-1] in stated
    return "test" in stated if split == "test" else stated == split


def segmentation_to_rle(segmentation: Any, size: tuple[int, int]) -> Rle | None:
    """The mask of a COCO annotation, whichever form it has.

    Args:
        segmentation (`Any`): A list of polygons, a list of RLE, one RLE, or an empty list for an empty mask.
        size (`tuple[int, int]`): Height and width of the picture.

    Returns:
        `dict` or `None`: The union of its parts (they may overlap); `None` where it is empty.

    Raises:
        DataError: It has another form, or is damaged.

    Example:

    ```python
    >>> from virst_hf.data.refer import segmentation_to_rle
    >>> segmentation_to_rle([[2, 1, 4, 1, 4, 3, 2, 3]], (4, 6))
    {'size': [4, 6], 'counts': '92207'}
    >>> segmentation_to_rle([], (4, 6)) is None
    True

    ```
    """
    if isinstance(segmentation, Mapping):
        return check_rle(segmentation, size)
    if not isinstance(segmentation, list):
        raise DataError(f'"segmentation" must be a list of polygons or an RLE, found {describe(segmentation)}.')
    if segmentation and isinstance(segmentation[0], Mapping):
        return union_rle([check_rle(rle, size) for rle in segmentation])
    return polygons_to_rle(segmentation, size)


# --- which files ----------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class ReferFiles:
    """
    The files of one set in the layout of the refer API.

    Args:
        refs (`tuple[pathlib.Path]`): One pickle or JSON file, or parquet files.
        instances (`pathlib.Path`, *optional*): `instances.json`; parquet files need none.
        images (`pathlib.Path`): Folder of the pictures.
        image_root (`pathlib.Path`): Folder that links among the pictures may not leave; `images` or one above it.
    """

    refs: tuple[Path, ...]
    instances: Path | None
    images: Path
    image_root: Path

    def annotations(self) -> list[Path]:
        """The references and the instances."""
        return [*self.refs, *([self.instances] if self.instances is not None else [])]

    def holds(self, stated: str, split: str | None) -> bool:
        """Whether what a reference states is of a split; `None` takes all. Parquet may say "test" for testA."""
        if split is None or in_split(stated, split):
            return True
        return self.instances is None and (stated, split) == ("test", "testA")


def find_refer_files(
    root: Path,
    folders: Sequence[str],
    split_by: str,
    image_root: str | None = None,
    parquet: bool = False,
    follow_links: bool = False,
) -> ReferFiles | None:
    """Find a set below `root`: in `refer_seg/<folder>`, in `<folder>`, or `root` as that folder itself.

    Args:
        root (`pathlib.Path`): Root of the data.
        folders (`Sequence[str]`): Names of the set's folder.
        split_by (`str`): `"unc"`, `"umd"` or `"google"`.
        image_root (`str`, *optional*): Folder of the pictures, or one above it, if they are elsewhere.
        parquet (`bool`, *optional*, defaults to `False`): Whether parquet files hold the splits of `split_by`.
        follow_links (`bool`, *optional*, defaults to `False`): Whether symbolic links may leave `root`.

    Returns:
        [`ReferFiles`] or `None`: The files, if there are references. JSON is taken before the pickle, as it is
        faster to read, and parquet last.

    Raises:
        DataError: A link leaves `root`, or `image_root` is no folder.
    """
    places = [(*above, folder) for above in (("refer_seg",), ()) for folder in folders]
    if root.name in folders or not any(root.name in names for names in FOLDERS_OF.values()):
        places.append(())
    for place in places:
        folder = root.joinpath(*place)
        names = [name for name in (f"refs({split_by}).json", f"refs({split_by}).p") if (folder / name).is_file()][:1]
        if not names and parquet:
            names = sorted(path.relative_to(folder).as_posix() for path in _parquet_files(folder))
        if names:
            refs = tuple(data_path(root, *place, name, follow_links=follow_links) for name in names)
            instances = None
            if refs[0].suffix != ".parquet":
                instances = data_path(root, *place, "instances.json", follow_links=follow_links)
            return ReferFiles(refs, instances, *_image_folder(root, folder, image_root))
    return None


def _parquet_files(folder: Path) -> list[Path]:
    """The parquet files of a folder, or of `data` in it, as a data set on the Hub has them."""
    found = list(folder.glob("*.parquet"))
    return found if found else list(folder.glob("data/*.parquet"))


def _image_folder(root: Path, folder: Path, image_root: str | None) -> tuple[Path, Path]:
    """Folder of the pictures, and the one that links may not leave."""
    if image_root is not None:
        given = Path(image_root).expanduser().absolute()
        if not given.is_dir():
            raise DataError(f"There is no folder {given} (image_root); expected the pictures of COCO train2014.")
        bases = [given]
        fallback = given
    else:
        bases = [folder, folder.parent]
        fallback = folder.parent / IMAGE_FOLDERS[0]
    for base in bases:
        for name in IMAGE_FOLDERS:
            if (base / name).is_dir():
                # Beside a root that is the set's own folder, the pictures are outside of it by the release's layout.
                return base / name, root if base.is_relative_to(root) else base
    return fallback, root if fallback.is_relative_to(root) else bases[-1]


# --- what they hold --------------------------------------------------------------------------------------------------
@dataclasses.dataclass
class _Index:
    """What the files say: split -> picture -> references, and the records by id. A defect has a split if it knows."""

    refs: dict[str, dict[str, list[dict[str, Any]]]] = dataclasses.field(default_factory=dict)
    images: dict[int, Any] = dataclasses.field(default_factory=dict)
    annotations: dict[int, Any] = dataclasses.field(default_factory=dict)
    defects: list[tuple[str | None, str, str, str]] = dataclasses.field(default_factory=list)


def _state(path: Path) -> tuple[str, int, int]:
    """What changes when a file changes."""
    try:
        state = path.stat()
    except OSError as error:
        raise DataError(f"There is no file {path}.") from error
    return str(path), state.st_size, state.st_mtime_ns


# Of `files.cached_file_reader` there would be one entry for each parquet file; this is one for the whole set.
@functools.lru_cache(maxsize=2)
def _read_index(refs: tuple[tuple[str, int, int], ...], instances: tuple[str, int, int] | None) -> _Index:
    """Everything about a set, read once for all splits and shards."""
    index = _Index()
    used: set[int] = set()
    for name, _, _ in refs:
        path = Path(name)
        content = _read_refs(path)
        if not isinstance(content, list):
            raise DataError(f"{path} must hold a list of references, found {describe(content)}.")
        for position, ref in enumerate(content):
            _index_ref(index, used, ref, f"{path.name}, reference {position}")
    if instances is not None:
        content = read_json(instances[0])
        lists = [content.get(key) if isinstance(content, dict) else None for key in ("images", "annotations")]
        if not all(isinstance(records, list) for records in lists):
            raise DataError(f'{instances[0]} must hold {{"images": [...], "annotations": [...]}}; it does not.')
        _index_records(index.images, lists[0], None, index, "image")
        _index_records(index.annotations, lists[1], used, index, "annotation")
    return index


def _read_refs(path: Path) -> Any:
    """The references of a file, as the release has them."""
    readers: dict[str, Callable[[Path], Any]] = {".json": read_json, ".p": read_pickle, ".parquet": _read_parquet}
    return readers[path.suffix](path)


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    """The references of a parquet file, with the COCO records still as JSON texts."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
            lacking = [name for name in PARQUET_COLUMNS if name not in file.schema_arrow.names]
            if lacking:
                raise DataError(f"{path} has no column {', '.join(lacking)}; expected those of jxu124/refcoco.")
            size = sum(group.total_byte_size for group in groups)
            if file.metadata.num_rows > MAX_PARQUET_ROWS or size > MAX_FILE_BYTES:
                raise DataError(f"{path} has {file.metadata.num_rows:,} rows of {size:,} bytes; too large to be read.")
            return file.read(columns=list(PARQUET_COLUMNS)).to_pylist()
    except DataError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise DataError(f"{path} is not a parquet file that can be read: {error}.") from error


def _index_ref(index: _Index, used: set[int], ref: Any, item: str) -> None:
    """Put one reference where its split and its picture are."""
    stated = ref.get("split") if isinstance(ref, dict) else None
    if not is_text(stated):
        index.defects.append((None, "bad_entry", item, f'"split" must be a text, found {describe(stated)}.'))
        return
    stated = "val" if stated == "validation" else stated
    numbers, image = whole_numbers(ref.get("ann_id")), ref.get("image_id")
    if numbers is None or not _is_id(image) or not isinstance(ref.get("sentences"), list):
        found = "; ".join(f"{key}: {describe(ref.get(key))}" for key in ("image_id", "ann_id", "sentences"))
        message = f"it needs an image_id and an ann_id, whole numbers, and a list of sentences; found {found}."
        index.defects.append((stated, "bad_entry", item, message))
        return
    # gRefCOCO writes -1 for "nothing in the picture fits".
    numbers = [] if numbers == [-1] else list(dict.fromkeys(numbers))
    used.update(numbers)
    kept = {"item": item, "annotations": numbers, "sentences": ref["sentences"]}
    index.refs.setdefault(stated, {}).setdefault(str(image), []).append(kept)
    if "raw_anns" in ref:
        for key, records, what in (
            ("raw_image_info", index.images, "image"),
            ("raw_anns", index.annotations, "annotation"),
        ):
            _index_records(records, [_json_text(ref.get(key))], None, index, what)


def _is_id(value: Any) -> bool:
    """Whether a value is a whole number that a record can hold."""
    return type(value) is int and abs(value) <= MAX_ID


def _json_text(text: Any) -> Any:
    """What a text of JSON holds; `None` if it is none."""
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return None


def _index_records(records: dict[int, Any], found: list[Any], used: set[int] | None, index: _Index, what: str) -> None:
    """COCO records by their id; of annotations only those that a sentence names, for there are four times as many."""
    for record in found:
        number = record.get("id") if isinstance(record, dict) else None
        if not _is_id(number):
            message = f'an {what} record must have an "id" that is a whole number, found {describe(number)}.'
            index.defects.append((None, "bad_entry", what, message))
        elif used is None or number in used:
            if _differ(records.setdefault(number, record), record):
                message = "its id stands twice, with different content."
                index.defects.append((None, "duplicate", f"{what} {number}", message))


def _differ(one: Any, other: Any) -> bool:
    """Whether two records differ; those too deep to be compared count as different."""
    try:
        return one != other
    except RecursionError:
        return True


# --- records ---------------------------------------------------------------------------------------------------------
class ReferReader:
    """
    Reads the records of one split in the layout of the refer API.

    Args:
        files ([`ReferFiles`]): As [`find_refer_files`] gives them.
        split (`str`, *optional*): A split by the rule of [`in_split`]; `None` takes every reference.
        report (`Report`): Told of each defect.
        common (`Mapping[str, Any]`): Fields of the record that are the same in the whole split.
        follow_links (`bool`, *optional*, defaults to `False`): Whether symbolic links of pictures may leave
            `files.image_root`.

    Raises:
        DataError: A file is missing or damaged as a whole.
    """

    def __init__(
        self,
        files: ReferFiles,
        split: str | None,
        report: Report,
        common: Mapping[str, Any],
        follow_links: bool = False,
    ) -> None:
        self.files, self.split, self.report = files, split, report
        self.common, self.follow_links = common, follow_links
        self.index = _index_of(files)
        matching = [refs for stated, refs in self.index.refs.items() if files.holds(stated, split)]
        self.refs = matching[0] if len(matching) == 1 else _merged(matching)

    def units(self) -> list[str]:
        """Pictures of the split in the order of the references; tells of the defects of the files.

        Returns:
            `list[str]`: Their ids.
        """
        for stated, check, item, message in self.index.defects:
            if stated is None or self.files.holds(stated, self.split):
                self.report(check, item, message)
        return list(self.refs)

    def rows(self, units: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Records of these pictures, one for each sentence.

        Args:
            units (`Sequence[str]`): Ids of pictures.

        Yields:
            `dict`: Records.
        """
        for unit in units:
            fields = self._image(unit)
            if fields is None:
                continue
            masks: dict[int, Rle | None] = {}
            broken: set[int] = set()
            seen: set[str] = set()
            for ref in self.refs.get(unit, []):
                if self._draw(unit, ref["annotations"], fields, masks, broken):
                    target = {
                        "object_ids": ref["annotations"],
                        "annotation_ids": ref["annotations"],
                        "masks": [union_rle(masks[number] for number in ref["annotations"])],
                    }
                    yield from self._sentences(ref, {**fields, **target}, seen)

    def _image(self, unit: str) -> dict[str, Any] | None:
        """The fields that say which picture it is; `None` after a defect."""
        record = self.index.images.get(int(unit))
        item = f"image {unit}"
        if record is None:
            self.report("unknown_id", item, "references name it, but there is no record of it among the images.")
            return None
        # The reference has a file name, too, but with a suffix (..._16.jpg) that no file has.
        name, size = record.get("file_name"), (record.get("height"), record.get("width"))
        if not is_text(name) or not all(type(number) is int and number > 0 for number in size):
            found = f"{describe(name)}, {describe(size[0])} and {describe(size[1])}"
            self.report("bad_entry", item, f"its record needs file_name, height and width; found {found}.")
            return None
        folder = self.files.images.relative_to(self.files.image_root).parts
        try:
            path = data_path(self.files.image_root, *folder, name, follow_links=self.follow_links)
        except DataError as error:
            self.report("unsafe_path", item, str(error))
            return None
        try:
            stored = image_size(path)
        except DataError as error:
            self.report("missing_frame", item, str(error))
            return None
        if stored != size:
            message = (
                f"its record says {describe(size[0])} x {describe(size[1])}, but {path} is {stored[0]} x {stored[1]}."
            )
            self.report("size_mismatch", item, message)
            return None
        return {
            "video_id": unit,
            "frame_names": [path.stem],
            "frame_paths": [str(path)],
            "height": size[0],
            "width": size[1],
        }

    def _draw(
        self,
        unit: str,
        numbers: Iterable[int],
        fields: Mapping[str, Any],
        masks: dict[int, Rle | None],
        broken: set[int],
    ) -> bool:
        """Draw the annotations that are not in `masks` yet; whether all of them could be."""
        for number in numbers:
            if number in masks or number in broken:
                continue
            record, item = self.index.annotations.get(number), f"image {unit}, annotation {number}"
            broken.add(number)
            if record is None:
                self.report("unknown_id", item, "a reference names it, but there is no record of it.")
            elif record.get("image_id") != int(unit):
                found = describe(record.get("image_id"))
                self.report("unknown_id", item, f"a reference puts it in this picture, its record in {found}.")
            else:
                try:
                    masks[number] = segmentation_to_rle(
                        record.get("segmentation"), (fields["height"], fields["width"])
                    )
                    broken.discard(number)
                except DataError as error:
                    kind = "mask_size" if "its frame is" in str(error) else "bad_mask"
                    self.report(kind, item, str(error))
        return not any(number in broken for number in numbers)

    def _sentences(
        self, ref: Mapping[str, Any], fields: Mapping[str, Any], seen: set[str]
    ) -> Iterator[dict[str, Any]]:
        """One record for each sentence of a reference."""
        for sentence in ref["sentences"]:
            entry = sentence if isinstance(sentence, dict) else {}
            number = entry.get("sent_id")
            # Where cleaning left nothing of a sentence ("sent"), what was typed ("raw") is still there.
            text = next((entry[key] for key in ("sent", "raw") if is_text(entry.get(key))), None)
            item = f"image {fields['video_id']}, sentence {describe(number)}"
            if not _is_id(number) or text is None:
                message = f"{ref['item']}: a sentence needs a sent_id, a whole number, and a text; this has not."
                self.report("bad_entry", item, message)
                continue
            key = str(number)
            if key in seen:
                self.report("duplicate", item, f"{ref['item']}: its sent_id stands twice.")
                continue
            seen.add(key)
            try:
                yield make_row(
                    **self.common, **fields, expression_id=key, expression=text, expression_type=own_type(entry)
                )
            except DataError as error:
                self.report("bad_entry", item, str(error))


def _index_of(files: ReferFiles) -> _Index:
    instances = None if files.instances is None else _state(files.instances)
    return _read_index(tuple(_state(path) for path in files.refs), instances)


def _merged(parts: Iterable[dict[str, list[dict[str, Any]]]]) -> dict[str, list[dict[str, Any]]]:
    """The references of several splits, such as testA and testAB."""
    merged: dict[str, list[dict[str, Any]]] = {}
    for part in parts:
        for unit, refs in part.items():
            merged.setdefault(unit, []).extend(refs)
    return merged


# --- the builders' base ----------------------------------------------------------------------------------------------
@dataclasses.dataclass
class ReferConfig(VirstDataConfig):
    """
    What can be chosen for RefCOCO, RefCOCO+ and RefCOCOg.

    Args:
        split_by (`str`): Who split the set: `"unc"` (RefCOCO, RefCOCO+), `"umd"` (RefCOCOg) or `"google"`.
        image_root (`str`, *optional*): Folder with the pictures of COCO train2014, if it is not in the tree.
    """

    split_by: str = "unc"
    image_root: str | None = None


class ReferBuilder(VirstDatasetBuilder):
    """Base of RefCOCO, RefCOCO+ and RefCOCOg; they differ in their name and in who split them."""

    CATEGORY = "referring_image"
    BUILDER_CONFIG_CLASS = ReferConfig

    def _files(self, root: Path) -> ReferFiles | None:
        known = [config.split_by for config in self.BUILDER_CONFIGS]
        if self.config.split_by not in known:
            raise DataError(f"{self.NAME} has no split_by {self.config.split_by!r}; expected one of {known}.")
        return find_refer_files(
            root,
            FOLDERS_OF[self.NAME],
            self.config.split_by,
            self.config.image_root,
            # The parquet files on the Hub hold the splits that papers use, not those of Google.
            parquet=self.config.split_by == known[0],
            follow_links=self.config.follow_links,
        )

    def _reader(self, root: Path, split: str, report: Report) -> ReferReader:
        files = self._files(root)
        if files is None:
            raise DataError(f"{root} does not look like {self.NAME} any more. Expected:\n{self.TREE}")
        common = {"category": self.CATEGORY, "source": self.NAME, "split": split}
        return ReferReader(files, split, report, common, self.config.follow_links)

    def find_splits(self, root: Path) -> list[str]:
        """Splits that occur in the references."""
        files = self._files(root)
        if files is None:
            return []
        stated = _index_of(files).refs
        return [split for split in SPLITS_OF[self.config.split_by] if any(files.holds(name, split) for name in stated)]

    def annotation_paths(self, root: Path, split: str) -> list[Path]:
        """The references and `instances.json`, or the parquet files."""
        files = self._files(root)
        return [] if files is None else files.annotations()

    def units(self, root: Path, split: str, report: Report) -> list[str]:
        """Pictures, in the order of the references."""
        return self._reader(root, split, report).units()

    def rows(self, root: Path, split: str, units: Sequence[str], report: Report) -> Iterator[dict[str, Any]]:
        """One record for each sentence."""
        yield from self._reader(root, split, report).rows(units)
