"""The corruptions of ImageNet-C, batched, on CPU and GPU, reproducible per image. The table of them is in table.py."""

from gch_bench.corruptions.parameters import ALEXNET_CLEAN_ERROR_PERCENT, ALEXNET_ERROR_PERCENT, PARAMETER_SETS, ParameterSet
from gch_bench.corruptions.table import CORRUPTIONS, SEVERITIES, Corruption, corrupt, jpeg_roundtrip, parameters_for

__all__ = [
    "ALEXNET_CLEAN_ERROR_PERCENT",
    "ALEXNET_ERROR_PERCENT",
    "CORRUPTIONS",
    "PARAMETER_SETS",
    "SEVERITIES",
    "Corruption",
    "ParameterSet",
    "corrupt",
    "jpeg_roundtrip",
    "parameters_for",
]
