"""To be written."""


def jpeg_compression(image, out, level, key=None):
    raise NotImplementedError("jpeg_compression")
