"""Images, and what was computed from them already, so that several corruptions of the same images share it."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

Pixels = TypeVar("Pixels")


class Shared(Generic[Pixels]):
    """The clean pixels that corruptions are made from, with a memory for what several corruptions or severities need of them.

    ``pixels`` is a uint8 array (3, H, W) of one image for the compiled corruptions, and a uint8 tensor (B, 3, H, W) for the
    batched ones. Nobody changes it, nor what ``once`` returns.
    """

    def __init__(self, pixels: Pixels) -> None:
        self.pixels = pixels
        self._known: dict[tuple, Any] = {}

    def once(self, compute: Callable[..., Any], *arguments: Any) -> Any:
        """``compute(pixels, *arguments)``, which is computed at the first call with these arguments and then remembered."""
        key = (compute, *arguments)
        if key not in self._known:
            self._known[key] = compute(self.pixels, *arguments)
        return self._known[key]
