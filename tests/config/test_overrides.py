"""What `written` writes, Hydra reads as the same value."""

from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from gch_bench.config.overrides import written


@pytest.mark.parametrize(
    "value",
    [
        {"name": "dropout", "law": "bernoulli", "p": 0.1, "stages": ["L3", "blocks.4.2"], "per_channel": True, "mass": None},
        None, True, False, 3, -2, 1e-05, float("inf"), "L4", "", "null", "True", "12", "1e3", "it's a, list: [x]", "a/b-c",
        [], {},
    ],
)  # fmt: skip
def test_hydra_reads_the_same_value(value: Any) -> None:
    (override,) = OverridesParser.create().parse_overrides([f"key={written(value)}"])
    assert override.value() == value
    assert type(override.value()) is type(value) or isinstance(value, str)
