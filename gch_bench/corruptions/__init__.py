"""The corruptions of ImageNet-C, for batches of images on CPU and GPU, reproducible per image. table.py lists them all."""

from typing import TYPE_CHECKING, Any

from gch_bench.corruptions.engine import corrupt, corrupt_all, jpeg_roundtrip
from gch_bench.corruptions.parameters import ALEXNET_CLEAN_ERROR_PERCENT, ALEXNET_ERROR_PERCENT, PARAMETER_SETS, ParameterSet
from gch_bench.corruptions.table import CORRUPTIONS, SEVERITIES, Corruption, parameters_for

if TYPE_CHECKING:
    from gch_bench.corruptions.transform import ImageNetC

__all__ = [
    "ALEXNET_CLEAN_ERROR_PERCENT",
    "ALEXNET_ERROR_PERCENT",
    "CORRUPTIONS",
    "PARAMETER_SETS",
    "SEVERITIES",
    "Corruption",
    "ImageNetC",
    "ParameterSet",
    "corrupt",
    "corrupt_all",
    "jpeg_roundtrip",
    "parameters_for",
]


def __getattr__(name: str) -> Any:
    """``ImageNetC`` is imported when it is first used, because torchvision takes seconds to import."""
    if name != "ImageNetC":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from gch_bench.corruptions.transform import ImageNetC

    return ImageNetC
