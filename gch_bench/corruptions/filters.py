"""The weights and the geometry of blurs and enlargements, for the compiled and for the batched corruptions.

All of it is cached, so callers must not change what they get.

Shapes: H x W pixels; n pixels along one side of an image; T taps of a filter.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

# In a flat area the blurred value is a whole grey level plus a rounding error of either sign (below 2e-4 in float32), which
# truncation would turn into a difference of one level; the reference mostly keeps the level. Therefore this margin is added
# before truncation. It moves 1 value in 2000 up by one level.
TIE_MARGIN = 5e-4
ANGLE, ANGLES = 0, (-45.0, 45.0)  # motion blur's angle: its stream of draws, and its range in degrees


@lru_cache(maxsize=64)
def gaussian_weights(sigma: float, cut: float = 4.0) -> np.ndarray:
    """Gaussian weights at the offsets 0, 1, ..., radius: float64, of which the whole filter adds up to 1.

    Args:
        sigma: standard deviation in pixels.
        cut: where the Gaussian ends, in units of ``sigma``.
    """
    radius = int(cut * sigma + 0.5)
    weight = np.exp(-0.5 * (np.arange(radius + 1) / sigma) ** 2)
    return weight / (2 * weight.sum() - 1)


@lru_cache(maxsize=64)
def border_pixels(n: int, radius: int, border: str) -> np.ndarray:
    """Which of ``n`` pixels stands at the places -radius .. n + radius - 1; ``border`` is a mode of numpy.pad: int64."""
    return np.pad(np.arange(n), radius, mode=border)  # type: ignore[call-overload]  # a mode known at run time


def gaussian_matrix(n: int, sigma: float, border: str = "edge", cut: float = 4.0) -> np.ndarray:
    """The Gaussian filter of ``n`` pixels as a matrix S (n, n), float64: row i holds the weights of output pixel i."""
    weights = gaussian_weights(sigma, cut)
    radius = len(weights) - 1
    offset = np.arange(-radius, radius + 1)
    source = border_pixels(n, radius, border)
    S_nn = np.zeros((n, n))
    np.add.at(S_nn, (np.arange(n)[:, None], source[np.arange(n)[:, None] + offset + radius]), weights[np.abs(offset)])
    return S_nn


def weighted_sums(field: np.ndarray, weights: np.ndarray, axis: int) -> np.ndarray:
    """The sums of as many neighbours along ``axis`` as there are weights, each times its weight, wherever all lie inside."""
    return np.lib.stride_tricks.sliding_window_view(field, len(weights), axis) @ weights


@lru_cache(maxsize=256)
def fft_length(n: int) -> int:
    """The smallest length from ``n`` on without prime factors above 5, of which Fourier transforms are quick."""
    rest = n
    for prime in (2, 3, 5):
        while rest % prime == 0:
            rest //= prime
    return n if rest == 1 else fft_length(n + 1)


class Disk(NamedTuple):
    """The smoothed disk of defocus blur: an array with an odd side, symmetric about its middle in both directions."""

    kernel: np.ndarray  # float32 (side, side), the weights of the blur
    inside: np.ndarray  # bool (side, side), the disk before it was smoothed
    smoothing: np.ndarray  # float32, the 3 or 5 Gaussian weights that smoothed it along each axis
    margin: float  # what to add before truncation


@lru_cache(maxsize=64)
def smoothed_disk(radius: float, alias: float) -> Disk:
    """A disk of ``radius`` pixels, smoothed by a Gaussian with the standard deviation ``alias`` in pixels.

    The side of the array is 17 up to radius 8 and 2 ceil(radius) + 1 above.
    """
    half, smooth = (8, 1) if radius <= 8 else (math.ceil(radius), 2)
    grid = np.arange(-half, half + 1)
    inside = grid[:, None] ** 2 + grid**2 <= radius**2
    kernel = inside.astype(np.float32)
    kernel /= kernel.sum()
    # The edge is smoothed with 3 x 3 or 5 x 5 Gaussian weights, and the array is reflected at its border: if the disk reaches
    # the border, the sum of the weights exceeds 1, as in the reference.
    weight = np.exp(-0.5 * (np.arange(-smooth, smooth + 1) / alias) ** 2)
    weight = (weight / weight.sum()).astype(np.float32)
    for axis, margins in ((1, ((0, 0), (smooth, smooth))), (0, ((smooth, smooth), (0, 0)))):
        mirrored = np.pad(kernel, margins, mode="reflect").astype(float)
        kernel = weighted_sums(mirrored, weight.astype(float), axis).astype(np.float32)
    # The results are rounded to float32, as in the reference: whether the rounded weights add up to more or less than 1 decides
    # whether truncation keeps the level of a flat area.
    return Disk(kernel, inside, weight, math.copysign(TIE_MARGIN, kernel.astype(float).sum() - 1))


@lru_cache(maxsize=64)
def motion_weights(radius: float, sigma: float) -> np.ndarray:
    """The weights, float64 (T,), of the taps i = 0..2 ceil(radius) of ImageMagick's motion blur: exp(-i^2 / (2 sigma^2)),
    normalised. The kernel was found from ImageMagick's outputs."""
    weights = np.exp(-0.5 * (np.arange(2 * math.ceil(radius) + 1) / sigma) ** 2)
    return weights / weights.sum()


def motion_taps(radius: float, sigma: float, angle: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Motion blur at ``angle`` degrees: the rows and the columns, int64 (T,), by which the taps lie away from the pixel, and
    their weights. Tap i reads the pixel ceil(i cos(angle) - 1/2) columns and ceil(i sin(angle) - 1/2) rows away."""
    weights = motion_weights(radius, sigma)
    taps = np.arange(len(weights))
    rows = np.ceil(taps * math.sin(math.radians(angle)) - 0.5).astype(np.int64)
    columns = np.ceil(taps * math.cos(math.radians(angle)) - 0.5).astype(np.int64)
    return rows, columns, weights


@lru_cache(maxsize=64)
def zoom_factors(start: float, stop: float, step: float) -> tuple[float, ...]:
    """The factors by which zoom blur enlarges the image."""
    return tuple(np.arange(start, stop, step).tolist())


def zoom_crop(n: int, factor: float) -> int:
    """How many of ``n`` pixels in a row or column are enlarged by ``factor`` to fill about ``n`` pixels again."""
    return math.ceil(n / factor)


@lru_cache(maxsize=512)
def enlarged(n: int, factor: float, wanted: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Between which pixels of a row the pixels of its enlargement lie, as in SciPy's zoom of order 1.

    ``n`` pixels become round(n * factor), such that the centres of the first and last pixel stay where they are. Of these the
    ``wanted`` ones in the middle are kept.

    Returns:
        low, high: int64 (wanted,), the pixels before and after each place.
        part: float32 (wanted,), how far the place lies from ``low`` to ``high``, between 0 and 1.
    """
    count = round(n * factor)
    place = (np.arange(wanted) + (count - wanted) // 2) * ((n - 1) / max(count - 1, 1))
    low = np.minimum(place.astype(np.int64), n - 1)
    return low, np.minimum(low + 1, n - 1), (place - low).astype(np.float32)
