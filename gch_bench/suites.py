"""Published sets of stored corrupted images whose corruptions are not those of ImageNet-C: the names of their corruptions.

These corruptions cannot be generated here. Their means are taken over the corruptions of one suite alone, and mCE, which
compares with AlexNet on ImageNet-C's corruptions, is not defined for them.
Sources: ImageNet-C-bar, Mintun, Kirillov & Xie 2021 (facebookresearch/augmentation-corruption). ImageNet-3DCC, Kar, Yeo, Atanov
& Zamir 2022 (EPFL-VILAB/3DCommonCorruptions).
"""

SUITES: dict[str, tuple[str, ...]] = {
    "imagenet_c_bar": (
        "blue_noise_sample", "brownish_noise", "caustic_refraction", "checkerboard_cutout", "cocentric_sine_waves",
        "inverse_sparkles", "perlin_noise", "plasma_noise", "single_frequency_greyscale", "sparkles",
    ),
    "imagenet_3dcc": (
        "near_focus", "far_focus", "fog_3d", "flash", "color_quant", "low_light", "xy_motion_blur", "z_motion_blur",
        "iso_noise", "bit_error", "h265_abr", "h265_crf",
    ),
}  # fmt: skip


def suite_of(corruption: str) -> str | None:
    """The suite that a corruption belongs to; None if it belongs to no suite, as those of ImageNet-C."""
    return next((suite for suite, names in SUITES.items() if corruption in names), None)
