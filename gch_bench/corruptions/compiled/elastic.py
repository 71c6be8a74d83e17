"""To be written."""


def elastic_transform(image, out, level, key=None):
    raise NotImplementedError("elastic_transform")
