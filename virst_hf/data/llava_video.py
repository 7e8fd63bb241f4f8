"""LLaVA-Video-178K, folder 0_30_s_academic: captions, questions and answers about short videos; no masks."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..video_io import natural_key
from .builder import Report, VirstDataConfig, VirstDatasetBuilder
from .files import cached_file_reader, data_path, describe, image_size, list_images, read_json
from .records import is_text, make_row

__all__ = ["LLaVAVideo", "LLaVAVideoConfig", "VideoQuestionReader", "read_questions", "without_placeholders"]

FOLDER = "0_30_s_academic_v0_1"
# Configuration -> the file of the release.
QUESTION_FILES = {
    "cap": "0_30_s_academic_v0_1_cap_processed.json",
    "oe": "0_30_s_academic_oe_v0_1_qa_processed.json",
    "mc": "0_30_s_academic_mc_v0_1_qa_processed.json",
}
PLACEHOLDERS = ("<image>", "<video>")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm")
# The extractor of VIRST leaves this step of the path out, though its loader looks for it.
DROPPED_STEP = "academic_source/"


def without_placeholders(text: str) -> str:
    """A question without the sign for the video, and without the line break that goes with it.

    Args:
        text (`str`): As in the release.

    Returns:
        `str`: The question alone.

    Example:

    ```python
    >>> from virst_hf.data.llava_video import without_placeholders
    >>> without_placeholders("<image>\\nDescribe the video.")
    'Describe the video.'

    ```
    """
    for placeholder in PLACEHOLDERS:
        text = text.replace(placeholder, "")
    return text.strip()


@cached_file_reader
def read_questions(path: Path) -> tuple[dict[str, list[tuple[int, Any]]], list[tuple[str, str]]]:
    """The items of a file of questions by their video.

    Args:
        path (`pathlib.Path`): The file.

    Returns:
        `tuple`: Video as the file names it -> its items, each with its place in the file; and the defects as pairs of
        item and message.

    Raises:
        DataError: It is no JSON list.
    """
    content = read_json(path)
    if not isinstance(content, list):
        raise DataError(f'{path} must hold a list of {{"video", "conversations"}}, found {describe(content)}.')
    found: dict[str, list[tuple[int, Any]]] = {}
    defects = []
    for position, item in enumerate(content):
        video = item.get("video") if isinstance(item, dict) else None
        if is_text(video):
            found.setdefault(video, []).append((position, item))
        else:
            defects.append((f"item {position}", f'"video" must be a path, found {describe(video)}.'))
    return found, defects


class VideoQuestionReader:
    """
    Reads the records of one file of questions, one for each pair of question and answer.

    Args:
        root (`pathlib.Path`): Root of the data set, which no path may leave.
        folder (`str`): Folder of the videos and of `JPEGImages`, relative to `root`; `"."` is `root` itself.
        questions (`pathlib.Path`): The file.
        report (`Report`): Told of each defect.
        common (`Mapping[str, Any]`): Fields of the record that are the same in the whole split.
        frames (`bool`, *optional*): `True` takes folders of frames only, `False` video files only, `None` a folder
            of frames where there is one.
        follow_links (`bool`, *optional*, defaults to `False`): Whether symbolic links may leave `root`.

    Raises:
        DataError: The file is missing or damaged as a whole.
    """

    def __init__(
        self,
        root: Path,
        folder: str,
        questions: Path,
        report: Report,
        common: Mapping[str, Any],
        frames: bool | None = None,
        follow_links: bool = False,
    ) -> None:
        self.root, self.report, self.common = root, report, common
        self.above = "" if folder == "." else f"{folder}/"
        self.frames, self.follow_links = frames, follow_links
        self.items, self.defects = read_questions(questions)

    def units(self) -> list[str]:
        """Videos in the order of the file, each once; tells of items without one.

        Returns:
            `list[str]`: Videos as the file names them.
        """
        for item, message in self.defects:
            self.report("bad_entry", item, message)
        return list(self.items)

    def rows(self, units: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Records of these videos, in the order of the file.

        Args:
            units (`Sequence[str]`): Videos as [`~VideoQuestionReader.units`] gives them.

        Yields:
            `dict`: Records.
        """
        for video in units:
            fields = self._video(video)
            if fields is None:
                continue
            # The same video may stand in several items, so the count goes on from one to the next.
            count = 0
            for position, item in self.items.get(video, []):
                turns = item.get("conversations")
                if not _alternate(turns):
                    message = '"conversations" must be turns {"from", "value"}, of "human" and "gpt" by turns.'
                    self.report("bad_entry", f"{video}, item {position}", message)
                    continue
                for question, answer in zip(turns[::2], turns[1::2], strict=True):
                    row = self._pair(video, count, question["value"], answer["value"], fields)
                    count += 1
                    if row is not None:
                        yield row

    def _pair(
        self, video: str, count: int, question: str, answer: str, fields: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """The record of a question and its answer; `None` after a defect."""
        try:
            return make_row(
                **self.common,
                **fields,
                expression_id=str(count),
                expression=without_placeholders(question),
                answer=answer,
                expression_type="question",
            )
        except DataError as error:
            self.report("bad_entry", f"{video}/{count}", str(error))
            return None

    def _video(self, video: str) -> dict[str, Any] | None:
        """The fields that say which video it is; `None` after a defect."""
        try:
            folder = None if self.frames is False else self._frame_folder(video)
            file = None if self.frames is True or folder is not None else self._file(video)
        except DataError as error:
            self.report("unsafe_path", video, str(error))
            return None
        except OSError as error:
            self.report("missing_file", video, f"it cannot be read: {error.strerror}.")
            return None
        if folder is not None:
            return self._frames(video, folder)
        if file is not None:
            return {"video_id": video, "video_path": str(file)}
        kinds = {True: "folder of frames", False: "video file", None: "folder of frames and no video file"}
        self.report("missing_file", video, f"there is no {kinds[self.frames]} of it below {self.root / self.above}.")
        return None

    def _file(self, video: str) -> Path | None:
        """The video file, if there is one, as the archives unpack it or in `videos`."""
        for above in ("", "videos/"):
            path = data_path(self.root, self.above + above + video, follow_links=self.follow_links)
            if path.is_file():
                return path
        return None

    def _frame_folder(self, video: str) -> str | None:
        """The folder of a video's frames, relative to the root, if there is one."""
        stem = video[: video.rfind(".")] if video.lower().endswith(VIDEO_SUFFIXES) else video
        for name in (stem, stem.removeprefix(DROPPED_STEP)):
            folder = f"{self.above}JPEGImages/{name}"
            if data_path(self.root, folder, follow_links=self.follow_links).is_dir():
                return folder
        return None

    def _frames(self, video: str, folder: str) -> dict[str, Any] | None:
        """The fields of a folder of frames, in the order of their numbers; `None` after a defect."""
        try:
            listed = list_images(self.root, folder, follow_links=self.follow_links)
            # macOS leaves "._000001.jpg" beside "000001.jpg" on foreign disks; it is no frame.
            files = sorted((path for path in listed if not path.name.startswith(".")), key=natural_key)
            if not files:
                raise DataError(f"{self.root / folder} has no frames.")
            height, width = image_size(files[0])
        except DataError as error:
            self.report("unsafe_path" if "link out of" in str(error) else "missing_frame", video, str(error))
            return None
        names = [path.stem for path in files]
        if len(set(names)) != len(names):
            self.report("duplicate", video, "two frames have one name, with different suffixes; remove one of each.")
            return None
        return {
            "video_id": video,
            "frame_names": names,
            "frame_paths": [str(path) for path in files],
            "height": height,
            "width": width,
        }


def _alternate(turns: Any) -> bool:
    """Whether turns are question, answer, question, answer, ..., all of them texts."""
    if not isinstance(turns, list) or not turns or len(turns) % 2:
        return False
    fit = (isinstance(turn, dict) and isinstance(turn.get("value"), str) for turn in turns)
    return all(fit) and all(turn.get("from") == ("human", "gpt")[index % 2] for index, turn in enumerate(turns))


@dataclasses.dataclass
class LLaVAVideoConfig(VirstDataConfig):
    """
    What can be chosen for LLaVA-Video.

    Args:
        frames (`bool`, *optional*): `True` takes folders of frames only (`JPEGImages/<video without suffix>/`),
            `False` video files only. When not given, a folder of frames is taken where there is one.
    """

    frames: bool | None = None


class LLaVAVideo(VirstDatasetBuilder):
    """
    LLaVA-Video-178K, 0_30_s_academic: the configuration `"cap"` (captions, which VIRST trains on), `"oe"` (open
    questions) or `"mc"` (multiple choice). A record is one question with its `answer`.
    """

    NAME = "llava-video"
    CATEGORY = "video_qa"
    SPLITS = ("train",)
    TREE = """\
0_30_s_academic_v0_1/
  0_30_s_academic_v0_1_cap_processed.json         (config "oe": 0_30_s_academic_oe_v0_1_qa_processed.json,
                                                   config "mc": 0_30_s_academic_mc_v0_1_qa_processed.json)
  academic_source/<...>/<video>.mp4               as the archives unpack; or in videos/
  or JPEGImages/<path without .mp4>/000001.jpg    frames taken from them; academic_source/ may be left out
or the folder above"""
    BUILDER_CONFIG_CLASS = LLaVAVideoConfig
    BUILDER_CONFIGS = [LLaVAVideoConfig(name=name) for name in QUESTION_FILES]

    def _base(self, root: Path) -> str | None:
        """The folder of the questions, relative to `root`; `None` if there is none."""
        name = QUESTION_FILES[self.config.name]
        return next((place for place in (".", FOLDER) if (root / place / name).is_file()), None)

    def _questions(self, root: Path) -> Path:
        parts = (self._base(root) or ".", QUESTION_FILES[self.config.name])
        return data_path(root, *(part for part in parts if part != "."), follow_links=self.config.follow_links)

    def find_splits(self, root: Path) -> list[str]:
        """`train`, if the file of questions is there."""
        return [] if self._base(root) is None else ["train"]

    def annotation_paths(self, root: Path, split: str) -> list[Path]:
        """The file of questions."""
        return [self._questions(root)]

    def _reader(self, root: Path, split: str, report: Report) -> VideoQuestionReader:
        return VideoQuestionReader(
            root,
            self._base(root) or ".",
            self._questions(root),
            report,
            {"category": self.CATEGORY, "source": self.NAME, "split": split},
            self.config.frames,
            self.config.follow_links,
        )

    def units(self, root: Path, split: str, report: Report) -> list[str]:
        """Videos, in the order of the file."""
        return self._reader(root, split, report).units()

    def rows(self, root: Path, split: str, units: Sequence[str], report: Report) -> Iterator[dict[str, Any]]:
        """One record for each question."""
        yield from self._reader(root, split, report).rows(units)
