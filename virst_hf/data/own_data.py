"""A user's own videos and masks: the layout of MeViS, or one flat JSON list."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError, VideoError
from ..rle import check_rle, encode_rle
from ..video_io import natural_key, open_video
from .builder import Report, VirstDatasetBuilder
from .files import (
    cached_file_reader,
    data_path,
    describe,
    image_size,
    list_images,
    read_json,
    read_label_map,
)
from .mask_dict import ExpressionReader, own_type, read_mask_dict, read_videos, whole_numbers
from .records import is_text, make_row

__all__ = ["OwnData"]

EXPRESSIONS, MASKS = "meta_expressions.json", "mask_dict.json"
# A folder without split folders holds one split of this name.
ONLY_SPLIT = "train"


@cached_file_reader
def read_items(path: Path) -> list[Any]:
    """The items of a flat JSON file.

    Args:
        path (`pathlib.Path`): The file.

    Returns:
        `list`: What it holds, unchecked.

    Raises:
        DataError: It is no JSON list.
    """
    content = read_json(path, unique_keys=True)
    if not isinstance(content, list):
        raise DataError(
            f'{path} must hold a list of {{"video": ..., "expression": ..., "masks": ... or "mask_folder": ...}}; '
            f"found {describe(content)}."
        )
    return content


class OwnData(VirstDatasetBuilder):
    """
    Own videos and masks. `data_dir` is a folder, or a flat JSON file itself. An item of the flat form is
    `{"video": <video file or folder of frames>, "expression": <text>}` with `"masks"` (a list with an RLE or null for
    each frame) or `"mask_folder"` (a PNG of 0 and other values for each frame, in the order of their names; with
    `"object_ids": [2]` only these values count), and optionally `"expression_id"`, `"type"` and `"answer"`. Paths are
    relative to the JSON file. Neither masks nor folder: the item is for prediction alone.
    """

    NAME = "own"
    CATEGORY = "rvos"
    SPLITS = ("train", "valid", "test")
    TREE = """\
root/
  <split>/  JPEGImages/<video>/00000.jpg ...   mask_dict.json   meta_expressions.json     (as MeViS; any name of split)
or root/ itself as one such split, or
root/
  <split>.json   [{"video": "clips/a.mp4", "expression": "the ball", "masks": [{"size": ..., "counts": ...}, null]},
                  {"video": "frames/b", "expression": "the dog", "mask_folder": "masks/b"}]
  clips/ frames/ masks/ ...                                   (wherever the JSON says, below its folder)
