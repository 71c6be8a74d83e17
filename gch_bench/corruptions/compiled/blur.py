"""To be written."""


def defocus_blur(image, out, level, key=None):
    raise NotImplementedError("defocus_blur")


def gaussian_blur(image, out, level, key=None):
    raise NotImplementedError("gaussian_blur")


def glass_blur(image, out, level, key=None):
    raise NotImplementedError("glass_blur")


def motion_blur(image, out, level, key=None):
    raise NotImplementedError("motion_blur")
