"""The corruptions of ImageNet-C, for batches of images on CPU and GPU, reproducible per image. table.py lists them all."""

from gch_bench.corruptions.engine import corrupt, corrupt_all, jpeg_roundtrip
from gch_bench.corruptions.parameters import ALEXNET_CLEAN_ERROR_PERCENT, ALEXNET_ERROR_PERCENT, PARAMETER_SETS, ParameterSet
from gch_bench.corruptions.table import CORRUPTIONS, SEVERITIES, Corruption, parameters_for

__all__ = [
    "ALEXNET_CLEAN_ERROR_PERCENT",
    "ALEXNET_ERROR_PERCENT",
    "CORRUPTIONS",
    "PARAMETER_SETS",
    "SEVERITIES",
    "Corruption",
    "ParameterSet",
    "corrupt",
    "corrupt_all",
    "jpeg_roundtrip",
    "parameters_for",
]
