"""The corruptions of one image on one core of a CPU, in code that Numba compiles. See ``table.Corruption``."""

from gch_bench.corruptions.compiled.blur import gaussian_blur, glass_blur, motion_blur
from gch_bench.corruptions.compiled.color import brightness, contrast, saturate
from gch_bench.corruptions.compiled.defocus import defocus_blur
from gch_bench.corruptions.compiled.elastic import elastic_transform
from gch_bench.corruptions.compiled.jpeg import jpeg_compression
from gch_bench.corruptions.compiled.noise import gaussian_noise, impulse_noise, shot_noise, speckle_noise
from gch_bench.corruptions.compiled.pixelate import pixelate
from gch_bench.corruptions.compiled.spatter import spatter
from gch_bench.corruptions.compiled.weather import fog, frost, snow
from gch_bench.corruptions.compiled.zoom import zoom_blur
