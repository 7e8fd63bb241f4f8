"""RefCOCO+: as RefCOCO, without words of place (lichengunc/refer)."""

from .refer import ReferBuilder, ReferConfig

__all__ = ["RefCOCOPlus"]


class RefCOCOPlus(ReferBuilder):
    """
    RefCOCO+: as RefCOCO, but words of place were forbidden, so that looks must tell. One record for each sentence.
    """

    NAME = "refcoco+"
    SPLITS = ("train", "val", "testA", "testB")
    TREE = """\
refer_seg/
  refcoco+/  instances.json   refs(unc).p  or  refs(unc).json
  images/mscoco/images/train2014/COCO_train2014_000000000009.jpg ...
or the folder above refer_seg/, or refcoco+/ itself (pictures in it or beside it; or image_root=<folder>)
or refcoco+/ with the parquet files of the Hub in it or in data/, in place of instances.json and refs(unc).p"""
    BUILDER_CONFIGS = [ReferConfig(name="unc", split_by="unc")]
