"""What the entry points call. Without the extra `harness` all of them end here, in one line and with exit code 2."""

import sys

try:
    import hydra  # noqa: F401
except ModuleNotFoundError as error:
    print(
        f"error: no {error.name}: this needs the harness, pip install 'gch-bench[harness]' (in a checkout: make install)",
        file=sys.stderr,
    )
    sys.exit(2)
