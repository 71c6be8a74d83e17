"""What diagnose.py does for each `mode`."""

from collections.abc import Callable

from gch_bench.apps.compatibility.run import compatibility
from gch_bench.apps.diagnosis.mechanisms import describe_mechanisms, match_mechanisms
from gch_bench.apps.diagnosis.run import diagnose
from gch_bench.config.diagnosis import DiagnoseConfig

MODES: dict[str, Callable[[DiagnoseConfig], None]] = {
    "geometry": diagnose,
    "describe": describe_mechanisms,
    "match": match_mechanisms,
    "compatibility": compatibility,
}
