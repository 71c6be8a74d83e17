"""To be written."""


def brightness(image, out, level, key=None):
    raise NotImplementedError("brightness")


def contrast(image, out, level, key=None):
    raise NotImplementedError("contrast")


def saturate(image, out, level, key=None):
    raise NotImplementedError("saturate")
