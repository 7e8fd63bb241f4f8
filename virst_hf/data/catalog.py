"""Every data set by name: which module reads it, where it comes from and under which licence; and `load`."""

import importlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

    from .builder import VirstDatasetBuilder

__all__ = ["CATALOG", "Entry", "builder_class", "load", "make_builder"]


@dataclass(frozen=True)
class Entry:
    """
    What the catalogue says of a data set.

    Args:
        module (`str`): Module of `virst_hf.data` with its builder.
        class_name (`str`): The builder.
        title (`str`): What it is, in one line.
        category (`str`): Its category in the mixture; `"all five"` for Shapes.
        licence (`str`): As far as it could be found; check it where you fetch the data.
        where (`str`): Where to get it.
    """

    module: str
    class_name: str
    title: str
    category: str
    licence: str
    where: str


# Licences are of the annotations, as their repositories or cards state them; pictures often have terms of their own.
NOT_STATED = "not stated where the annotations are published: see the official page"
NON_COMMERCIAL = "CC BY-NC-SA 4.0 (non-commercial)"
COCO_IMAGES = "pictures: terms of COCO"
CATALOG = {
    "mevis": Entry(
        "mevis",
        "MeViS",
        "MeViS: expressions about motion (versions 1 and 2)",
        "rvos",
        NON_COMMERCIAL,
        "GitHub henghuiding/MeViS (v1); Hub FudanCVL/MeViSv2 (v2)",
    ),
    "revos": Entry(
        "revos",
        "ReVOS",
        "ReVOS: referring and reasoning expressions about videos",
        "rvos",
        f"{NON_COMMERCIAL}; videos: terms of MOSE, MeViS, LV-VIS, OVIS, TAO and UVO",
        "GitHub cilinyan/ReVOS-api",
    ),
    "ref-youtube-vos": Entry(
        "ref_youtube_vos",
        "RefYouTubeVOS",
        "Ref-YouTube-VOS: expressions about YouTube-VOS",
        "rvos",
        "terms of YouTube-VOS (research)",
        "youtube-vos.org, referring video object segmentation track",
    ),
    "ref-davis17": Entry(
        "ref_davis17",
        "RefDAVIS17",
        "Ref-DAVIS17: four expressions for each object of DAVIS 2017",
        "rvos",
        NOT_STATED,
        "davischallenge.org (480p, unsupervised) and the text annotations of MPI (davis_text_annotations.zip)",
    ),
    "lv-vis": Entry(
        "lvvis",
        "LVVIS",
        "LV-VIS: category names of 1,196 classes, all instances",
        "rvos",
        NON_COMMERCIAL,
        "GitHub haochenheheda/LVVIS; VISA's JSON files from GitHub cilinyan/VISA",
    ),
    "refcoco": Entry(
        "refcoco",
        "RefCOCO",
        "RefCOCO: referring expressions about COCO pictures",
        "referring_image",
        f"refer: Apache-2.0; {COCO_IMAGES}",
        "GitHub lichengunc/refer; COCO train2014",
    ),
    "refcoco+": Entry(
        "refcoco_plus",
        "RefCOCOPlus",
        "RefCOCO+: the same without words of place",
        "referring_image",
        f"refer: Apache-2.0; {COCO_IMAGES}",
        "GitHub lichengunc/refer; COCO train2014",
    ),
    "refcocog": Entry(
        "refcocog",
        "RefCOCOg",
        "RefCOCOg: longer referring expressions",
        "referring_image",
        f"refer: Apache-2.0; {COCO_IMAGES}",
        "GitHub lichengunc/refer; COCO train2014",
    ),
    "reasonseg": Entry(
        "reason_seg",
        "ReasonSeg",
        "ReasonSeg: questions whose answer is a region",
        "reasoning_image",
        NOT_STATED,
        "GitHub dvlab-research/LISA",
    ),
    "ade20k": Entry(
        "ade20k",
        "ADE20K",
        "ADE20K (scene parsing challenge): 150 classes",
        "semantic_segmentation",
        NOT_STATED,
        "ADEChallengeData2016, sceneparsing.csail.mit.edu",
    ),
    "coco-stuff": Entry(
        "coco_stuff",
        "COCOStuff",
        "COCO-Stuff: things and stuff of COCO 2017",
        "semantic_segmentation",
        f"{NOT_STATED}; {COCO_IMAGES}",
        "stuffthingmaps_trainval2017, GitHub nightrome/cocostuff; COCO train2017",
    ),
    "paco-lvis": Entry(
        "paco_lvis",
        "PACOLVIS",
        "PACO-LVIS: objects and their parts",
        "semantic_segmentation",
        f"{NOT_STATED}; {COCO_IMAGES}",
        "GitHub facebookresearch/paco; COCO 2017",
    ),
    "pascal-part": Entry(
        "pascal_part",
        "PASCALPart",
        "PASCAL-Part: parts of the objects of VOC 2010",
        "semantic_segmentation",
        NOT_STATED,
        "VOC 2010 and train.json of GitHub facebookresearch/VLPart",
    ),
    "llava-video": Entry(
        "llava_video",
        "LLaVAVideo",
        "LLaVA-Video-178K, 0_30_s_academic: captions, questions and answers",
        "video_qa",
        "see the card on the Hub",
        "Hub lmms-lab/LLaVA-Video-178K, folder 0_30_s_academic_v0_1",
    ),
    "own": Entry(
        "own_data",
        "OwnData",
        "your own videos and masks, in the layout of MeViS or a flat JSON",
        "rvos",
        "yours",
        "your disk",
    ),
    "shapes": Entry(
        "shapes",
        "Shapes",
        "Shapes: a synthetic benchmark, made by `virst data make-shapes`",
        "all five",
        "CC0 1.0",
        "made on your machine",
    ),
}


