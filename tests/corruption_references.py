"""The corruptions by OpenCV, SciPy, scikit-image, NumPy and Pillow: independent of gch_bench, one image at a time.

The random ones take the same draws as gch_bench does, which `Draws` makes from the definition of Philox.
"""

import io
import math
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.ndimage
import skimage.color
import skimage.data
import skimage.filters
import torch
from PIL import Image
from scipy import stats

from gch_bench.corruptions import CORRUPTIONS, Corruption
from gch_bench.corruptions.shared import Shared
from gch_bench.corruptions.weather import frost_photographs

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
REFERENCE = Path(__file__).parents[2] / "shared" / "reference"
needs_reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason="../shared/reference is absent")


@cache
def photos(height: int, width: int) -> torch.Tensor:
    """uint8 (4, 3, height, width): three photographs, and one that is grey, black and white in parts."""
    sources = [skimage.data.astronaut(), skimage.data.chelsea(), skimage.data.coffee(), skimage.data.rocket()]
    arrays = [np.asarray(Image.fromarray(source).resize((width, height), Image.Resampling.BILINEAR)) for source in sources]
    patched = arrays[3].copy()
    third = height // 3
    patched[:third, : width // 2], patched[:third, width // 2 :] = 0, 255
    patched[third : 2 * third] = patched[third : 2 * third, :, :1]
    return torch.from_numpy(np.stack([*arrays[:3], patched])).permute(0, 3, 1, 2).contiguous()


def ids(n: int) -> torch.Tensor:
    return torch.arange(100, 100 + n)


# ---- the two forms of a corruption, at any level: uint8 (B, 3, H, W) -> the same ----


def compiled(name: str, images: torch.Tensor, level, keys: list[int] | None = None) -> torch.Tensor:
    out = torch.empty(images.shape, dtype=torch.uint8)
    for number, (image, corrupted) in enumerate(zip(images.contiguous().numpy(), out.numpy(), strict=True)):
        CORRUPTIONS[name].compiled(Shared(image), corrupted, level, *(() if keys is None else (keys[number],)))
    return out


def batched(name: str, images: torch.Tensor, level, keys: list[int] | None = None) -> torch.Tensor:
    draws = () if keys is None else (torch.tensor(keys, device=images.device),)
    return CORRUPTIONS[name].batched(Shared(images), level, *draws)


FORMS = (compiled, batched)


# ---- deterministic: (image, level) ----


def to_uint8(x: np.ndarray) -> np.ndarray:
    return (np.clip(x, 0, 1) * 255).astype(np.uint8)


def skimage_blur(image, sigma):
    return to_uint8(skimage.filters.gaussian(image / 255.0, sigma=sigma, channel_axis=-1))


def opencv_defocus(image, radius_alias):
    radius, alias = radius_alias
    grid = np.arange(-8, 9) if radius <= 8 else np.arange(-radius, radius + 1)
    disk = (grid**2 + grid[:, None] ** 2 <= radius**2).astype(np.float32)
    side = 3 if radius <= 8 else 5
    kernel = cv2.GaussianBlur(disk / disk.sum(), ksize=(side, side), sigmaX=alias)
    return to_uint8(cv2.filter2D(image / 255.0, -1, kernel))


def scipy_clipped_zoom(x, factor):
    """The middle of a 2-D or 3-D array enlarged to its size."""
    crop = [math.ceil(n / factor) for n in x.shape[:2]]
    start = [(n - c) // 2 for n, c in zip(x.shape, crop, strict=False)]
    middle = x[start[0] : start[0] + crop[0], start[1] : start[1] + crop[1]]
    return scipy_enlarge(middle, factor, x.shape[:2])


def scipy_enlarge(middle, factor, size):
    # With mode="constant", the default, a last column or row whose place is rounded up is 0 at some sizes (26 of 15 pixels).
    large = scipy.ndimage.zoom(middle, (factor, factor, *(1 for _ in middle.shape[2:])), order=1, mode="nearest")
    trim = [(n - wanted) // 2 for n, wanted in zip(large.shape, size, strict=False)]
    return large[trim[0] : trim[0] + size[0], trim[1] : trim[1] + size[1]]


def scipy_zoom_blur(image, start_stop_step):
    factors = np.arange(*start_stop_step)
    x = image / 255.0
    return to_uint8((x + sum(scipy_clipped_zoom(x, factor) for factor in factors)) / (len(factors) + 1))


def skimage_brightness(image, added):
    hsv = skimage.color.rgb2hsv(image / 255.0)
    hsv[..., 2] = np.clip(hsv[..., 2] + added, 0, 1)
    return to_uint8(skimage.color.hsv2rgb(hsv))


def skimage_saturate(image, factor_offset):
    hsv = skimage.color.rgb2hsv(image / 255.0)
    hsv[..., 1] = np.clip(hsv[..., 1] * factor_offset[0] + factor_offset[1], 0, 1)
    return to_uint8(skimage.color.hsv2rgb(hsv))


def numpy_contrast(image, factor):
    x = image / 255.0
    mean = x.mean((0, 1), keepdims=True)
    return to_uint8((x - mean) * factor + mean)


def pillow_pixelate(image, scale):
    height, width = image.shape[:2]
    small = Image.fromarray(image).resize((int(width * scale), int(height * scale)), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BOX))


def pillow_jpeg(image, quality):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


INDEPENDENT = {  # name: (implementation, largest share of values that may differ, by one level, where rounding decides)
    "defocus_blur": (opencv_defocus, 0.1),  # up to every fifth value is a whole level but for the rounding of the weights
    "zoom_blur": (scipy_zoom_blur, 0.01),
    "gaussian_blur": (skimage_blur, 0.01),
    "brightness": (skimage_brightness, 0.01),
    "saturate": (skimage_saturate, 0.03),
    "contrast": (numpy_contrast, 1e-4),
    "pixelate": (pillow_pixelate, 0.0),
    "jpeg_compression": (pillow_jpeg, 0.0),
}


# ---- the draws ----


def philox(counter: list, key: list) -> list:
    """Philox4x32-10 with Python's whole numbers or NumPy's uint64, written from Salmon et al. (2011), section 3."""
    mask = 0xFFFFFFFF
    for _ in range(10):
        first, second = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [second >> 32 ^ counter[1] ^ key[0], second & mask, first >> 32 ^ counter[3] ^ key[1], first & mask]
        key = [key[0] + 0x9E3779B9 & mask, key[1] + 0xBB67AE85 & mask]
    return counter


class Draws:
    """The random fields of one image, by its key: stream after stream, as corruptions/draws.py defines them."""

    def __init__(self, key: int) -> None:
        self.key = [key & 0xFFFFFFFF, key >> 32]

    def words(self, stream: int, count: int) -> np.ndarray:
        block = np.arange(-(-count // 4), dtype=np.uint64)
        counter = [block, block * 0 + stream, block * 0, block * 0]
        return np.stack(philox(counter, [np.uint64(half) for half in self.key]), 1).ravel()[:count].astype(np.uint32)

    def uniform(self, stream: int, count: int) -> np.ndarray:
        """U(0, 1)"""
        return (self.words(stream, count) + 0.5) / 2**32

    def signed(self, stream: int, count: int) -> np.ndarray:
        """U(-1, 1)"""
        return self.words(stream, count).astype(np.int32).astype(np.float32) / np.float32(2**31)

    def normal(self, stream: int, count: int) -> np.ndarray:
        """N(0, 1)"""
        return stats.norm.ppf(self.uniform(stream, count))

    def below(self, stream: int, count: int, n: int) -> np.ndarray:
        """0..n - 1"""
        return (self.words(stream, count).astype(np.uint64) * np.uint64(n) >> np.uint64(32)).astype(int)


# ---- random: (image, level, draws) ----


def sequential_scan(image, max_delta, draw):
    """The reference's loop: each pixel in turn is overwritten by the neighbour that was drawn for it."""
    height, width = image.shape[:2]
    for h in range(height - max_delta, max_delta, -1):
        for w in range(width - max_delta, max_delta, -1):
            dy, dx = divmod(int(draw[h - max_delta - 1, w - max_delta - 1]), 2 * max_delta)
            image[h, w] = image[h + dy - max_delta, w + dx - max_delta]


def sequential_glass_blur(image, level, draws):
    sigma, max_delta, iterations = level
    image = skimage_blur(image, sigma)
    rows, columns = image.shape[0] - 2 * max_delta, image.shape[1] - 2 * max_delta
    for iteration in range(iterations):
        draw = draws.below(iteration, rows * columns, (2 * max_delta) ** 2)
        sequential_scan(image, max_delta, draw.reshape(rows, columns))
    return skimage_blur(image, sigma)


def numpy_motion_blur_at(image, radius, sigma, angle):
    """image: (H, W) or (H, W, 3)."""
    height, width = image.shape[:2]
    taps = range(2 * math.ceil(radius) + 1)
    weight = np.exp([-(i**2) / (2 * sigma**2) for i in taps])
    total = np.zeros(image.shape)
    for i in taps:
        row = np.clip(np.arange(height) + math.ceil(i * math.sin(math.radians(angle)) - 0.5), 0, height - 1)
        column = np.clip(np.arange(width) + math.ceil(i * math.cos(math.radians(angle)) - 0.5), 0, width - 1)
        total += weight[i] / weight.sum() * image[row][:, column]
    return (total + 1e-6).astype(np.uint8)  # a flat area stays


def numpy_motion_blur(image, level, draws):
    return numpy_motion_blur_at(image, *level, -45 + 90 * draws.uniform(0, 1)[0])


def scipy_snow(image, level, draws):
    mean, sd, zoom, threshold, radius, sigma, keep = level
    crop = [math.ceil(n / zoom) for n in image.shape[:2]]
    flakes = scipy_enlarge(mean + sd * draws.normal(0, math.prod(crop)).reshape(crop), zoom, image.shape[:2])
    flakes[flakes < threshold] = 0
    angle = -135 + 90 * draws.uniform(1, 1)[0]
    layer = numpy_motion_blur_at(to_uint8(flakes), radius, sigma, angle)[..., None] / 255
    x = (image / 255).astype(np.float32)
    x = keep * x + (1 - keep) * np.maximum(x, cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)[..., None] * 1.5 + 0.5)
    return to_uint8(x + layer + np.rot90(layer, k=2))


def numpy_frost(image, level, draws):
    image_weight, frost_weight, scale = level
    which, top, left = draws.uniform(0, 3)
    texture = np.asarray(frost_photographs()[int(5 * which)])
    if scale != 1:
        texture = cv2.resize(texture, (round(texture.shape[1] * scale), round(texture.shape[0] * scale)))
    height, width = image.shape[:2]
    top, left = int(top * (texture.shape[0] - height)), int(left * (texture.shape[1] - width))
    crop = texture[top : top + height, left : left + width]
    return np.clip(image_weight * image + frost_weight * crop, 0, 255).astype(np.uint8)


def sequential_plasma(draws, decay):
    """Diamond-square by its definition, point by point; draws (N,), N = side^2."""
    side = math.isqrt(len(draws))
    plasma = np.zeros((side, side))
    step, wibble, k = side, 100.0, 1
    while step >= 2:
        half = step // 2
        middle, above, left = draws[k * k : 4 * k * k].reshape(3, k, k) * wibble**2
        points = [(i, j) for i in range(k) for j in range(k)]
        for i, j in points:
            y, x = i * step, j * step
            corners = [plasma[(y + a) % side, (x + b) % side] for a in (0, step) for b in (0, step)]
            plasma[y + half, x + half] = np.mean(corners) + middle[i, j]
        for i, j in points:
            y, x = i * step, j * step
            for (py, px), wobble in (((y, x + half), above[i, j]), ((y + half, x), left[i, j])):
                around = [
                    ((py - half) % side, px),
                    ((py + half) % side, px),
                    (py, (px - half) % side),
                    (py, (px + half) % side),
                ]
                plasma[py, px] = np.mean([plasma[place] for place in around]) + wobble
        step, wibble, k = half, wibble / decay, 2 * k
    plasma -= plasma.min()
    return plasma / plasma.max()


def numpy_fog(image, level, draws):
    strength, decay = level
    height, width = image.shape[:2]
    side = 2 ** math.ceil(math.log2(max(height, width)))
    x = image / 255
    foggy = x + strength * sequential_plasma(draws.signed(0, side * side).astype(float), decay)[:height, :width, None]
    return to_uint8(foggy * x.max() / (x.max() + strength))


def opencv_elastic(image, level, draws):
    alpha, sigma, affine = level
    height, width = image.shape[:2]
    shift = affine * (2 * draws.uniform(0, 6).reshape(3, 2) - 1)
    center, reach = np.float32((height, width)) // 2, min(height, width) // 3
    points = np.float32([center + reach, [center[0] + reach, center[1] - reach], center - reach])
    transform = cv2.getAffineTransform(points, points + shift.astype(np.float32))
    x = cv2.warpAffine((image / 255).astype(np.float32), transform, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    if alpha > 0:
        move = [alpha * draws.signed(stream, height * width).reshape(height, width) for stream in (1, 2)]
        dx, dy = (skimage.filters.gaussian(field, sigma, mode="reflect", truncate=3) for field in move)
        row, column, channel = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
        places = [row + dy[..., None], column + dx[..., None], channel]
        x = scipy.ndimage.map_coordinates(x, places, order=1, mode="reflect")
    return to_uint8(x)


def opencv_spatter(image, level, draws):
    mean, sd, sigma, threshold, strength, mud = level
    noise = mean + sd * draws.normal(0, image[..., 0].size).reshape(image.shape[:2])
    liquid = skimage.filters.gaussian(noise, sigma=sigma)
    x = (image / 255).astype(np.float32)
    if mud:
        cover = skimage.filters.gaussian((liquid > threshold).astype(np.float32), sigma=strength)
        cover = np.where(cover < 0.8, 0, cover)[..., None]
        return to_uint8(x * (1 - cover) + np.array([63, 42, 20]) / 255 * cover)
    liquid = (np.where(liquid < threshold, 0, liquid) * 255).astype(np.int64).astype(np.uint8)  # wraps above 1
    distance = cv2.distanceTransform(255 - cv2.Canny(liquid, 50, 150), cv2.DIST_L2, 5)
    relief = cv2.equalizeHist(cv2.blur(np.minimum(distance, 20), (3, 3)).astype(np.uint8))
    relief = cv2.filter2D(relief, cv2.CV_8U, np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]))
    amount = liquid * cv2.blur(relief, (3, 3)).astype(np.float32)
    return to_uint8(x + (strength * amount / max(amount.max(), 1))[..., None] * np.array([175, 238, 238]) / 255)


REPLAYED = {  # name: (implementation, largest share of values that may differ where rounding decides, largest difference)
    "glass_blur": (sequential_glass_blur, 0.1, 2),  # truncated twice
    "motion_blur": (numpy_motion_blur, 0.01, 1),
    "snow": (scipy_snow, 0.02, 255),  # a flake at the threshold is there or not: a streak and its reflection
    "frost": (numpy_frost, 0.1, 1),  # 0.7 x + 0.7 y is a whole level at every tenth value, but for rounding
    "fog": (numpy_fog, 0.001, 1),
    "elastic_transform": (opencv_elastic, 0.003, 1),
    "spatter": (opencv_spatter, 0.001, 255),  # mud that covers 0.8 of a pixel but for rounding is there or not
}


# ---- noises: the law of the output at each grey level ----


def _normal_law(v, sd):
    below = stats.norm.cdf(np.arange(1, 256), loc=v, scale=max(255 * sd, 1e-9))
    return np.append(below, 1)


def _speckle_law(v, sd):
    return _normal_law(v, sd * v / 255)


def _impulse_law(v, amount):
    probability = np.zeros(256)
    probability[v] = 1 - amount
    probability[[0, 255]] += amount / 2
    return probability.cumsum()


def _poisson_law(v, photons):
    k = np.arange(4 * photons + 60)
    probability = np.zeros(256)
    np.add.at(probability, to_uint8(k / photons), stats.poisson.pmf(k, v / 255 * photons))
    return probability.cumsum()


LAWS = {  # name: (grey level, severity's level) -> P(output <= g), g = 0..255
    "gaussian_noise": _normal_law,
    "shot_noise": _poisson_law,
    "impulse_noise": _impulse_law,
    "speckle_noise": _speckle_law,
}


# ---- shared work ----


def notes_of_work(monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]) -> list[bytes]:
    """Replace corruptions by one that changes nothing, and return the pixels of every image for which it computed something."""
    computed: list[bytes] = []

    def note(pixels: np.ndarray) -> None:
        computed.append(pixels.tobytes())

    def unchanged(image: Shared, out: np.ndarray, level: object) -> None:
        image.once(note)
        out[:] = image.pixels

    for name in names:
        monkeypatch.setitem(CORRUPTIONS, name, Corruption(unchanged, unchanged, group="digital"))
    return computed
