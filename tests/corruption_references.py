"""The deterministic corruptions by scikit-image, NumPy and Pillow: independent of gch_bench."""

import io

import numpy as np
import skimage.color
import skimage.data
import skimage.filters
from PIL import Image


def to_uint8(x: np.ndarray) -> np.ndarray:
    return (np.clip(x, 0, 1) * 255).astype(np.uint8)


def skimage_blur(image, sigma):
    return to_uint8(skimage.filters.gaussian(image / 255.0, sigma=sigma, channel_axis=-1))


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
    "gaussian_blur": (skimage_blur, 0.01),
    "brightness": (skimage_brightness, 0.01),
    "saturate": (skimage_saturate, 0.03),
    "contrast": (numpy_contrast, 1e-4),
    "pixelate": (pillow_pixelate, 0.0),
    "jpeg_compression": (pillow_jpeg, 0.0),
}
