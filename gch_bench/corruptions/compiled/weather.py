"""To be written."""


def fog(image, out, level, key=None):
    raise NotImplementedError("fog")


def frost(image, out, level, key=None):
    raise NotImplementedError("frost")


def snow(image, out, level, key=None):
    raise NotImplementedError("snow")
