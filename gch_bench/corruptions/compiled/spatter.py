"""To be written."""


def spatter(image, out, level, key=None):
    raise NotImplementedError("spatter")