or such a JSON file itself"""

    def _files(self, root: Path) -> dict[str, Path]:
        """Split -> its file of expressions."""
        if root.is_file():
            return {_split_name(root.stem): root}
        if (root / EXPRESSIONS).is_file():
            return {ONLY_SPLIT: root / EXPRESSIONS}
        found = {
            _split_name(folder.name): folder / EXPRESSIONS
            for folder in sorted(root.iterdir())
            if (folder / EXPRESSIONS).is_file()
        }
        if not found:
            found = {_split_name(file.stem): file for file in sorted(root.glob("*.json")) if file.name != MASKS}
        return found

    def _masks(self, expressions: Path) -> Path:
        """The file of masks beside a file of expressions; a link out of the root is refused."""
        return data_path(expressions.parent, MASKS, follow_links=self.config.follow_links)

    def find_splits(self, root: Path) -> list[str]:
        """Every split folder or JSON file."""
        return list(self._files(root))

    def annotation_paths(self, root: Path, split: str) -> list[Path]:
        """The JSON files, and the folders of masks that a flat one names."""
        path = self._files(root)[split]
        if path.name == EXPRESSIONS:
            return [path, self._masks(path)]
        folders = [item.get("mask_folder") for item in read_items(path) if isinstance(item, dict)]
        names = sorted(set(filter(is_text, folders)))
        below = [data_path(path.parent, name, follow_links=True) for name in names]
        return [path, *below]

    def units(self, root: Path, split: str, report: Report) -> list[str]:
        """Videos, in the order of the file."""
        path = self._files(root)[split]
        if path.name == EXPRESSIONS:
            return list(read_videos(path))
        videos = {}
        for index, item in enumerate(read_items(path)):
            video = item.get("video") if isinstance(item, dict) else None
            if not is_text(video) or not is_text(item.get("expression")):
                report("bad_entry", f"item {index}", 'it needs "video" and "expression", both texts.')
                continue
            videos[video] = None
        return list(videos)

    def rows(self, root: Path, split: str, units: Sequence[str], report: Report) -> Iterator[dict[str, Any]]:
        """One record for each expression."""
        path = self._files(root)[split]
        common = {"category": self.CATEGORY, "source": self.NAME, "split": split}
        if path.name == EXPRESSIONS:
            masks = self._masks(path)
            base = path.parent.relative_to(root).as_posix()
            reader = ExpressionReader(
                root,
                "JPEGImages" if base == "." else f"{base}/JPEGImages",
                read_videos(path),
                read_mask_dict(masks) if masks.is_file() else None,
                report,
                common,
                follow_links=self.config.follow_links,
            )
            yield from reader.rows(units)
            return
        items: dict[str, list[dict[str, Any]]] = {}
        for item in read_items(path):
            if isinstance(item, dict) and is_text(item.get("video")) and is_text(item.get("expression")):
                items.setdefault(item["video"], []).append(item)
        for name in units:
            yield from self._flat_rows(path.parent, name, items[name], common, report)

    def _flat_rows(
        self, base: Path, name: str, items: list[dict[str, Any]], common: dict[str, Any], report: Report
    ) -> Iterator[dict[str, Any]]:
        """The records of one video of a flat file."""
        try:
            fields = self._open(base, name)
        except (DataError, VideoError) as error:
            report("missing_frame", name, str(error))
            return
        seen = set()
        for index, item in enumerate(items):
            key = item.get("expression_id", str(index))
            key = str(key) if type(key) is int else key
            if not is_text(key) or key in seen:
                report("duplicate", f"{name}/{describe(key)}", "expression_id must be a text that occurs once.")
                continue
            seen.add(key)
            try:
                yield make_row(
                    **common,
                    **fields,
                    **self._target(base, item, fields),
                    expression_id=key,
                    expression=item["expression"],
                    answer=item.get("answer"),
                    expression_type=own_type(item),
                )
            except DataError as error:
                kind = "mask_count" if "frames, but" in str(error) else "bad_mask"
                report(kind, f"{name}/{key}", str(error))

    def _open(self, base: Path, name: str) -> dict[str, Any]:
        """Frames and size of a video."""
        path = data_path(base, name, follow_links=self.config.follow_links)
        if path.is_dir():
            frames = list_images(base, name, follow_links=self.config.follow_links)
            frames.sort(key=natural_key)
            if not frames:
                raise DataError(f"{path} has no frames.")
            height, width = image_size(frames[0])
            return {
                "video_id": name,
                "frame_names": [frame.stem for frame in frames],
                "frame_paths": [str(frame) for frame in frames],
                "height": height,
                "width": width,
            }
        video = open_video(path)
        return {
            "video_id": name,
            "frame_names": [f"{index:05d}" for index in range(video.num_frames)],
            "video_path": str(path),
            "height": video.height,
            "width": video.width,
        }

    def _target(self, base: Path, item: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
        """Masks and object ids of an item."""
        size, length = (fields["height"], fields["width"]), len(fields["frame_names"])
        folder, masks = item.get("mask_folder"), item.get("masks")
        ids = whole_numbers(item.get("object_ids", []))
        if ids is None:
            raise DataError(f"object_ids must be a list of whole numbers, found {describe(item['object_ids'])}.")
        if folder is not None:
            files = sorted(list_images(base, folder, (".png",), self.config.follow_links), key=natural_key)
            if len(files) != length:
                raise DataError(f"there are {length} frames, but {len(files)} PNG files in {describe(folder)}.")
            found = [_folder_mask(file, size, ids) for file in files]
        elif isinstance(masks, list):
            if len(masks) != length:
                raise DataError(f"there are {length} frames, but {len(masks)} masks.")
            found = [check_rle(rle, size) for rle in masks]
        elif masks is None:
            return {"object_ids": ids}
        else:
            raise DataError(f'"masks" must be a list with an RLE or null for each frame, found {describe(masks)}.')
        # Without ids of their own the masks are of one object; empty masks throughout say that there is none.
        return {"object_ids": ids or ([1] if any(found) else []), "masks": found}


def _folder_mask(file: Path, size: tuple[int, int], ids: list[int]) -> dict[str, Any] | None:
    """The mask in a PNG: these values, or every value but 0."""
    labels = read_label_map(file)
    if labels.shape != size:
        raise DataError(f"{file} is {labels.shape[0]} x {labels.shape[1]}, but its frame is {size[0]} x {size[1]}.")
    mask = (labels[..., None] == ids).any(-1) if ids else labels > 0
    return check_rle(encode_rle(mask))


def _split_name(stem: str) -> str:
    """A name that `datasets` takes for a split."""
    return "".join(sign if sign.isalnum() and sign.isascii() else "_" for sign in stem) or ONLY_SPLIT
