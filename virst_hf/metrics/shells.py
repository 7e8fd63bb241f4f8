"""The metrics as `evaluate.Metric` classes: thin shells that turn masks into arrays and call the functions.

Every example is one video (or one image), as a list of frames. A frame is a COCO run-length mask
`{"size": [height, width], "counts": str}`, or `None` for an empty one; or an array or nested lists, not 0 being the
object. Whatever comes in is kept as run-length masks. All scores are in `[0, 1]`, and examples have equal weight.
Several processes should gather their predictions first and compute once.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from ..errors import EvaluationError
from ..rle import check_rle, decode_rle, encode_rle
from .boundary import boundary_accuracy
from .images import c_iou, g_iou
from .masks import as_masks
from .no_target import no_target_accuracy, target_accuracy
from .region import intersection_and_union, region_similarity
from .revos import accuracy, robustness
from .stability import temporal_consistency

__all__ = ["ImageIoU", "NoTargetAccuracy", "ReVOSAccuracyRobustness", "TemporalConsistency", "VideoJF"]

CITATION = """\
@inproceedings{perazzi2016davis, title={A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation},
  author={Perazzi, Federico and Pont-Tuset, Jordi and McWilliams, Brian and Van Gool, Luc and Gross, Markus and
  Sorkine-Hornung, Alexander}, booktitle={CVPR}, year={2016}}
