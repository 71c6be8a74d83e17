"""What diagnose.py does for each `mode`."""

from collections.abc import Callable

from gch_bench.apps.compatibility.run import compatibility
from gch_bench.apps.diagnosis.run import diagnose
from gch_bench.config.diagnosis import DiagnoseConfig

MODES: dict[str, Callable[[DiagnoseConfig], None]] = {"geometry": diagnose, "compatibility": compatibility}
