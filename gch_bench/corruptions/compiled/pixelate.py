"""To be written."""


def pixelate(image, out, level, key=None):
    raise NotImplementedError("pixelate")
