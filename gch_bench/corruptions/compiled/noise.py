"""To be written."""


def gaussian_noise(image, out, level, key=None):
    raise NotImplementedError("gaussian_noise")


def shot_noise(image, out, level, key=None):
    raise NotImplementedError("shot_noise")


def impulse_noise(image, out, level, key=None):
    raise NotImplementedError("impulse_noise")


def speckle_noise(image, out, level, key=None):
    raise NotImplementedError("speckle_noise")