def _entry(name: str) -> Entry:
    if name not in CATALOG:
        raise DataError(f"There is no data set {name!r}; expected one of {', '.join(CATALOG)}.")
    return CATALOG[name]


def builder_class(name: str) -> type["VirstDatasetBuilder"]:
    """The builder of a data set.

    Args:
        name (`str`): Its name in the catalogue.

    Returns:
        `type`: A sub-class of [`VirstDatasetBuilder`].

    Raises:
        DataError: There is no such data set.

    Example:

    ```python
    >>> from virst_hf.data.catalog import builder_class
    >>> builder_class("mevis").SPLITS
    ('train', 'valid_u', 'valid')

    ```
    """
    entry = _entry(name)
    return getattr(importlib.import_module(f".{entry.module}", __package__), entry.class_name)


def make_builder(
    name: str, root: str | os.PathLike, split: str | None = None, config: str | None = None, **fields: Any
) -> "VirstDatasetBuilder":
    """A builder for a data set on disk.

    Args:
        name (`str`): Its name in the catalogue.
        root (`str` or `os.PathLike`): Its folder.
        split (`str`, *optional*): The one split to prepare; all that are there when not given.
        config (`str`, *optional*): One of its configurations, such as `"v2"` of MeViS; the first when not given.
        **fields: Options of the set, and `cache_dir`.

    Returns:
        [`VirstDatasetBuilder`]: The builder, nothing prepared yet.

    Raises:
        DataError: The name, the root, the split, the configuration or an option is unknown.
    """
    if split is not None:
        fields["splits"] = (split,)
    return builder_class(name)(data_dir=root, config_name=config, **fields)


def load(
    name: str,
    root: str | os.PathLike,
    split: str | None = None,
    *,
    config: str | None = None,
    streaming: bool = False,
    num_proc: int | None = None,
    cache_dir: str | None = None,
    **fields: Any,
) -> "Dataset | DatasetDict | IterableDataset | IterableDatasetDict":
    """Load a data set from the folder that its release unpacks to.

    Args:
        name (`str`): One of `CATALOG`, such as `"mevis"`.
        root (`str` or `os.PathLike`): Its folder; `virst data list NAME` shows the tree that is expected.
        split (`str`, *optional*): One split; all that are there when not given.
        config (`str`, *optional*): A configuration, such as `"v2"` of MeViS.
        streaming (`bool`, *optional*, defaults to `False`): Read records as they are asked for, with no Arrow copy.
        num_proc (`int`, *optional*): Processes that prepare the Arrow copy.
        cache_dir (`str`, *optional*): Where it goes; the cache of `datasets` when not given.
        **fields: Options of the set, such as `follow_links=True`.

    Returns:
        `datasets.Dataset` or `datasets.IterableDataset` of records, one for each expression (see
        [`~data.records.make_row`]); without `split` a dictionary of them.

    Raises:
        DataError: The name, root, split or an option is unknown, or the data has a defect; `virst data doctor` lists
            all defects.

    Example:

    ```python
    >>> import tempfile
    >>> from virst_hf.data import load
    >>> from virst_hf.data.shapes_maker import make_shapes
    >>> root = tempfile.mkdtemp()
    >>> _ = make_shapes(root, "valid", num_videos=1, num_proc=1, progress=False)
    >>> rows = load("shapes", root, split="valid", streaming=True)
    >>> row = next(iter(rows))
    >>> row["category"], len(row["masks"]) == len(row["frame_paths"])
    ('rvos', True)

    ```
    """
    builder = make_builder(name, root, split, config, cache_dir=cache_dir, **fields)
    if streaming:
        return builder.as_streaming_dataset(split=split)
    # Every record is checked as it is made; the check of sizes in `datasets` would only object to a changed source.
    builder.download_and_prepare(num_proc=num_proc, verification_mode="no_checks")
    return builder.as_dataset(split=split)
