"""The layout that MeViS began: `meta_expressions.json` says what is asked of each video, `mask_dict.json` has the
masks of every annotated object. ReVOS, LV-VIS as VISA packs it, Shapes and own data have it, too."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..rle import check_rle, union_rle
from .builder import Report
from .files import UnsafePathError, cached_file_reader, describe, frame_paths, image_size, read_json
from .records import MAX_ID, is_text, make_row

__all__ = ["ExpressionReader", "read_mask_dict", "read_videos", "whole_numbers"]

Rle = dict[str, Any]


@cached_file_reader
def read_videos(path: Path) -> dict[str, Any]:
    """The videos of a `meta_expressions.json`.

    Args:
        path (`pathlib.Path`): The file.

    Returns:
        `dict`: Video name -> what the file says of it, unchecked.

    Raises:
        DataError: It is no such file.
    """
    content = read_json(path, unique_keys=True)
    videos = content.get("videos") if isinstance(content, dict) else None
    if not isinstance(videos, dict):
        raise DataError(
            f'{path} must hold {{"videos": {{name: {{"expressions": ..., "frames": ...}}}}}}; it does not.'
        )
    return videos


@cached_file_reader
def read_mask_dict(path: Path) -> dict[str, Any]:
    """The masks of a `mask_dict.json`.

    Args:
        path (`pathlib.Path`): The file.

    Returns:
        `dict`: Annotation id as text -> list with an RLE or None for each frame of its video, unchecked.

    Raises:
        DataError: It is no such file.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold {{annotation id: [mask of each frame]}}, found {describe(content)}.")
    return content


def whole_numbers(value: Any) -> list[int] | None:
    """A list of ids, where one id may stand without its list, and as text; `None` if it is anything else.

    Args:
        value (`Any`): From a JSON file.

    Returns:
        `list[int]` or `None`: The ids.

    Example:

    ```python
    >>> from virst_hf.data.mask_dict import whole_numbers
    >>> whole_numbers([3, 1]), whole_numbers("2"), whole_numbers({})
    ([3, 1], [2], None)

    ```
    """
    numbers = []
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str) and item.isascii() and item.isdigit() and len(item) < 19:
            item = int(item)
        if type(item) is not int or abs(item) > MAX_ID:
            return None
        numbers.append(item)
    return numbers


