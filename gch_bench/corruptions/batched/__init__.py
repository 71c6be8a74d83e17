"""The corruptions of a batch of images by torch on any device, without loops over images.

``table.Corruption`` says how they are called. What they do, and the meaning of levels, is said in compiled/.
"""

from gch_bench.corruptions.batched.blur import defocus_blur, gaussian_blur, glass_blur, motion_blur
from gch_bench.corruptions.batched.color import brightness, contrast, saturate
from gch_bench.corruptions.batched.elastic import elastic_transform
from gch_bench.corruptions.batched.jpeg import jpeg_compression
from gch_bench.corruptions.batched.noise import gaussian_noise, impulse_noise, shot_noise, speckle_noise
from gch_bench.corruptions.batched.pixelate import pixelate
from gch_bench.corruptions.batched.spatter import spatter
from gch_bench.corruptions.batched.weather import fog, frost, snow
from gch_bench.corruptions.batched.zoom import zoom_blur
