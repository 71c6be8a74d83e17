"""Images, and what was computed from them already, so that the severities of a corruption share it."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

Pixels = TypeVar("Pixels")


class Shared(Generic[Pixels]):
    """The clean pixels that a corruption is made from, with a memory for what several of its severities need of them.

    ``pixels`` is a uint8 array (3, H, W) of one image for the compiled corruptions, and a uint8 tensor (B, 3, H, W) for the
    batched ones. Nobody changes them. One thread at a time uses an object of this class.
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
