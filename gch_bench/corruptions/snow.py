"""The facts of snow that its compiled and its batched form share."""

FLAKES, ANGLE = 0, 1  # streams: the normal draws of the flakes, and the uniform draw of the motion blur's angle
LOWEST_ANGLE, ANGLES = -135.0, 90.0  # in degrees: the smallest angle, and the range of the draw
LUMA = (0.299, 0.587, 0.114)  # the weights of red, green and blue in the grey version of an image

Snow = tuple[float, float, float, float, float, float, float]
