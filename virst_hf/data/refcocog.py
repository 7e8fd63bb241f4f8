"""RefCOCOg: longer expressions about pictures of COCO (lichengunc/refer)."""

from .refer import ReferBuilder, ReferConfig

__all__ = ["RefCOCOg"]


class RefCOCOg(ReferBuilder):
    """
    RefCOCOg: longer expressions, not from a game. One record for each sentence. Papers use the split of UMD.
    """

    NAME = "refcocog"
    SPLITS = ("train", "val", "test")
    TREE = """\
refer_seg/
  refcocog/  instances.json   refs(umd).p  or  refs(umd).json   (config "google": refs(google).p)
  images/mscoco/images/train2014/COCO_train2014_000000000009.jpg ...
or the folder above refer_seg/, or refcocog/ itself (pictures in it or beside it; or image_root=<folder>)
or refcocog/ with the parquet files of the Hub in it or in data/, in place of instances.json and refs(umd).p"""
    BUILDER_CONFIGS = [ReferConfig(name="umd", split_by="umd"), ReferConfig(name="google", split_by="google")]