class ExpressionReader:
    """
    Reads the records of videos in the layout of MeViS. One object serves one split.

    Args:
        root (`pathlib.Path`): Root of the data set, which no path may leave.
        folder (`str`): Folder of the videos' frame folders, relative to `root`.
        videos (`Mapping[str, Any]`): As [`read_videos`] gives them.
        masks (`Mapping[str, Any]`, *optional*): As [`read_mask_dict`] gives them; `None` for a split without masks.
        report (`Report`): Told of each defect.
        common (`Mapping[str, Any]`): Fields of the record that are the same in the whole split.
        expression_type (`Callable`, *optional*): Type of an expression from its JSON entry; `None` for the default.
        clean (`Callable`, *optional*): Applied to the text of an expression.
        follow_links (`bool`, *optional*, defaults to `False`): Whether symbolic links may leave `root`.
    """

    def __init__(
        self,
        root: Path,
        folder: str,
        videos: Mapping[str, Any],
        masks: Mapping[str, Any] | None,
        report: Report,
        common: Mapping[str, Any],
        expression_type: Callable[[Mapping[str, Any]], str | None] | None = None,
        clean: Callable[[str], str] = str,
        follow_links: bool = False,
    ) -> None:
        self.root, self.folder, self.videos, self.masks = root, folder, videos, masks
        self.report, self.common, self.follow_links = report, common, follow_links
        self.expression_type = expression_type if expression_type is not None else own_type
        self.clean = clean

    def rows(self, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Records of the expressions of these videos, in the order of the file.

        Args:
            names (`Sequence[str]`): Videos.

        Yields:
            `dict`: Records.
        """
        for name in names:
            video = self._video(name)
            if video is None:
                continue
            fields, expressions = video
            tracks: dict[int, list[Rle | None] | None] = {}
            united: dict[tuple[int, ...], list[Rle | None]] = {}
            for key, entry in expressions.items():
                row = self._row(name, key, entry, fields, tracks, united)
                if row is not None:
                    yield row

    def _video(self, name: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """What all expressions of a video share, and the expressions; `None` after a defect."""
        entry = self.videos.get(name)
        expressions = entry.get("expressions") if isinstance(entry, dict) else None
        frames = entry.get("frames") if isinstance(entry, dict) else None
        if not isinstance(expressions, dict):
            found = describe(expressions)
            self.report("json_version", name, f'the video has no "expressions" ({found}); is this meta_expressions?')
            return None
        if not isinstance(frames, list) or not frames or not all(is_text(frame) for frame in frames):
            self.report("bad_entry", name, '"frames" must be a list of names with at least one.')
            return None
        if len(set(frames)) != len(frames):
            self.report("duplicate", name, "a frame stands twice in its list.")
            return None
        if frames != sorted(frames):
            self.report("unsorted_frames", name, "its frames are not in order, so masks could belong to others; sort.")
            return None
        try:
            paths = frame_paths(self.root, f"{self.folder}/{name}", frames, follow_links=self.follow_links)
            height, width = image_size(paths[0])
        except DataError as error:
            unsafe = isinstance(error, UnsafePathError)
            self.report("unsafe_path" if unsafe else "missing_frame", name, str(error))
            return None
        stated = (entry.get("height", height), entry.get("width", width))
        if stated != (height, width):
            said = f"{describe(stated[0])} x {describe(stated[1])}"
            self.report("size_mismatch", name, f"the file says {said}, but its frames are {height} x {width}.")
            return None
        fields = {
            "video_id": name,
            "frame_names": frames,
            "frame_paths": [str(path) for path in paths],
            "height": height,
            "width": width,
        }
        return fields, expressions

    def _row(
        self,
        name: str,
        key: str,
        entry: Any,
        fields: Mapping[str, Any],
        tracks: dict[int, list[Rle | None] | None],
        united: dict[tuple[int, ...], list[Rle | None]],
    ) -> dict[str, Any] | None:
        """One record, or `None` after a defect."""
        item = f"{name}/{key}"
        text = entry.get("exp") if isinstance(entry, dict) else None
        if not is_text(text) or not is_text(key):
            self.report("bad_entry", item, f'"exp" must be a text with something in it, found {describe(text)}.')
            return None
        objects: list[int] | None = []
        annotations: list[int] | None = []
        masks = None
        try:
            kind = self.expression_type(entry)
        except DataError as error:
            self.report("bad_entry", item, str(error))
            return None
        if self.masks is not None:
            if not {"obj_id", "anno_id"} & set(entry) and kind != "no_target":
                # Taken for "nothing fits", it would teach that.
                self.report(
                    "bad_entry", item, 'it has neither "obj_id" nor "anno_id"; lists without ids say: no target.'
                )
                return None
            objects, annotations = whole_numbers(entry.get("obj_id", [])), whole_numbers(entry.get("anno_id", []))
            if objects is None or annotations is None or len(objects) != len(annotations):
                self.report("bad_entry", item, '"obj_id" and "anno_id" must be lists of as many whole numbers.')
                return None
            ids = tuple(sorted(set(annotations)))
            if ids not in united:
                united[ids] = self._united(name, ids, fields, tracks)
            masks = united[ids]
            if masks is None:
                return None
        target = {"object_ids": objects, "annotation_ids": annotations, "masks": masks}
        return self._record(name, key, entry, {**fields, **target})

    def _record(
        self, name: str, key: str, entry: Mapping[str, Any], fields: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """One record, or `None` after a defect."""
        try:
            return make_row(
                **self.common,
                **fields,
                expression_id=key,
                expression=self.clean(entry["exp"]),
                expression_type=self.expression_type(entry),
            )
        except DataError as error:
            self.report("bad_entry", f"{name}/{key}", str(error))
            return None

    def _united(
        self, name: str, ids: tuple[int, ...], fields: Mapping[str, Any], tracks: dict[int, list[Rle | None] | None]
    ) -> list[Rle | None] | None:
        """The union of some objects in each frame; `None` after a defect of one of them."""
        for number in ids:
            if number not in tracks:
                tracks[number] = self._track(
                    name, number, (fields["height"], fields["width"]), len(fields["frame_names"])
                )
        chosen = [tracks[number] for number in ids]
        if any(track is None for track in chosen):
            return None
        if len(chosen) == 1:
            return chosen[0]
        return [union_rle(track[t] for track in chosen) for t in range(len(fields["frame_names"]))]

    def _track(self, name: str, number: int, size: tuple[int, int], length: int) -> list[Rle | None] | None:
        """The masks of one object, checked; `None` after a defect."""
        item = f"{name}, annotation {number}"
        track = self.masks.get(str(number))
        if not isinstance(track, list):
            self.report("unknown_id", item, f"an expression names it, but it has no masks ({describe(track)}).")
            return None
        if len(track) != length:
            self.report("mask_count", item, f"it has {len(track)} masks, but its video has {length} frames.")
            return None
        checked = []
        for index, rle in enumerate(track):
            try:
                checked.append(check_rle(rle, size))
            except DataError as error:
                kind = "mask_size" if "its frame is" in str(error) else "bad_mask"
                self.report(kind, f"{item}, frame {index}", str(error))
                return None
        return checked


def own_type(entry: Mapping[str, Any]) -> str | None:
    """The type that an expression itself states, as Shapes and own data may.

    Args:
        entry (`Mapping[str, Any]`): What the JSON says of the expression.

    Returns:
        `str` or `None`: The text under `"type"`, if it is one.
    """
    stated = entry.get("type")
    return stated if is_text(stated) else None