"""


# What stands for an empty mask without a size: `evaluate` cannot check a None inside of an example.
ABSENT = {"size": [0, 0], "counts": ""}


class MaskMetric(evaluate.Metric):
    """Base of the metrics of masks; a subclass names its inputs and computes.

    Attributes:
        INPUTS (`tuple[str, ...]`): Names of its inputs, each one video an example.
    """

    INPUTS: tuple[str, ...] = ("predictions", "references")

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Add one video; `compute` without arguments scores what was added.

        Args:
            prediction (`Sequence`): Its frames, as the head of this file says.
            reference (`Sequence`, *optional*): Frames of the ground truth.
            **kwargs (`Sequence`): Frames of the other inputs by their names.
        """
        examples = {"prediction": prediction, "reference": reference, **kwargs}
        super().add(**{name: None if video is None else encoded(video) for name, video in examples.items()})

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Add several videos.

        Args:
            predictions (`Sequence`): Each the frames of one video, as the head of this file says.
            references (`Sequence`, *optional*): Frames of the ground truth of each.
            **kwargs (`Sequence`): Frames of the other inputs of each, by their names.
        """
        batch = {"predictions": predictions, "references": references, **kwargs}
        super().add_batch(
            **{k: None if videos is None else [encoded(v) for v in videos] for k, videos in batch.items()}
        )

    def _info(self) -> evaluate.MetricInfo:
        rle = {"size": datasets.List(datasets.Value("int32")), "counts": datasets.Value("string")}
        return evaluate.MetricInfo(
            description=(self.__doc__ or "").split("Example:")[0].strip(),
            citation=CITATION,
            inputs_description=__doc__,
            features=datasets.Features(dict.fromkeys(self.INPUTS, datasets.List(rle))),
        )


def encoded(video: Sequence[Any]) -> list[dict[str, Any]]:
    """Frames of a video as run-length masks.

    Args:
        video (`Sequence`): Frames, as the head of this file says.

    Returns:
        `list[dict]`: A mask a frame, [`ABSENT`] for `None`.

    Raises:
        EvaluationError: A frame is no mask.
        DataError: A run-length mask is damaged.
    """
    frames = []
    for frame in video:
        if frame is None:
            frames.append(ABSENT)
        elif isinstance(frame, Mapping):
            # An empty mask still tells the size, which must fit.
            frames.append(check_rle(frame) or encode_rle(decode_rle(frame)))
        else:
            frames.append(encode_rle(as_masks(frame, "frame of a video", dimensions=(2,))))
    return frames


def decoded(*videos: Sequence[dict[str, Any]]) -> list[np.ndarray]:
    """Masks of videos that belong together, such as prediction and reference, as arrays of one shape.

    Args:
        *videos (`Sequence[dict]`): Frames of each, as [`encoded`] gives them.

    Returns:
        `list[numpy.ndarray]`: Each `bool` of shape `(num_frames, height, width)`.

    Raises:
        EvaluationError: They differ in the number of frames.
        DataError: Two masks differ in size.
    """
    lengths = [len(video) for video in videos]
    if len(set(lengths)) > 1 or not lengths[0]:
        raise EvaluationError(f"Videos that are compared must have the same frames, one at least; found {lengths}.")
    sizes = (tuple(frame["size"]) for video in videos for frame in video if frame["counts"])
    size = next(sizes, (1, 1))  # all are absent: of any size, they score the same
    return [np.stack([decode_rle(frame if frame["counts"] else None, size) for frame in video]) for video in videos]


class VideoJF(MaskMetric):
    """J, F and J&F of videos: means over all frames of a video, then over videos; J&F is the mean of the two.

    Example:

    ```python
    >>> import numpy as np
    >>> from virst_hf.metrics.shells import VideoJF
    >>> from virst_hf.rle import encode_rle
    >>> mask = np.zeros((48, 64), dtype=bool)
    >>> mask[10:30, 10:30] = True
    >>> metric = VideoJF(keep_in_memory=True)
    >>> metric.add(prediction=[encode_rle(mask), encode_rle(mask)], reference=[encode_rle(mask), None])
    >>> metric.compute()
    {'J': 0.5, 'F': 0.5, 'J&F': 0.5}

    ```
    """

    def _compute(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        scores = []
        for video in zip(predictions, references, strict=True):
            masks = decoded(*video)
            scores.append((region_similarity(*masks).mean(), boundary_accuracy(*masks).mean()))
        j, f = np.mean(scores, axis=0).tolist()
        return {"J": j, "F": f, "J&F": (j + f) / 2}


class ReVOSAccuracyRobustness(MaskMetric):
    """A and R of ReVOS on masks of 0 and 1, `foregrounds` being the union of all annotated objects of each video.

    Example:

    ```python
    >>> from virst_hf.metrics.shells import ReVOSAccuracyRobustness
    >>> video = [[[1, 1, 0, 0]]]
    >>> metric = ReVOSAccuracyRobustness(keep_in_memory=True)
    >>> metric.compute(predictions=[[[[1, 1, 1, 0]]]], references=[video], foregrounds=[[[[1, 1, 1, 1]]]])["A"]
    0.75

    ```
    """

    INPUTS = ("predictions", "references", "foregrounds")

    def _compute(
        self, predictions: Sequence[Any], references: Sequence[Any], foregrounds: Sequence[Any]
    ) -> dict[str, float]:
        scores = []
        for video in zip(predictions, references, foregrounds, strict=True):
            prediction, target, foreground = decoded(*video)
            scores.append((accuracy(prediction, target).mean(), robustness(prediction, target, foreground).mean()))
        a, r = np.mean(scores, axis=0).tolist()
        return {"A": a, "R": r}


class ImageIoU(MaskMetric):
    """gIoU and cIoU by the rules of LISA. Each example is one image: a list of one frame.

    With `config_name="ignore"` there is a third input, `ignores`, the pixels that are removed from both masks.

    Example:

    ```python
    >>> from virst_hf.metrics.shells import ImageIoU
    >>> metric = ImageIoU(keep_in_memory=True)
    >>> scores = metric.compute(predictions=[[[[1, 1, 0, 0]]], [[[0, 0]]]], references=[[[[1, 0, 0, 0]]], [[[0, 0]]]])
    >>> {name: round(score, 3) for name, score in scores.items()}
    {'gIoU': 0.75, 'cIoU': 0.5}

    ```
    """

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name == "ignore":
            self.INPUTS = ("predictions", "references", "ignores")
        return super()._info()

    def _compute(
        self, predictions: Sequence[Any], references: Sequence[Any], ignores: Sequence[Any] | None = None
    ) -> dict[str, float]:
        inputs = [predictions, references] if ignores is None else [predictions, references, ignores]
        areas = [np.concatenate(intersection_and_union(*decoded(*image))) for image in zip(*inputs, strict=True)]
        if any(len(area) != 2 for area in areas):
            raise EvaluationError("Every example of ImageIoU must be a list of one frame.")
        both, either = np.stack(areas, axis=1)
        return {"gIoU": g_iou(both, either), "cIoU": c_iou(both, either)}


class TemporalConsistency(MaskMetric):
    """Mean IoU of the predicted masks of consecutive frames, then over videos; it has no references.

    Example:

    ```python
    >>> from virst_hf.metrics.shells import TemporalConsistency
    >>> TemporalConsistency(keep_in_memory=True).compute(predictions=[[[[1, 1]], [[1, 0]], [[1, 0]]]])
    {'temporal_consistency': 0.75}

    ```
    """

    INPUTS = ("predictions",)

    def _compute(self, predictions: Sequence[Any]) -> dict[str, float]:
        return {"temporal_consistency": float(np.mean([temporal_consistency(*decoded(v)) for v in predictions]))}


class NoTargetAccuracy(evaluate.Metric):
    """No-target accuracy (N-acc) and its other side (T-acc) of booleans: predicted empty, and names nothing.

    Example:

    ```python
    >>> from virst_hf.metrics.shells import NoTargetAccuracy
    >>> metric = NoTargetAccuracy(keep_in_memory=True)
    >>> metric.compute(predictions=[True, False, False], references=[True, True, False])
    {'no_target_accuracy': 0.5, 'target_accuracy': 1.0}

    ```
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of the expressions that name nothing and were answered by empty masks.",
            citation="",
            inputs_description="predictions: whether every frame is empty; references: whether nothing is named.",
            features=datasets.Features(dict.fromkeys(("predictions", "references"), datasets.Value("bool"))),
        )

    def _compute(self, predictions: Sequence[bool], references: Sequence[bool]) -> dict[str, float | None]:
        return {
            "no_target_accuracy": no_target_accuracy(predictions, references),
            "target_accuracy": target_accuracy(predictions, references),
        }
