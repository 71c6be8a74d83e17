"""To be written."""


def zoom_blur(image, out, level, key=None):
    raise NotImplementedError("zoom_blur")
